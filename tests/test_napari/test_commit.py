import tracemalloc

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels

from napari_unsam.model.history import ActionHistory
from napari_unsam.model.mask import BoxMask
from napari_unsam.model.plane import Plane
from napari_unsam.viewer.object_table import ObjectTable, WriteObjects, boxes_of, object_granularity
from napari_unsam.viewer.object_write import ObjectWrite, limited_to_free, renumbered
from unsam_mm.masks.granularity import area_granularity

PLANE = Plane(shape=(3, 8, 10), axes=(1, 2), index=(1, 0, 0))


class Desk:
    """A Labels layer with its table and the history of what was written."""

    def __init__(self, labels):
        self.labels, self.table, self.history = labels, ObjectTable(labels), ActionHistory()

    def commit(self, box_xyxy, mask=None, keep_existing=True):
        """Writes a mask with the next label; returns what was written."""
        x0, y0, x1, y1 = box_xyxy
        found = BoxMask(box_xyxy, np.ones((y1 - y0, x1 - x0), bool) if mask is None else np.array(mask, bool))
        writes = [ObjectWrite.on_plane(PLANE, found, self.table.highest + 1, {'score': 0.75})]
        if keep_existing:
            writes = limited_to_free(writes, self.labels.data)
        if writes:
            self.write(*writes)
        return writes[0] if writes else None

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
    assert write.box == (slice(1, 2), slice(1, 3), slice(2, 5))
    granularity = pytest.approx(
        [1 + np.log10(4 / 80) / 4]
    )  # of the plane, of which the mask on offer may say otherwise
    assert labels.features.to_dict('list') == {
        'index': [1],
        'area_px': [4],
        'granularity': granularity,
        'score': [0.75],
    }


def test_a_row_of_an_older_file_has_its_granularity_counted_again(desk, labels):
    box, mask = (slice(1, 2), slice(0, 4), slice(0, 4)), np.ones((1, 4, 4), bool)
    desk.write(ObjectWrite(box, mask, 3, {'granularity': 0.9, 'score': 0.5}))
    assert labels.features['granularity'].tolist() == pytest.approx([1 + np.log10(16 / 80) / 4])


def test_the_granularity_follows_what_is_left_of_an_object(desk, labels):
    desk.commit((0, 0, 10, 8))
    desk.commit((0, 0, 10, 4), keep_existing=False)
    assert labels.features['granularity'].tolist() == pytest.approx([1 + np.log10(1 / 2) / 4] * 2)


def test_the_granularity_of_an_object_of_several_planes_is_the_mean_over_those_that_hold_it():
    mask = np.zeros((4, 6, 5), bool)
    mask[0, :3, :4], mask[2, :6] = True, True
    across = [area_granularity(area, 300) for area in (12, 30)]
    assert object_granularity(mask, (9, 20, 15)) == pytest.approx(np.mean(across))
    upright = mask.transpose(1, 0, 2)
    assert object_granularity(upright, (20, 9, 15), axes=(0, 2)) == pytest.approx(np.mean(across))


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


def test_what_scripts_write_is_counted_once_the_layer_is_redrawn(desk, labels):
    desk.commit((0, 0, 2, 2))
    labels.data[1, 0, 0] = 0
    labels.refresh()
    assert desk.areas() == {1: 3}


def test_what_scripts_write_anywhere_is_found_once_the_layer_is_redrawn(desk, labels):
    desk.commit((0, 0, 2, 2))
    labels.data[2, :4, :4], labels.data[0, 5:, 5:] = 1, 7
    labels.refresh()
    assert desk.areas() == {1: 4 + 16}
    assert desk.table.box_of(1) == (slice(1, 3), slice(0, 4), slice(0, 4))
    assert desk.table.box_of(7) == (slice(0, 1), slice(5, 8), slice(5, 10))
    assert desk.commit((4, 4, 6, 6)).label == 8


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
    desk.write(ObjectWrite(write.box, write.mask, 0))
    assert not labels.data.any()
    assert desk.areas() == {}
    desk.history.undo()
    assert desk.areas() == {1: 4}
    assert labels.features['note'].tolist() == ['nucleus']


def test_a_row_that_is_rewritten_comes_back_as_it_was(desk, labels):
    write = desk.commit((0, 0, 2, 2))
    desk.write(ObjectWrite(write.box, write.mask, 1, {'score': 0.1}))
    assert labels.features['score'].tolist() == [0.1]
    desk.history.undo()
    assert labels.features['score'].tolist() == [0.75]


