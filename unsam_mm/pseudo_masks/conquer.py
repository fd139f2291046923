"""Conquer: from leaves and patch features to a tree of regions (bottom-up)."""

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
from unsam_mm.pseudo_masks.superpixels import Leaves
from unsam_mm.pseudo_masks.vit import PatchFeatures


@dataclass(frozen=True)
class GrowthSettings:
    """What makes two touching regions alike while a tree grows.

    Attributes:
        colour_weight: Length of the colour part of a region's description relative to its feature part.
        border_weight: In [0, 1); how much the edge between two regions counts against what they look like.
    """

    colour_weight: float
    border_weight: float


@dataclass(frozen=True)
class LeafMeans:
    """What the leaves look like on average.

    Attributes:
        areas_px: (L,) int64.
        features: (L, C) float64 patch features.
        lab: (L, 3) float64 CIE Lab colour.
    """

    areas_px: np.ndarray
    features: np.ndarray
    lab: np.ndarray

    @classmethod
    def of(cls, leaves: Leaves, features: PatchFeatures) -> LeafMeans:
        """Of the leaves of an image and its patch features."""
        areas = np.bincount(leaves.labels.ravel(), minlength=leaves.count)
        return cls(areas, _leaf_means(leaves, areas, features), _leaf_colours(leaves, areas))


def conquer(leaves: Leaves, features: PatchFeatures, growths: Sequence[GrowthSettings]) -> list[MaskHierarchy]:
    """As `grow_trees`, from the patch features of the whole image."""
    return grow_trees(leaves, LeafMeans.of(leaves, features), growths)


def grow_trees(leaves: Leaves, means: LeafMeans, growths: Sequence[GrowthSettings]) -> list[MaskHierarchy]:
    """Merges touching regions until the whole image is one region; one tree for each way to compare them.

    A region is described by its mean patch feature joined with its mean Lab colour: the ViT knows what belongs
    together but is blind below its 14 px patches, where colour decides. The edge between two regions says whether
    they part there.

    Args:
        leaves: The finest partition.
        means: Of these leaves.
        growths: At least one.
    """
    areas = means.areas_px
    semantic, colour = _standardised(means.features, areas), _standardised(means.lab, areas)
    typical = (
        max(float(np.average(leaves.edge_strength, weights=leaves.edge_lengths_px)), 1e-6) if len(leaves.edges) else 1.0
    )

    def grow(growth: GrowthSettings) -> MaskHierarchy:
        described = np.concatenate([semantic, growth.colour_weight * colour], axis=1)
        borders = Borders(leaves.edge_lengths_px, leaves.edge_strength / typical, growth.border_weight)
        parent, similarity = merge_regions(described, areas, leaves.edges, borders)
        height = np.concatenate([np.zeros(leaves.count, np.float32), np.maximum(1.0 - similarity, 0)])
        return MaskHierarchy.from_merges(leaves.labels, parent, height)

    return threads.run_parallel([partial(grow, growth) for growth in growths])


def _leaf_colours(leaves: Leaves, areas: np.ndarray) -> np.ndarray:
    """(L, 3) mean Lab colour of each leaf."""
    labels, lab = leaves.labels.ravel(), leaves.colour.lab
    return np.stack([np.bincount(labels, lab[..., channel].ravel()) / areas for channel in range(3)], axis=1)


def _leaf_means(leaves: Leaves, areas: np.ndarray, features: PatchFeatures) -> np.ndarray:
    """(L, C) mean of the bilinearly upsampled feature grid over each leaf, without upsampling it.

    Bilinear upsampling is linear: the mean over a leaf is a weighted sum of patches, with weights that add up the
    pixels' own.
    """
    height, width = leaves.labels.shape
    rows, columns, channels = features.grid.shape
    (top, below), (left, right) = _bilinear(height, rows), _bilinear(width, columns)
    flat_labels = leaves.labels.ravel()

    def share(of_rows: tuple[np.ndarray, np.ndarray], of_columns: tuple[np.ndarray, np.ndarray]) -> sparse.csr_matrix:
        (row, row_weight), (column, column_weight) = of_rows, of_columns
        patch = (row[:, None] * columns + column[None]).ravel()
        weight = (row_weight[:, None] * column_weight[None]).ravel()
        return sparse.coo_matrix((weight, (flat_labels, patch)), shape=(leaves.count, rows * columns)).tocsr()

    shares = threads.run_parallel([partial(share, *cells) for cells in product((top, below), (left, right))])
    return (sum(shares[1:], shares[0]) @ features.grid.reshape(rows * columns, channels)) / areas[:, None]


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
