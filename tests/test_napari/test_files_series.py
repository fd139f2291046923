"""A folder of images in the viewer: forward, back, and nothing that was not saved is lost without a question."""

import numpy as np
import pandas as pd
import pytest
import tifffile
from napari.components import ViewerModel
from PIL import Image
from skimage import data

from napari_unsam.folders import series as series_module
from napari_unsam.folders.results import ImageList, Results
from napari_unsam.folders.series import ImageSeries, fingerprint, place_objects, read_masks
from napari_unsam.io.objects import LabelledObjects, objects_of_layer
from napari_unsam.qt.files_panel import Answer, FilesPanel
from napari_unsam.viewer.changes import LayerChanges
from napari_unsam.viewer.object_write import ObjectWrite
from napari_unsam.viewer.session import ViewerSession
from tests.test_napari.labelled import drawn_objects
from tests.test_napari.stand_ins import colour_tree
from unsam_mm.errors import StoreError

COINS = data.coins()[:60, :80]
NAMES = ('a.png', 'b.tif', 'plate/c.png')


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'plate').mkdir()
    Image.fromarray(COINS).save(tmp_path / 'a.png')
    metadata = {
        'axes': 'CYX',
        'PhysicalSizeX': 0.5,
        'PhysicalSizeXUnit': 'µm',
        'PhysicalSizeY': 0.5,
        'PhysicalSizeYUnit': 'µm',
    }
    tifffile.imwrite(tmp_path / 'b.tif', np.stack([COINS, COINS[::-1]]), ome=True, metadata=metadata)
    Image.fromarray(data.astronaut()[:60, :80]).save(tmp_path / 'plate' / 'c.png')
    return tmp_path


@pytest.fixture
def session(make_controller):
    session = ViewerSession(ViewerModel(), make_controller(colour_tree))
    yield session
    session.close()


@pytest.fixture
def series(session, folder):
    return ImageSeries(session, ImageList.of(folder), Results(folder / 'objects'))


@pytest.fixture
def opened(series, settle, session):
    def open_(position):
        series.open(position)
        settle(session.controller)

    return open_


def draw(session, label=1, box=(slice(5, 15), slice(20, 40))):
    session.ensure_objects()
    shape = tuple(part.stop - part.start for part in box)
    session.write_objects('draw', [ObjectWrite(box, np.ones(shape, bool), label, {'score': 0.5, 'parent_id': 0})])


def test_objects_that_are_set_aside_are_not_left_behind(opened, series, session, settle):
    opened(0)
    session.click((30, 40))
    settle(session.controller)
    session.next_object()
    session.click((10, 10))
    settle(session.controller)
    assert series.is_dirty
    series.save()
    settle(session.controller)
    assert not series.is_dirty
    assert np.unique(session.objects.data).tolist() == [0, 1]
    assert len(session.controller.prompts.points) == 1


def test_each_image_takes_the_place_of_the_one_before(opened, session):
    opened(0)
    assert [layer.name for layer in session.viewer.layers] == ['a.png']
    opened(1)
    assert [layer.name for layer in session.viewer.layers] == ['b.tif']
    assert session.image.scale.tolist() == [1, 0.5, 0.5]
    assert str(session.image.units[1]) == 'micrometer'
    assert session.channels.axis == 0
    opened(2)
    assert session.image.rgb


def test_layers_of_the_user_stay(opened, session):
    mine = session.viewer.add_image(COINS, name='mine')
    opened(0)
    opened(1)
    assert mine in session.viewer.layers


def test_saved_objects_come_back_with_their_labels_and_table(opened, series, session, settle):
    opened(1)
    draw(session, label=7, box=(slice(0, 1), slice(5, 15), slice(20, 40)))
    draw(session, label=3, box=(slice(0, 1), slice(30, 35), slice(0, 9)))
    drawn = session.objects.data.copy()
    assert series.is_dirty
    series.save()
    settle(session.controller)
    assert not series.is_dirty
    assert series.is_done(1)
    opened(0)
    assert session.objects is None
    opened(1)
    assert np.array_equal(session.objects.data, drawn)
    assert session.objects.features.set_index('index')['score'].to_dict() == {3: 0.5, 7: 0.5}
    assert not series.is_dirty
    assert session.history.undo_name is None


