"""Layers that go take nothing of the window with them."""

import numpy as np
import pytest
from qtpy.QtGui import QOpenGLContext
from qtpy.QtWidgets import QApplication, QOpenGLWidget, QWidget
from skimage import data

from napari_unsam.controller import SegmentationController
from napari_unsam.qt.canvas import canvas_beside
from napari_unsam.qt.widget import SegmentationWidget, in_gui_thread
from napari_unsam.viewer.layers import OBJECTS_NAME
from tests.test_napari.stand_ins import colour_tree, needs_screen, planes_of

pytestmark = needs_screen


@pytest.fixture
def window(make_napari_viewer, qtbot):
    """A viewer with a window, an image and the dock, all drawn."""
    viewer = make_napari_viewer(show=True)
    viewer.add_image(data.coins(), name='Coins')
    dock = SegmentationWidget(viewer, SegmentationController(planes_of(colour_tree), in_gui_thread))
    viewer.window.add_dock_widget(dock)
    qtbot.waitUntil(lambda: OBJECTS_NAME in viewer.layers, timeout=20_000)
    qtbot.wait(200)
    yield viewer, dock
    viewer.window.remove_dock_widget(dock)


def test_the_canvas_is_found_from_the_dock_and_from_nowhere_else(window, qtbot):
    _, dock = window
    canvas = canvas_beside(dock)
    assert isinstance(canvas, QOpenGLWidget)
    dock.parentWidget().setFloating(True)
    assert canvas_beside(dock) is canvas
    alone = QWidget()
    qtbot.addWidget(alone)
    assert canvas_beside(alone) is None


def test_layers_are_freed_in_the_context_of_the_canvas_whoever_removes_them(window):
    viewer, dock = window
    canvas, found = canvas_beside(dock), []
    viewer.layers.events.removing.connect(lambda _event: found.append(QOpenGLContext.currentContext()))
    canvas.doneCurrent()
    viewer.layers.remove('Coins')
    assert found[0] is canvas.context()


@pytest.mark.parametrize('all_layers', [False, True], ids=['the image', 'all layers'])
def test_an_image_can_be_deleted_and_another_opened_while_other_layers_stay(window, qtbot, all_layers):
    viewer, dock = window
    viewer.add_points(np.array([[5.0, 5.0]]), name='of the user')
    qtbot.wait(100)
    viewer.layers.selection = set(viewer.layers) if all_layers else {viewer.layers['Coins']}
    viewer.layers.remove_selected()
    for _ in range(3):  # drawn after it went, the window was gone before
        canvas_beside(dock).update()
        qtbot.wait(50)
    assert [layer.name for layer in viewer.layers] == ([] if all_layers else ['of the user'])
    image = viewer.add_image(data.camera())
    qtbot.waitUntil(lambda: OBJECTS_NAME in viewer.layers, timeout=20_000)
    QApplication.processEvents()
    assert dock.session.image is image
    assert viewer.layers[OBJECTS_NAME].data.shape == (512, 512)


def test_no_context_is_left_current_and_none_of_another_dock_is_taken_for_the_canvas(window, qtbot):
    viewer, dock = window
    canvas = canvas_beside(dock)
    other = QWidget()
    inner = QOpenGLWidget(other)
    viewer.window.add_dock_widget(other, area='left')
    qtbot.wait(50)
    assert canvas_beside(dock) is canvas is not inner
    assert canvas_beside(other) is canvas
    viewer.layers.remove('Coins')
    assert QOpenGLContext.currentContext() is not canvas.context()
    viewer.window.remove_dock_widget(other)
