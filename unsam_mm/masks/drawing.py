"""Visualisation of hierarchies and mask sets, for reports and documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.segmentation import find_boundaries

from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.mask_set import MaskSet

_GOLDEN_TURN = 0.618033988749895  # step in hue; multiples of the golden ratio keep the hues of nearby indices apart
_GAP_PX = 6
_OPACITY = 0.55


def draw_labels(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: each region filled with its mean colour, boundaries in white.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) integers from 1.
    """
    counts = np.maximum(np.bincount(labels.ravel()), 1)
    means = np.stack(
        [np.bincount(labels.ravel(), image[..., channel].ravel()) / counts for channel in range(3)], axis=1
    )
    drawn = means[labels].astype(np.uint8)
    drawn[find_boundaries(labels, mode='inner')] = 255
    return drawn


def draw_masks(image: np.ndarray, masks: MaskSet, count: int) -> np.ndarray:
    """(H, W, 3) uint8: the image with its best masks as an overlay, small masks on top of large ones.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: Masks of this image, best first.
        count: Number of masks that are drawn.
    """
    best = masks[: min(count, len(masks))]
    drawn = image.astype(np.float32)
    for i in np.argsort(-best.areas, kind='stable'):
        mask = best[int(i)].to_bitmaps()[0]
        drawn[mask] = (1 - _OPACITY) * image[mask] + _OPACITY * _colour(int(i))
        drawn[mask & find_boundaries(mask, mode='inner')] = _colour(int(i))
    return drawn.astype(np.uint8)


def draw_hierarchy(image: np.ndarray, hierarchy: MaskHierarchy, levels: Sequence[float]) -> np.ndarray:
    """(H, W', 3) uint8: the image, cuts of its tree at the given levels, and its best 40 masks, side by side."""
    cuts = [draw_labels(image, hierarchy.cut(level)) for level in levels]
    return side_by_side([image, *cuts, draw_masks(image, hierarchy.select(40), 40)])


def side_by_side(images: Sequence[np.ndarray], vertical: bool = False) -> np.ndarray:
    """(H, W, 3) uint8 images in one row, or in one column if `vertical`, on a white background."""
    along, across = (0, 1) if vertical else (1, 0)
    largest = max(image.shape[across] for image in images)
    padded = []
    for image in images:
        margins = [(0, 0), (0, 0), (0, 0)]
        margins[along] = (0, _GAP_PX)
        margins[across] = (0, largest - image.shape[across])
        padded.append(np.pad(image, margins, constant_values=255))
    return np.concatenate(padded, axis=along)


def save_picture(path: str | Path, picture: np.ndarray) -> Path:
    """Writes a PNG file, and creates its folder if needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, optimize=True)
    return path


def _colour(index: int) -> np.ndarray:
    """(3,) float RGB in [0, 255]; colours of nearby indices differ strongly."""
    hue = index * _GOLDEN_TURN % 1.0 * 6
    ramp = np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return 40 + 215 * ramp.clip(0, 1)
