"""The section for prompts: clicks, boxes, outlines, scribbles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QButtonGroup, QCheckBox, QGridLayout, QHBoxLayout, QLabel, QPushButton, QRadioButton, QWidget

from napari_unsam.keys import KEYS
from napari_unsam.model.prompts import Polarity, ShapeKind
from napari_unsam.qt.controls import button, key_button
from napari_unsam.viewer.layers import COLOURS

if TYPE_CHECKING:
    from napari_unsam.viewer.session import ViewerSession

_MARKS = {Polarity.POSITIVE: '●', Polarity.NEGATIVE: '◆'}
_MAX_CHARACTERS = 30  # of what was done are shown on a button
_TOOLS = {
    ShapeKind.BOX: ('Box', 'Drag a box around the object'),
    ShapeKind.OUTLINE: ('Lasso', 'Draw around the object, mouse button down'),
    ShapeKind.SCRIBBLE: ('Scribble', 'Draw a line on the object or the background, mouse button down'),
}


class PromptPanel(QWidget):
    """The prompts.

    Args:
        session: What to control.
    """

    title = 'Prompts'

    def __init__(self, session: ViewerSession) -> None:
        super().__init__()
        self._session = session
        self.prompting_box = QCheckBox('Click on the image to prompt')
        self.prompting_box.setChecked(session.inputs.prompting)
        self.prompting_box.setToolTip('Works while the selected layer is in pan/zoom mode')
        self.prompting_box.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.polarity_buttons = {
            polarity: QRadioButton(text)
            for polarity, text in ((Polarity.POSITIVE, 'Object'), (Polarity.NEGATIVE, 'Background'))
        }
        self.tool_buttons = {kind: _tool(text, tooltip) for kind, (text, tooltip) in _TOOLS.items()}
        self.undo_button, self.redo_button = key_button('undo'), key_button('redo')
        self.next_button, self.clear_button = key_button('next_object'), key_button('clear_prompts')
        self._lay_out()
        self._connect()
        self.show_state()

    def show_state(self) -> None:
        """Shows the state of the controller."""
        controller, history = self._session.controller, self._session.history
        self.polarity_buttons[controller.polarity].setChecked(True)
        for key, one, name in (
            (KEYS['undo'], self.undo_button, history.undo_name),
            (KEYS['redo'], self.redo_button, history.redo_name),
        ):
            one.setEnabled(name is not None)
            one.setText(key._replace(label=f'{key.label} {_elided(name)}').button if name else key.button)
            one.setToolTip(f'{key.action}: {name}' if name else key.action)
        self.next_button.setEnabled(controller.proposal is not None)
        self.clear_button.setEnabled(bool(controller.prompts))

    def _lay_out(self) -> None:
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.addWidget(self.prompting_box, 0, 0, 1, 2)
        row = QHBoxLayout()
        self._polarity_group = QButtonGroup(self)
        for polarity, mark in _MARKS.items():
            swatch = QLabel(mark)
            swatch.setStyleSheet(f'color: {COLOURS[polarity]}; background: white; border-radius: 3px;')
            swatch.setFixedWidth(swatch.fontMetrics().horizontalAdvance(mark) + 8)
            swatch.setAlignment(Qt.AlignmentFlag.AlignCenter)
            chosen = self.polarity_buttons[polarity]
            chosen.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            chosen.setToolTip(f'{KEYS["switch_polarity"].action}; Shift-click or right-click for the other')
            self._polarity_group.addButton(chosen)
            row.addWidget(swatch)
            row.addWidget(chosen)
            row.addSpacing(8)
        row.addWidget(QLabel(KEYS['switch_polarity'].button))
        row.addStretch()
        grid.addLayout(row, 1, 0, 1, 2)
        tools = QHBoxLayout()
        for tool in self.tool_buttons.values():
            tools.addWidget(tool)
        grid.addLayout(tools, 2, 0, 1, 2)
        grid.addWidget(self.next_button, 3, 0, 1, 2)
        grid.addWidget(self.undo_button, 4, 0, 1, 2)
        grid.addWidget(self.redo_button, 5, 0, 1, 2)
        grid.addWidget(self.clear_button, 6, 0, 1, 2)

    def _connect(self) -> None:
        session, controller = self._session, self._session.controller
        self.prompting_box.toggled.connect(lambda checked: setattr(session.inputs, 'prompting', checked))
        for polarity, chosen in self.polarity_buttons.items():
            chosen.clicked.connect(lambda _checked, polarity=polarity: controller.set_polarity(polarity))
        for kind, tool in self.tool_buttons.items():
            tool.clicked.connect(lambda checked, kind=kind: self._take(kind if checked else None))
        self.next_button.clicked.connect(lambda: session.next_object())
        self.undo_button.clicked.connect(lambda: controller.undo())
        self.redo_button.clicked.connect(lambda: controller.redo())
        self.clear_button.clicked.connect(lambda: controller.clear_prompts())
        controller.state_changed.connect(self.show_state)
        session.tool_changed.connect(self._show_tool)

    def _take(self, kind: ShapeKind | None) -> None:
        self._session.draw(kind)
        self._show_tool(self._session.tool)

    def _show_tool(self, kind: ShapeKind | None) -> None:
        for one, tool in self.tool_buttons.items():
            tool.setChecked(one is kind)


def _elided(name: str) -> str:
    """A name so short that a button with it does not widen the dock."""
    return name if len(name) <= _MAX_CHARACTERS else f'{name[: _MAX_CHARACTERS - 1].rstrip()}…'


def _tool(text: str, tooltip: str) -> QPushButton:
    tool = button(text, f'{tooltip}; press again to return to clicks')
    tool.setCheckable(True)
    return tool
