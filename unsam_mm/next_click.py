"""Simulated user clicks, for interactive evaluation and for training with corrections."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from unsam_mm.masks.ops import extent


def next_click(
    mask: np.ndarray, truth: np.ndarray, clicked: np.ndarray, ignored: np.ndarray | None = None
) -> tuple[tuple[int, int], bool] | None:
    """Where a person clicks next, by the rule of interactive segmentation's benchmarks.

    Of all pixels that are wrongly in or out, that is the one deepest in its error region; image borders bound regions.
    It is positive where it lies in the segment, negative outside; of equally deep ones the negative is taken. Pixels
    that were clicked are not clicked again.

    Args:
        mask: (H, W) bool, what the predictor shows.
        truth: (H, W) bool, the segment that is meant.
        clicked: (H, W) bool, pixels clicked before.
        ignored: (H, W) bool, pixels where nothing is wrong.

    Returns:
        (x, y) and whether the click is positive; None if nothing is left to click at.
    """
    counts = np.ones_like(truth) if ignored is None else ~ignored
    inside, depth_inside = deepest_pixel(truth & ~mask & counts, ~clicked)
    outside, depth_outside = deepest_pixel(mask & ~truth & counts, ~clicked)
    if max(depth_inside, depth_outside) == 0:
        return None
    return (inside, True) if depth_inside > depth_outside else (outside, False)


def centre_of(mask: np.ndarray) -> tuple[int, int] | None:
    """x, y of the pixel of a mask that is farthest from its outline; None if the mask is empty.

    Distances are Euclidean and exact; what lies outside the image counts as background, so that an object at the
    border is not clicked on it. Of equally distant pixels the first in reading order is taken.

    Args:
        mask: (H, W) bool.
    """
    (x, y), depth = deepest_pixel(mask)
    return (x, y) if depth else None


def deepest_pixel(mask: np.ndarray, allowed: np.ndarray | None = None) -> tuple[tuple[int, int], float]:
    """x, y of the pixel of `centre_of`, and its distance in pixels to the nearest one outside the mask, 0 if empty.

    Args:
        mask: (H, W) bool.
        allowed: (H, W) bool, pixels that can be chosen; distances do not change with it.
    """
    top, bottom, left, right = extent(mask)
    if top == bottom:
        return (0, 0), 0.0
    window = np.s_[top:bottom, left:right]
    distance = ndimage.distance_transform_edt(np.pad(mask[window], 1))[1:-1, 1:-1]
    if allowed is not None:
        distance = distance * allowed[window]
    y, x = np.unravel_index(int(distance.argmax()), distance.shape)
    return (left + int(x), top + int(y)), float(distance[y, x])
