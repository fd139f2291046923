"""A region tree that is known: the coins of scikit-image's photo, their halves, and their rows."""

from __future__ import annotations

import numpy as np
from skimage import data, measure, morphology

from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.rle import encode_bitmaps

_LIGHT = 120
_COIN_PX = 400


def coin_masks() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(K, H, W) bool masks of the coins, of their left halves and of their rows."""
    light = morphology.closing(data.coins() > _LIGHT, np.ones((5, 5)))
    regions = [region for region in measure.regionprops(measure.label(light)) if region.area > _COIN_PX]
    coins = np.zeros((len(regions), *light.shape), bool)
    for coin, region in zip(coins, regions, strict=True):
        coin[region.slice] = region.image_filled
    middles = np.array([region.centroid for region in regions])
    halves = coins & (np.arange(light.shape[1]) < middles[:, 1, None, None])
    rows = np.stack([coins[middles[:, 0] // 80 == row].any(axis=0) for row in np.unique(middles[:, 0] // 80)])
    return coins, halves, rows


def coin_tree() -> MaskHierarchy:
    """Halves in coins in rows; the coins look most like objects."""
    coins, halves, rows = coin_masks()
    masks = np.concatenate([coins, halves, rows])
    scores = np.repeat([0.9, 0.3, 0.2], [len(coins), len(halves), len(rows)])
    return MaskHierarchy.from_masks(encode_bitmaps(masks), scores, masks.shape[1:])
