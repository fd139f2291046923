"""The base class of the sections of the dock, which makes their controls and lays them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakMethod

from qtpy.QtCore import QSignalBlocker, Qt
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QGridLayout,
    QGroupBox,
    QLabel,
    QLayout,
    QMessageBox,
    QProgressBar,
    QPushButton,
    QSlider,
    QSpinBox,
    QWidget,
)

from napari_unsam.keys import KEYS, Actions
from napari_unsam.levels.region_properties import Brightness

if TYPE_CHECKING:
    from napari_unsam.viewer.session import ViewerSession

Control = TypeVar('Control', bound=QWidget)
Row = Sequence[QWidget | QLayout | str | None]
"""Controls side by side. A text is the label of the next control, None a gap; the last control fills the row."""

SLIDER_STEPS = 1000
"""Steps of a slider or progress bar from 0 to 1."""
MAX_AREA_PX = 1_000_000
"""Largest area that can be entered."""
_BRIGHTNESS_CHARACTERS = 8  # minimum shown; the length of the longest entry would widen the dock


class Panel(QWidget):
    """A section of the dock.

    Its controls do not take the keyboard focus, except number and text fields. If the action of a control raises
    `UnSAMError`, the error is shown in the status line.

    Args:
        session: The session.
        options: Arguments of `build`.

    Attributes:
        title: Title of the section.
        key_actions: The actions of the section's keys, by command; see `KEYS`.
    """

    title = ''

    def __init__(self, session: ViewerSession, *options: Any) -> None:
        super().__init__()
        self._session = session
        self._connections: list[tuple[Any, WeakMethod]] = []  # weak, so that a section is freed with its window
        self.key_actions: Actions = {}
        self.build(*options)

    def build(self) -> None:
        """Makes the controls."""

    def subscribe(self, act: Callable, *signals: Any) -> None:
        """Connects a method to signals of the session or the viewer, until `close_session`."""
        for signal in signals:
            signal.connect(act)
            self._connections.append((signal, WeakMethod(act)))

    def close_session(self) -> None:
        """Disconnects from the session and the viewer."""
        for signal, act in self._connections:
            signal.disconnect(act())
        self._connections.clear()

    def show_info(self, text: str) -> None:
        """Shows a text in the status line."""
        self._session.controller.show_info(text)

    def show_problem(self, text: str) -> None:
        """Shows a problem in the status line."""
        self._session.controller.show_problem(text)

    def confirm(self, title: str, question: str) -> bool:
        """Asks yes or no; returns True for yes."""
        return QMessageBox.question(self, title, question) == QMessageBox.StandardButton.Yes

    def lay_out(self, *rows: Row) -> QGridLayout:
        """Lays out the controls of the section."""
        grid = fill(QGridLayout(self), *rows)
        grid.setContentsMargins(0, 0, 0, 0)
        return grid

    def make_button(self, text: str, tooltip: str, act: Callable[[], None]) -> QPushButton:
        """A button; the tooltip is one sentence."""
        return button(text, tooltip, self._reporting(act))

    def make_key_button(self, command: str) -> QPushButton:
        """A button for the action of a key, named and described by `KEYS`."""
        act = self.key_actions.get(command) or self._session.inputs.actions[command]
        return self.make_button(KEYS[command].button, KEYS[command].action, act)

    def make_check_box(
        self,
        text: str,
        tooltip: str,
        changed: Callable[[bool], None] = lambda is_checked: None,
        is_checked: bool = False,
    ) -> QCheckBox:
        """A check box."""
        box = _unfocusable(QCheckBox(text), tooltip)
        box.setChecked(is_checked)
        box.toggled.connect(self._reporting(changed))
        return box

    def make_slider(self, tooltip: str, changed: Callable[[float], None]) -> QSlider:
        """A slider from 0 to 1; `changed` is called with the value."""
        slider = _unfocusable(QSlider(Qt.Orientation.Horizontal), tooltip)
        slider.setRange(0, SLIDER_STEPS)
        slider.valueChanged.connect(self._reporting(lambda value: changed(value / SLIDER_STEPS)))
        return slider

    def make_number(
        self,
        low: float,
        high: float,
        value: float,
        tooltip: str,
        changed: Callable[[float], None] = lambda value: None,
        suffix: str = '',
        step: float = 1,
    ) -> QSpinBox | QDoubleSpinBox:
        """A spin box for integers, or with two decimals if `value` is a float."""
        box = QDoubleSpinBox() if isinstance(value, float) else QSpinBox()
        box.setRange(low, high)
        box.setSingleStep(step)
        box.setValue(value)
        box.setSuffix(suffix)
        box.setToolTip(tooltip)
        box.valueChanged.connect(self._reporting(changed))
        return box

    def make_choice(
        self,
        tooltip: str,
        changed: Callable[[Any], None] = lambda value: None,
        items: Mapping[Any, str] | None = None,
        characters: int | None = None,
    ) -> QComboBox:
        """A combo box; the data of each entry is a value.

        Args:
            tooltip: One sentence.
            changed: Called with the value of the chosen entry.
            items: Text of the entries, by value; the first one is chosen.
            characters: Minimum number of characters shown; by default the length of the longest entry.
        """
        choice = _unfocusable(QComboBox(), tooltip)
        if characters is not None:
            choice.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
            choice.setMinimumContentsLength(characters)
        if items:
            set_items(choice, items, next(iter(items)))
        choice.currentIndexChanged.connect(self._reporting(lambda _index: changed(choice.currentData())))
        return choice

    def make_brightness_choice(
        self, chosen: Brightness, changed: Callable[[Any], None] = lambda value: None
    ) -> QComboBox:
        """A combo box for the brightness of objects; the data of each entry is a `Brightness`."""
        tooltip = 'Brightness of objects relative to their surroundings; "Bright or dark" decides by the image'
        made = self.make_choice(tooltip, changed, characters=_BRIGHTNESS_CHARACTERS)
        set_items(made, {one: one.value.capitalize() for one in Brightness}, chosen)
        return made

    def _reporting(self, act: Callable) -> Callable:
        return self._session.controller.reporting(act)


def button(text: str, tooltip: str, act: Callable[[], None]) -> QPushButton:
    """A button without keyboard focus, so that the keys shown on buttons reach the canvas."""
    made = _unfocusable(QPushButton(text), tooltip)
    made.clicked.connect(lambda *_: act())
    return made


def move(slider: QSlider, value: float) -> None:
    """Moves a slider to a value in [0, 1] without emitting a signal."""
    with QSignalBlocker(slider):
        slider.setValue(round(value * SLIDER_STEPS))


def set_items(choice: QComboBox, items: Mapping[Any, str], current: Any) -> None:
    """Sets the entries of a combo box, text by value, and chooses `current` if present; emits no signal."""
    with QSignalBlocker(choice):
        choice.clear()
        for value, text in items.items():
            choice.addItem(text, value)
        choice.setCurrentIndex(list(items).index(current) if current in items else -1)


class JobBar(QProgressBar):
    """Progress bar of a job."""

    def __init__(self) -> None:
        super().__init__()
        self.setRange(0, SLIDER_STEPS)

    def show_progress(self, fraction: float, text: str) -> None:
        """Shows the fraction done and a text."""
        self.setValue(round(SLIDER_STEPS * fraction))
        caption = text[:1].upper() + text[1:]
        # The first step can be the longest; 0 % would look stuck.
        self.setFormat(f'{caption}  %p%' if fraction else f'{caption} ...')


def wrapping_label(text: str = '') -> QLabel:
    """A label with line wrapping."""
    label = QLabel(text)
    label.setWordWrap(True)
    return label


def group(title: str, *rows: Row) -> QGroupBox:
    """A box with a title and rows of controls."""
    box = QGroupBox(title)
    fill(QGridLayout(box), *rows)
    return box


def fill(grid: QGridLayout, *rows: Row) -> QGridLayout:
    """Adds rows of controls to a grid; returns the grid."""
    width = max(map(len, rows))
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            place = number, column, 1, width - column if column == len(row) - 1 else 1
            if isinstance(cell, QLayout):
                grid.addLayout(cell, *place)
            elif isinstance(cell, str):
                label = QLabel(cell)
                label.setBuddy(row[column + 1])  # makes the label the name of the control for screen readers
                grid.addWidget(label, *place)
            elif cell is not None:
                grid.addWidget(cell, *place)
    return grid


def _unfocusable(control: Control, tooltip: str) -> Control:
    """Sets the tooltip of a control, which no longer takes the keyboard focus; returns the control."""
    control.setToolTip(tooltip)
    control.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return control