def test_an_image_without_objects_can_be_saved_as_done(opened, series, session, settle):
    opened(0)
    series.save()
    settle(session.controller)
    assert series.is_done(0)
    assert series.start() == 1


@pytest.mark.parametrize('position', [0, 1, 2])
def test_results_have_the_axes_of_the_image_without_channels(opened, series, session, settle, folder, position):
    opened(position)
    for has_objects in (False, True):
        if has_objects:
            session.ensure_objects()
        series.save()
        settle(session.controller)
        assert tifffile.imread(folder / 'objects' / f'{NAMES[position]}.objects.tif').shape == COINS.shape


def test_another_image_at_hand_or_none_changes_nothing_about_what_is_saved(opened, series, session, settle):
    opened(0)
    draw(session)
    session.set_image(session.viewer.add_image(COINS, name='mine'))
    draw(session, label=5)
    series.save()
    settle(session.controller)
    assert not series.is_dirty
    session.viewer.layers.remove('a.png')
    assert not series.is_dirty
    opened(0)
    assert np.unique(session.objects.data).tolist() == [0, 1]


def test_undoing_a_change_makes_it_clean_again(opened, series, session, monkeypatch):
    opened(0)
    session.ensure_objects()
    assert not series.is_dirty
    draw(session)
    assert series.is_dirty
    session.history.undo()
    assert not series.is_dirty
    monkeypatch.setattr(series_module, 'fingerprint', lambda layer: pytest.fail('was read again'))
    assert not series.is_dirty


def test_painting_by_hand_and_edits_of_the_table_are_changes_too(opened, series, session, settle):
    opened(0)
    draw(session)
    series.save()
    settle(session.controller)
    session.objects.data_setitem((np.array([50]), np.array([60])), 9)
    assert series.is_dirty
    before = fingerprint(session.objects)
    session.objects.features = session.objects.features.assign(note='odd')
    assert fingerprint(session.objects) != before


def test_a_broken_image_is_told_and_the_open_one_stays(opened, series, session, folder):
    opened(0)
    (folder / 'b.tif').write_bytes(b'II')
    opened(1)
    assert session.controller.status.is_problem
    assert 'b.tif' in session.controller.status.text
    assert series.name == 'a.png'
    assert session.image.name == 'a.png'


def test_results_of_a_batch_are_opened(opened, series, session, folder):
    labels = np.zeros(COINS.shape, np.uint32)
    labels[3:9, 4:9] = 2
    table = pd.DataFrame({'index': [2], 'area_px': [30], 'granularity': [0.25], 'eccentricity': [0.5]})
    Results(folder / 'objects').write('a.png', LabelledObjects(labels, table))
    opened(0)
    assert np.array_equal(session.objects.data, labels)
    assert session.objects.features['eccentricity'].tolist() == [0.5]
    expected = max(1 + np.log10(30 / COINS.size) / 4, 0)  # of its own pixels, whatever the table says
    assert session.objects.features['granularity'].tolist() == pytest.approx([expected])


def test_saved_objects_of_another_shape_are_told_and_kept_on_disk(opened, session, folder):
    Results(folder / 'objects').write('a.png', drawn_objects())
    opened(0)
    assert 'were not opened' in session.controller.status.text
    assert not session.objects.data.any()
    assert tifffile.imread(folder / 'objects' / 'a.png.objects.tif').shape == (7, 8)


def test_saved_objects_that_could_not_be_opened_are_never_overwritten(opened, series, session, settle, folder):
    Results(folder / 'objects').write('a.png', drawn_objects())
    opened(0)
    draw(session)
    series.save()
    settle(session.controller)
    assert session.controller.status.is_problem
    assert 'a.png.objects.tif holds other objects' in session.controller.status.text
    assert tifffile.imread(folder / 'objects' / 'a.png.objects.tif').shape == (7, 8)
    (folder / 'objects' / 'a.png.objects.tif').unlink()
    series.save()
    settle(session.controller)
    assert tifffile.imread(folder / 'objects' / 'a.png.objects.tif').shape == COINS.shape


