"""Simulated user clicks, for interactive evaluation and for training with corrections."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from unsam_mm.masks.ops import extent


def next_click(
    mask: np.ndarray, truth: np.ndarray, clicked: np.ndarray, ignored: np.ndarray | None = None
) -> tuple[tuple[int, int], bool] | None:
    """The next click of a simulated user, as in the benchmarks of interactive segmentation.

    The click is at the pixel of the false negatives and false positives that is farthest from the border of its region;
    image borders count as borders. It is positive inside the segment and negative outside; of equal distances the
    negative click is taken. No pixel is clicked twice.

    Args:
        mask: (H, W) bool, the prediction.
        truth: (H, W) bool, the true segment.
        clicked: (H, W) bool, pixels that were clicked before.
        ignored: (H, W) bool, pixels that do not count.

    Returns:
        (x, y) and whether the click is positive; None if there is no pixel to click.
    """
    counts = np.ones_like(truth) if ignored is None else ~ignored
    inside, depth_inside = deepest_pixel(truth & ~mask & counts, ~clicked)
    outside, depth_outside = deepest_pixel(mask & ~truth & counts, ~clicked)
    if max(depth_inside, depth_outside) == 0:
        return None
    return (inside, True) if depth_inside > depth_outside else (outside, False)


def centre_of(mask: np.ndarray) -> tuple[int, int] | None:
    """x, y of the pixel of a mask that is farthest from its outline; None if the mask is empty.

    Distances are exact and Euclidean. Pixels outside the image count as background, so that an object at the border is
    not clicked there. Of equally distant pixels the first in row-major order is taken.

    Args:
        mask: (H, W) bool.
    """
    (x, y), depth = deepest_pixel(mask)
    return (x, y) if depth else None


def deepest_pixel(mask: np.ndarray, allowed: np.ndarray | None = None) -> tuple[tuple[int, int], float]:
    """x, y as of `centre_of`, and the distance in pixels to the nearest pixel outside the mask, 0 if it is empty.

    Args:
        mask: (H, W) bool.
        allowed: (H, W) bool, pixels that can be chosen; distances do not depend on it.
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
