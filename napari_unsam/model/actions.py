"""Actions that can be undone."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from napari_unsam.model.candidates import Place
from napari_unsam.model.prompts import Prompts

T = TypeVar('T')
PromptState = Hashable
"""Which prompts on which plane a mask answers."""
Show = Callable[[PromptState, Place], None]


@dataclass(frozen=True, eq=False)
class Change(Generic[T]):
    """A change of a value.

    Attributes:
        name: What the user did.
        put: Gives it a value.
        before: The value that it had.
        after: The value that it has.
    """

    name: str
    put: Callable[[T], None]
    before: T
    after: T

    def do(self) -> None:
        """Gives it the new value."""
        self.put(self.after)

    def undo(self) -> None:
        """Gives it the old value."""
        self.put(self.before)


@dataclass(frozen=True, eq=False)
class PromptsChange(Change[Prompts]):
    """A change of the prompts of one image; undo also restores the chosen mask.

    Attributes:
        show: Has a mask on screen, where it answers what is asked.
        prompt_state: Before the change.
        place: Of the current mask before the change.
    """

    show: Show
    prompt_state: PromptState
    place: Place

    @property
    def nbytes(self) -> int:
        """Bytes of the mask that is kept."""
        return _nbytes(self.place)

    def undo(self) -> None:
        """Puts the old prompts back."""
        super().undo()
        self.show(self.prompt_state, self.place)


@dataclass(frozen=True, eq=False)
class MaskChoice:
    """Another mask in answer to the same prompts. Several in a row are one action: a slider makes dozens.

    Attributes:
        prompt_state: That the masks answer.
        show: Has a mask on screen, where it answers what is asked.
        before: Which was on screen.
        after: Which is.
    """

    name: ClassVar[str] = 'choose mask'
    prompt_state: PromptState
    show: Show
    before: Place
    after: Place

    @property
    def nbytes(self) -> int:
        """Bytes of the masks that are kept."""
        return _nbytes(self.before) + _nbytes(self.after)

    def do(self) -> None:
        """Shows the chosen mask."""
        self.show(self.prompt_state, self.after)

    def undo(self) -> None:
        """Shows the one before."""
        self.show(self.prompt_state, self.before)

    def joined(self, later: object) -> MaskChoice | None:
        """This and a later choice as one."""
        if not isinstance(later, MaskChoice) or later.prompt_state != self.prompt_state:
            return None
        return MaskChoice(self.prompt_state, self.show, self.before, later.after)


def _nbytes(place: Place) -> int:
    mask = place[2]
    return 0 if mask is None else mask.mask.nbytes