def paint(session):
    session.objects.data_setitem((np.array([0]), np.array([50]), np.array([60])), 9)


def slide(session):
    session.viewer.dims.set_current_step(0, 1 - session.viewer.dims.current_step[0])


@pytest.mark.parametrize(('act', 'is_change'), [(paint, True), (slide, False)])
def test_what_is_changed_while_it_is_saved_stays_unsaved(opened, series, session, settle, monkeypatch, act, is_change):
    opened(1)
    draw(session, box=(slice(0, 1), slice(5, 15), slice(20, 40)))
    told, write = [], Results.write
    session.exported.connect(lambda: told.append('exported'))

    def write_while_the_user_acts(*args, **more):
        act(session)
        write(*args, **more)

    monkeypatch.setattr(Results, 'write', write_while_the_user_acts)
    series.save()
    settle(session.controller)
    assert series.is_dirty is is_change
    assert told == ['exported'] * (not is_change)
    told.clear()
    monkeypatch.setattr(Results, 'write', write)
    series.save()
    settle(session.controller)
    assert not series.is_dirty
    assert told == ['exported']


def test_an_unchanged_layer_is_not_read_to_know_so(opened, series, session, settle, monkeypatch):
    opened(0)
    draw(session)
    series.save()
    settle(session.controller)
    monkeypatch.setattr(series_module, 'fingerprint', lambda layer: pytest.fail('was read'))
    assert not series.is_dirty


@pytest.mark.parametrize(('act', 'is_change'), [(paint, True), (slide, False)])
def test_an_image_that_is_changed_while_the_next_is_read_stays_open(opened, series, session, settle, act, is_change):
    opened(1)
    session.ensure_objects()
    series.open(0)
    act(session)
    settle(session.controller)
    assert series.name == ('b.tif' if is_change else 'a.png')
    assert series.is_dirty is is_change


def test_a_change_counts_after_sliders_that_a_layer_does_not_follow_were_moved(viewer):
    viewer.add_image(np.zeros((4, 5, 6)))
    layer, changes = viewer.add_labels(np.zeros((5, 6), np.uint32)), LayerChanges(viewer)
    before = changes.count(layer)
    viewer.dims.set_current_step(0, 1)
    assert changes.count(layer) == before
    layer.data[2, 3] = 1
    layer.refresh()
    assert changes.count(layer) != before


@pytest.mark.parametrize('shape', [(3, 5, 6), (3, 4, 5, 6), (3, 400, 500)])
def test_a_change_counts_after_a_layer_with_more_axes_was_added(viewer, shape):
    layer, changes = viewer.add_labels(np.zeros((5, 6), np.uint32)), LayerChanges(viewer)
    changes.count(layer)
    viewer.add_image(np.zeros(shape))
    before = changes.count(layer)
    layer.data[2, 3] = 1
    layer.refresh()
    assert changes.count(layer) != before


@pytest.mark.parametrize(
    'look',
    [
        lambda dims: dims.set_current_step(1, 1),
        lambda dims: setattr(dims, 'thickness', (0, 3, 0, 0)),
        lambda dims: setattr(dims, 'ndisplay', 3),
        lambda dims: setattr(dims, 'order', (0, 1, 3, 2)),
        lambda dims: setattr(dims, 'order', (2, 3, 0, 1)),
    ],
    ids=['slider', 'thick plane', '3D', 'axes in view', 'axes that the layer lacks'],
)
def test_another_view_is_no_change_of_a_layer_and_hides_none(viewer, look):
    viewer.add_image(np.zeros((3, 4, 5, 6)))
    layer, changes = viewer.add_labels(np.zeros((4, 5, 6), np.uint32)), LayerChanges(viewer)
    before = changes.count(layer)
    look(viewer.dims)
    assert changes.count(layer) == before
    layer.data[0, 2, 3] = 1
    layer.refresh()
    assert changes.count(layer) != before


