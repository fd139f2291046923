"""Prompts: clicks, boxes, outlines, scribbles, and pending objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

Position = tuple[float, ...]
"""A position in the frame of the image, one number per axis; whole numbers are pixel centres."""


class Polarity(Enum):
    """Whether a click is on the object or on the background; the values are the point labels of engines."""

    POSITIVE = 1
    NEGATIVE = 0

    def flipped(self) -> Polarity:
        """The other polarity."""
        return Polarity.NEGATIVE if self is Polarity.POSITIVE else Polarity.POSITIVE


class ShapeKind(Enum):
    """Kind of a drawn shape."""

    BOX = 'box'
    """The bounding box of the object."""
    OUTLINE = 'outline'
    """A rough outline of the object."""
    SCRIBBLE = 'scribble'
    """A line on the object or on the background."""


@dataclass(frozen=True)
class PointPrompt:
    """One click.

    Attributes:
        position: See `Position`.
        polarity: Object or background.
        object_id: Number of the object, from 1.
    """

    position: Position
    polarity: Polarity = Polarity.POSITIVE
    object_id: int = 1


@dataclass(frozen=True)
class ShapePrompt:
    """One drawn shape.

    Attributes:
        kind: Kind of the shape.
        vertices: Positions of the corners of a box or an outline, or of the points of a scribble.
        polarity: Only scribbles can be negative.
        object_id: Number of the object, from 1.
    """

    kind: ShapeKind
    vertices: tuple[Position, ...]
    polarity: Polarity = Polarity.POSITIVE
    object_id: int = 1


@dataclass(frozen=True)
class PendingObject:
    """An object that is to be committed later, with its mask.

    Attributes:
        object_id: Number of the object, the same as in its prompts.
        axes: See `Plane`.
        index: See `Plane`.
        box_xyxy: Box of the mask, in pixels of the plane; right and bottom edges exclusive.
        counts: The mask in that box as a compressed COCO RLE.
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
    """The prompts on one image, on any plane.

    Attributes:
        points: Clicks in the order in which they were made.
        shapes: Drawn shapes in the order in which they were drawn.
        object_id: Number of the object of the next prompt on a plane without an unfinished object, see `current`.
        pending: Objects that are to be committed later, in the order in which they were added; their prompts are in
            `points` and `shapes`.
    """

    points: tuple[PointPrompt, ...] = ()
    shapes: tuple[ShapePrompt, ...] = ()
    object_id: int = 1
    pending: tuple[PendingObject, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.points or self.shapes or self.pending)

    def current(self) -> Prompts:
        """The prompts of the latest object that is not pending; for prompts on a single plane, see `on_plane`."""
        pending = {one.object_id for one in self.pending}
        begun = {prompt.object_id for prompt in (*self.points, *self.shapes)} - pending
        latest = max(begun, default=self.object_id)
        return replace(self.filtered(lambda prompt: prompt.object_id == latest), object_id=latest)

    def filtered(self, condition: Callable[[Prompt], bool]) -> Prompts:
        """The prompts for which a condition is true."""
        parts = {name: tuple(filter(condition, getattr(self, name))) for name in ('points', 'shapes', 'pending')}
        return replace(self, **parts)

    def without(self, others: Prompts) -> Prompts:
        """The prompts that are not in `others`."""
        removed = {*others.points, *others.shapes, *others.pending}
        return self.filtered(lambda prompt: prompt not in removed)
