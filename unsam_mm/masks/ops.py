"""Operations on masks and boxes: boxes of bitmaps, overlaps of boxes, parents, and soft non-maximum suppression."""

from __future__ import annotations

import numba
import numpy as np


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Bounding box of an (H, W) bool mask: top, bottom, left, right, with exclusive ends; zeros if it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows) == 0:
        return 0, 0, 0, 0
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def mask_iou(mask: np.ndarray, other: np.ndarray) -> float:
    """IoU of two bool masks of the same shape; 0 if both are empty."""
    return np.count_nonzero(mask & other) / max(np.count_nonzero(mask | other), 1)


def box_intersections(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(N,) area that (N, 4) boxes x0, y0, x1, y1 share with a (4,) box."""
    low, high = np.maximum(boxes[:, :2], box[:2]), np.minimum(boxes[:, 2:], box[2:])
    return np.maximum(high - low, 0).prod(axis=1)


def box_iou(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(N,) IoU of (N, 4) boxes x0, y0, x1, y1 with a (4,) box."""
    overlap = box_intersections(boxes, box)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - overlap
    return overlap / np.maximum(union, 1e-9)


def parents_by_containment(inside: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """(N,) int64 parent of each mask: the smallest mask that contains it and has a larger area; -1 if none does.

    Of candidates of equal area, the first is the parent.

    Args:
        inside: (N, N) bool; True if mask i lies inside mask j.
        areas: (N,) int64 in pixels.
    """
    if len(areas) == 0:
        return np.zeros(0, np.int64)
    inside = inside & (areas[None] > areas[:, None])
    parent_areas = np.where(inside, areas[None], np.iinfo(np.int64).max)
    return np.where(inside.any(axis=1), parent_areas.argmin(axis=1), -1)


@numba.njit(nogil=True, cache=True)
def soft_nms(scores, ious, max_decay, iou_power, max_iou=np.inf, min_iou=0.0, max_kept=-1):
    """Soft non-maximum suppression.

    The remaining mask with the highest score is selected, and each other mask loses the fraction
    ``max_decay * iou**iou_power`` of its score. This is repeated until `max_kept` masks are selected or no score is
    positive.

    Args:
        scores: (N,) float64; masks whose score is not positive are left out.
        ious: (N, N) IoUs of the masks.
        max_decay: Fraction of its score that a mask loses at an IoU of 1.
        iou_power: Power of the IoU.
        max_iou: Masks with a larger IoU with a selected mask are removed.
        min_iou: IoUs up to this value have no effect.
        max_kept: Maximum number of selected masks; no limit if negative.

    Returns:
        (K,) int64 indices of the selected masks, best first, and their (K,) float64 reduced scores.
    """
    left = scores.copy()
    kept = np.empty(len(scores) if max_kept < 0 else min(len(scores), max_kept), np.int64)
    values = np.empty(len(kept))
    for count in range(len(kept)):
        best = left.argmax()
        if left[best] <= 0:
            return kept[:count].copy(), values[:count].copy()
        kept[count], values[count] = best, left[best]
        left[best] = 0
        for other in range(len(left)):
            iou = ious[best, other]
            if left[other] > 0 and iou > min_iou:
                left[other] = 0.0 if iou > max_iou else left[other] * (1 - max_decay * iou**iou_power)
    return kept, values
