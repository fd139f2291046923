"""Values that the modules exchange: target, current mask, status."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from napari_unsam.model.plane import Plane

if TYPE_CHECKING:
    from napari_unsam.model.mask import PlaneMask
    from napari_unsam.model.pixels import PlanePixels


@dataclass(frozen=True)
class Target:
    """What is being segmented: one plane of one image.

    Attributes:
        source: Identifies the image.
        plane: The plane of it.
        name: What the user calls the image.
        read: Gives the pixels of the plane for the model; called in the inference thread.
        pixels: Gives the same pixels part by part, at several resolutions if there are any; None where only `read` does.
    """

    source: Hashable
    plane: Plane
    name: str = field(compare=False)
    read: Callable[[], np.ndarray] = field(compare=False)
    pixels: Callable[[], list[PlanePixels]] | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class Proposal:
    """The current mask.

    Attributes:
        plane: The plane that it lies in.
        box_xyxy: Its bounding box in that plane, in pixels; right and bottom edges exclusive.
        mask: (height, width) bool, the mask within the box.
        area_px: Its area in pixels.
        granularity: In [0, 1] by its share of the plane, see `unsam_mm.masks.granularity`; 1 is the whole plane.
        score: In [0, 1]; how much the mask looks like an object.
        rank: Its place among the masks to choose from, 1 being the finest; 0 if it lies between them.
        count: How many masks there are to choose from.
        node: Its node of the plane's hierarchy, if it is one.
    """

    plane: Plane
    box_xyxy: tuple[int, int, int, int]
    mask: np.ndarray
    area_px: int
    granularity: float
    score: float
    rank: int
    count: int
    node: int | None = None

    @classmethod
    def of(cls, found: PlaneMask, plane: Plane, rank: int, count: int) -> Proposal:
        """A mask that was found on a plane; see the attributes."""
        parts = found.box_xyxy, found.mask, found.area_px, found.granularity, found.score
        return cls(plane, *parts, rank, count, found.node)


class Level(Enum):
    """How urgent a status line is."""

    INFO = 'info'
    PROBLEM = 'problem'


@dataclass(frozen=True)
class Status:
    """One line for the user."""

    text: str
    level: Level = Level.INFO
