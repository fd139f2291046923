"""The dock: first its widgets on a viewer without a window, then a user's story in a real window."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from napari.components import ViewerModel
from npe2 import PluginManifest
from qtpy.QtCore import QPoint, Qt, QTimer
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QOpenGLWidget, QWidget
from skimage import data

import napari_unsam
from napari_unsam._controller import SegmentationController
from napari_unsam._layers import OBJECTS_NAME, PREVIEW_NAME, PROMPTS_NAME
from napari_unsam._prompts import Polarity
from napari_unsam._widget import SegmentationWidget, in_gui_thread
from tests.test_napari.stand_ins import colour_tree, nested_nodes

needs_screen = pytest.mark.skipif(
    os.environ.get('QT_QPA_PLATFORM') == 'offscreen', reason='needs OpenGL: run under a desktop or xvfb-run'
)
ON_CUP, ON_TABLE = (150, 300), (340, 560)  # row and column in the photo of the coffee cup
MAX_FREEZE_S = 0.1


def make_controller(embed=colour_tree):
    return SegmentationController(embed, in_gui_thread, nested_nodes)


@pytest.fixture
def viewer():
    return ViewerModel()


@pytest.fixture
def dock(qtbot, viewer):
    """The dock over one photo."""
    viewer.add_image(data.coffee(), name='Coffee')
    widget = SegmentationWidget(viewer, make_controller())
    qtbot.addWidget(widget)
    yield widget
    widget.session.close()


def wait_for_tree(qtbot, widget):
    qtbot.waitUntil(lambda: widget.controller.hierarchy is not None, timeout=20_000)


def test_the_dock_begins_with_the_selected_image(dock, viewer):
    assert dock.image_choice.value is viewer.layers['Coffee']
    assert dock.embed_button.isEnabled()
    assert not dock.commit_button.isEnabled()
    assert not dock.cancel_button.isEnabled()


def test_a_dock_without_an_image_takes_the_first_one_that_comes(qtbot, viewer):
    widget = SegmentationWidget(viewer, make_controller())
    qtbot.addWidget(widget)
    assert not widget.embed_button.isEnabled()
    assert 'Choose an image' in widget.status_label.text()
    widget.embed_button.click()
    image = viewer.add_image(data.coins())
    assert widget.session.image is image
    assert widget.embed_button.isEnabled()
    widget.session.close()


def test_the_list_of_images_follows_the_viewer(dock, viewer):
    coins = viewer.add_image(data.coins(), name='Coins')
    viewer.add_labels(np.zeros((4, 4), int))
    assert [choice.name for choice in dock.image_choice.choices if choice is not None] == ['Coffee', 'Coins']
    dock.image_choice.value = coins
    assert dock.session.image is coins
    viewer.layers.remove(coins)
    assert dock.session.image in (None, viewer.layers['Coffee'])
    assert coins not in dock.image_choice.choices


def test_the_layers_of_the_plugin_are_there_before_the_first_click(dock, viewer, qtbot):
    coins = viewer.add_image(data.coins(), name='Coins')
    viewer.layers.selection = {viewer.layers['Coffee'], coins}
    qtbot.waitUntil(lambda: PROMPTS_NAME in viewer.layers, timeout=20_000)
    assert not viewer.layers[PREVIEW_NAME].data.any()
    assert viewer.layers.selection == {viewer.layers['Coffee'], coins}
    dock.image_choice.value = coins
    qtbot.waitUntil(lambda: PROMPTS_NAME in viewer.layers, timeout=20_000)
    assert viewer.layers[PREVIEW_NAME].data.shape == coins.data.shape
    dock.image_choice.value = None
    qtbot.wait(50)
    assert [layer.name for layer in viewer.layers] == ['Coffee', 'Coins']


def test_the_buttons_lead_from_an_image_to_an_object(dock, viewer, qtbot):
    dock.embed_button.click()
    assert not dock.embed_button.isEnabled()
    assert dock.cancel_button.isEnabled()
    wait_for_tree(qtbot, dock)
    assert dock.progress_bar.format() == 'Ready'
    dock.session.click(ON_CUP)
    before = dock.proposal_label.text()
    dock.finer_button.click()
    assert dock.proposal_label.text() != before
    dock.coarser_button.click()
    assert dock.proposal_label.text() == before
    dock.commit_button.click()
    assert viewer.layers[OBJECTS_NAME].data[ON_CUP] == 1
    dock.undo_button.click()
    assert dock.proposal_label.text() == before
    dock.clear_button.click()
    assert dock.proposal_label.text() == 'No mask yet\n'


def test_the_switches_set_what_they_say(dock):
    dock.polarity_buttons[Polarity.NEGATIVE].click()
    assert dock.controller.polarity is Polarity.NEGATIVE
    dock.controller.toggle_polarity()
    assert dock.polarity_buttons[Polarity.POSITIVE].isChecked()
    dock.prompting_box.click()
    dock.keep_box.click()
    assert (dock.session.prompting, dock.session.keep_existing) == (False, False)


def test_every_key_is_shown_on_a_button_and_explained(dock):
    texts = ' '.join(button.text() for button in dock.findChildren(QWidget) if hasattr(button, 'text'))
    for key in 'JKNGUQ':
        assert f'[{key}]' in texts
    assert all(button.toolTip() for button in dock.findChildren(type(dock.embed_button)))


def test_a_problem_is_shown_with_a_mark(dock):
    dock.session.click((-100, -100))
    assert dock.status_label.text() == '⚠ That click lies outside "Coffee".'


def slow_tree(image, progress):
    """Computes in Python and in numpy for a second and a half, as a model does, before it makes the tree."""
    end_s = time.monotonic() + 1.5
    while time.monotonic() < end_s:
        sum(range(20_000))
        np.linalg.svd(np.ones((60, 60)))
        progress(0.5, 'Working')
    return colour_tree(image, progress)


def longest_pause_s(qtbot, until):
    """The longest time for which the GUI's event loop did not turn."""
    ticks = [time.monotonic()]
    heartbeat = QTimer()
    heartbeat.timeout.connect(lambda: ticks.append(time.monotonic()))
    heartbeat.start(5)
    qtbot.waitUntil(until, timeout=30_000)
    heartbeat.stop()
    assert len(ticks) > 20
    return np.diff(ticks).max()


