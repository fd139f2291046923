"""Controls shared by the sections of the dock."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject, QSignalBlocker, Qt, QTimer
from qtpy.QtWidgets import (
    QAbstractSpinBox,
    QComboBox,
    QGridLayout,
    QGroupBox,
    QLineEdit,
    QPushButton,
    QSlider,
    QWidget,
)

from napari_unsam.keys import KEYS
from napari_unsam.levels.region_properties import Side

_SIDE_CHARACTERS = 8  # are shown at least; the longest choice would widen the dock
SLIDER_STEPS = 1000
"""From 0 to 1."""


def button(text: str, tooltip: str) -> QPushButton:
    """A button that leaves the keyboard to the canvas, so that the keys shown on buttons reach it.

    Args:
        text: What the button does.
        tooltip: One sentence.
    """
    made = QPushButton(text)
    made.setToolTip(tooltip)
    made.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return made


def key_button(command: str) -> QPushButton:
    """The button of a key."""
    return button(KEYS[command].button, KEYS[command].action)


def slider(tooltip: str) -> QSlider:
    """A slider from 0 to 1 in `SLIDER_STEPS`, which leaves the keyboard to the canvas."""
    made = QSlider(Qt.Orientation.Horizontal)
    made.setRange(0, SLIDER_STEPS)
    made.setToolTip(tooltip)
    made.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return made


def choice_of_side(chosen: Side) -> QComboBox:
    """How objects differ from what is around them; the data of each entry is a `Side`."""
    made = QComboBox()
    made.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
    made.setMinimumContentsLength(_SIDE_CHARACTERS)
    for side in Side:
        made.addItem(side.value.capitalize(), side)
    made.setCurrentIndex(list(Side).index(chosen))
    made.setToolTip('Brightness of objects relative to their surroundings; "Bright or dark" decides by the image')
    return made


def move(slider: QSlider, value: float) -> None:
    """Moves a slider to a value in [0, 1] that was set elsewhere, without a signal."""
    with QSignalBlocker(slider):
        slider.setValue(round(value * SLIDER_STEPS))


def group(title: str, rows: list[list[QWidget | None]]) -> QGroupBox:
    """Controls under a title, row by row; one that is alone in its row is as wide as all, and None leaves a gap."""
    made = QGroupBox(title)
    grid = QGridLayout(made)
    width = max(len(row) for row in rows)
    for number, row in enumerate(rows):
        for column, widget in enumerate(row):
            if widget is not None:
                grid.addWidget(widget, number, column, 1, width if len(row) == 1 else 1)
    return made


def lend_keyboard(panel: QWidget) -> None:
    """Returns the keyboard to the canvas after a field of a section was edited.

    That is with Return or Escape, and after a click on the arrows of a number; choices never take it.
    """
    for field in panel.findChildren(QAbstractSpinBox):
        field.installEventFilter(_Returning(field))
    for field in panel.findChildren(QLineEdit):
        if not isinstance(field.parent(), QAbstractSpinBox | QComboBox):
            field.installEventFilter(_Returning(field))
    for choice in panel.findChildren(QComboBox):
        choice.setFocusPolicy(Qt.FocusPolicy.NoFocus)


class _Returning(QObject):
    """Gives the keyboard of a field back."""

    _KEYS = (Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Escape)

    def eventFilter(self, field: QObject, event: QEvent) -> bool:
        """Lets all events go on to the field, and acts after those that end its use."""
        is_key = event.type() == QEvent.Type.KeyPress and event.key() in self._KEYS
        if is_key or (event.type() == QEvent.Type.MouseButtonRelease and isinstance(field, QAbstractSpinBox)):
            QTimer.singleShot(0, self._give_back)
        return False

    def _give_back(self) -> None:
        field, window = self.parent(), self.parent().window()
        if window.focusWidget() is field:
            field.clearFocus()
            window.setFocus()  # napari's windows hand keys on to the canvas
