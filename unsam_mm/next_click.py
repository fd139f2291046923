"""Simulated user clicks, for interactive evaluation and for training with corrections."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from unsam_mm.masks.ops import extent


def next_click(
    mask: np.ndarray, truth: np.ndarray, clicked: np.ndarray, ignored: np.ndarray | None = None
) -> tuple[tuple[int, int], bool] | None:
    """The next click of a simulated user, as in the benchmarks of interactive segmentation.

    The click is at the false negative or false positive pixel that is farthest from the border of these false negatives
    or false positives; image borders count as borders. The click is positive at a false negative and negative at a
    false positive; if both are equally far, it is negative. No pixel is clicked twice.

    Args:
        mask: (H, W) bool, the prediction.
        truth: (H, W) bool, the true segment.
        clicked: (H, W) bool, pixels that were clicked before.
        ignored: (H, W) bool, pixels that count neither as false negatives nor as false positives.

    Returns:
        (x, y), and True if the click is positive; None if there is no pixel to click.
    """
    counts = np.ones_like(truth) if ignored is None else ~ignored
    inside, depth_inside = deepest_pixel(truth & ~mask & counts, ~clicked)
    outside, depth_outside = deepest_pixel(mask & ~truth & counts, ~clicked)
    if max(depth_inside, depth_outside) == 0:
        return None
    return (inside, True) if depth_inside > depth_outside else (outside, False)


def centre_of(mask: np.ndarray) -> tuple[int, int] | None:
    """x, y of the pixel of a mask that is farthest from the background; None if the mask is empty.

    Distances are exact and Euclidean. Pixels outside the image count as background, so an object at the border is not
    clicked at the border. Of equally distant pixels, the first in row-major order is returned.

    Args:
        mask: (H, W) bool.
    """
    (x, y), depth = deepest_pixel(mask)
    return (x, y) if depth else None


def deepest_pixel(mask: np.ndarray, allowed: np.ndarray | None = None) -> tuple[tuple[int, int], float]:
    """x, y as in `centre_of`, and the distance in pixels to the nearest pixel outside the mask, 0 without such x, y.

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
