"""The section for prompts: clicks, boxes, outlines, scribbles."""

from __future__ import annotations

from functools import partial

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QButtonGroup, QHBoxLayout, QLabel, QPushButton, QRadioButton

from napari_unsam.keys import KEYS
from napari_unsam.model.prompts import Polarity, ShapeKind
from napari_unsam.qt.controls import Panel
from napari_unsam.viewer.layers import COLOURS

_POLARITIES = {Polarity.POSITIVE: ('●', 'Object'), Polarity.NEGATIVE: ('◆', 'Background')}
_MAX_CHARACTERS = 30  # of an action's name on a button
_TOOLS = {
    ShapeKind.BOX: ('Box', 'Drag a box around the object'),
    ShapeKind.OUTLINE: ('Lasso', 'Hold the mouse button and draw around the object'),
    ShapeKind.SCRIBBLE: ('Scribble', 'Hold the mouse button and draw a line on the object or the background'),
}


class PromptPanel(Panel):
    """The prompts."""

    title = 'Prompts'

    def build(self) -> None:
        session = self._session
        self.prompting_box = self.make_check_box(
            'Click on the image to prompt',
            'Works while the selected layer is in pan/zoom mode',
            lambda is_checked: setattr(session.inputs, 'prompting', is_checked),
            session.inputs.prompting,
        )
        self.undo_button, self.redo_button = self.make_key_button('undo'), self.make_key_button('redo')
        self.next_button, self.clear_button = self.make_key_button('next_object'), self.make_key_button('clear_prompts')
        self.lay_out(
            [self.prompting_box],
            [self._polarity_row()],
            [self._tool_row()],
            [self.next_button],
            [self.undo_button],
            [self.redo_button],
            [self.clear_button],
        )
        self.subscribe(self.show_state, session.controller.state_changed)
        self.subscribe(self._show_tool, session.tool_changed)
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

    def _polarity_row(self) -> QHBoxLayout:
        row = QHBoxLayout()
        self.polarity_buttons: dict[Polarity, QRadioButton] = {}
        self._polarity_group = QButtonGroup(self)
        for polarity, (mark, text) in _POLARITIES.items():
            swatch = QLabel(mark)
            swatch.setStyleSheet(f'color: {COLOURS[polarity]}; background: white; border-radius: 3px;')
            swatch.setFixedWidth(swatch.fontMetrics().horizontalAdvance(mark) + 8)
            swatch.setAlignment(Qt.AlignmentFlag.AlignCenter)
            self.polarity_buttons[polarity] = chosen = QRadioButton(text)
            chosen.setFocusPolicy(Qt.FocusPolicy.NoFocus)
            chosen.setToolTip(f'{KEYS["switch_polarity"].action}; Shift-click or right-click for the other')
            chosen.clicked.connect(lambda *_, polarity=polarity: self._session.controller.set_polarity(polarity))
            self._polarity_group.addButton(chosen)
            row.addWidget(swatch)
            row.addWidget(chosen)
            row.addSpacing(8)
        row.addWidget(QLabel(KEYS['switch_polarity'].button))
        row.addStretch()
        return row

    def _tool_row(self) -> QHBoxLayout:
        row = QHBoxLayout()
        self.tool_buttons: dict[ShapeKind, QPushButton] = {}
        for kind, (text, tooltip) in _TOOLS.items():
            tool = self.make_button(
                text, f'{tooltip}; press again to return to clicks', partial(self._select_tool, kind)
            )
            tool.setCheckable(True)
            self.tool_buttons[kind] = tool
            row.addWidget(tool)
        return row

    def _select_tool(self, kind: ShapeKind) -> None:
        self._session.draw(kind if self.tool_buttons[kind].isChecked() else None)
        self._show_tool(self._session.tool)

    def _show_tool(self, kind: ShapeKind | None) -> None:
        for one, tool in self.tool_buttons.items():
            tool.setChecked(one is kind)


def _elided(name: str) -> str:
    """A name, shortened so that its button does not widen the dock."""
    return name if len(name) <= _MAX_CHARACTERS else f'{name[: _MAX_CHARACTERS - 1].rstrip()}…'