def test_a_label_that_is_used_again_after_an_undo_has_the_row_of_its_new_object(desk, labels):
    desk.commit((0, 0, 2, 2))
    desk.history.undo()
    box = (slice(1, 2), slice(4, 7), slice(4, 6))
    desk.write(ObjectWrite(box, np.ones((1, 3, 2), bool), 1))
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
    box = (slice(1, 2), slice(1, 3), slice(2, 5))
    whole, left = np.ones((1, 2, 3), bool), np.zeros((1, 2, 3), bool)
    left[..., 0] = True
    before = labels.data.copy()
    desk.write(ObjectWrite(box, whole, 0), ObjectWrite(box, left, 1))
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


class Counted:
    """An array that gives copies, as zarr does, and knows how many of its elements were read."""

    def __init__(self, shape):
        self.held, self.read = np.zeros(shape, np.uint32), 0
        self.shape, self.ndim, self.dtype = self.held.shape, self.held.ndim, self.held.dtype

    def __getitem__(self, index):
        part = self.held[index].copy()
        self.read += part.size
        return part

    def __setitem__(self, index, values):
        self.held[index] = values

    def __array__(self, dtype=None, copy=None):
        return self[...].astype(dtype or self.dtype)


@pytest.fixture
def in_viewer():
    """A viewer with a stack of labels, and the table of their objects."""
    viewer, array = ViewerModel(), Counted((12, 64, 64))
    labels = viewer.add_labels(array, multiscale=False)
    table = ObjectTable(labels, view=lambda: viewer.dims.point)
    history = ActionHistory()
    writes = [
        ObjectWrite((slice(0, 12), slice(8 * row, 8 * row + 8), slice(0, 8)), np.ones((12, 8, 8), bool), row + 1)
        for row in range(8)
    ]
    history.do(WriteObjects('write', table, writes))
    return viewer, array, table, history


def test_objects_are_written_to_and_undone_in_arrays_that_give_copies(in_viewer):
    _, array, table, history = in_viewer
    assert np.bincount(array.held.ravel())[1:].tolist() == [768] * 8
    assert table.labels.features['area_px'].tolist() == [768] * 8
    history.undo()
    assert not array.held.any()
    assert len(table.labels.features) == 0


def test_a_step_of_a_slider_reads_the_plane_that_it_shows_and_counts_no_object(in_viewer):
    viewer, array, *_ = in_viewer
    viewer.dims.set_point(0, 0)
    for step in range(1, 12):
        array.read = 0
        viewer.dims.set_point(0, step)
        assert array.read <= 2 * 64 * 64  # napari reads it once or twice


@pytest.mark.parametrize(
    'change',
    [
        lambda labels: setattr(labels, 'contour', 1),
        lambda labels: setattr(labels, 'translate', (0, 4, 4)),
        lambda labels: setattr(labels, 'show_selected_label', True),
    ],
    ids=['contour', 'place', 'selection'],
)
def test_another_look_of_a_layer_reads_the_plane_in_view_and_counts_no_object(in_viewer, change):
    _, array, table, _ = in_viewer
    array.read = 0
    change(table.labels)
    assert array.read <= 2 * 64 * 64
    array.held[:, :4, :4] = 0
    table.labels.refresh()
    assert table.labels.features['area_px'].tolist()[0] == 768 - 12 * 16


@pytest.mark.parametrize('plane', [0, 5])
def test_what_a_script_writes_into_a_hidden_layer_is_counted_once_it_is_shown(in_viewer, plane):
    viewer, array, table, _ = in_viewer
    viewer.dims.set_point(0, 0)
    table.labels.visible = False
    array.held[:, :4, :4], array.held[3, 50:60, 50:60] = 0, 2
    table.labels.refresh()
    viewer.dims.set_point(0, plane)
    table.labels.visible = True
    assert table.labels.features['area_px'].tolist()[:2] == [768 - 12 * 16, 768 + 100]


def test_a_layer_that_only_a_script_wrote_into_stays_when_the_image_is_left(viewer, session):
    session.set_image(viewer.add_image(np.zeros((60, 80))))
    objects = session.ensure_objects()
    objects.data[3, 3] = 1  # and has not had it drawn anew
    session.set_image(None)
    assert objects in viewer.layers


