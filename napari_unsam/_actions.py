"""What a user does, as actions that can be taken back."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from napari_unsam._candidates import Place
from napari_unsam._prompts import Prompts

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

T = TypeVar('T')
Situation = Hashable
"""Which prompts on which plane a mask answers."""
Show = Callable[[Situation, Place], None]


@dataclass(frozen=True, eq=False)
class Change(Generic[T]):
    """Something that had one value and has another.

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
    """Other prompts on one image; taken back, the mask is there again that the user had chosen.

    Attributes:
        show: Has a mask on screen, where it answers what is asked.
        situation: Before the change.
        place: Of the mask on screen before the change.
    """

    show: Show
    situation: Situation
    place: Place

    def undo(self) -> None:
        """Puts the old prompts back."""
        super().undo()
        self.show(self.situation, self.place)


@dataclass(frozen=True, eq=False)
class MaskChoice:
    """Another mask in answer to the same prompts. Several in a row are one action: a slider makes dozens.

    Attributes:
        situation: That the masks answer.
        show: Has a mask on screen, where it answers what is asked.
        before: Which was on screen.
        after: Which is.
    """

    name: ClassVar[str] = 'choice of a mask'
    situation: Situation
    show: Show
    before: Place
    after: Place

    def do(self) -> None:
        """Shows the chosen mask."""
        self.show(self.situation, self.after)

    def undo(self) -> None:
        """Shows the one before."""
        self.show(self.situation, self.before)

    def joined(self, later: object) -> MaskChoice | None:
        """This and a later choice as one."""
        if not isinstance(later, MaskChoice) or later.situation != self.situation:
            return None
        return MaskChoice(self.situation, self.show, self.before, later.after)


class AddLayers:
    """Layers added to a viewer.

    Args:
        name: What the user did.
        viewer: Where to.
        layers: The lowest first.
    """

    def __init__(self, name: str, viewer: ViewerModel, layers: Sequence[Layer]) -> None:
        self.name, self._viewer, self._layers = name, viewer, tuple(layers)

    def do(self) -> None:
        """Adds them."""
        for layer in self._layers:
            self._viewer.add_layer(layer)

    def undo(self) -> None:
        """Removes those that are still there."""
        for layer in self._layers:
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)
