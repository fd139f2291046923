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
    for i, (tree, chosen) in enumerate(zip(trees, nodes, strict=True)):
        member = _membership(tree, chosen)
        for j in range(i, len(trees)):
            table = _shared_pixels(tree, trees[j])
            pixels = (member @ table).toarray()
            below = np.concatenate([np.zeros((len(chosen), 1)), np.cumsum(pixels, axis=1)], axis=1)
            block = below[:, trees[j].last_leaf[nodes[j]]] - below[:, trees[j].first_leaf[nodes[j]]]
            rows, columns = slice(offsets[i], offsets[i + 1]), slice(offsets[j], offsets[j + 1])
            shared[rows, columns], shared[columns, rows] = block, block.T
    return shared


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
    if tree is other:
        return sparse.diags(tree.area[: tree.n_leaves].astype(np.float64), format='csr')
    pairs = (tree.leaf_labels.ravel(), other.leaf_labels.ravel())
    ones = np.ones(tree.leaf_labels.size)
    return sparse.coo_matrix((ones, pairs), shape=(tree.n_leaves, other.n_leaves)).tocsr()
