"""A row of bars, one per slice: IoU of an object with the previous slice."""

from __future__ import annotations

import numpy as np
from qtpy.QtCore import QEvent, QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QHelpEvent, QMouseEvent, QPainter, QPaintEvent
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_unsam.volumes.propagation import Found, SliceMask, SliceState

# The scale cividis, which looks the same to all kinds of colour vision and rises in lightness: bad dark, good bright.
_SCALE = ('#00224e', '#35456c', '#666970', '#948e77', '#c8b866', '#fee838')
_KNOWN, _GROUND, _CURSOR = '#56b4e9', '#808080', '#ffffff'
_HEIGHT_PX, _MAX_WIDE_PX = 34, 24
_WORDS = {SliceState.CORRECTED: 'known', SliceState.PROPAGATED: 'found', SliceState.STOPPED: 'ended'}


def colour_of(iou: float) -> str:
    """The colour of an IoU in [0, 1], as #rrggbb."""
    places = np.linspace(0, 1, len(_SCALE))
    channels = zip(*(QColor(colour).getRgb()[:3] for colour in _SCALE), strict=True)
    return QColor(*(round(np.interp(iou, places, channel)) for channel in channels)).name()


class IouStrip(QWidget):
    """One bar a slice, as high as the IoU with the slice before is large, so that colour is not needed to read it.

    Slices where the object is known are marked by a blue diamond, those where it ended by a cross; a white frame
    shows the slice in view. A click, or a drag, asks for a slice.

    Attributes:
        slice_wanted: Emitted with the number of the slice that was clicked.
    """

    slice_wanted = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self._found: Found = {}
        self._n_slices, self._here = 0, 0
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setMinimumWidth(40)
        self.setAccessibleName('IoU with the previous slice')

    def set_slices(self, found: Found, n_slices: int, here: int) -> None:
        """Shows what was found of an object.

        Args:
            found: By slice.
            n_slices: Slices of the stack.
            here: The slice in view.
        """
        self._found, self._n_slices, self._here = found, n_slices, here
        self.update()

    def sizeHint(self) -> QSize:
        """As high as a row of buttons."""
        return QSize(200, _HEIGHT_PX)

    def slice_at(self, x: float) -> int | None:
        """The slice whose bar is at a distance from the left edge, in pixels; None beside all of them."""
        z = int(x // self._bar_px) if self._n_slices and x >= 0 else -1
        return z if 0 <= z < self._n_slices else None

    def bar(self, z: int) -> QRectF:
        """The room of a slice's bar, from top to bottom."""
        return QRectF(z * self._bar_px, 0, self._bar_px, self.height())

    def event(self, event: QEvent) -> bool:
        """Shows the tooltip of the slice under the mouse."""
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            z = self.slice_at(event.pos().x())
            QToolTip.showText(event.globalPos(), '' if z is None else self.words(z), self)
            return True
        return super().event(event)

    def words(self, z: int) -> str:
        """Tooltip of a slice."""
        one = self._found.get(z)
        if one is None:
            return f'Slice {z}: not analysed'
        if one.state is SliceState.CORRECTED:
            return f'Slice {z}: {_WORDS[one.state]}, {one.crop.area_px:,} px'
        return f'Slice {z}: {_WORDS[one.state]}, IoU {one.iou:.2f}, granularity {one.granularity:.2f}, {one.crop.area_px:,} px'

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Asks for the slice under the mouse."""
        z = self.slice_at(event.position().x())
        if z is not None:
            self.slice_wanted.emit(z)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:
        """Asks for the slice under the mouse while it is dragged."""
        if event.buttons() & Qt.MouseButton.LeftButton:
            self.mousePressEvent(event)

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draws the bars."""
        painter = QPainter(self)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(_GROUND))
        for z in range(self._n_slices):
            column = self.bar(z)
            painter.setOpacity(0.3)
            painter.fillRect(column.adjusted(0.5, 0, -0.5, 0), QColor(_GROUND))
            painter.setOpacity(1.0)
            if z in self._found:
                self._draw(painter, column, self._found[z])
        if 0 <= self._here < self._n_slices:
            painter.setBrush(Qt.BrushStyle.NoBrush)
            painter.setPen(QColor(_CURSOR))
            painter.drawRect(self.bar(self._here).adjusted(0.5, 0.5, -0.5, -0.5))
        painter.end()

    def _draw(self, painter: QPainter, column: QRectF, one: SliceMask) -> None:
        middle, size = column.center(), min(column.width(), 8.0) / 2
        top, right, bottom, left = (middle + size * QPointF(x, y) for x, y in ((0, -1), (1, 0), (0, 1), (-1, 0)))
        if one.state is SliceState.STOPPED:
            painter.setPen(QColor(_CURSOR))
            square = QRectF(left.x(), top.y(), 2 * size, 2 * size)
            painter.drawLine(square.topLeft(), square.bottomRight())
            painter.drawLine(square.bottomLeft(), square.topRight())
            painter.setPen(Qt.PenStyle.NoPen)
            return
        height = max(one.iou, 0.06) * column.height()
        bar = QRectF(column.left() + 0.5, column.bottom() - height, max(column.width() - 1, 1), height)
        painter.fillRect(bar, QColor(colour_of(one.iou)))
        if one.state is SliceState.CORRECTED:
            painter.setBrush(QColor(_KNOWN))
            painter.drawPolygon([top, right, bottom, left])

    @property
    def _bar_px(self) -> float:
        return min(self.width() / max(self._n_slices, 1), _MAX_WIDE_PX)
