"""Controls that all sections of the dock share."""

from __future__ import annotations

from qtpy.QtCore import Qt
from qtpy.QtWidgets import QPushButton


def button(text: str, tooltip: str) -> QPushButton:
    """A button that leaves the keyboard to the canvas, so that the keys shown on buttons reach it.

    Args:
        text: What the button does, with its key in brackets if it has one.
        tooltip: One sentence.
    """
    made = QPushButton(text)
    made.setToolTip(tooltip)
    made.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    return made
