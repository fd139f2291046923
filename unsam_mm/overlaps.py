"""Overlaps of regions of different trees over one image, counted without drawing a mask.

A node is an interval of its tree's leaves. The pixels that two leaf maps share form a sparse table; summed over the
leaves of one node and accumulated over the other tree's leaves, it gives the overlap with every node of that tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from unsam_mm.hierarchy import MaskHierarchy


def intersections(trees: Sequence[MaskHierarchy], nodes: Sequence[np.ndarray]) -> np.ndarray:
    """(K, K) float64 pixels that each two of the given nodes share.

    Args:
        trees: Trees over the same image.
        nodes: For each tree the node numbers that are wanted; K is their total number.
    """
    offsets = np.cumsum([0, *(len(chosen) for chosen in nodes)])
    shared = np.empty((offsets[-1], offsets[-1]))
    for i, tree in enumerate(trees):
        for j, other in enumerate(trees[: i + 1]):
            rows, columns = slice(offsets[i], offsets[i + 1]), slice(offsets[j], offsets[j + 1])
            block = _nested(tree, nodes[i]) if i == j else crossing_pixels(tree, nodes[i], other, nodes[j])
            shared[rows, columns], shared[columns, rows] = block, block.T
    return shared


def _nested(tree: MaskHierarchy, nodes: np.ndarray) -> np.ndarray:
    """(K, K) pixels that nodes of one tree share: those of the smaller one, or none."""
    first, last, area = tree.first_leaf[nodes], tree.last_leaf[nodes], tree.area[nodes]
    inside = (first[:, None] >= first[None]) & (last[:, None] <= last[None])
    return np.where(inside, area[:, None], np.where(inside.T, area[None], 0))


def crossing_pixels(tree: MaskHierarchy, nodes: np.ndarray, other: MaskHierarchy, others: np.ndarray) -> np.ndarray:
    """(K, K') float64 pixels that nodes of one tree share with nodes of another over the same image."""
    if len(others) * tree.n_leaves < len(nodes) * other.n_leaves:
        return crossing_pixels(other, others, tree, nodes).T
    pixels = (_membership(tree, nodes) @ _shared_pixels(tree, other)).toarray()
    below = np.concatenate([np.zeros((len(nodes), 1)), np.cumsum(pixels, axis=1)], axis=1)
    return below[:, other.last_leaf[others]] - below[:, other.first_leaf[others]]


def ious(trees: Sequence[MaskHierarchy], nodes: Sequence[np.ndarray]) -> np.ndarray:
    """(K, K) float64 intersection over union of each two of the given nodes; see `intersections`."""
    shared = intersections(trees, nodes)
    areas = np.diag(shared)
    return shared / (areas[:, None] + areas[None] - shared)


def _membership(tree: MaskHierarchy, nodes: np.ndarray) -> sparse.csr_matrix:
    """(K, L): 1 where a node holds a leaf."""
    first, last = tree.first_leaf[nodes], tree.last_leaf[nodes]
    leaves = np.concatenate([np.arange(low, high) for low, high in zip(first, last, strict=True)] or [first])
    starts = np.concatenate([[0], np.cumsum(last - first)])
    return sparse.csr_matrix((np.ones(len(leaves)), leaves, starts), shape=(len(nodes), tree.n_leaves))


def _shared_pixels(tree: MaskHierarchy, other: MaskHierarchy) -> sparse.csr_matrix:
    """(L, L') pixels that each leaf of one tree shares with each leaf of the other."""
    pairs = (tree.leaf_labels.ravel(), other.leaf_labels.ravel())
    ones = np.ones(tree.leaf_labels.size)
    return sparse.coo_matrix((ones, pairs), shape=(tree.n_leaves, other.n_leaves)).tocsr()
