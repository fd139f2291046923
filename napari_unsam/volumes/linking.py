"""Regions of single slices or frames, joined to objects: those that overlap most from one to the next are the same.

Neighbours are paired by the assignment with the largest sum of IoUs. An end for which nothing was found may go on one or
two slices later, so that a slice in which an object was missed does not cut it in two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unsam_mm.errors import UnSAMError


@dataclass(frozen=True)
class LinkSettings:
    """What counts as the same object.

    Attributes:
        min_iou: Of two regions that are linked.
        max_gap: How many slices an object may be missing in.
        min_extent: The fewest slices that an object is found in; what has fewer is left out.
    """

    min_iou: float = 0.3
    max_gap: int = 2
    min_extent: int = 2


@dataclass(frozen=True, eq=False)
class LinkedRegion:
    """One region of one slice, as a part of an object.

    Attributes:
        z: The slice.
        region: Its label in the label map of that slice.
        iou: With the region of the object before it; 1 for the first.
    """

    z: int
    region: int
    iou: float


def overlaps(labels: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Which regions of two (H, W) label maps share pixels; 0 is background.

    Returns:
        (P, 2) labels of the pairs, (P,) pixels that each shares, and the areas of the labels of both maps.
    """
    labels, others = np.asarray(labels, np.int64), np.asarray(others, np.int64)
    areas, other_areas = np.bincount(labels.ravel()), np.bincount(others.ravel())
    both = (labels > 0) & (others > 0)
    codes, shared = np.unique(labels[both] * len(other_areas) + others[both], return_counts=True)
    return np.stack(np.divmod(codes, len(other_areas)), axis=1), shared, areas, other_areas


def overlap_ious(labels: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which regions of two label maps overlap, and how much; 0 is background.

    Args:
        labels: (H, W) integers.
        others: (H, W) integers.

    Returns:
        (P, 2) labels of every pair that shares a pixel, and (P,) their IoU.
    """
    pairs, shared, areas, other_areas = overlaps(labels, others)
    return pairs, shared / (areas[pairs[:, 0]] + other_areas[pairs[:, 1]] - shared)


def link(label_maps: Sequence[np.ndarray], settings: LinkSettings = LinkSettings()) -> list[list[LinkedRegion]]:
    """Objects through the slices.

    Args:
        label_maps: Z label maps (H, W) of one size; 0 is background.
        settings: What counts as the same object.

    Returns:
        For each object its regions, at most one a slice, by slice; objects by first slice, then by region.

    Raises:
        UnSAMError: If the sizes differ.
    """
    sizes = {np.shape(labels) for labels in label_maps}
    if len(sizes) > 1:
        raise UnSAMError(f'the label maps of all slices must have one size, got {sorted(sizes)}')
    objects: list[list[LinkedRegion]] = []
    of_region: dict[tuple[int, int], list[LinkedRegion]] = {}
    for z, labels in enumerate(label_maps):
        free = set(np.unique(labels).tolist()) - {0}
        for gap in range(1, settings.max_gap + 2):
            if z - gap < 0:
                break
            for region, other, iou in _best_pairs(label_maps[z - gap], labels, settings.min_iou):
                # An object that went on already in between, or a region that has its object, is taken.
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
    """The pairs of regions, each in one pair at most, with the largest sum of IoUs that are large enough."""
    from scipy.optimize import linear_sum_assignment  # not where the dock would wait for it

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
