"""A work-around for napari's canvas, which frees OpenGL objects in the wrong context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.compat import isalive
from qtpy.QtWidgets import QMainWindow, QOpenGLWidget, QWidget

if TYPE_CHECKING:
    from napari.components import LayerList


class CanvasContext:
    """Frees layers in the OpenGL context that they were drawn in.

    When a layer is removed, napari 0.9 frees its OpenGL objects in the current context. If that is the context of the
    window, other objects with the same ids are freed, and the window crashes when it is drawn next.

    Args:
        dock: A widget that is, or will be, in the window of the canvas.
        layers: Layers of the viewer.
    """

    def __init__(self, dock: QWidget, layers: LayerList) -> None:
        self._dock, self._layers = dock, layers
        self._canvas: QOpenGLWidget | None = None
        layers.events.inserted.connect(self._find)
        layers.events.removing.connect(self._enter)
        layers.events.removed.connect(self._leave)
        self._find()

    def close(self) -> None:
        """Disconnects from the layers."""
        self._layers.events.inserted.disconnect(self._find)
        self._layers.events.removing.disconnect(self._enter)
        self._layers.events.removed.disconnect(self._leave)

    def _find(self, _event: Any = None) -> None:
        """Finds the canvas while the dock is in the window; the dock is removed from there before the layers are."""
        if self._canvas is None and isalive(self._dock):
            self._canvas = canvas_beside(self._dock)

    def _enter(self, _event: Any) -> None:
        self._find()
        if self._canvas is not None and isalive(self._canvas):
            self._canvas.makeCurrent()

    def _leave(self, _event: Any) -> None:
        if self._canvas is not None and isalive(self._canvas):
            self._canvas.doneCurrent()


def canvas_beside(widget: QWidget) -> QOpenGLWidget | None:
    """The canvas of the main window that a widget belongs to, floating or not; None if it belongs to none.

    OpenGL widgets of other docks are ignored.
    """
    around: QWidget | None = widget
    while around is not None:
        if isinstance(around, QMainWindow) and around.centralWidget() is not None:
            return around.centralWidget().findChild(QOpenGLWidget)
        around = around.parentWidget()
    return None
