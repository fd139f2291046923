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
        source: Identifier of the image.
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
        """(H, W) or (H, W, 3) uint8 pixels at full resolution."""
        return self.pixels()[0][:, :]


@dataclass(frozen=True, eq=False)
class Proposal(BoxMask):
    """The current mask.

    Attributes:
        plane: The plane of the mask.
        rank: Rank by area among the masks to choose from, from 1, the smallest; 0 if the mask is none of them.
        count: Number of masks to choose from.
    """

    _: KW_ONLY
    plane: Plane
    rank: int = 0
    count: int = 0


@dataclass(frozen=True)
class Status:
    """The text of the status line; `is_problem` is True for errors and warnings."""

    text: str
    is_problem: bool = False
