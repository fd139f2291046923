"""Prompts as plain values: clicks, boxes, outlines, scribbles, pending objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

Position = tuple[float, ...]


class Polarity(Enum):
    """Whether a click is on the object or the background; the values are the models' point labels."""

    POSITIVE = 1
    NEGATIVE = 0

    def flipped(self) -> Polarity:
        """The other polarity."""
        return Polarity.NEGATIVE if self is Polarity.POSITIVE else Polarity.POSITIVE


class ShapeKind(Enum):
    """Kind of a drawn shape."""

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
class PendingObject:
    """An object that is kept for a later commit, with its mask.

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


Prompt = PointPrompt | ShapePrompt | PendingObject


@dataclass(frozen=True)
class Prompts:
    """All prompts on one image, on any plane, and the number of the next object.

    Attributes:
        points: Clicks in their order.
        shapes: Drawn shapes in their order.
        object_id: The object that the next prompt is about.
        pending: Objects kept for a later commit, in their order; their clicks and shapes are kept too.
    """

    points: tuple[PointPrompt, ...] = ()
    shapes: tuple[ShapePrompt, ...] = ()
    object_id: int = 1
    pending: tuple[PendingObject, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.points or self.shapes or self.pending)

    def current(self) -> Prompts:
        """Of prompts on one plane those of the latest object that is not pending."""
        pending = {one.object_id for one in self.pending}
        begun = {prompt.object_id for prompt in (*self.points, *self.shapes)} - pending
        latest = max(begun, default=self.object_id)
        return replace(self.keeping(lambda prompt: prompt.object_id == latest), object_id=latest)

    def keeping(self, condition: Callable[[Prompt], bool]) -> Prompts:
        """The prompts that fulfil a condition."""
        parts = {name: tuple(filter(condition, getattr(self, name))) for name in ('points', 'shapes', 'pending')}
        return replace(self, **parts)

    def without(self, others: Prompts) -> Prompts:
        """The prompts that are not among others."""
        removed = {*others.points, *others.shapes, *others.pending}
        return self.keeping(lambda prompt: prompt not in removed)