def test_what_is_written_into_a_hidden_layer_counts_once_it_is_shown(viewer):
    layer, changes = viewer.add_labels(np.zeros((4, 5, 6), np.uint32)), LayerChanges(viewer)
    before = changes.count(layer)
    layer.visible = False
    layer.data[2, 3] = 1
    layer.refresh()
    viewer.dims.set_current_step(0, 2)
    layer.visible = True
    assert changes.count(layer) != before


def test_what_is_undone_in_a_hidden_layer_is_unsaved(opened, series, session, settle):
    opened(0)
    draw(session)
    session.objects.data_setitem((np.array([50]), np.array([60])), 9)
    series.save()
    settle(session.controller)
    assert not series.is_dirty
    session.objects.visible = False
    assert not series.is_dirty
    session.history.undo()
    assert series.is_dirty
    series.save()
    settle(session.controller)
    assert not series.is_dirty


@pytest.mark.parametrize('is_there', [True, False])
def test_an_image_whose_empty_layer_is_made_or_shown_while_the_next_is_read_is_left(
    opened, series, session, settle, is_there
):
    opened(0)
    if is_there:
        session.ensure_objects()
    series.open(1)
    while session.prepare():
        pass
    session.objects.visible = False
    session.objects.visible = True
    settle(session.controller)
    assert series.name == 'b.tif'


def test_changes_that_are_to_be_lost_may_be_hidden_and_shown_while_the_next_is_read(opened, series, session, settle):
    opened(0)
    draw(session)
    series.open(1)
    session.objects.visible = False
    session.objects.visible = True
    settle(session.controller)
    assert series.name == 'b.tif'


def test_an_empty_layer_that_is_made_while_none_is_saved_is_no_change(opened, series, session, settle):
    opened(0)
    series.save()
    session.ensure_objects()
    settle(session.controller)
    assert not series.is_dirty


def test_objects_in_two_layers_of_an_image_are_not_saved_in_part(opened, series, session, settle, folder):
    opened(1)
    draw(session, box=(slice(0, 1), slice(5, 15), slice(20, 40)))
    series.save()
    settle(session.controller)
    session.set_channels(None)
    session.ensure_objects()
    assert not series.is_dirty
    draw(session, box=(slice(0, 1), slice(30, 40), slice(20, 40)))
    assert series.is_dirty
    series.save()
    settle(session.controller)
    assert session.controller.status.is_problem
    for layer in session.viewer.layers[1:]:
        assert f'"{layer.name}"' in session.controller.status.text
    assert series.is_dirty
    assert tifffile.imread(folder / 'objects' / 'b.tif.objects.tif').shape == COINS.shape
    session.history.undo()
    series.save()
    settle(session.controller)
    assert not series.is_dirty
    assert tifffile.imread(folder / 'objects' / 'b.tif.objects.tif').sum() == 200


def test_an_image_that_is_closed_takes_all_its_objects_with_it(opened, series, session):
    opened(1)
    draw(session, box=(slice(0, 1), slice(5, 15), slice(20, 40)))
    session.set_channels(None)
    draw(session, box=(slice(0, 1), slice(30, 40), slice(20, 40)))
    series.close()
    assert list(session.viewer.layers) == []


def test_objects_that_are_in_files_are_not_offered_as_lost_work(opened, series, session, settle, start):
    autosave = start()
    autosave.watch(session)
    session.exported.connect(lambda: autosave.exported(session))
    opened(0)
    draw(session)
    series.save()
    settle(session.controller)
    opened(1)
    opened(0)
    assert session.objects.data.any()
    autosave.close()
    assert start().find(session.image) is None


def test_saving_one_image_does_not_make_the_work_on_another_safe(opened, series, session, settle):
    opened(0)
    told = []
    session.exported.connect(lambda: told.append('exported'))
    session.set_image(session.viewer.add_image(COINS, name='mine'))
    series.save()
    settle(session.controller)
    assert not series.is_dirty
    assert not told


def test_objects_of_another_shape_are_refused(opened, session):
    opened(0)
    with pytest.raises(StoreError, match=r'shape \(7, 8\)'):
        place_objects(session, session.ensure_objects(), read_masks(drawn_objects()), 'open')


