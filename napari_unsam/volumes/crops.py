"""Masks of one plane, each in its box."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class CropMask:
    """A mask of a plane, kept in its box.

    Attributes:
        box_xyxy: The box in pixels of the plane; right and bottom edges exclusive.
        mask: (height, width) bool, the mask within the box.
    """

    box_xyxy: tuple[int, int, int, int]
    mask: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, top: int = 0, left: int = 0) -> CropMask:
        """The tight crop of a bool mask whose first pixel is (top, left) of the plane; of no pixels if it is empty."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows) == 0:
            return EMPTY
        y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        return cls((x0 + left, y0 + top, x1 + left, y1 + top), np.ascontiguousarray(mask[y0:y1, x0:x1], bool))

    @cached_property
    def area_px(self) -> int:
        """Area in pixels."""
        return int(np.count_nonzero(self.mask))

    def within(self, box_xyxy: tuple[int, int, int, int]) -> np.ndarray:
        """(h, w) bool of another box of the plane: what the mask has there."""
        x0, y0, x1, y1 = box_xyxy
        out = np.zeros((y1 - y0, x1 - x0), bool)
        left, top, right, bottom = self.box_xyxy
        a, b, c, d = max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)
        if a < c and b < d:
            out[b - y0 : d - y0, a - x0 : c - x0] = self.mask[b - top : d - top, a - left : c - left]
        return out

    def intersection(self, other: CropMask) -> int:
        """How many pixels both hold."""
        return int(np.count_nonzero(other.within(self.box_xyxy) & self.mask)) if self.area_px else 0

    def iou(self, other: CropMask) -> float:
        """Intersection over union; 0 if both are empty."""
        shared = self.intersection(other)
        return shared / max(self.area_px + other.area_px - shared, 1)


EMPTY = CropMask((0, 0, 0, 0), np.zeros((0, 0), bool))
