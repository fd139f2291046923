"""Links regions of slices or frames to objects by their overlap.

The regions of two slices are paired by the assignment with the largest sum of IoUs. An object may be missing in a few
slices in a row (`LinkSettings.max_gap`), so that one missed slice does not cut it in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LinkSettings:
    """When regions are linked.

    Attributes:
        min_iou: Minimum IoU of two linked regions.
        max_gap: Maximum number of slices in a row in which an object may be missing.
        min_extent: Minimum number of slices that contain an object; objects in fewer slices are dropped.
    """

    min_iou: float = 0.3
    max_gap: int = 2
    min_extent: int = 2


@dataclass(frozen=True, eq=False)
class LinkedRegion:
    """One region of one slice, as a part of an object.

    Attributes:
        z: Index of the slice.
        region: Label of the region in that slice.
        iou: IoU with the previous region of the object; 1 for the first.
    """

    z: int
    region: int
    iou: float


def overlaps(labels: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of regions of two (H, W) label maps that share pixels; 0 is background.

    Returns:
        (P, 2) labels of the pairs, (P,) their intersections in pixels, and for each map the areas in pixels by label.
    """
    labels, others = np.asarray(labels, np.int64), np.asarray(others, np.int64)
    areas, other_areas = np.bincount(labels.ravel()), np.bincount(others.ravel())
    both = (labels > 0) & (others > 0)
    codes, shared = np.unique(labels[both] * len(other_areas) + others[both], return_counts=True)
    return np.stack(np.divmod(codes, len(other_areas)), axis=1), shared, areas, other_areas


def overlap_ious(labels: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, 2) labels and (P,) IoUs of the pairs that `overlaps` finds in two (H, W) label maps; 0 is background."""
    pairs, shared, areas, other_areas = overlaps(labels, others)
    return pairs, shared / (areas[pairs[:, 0]] + other_areas[pairs[:, 1]] - shared)


def link(label_maps: Sequence[np.ndarray], settings: LinkSettings = LinkSettings()) -> list[list[LinkedRegion]]:
    """Links regions to objects.

    Args:
        label_maps: Z label maps (H, W) of one size; 0 is background.
        settings: When regions are linked.

    Returns:
        The regions of each object, at most one per slice, sorted by slice. The objects are sorted by their first slice,
        then by their region in it.
    """
    objects: list[list[LinkedRegion]] = []
    of_region: dict[tuple[int, int], list[LinkedRegion]] = {}
    for z, labels in enumerate(label_maps):
        free = set(np.unique(labels).tolist()) - {0}
        for gap in range(1, settings.max_gap + 2):
            if z - gap < 0:
                break
            for region, other, iou in _best_pairs(label_maps[z - gap], labels, settings.min_iou):
                # Skips regions that belong to an object already, and objects that continue in a slice in between.
                linked = of_region.get((z - gap, region))
                if other in free and linked is not None and linked[-1].z == z - gap:
                    free.discard(other)
                    linked.append(LinkedRegion(z, other, iou))
                    of_region[z, other] = linked
        for region in sorted(free):
            begun = [LinkedRegion(z, region, 1.0)]
            objects.append(begun)
            of_region[z, region] = begun
    return [regions for regions in objects if len(regions) >= settings.min_extent]


def _best_pairs(labels: np.ndarray, others: np.ndarray, min_iou: float) -> list[tuple[int, int, float]]:
    """The one-to-one pairs of regions with the largest sum of IoUs; each pair has an IoU of at least `min_iou`."""
    from scipy.optimize import linear_sum_assignment  # slow to import, so not when the dock opens

    pairs, ious = overlap_ious(labels, others)
    pairs, ious = pairs[ious >= min_iou], ious[ious >= min_iou]
    if len(pairs) == 0:
        return []
    left, rows = np.unique(pairs[:, 0], return_inverse=True)
    right, columns = np.unique(pairs[:, 1], return_inverse=True)
    table = np.zeros((len(left), len(right)))
    table[rows, columns] = ious
    chosen = zip(*linear_sum_assignment(table, maximize=True), strict=True)
    return [(int(left[i]), int(right[j]), float(table[i, j])) for i, j in chosen if table[i, j] > 0]
