import numpy as np
import pytest
from napari.layers import Labels

from napari_unsam._commit import CommittedObject, ObjectTable, commit
from napari_unsam._controller import Proposal
from napari_unsam._planes import Plane

PLANE = Plane(shape=(3, 8, 10), axes=(1, 2), index=(1, 0, 0))


def proposal(box_xyxy, mask=None):
    x0, y0, x1, y1 = box_xyxy
    mask = np.ones((y1 - y0, x1 - x0), bool) if mask is None else np.array(mask, bool)
    return Proposal(PLANE, box_xyxy, mask, int(mask.sum()), granularity=0.5, score=0.75, rank=1, count=1)


@pytest.fixture
def labels():
    return Labels(np.zeros(PLANE.shape, np.uint32))


def test_a_mask_is_written_into_its_plane_alone(labels):
    committed = commit(labels, proposal((2, 1, 5, 3), [[1, 1, 0], [0, 1, 1]]))
    assert np.argwhere(labels.data).tolist() == [[1, 1, 2], [1, 1, 3], [1, 2, 3], [1, 2, 4]]
    region = (slice(1, 2), slice(1, 3), slice(2, 5))
    assert committed == CommittedObject(label=1, area_px=4, granularity=0.5, score=0.75, region=region)


def test_every_commit_has_a_label_of_its_own_above_all_others(labels):
    labels.data[0, 0, 0] = 41
    assert commit(labels, proposal((0, 0, 2, 2))).label == 42
    assert commit(labels, proposal((4, 4, 6, 6))).label == 43
    assert labels.selected_label == 43


@pytest.mark.parametrize(('keep_existing', 'areas'), [(True, [4, 5]), (False, [3, 6])])
def test_existing_objects_are_kept_unless_told_otherwise(labels, keep_existing, areas):
    commit(labels, proposal((0, 0, 2, 2)))
    commit(labels, proposal((1, 1, 4, 3)), keep_existing)
    assert np.bincount(labels.data.ravel())[1:].tolist() == areas


def test_a_mask_without_a_free_pixel_is_not_committed(labels):
    commit(labels, proposal((0, 0, 4, 4)))
    assert commit(labels, proposal((1, 1, 3, 3))) is None


def test_the_layers_own_undo_and_redo_take_commits_back_one_by_one(labels):
    commit(labels, proposal((0, 0, 2, 2)))
    commit(labels, proposal((1, 1, 4, 3)), keep_existing=False)
    after = labels.data.copy()
    labels.undo()
    assert np.bincount(labels.data.ravel())[1:].tolist() == [4]
    labels.undo()
    assert not labels.data.any()
    labels.redo()
    labels.redo()
    assert (labels.data == after).all()


def test_the_table_has_a_row_for_each_object_through_undo_and_redo(labels):
    table = ObjectTable(labels)
    table.add(commit(labels, proposal((0, 0, 2, 2))))
    table.add(commit(labels, proposal((4, 4, 6, 7))))
    assert labels.features.to_dict('list') == {
        'index': [1, 2],
        'area_px': [4, 6],
        'granularity': [0.5, 0.5],
        'score': [0.75, 0.75],
    }
    labels.undo()
    assert labels.features['index'].tolist() == [1]
    labels.redo()
    assert labels.features['area_px'].tolist() == [4, 6]


def test_a_label_that_is_used_again_after_an_undo_has_the_row_of_its_new_object(labels):
    table = ObjectTable(labels)
    table.add(commit(labels, proposal((0, 0, 2, 2))))
    labels.undo()
    table.add(commit(labels, proposal((4, 4, 6, 7))))
    assert labels.features[['index', 'area_px']].to_numpy().tolist() == [[1, 6]]


def test_rows_of_an_earlier_session_are_kept(labels):
    earlier = ObjectTable(labels)
    earlier.add(commit(labels, proposal((0, 0, 2, 2))))
    earlier.close()
    ObjectTable(labels).add(commit(labels, proposal((4, 4, 6, 7))))
    assert labels.features['area_px'].tolist() == [4, 6]


def test_the_table_knows_of_the_pixels_that_a_later_object_takes(labels):
    table = ObjectTable(labels)
    table.add(commit(labels, proposal((0, 0, 2, 2))))
    table.add(commit(labels, proposal((1, 1, 4, 3)), keep_existing=False))
    assert labels.features['area_px'].tolist() == [3, 6]
    labels.undo()
    assert labels.features['area_px'].tolist() == [4]
    assert labels.features['area_px'].dtype == np.int64


def test_objects_of_an_earlier_session_that_lose_pixels_are_followed_too(labels):
    earlier = ObjectTable(labels)
    earlier.add(commit(labels, proposal((0, 0, 2, 2))))
    earlier.close()
    later = ObjectTable(labels)
    later.add(commit(labels, proposal((0, 1, 4, 3)), keep_existing=False))
    assert labels.features['area_px'].tolist() == [2, 8]
    later.add(commit(labels, proposal((0, 0, 4, 3)), keep_existing=False))
    assert labels.features['index'].tolist() == [3]


def test_columns_of_the_user_are_kept_through_commits_undo_and_redo(labels):
    table = ObjectTable(labels)
    table.add(commit(labels, proposal((0, 0, 2, 2))))
    labels.features['note'] = ['nucleus']
    table.add(commit(labels, proposal((4, 4, 6, 7))))
    assert labels.features['note'].isna().tolist() == [False, True]
    labels.features.loc[1, 'note'] = 'vesicle'
    labels.undo()
    assert labels.features['note'].tolist() == ['nucleus']
    labels.redo()
    assert labels.features['note'].tolist() == ['nucleus', 'vesicle']


def test_a_table_without_labels_keeps_its_rows_and_gets_them(labels):
    labels.features = {'note': ['background', 'painted']}
    labels.data[0, 0, 0] = 1
    ObjectTable(labels).add(commit(labels, proposal((0, 0, 2, 2))))
    assert labels.features[['index', 'note']].fillna('').to_numpy().tolist() == [
        [0, 'background'],
        [1, 'painted'],
        [2, ''],
    ]
