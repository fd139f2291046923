"""The section of the dock about all objects: count, measure, export, open, delete, parents."""

import json
from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Labels
from napari.utils._proxies import PublicOnlyProxy
from skimage import data

from napari_unsam.folders.series import place_objects, read_masks
from napari_unsam.io.formats import FORMATS
from napari_unsam.qt.objects_panel import ObjectsPanel
from napari_unsam.viewer.session import ViewerSession
from tests.test_napari.labelled import DRAWN, drawn_objects
from tests.test_napari.stand_ins import colour_tree

PIXELS = data.coins()[:7, :8]


@pytest.fixture
def session(make_controller):
    session = ViewerSession(ViewerModel(), make_controller(colour_tree))
    session.set_image(session.viewer.add_image(PIXELS, name='coins', scale=(0.5, 0.5), units=('um', 'um')))
    yield session
    session.close()


@pytest.fixture
def panel(qtbot, session):
    panel = ObjectsPanel(session)
    qtbot.addWidget(panel)
    yield panel
    panel.close_session()


@pytest.fixture
def filled(panel, session):
    """The panel over the drawn objects, object 2 selected."""
    place_objects(session, session.ensure_objects(), read_masks(drawn_objects()), 'open', keep_labels=True)
    session.objects.selected_label = 2
    return panel


def answering(monkeypatch, panel, path, confirm=True):
    monkeypatch.setattr(panel, 'choose_path', lambda suggestion, kinds: path)
    monkeypatch.setattr(panel, 'choose_existing', lambda kinds: path)
    monkeypatch.setattr(panel, 'confirm', lambda title, question: confirm)


def test_without_objects_there_is_nothing_to_press_but_open(panel):
    assert panel.summary_label.text() == 'No objects yet'
    assert not panel.measure_button.isEnabled()
    assert not panel.export_button.isEnabled()
    assert panel.open_button.isEnabled()


def test_the_summary_counts_and_describes_the_selected_object(filled, session):
    assert filled.summary_label.text() == '"UnSAM objects": 7 objects; selected: 2, 8 px, part of 1'
    session.objects.selected_label = 9
    assert filled.summary_label.text() == '"UnSAM objects": 7 objects; selected: 9, 1 px'
    assert not filled.parent_button.isEnabled()


def test_measuring_fills_the_table_and_keeps_what_was_there(filled, session, settle):
    filled.measure_button.click()
    settle(session.controller)
    table = session.objects.features.set_index('index')
    assert table['area_um2'][2] == 8 * 0.25
    assert table['mean_intensity'][9] == PIXELS[0, 7]
    assert table['parent_id'][2] == 1
    assert table['score'][3] == 0.25
    assert '7 objects measured' in session.controller.status.text


def test_layers_of_the_same_pixels_are_measured_as_channels(filled, session, settle):
    session.viewer.add_image(PIXELS[::-1], name='gfp', scale=(0.5, 0.5), units=('um', 'um'))
    filled.measure()
    settle(session.controller)
    assert session.objects.features.set_index('index')['max_intensity_gfp'][9] == PIXELS[6, 7]
    assert session.objects.features.set_index('index')['max_intensity_coins'][9] == PIXELS[0, 7]


@pytest.mark.parametrize('name', FORMATS)
def test_objects_are_exported_in_the_chosen_format(filled, session, settle, monkeypatch, tmp_path, name):
    answering(monkeypatch, filled, tmp_path / 'mine')
    filled.format_choice.setCurrentIndex(list(FORMATS).index(name))
    filled.export_button.click()
    settle(session.controller)
    assert (tmp_path / f'mine{FORMATS[name].ending}').exists()
    assert 'Written' in session.controller.status.text


@pytest.mark.parametrize('name', FORMATS)
@pytest.mark.parametrize(
    ('columns', 'holders'),
    [
        (['index', 'area_px', 'granularity'], ['tiff', 'coco', 'zarr']),
        (['index', 'score', 'parent_id'], ['coco', 'zarr']),
        (['index', 'score', 'reviewed'], ['zarr']),
    ],
)
def test_only_files_that_hold_the_objects_and_their_table_count_as_their_export(
    filled, session, settle, monkeypatch, tmp_path, name, columns, holders
):
    told = []
    session.objects.features = session.objects.features.assign(reviewed=True)[columns]
    session.exported.connect(lambda: told.append(name))
    answering(monkeypatch, filled, tmp_path / 'mine')
    filled.format_choice.setCurrentIndex(list(FORMATS).index(name))
    filled.export_button.click()
    settle(session.controller)
    assert bool(told) == (name in holders)


def test_the_selected_layer_of_objects_is_known_as_that_of_the_image_also_through_naparis_stand_ins(
    qtbot, make_controller
):
    session = ViewerSession(PublicOnlyProxy(ViewerModel()), make_controller(colour_tree))
    session.set_image(session.viewer.add_image(PIXELS))
    place_objects(session, session.ensure_objects(), read_masks(drawn_objects()), 'open', keep_labels=True)
    panel = ObjectsPanel(session)
    qtbot.addWidget(panel)
    session.viewer.layers.selection.active = session.objects
    session.objects.selected_label = 2
    assert panel.layer is session.objects
    assert panel.delete_button.isEnabled()
    panel.close_session()
    session.close()


def test_an_export_that_ends_on_another_image_does_not_count_for_that(filled, session, settle, monkeypatch, tmp_path):
    told = []
    session.exported.connect(lambda: told.append('exported'))
    answering(monkeypatch, filled, tmp_path / 'mine.tif')
    filled.export_button.click()
    session.set_image(session.viewer.add_image(PIXELS[::-1].copy()))
    settle(session.controller)
    assert (tmp_path / 'mine.tif').exists()
    assert told == []


