"""The dock as napari opens it: empty at first, and filled once its code has been loaded in the background."""

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

_POLL_MS = 10
_CODE = 'napari_unsam.qt.widget'


class UnSAMDock(DockedWidget):
    """Opens empty, and shows a `SegmentationWidget` once its code is loaded.

    Args:
        viewer: The viewer.
        make: Makes the widget for a viewer; by default one with the engine of the preferences.

    Attributes:
        content: The widget; None before it is made.
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
        self._placeholder = QLabel('Opening UnSAM ...')
        self._placeholder.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self._placeholder.setMinimumWidth(self._placeholder.fontMetrics().averageCharWidth() * 40)
        self._grid = QGridLayout(self)  # in a column napari would add a stretch that takes half the height
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.addWidget(self._placeholder)
        self._loading = Thread(target=import_module, args=(_CODE,), name='unsam-opening', daemon=True)
        self._loading.start()
        self._timer = QTimer(self, interval=_POLL_MS)
        self._timer.timeout.connect(self._open_next)
        self._timer.start()

    def end(self) -> None:
        """Ends the session if it has begun."""
        self._timer.stop()
        if self.content is not None:
            self.content.end()

    def _open_next(self) -> None:
        """Makes the widget in one turn of the event loop, and shows it in the next."""
        if self._loading.is_alive():
            return
        self._timer.stop()  # so that an error is reported once
        if self.content is None:
            make = self._make or import_module(_CODE).SegmentationWidget
            self.content = make(self._viewer)
            self._timer.start()
        else:
            self._grid.replaceWidget(self._placeholder, self.content)
            self._placeholder.hide()
            self._placeholder.deleteLater()
