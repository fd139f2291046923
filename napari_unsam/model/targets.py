"""Values that the modules exchange: target, current mask, status."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from napari_unsam.model.mask import BoxMask
from napari_unsam.model.pixels import PlanePixels
from napari_unsam.model.plane import Plane


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
class Proposal(BoxMask):
    """The current mask.

    Attributes:
        plane: The plane that it lies in.
        rank: Its place among the masks to choose from, 1 being the finest; 0 if it lies between them.
        count: How many masks there are to choose from.
    """

    _: KW_ONLY
    plane: Plane
    rank: int = 0
    count: int = 0


@dataclass(frozen=True)
class Status:
    """One line for the user."""

    text: str
    is_problem: bool = False
