"""What the user points at, as plain values: clicks, boxes, outlines and scribbles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

Position = tuple[float, ...]


class Polarity(Enum):
    """Whether a click says "the object is here" or "not this"; the values are the models' point labels."""

    POSITIVE = 1
    NEGATIVE = 0

    def flipped(self) -> Polarity:
        """The other polarity."""
        return Polarity.NEGATIVE if self is Polarity.POSITIVE else Polarity.POSITIVE


class ShapeKind(Enum):
    """What a drawn shape says of the object."""

    BOX = 'box'
    """It fills this box."""
    OUTLINE = 'outline'
    """It has about this outline."""
    SCRIBBLE = 'scribble'
    """It is, or is not, all along this line."""


@dataclass(frozen=True)
class PointPrompt:
    """One click.

    Attributes:
        position: Data coordinates in the image layer, one per axis; whole numbers are pixel centres.
        polarity: What the click says.
        object_id: Which of the user's objects it is about, counted from 1.
    """

    position: Position
    polarity: Polarity = Polarity.POSITIVE
    object_id: int = 1


@dataclass(frozen=True)
class ShapePrompt:
    """One drawn shape.

    Attributes:
        kind: What it says.
        vertices: Data coordinates of its corners, or along its line.
        polarity: Only scribbles can be negative.
        object_id: Which of the user's objects it is about, counted from 1.
    """

    kind: ShapeKind
    vertices: tuple[Position, ...]
    polarity: Polarity = Polarity.POSITIVE
    object_id: int = 1


@dataclass(frozen=True)
class Prompts:
    """All that the user has pointed at on one image, on any plane, and which object comes next.

    Attributes:
        points: Clicks in their order.
        shapes: Drawn shapes in their order.
        object_id: The object that the next prompt is about.
    """

    points: tuple[PointPrompt, ...] = ()
    shapes: tuple[ShapePrompt, ...] = ()
    object_id: int = 1

    def __bool__(self) -> bool:
        return bool(self.points or self.shapes)

    def of_object(self) -> Prompts:
        """Those about the object at hand."""
        return self.keeping(lambda prompt: prompt.object_id == self.object_id)

    def keeping(self, wanted: Callable[[PointPrompt | ShapePrompt], bool]) -> Prompts:
        """Those that a test holds for."""
        return replace(self, points=tuple(filter(wanted, self.points)), shapes=tuple(filter(wanted, self.shapes)))

    def without(self, others: Prompts) -> Prompts:
        """Those that are not among others."""
        gone = {*others.points, *others.shapes}
        return self.keeping(lambda prompt: prompt not in gone)
