"""Conquer: from leaves and patch features to a tree of regions (bottom-up)."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from unsam_mm.hierarchy import MaskHierarchy
from unsam_mm.pseudo_masks.features import PatchFeatures
from unsam_mm.pseudo_masks.leaves import Leaves
from unsam_mm.pseudo_masks.merging import merge_regions
from unsam_mm.pseudo_masks.ranking import rank_regions


def conquer(leaves: Leaves, features: PatchFeatures, colour_weight: float = 0.2) -> MaskHierarchy:
    """Merges touching regions by similarity of mean features until the whole image is one region.

    A region is described by its mean patch feature joined with its mean Lab colour: the ViT knows what belongs
    together but is blind below its 14 px patches, where colour decides.

    Args:
        leaves: The finest partition.
        features: Patch features of the same image.
        colour_weight: Length of the colour part relative to the feature part.
    """
    areas = np.bincount(leaves.labels.ravel(), minlength=leaves.count)
    semantic = _leaf_means(leaves, areas, features)
    colour = np.stack(
        [np.bincount(leaves.labels.ravel(), leaves.lab[..., channel].ravel()) / areas for channel in range(3)], axis=1
    )
    described = np.concatenate([_standardised(semantic, areas), colour_weight * _standardised(colour, areas)], axis=1)
    parent, similarity = merge_regions(described, areas, leaves.edges)
    height = np.concatenate([np.zeros(leaves.count, np.float32), 1.0 - similarity])
    return rank_regions(MaskHierarchy.from_merges(leaves.labels, parent, height), leaves)


def _leaf_means(leaves: Leaves, areas: np.ndarray, features: PatchFeatures) -> np.ndarray:
    """(L, C) mean of the bilinearly upsampled feature grid over each leaf, without upsampling it.

    Bilinear upsampling is linear: the mean over a leaf is a weighted sum of patches, with weights that add up the
    pixels' own.
    """
    height, width = leaves.labels.shape
    rows, columns, channels = features.grid.shape
    (top, below), (left, right) = _bilinear(height, rows), _bilinear(width, columns)
    flat_labels = leaves.labels.ravel()
    share = sparse.csr_matrix((leaves.count, rows * columns))
    for row, row_weight in (top, below):
        for column, column_weight in (left, right):
            patch = (row[:, None] * columns + column[None]).ravel()
            weight = (row_weight[:, None] * column_weight[None]).ravel()
            share = share + sparse.coo_matrix((weight, (flat_labels, patch)), shape=share.shape).tocsr()
    return (share @ features.grid.reshape(rows * columns, channels)) / areas[:, None]


def _bilinear(n_pixels: int, n_cells: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """For each pixel centre the two nearest cell centres and their weights; outer pixels repeat the outer cell."""
    position = np.clip((np.arange(n_pixels) + 0.5) * n_cells / n_pixels - 0.5, 0, n_cells - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, n_cells - 1)
    weight = position - low
    return (low, 1 - weight), (high, weight)


def _standardised(values: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Subtracts the image's mean row and divides by the mean length of what is left."""
    centred = values - np.average(values, axis=0, weights=areas)
    return centred / max(float(np.average(np.linalg.norm(centred, axis=1), weights=areas)), 1e-12)
