"""Conquer step: region trees by hierarchical merging of superpixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
from scipy import sparse

from unsam_mm import threads
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.pseudo_masks.merging import Borders, merge_regions
from unsam_mm.pseudo_masks.superpixels import Superpixels


@dataclass(frozen=True)
class SuperpixelMeans:
    """Mean features and colour of superpixels.

    Attributes:
        features: (L, C) float64 patch features.
        lab: (L, 3) float64 CIE Lab colour.
    """

    features: np.ndarray
    lab: np.ndarray

    @classmethod
    def from_features(cls, superpixels: Superpixels, features: np.ndarray) -> SuperpixelMeans:
        """Means over the superpixels of an image; `features` are its (h, w, C) patch features."""
        partition = superpixels.partition
        sums = [partition.sums(superpixels.colour.lab[..., channel]) for channel in range(3)]
        lab = np.stack(sums, axis=1) / partition.areas[:, None]
        return cls(_superpixel_means(superpixels, features), lab)


def grow_trees(
    superpixels: Superpixels, means: SuperpixelMeans, merge_weights: Sequence[tuple[float, float]]
) -> list[MaskHierarchy]:
    """Builds one tree for each pair of weights by merging adjacent regions until one is left.

    The descriptor of a region is its mean patch feature concatenated with its mean Lab colour. Patch features carry the
    semantics but do not resolve details smaller than a patch of the ViT; colour does. The similarity of two regions
    also depends on the edge strength between them.

    Args:
        superpixels: The leaves of the trees.
        means: Features and colours of these superpixels.
        merge_weights: For each tree the weight of the colour relative to the patch features, and the weight in [0, 1)
            of the edge strength between two regions relative to their descriptors.

    Returns:
        One tree for each pair of weights; scores are the persistence, see `MaskHierarchy.from_merges`.
    """
    areas = superpixels.partition.areas
    semantic, colour = _standardised(means.features, areas), _standardised(means.lab, areas)
    mean_strength = (
        max(float(np.average(superpixels.edge_strength, weights=superpixels.edge_lengths_px)), 1e-6)
        if len(superpixels.edges)
        else 1.0
    )

    def grow(colour_weight: float, border_weight: float) -> MaskHierarchy:
        descriptors = np.concatenate([semantic, colour_weight * colour], axis=1)
        borders = Borders(superpixels.edge_lengths_px, superpixels.edge_strength / mean_strength, border_weight)
        parent, similarity = merge_regions(descriptors, areas, superpixels.edges, borders)
        height = np.concatenate([np.zeros(len(superpixels), np.float32), np.maximum(1.0 - similarity, 0)])
        return MaskHierarchy.from_merges(superpixels.partition, parent, height)

    return threads.run_parallel([partial(grow, *weights) for weights in merge_weights])


def _superpixel_means(superpixels: Superpixels, features: np.ndarray) -> np.ndarray:
    """(L, C) mean of the bilinearly upsampled features over each superpixel, without upsampling them.

    Upsampling is linear, so the sum over a superpixel is a weighted sum of patch features. The weight of a patch is the
    sum of its interpolation weights over the pixels of the superpixel.
    """
    height, width = superpixels.labels.shape
    rows, columns, channels = features.shape
    (top, below), (left, right) = _bilinear(height, rows), _bilinear(width, columns)
    flat_labels = superpixels.labels.ravel()

    def share(of_rows: tuple[np.ndarray, np.ndarray], of_columns: tuple[np.ndarray, np.ndarray]) -> sparse.csr_matrix:
        (row, row_weight), (column, column_weight) = of_rows, of_columns
        patch = (row[:, None] * columns + column[None]).ravel()
        weight = (row_weight[:, None] * column_weight[None]).ravel()
        return sparse.coo_matrix((weight, (flat_labels, patch)), shape=(len(superpixels), rows * columns)).tocsr()

    shares = threads.run_parallel([partial(share, *cells) for cells in product((top, below), (left, right))])
    return (sum(shares[1:], shares[0]) @ features.reshape(rows * columns, channels)) / superpixels.partition.areas[
        :, None
    ]


def _bilinear(n_pixels: int, n_cells: int) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Indices and weights, (n_pixels,) each, of the cells before and after each pixel centre along one axis.

    Pixels beyond the outermost cell centres get the value of the outermost cell.
    """
    position = np.clip((np.arange(n_pixels) + 0.5) * n_cells / n_pixels - 0.5, 0, n_cells - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, n_cells - 1)
    weight = position - low
    return (low, 1 - weight), (high, weight)


def _standardised(values: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """(L, C) values minus their area-weighted mean, divided by the area-weighted mean norm of the differences."""
    centred = values - np.average(values, axis=0, weights=areas)
    return centred / max(float(np.average(np.linalg.norm(centred, axis=1), weights=areas)), 1e-12)
