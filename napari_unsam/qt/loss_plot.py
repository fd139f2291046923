"""A line plot of the training loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QPainter, QPaintEvent, QPalette, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

_MARGIN_LINES = 1.4  # of text, above and below the curve
_PEN_WIDTH_PX = 2
_LINE_COLOUR = '#56b4e9'  # visible on dark and light themes; safe for colour-blind viewers


class LossPlot(QWidget):
    """A line plot with the latest, least and greatest value and the last step as text; axes and text follow the theme.

    Args:
        name: Name of the values.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._steps: tuple[float, ...] = ()
        self._values: tuple[float, ...] = ()
        self._last_step = 1.0
        self.setMinimumHeight(7 * self.fontMetrics().lineSpacing())
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self._describe()

    def sizeHint(self) -> QSize:
        """A width that fits into a dock."""
        return QSize(240, self.minimumHeight())

    def show_curve(self, steps: Sequence[float], values: Sequence[float], last_step: float) -> None:
        """Draws a line; values that are not finite are left out.

        Args:
            steps: Steps in ascending order.
            values: One value for each step.
            last_step: End of the horizontal axis, unless a step is greater.
        """
        kept = [(float(step), float(value)) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
        self._steps, self._values = (tuple(column) for column in zip(*kept, strict=True)) if kept else ((), ())
        self._last_step = max(float(last_step), *self._steps, 1.0)
        self._describe()
        self.update()

    def points(self, frame: QRectF) -> list[QPointF]:
        """The points of the line in a frame, in pixels."""
        if not self._values:
            return []
        low, high = min(self._values), max(self._values)
        span = (high - low) or 1.0
        return [
            QPointF(
                frame.left() + frame.width() * step / self._last_step,
                frame.bottom() - frame.height() * (value - low) / span,
            )
            for step, value in zip(self._steps, self._values, strict=True)
        ]

    def paintEvent(self, event: QPaintEvent) -> None:
        """Draws the frame, the line and the numbers."""
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        line = self.fontMetrics().lineSpacing()
        frame = QRectF(self.rect()).adjusted(4, _MARGIN_LINES * line, -4, -_MARGIN_LINES * line)
        text = self.palette().color(QPalette.ColorRole.WindowText)
        painter.setPen(QPen(text, 1))
        painter.drawLine(frame.bottomLeft(), frame.bottomRight())
        painter.drawLine(frame.bottomLeft(), frame.topLeft())
        above, below = QRectF(self.rect()).adjusted(4, 0, -4, 0), Qt.AlignmentFlag.AlignBottom
        if self._values:
            painter.drawText(above, Qt.AlignmentFlag.AlignTop, f'{self._name}: {self._values[-1]:.3f}')
            spread = f'{min(self._values):.3f} to {max(self._values):.3f}'
            painter.drawText(above, Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignRight, spread)
        else:
            painter.drawText(above, Qt.AlignmentFlag.AlignTop, f'{self._name}: no values yet')
        painter.drawText(above, below, 'step 0')
        painter.drawText(above, below | Qt.AlignmentFlag.AlignRight, f'{self._last_step:.0f}')
        points = self.points(frame)
        painter.setPen(QPen(QColor(_LINE_COLOUR), _PEN_WIDTH_PX))
        if len(points) == 1:
            painter.drawEllipse(points[0], _PEN_WIDTH_PX, _PEN_WIDTH_PX)
        painter.drawPolyline(QPolygonF(points))
        painter.end()

    def _describe(self) -> None:
        """Describes the line for screen readers."""
        if not self._values:
            self.setAccessibleDescription(f'{self._name}: no values yet')
            return
        self.setAccessibleDescription(
            f'{self._name}: {self._values[0]:.3f} at step {self._steps[0]:.0f}, '
            f'{self._values[-1]:.3f} at step {self._steps[-1]:.0f} of {self._last_step:.0f}'
        )