def test_objects_that_are_added_get_new_labels_and_keep_their_parents(make_controller):
    session = ViewerSession(ViewerModel(), make_controller(colour_tree))
    session.set_image(session.viewer.add_image(np.random.default_rng(0).random((7, 8))))
    assert place_objects(session, session.ensure_objects(), read_masks(drawn_objects()), 'open') == (7, 0)
    session.keep_existing = False
    assert place_objects(session, session.ensure_objects(), read_masks(drawn_objects()), 'open') == (7, 0)
    objects = objects_of_layer(session.objects)
    assert sorted(np.unique(objects.labels)) == [0, *range(8, 15)]
    assert objects.rows()[9]['parent_id'] == 8
    session.history.undo()
    assert sorted(np.unique(session.objects.data)) == [0, *range(1, 8)]
    session.keep_existing = True
    assert place_objects(session, session.ensure_objects(), read_masks(drawn_objects()), 'open') == (0, 7)
    session.close()


@pytest.mark.parametrize('is_in_another_layer', [False, True])
@pytest.mark.parametrize('keep_labels', [False, True])
def test_parents_that_a_file_lacks_are_no_object_of_the_layer(viewer, session, is_in_another_layer, keep_labels):
    session.set_image(viewer.add_image(np.zeros((7, 8))))
    session.write_objects('write', [ObjectWrite((slice(6, 7), slice(0, 1)), np.ones((1, 1), bool), 2)])
    rows = pd.DataFrame({'index': [1, 3], 'parent_id': [3, 2], 'score': 0.5})
    if is_in_another_layer:
        rows['parent'] = 'wholes'
    labels = np.zeros((7, 8), np.uint8)
    labels[0], labels[2] = 1, 3
    place_objects(session, session.objects, read_masks(LabelledObjects(labels, rows)), 'open', keep_labels)
    first, second = list(objects_of_layer(session.objects).rows().values())[-2:]  # after the one that was there
    kept = is_in_another_layer or keep_labels
    assert first['parent_id'] == (3 if kept else second['index'])
    assert second['parent_id'] == 2 if kept else np.isnan(second['parent_id'])


def test_what_was_taken_out_of_the_viewer_is_not_saved_as_empty(opened, series, session, settle, folder):
    opened(0)
    draw(session)
    series.save()
    settle(session.controller)
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob('*.objects.*'))
    session.viewer.layers.clear()
    assert not series.is_dirty
    series.save()
    settle(session.controller)
    assert session.controller.status.is_problem
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob('*.objects.*')) == before != []


# The panel


@pytest.fixture
def panel(qtbot, session, folder, settle):
    panel = FilesPanel(session)
    qtbot.addWidget(panel)
    panel.open_folder(folder)
    settle(session.controller)
    yield panel
    panel.close_session()


def rows(panel):
    return [panel.list.item(row).text() for row in range(panel.list.count())]


def test_the_list_shows_what_is_done_and_where_one_is(panel, session, settle):
    assert rows(panel) == list(NAMES)
    assert panel.list.currentRow() == 0
    assert not panel.previous_button.isEnabled()
    draw(session)
    panel.save_button.click()
    settle(session.controller)
    panel.next_button.click()
    settle(session.controller)
    assert rows(panel) == ['✓ a.png', 'b.tif', 'plate/c.png']
    assert panel.list.currentRow() == 1
    assert panel.status_label.text() == '1 of 3 done'


def test_beside_the_images_by_default(panel, session, folder, settle):
    draw(session)
    panel.save_button.click()
    settle(session.controller)
    assert (folder / 'a.png.objects.tif').exists()
    assert (folder / 'a.png.objects.csv').exists()


@pytest.mark.parametrize(
    ('answer', 'open_name', 'is_saved'),
    [(Answer.Save, 'b.tif', True), (Answer.Discard, 'b.tif', False), (Answer.Cancel, 'a.png', False)],
)
def test_unsaved_changes_are_asked_about(panel, session, folder, settle, monkeypatch, answer, open_name, is_saved):
    asked = []
    monkeypatch.setattr(panel, 'ask_unsaved', lambda name: asked.append(name) or answer)
    draw(session)
    panel.next_button.click()
    settle(session.controller)
    settle(session.controller)
    assert asked == ['a.png']
    assert panel.series.name == open_name
    assert panel.list.currentRow() == NAMES.index(open_name)
    assert (folder / 'a.png.objects.tif').exists() == is_saved