@pytest.mark.parametrize('confirm', [True, False])
def test_replacing_a_file_is_asked_for(filled, session, settle, monkeypatch, tmp_path, confirm):
    path = tmp_path / 'a.tif'
    path.write_text('precious')
    answering(monkeypatch, filled, path, confirm)
    filled.export()
    settle(session.controller)
    assert (path.read_bytes() == b'precious') != confirm


def test_a_place_that_cannot_be_written_is_told(filled, session, settle, monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('')
    answering(monkeypatch, filled, tmp_path / 'file' / 'a.tif')
    filled.export()
    settle(session.controller)
    assert session.controller.status.is_problem


def test_thinking_better_of_it_does_nothing(filled, session, monkeypatch):
    answering(monkeypatch, filled, None)
    before = session.controller.status
    filled.export()
    filled.open()
    assert session.controller.status == before


@pytest.mark.parametrize('name', ['tiff', 'coco', 'zarr'])
def test_what_was_exported_is_opened_as_new_objects_in_one_step(filled, session, settle, monkeypatch, tmp_path, name):
    path = tmp_path / f'a{FORMATS[name].ending}'
    FORMATS[name].write(path, drawn_objects())
    session.history.undo()
    assert not session.objects.data.any()
    answering(monkeypatch, filled, path)
    filled.open_button.click()
    settle(session.controller)
    assert np.array_equal(session.objects.data > 0, DRAWN > 0)
    assert len(session.objects.features) == 7
    session.history.undo()
    assert not session.objects.data.any()


def test_objects_of_another_image_are_refused(filled, session, settle, monkeypatch, tmp_path):
    FORMATS['tiff'].write(tmp_path / 'a.tif', drawn_objects(n_planes=3))
    answering(monkeypatch, filled, tmp_path / 'a.tif')
    filled.open()
    settle(session.controller)
    assert 'shape (3, 7, 8)' in session.controller.status.text


def test_the_selected_object_is_deleted_and_comes_back(filled, session):
    session.objects.brush_size = 1
    session.objects.paint((0, 0), 2)  # outside of its box
    filled.delete_button.click()
    assert not (session.objects.data == 2).any()
    assert filled.summary_label.text() == '"UnSAM objects": 6 objects'
    session.history.undo()
    session.history.undo()
    assert np.array_equal(session.objects.data, DRAWN)
    assert 2 in set(session.objects.features['index'])


def test_what_a_script_has_written_is_deleted_as_a_whole(filled, session):
    session.objects.data[:, -1], session.objects.data[0, 5:7] = 2, 11
    session.objects.refresh()
    filled.delete()
    session.objects.selected_label = 11
    filled.delete()
    assert not np.isin(session.objects.data, (2, 11)).any()


def test_actions_that_have_nothing_to_act_on_say_so(panel, session, settle):
    for act in (panel.measure, panel.export, panel.delete, panel.show_parent):
        act()
        assert 'No objects yet' in session.controller.status.text
        session.controller.show_info('')
    session.set_image(None)
    panel.open()
    assert 'Choose an image' in session.controller.status.text


def test_a_label_that_is_not_there_is_told(filled, session):
    session.objects.selected_label = 77
    filled.delete()
    assert 'no object 77' in session.controller.status.text
    filled.show_parent()
    assert 'not part of another' in session.controller.status.text


def test_the_parent_is_selected(filled, session):
    filled.parent_button.click()
    assert session.objects.selected_label == 1


def test_a_linked_layer_is_exported_under_its_own_name_and_leads_to_its_parent(
    filled, session, settle, monkeypatch, tmp_path
):
    objects = session.objects
    table = objects.features.assign(parent=np.where(objects.features['index'] == 2, objects.name, ''))
    nuclei = session.viewer.add_layer(Labels(DRAWN.copy(), name='nuclei', features=table))
    session.viewer.layers.selection.active = nuclei
    nuclei.selected_label = 2
    assert filled.summary_label.text() == '"nuclei": 7 objects; selected: 2, 8 px, part of UnSAM objects 1'
    assert not filled.delete_button.isEnabled()
    answering(monkeypatch, filled, tmp_path / 'a.geojson')
    filled.format_choice.setCurrentIndex(list(FORMATS).index('geojson'))
    filled.export()
    settle(session.controller)
    features = json.loads(Path(tmp_path / 'a.geojson').read_text())['features']
    assert {feature['properties']['classification']['name'] for feature in features} == {'nuclei'}
    filled.parent_button.click()
    assert session.viewer.layers.selection.active is objects
    assert objects.selected_label == 1


def test_objects_on_an_image_with_an_axis_of_channels_are_measured_and_exported_without_it(
    qtbot, make_controller, settle, monkeypatch, tmp_path
):
    session = ViewerSession(ViewerModel(), make_controller(colour_tree))
    image = session.viewer.add_image(np.stack([PIXELS, PIXELS[::-1]]), name='two', axis_labels=('c', 'y', 'x'))
    session.set_image(image)
    panel = ObjectsPanel(session)
    qtbot.addWidget(panel)
    place_objects(session, session.ensure_objects(), read_masks(drawn_objects()), 'open', keep_labels=True)
    panel.measure()
    settle(session.controller)
    table = session.objects.features.set_index('index')
    assert (table['mean_intensity_0'][9], table['mean_intensity_1'][9]) == (PIXELS[0, 7], PIXELS[6, 7])
    answering(monkeypatch, panel, tmp_path / 'a.coco.json')
    panel.format_choice.setCurrentIndex(list(FORMATS).index('coco'))
    panel.export()
    settle(session.controller)
    [image] = json.loads((tmp_path / 'a.coco.json').read_text())['images']
    assert (image['height'], image['width']) == DRAWN.shape
    panel.close_session()
    session.close()
