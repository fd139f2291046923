"""The keys of the dock, one table for key bindings, buttons, messages and napari's commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

Actions = dict[str, Callable[[], None]]
"""The function of each command, by the name of the command."""


class Key(NamedTuple):
    """One row of the table.

    Attributes:
        key: The key in napari's notation; napari 0.9 itself does not bind it on any layer.
        label: Label of the button; empty if the key switches between two buttons.
        action: Tooltip of the button; with the key, title of the command `unsam_mm.<command>`.
    """

    key: str
    label: str
    action: str

    @property
    def button(self) -> str:
        """The text of the button: the label and the key."""
        return f'{self.label}  [{self.key}]'.lstrip()


KEYS = {
    'coarser': Key('J', 'Coarser', 'Show the next larger mask'),
    'finer': Key('K', 'Finer', 'Show the next smaller mask'),
    'commit': Key('N', 'Commit object', 'Save the mask as an object with a new label'),
    'next_object': Key('Shift-H', 'Next object', 'Keep this mask; start another object'),
    'switch_polarity': Key('G', '', 'Switch clicks between object and background'),
    'clear_prompts': Key('Q', 'Clear', 'Remove all prompts on this slice'),
    'undo': Key('U', 'Undo', 'Undo last action'),
    'redo': Key('Shift-U', 'Redo', 'Redo last undone action'),
    'split': Key('H', 'Split', 'Split object into parts'),
    'merge': Key('W', 'Merge', 'Merge into the larger object'),
    'find_similar': Key('Shift-F', 'Find similar', 'Find regions similar to this object'),
    'review': Key('Shift-N', 'Next', 'Review the next least certain object'),
    'propagate': Key('Shift-G', 'Propagate', 'Propagate object through slices'),
}
"""The rows of the table, by the name of the command."""

TO_UNDO = f'Press {KEYS["undo"].key} to undo.'
