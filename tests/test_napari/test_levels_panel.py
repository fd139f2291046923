"""The section of the dock for levels: its controls, and its slider in a real window."""

import time

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.utils.key_bindings import coerce_keybinding
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QOpenGLWidget, QPushButton
from skimage import data
from skimage.transform import resize

from napari_unsam.levels.preview import LEVELS_NAME
from napari_unsam.levels.region_properties import Brightness
from napari_unsam.levels.selector import PreviewMode
from napari_unsam.qt.levels_panel import LevelsPanel
from napari_unsam.viewer.session import ViewerSession
from tests.test_napari.coin_tree import coin_tree
from tests.test_napari.stand_ins import colour_tree, is_problem, needs_screen
from unsam_mm.errors import UnSAMError

ON_COIN = (124, 225)
MAX_CUTS, MAX_CUTS_WITH_DRAWING = 20, 40
"""What a step of the slider may cost, in cuts of the tree, which fill every pixel once; measured are 4."""


@pytest.fixture
def panel(qtbot, make_controller):
    """Over the photo of coins."""
    tree = coin_tree()
    session = ViewerSession(ViewerModel(), make_controller(lambda image, progress: tree))
    session.set_image(session.viewer.add_image(data.coins(), name='Coins'))
    panel = LevelsPanel(session)
    session.inputs.add(panel.key_actions)
    qtbot.addWidget(panel)
    yield panel
    panel.close_session()
    session.close()


def click(button):
    QTest.mouseClick(button, Qt.MouseButton.LeftButton)


def press(panel, key):
    viewer = panel.selector.session.viewer
    viewer.keymap[coerce_keybinding(key)](viewer)


def test_only_what_can_be_done_can_be_pressed(panel):
    for button in (panel.accept_button, panel.hide_button, panel.class_button, panel.layers_button, panel.right_button):
        assert not button.isEnabled()
    assert panel.level_slider.isEnabled()
    assert panel.review_label.text() == '0 done, 0 left'


def test_what_cannot_be_done_is_told(panel, settle, monkeypatch):
    session = panel.selector.session

    def fail():
        raise UnSAMError('there is not memory enough')

    monkeypatch.setattr(session, 'ensure_objects', fail)
    for act in (lambda: click(panel.best_button), lambda: panel.level_slider.setValue(300)):
        session.controller.show_info('')
        act()
        settle(session.controller)
        assert is_problem(session, 'not memory enough')
    session.controller.show_info('')
    monkeypatch.undo()
    panel.level_slider.setValue(310)
    monkeypatch.setattr(session, 'ensure_objects', fail)
    click(panel.accept_button)
    assert is_problem(session, 'not memory enough')


def test_every_control_says_what_it_does_and_buttons_leave_the_keyboard_alone(panel):
    for button in panel.findChildren(QPushButton):
        assert button.toolTip()
        assert button.focusPolicy() is Qt.FocusPolicy.NoFocus


def test_dragging_the_slider_shows_levels_and_auto_and_propose_choose(panel, settle):
    panel.level_slider.setValue(160)
    settle(panel.selector.session.controller)
    assert panel.selector.mode is PreviewMode.LEVEL
    assert '0.16' in panel.level_label.text()
    panel.level_slider.setValue(700)
    panel.level_slider.setValue(160)
    click(panel.best_button)
    assert panel.level_label.text() == f'Auto: {len(panel.selector.selection)} objects'
    click(panel.propose_button)
    assert panel.level_slider.value() == round(1000 * panel.selector.level)


def test_limits_change_what_is_shown_at_once(panel, settle):
    click(panel.best_button)
    settle(panel.selector.session.controller)
    count = len(panel.selector.selection)
    panel.min_area_box.setValue(2000)
    assert 0 < len(panel.selector.selection) < count
    panel.max_share_box.setValue(2)
    panel.brightness_choice.setCurrentIndex(list(Brightness).index(Brightness.DARK))
    assert panel.selector.region_filter.brightness is Brightness.DARK
    assert len(panel.selector.selection) < count


def test_a_story_of_coins_accepted_split_likened_and_reviewed(panel, settle):
    session = panel.selector.session
    click(panel.best_button)
    settle(session.controller)
    click(panel.accept_button)
    count = len(session.objects.features)
    assert count > 20
    assert not panel.accept_button.isEnabled()
    session.viewer.cursor.position, session.viewer.mouse_over_canvas = ON_COIN, True
    press(panel, 'H')
    assert len(session.objects.features) == count + 1
    press(panel, 'W')
    assert len(session.objects.features) == count
    press(panel, 'Shift-F')
    assert panel.selector.mode is PreviewMode.SIMILAR
    assert 'matches (similarity ≥ 0.50)' in panel.similar_label.text()
    panel.similarity_slider.setValue(900)
    click(panel.clear_examples_button)
    assert not session.viewer.layers[LEVELS_NAME].visible
    press(panel, 'Shift-N')
    click(panel.right_button)
    click(panel.wrong_button)
    assert panel.review_label.text() == f'1 done, {count - 2} left'


def test_names_become_linked_layers(panel, settle):
    for name, level in (('coins', 170), ('rows', 590)):
        panel.level_slider.setValue(level)
        settle(panel.selector.session.controller)
        panel.name_box.setText(name)
        click(panel.class_button)
    assert panel.classes_label.text().startswith('coins: ')
    click(panel.layers_button)
    assert {'coins', 'rows'} <= {layer.name for layer in panel.selector.session.viewer.layers}


@needs_screen
@pytest.mark.slow
def test_a_step_of_the_slider_over_a_megapixel_costs_what_a_few_cuts_cost(
    qtbot, make_napari_viewer, make_controller, settle
):
    image = (resize(data.camera(), (1024, 1024)) * 255).astype(np.uint8)
    tree = colour_tree(image, lambda *_: None)
    viewer = make_napari_viewer(show=True)
    session = ViewerSession(viewer, make_controller(lambda image, progress: tree))
    session.set_image(viewer.add_image(image))
    panel = LevelsPanel(session)
    qtbot.addWidget(panel)
    panel.level_slider.setValue(300)
    settle(session.controller)
    canvas = viewer.window._qt_window.findChild(QOpenGLWidget)
    # In time of the processor, which others on the machine do not lengthen; drawing in software counts as well.
    updates, redraws = [], []
    for value in range(0, 1000, 25):
        start = time.process_time()
        panel.level_slider.setValue(value)
        updates.append(time.process_time() - start)
        canvas.repaint()
        redraws.append(time.process_time() - start)
    cuts = []
    for value in range(0, 1000, 25):
        start = time.process_time()
        tree.cut(value / 1000)
        cuts.append(time.process_time() - start)
    assert np.median(updates) < MAX_CUTS * np.median(cuts)
    assert np.median(redraws) < MAX_CUTS_WITH_DRAWING * np.median(cuts)
    panel.close_session()
    session.close()
