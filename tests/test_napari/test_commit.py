import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels

from napari_unsam._commit import ObjectTable, ObjectWrite, WriteObjects, write_of
from napari_unsam._planes import Plane
from napari_unsam._targets import Proposal
from napari_unsam.state.history import ActionHistory

PLANE = Plane(shape=(3, 8, 10), axes=(1, 2), index=(1, 0, 0))


def proposal(box_xyxy, mask=None):
    x0, y0, x1, y1 = box_xyxy
    mask = np.ones((y1 - y0, x1 - x0), bool) if mask is None else np.array(mask, bool)
    return Proposal(PLANE, box_xyxy, mask, int(mask.sum()), granularity=0.5, score=0.75, rank=1, count=1)


class Desk:
    """A Labels layer with its table and the history of what was written."""

    def __init__(self, labels):
        self.labels, self.table, self.history = labels, ObjectTable(labels), ActionHistory()

    def commit(self, box_xyxy, mask=None, keep_existing=True):
        """Writes a mask with the next label; returns what was written."""
        write = write_of(proposal(box_xyxy, mask), self.table.highest + 1, self.labels.data, keep_existing)
        if write is not None:
            self.write(write)
        return write

    def write(self, *writes):
        self.history.do(WriteObjects('write', self.table, writes))

    def areas(self):
        return dict(zip(self.labels.features['index'], self.labels.features['area_px'], strict=True))


@pytest.fixture
def labels():
    return Labels(np.zeros(PLANE.shape, np.uint32))


@pytest.fixture
def desk(labels):
    return Desk(labels)


def test_a_mask_is_written_into_its_plane_alone(desk, labels):
    write = desk.commit((2, 1, 5, 3), [[1, 1, 0], [0, 1, 1]])
    assert np.argwhere(labels.data).tolist() == [[1, 1, 2], [1, 1, 3], [1, 2, 3], [1, 2, 4]]
    assert write.region == (slice(1, 2), slice(1, 3), slice(2, 5))
    assert labels.features.to_dict('list') == {'index': [1], 'area_px': [4], 'granularity': [0.5], 'score': [0.75]}


def test_every_commit_has_a_label_of_its_own_above_all_others(labels):
    labels.data[0, 0, 0] = 41
    desk = Desk(labels)
    assert desk.commit((0, 0, 2, 2)).label == 42
    assert desk.commit((4, 4, 6, 6)).label == 43


def test_a_label_that_was_painted_by_hand_is_given_to_no_object(desk, labels):
    labels.data_setitem((np.array([0]), np.array([0]), np.array([0])), 77)
    assert desk.commit((4, 4, 6, 6)).label == 78
    labels.paint((0, 5, 5), 90)
    assert desk.commit((0, 0, 2, 2)).label == 91


@pytest.mark.parametrize(('keep_existing', 'areas'), [(True, [4, 5]), (False, [3, 6])])
def test_existing_objects_are_kept_unless_told_otherwise(desk, labels, keep_existing, areas):
    desk.commit((0, 0, 2, 2))
    desk.commit((1, 1, 4, 3), keep_existing=keep_existing)
    assert np.bincount(labels.data.ravel())[1:].tolist() == areas


def test_a_mask_without_a_free_pixel_is_not_committed(desk):
    desk.commit((0, 0, 4, 4))
    assert desk.commit((1, 1, 3, 3)) is None


def test_undo_and_redo_take_writes_back_one_by_one(desk, labels):
    desk.commit((0, 0, 2, 2))
    desk.commit((1, 1, 4, 3), keep_existing=False)
    after = labels.data.copy()
    desk.history.undo()
    assert np.bincount(labels.data.ravel())[1:].tolist() == [4]
    assert desk.areas() == {1: 4}
    desk.history.undo()
    assert not labels.data.any()
    assert desk.areas() == {}
    desk.history.redo()
    desk.history.redo()
    assert (labels.data == after).all()
    assert desk.areas() == {1: 3, 2: 6}


def test_what_scripts_write_is_counted_once_the_layer_is_drawn_anew(desk, labels):
    desk.commit((0, 0, 2, 2))
    labels.data[1, 0, 0] = 0
    labels.refresh()
    assert desk.areas() == {1: 3}


def test_many_objects_are_one_action_and_later_ones_win_where_they_overlap(desk, labels):
    whole = (slice(0, 3), slice(0, 2), slice(0, 2))
    part = (slice(1, 2), slice(0, 2), slice(0, 2))
    writes = [
        ObjectWrite(whole, np.ones((3, 2, 2), bool), 7, {'level': 1}),
        ObjectWrite(part, np.ones((1, 2, 2), bool), 9),
    ]
    desk.write(*writes)
    assert desk.areas() == {7: 8, 9: 4}
    assert labels.features['level'].tolist()[0] == 1
    desk.history.undo()
    assert not labels.data.any()