def pause_while_embedding_s(qtbot, widget):
    """The longest pause of the GUI while a tree is made; the best of three, since other tests may take the cores."""
    pauses_s = []
    while len(pauses_s) < 3 and min(pauses_s, default=MAX_FREEZE_S) >= MAX_FREEZE_S:
        widget.embed_button.click()
        pauses_s.append(longest_pause_s(qtbot, lambda: not widget.controller.is_busy))
    return min(pauses_s)


def test_the_gui_is_never_blocked_while_the_tree_is_made(qtbot, viewer):
    viewer.add_image(data.coffee())
    widget = SegmentationWidget(viewer, make_controller(slow_tree))
    qtbot.addWidget(widget)
    qtbot.waitUntil(lambda: PROMPTS_NAME in viewer.layers, timeout=20_000)
    assert pause_while_embedding_s(qtbot, widget) < MAX_FREEZE_S
    widget.session.close()


class Hand:
    """The user's hand on the canvas of a real window."""

    def __init__(self, viewer, widget):
        self.camera = viewer.scene.camera
        self.canvas = widget.window().findChild(QOpenGLWidget)

    def click(self, world, button=Qt.MouseButton.LeftButton, modifier=Qt.KeyboardModifier.NoModifier):
        size_yx = np.array([self.canvas.height(), self.canvas.width()])
        y, x = size_yx / 2 + (np.array(world) - self.camera.center[-2:]) * self.camera.zoom
        QTest.mouseClick(self.canvas, button, modifier, QPoint(round(x), round(y)), 20)

    def press(self, key):
        QTest.keyClick(self.canvas, key)


def save_screenshot(viewer, tmp_path, name):
    """Saves the window where UNSAM_SCREENSHOTS says, else in the test's own folder."""
    folder = Path(os.environ.get('UNSAM_SCREENSHOTS', tmp_path))
    return viewer.screenshot(str(folder / f'{name}.png'), canvas_only=False, flash=False)


