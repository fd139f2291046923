"""Trees over the regions of a partition: parents, heights and depth-first order. No pixels are needed here.

Leaves are numbered in depth-first order, so every node is an interval of leaf numbers: two nodes either nest or are
disjoint.
"""

from __future__ import annotations

from functools import cached_property

import numba
import numpy as np

from unsam_mm.errors import UnSAMError


class Tree:
    """A tree over the regions of a partition: N nodes, of which 0..L-1 are the leaves, numbered depth-first.

    A parent has a larger number than its children; the root is N-1.

    Args:
        parent: (N,) integers; parent[i] > i, except -1 at the root, which is the last node. In the arguments, leaf i is
            region i; the leaves are then renumbered, and inner nodes keep their numbers.
        height: (N,) floats; raised where needed so that no node is lower than a child.

    Attributes:
        parent: (N,) int64; -1 at the root.
        height: (N,) float32, such as the dissimilarity at which the children were merged.
        n_leaves: Number of leaves.
        leaf_of_region: (L,) int64; leaf number of each region of the partition.
        region_of_leaf: (L,) int64; region number of each leaf.
        first_leaf: (N,) int64; the node contains the leaves ``first_leaf[node]`` to ``end_leaf[node] - 1``.

    Raises:
        UnSAMError: If `parent` is not a tree in this order, or a height is not finite.
    """

    def __init__(self, parent: np.ndarray, height: np.ndarray) -> None:
        parent, height, self.n_leaves = _checked(parent, height)
        _raise_parents(height, parent)
        first_leaf = _first_leaves(parent, self.n_leaves)
        self.leaf_of_region = first_leaf[: self.n_leaves].copy()
        self.region_of_leaf = np.argsort(self.leaf_of_region)
        self.parent, self.height = self.renumbered(parent), self.renumbered(height)
        self.first_leaf = self.renumbered(first_leaf)

    def __len__(self) -> int:
        return len(self.parent)

    @cached_property
    def end_leaf(self) -> np.ndarray:
        """(N,) int64, exclusive end of the leaf interval of each node."""
        return self.first_leaf + self.sums(np.ones(self.n_leaves, np.int64))

    @cached_property
    def level(self) -> np.ndarray:
        """(N,) float32 in [0, 1]; see `unsam_mm.masks.hierarchy.MaskHierarchy.level`."""
        n_inner = len(self) - self.n_leaves
        if n_inner == 0:
            return np.ones(len(self), np.float32)  # a single region is the whole image
        n_children = np.bincount(self.parent[:-1], minlength=len(self))[self.n_leaves :]
        left = self.n_leaves - np.cumsum(n_children - 1)
        inner = 1.0 - np.log(left) / np.log(self.n_leaves)
        return np.concatenate([np.zeros(self.n_leaves), inner]).astype(np.float32)

    @cached_property
    def persistence(self) -> np.ndarray:
        """(N,) float32: the height of the parent minus that of the node; 0 at the root."""
        persistence = np.zeros_like(self.height)
        persistence[:-1] = self.height[self.parent[:-1]] - self.height[:-1]
        return persistence

    def renumbered(self, values: np.ndarray) -> np.ndarray:
        """(N, ...) values in the order of the nodes, from values in the order of the arguments of `Tree`."""
        return np.concatenate([values[self.region_of_leaf], values[self.n_leaves :]])

    def sums(self, region_values: np.ndarray) -> np.ndarray:
        """(N,) sums over the regions in each node, of (L,) values of the regions of the partition."""
        return self.sums_of_leaves(region_values[self.region_of_leaf])

    def sums_of_leaves(self, leaf_values: np.ndarray) -> np.ndarray:
        """(N,) sums over the leaves in each node, of (L,) values of the leaves."""
        inner = np.zeros(len(self) - self.n_leaves, leaf_values.dtype)
        return sum_over_descendants(np.concatenate([leaf_values, inner]), self.parent)

    def boxes(self, region_boxes: np.ndarray) -> np.ndarray:
        """(N, 4) boxes x0, y0, x1, y1 of the nodes, from (L, 4) integer boxes of the regions of the partition."""
        boxes = np.empty((len(self), 4), region_boxes.dtype)
        boxes[: self.n_leaves] = region_boxes[self.region_of_leaf]
        boxes[self.n_leaves :] = [np.iinfo(region_boxes.dtype).max] * 2 + [-1] * 2
        _grow_parents(boxes, self.parent)
        return boxes

    def path(self, node: int) -> np.ndarray:
        """(K,) int64: the node and its ancestors, finest first."""
        nodes = [int(node)]
        while (up := self.parent[nodes[-1]]) >= 0:
            nodes.append(int(up))
        return np.array(nodes, np.int64)

    def common_ancestors(self, pairs: np.ndarray) -> np.ndarray:
        """(K,) lowest common ancestor of the two leaves of each of (K, 2) pairs."""
        low, high = pairs.min(axis=1), pairs.max(axis=1)
        ancestors = low.copy()
        open_pairs = np.arange(len(ancestors))
        while len(open_pairs):
            first, end = self.first_leaf[ancestors[open_pairs]], self.end_leaf[ancestors[open_pairs]]
            open_pairs = open_pairs[(first > low[open_pairs]) | (end <= high[open_pairs])]
            ancestors[open_pairs] = self.parent[ancestors[open_pairs]]
        return ancestors