def test_label_0_erases_and_undo_brings_the_object_and_its_row_back(desk, labels):
    write = desk.commit((0, 0, 2, 2))
    labels.features['note'] = ['nucleus']
    desk.write(ObjectWrite(write.region, write.mask, 0))
    assert not labels.data.any()
    assert desk.areas() == {}
    desk.history.undo()
    assert desk.areas() == {1: 4}
    assert labels.features['note'].tolist() == ['nucleus']


def test_a_row_that_is_written_anew_comes_back_as_it_was(desk, labels):
    write = desk.commit((0, 0, 2, 2))
    desk.write(ObjectWrite(write.region, write.mask, 1, {'score': 0.1}))
    assert labels.features['score'].tolist() == [0.1]
    desk.history.undo()
    assert labels.features['score'].tolist() == [0.75]


def test_a_label_that_is_used_again_after_an_undo_has_the_row_of_its_new_object(desk, labels):
    desk.commit((0, 0, 2, 2))
    desk.history.undo()
    region = (slice(1, 2), slice(4, 7), slice(4, 6))
    desk.write(ObjectWrite(region, np.ones((1, 3, 2), bool), 1))
    assert desk.areas() == {1: 6}


def test_rows_of_an_earlier_session_are_kept(labels):
    earlier = Desk(labels)
    earlier.commit((0, 0, 2, 2))
    earlier.table.close()
    later = Desk(labels)
    later.commit((4, 4, 6, 7))
    assert later.areas() == {1: 4, 2: 6}


def test_objects_of_an_earlier_session_that_lose_pixels_are_followed_too(labels):
    earlier = Desk(labels)
    earlier.commit((0, 0, 2, 2))
    earlier.table.close()
    later = Desk(labels)
    later.commit((0, 1, 4, 3), keep_existing=False)
    assert later.areas() == {1: 2, 2: 8}
    later.commit((0, 0, 4, 3), keep_existing=False)
    assert list(later.areas()) == [3]


def test_columns_of_the_user_are_kept_through_commits_undo_and_redo(desk, labels):
    desk.commit((0, 0, 2, 2))
    labels.features['note'] = ['nucleus']
    desk.commit((4, 4, 6, 7))
    assert labels.features['note'].isna().tolist() == [False, True]
    labels.features.loc[1, 'note'] = 'vesicle'
    desk.history.undo()
    assert labels.features['note'].tolist() == ['nucleus']


def test_a_table_without_labels_keeps_its_rows_and_gets_them(labels):
    labels.features = {'note': ['background', 'painted']}
    labels.data[0, 0, 0] = 1
    Desk(labels).commit((0, 0, 2, 2))
    assert labels.features[['index', 'note']].fillna('').to_numpy().tolist() == [
        [0, 'background'],
        [1, 'painted'],
        [2, ''],
    ]


def test_of_overlapping_writes_the_later_one_wins_whatever_was_there(desk, labels):
    desk.commit((2, 1, 5, 3))
    region = (slice(1, 2), slice(1, 3), slice(2, 5))
    whole, left = np.ones((1, 2, 3), bool), np.zeros((1, 2, 3), bool)
    left[..., 0] = True
    before = labels.data.copy()
    desk.write(ObjectWrite(region, whole, 0), ObjectWrite(region, left, 1))
    assert np.argwhere(labels.data == 1).tolist() == [[1, 1, 2], [1, 2, 2]]
    desk.history.undo()
    assert np.array_equal(labels.data, before)


def test_objects_that_are_erased_with_naparis_tools_leave_the_table(desk, labels):
    desk.commit((0, 0, 4, 4))
    desk.commit((5, 0, 7, 2))
    place = np.argwhere(labels.data == 1)[0]
    labels.fill(tuple(place), 0)
    assert desk.areas() == {2: 4}
    labels.undo()
    assert desk.areas() == {1: 16, 2: 4}


def test_a_stack_that_is_turned_obliquely_is_written_to_and_undone_like_any_other():
    viewer = ViewerModel()
    layer = viewer.add_labels(
        np.zeros(PLANE.shape, np.uint32), rotate=np.linalg.qr(np.random.default_rng(1).random((3, 3)))[0]
    )
    desk = Desk(layer)
    desk.commit((1, 1, 5, 5))
    assert (layer.data == 1).sum() == 16
    assert desk.areas() == {1: 16}
    desk.history.undo()
    assert not layer.data.any()


def test_an_array_put_in_place_of_the_one_before_is_not_taken_for_empty(desk, labels):
    replaced = np.zeros_like(labels.data)
    replaced[..., 3, 4] = 7
    labels.data = replaced
    table = ObjectTable(labels, is_empty=True)
    labels.data = replaced * 2
    assert table.highest == 14
    table.close()
