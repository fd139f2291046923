"""Clicks in pixel coordinates for the region model."""

from __future__ import annotations

import numpy as np

from unsam_mm.student.clicks import ClickableImage, Clicks


def region_clicks(
    image: ClickableImage,
    points_xy: np.ndarray,
    positive: np.ndarray,
    box_xyxy: np.ndarray | None = None,
    previous: np.ndarray | None = None,
) -> Clicks:
    """A prompt in terms of regions; a region with clicks of both kinds counts as positive.

    Args:
        image: The encoded image.
        points_xy: (N, 2) int64 pixel coordinates inside the image.
        positive: (N,) bool.
        box_xyxy: (4,) float box in pixels, or None.
        previous: (H, W) bool earlier mask, or None.
    """
    regions = image.regions_at(points_xy)
    inside = np.unique(regions[positive])
    outside = np.setdiff1d(regions[~positive], inside)
    return Clicks(inside, outside, box_xyxy, None if previous is None else image.shares_of(previous))


def mask_at_granularity(
    image: ClickableImage,
    granularity: float,
    points_xy: np.ndarray,
    positive: np.ndarray,
    box_xyxy: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(1, H, W) bool mask at a granularity, and its (1,) float32 score; the mask agrees with every click.

    A region with clicks of both kinds is split: each of its pixels gets the kind of the nearest click.

    Args:
        image: The encoded image.
        granularity: See `ClickableImage.answer_at`.
        points_xy: (N, 2) int64 pixel coordinates inside the image.
        positive: (N,) bool.
        box_xyxy: (4,) float box in pixels, or None.

    Raises:
        UnSAMError: If there is neither a positive click nor a box.
    """
    members, scores = image.answer_at(region_clicks(image, points_xy, positive, box_xyxy), granularity)
    masks, labels, regions = image.bitmaps(members), image.tokens.labels, image.regions_at(points_xy)
    for region in np.intersect1d(regions[positive], regions[~positive]):
        y, x = np.nonzero(labels == region)
        pixels = np.stack([x, y], axis=1)
        to_inside, to_outside = (
            np.linalg.norm(pixels[:, None] - points_xy[kind & (regions == region)], axis=2).min(axis=1)
            for kind in (positive, ~positive)
        )
        masks[:, y, x] = to_inside <= to_outside
    return masks, scores