def test_without_changes_nothing_is_asked(panel, session, settle, monkeypatch):
    monkeypatch.setattr(panel, 'ask_unsaved', lambda name: pytest.fail('asked'))
    for button, name in (
        (panel.next_button, 'b.tif'),
        (panel.next_button, 'plate/c.png'),
        (panel.previous_button, 'b.tif'),
    ):
        button.click()
        settle(session.controller)
        assert panel.series.name == name


def test_a_folder_goes_on_where_it_was_left(panel, session, folder, settle):
    draw(session)
    panel.save()
    settle(session.controller)
    panel.open_folder(folder)
    settle(session.controller)
    assert panel.series.name == 'b.tif'
    assert [layer.name for layer in session.viewer.layers] == ['b.tif']


@pytest.mark.parametrize('elsewhere', [False, True])
def test_the_folders_that_the_user_chooses_are_used(qtbot, session, folder, settle, monkeypatch, elsewhere):
    panel = FilesPanel(session)
    qtbot.addWidget(panel)
    chosen = iter([folder, folder / 'objects'])
    monkeypatch.setattr(panel, 'choose_folder', lambda caption: next(chosen))
    panel.elsewhere_box.setChecked(elsewhere)
    panel.folder_button.click()
    settle(session.controller)
    panel.save_button.click()
    settle(session.controller)
    assert ((folder / 'objects' if elsewhere else folder) / 'a.png.objects.tif').exists()
    panel.close_session()


def test_choosing_no_folder_changes_nothing(panel, monkeypatch):
    monkeypatch.setattr(panel, 'choose_folder', lambda caption: None)
    panel.folder_button.click()
    assert rows(panel) == list(NAMES)


def test_an_empty_folder_is_told_and_the_list_stays(panel, session, tmp_path):
    (tmp_path / 'empty').mkdir()
    panel.open_folder(tmp_path / 'empty')
    assert 'no images found' in session.controller.status.text
    assert rows(panel) == list(NAMES)


def test_a_broken_image_is_marked_and_passed_over(panel, session, folder, settle):
    good = (folder / 'b.tif').read_bytes()
    (folder / 'b.tif').write_bytes(b'II')
    for _ in range(2):
        panel.next_button.click()
        settle(session.controller)
    assert panel.series.name == 'plate/c.png'
    assert rows(panel)[1] == '✗ b.tif'
    (folder / 'b.tif').write_bytes(good)
    panel.previous_button.click()
    settle(session.controller)
    assert panel.series.name == rows(panel)[1] == 'b.tif'


def test_going_back_from_a_broken_image_keeps_the_open_one_with_its_changes(
    panel, session, folder, settle, monkeypatch
):
    (folder / 'b.tif').write_bytes(b'II')
    panel.next_button.click()
    settle(session.controller)
    draw(session)
    monkeypatch.setattr(panel, 'ask_unsaved', lambda name: pytest.fail('asked'))
    panel.previous_button.click()
    settle(session.controller)
    assert panel.series.is_dirty
    assert (panel.series.name, panel.series.requested) == ('a.png', 0)


def test_a_folder_that_begins_with_a_broken_image_can_be_walked(qtbot, session, folder, settle):
    (folder / 'a.png').write_bytes(b'')
    panel = FilesPanel(session)
    qtbot.addWidget(panel)
    panel.open_folder(folder)
    settle(session.controller)
    panel.next_button.click()
    settle(session.controller)
    assert panel.series.name == 'b.tif'
    panel.close_session()


def test_an_image_is_opened_by_a_click_on_its_name(panel, session, settle):
    panel.list.itemClicked.emit(panel.list.item(2))
    settle(session.controller)
    assert panel.series.name == 'plate/c.png'
