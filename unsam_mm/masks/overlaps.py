"""Intersections and IoUs of regions of several trees of an image, computed without drawing masks.

In each tree a pixel is assigned to the smallest wanted region that contains it. Pixels are counted for each pair of
such regions of two trees; sums over descendants in both trees then give the intersections of all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numba
import numpy as np


class RegionTree(Protocol):
    """The attributes of `unsam_mm.masks.hierarchy.MaskHierarchy` that are used here."""

    leaf_labels: np.ndarray
    parent: np.ndarray
    n_leaves: int
    first_leaf: np.ndarray
    last_leaf: np.ndarray
    area: np.ndarray

    def __len__(self) -> int:
        """The number of nodes."""


def intersections(trees: Sequence[RegionTree], nodes: Sequence[np.ndarray]) -> np.ndarray:
    """(K, K) float64 intersections of nodes in pixels.

    Args:
        trees: Trees of the same image.
        nodes: Node numbers for each tree; K is their total number.
    """
    offsets = np.cumsum([0, *(len(chosen) for chosen in nodes)])
    shared = np.empty((offsets[-1], offsets[-1]))
    wanted = [_Wanted(tree, chosen) for tree, chosen in zip(trees, nodes, strict=True)]
    maps, lengths = _runs(np.stack([one.map.ravel() for one in wanted]))
    for i, one in enumerate(wanted):
        rows = slice(offsets[i], offsets[i + 1])
        shared[rows, rows] = _nested(trees[i], nodes[i])
        for j in range(i):
            columns = slice(offsets[j], offsets[j + 1])
            block = _crossing(one, maps[i], wanted[j], maps[j], lengths)
            shared[rows, columns], shared[columns, rows] = block, block.T
    return shared


def crossing_pixels(tree: RegionTree, nodes: np.ndarray, other: RegionTree, others: np.ndarray) -> np.ndarray:
    """(K, K') float64 intersections, in pixels, of nodes of one tree with nodes of another tree of the same image."""
    one, another = _Wanted(tree, nodes), _Wanted(other, others)
    maps, lengths = _runs(np.stack([one.map.ravel(), another.map.ravel()]))
    return _crossing(one, maps[0], another, maps[1], lengths)


def ious(trees: Sequence[RegionTree], nodes: Sequence[np.ndarray]) -> np.ndarray:
    """(K, K) float64 IoUs of nodes; see `intersections`."""
    shared = intersections(trees, nodes)
    areas = np.diag(shared)
    return shared / (areas[:, None] + areas[None] - shared)


class _Wanted:
    """The tree restricted to some of its nodes, numbered from small to large.

    Attributes:
        map: (H, W) int32 number of the smallest of the K distinct nodes that contains each pixel; K where none does.
        holder: (K,) number of the smallest other node that contains each node; K where none does.
        place: The number of each given node.
    """

    def __init__(self, tree: RegionTree, nodes: np.ndarray) -> None:
        different, self.place = np.unique(np.asarray(nodes, np.int64), return_inverse=True)
        number = np.full(len(tree), len(different), np.int32)
        number[different] = np.arange(len(different))
        up = tree.parent[different]
        _inherit(number, tree.parent, len(different))
        self.holder = np.where(up >= 0, number[up], len(different))
        self.map = number[: tree.n_leaves][tree.leaf_labels]


def _nested(tree: RegionTree, nodes: np.ndarray) -> np.ndarray:
    """(K, K) intersections of nodes of one tree: the area of the smaller node if they nest, else 0."""
    first, last, area = tree.first_leaf[nodes], tree.last_leaf[nodes], tree.area[nodes]
    inside = (first[:, None] >= first[None]) & (last[:, None] <= last[None])
    return np.where(inside, area[:, None], np.where(inside.T, area[None], 0))


def _crossing(
    one: _Wanted, of_one: np.ndarray, other: _Wanted, of_other: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """(K, K') float64 intersections in pixels, from the runs of both maps."""
    counts = _count(of_one, of_other, lengths, one.holder, other.holder)
    return counts[one.place][:, other.place]


@numba.njit(nogil=True, cache=True)
def _inherit(number, parent, nothing):
    """Assigns each node without a number the number of its parent."""
    for node in range(len(parent) - 2, -1, -1):
        if number[node] == nothing:
            number[node] = number[parent[node]]


@numba.njit(nogil=True, cache=True)
def _runs(maps):
    """Joint run-length encoding of T flattened maps: (T, R) values, and (R,) run lengths in pixels."""
    n_maps, n_pixels = maps.shape
    starts = np.empty(n_pixels + 1, np.int64)
    n_runs = 0
    for pixel in range(n_pixels):
        changes = pixel == 0
        for number in range(n_maps):
            changes |= maps[number, pixel] != maps[number, max(pixel - 1, 0)]
        starts[n_runs] = pixel
        n_runs += changes
    starts[n_runs] = n_pixels
    values = np.empty((n_maps, n_runs), np.int32)
    for number in range(n_maps):
        for run in range(n_runs):
            values[number, run] = maps[number, starts[run]]
    return values, starts[1 : n_runs + 1] - starts[:n_runs]


@numba.njit(nogil=True, cache=True)
def _count(of_one, of_other, lengths, holder, other_holder):
    """Intersections of all pairs of nodes: counts of pixels, summed up along the holders."""
    n_one, n_other = len(holder), len(other_holder)
    counts = np.zeros((n_one + 1, n_other + 1))
    for run in range(len(lengths)):
        counts[of_one[run], of_other[run]] += lengths[run]
    for node in range(n_one):
        counts[holder[node]] += counts[node]
    for row in counts[:n_one]:
        for other in range(n_other):
            row[other_holder[other]] += row[other]
    return counts[:n_one, :n_other].copy()
