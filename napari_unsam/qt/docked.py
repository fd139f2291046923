"""Widgets that are notified when napari removes them, which only changes their parent."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QEvent, QTimer, Signal
from qtpy.QtWidgets import QWidget


class DockedWidget(QWidget):
    """A widget with a signal for its removal from a window.

    Attributes:
        undocked: Emitted when the widget has lost its parent.
    """

    undocked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._is_docked = False

    def event(self, event: QEvent) -> bool:
        """Emits `undocked` when the widget has lost its parent."""
        if event.type() == QEvent.Type.ParentChange:
            was_docked, self._is_docked = self._is_docked, self.parent() is not None
            if was_docked and not self._is_docked:
                self.undocked.emit()
        return super().event(event)


def later(call: Callable[[], None]) -> None:
    """Runs a function once napari has handled the current event."""
    # A lambda, since Qt does not keep the object of a bound method alive.
    QTimer.singleShot(0, lambda: call())
