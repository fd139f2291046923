"""Masks of a plane, each stored within its bounding box."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from unsam_mm.masks.granularity import area_granularity
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.ops import extent
from unsam_mm.masks.rle import decode_crop

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels of the plane; right and bottom edges exclusive."""


@dataclass(frozen=True, eq=False)
class BoxMask:
    """A mask of a plane, stored within its bounding box.

    Attributes:
        box_xyxy: The box in pixels of the plane; right and bottom edges exclusive.
        mask: (height, width) bool, the mask within the box.
        granularity: In [0, 1], see `unsam_mm.masks.granularity`; 1 is the whole plane.
        score: In [0, 1].
        node: The node of the main tree of the plane with the same pixels; None if there is none.
    """

    box_xyxy: Box
    mask: np.ndarray
    granularity: float = 0.0
    score: float = 0.0
    node: int | None = None

    @classmethod
    def of(cls, mask: np.ndarray, top: int = 0, left: int = 0) -> BoxMask:
        """Crops an (h, w) bool mask whose first pixel is at (top, left) of the plane; `EMPTY` if no pixel is set.

        The granularity and the score of the new mask are 0.
        """
        y0, y1, x0, x1 = extent(mask)
        if y0 == y1:
            return EMPTY
        return cls((x0 + left, y0 + top, x1 + left, y1 + top), np.ascontiguousarray(mask[y0:y1, x0:x1], bool))

    @cached_property
    def area_px(self) -> int:
        """Area in pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the box."""
        return box_slices(self.box_xyxy)

    def within(self, box_xyxy: Box) -> np.ndarray:
        """(h, w) bool, the mask in another box of the plane."""
        x0, y0, x1, y1 = box_xyxy
        out = np.zeros((y1 - y0, x1 - x0), bool)
        a, b, c, d = _shared_box(self.box_xyxy, box_xyxy)
        if a < c and b < d:
            left, top = self.box_xyxy[:2]
            out[b - y0 : d - y0, a - x0 : c - x0] = self.mask[b - top : d - top, a - left : c - left]
        return out

    def intersection(self, other: BoxMask) -> int:
        """Number of pixels in both masks."""
        return int(np.count_nonzero(other.within(self.box_xyxy) & self.mask)) if self.area_px else 0

    def iou(self, other: BoxMask) -> float:
        """Intersection over union; 0 if both are empty."""
        shared = self.intersection(other)
        return shared / max(self.area_px + other.area_px - shared, 1)

    def equals(self, other: BoxMask) -> bool:
        """True if both have the same pixels."""
        return self.area_px == other.area_px == self.intersection(other)

    def without(self, others: Iterable[BoxMask]) -> BoxMask:
        """The mask without the pixels of other masks; the same object if they share no pixel."""
        mask = self.mask
        for other in others:
            x0, y0, x1, y1 = _shared_box(self.box_xyxy, other.box_xyxy)
            if x0 < x1 and y0 < y1 and (shared := other.within(self.box_xyxy) & mask).any():
                mask = mask & ~shared
        return self if mask is self.mask else BoxMask.of(mask, self.box_xyxy[1], self.box_xyxy[0])


EMPTY = BoxMask((0, 0, 0, 0), np.zeros((0, 0), bool))


def _shared_box(one: Box, other: Box) -> Box:
    """The intersection of two boxes; if it is empty, right <= left or bottom <= top."""
    return max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])


def box_slices(box_xyxy: Iterable[int]) -> tuple[slice, slice]:
    """Rows and columns of a box."""
    x0, y0, x1, y1 = (int(edge) for edge in box_xyxy)
    return slice(y0, y1), slice(x0, x1)


def node_mask(hierarchy: MaskHierarchy, node: int) -> BoxMask:
    """The mask of a node of a hierarchy."""
    box = tuple(int(edge) for edge in hierarchy.boxes_xyxy[node])
    leaves = hierarchy.leaf_labels[box_slices(box)]
    return BoxMask(
        box_xyxy=box,
        mask=(leaves >= hierarchy.first_leaf[node]) & (leaves < hierarchy.end_leaf[node]),
        granularity=float(hierarchy.granularity[node]),
        score=float(hierarchy.score[node]),
        node=int(node),
    )


def predicted_mask(hierarchy: MaskHierarchy, mask: np.ndarray, left: int, top: int, score: float) -> BoxMask:
    """A mask that an engine predicted, with the node of the main tree that has the same pixels, if there is one.

    Args:
        hierarchy: The region trees of the plane.
        mask: (h, w) bool mask within its bounding box, not empty.
        left: First column of the box.
        top: First row of the box.
        score: In [0, 1].
    """
    height, width = mask.shape
    leaves = hierarchy.leaf_labels[top : top + height, left : left + width][mask]
    first, last, area = int(leaves.min()), int(leaves.max()) + 1, len(leaves)
    path = hierarchy.tree.path(first)
    equal = path[(hierarchy.area[path] == area) & (hierarchy.end_leaf[path] == last)]
    node = int(equal[0]) if len(equal) else None
    granularity = float(area_granularity(area, hierarchy.leaf_labels.size))
    return BoxMask((left, top, left + width, top + height), mask, granularity, float(score), node)


def free_parts(masks: Iterable[BoxMask], taken: np.ndarray, min_free: float) -> Iterator[tuple[int, BoxMask]]:
    """The free pixels of each mask; masks with too few free pixels are skipped.

    Args:
        masks: In the order of their priority.
        taken: (H, W) bool, True for pixels that are not free; the pixels of each yielded mask are added in place.
        min_free: Minimum share of a mask that has to be free, in [0, 1].

    Yields:
        The index of the mask, and its free pixels in the same box.
    """
    for number, mask in enumerate(masks):
        taken_here = taken[mask.slices]
        free = BoxMask(mask.box_xyxy, mask.mask & ~taken_here)
        if free.area_px >= min_free * mask.area_px:
            taken_here |= free.mask
            yield number, free


def draw_disjoint(masks: MaskSet, max_taken: float = 0.2) -> tuple[np.ndarray, list[int]]:
    """Draws masks without overlaps, the first in front; masks that are mostly covered by others are left out.

    Args:
        masks: In the order of their priority.
        max_taken: Maximum share of a mask that may be covered, in [0, 1].

    Returns:
        labels: (H, W) uint32; 0 is background.
        drawn: The index of the mask of each label, in the order of labels.
    """
    labels = np.zeros(masks.size_hw, np.uint32)
    drawn: list[int] = []
    boxes = [tuple(box) for box in masks.boxes_xyxy.astype(int).tolist()]
    crops = (BoxMask(box, decode_crop(rle, box)) for box, rle in zip(boxes, masks.rles, strict=True))
    for number, free in free_parts(crops, np.zeros(masks.size_hw, bool), 1 - max_taken):
        drawn.append(number)
        labels[free.slices][free.mask] = len(drawn)
    return labels, drawn