def test_a_layer_that_is_hidden_when_it_is_first_followed_is_counted_once_it_is_shown():
    labels = Labels(np.ones((6, 8), np.uint8), visible=False)
    table = ObjectTable(labels, view=iter(range(9)).__next__)  # a slider is moved
    labels.data[:2] = 3
    labels.visible = True
    assert table.box_of(3) == (slice(0, 2), slice(0, 8))


def test_a_new_layer_that_is_shown_for_the_first_time_is_not_read_for_objects():
    viewer, array = ViewerModel(), Counted((12, 64, 64))
    labels = viewer.add_labels(array, multiscale=False, visible=False)
    table = ObjectTable(labels, is_empty=True)
    array.read = 0
    labels.visible = True
    assert array.read <= 2 * 64 * 64
    table.close()


@pytest.mark.parametrize('added', [(9, 80, 90), (2, 9, 80, 90)], ids=['one axis more', 'two axes more'])
def test_what_a_script_writes_is_counted_after_a_layer_of_more_axes_was_added(viewer, session, added):
    session.set_image(viewer.add_image(np.zeros((60, 80))))
    session.write_objects('write', [ObjectWrite((slice(0, 5), slice(0, 5)), np.ones((5, 5), bool), 1)])
    viewer.add_image(np.zeros(added))
    viewer.dims.set_point(0, 1)
    session.objects.data[0] = 0
    session.objects.refresh()
    assert session.objects.features['area_px'].tolist() == [20]


def test_objects_whose_boxes_overlap_are_counted_with_one_look_at_the_array(in_viewer):
    _, array, table, history = in_viewer
    everywhere = tuple(slice(0, n) for n in array.shape)
    mask = np.zeros(array.shape, bool)
    mask[0, 0, 40], mask[-1, -1, -1] = True, True
    history.do(WriteObjects('write', table, [ObjectWrite(everywhere, mask, label) for label in range(20, 30)]))
    array.read = 0
    array.held[:, :4, :4] = 0
    table.labels.refresh()
    assert array.read <= 2 * array.held.size + 2 * 64 * 64  # one more to find them; and the plane in view
    areas = dict(zip(table.labels.features['index'], table.labels.features['area_px'], strict=True))
    assert areas == {1: 768 - 12 * 16, **dict.fromkeys(range(2, 9), 768), 29: 2}


def test_what_a_commit_keeps_in_memory_is_a_twentieth_of_what_it_writes():
    labels = Labels(np.zeros((40, 120, 120), np.uint32))
    table, history = ObjectTable(labels), ActionHistory()
    grid = np.ogrid[-1:1:40j, -1:1:120j, -1:1:120j]
    mask = sum(axis**2 for axis in grid) <= 1
    everything = tuple(slice(0, n) for n in mask.shape)
    history.do(WriteObjects('first', table, [ObjectWrite(everything, mask, 1)]))
    tracemalloc.start()
    history.do(WriteObjects('over it', table, [ObjectWrite(everything, mask.copy(), 2)]))
    history.do(WriteObjects('part of it', table, [ObjectWrite(everything, np.roll(mask, 30, axis=1), 3)]))
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    written = 2 * 4 * np.count_nonzero(mask)
    assert kept <= written / 20 + labels.data[0].nbytes * 3  # what napari keeps of the slice in view
    while history.undo():
        pass
    assert not labels.data.any()


def test_the_box_of_an_object_is_known_without_a_look_at_the_whole_stack(in_viewer):
    _, array, table, _ = in_viewer
    array.held[:4, 8:16, 0:8] = 0
    array.read = 0
    assert table.box_of(2) == (slice(4, 12), slice(8, 16), slice(0, 8))
    assert array.read <= 12 * 8 * 8
    array.held[:, 8:16, 0:8] = 0
    assert table.box_of(2) is None
    assert table.box_of(99) is None


def test_an_object_that_the_array_put_in_place_lacks_has_no_box(desk, labels):
    desk.commit((0, 0, 2, 2))
    labels.data = np.zeros_like(labels.data)
    assert desk.table.box_of(1) is None


def test_the_box_of_an_object_grows_with_what_is_painted(desk, labels):
    desk.commit((0, 0, 2, 2))
    labels.paint((2, 6, 8), 1)
    assert desk.table.box_of(1)[0] == slice(1, 3)
    assert desk.areas() == {1: int((labels.data == 1).sum())}


