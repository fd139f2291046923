"""A row of bars, one per slice: IoU of an object's mask with that in the previous slice."""

from __future__ import annotations

import numpy as np
from qtpy.QtCore import QEvent, QPointF, QRectF, QSize, Qt, Signal
from qtpy.QtGui import QColor, QHelpEvent, QMouseEvent, QPainter, QPaintEvent
from qtpy.QtWidgets import QSizePolicy, QToolTip, QWidget

from napari_unsam.volumes.propagation import SliceMask, SliceMasks, SliceState

# The colormap cividis, which is safe for colour-blind viewers and rises in lightness: low IoU dark, high IoU bright.
_SCALE = ('#00224e', '#35456c', '#666970', '#948e77', '#c8b866', '#fee838')
_CORRECTED, _BACKGROUND, _CURSOR = '#56b4e9', '#808080', '#ffffff'
_HEIGHT_PX, _MAX_BAR_PX = 34, 24
_STATES = {SliceState.CORRECTED: 'set by hand', SliceState.PROPAGATED: 'propagated', SliceState.STOPPED: 'stopped'}


def colour_of(iou: float) -> str:
    """The colour of an IoU in [0, 1], as #rrggbb."""
    places = np.linspace(0, 1, len(_SCALE))
    channels = zip(*(QColor(colour).getRgb()[:3] for colour in _SCALE), strict=True)
    return QColor(*(round(np.interp(iou, places, channel)) for channel in channels)).name()


class IouStrip(QWidget):
    """One bar for each slice; its height and colour are the IoU with the previous slice.

    A blue diamond marks slices that were set by hand, a cross those where the propagation stopped, a white frame the
    slice in view. A click or a drag goes to a slice.

    Attributes:
        slice_wanted: Emitted with the index of a clicked slice.
    """

    slice_wanted = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self._masks: SliceMasks = {}
        self._n_slices, self._here = 0, 0
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setMinimumWidth(40)
        self.setAccessibleName('IoU with the previous slice')

    def set_slices(self, masks: SliceMasks, n_slices: int, here: int) -> None:
        """Shows the masks of an object.

        Args:
            masks: The masks of the object, by index of the slice.
            n_slices: Number of slices in the stack.
            here: Index of the slice in view.
        """
        self._masks, self._n_slices, self._here = masks, n_slices, here
        self.update()

    def sizeHint(self) -> QSize:
        """Preferred size: the height of a row of buttons."""
        return QSize(200, _HEIGHT_PX)

    def slice_at(self, x: float) -> int | None:
        """The slice of the bar at a distance from the left edge, in pixels; None if there is no bar."""
        z = int(x // self._bar_px) if self._n_slices and x >= 0 else -1
        return z if 0 <= z < self._n_slices else None

    def bar(self, z: int) -> QRectF:
        """The rectangle of a slice, over the full height."""
        return QRectF(z * self._bar_px, 0, self._bar_px, self.height())

    def event(self, event: QEvent) -> bool:
        """Shows the tooltip of the slice under the mouse."""
        if isinstance(event, QHelpEvent) and event.type() == QEvent.Type.ToolTip:
            z = self.slice_at(event.pos().x())
            QToolTip.showText(event.globalPos(), '' if z is None else self.describe(z), self)
            return True
        return super().event(event)

    def describe(self, z: int) -> str:
        """Tooltip of a slice."""
        one = self._masks.get(z)
        if one is None:
            return f'Slice {z}: not analysed'
        scores = '' if one.state is SliceState.CORRECTED else f'IoU {one.iou:.2f}, granularity {one.granularity:.2f}, '
        return f'Slice {z}: {_STATES[one.state]}, {scores}{one.mask.area_px:,} px'

    def mousePressEvent(self, event: QMouseEvent) -> None:
        """Goes to the slice under the mouse."""
        z = self.slice_at(event.position().x())
        if z is not None:
            self.slice_wanted.emit(z)

    mouseMoveEvent = mousePressEvent  # without mouse tracking, Qt sends it only while a button is pressed

    def paintEvent(self, _event: QPaintEvent) -> None:
        """Draws the bars."""
        painter = QPainter(self)
        painter.setPen(Qt.PenStyle.NoPen)
        painter.setBrush(QColor(_BACKGROUND))
        for z in range(self._n_slices):
            column = self.bar(z)
            painter.setOpacity(0.3)
            painter.fillRect(column.adjusted(0.5, 0, -0.5, 0), QColor(_BACKGROUND))
            painter.setOpacity(1.0)
            if z in self._masks:
                self._draw(painter, column, self._masks[z])
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
            painter.setBrush(QColor(_CORRECTED))
            painter.drawPolygon([top, right, bottom, left])

    @property
    def _bar_px(self) -> float:
        return min(self.width() / max(self._n_slices, 1), _MAX_BAR_PX)
