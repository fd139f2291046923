"""Widgets that notice when napari removes them, which only unparents them."""

from __future__ import annotations

from collections.abc import Callable

from qtpy.QtCore import QEvent, QTimer, Signal
from qtpy.QtWidgets import QWidget


class DockedWidget(QWidget):
    """A widget that knows when it is taken out of the window that it was put into.

    Attributes:
        undocked: Emitted then.
    """

    undocked = Signal()

    def __init__(self) -> None:
        super().__init__()
        self._is_docked = False

    def event(self, event: QEvent) -> bool:
        """Follows the parent."""
        if event.type() == QEvent.Type.ParentChange:
            was_docked, self._is_docked = self._is_docked, self.parent() is not None
            if was_docked and not self._is_docked:
                self.undocked.emit()
        return super().event(event)


def later(call: Callable[[], None]) -> None:
    """Runs a function once napari has handled the current event."""
    # Qt keeps no method of an object alive that nobody else holds.
    QTimer.singleShot(0, lambda: call())