@pytest.mark.slow
@needs_screen
def test_a_user_clicks_steps_commits_and_undoes_in_a_real_window(make_napari_viewer, qtbot, tmp_path):
    viewer = make_napari_viewer(show=True)
    viewer.window.resize(1300, 850)
    image = viewer.add_image(data.coffee(), scale=(2, 2), translate=(100, -30), name='Coffee')
    widget = SegmentationWidget(viewer, make_controller())
    viewer.window.add_dock_widget(widget, name='UnSAM')
    qtbot.wait(200)
    viewer.fit_to_view()
    hand = Hand(viewer, widget)

    hand.click(image.data_to_world(ON_CUP))
    assert widget.controller.is_busy
    wait_for_tree(qtbot, widget)
    assert viewer.layers[PROMPTS_NAME].data == pytest.approx(np.array([ON_CUP]), abs=1)
    area = widget.controller.proposal.area_px
    assert viewer.layers[PREVIEW_NAME].data.sum() == area

    hand.press('k')
    assert widget.controller.proposal.area_px < area
    hand.press('j')
    assert widget.controller.proposal.area_px == area
    hand.click(image.data_to_world(ON_TABLE), Qt.MouseButton.RightButton)
    assert widget.controller.prompts[-1].polarity is Polarity.NEGATIVE
    mask = viewer.layers[PREVIEW_NAME].data.astype(bool)
    shot = save_screenshot(viewer, tmp_path, 'prompts')
    assert len(np.unique(shot.reshape(-1, shot.shape[-1]), axis=0)) > 1000, 'the photo is on screen'

    hand.press('n')
    objects = viewer.layers[OBJECTS_NAME]
    assert (objects.data.astype(bool) == mask).all()
    assert objects.features['area_px'].tolist() == [mask.sum()]
    assert widget.controller.prompts == ()

    QTest.keyClick(hand.canvas, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert not objects.data.any()
    assert len(objects.features) == 0
    QTest.keyClick(hand.canvas, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier | Qt.KeyboardModifier.ShiftModifier)
    assert (objects.data.astype(bool) == mask).all()

    hand.click(image.data_to_world((320, 430)))
    save_screenshot(viewer, tmp_path, 'object')
    hand.click((-2000, -2000))
    assert len(widget.controller.prompts) == 1


@pytest.mark.slow
@needs_screen
def test_a_real_window_is_never_blocked_while_the_tree_is_made(make_napari_viewer, qtbot):
    viewer = make_napari_viewer(show=True)
    viewer.add_image(data.coffee())
    widget = SegmentationWidget(viewer, make_controller(slow_tree))
    viewer.window.add_dock_widget(widget, name='UnSAM')
    qtbot.waitUntil(lambda: PROMPTS_NAME in viewer.layers, timeout=20_000)
    qtbot.wait(300)
    assert pause_while_embedding_s(qtbot, widget) < MAX_FREEZE_S


@pytest.mark.slow
@needs_screen
def test_closing_the_dock_ends_the_session_and_two_viewers_do_not_meddle(make_napari_viewer, qtbot):
    viewers = [make_napari_viewer(show=True) for _ in range(2)]
    docks = []
    for viewer in viewers:
        viewer.add_image(data.coins())
        docks.append(SegmentationWidget(viewer, make_controller()))
        viewer.window.add_dock_widget(docks[-1], name='UnSAM')
    docks[0].session.click((100, 100))
    wait_for_tree(qtbot, docks[0])
    assert docks[1].controller.prompts == ()
    viewers[0].window.remove_dock_widget(docks[0])
    assert len(viewers[0].layers) == 1
    docks[1].session.click((100, 100))
    wait_for_tree(qtbot, docks[1])
    assert len(viewers[1].layers[PROMPTS_NAME].data) == 1


@pytest.mark.slow
@needs_screen
def test_napari_opens_the_dock_and_the_sample_data_by_their_names(make_napari_viewer, npe2pm):
    npe2pm.register(PluginManifest.from_file(Path(napari_unsam.__file__).with_name('napari.yaml')))
    viewer = make_napari_viewer(show=True)
    viewer.open_sample('unsam_mm', 'coins')
    _, widget = viewer.window.add_plugin_dock_widget('unsam_mm', 'UnSAM')
    assert isinstance(widget, SegmentationWidget)
    assert widget.session.image is viewer.layers['Coins']