def test_a_layer_that_is_redrawn_in_the_midst_of_a_stroke_is_counted_once(desk, labels):
    desk.commit((0, 0, 6, 6))
    desk.commit((7, 0, 9, 2))
    labels.brush_size = 3
    with labels.block_history():
        labels.paint((1, 2, 2), 2)
        labels.paint((1, 5, 5), 1)
        labels.refresh()
        labels.paint((1, 5, 6), 2)
    assert desk.areas() == {label: int((labels.data == label).sum()) for label in (1, 2)}


@pytest.mark.parametrize(
    'tool',
    [
        lambda labels: labels.paint_polygon([(1, 0, 0), (1, 7, 0), (1, 7, 9), (1, 0, 9)], 1),
        lambda labels: labels.fill((1, 7, 9), 1),
        lambda labels: labels.fill((1, 0, 0), 0),
        lambda labels: labels.data_setitem(tuple(np.array([0, 1, 2]) for _ in range(3)), 1),
    ],
    ids=['polygon', 'fill', 'erase by fill', 'items'],
)
def test_the_table_follows_tools_that_tell_before_they_write(desk, labels, tool):
    desk.commit((0, 0, 2, 2))
    desk.commit((2, 0, 4, 2))
    tool(labels)
    assert desk.areas() == {label: int((labels.data == label).sum()) for label in (1, 2) if label in labels.data}
    expected = [object_granularity(labels.data == label, labels.data.shape) for label in labels.features['index']]
    assert labels.features['granularity'].tolist() == pytest.approx(expected)


@pytest.mark.parametrize('labelled', [[3, 5, 9], [3, 5, 2**24 + 1]])
def test_boxes_are_found_whatever_the_numbers(labelled):
    array = np.zeros((4, 6, 8), np.uint32)
    for place, label in enumerate(labelled):
        array[place : place + 2, place, 2 * place] = label
    boxes = boxes_of(array)
    assert list(boxes) == labelled
    assert boxes[labelled[2]] == (slice(2, 4), slice(2, 3), slice(4, 5))


@pytest.mark.parametrize('own', [[], [4]])
def test_writes_leave_the_pixels_of_others_alone(own):
    array = np.array([[0, 2, 3, 4]], np.uint32)
    box = (slice(0, 1), slice(0, 4))
    [left] = limited_to_free([ObjectWrite(box, np.ones((1, 4), bool), 2)], array, own)
    assert left.mask.tolist() == [[True, True, False, bool(own)]]


def row_of(label, **features):
    return ObjectWrite((slice(0, 1),), np.ones(1, bool), label, features)


@pytest.mark.parametrize(
    ('features', 'expected'),
    [
        ({'parent_id': 2}, {'parent_id': 12}),
        ({'parent_id': 2.0, 'parent': ''}, {'parent_id': 12, 'parent': ''}),
        ({'parent_id': 0}, {'parent_id': 0}),
        ({'parent_id': 'two'}, {'parent_id': 'two'}),
        ({'parent_id': None}, {'parent_id': None}),
        ({'parent_id': 2, 'parent': 'cells'}, {'parent_id': 2, 'parent': 'cells'}),
        ({'parent_id': 7}, {}),
    ],
    ids=['whole number', 'from a table', 'none', 'text', 'missing', 'of another layer', 'not among them'],
)
def test_parents_among_the_objects_are_renumbered_with_them_and_others_are_not(features, expected):
    whole, part = renumbered([row_of(2), row_of(3, **features)], 10)
    assert (whole.label, part.label) == (12, 13)
    assert part.features == expected


def test_what_is_missing_in_a_table_is_neither_a_parent_nor_another_layer():
    one, part = renumbered([row_of(2, parent_id=np.nan), row_of(3, parent_id=2.0, parent=np.nan)], 10)
    assert np.isnan(one.features['parent_id'])
    assert part.features['parent_id'] == 12


def test_objects_are_numbered_without_gaps_where_a_label_would_not_fit():
    part, whole = renumbered([row_of(7, parent_id=2**32 - 1), row_of(2**32 - 1)], 10)
    assert (part.label, whole.label) == (11, 12)
    assert part.features == {'parent_id': 12}
