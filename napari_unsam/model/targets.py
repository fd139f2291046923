"""The target, the current mask, and the status line."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from napari_unsam.model.mask import BoxMask
from napari_unsam.model.pixels import PlanePixels
from napari_unsam.model.plane import Plane


@dataclass(frozen=True)
class Target:
    """The plane of an image to segment.

    Attributes:
        source: Identifies the image.
        plane: The plane.
        name: Name of the image.
        pixels: Returns lazy arrays of the pixels of the plane, at full resolution and at coarser ones; called in the inference
            thread.
    """

    source: Hashable
    plane: Plane
    name: str = field(compare=False)
    pixels: Callable[[], list[PlanePixels]] = field(compare=False)

    def read(self) -> np.ndarray:
        """(H, W) or (H, W, 3) the pixels at full resolution."""
        return self.pixels()[0][:, :]


@dataclass(frozen=True, eq=False)
class Proposal(BoxMask):
    """The current mask.

    Attributes:
        plane: The plane of the mask.
        rank: Its rank among the masks to choose from, from 1, the finest; 0 if it is none of them.
        count: Number of masks to choose from.
    """

    _: KW_ONLY
    plane: Plane
    rank: int = 0
    count: int = 0


@dataclass(frozen=True)
class Status:
    """The status line."""

    text: str
    is_problem: bool = False
