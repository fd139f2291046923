"""The dock as napari opens it: there at once, and filled as soon as its code is loaded, which holds nobody up."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QGridLayout, QLabel

from napari_unsam.qt.docked import DockedWidget

if TYPE_CHECKING:
    import napari

    from napari_unsam.qt.widget import SegmentationWidget

_TURN_MS = 10
_CODE = 'napari_unsam.qt.widget'


class UnSAMDock(DockedWidget):
    """Opens empty, and holds a `SegmentationWidget` a moment later.

    Args:
        viewer: The viewer to work in.
        make: Makes the widget, once its code is loaded; by default the one with the engine of the preferences.

    Attributes:
        content: The widget; None before it is there.
    """

    def __init__(
        self,
        viewer: napari.viewer.Viewer,
        make: Callable[[napari.viewer.Viewer], SegmentationWidget] | None = None,
    ) -> None:
        super().__init__()
        self.content: SegmentationWidget | None = None
        self.undocked.connect(self.end)
        self._viewer, self._make = viewer, make
        self._opening = QLabel('Opening UnSAM ...')
        self._opening.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._opening.setMinimumWidth(self._opening.fontMetrics().averageCharWidth() * 40)
        self._room = QGridLayout(self)  # napari would add a stretch to a column, and leave half of it to that
        self._room.setContentsMargins(0, 0, 0, 0)
        self._room.addWidget(self._opening)
        self._loading = Thread(target=import_module, args=(_CODE,), name='unsam-opening', daemon=True)
        self._loading.start()
        self._turns = QTimer(self, interval=_TURN_MS)
        self._turns.timeout.connect(self._go_on)
        self._turns.start()

    def end(self) -> None:
        """Ends the session, or does not begin it."""
        self._turns.stop()
        if self.content is not None:
            self.content.end()

    def _go_on(self) -> None:
        """Makes the widget, then shows it, each in a turn of the event loop."""
        if self._loading.is_alive():
            return
        self._turns.stop()  # so that what cannot be loaded or made is told once
        if self.content is None:
            make = self._make or import_module(_CODE).SegmentationWidget
            self.content = make(self._viewer)
            self._turns.start()
        else:
            self._room.replaceWidget(self._opening, self.content)
            self._opening.hide()
            self._opening.deleteLater()
