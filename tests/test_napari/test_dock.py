"""The dock opens at once, and is filled when its code is there."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from napari._app_model import get_app_model
from napari.components import ViewerModel
from npe2 import PluginManifest
from qtpy.QtWidgets import QLabel, QWidget
from skimage import data

import napari_unsam
from napari_unsam.controller import SegmentationController
from napari_unsam.engine import settings as _settings
from napari_unsam.keys import KEYS
from napari_unsam.levels.preview import LEVELS_NAME
from napari_unsam.qt import commands as _commands
from napari_unsam.qt import dock as _dock
from napari_unsam.qt import widget as _widget
from napari_unsam.qt.dock import UnSAMDock
from napari_unsam.qt.widget import PANELS, SegmentationWidget, in_gui_thread
from tests.test_napari.stand_ins import colour_tree, needs_screen, planes_of


def make_widget(viewer):
    return SegmentationWidget(viewer, SegmentationController(planes_of(colour_tree), in_gui_thread))


@pytest.fixture
def viewer():
    viewer = ViewerModel()
    viewer.add_image(data.coins(), name='Coins')
    return viewer


def test_the_dock_is_there_before_its_content_and_says_what_it_waits_for(qtbot, viewer):
    dock = UnSAMDock(viewer, make_widget)
    qtbot.addWidget(dock)
    dock.show()
    assert dock.content is None
    [label] = dock.findChildren(QLabel)
    assert 'Opening UnSAM' in label.text()
    qtbot.waitUntil(lambda: dock.content is not None and dock.content.isVisible(), timeout=20_000)
    assert 'Opening UnSAM' not in ' '.join(found.text() for found in dock.findChildren(QLabel) if found.isVisible())
    assert dock.content.session.image is viewer.layers['Coins']
    dock.end()


def test_a_dock_that_is_closed_at_once_never_begins(qtbot, viewer):
    made, window = [], QWidget()
    dock = UnSAMDock(viewer, made.append)
    for widget in (dock, window):
        qtbot.addWidget(widget)
    dock.setParent(window)
    dock.setParent(None)  # as napari closes it
    qtbot.wait(100)
    assert made == []


def test_code_that_cannot_be_loaded_is_told_once(qtbot, viewer, monkeypatch):
    monkeypatch.setattr(_dock, '_CODE', 'napari_unsam.not_there')
    monkeypatch.setattr('threading.excepthook', lambda _arguments: None)
    with qtbot.captureExceptions() as caught:
        dock = UnSAMDock(viewer)
        qtbot.addWidget(dock)
        qtbot.waitUntil(lambda: bool(caught), timeout=20_000)
        qtbot.wait(100)
    assert [kind for kind, _, _ in caught] == [ModuleNotFoundError]
    dock.end()


def opened(qtbot, viewer):
    dock = UnSAMDock(viewer, make_widget)
    qtbot.addWidget(dock)
    dock.show()
    qtbot.waitUntil(lambda: dock.content is not None and dock.content.isVisible(), timeout=20_000)
    return dock


def test_a_dock_that_is_closed_early_makes_no_further_sections(qtbot, viewer):
    dock = opened(qtbot, viewer)
    dock.end()
    count = len(dock.content.panels)
    qtbot.wait(300)
    assert len(dock.content.panels) == count < len(PANELS)


def test_prompts_that_go_with_their_image_are_no_action(qtbot, viewer):
    dock = opened(qtbot, viewer)
    dock.content.session.click((100, 100))
    qtbot.waitUntil(lambda: dock.content.controller.proposal is not None, timeout=20_000)
    viewer.layers.clear()
    qtbot.wait(50)
    assert dock.content.session.history.undo_name == 'click'
    dock.end()


def test_layers_that_go_later_do_go(qtbot, viewer):
    dock = opened(qtbot, viewer)
    qtbot.waitUntil(lambda: len(dock.content.panels) == len(PANELS), timeout=20_000)
    selector = dock.content.panels['LevelsPanel'].selector
    selector.show_level(0.5)
    qtbot.waitUntil(lambda: LEVELS_NAME in viewer.layers, timeout=20_000)
    viewer.add_image(data.camera(), name='Another')
    viewer.layers.remove('Coins')
    qtbot.waitUntil(lambda: LEVELS_NAME not in viewer.layers, timeout=2_000)
    dock.end()
    qtbot.wait(50)
    assert [layer.name for layer in viewer.layers] == ['Another']


def test_a_deleted_image_is_held_by_nothing_of_the_dock(qtbot, viewer):
    dock = opened(qtbot, viewer)
    pixels = data.camera().copy()
    viewer.layers.selection.active = viewer.add_image(pixels, name='Large')
    dock.content.image_panel.image_choice.value = viewer.layers['Large']
    dock.content.session.click((100, 100))
    qtbot.waitUntil(lambda: dock.content.controller.proposal is not None, timeout=20_000)
    held = weakref.ref(pixels)
    del pixels
    viewer.layers.remove('Large')
    qtbot.waitUntil(lambda: gc.collect() >= 0 and held() is None, timeout=5_000)
    dock.end()


def test_a_disk_that_work_cannot_be_saved_on_is_told(qtbot, viewer, monkeypatch, tmp_path):
    (tmp_path / 'a file').touch()
    monkeypatch.setattr(_settings, 'default_store', lambda: tmp_path / 'a file')
    monkeypatch.setattr(_widget, 'PlaneEmbedder', lambda _settings: StandIn())
    dock = UnSAMDock(viewer)
    qtbot.addWidget(dock)
    qtbot.waitUntil(lambda: dock.content is not None, timeout=20_000)
    dock.content.session.click((100, 100))
    qtbot.waitUntil(lambda: 'Autosave:' in dock.content.status_label.text(), timeout=20_000)
    dock.end()


def test_an_image_too_large_for_objects_leaves_the_dock_whole(qtbot):
    viewer = ViewerModel()
    viewer.add_image(np.broadcast_to(data.coins()[:64, :64], (500_000_000, 64, 64)))
    dock = opened(qtbot, viewer)
    qtbot.waitUntil(lambda: len(dock.content.panels) == len(PANELS), timeout=20_000)
    assert 'more than the memory available' in dock.content.status_label.text()
    dock.end()


class StandIn:
    """Makes planes ready by colour, and has nothing to load."""

    def __call__(self, target, progress):
        return planes_of(colour_tree)(target, progress)

    def load(self):
        pass


def test_the_collector_of_garbage_is_left_as_it_is(qtbot, viewer):
    before = gc.get_freeze_count(), gc.isenabled(), gc.get_threshold()
    dock = opened(qtbot, viewer)
    assert (gc.get_freeze_count(), gc.isenabled(), gc.get_threshold()) == before
    dock.end()


@pytest.mark.slow
@needs_screen
def test_napari_opens_the_dock_and_the_sample_data_by_their_names(
    make_napari_viewer, npe2pm, qtbot, monkeypatch, tmp_path
):
    monkeypatch.setattr(_settings, 'default_store', lambda: tmp_path)
    npe2pm.register(PluginManifest.from_file(Path(napari_unsam.__file__).with_name('napari.yaml')))
    viewer = make_napari_viewer(show=True)
    viewer.open_sample('unsam_mm', 'coins')
    _, dock = viewer.window.add_plugin_dock_widget('unsam_mm', 'UnSAM')
    qtbot.waitUntil(lambda: dock.content is not None and dock.content.isVisible(), timeout=20_000)
    assert isinstance(dock.content, SegmentationWidget)
    assert dock.content.size() == dock.size()
    assert dock.content.session.image is viewer.layers['Coins']
    viewer.window.remove_dock_widget(dock)
    assert dock.content.session.image is None
    assert np.array_equal(viewer.layers['Coins'].data, data.coins())


@pytest.mark.slow
@needs_screen
def test_the_palette_of_napari_does_what_the_keys_do(make_napari_viewer, npe2pm, qtbot, monkeypatch):
    npe2pm.register(PluginManifest.from_file(Path(napari_unsam.__file__).with_name('napari.yaml')))
    viewer = make_napari_viewer(show=True)
    told = []
    monkeypatch.setattr(_commands, 'show_info', told.append)
    execute = get_app_model().commands.execute_command
    execute('unsam_mm.undo').result()
    assert told == ['The UnSAM dock is not open; open it from the Plugins menu.']
    dock = UnSAMDock(viewer, make_widget)
    viewer.window.add_dock_widget(dock)
    qtbot.waitUntil(lambda: dock.content is not None and len(dock.content.panels) == len(PANELS), timeout=20_000)
    done = []
    for command in KEYS:
        monkeypatch.setitem(dock.content.session.inputs.actions, command, lambda command=command: done.append(command))
    for command in KEYS:
        execute(f'unsam_mm.{command}').result()
    assert done == list(KEYS)
    viewer.window.remove_dock_widget(dock)
