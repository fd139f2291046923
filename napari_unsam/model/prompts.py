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
class SetAside:
    """An object that waits to be committed, with the mask that it had when the user went on to another one.

    Attributes:
        object_id: Which of the user's objects on its plane it is; its prompts have the same.
        axes: The two axes of the image that its plane spans, ascending.
        index: Where its plane lies, one number per axis of the image.
        box_xyxy: Of the mask, in pixels of the plane; right and bottom edges exclusive.
        counts: The mask in that box, as compressed run lengths in the manner of COCO.
        granularity: In [0, 1].
        score: In [0, 1].
    """

    object_id: int
    axes: tuple[int, int]
    index: tuple[int, ...]
    box_xyxy: tuple[int, int, int, int]
    counts: str
    granularity: float
    score: float


Prompt = PointPrompt | ShapePrompt | SetAside


@dataclass(frozen=True)
class Prompts:
    """All that the user has pointed at on one image, on any plane, and which object comes next.

    Attributes:
        points: Clicks in their order.
        shapes: Drawn shapes in their order.
        object_id: The object that the next prompt is about.
        asides: Objects that were set aside, in their order; clicks and shapes about them are kept.
    """

    points: tuple[PointPrompt, ...] = ()
    shapes: tuple[ShapePrompt, ...] = ()
    object_id: int = 1
    asides: tuple[SetAside, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.points or self.shapes or self.asides)

    def at_hand(self) -> Prompts:
        """Of prompts on one plane those about the latest object that was not set aside."""
        aside = {one.object_id for one in self.asides}
        begun = {prompt.object_id for prompt in (*self.points, *self.shapes)} - aside
        latest = max(begun, default=self.object_id)
        return replace(self.keeping(lambda prompt: prompt.object_id == latest), object_id=latest)

    def keeping(self, wanted: Callable[[Prompt], bool]) -> Prompts:
        """Those that a test holds for."""
        parts = {name: tuple(filter(wanted, getattr(self, name))) for name in ('points', 'shapes', 'asides')}
        return replace(self, **parts)

    def without(self, others: Prompts) -> Prompts:
        """Those that are not among others."""
        gone = {*others.points, *others.shapes, *others.asides}
        return self.keeping(lambda prompt: prompt not in gone)