def nested_regions(smallest: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parents of a tree over nested or disjoint regions; cells of a region in none of its children form an extra leaf.

    Args:
        smallest: (C,) the smallest region that contains each cell of a partition.
        up: (R,) the smallest other region that contains each region; up[i] > i, except -1 at the last, which contains
            all.

    Returns:
        leaf_of_cell: (C,) the leaf that contains each cell.
        parent: (N,) int64, the argument of `Tree`.
        node_of_region: (R,) the node of each region; the other nodes are leaves that are not regions.
    """
    has_cells = np.bincount(smallest, minlength=len(up)) > 0
    has_children = np.bincount(up[:-1], minlength=len(up)) > 0
    leaf = np.cumsum(has_cells) - 1
    n_leaves = int(has_cells.sum())
    node = np.where(has_children, n_leaves + np.cumsum(has_children) - 1, leaf)
    parent = np.full(n_leaves + int(has_children.sum()), -1, np.int64)
    has_both = has_cells & has_children
    parent[leaf[has_both]] = node[has_both]
    parent[node[:-1]] = node[up[:-1]]
    return leaf[smallest], parent, node


def sum_over_descendants(values: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """(N,) sum of the values of each node and all its descendants."""
    total = np.array(values)
    _add_to_parents(total, np.asarray(parent, np.int64))
    return total


def nearest_ancestors(parent: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(N,) int64 index in `chosen` of the nearest of these nodes at or above each node of a tree, or -1."""
    index = np.full(len(parent), -1)
    index[chosen] = np.arange(len(chosen))
    _inherit(index, parent)
    return index


def _checked(parent: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Parents as int64, a copy of the heights as float32, and the number of leaves; see `Tree` for the errors."""
    parent, height = np.asarray(parent), np.asarray(height)
    if parent.ndim != 1 or parent.dtype.kind not in 'iu':
        raise UnSAMError(f'parent must be whole numbers of shape (N,), got {parent.dtype}{parent.shape}')
    check_values('height', height, parent.shape)
    if (wrong := ~(np.abs(height) <= np.finfo(np.float32).max)).any():
        raise UnSAMError(f'height must be finite, got {height[wrong][0]}')
    n_nodes = len(parent)
    inner = parent[:-1]
    if n_nodes == 0 or parent[-1] != -1 or (inner <= np.arange(n_nodes - 1)).any() or (inner >= n_nodes).any():
        raise UnSAMError('parent must have one root, its last entry (-1), and parent[i] > i elsewhere')
    is_leaf = np.bincount(inner.astype(np.int64), minlength=n_nodes) == 0
    n_leaves = int(is_leaf.sum())
    if not is_leaf[:n_leaves].all():
        raise UnSAMError('the leaves of a tree must be its first nodes')
    return parent.astype(np.int64, copy=False), height.astype(np.float32), n_leaves


def check_values(name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises `UnSAMError` unless `values` are numbers, one for each node."""
    if values.shape != shape:
        raise UnSAMError(f'every node needs a {name}: parent has shape {shape}, {name} {values.shape}')
    if values.dtype.kind not in 'fiu':
        raise UnSAMError(f'{name} must be numbers, got {values.dtype}')


@numba.njit(nogil=True, cache=True)
def _add_to_parents(total, parent):
    for node in range(len(parent) - 1):
        total[parent[node]] += total[node]


@numba.njit(nogil=True, cache=True)
def _inherit(values, parent):
    """Replaces the value -1 of each node by the value of its parent, from the root down."""
    for node in range(len(parent) - 2, -1, -1):
        if values[node] == -1:
            values[node] = values[parent[node]]


@numba.njit(nogil=True, cache=True)
def _raise_parents(height, parent):
    for node in range(len(parent) - 1):
        height[parent[node]] = max(height[parent[node]], height[node])


@numba.njit(nogil=True, cache=True)
def _grow_parents(boxes, parent):
    """Extends the box of every node so that it contains those of its children."""
    for node in range(len(parent) - 1):
        for side in range(2):
            boxes[parent[node], side] = min(boxes[parent[node], side], boxes[node, side])
            boxes[parent[node], 2 + side] = max(boxes[parent[node], 2 + side], boxes[node, 2 + side])


@numba.njit(nogil=True, cache=True)
def _first_leaves(parent, n_leaves):
    """(N,) depth-first number of the first leaf below each node.

    Children are visited in the order of the smallest leaf number below them, so leaves that are already in depth-first
    order keep their numbers.
    """
    n_nodes = len(parent)
    size = np.zeros(n_nodes, np.int64)
    size[:n_leaves] = 1
    smallest = np.full(n_nodes, n_leaves)
    smallest[:n_leaves] = np.arange(n_leaves)
    for node in range(n_nodes - 1):
        size[parent[node]] += size[node]
        smallest[parent[node]] = min(smallest[parent[node]], smallest[node])
    # Parents are processed before children; the cursor of a parent advances by the size of each child.
    order = np.argsort(smallest, kind='mergesort')
    next_sibling, first_child = np.full(n_nodes, -1), np.full(n_nodes, -1)
    for node in order[::-1]:
        if parent[node] >= 0:
            next_sibling[node] = first_child[parent[node]]
            first_child[parent[node]] = node
    first = np.zeros(n_nodes, np.int64)
    for node in range(n_nodes - 1, n_leaves - 1, -1):
        cursor, child = first[node], first_child[node]
        while child >= 0:
            first[child] = cursor
            cursor += size[child]
            child = next_sibling[child]
    return first
