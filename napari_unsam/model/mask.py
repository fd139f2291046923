"""Masks of a plane as the engines find them, each in its box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unsam_mm.masks.granularity import area_granularity
from unsam_mm.masks.hierarchy import MaskHierarchy


@dataclass(frozen=True, eq=False)
class PlaneMask:
    """One mask of a plane.

    Attributes:
        box_xyxy: Its bounding box in pixels of the plane; right and bottom edges exclusive.
        mask: (height, width) bool, the mask within the box.
        area_px: Its area in pixels.
        granularity: In [0, 1] by its share of the plane, see `unsam_mm.masks.granularity`; 1 is the whole plane.
        score: In [0, 1]; how likely it is meant.
        node: Its node of the plane's hierarchy, if it is one of its main tree.
    """

    box_xyxy: tuple[int, int, int, int]
    mask: np.ndarray
    area_px: int
    granularity: float
    score: float
    node: int | None = None


def node_mask(hierarchy: MaskHierarchy, node: int) -> PlaneMask:
    """A node of a hierarchy, drawn within its box."""
    x0, y0, x1, y1 = box = tuple(int(edge) for edge in hierarchy.boxes_xyxy[node])
    leaves = hierarchy.leaf_labels[y0:y1, x0:x1]
    return PlaneMask(
        box_xyxy=box,
        mask=(leaves >= hierarchy.first_leaf[node]) & (leaves < hierarchy.last_leaf[node]),
        area_px=int(hierarchy.area[node]),
        granularity=float(hierarchy.granularity[node]),
        score=float(hierarchy.score[node]),
        node=int(node),
    )


def found_mask(hierarchy: MaskHierarchy, mask: np.ndarray, left: int, top: int, score: float) -> PlaneMask:
    """A mask that an engine found, with the node of the main tree that it is, if any.

    Args:
        hierarchy: Of the plane.
        mask: (h, w) bool mask within its bounding box, not empty.
        left: Column of the plane where the box begins.
        top: Row of the plane where it begins.
        score: In [0, 1].
    """
    height, width = mask.shape
    leaves = hierarchy.leaf_labels[top : top + height, left : left + width][mask]
    first, last, area = int(leaves.min()), int(leaves.max()) + 1, len(leaves)
    path = [first]
    while (up := int(hierarchy.parent[path[-1]])) >= 0:
        path.append(up)
    areas = hierarchy.area[path]
    at = int(np.searchsorted(areas, area))
    node = path[at] if at < len(path) and areas[at] == area and hierarchy.last_leaf[path[at]] == last else None
    granularity = float(area_granularity(area, hierarchy.leaf_labels.size))
    return PlaneMask((left, top, left + width, top + height), mask, area, granularity, float(score), node)
