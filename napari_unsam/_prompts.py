"""Clicks as plain values, and the history that undoes them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Polarity(Enum):
    """Whether a click says "the object is here" or "not this"; the values are the models' point labels."""

    POSITIVE = 1
    NEGATIVE = 0

    def flipped(self) -> Polarity:
        """The other polarity."""
        return Polarity.NEGATIVE if self is Polarity.POSITIVE else Polarity.POSITIVE


@dataclass(frozen=True)
class PointPrompt:
    """One click.

    Attributes:
        position: Data coordinates in the image layer, one per axis; whole numbers are pixel centres.
        polarity: What the click says.
    """

    position: tuple[float, ...]
    polarity: Polarity = Polarity.POSITIVE


class PromptHistory:
    """The current prompts and every earlier version of them."""

    def __init__(self) -> None:
        self._versions: list[tuple[PointPrompt, ...]] = [()]

    @property
    def current(self) -> tuple[PointPrompt, ...]:
        """The prompts now, in the order of clicking."""
        return self._versions[-1]

    @property
    def can_undo(self) -> bool:
        """Whether there is an earlier version."""
        return len(self._versions) > 1

    def replace(self, prompts: tuple[PointPrompt, ...]) -> bool:
        """Makes `prompts` the current ones; returns whether that changed anything."""
        if prompts == self.current:
            return False
        self._versions.append(prompts)
        return True

    def undo(self) -> bool:
        """Goes back one version; returns False if there is none."""
        if not self.can_undo:
            return False
        self._versions.pop()
        return True

    def reset(self) -> None:
        """Forgets the prompts and their history."""
        self._versions = [()]
