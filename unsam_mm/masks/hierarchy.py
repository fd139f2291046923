"""Region trees: the hierarchy of masks of an image.

The leaves of a `MaskHierarchy` are the regions of a partition of the image, its inner nodes are unions of them. Areas,
overlaps, paths, cuts and run lengths follow from the partition and the tree, without drawing masks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numba
import numpy as np

from unsam_mm.errors import DamagedError, StoreError, UnSAMError
from unsam_mm.files import atomic_writer
from unsam_mm.masks.granularity import area_granularity
from unsam_mm.masks.laminar import laminar_trees
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.ops import parents_by_containment
from unsam_mm.masks.partition import Partition
from unsam_mm.masks.rle import LabelRuns, Rle
from unsam_mm.masks.tree import Tree, check_values, nearest_ancestors
from unsam_mm.npz import read_npz

_FORMAT = 1
"""Incremented when older files can no longer be read."""

_ARRAYS = ('leaf_labels', 'parent', 'height', 'score')


@dataclass(frozen=True, eq=False)
class MaskHierarchy:
    """A region tree of an image with a score for each region. Build it with `from_merges` or `from_masks`.

    Nodes 0..L-1 are the leaves, in depth-first order; a parent always has a larger number than its children, so the
    root is N-1.

    Attributes:
        partition: The leaves as regions of the image; trees of one image may share a partition.
        tree: The tree over these regions.
        score: (N,) float32 in [0, 1]; objectness of the node. `select` leaves out nodes with the score 0: nodes that
            only complete the partition, and duplicates of nodes of other trees.
        alternatives: Other trees of the same image, whose masks `select` includes. This tree is the main one; the
            others add masks that partially overlap its regions or differ slightly from them.

    Raises:
        UnSAMError: If the partition and the tree differ in the number of leaves, an alternative has another size, or a
            score is invalid.
    """

    partition: Partition
    tree: Tree
    score: np.ndarray
    alternatives: tuple[MaskHierarchy, ...] = ()

    def __post_init__(self) -> None:
        score = np.asarray(self.score)
        check_values('score', score, self.parent.shape)
        if (wrong := ~((score >= 0) & (score <= 1))).any():
            raise UnSAMError(f'score must lie in [0, 1], got {score[wrong][0]}')
        object.__setattr__(self, 'score', score.astype(np.float32, copy=False))
        if len(self.partition) != self.tree.n_leaves:
            raise UnSAMError(
                f'the label map has {len(self.partition)} labels, but the tree has {self.tree.n_leaves} leaves; '
                'expected one leaf for each label'
            )
        if sizes := {tree.size_hw for tree in self.alternatives} - {self.size_hw}:
            raise UnSAMError(
                f'alternatives must be trees of the same image of {self.size_hw} px, found one of {sizes.pop()} px'
            )

    @classmethod
    def from_merges(
        cls,
        leaf_labels: np.ndarray | Partition,
        parent: np.ndarray,
        height: np.ndarray,
        score: np.ndarray | None = None,
    ) -> MaskHierarchy:
        """Builds a tree from merges; leaves are renumbered depth-first.

        Args:
            leaf_labels: (H, W) integers 0..L-1, every value used, or a partition, which trees may share. Label i is
                node i of `parent`, `height` and `score`.
            parent: (N,) integers; parent[i] > i, except -1 at the root, which is the last node.
            height: (N,) floats; raised where needed so that no node is lower than a child.
            score: (N,) floats in [0, 1]; by default the persistence, which is the height of the parent minus that of
                the node, divided by the largest such difference, and at least 1e-6.

        Raises:
            UnSAMError: If `parent` is not a tree in this order, the labels are not its leaves, or heights or scores are
                invalid.
        """
        partition = leaf_labels if isinstance(leaf_labels, Partition) else Partition(leaf_labels)
        tree = Tree(parent, height)
        if score is None:
            persistence = tree.persistence / max(float(tree.persistence.max()), np.finfo(np.float32).tiny)
            score = np.maximum(persistence, 1e-6)  # 0 is the score of nodes that are not masks
        else:
            score = np.asarray(score)
            check_values('score', score, tree.parent.shape)
            score = tree.renumbered(score)
        return cls(partition, tree, score)

    @classmethod
    def from_masks(cls, rles: list[Rle], scores: np.ndarray, size_hw: tuple[int, int]) -> MaskHierarchy:
        """Builds a hierarchy from any masks; masks that partially overlap others go into the alternatives.

        Args:
            rles: K masks; empty masks and duplicates are left out.
            scores: (K,) in (0, 1]; masks are assigned to trees in descending order of score.
            size_hw: Height and width of the image in pixels.

        Raises:
            UnSAMError: If a mask has another size than the image, or scores are out of range or differ in number.
        """
        first, *others = (cls.from_merges(*tree) for tree in laminar_trees(rles, scores, size_hw))
        return replace(first, alternatives=tuple(others))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> MaskHierarchy:
        """The hierarchy from the arrays of `to_arrays`.

        Raises:
            UnSAMError: If the arrays do not describe trees of one image.
        """
        try:
            count, rest = divmod(len(arrays), len(_ARRAYS))
            if rest or not all(isinstance(values, np.ndarray) for values in arrays.values()):
                raise ValueError(f'found {", ".join(arrays)}')
            # `from_merges` validates the arrays; it does not renumber leaves that are in depth-first order already.
            first, *others = (cls.from_merges(*(arrays[f'{name}_{i}'] for name in _ARRAYS)) for i in range(count))
            return replace(first, alternatives=tuple(others))
        except (KeyError, ValueError) as error:
            raise UnSAMError(f'the arrays are not region trees of one image ({error}); make them again') from error

    @classmethod
    def load(cls, path: str | Path) -> MaskHierarchy:
        """Reads a file that `save` wrote.

        Raises:
            StoreError: If the file is missing or cannot be read.
            DamagedError: If the file is damaged, or was not written by `save`.
        """
        try:
            arrays = read_npz(path)
        except FileNotFoundError as error:
            raise StoreError(f'{path}: no such file; make it with MaskHierarchy.save(path)') from error
        found = arrays.pop('hierarchy_format', None)
        if found is None or found.shape or found.dtype.kind not in 'iu' or found != _FORMAT:
            raise DamagedError(f'{path}: contains no region trees of format {_FORMAT}; make it again')
        try:
            return cls.from_arrays(arrays)
        except UnSAMError as error:
            raise DamagedError(f'{path}: {error}') from error

    def save(self, path: str | Path) -> None:
        """Writes the tree and its alternatives to one compressed .npz file, atomically.

        Args:
            path: Path of the file, usually with the suffix .npz.

        Raises:
            StoreError: If the folder cannot be written or the disk is full.
        """
        with atomic_writer(path, binary=True) as file:
            np.savez_compressed(file, hierarchy_format=np.int64(_FORMAT), **self.to_arrays())

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Arrays ``leaf_labels_i``, ``parent_i``, ``height_i`` and ``score_i`` by name, for each tree ``trees[i]``."""
        return {f'{name}_{i}': getattr(tree, name) for i, tree in enumerate(self.trees) for name in _ARRAYS}

    def __len__(self) -> int:
        return len(self.tree)

    @property
    def trees(self) -> tuple[MaskHierarchy, ...]:
        """This tree and its alternatives."""
        return (self, *self.alternatives)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.partition.size_hw

    @property
    def parent(self) -> np.ndarray:
        """(N,) int64; -1 at the root."""
        return self.tree.parent

    @property
    def height(self) -> np.ndarray:
        """(N,) float32, such as the dissimilarity at which the children were merged; never below that of a child."""
        return self.tree.height

    @property
    def n_leaves(self) -> int:
        """Number of leaves (finest regions)."""
        return self.tree.n_leaves

    @property
    def first_leaf(self) -> np.ndarray:
        """(N,) int64; the node contains the leaves ``first_leaf[node]`` to ``end_leaf[node] - 1``."""
        return self.tree.first_leaf

    @property
    def end_leaf(self) -> np.ndarray:
        """(N,) int64, exclusive end of the leaf interval of each node."""
        return self.tree.end_leaf

    @property
    def level(self) -> np.ndarray:
        """(N,) float32 in [0, 1], the level at which a node is formed: 1 - log(k) / log(L) if k regions are then left.

        The level of leaves is 0, that of the root 1. A cut at level l has about L ** (1 - l) regions, so equal steps of
        l divide the number of regions by equal factors.
        """
        return self.tree.level

    @cached_property
    def leaf_labels(self) -> np.ndarray:
        """(H, W) int32; the leaf that contains each pixel, numbered depth-first."""
        return self.tree.leaf_of_region.astype(np.int32)[self.partition.labels]

    @cached_property
    def area(self) -> np.ndarray:
        """(N,) int64 area of each node in pixels."""
        return self.tree.sums(self.partition.areas)

    @cached_property
    def granularity(self) -> np.ndarray:
        """(N,) float32 in [0, 1], see `unsam_mm.masks.granularity`; never larger than that of the parent."""
        return area_granularity(self.area, self.partition.labels.size).astype(np.float32)

    @cached_property
    def boxes_xyxy(self) -> np.ndarray:
        """(N, 4) float32 bounding boxes in pixels; right and bottom edges exclusive."""
        return self.tree.boxes(self.partition.boxes_xyxy).astype(np.float32)

    @cached_property
    def border_share(self) -> np.ndarray:
        """(N,) float32 in [0, 1]: fraction of the pixels at the image border that belong to each node."""
        return self.tree.sums(self.partition.border_share).astype(np.float32)

    @cached_property
    def moments(self) -> np.ndarray:
        """(5, N) float64 sums of y, x, y * y, x * x and x * y over the pixels of each node."""
        return np.stack([self.tree.sums(values) for values in self.partition.moments])

    @property
    def relative_persistence(self) -> np.ndarray:
        """(N,) float32 in [0, 1]: the persistence of each node divided by the height of the root; 1 at the root."""
        persistence = self.tree.persistence / max(float(self.height[-1]), 1e-12)
        persistence[-1] = 1
        return persistence

    @cached_property
    def hashes(self) -> np.ndarray:
        """(N,) uint64 hash of the pixels of each node; equal pixels have equal hashes in all trees of an image."""
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(self.partition.hashes[self.tree.region_of_leaf])])
        return sums[self.end_leaf] - sums[self.first_leaf]

    @cached_property
    def _runs(self) -> LabelRuns:
        return self.partition.runs.in_order(self.tree.region_of_leaf)

    def children(self, node: int) -> np.ndarray:
        """(K,) numbers of the children of a node; empty for a leaf."""
        return np.flatnonzero(self.parent == node)

    def path(self, y: int, x: int) -> np.ndarray:
        """(K,) node numbers from the leaf at pixel (y, x) to the root: nested masks, finest first.

        Raises:
            UnSAMError: If the pixel lies outside the image.
        """
        height, width = self.size_hw
        if not (0 <= y < height and 0 <= x < width):
            raise UnSAMError(f'pixel (y={y}, x={x}) lies outside the {height} x {width} image')
        return self.tree.path(self.leaves_at(int(y), int(x)))

    def leaves_at(self, y: np.ndarray | int, x: np.ndarray | int) -> np.ndarray:
        """(...) int64 leaves that contain the pixels in (...) rows `y` and columns `x`, all inside the image."""
        return self.tree.leaf_of_region[self.partition.labels[y, x]]

    def mask(self, node: int) -> np.ndarray:
        """(H, W) bool mask of one node."""
        leaves = self.tree.leaf_of_region
        return ((leaves >= self.first_leaf[node]) & (leaves < self.end_leaf[node]))[self.partition.labels]

    def cut_nodes(self, level: float) -> np.ndarray:
        """(K,) the coarsest nodes formed at or below a level, in the order of their leaves; they partition the image.

        Args:
            level: In [0, 1]; 0 gives the leaves, 1 the whole image.

        Raises:
            UnSAMError: If `level` lies outside [0, 1].
        """
        if not 0 <= level <= 1:
            raise UnSAMError(f'level must lie in [0, 1], got {level}')
        is_below = self.level <= level
        is_below[: self.n_leaves] = True
        is_coarsest = np.append(~is_below[self.parent[:-1]], True)
        nodes = np.flatnonzero(is_below & is_coarsest)
        return nodes[np.argsort(self.first_leaf[nodes])]

    def cut(self, level: float) -> np.ndarray:
        """(H, W) int32 label map of a cut, labels 1..K; every pixel belongs to exactly one region.

        Label i is node ``cut_nodes(level)[i - 1]``; 0 is not used, since viewers show it as background.

        Raises:
            UnSAMError: If `level` lies outside [0, 1].
        """
        nodes = self.cut_nodes(level)
        n_leaves = self.end_leaf[nodes] - self.first_leaf[nodes]
        leaf_labels = np.repeat(np.arange(1, len(nodes) + 1, dtype=np.int32), n_leaves)
        return leaf_labels[self.tree.leaf_of_region][self.partition.labels]

    def iou(self, node: int, others: np.ndarray) -> np.ndarray:
        """(K,) IoU of `node` with (K,) `others` of this tree: the ratio of areas for nested nodes, else 0."""
        shared = _shared_in_tree(self, np.array([node]), np.asarray(others))[0]
        return shared / (self.area[node] + self.area[others] - shared)

    def select(self, max_masks: int = 1000, min_area_px: int = 1) -> MaskSet:
        """The masks with the highest scores of this tree and its alternatives, without duplicates.

        Args:
            max_masks: Maximum number of masks.
            min_area_px: Smaller masks are left out.

        Raises:
            UnSAMError: If `max_masks` is not a whole number above 0.
        """
        tree_index, nodes = self.best_nodes(max_masks, min_area_px)
        return self.to_mask_set(nodes, tree_index)

    def best_nodes(self, max_masks: int = 1000, min_area_px: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The nodes that `select` returns: (K,) indices of their trees in `trees`, and (K,) node numbers.

        See `select` for the arguments.

        Raises:
            UnSAMError: If `max_masks` is not a whole number above 0.
        """
        if max_masks < 1 or int(max_masks) != max_masks:
            raise UnSAMError(f'max_masks must be a whole number of at least 1, got {max_masks}')
        candidates = [np.flatnonzero((tree.area >= min_area_px) & (tree.score > 0)) for tree in self.trees]
        tree_index = np.repeat(np.arange(len(self.trees)), [len(nodes) for nodes in candidates])
        nodes = np.concatenate(candidates)
        best = np.argsort(-self.gather('score', tree_index, nodes), kind='stable')
        _, firsts = np.unique(self.gather('hashes', tree_index, nodes)[best], return_index=True)
        best = best[np.sort(firsts)[: int(max_masks)]]
        return tree_index[best], nodes[best]

    def gather(self, name: str, tree_index: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        """The values of nodes of several trees.

        Args:
            name: Name of an attribute with a value for each node, such as 'score'.
            tree_index: (K,) index of the tree of each node in `trees`, as from `best_nodes`.
            nodes: (K,) node numbers.

        Returns:
            (K, ...) values.
        """
        values = [getattr(tree, name) for tree in self.trees]
        starts = np.cumsum([0, *(len(tree) for tree in self.trees[:-1])])
        return np.concatenate(values)[starts[tree_index] + nodes]

    def rle(self, node: int) -> Rle:
        """The mask of one node as COCO's compressed RLE."""
        return self._runs.encode(self.first_leaf[node], self.end_leaf[node])

    def to_mask_set(self, nodes: np.ndarray, tree_index: np.ndarray | None = None) -> MaskSet:
        """The given nodes as a mask set, in the given order.

        Args:
            nodes: (K,) node numbers.
            tree_index: (K,) index of the tree of each node in `trees`, as from `best_nodes`; by default this tree.
        """
        nodes = np.asarray(nodes, np.int64)
        tree_index = np.zeros(len(nodes), np.int64) if tree_index is None else np.asarray(tree_index, np.int64)
        areas = self.gather('area', tree_index, nodes)
        order = np.argsort(tree_index, kind='stable')
        shared = np.empty((len(nodes), len(nodes)))
        shared[np.ix_(order, order)] = intersections(
            self.trees, [nodes[tree_index == number] for number in range(len(self.trees))]
        )
        return MaskSet(
            rles=[self.trees[number].rle(node) for number, node in zip(tree_index, nodes, strict=True)],
            scores=self.gather('score', tree_index, nodes),
            parents=parents_by_containment(shared == areas[:, None], areas),
            areas=areas,
            boxes_xyxy=self.gather('boxes_xyxy', tree_index, nodes),
            size_hw=self.size_hw,
        )


def intersections(trees: Sequence[MaskHierarchy], nodes: Sequence[np.ndarray]) -> np.ndarray:
    """(K, K) float64 areas, in pixels, of the intersections of all pairs of nodes.

    Args:
        trees: Trees of the same image.
        nodes: Node numbers for each tree; K is their total number. The result is in the order of trees and nodes.
    """
    offsets = np.cumsum([0, *(len(chosen) for chosen in nodes)])
    shared = np.empty((offsets[-1], offsets[-1]))
    subtrees = [_Subtree(tree, chosen) for tree, chosen in zip(trees, nodes, strict=True)]
    for i, one in enumerate(subtrees):
        rows = slice(offsets[i], offsets[i + 1])
        shared[rows, rows] = _shared_in_tree(trees[i], nodes[i], nodes[i])
        for j, other in enumerate(subtrees[:i]):
            columns = slice(offsets[j], offsets[j + 1])
            block = _shared_across(one, other)
            shared[rows, columns], shared[columns, rows] = block, block.T
    return shared


def intersections_between(
    tree: MaskHierarchy, nodes: np.ndarray, other: MaskHierarchy, others: np.ndarray
) -> np.ndarray:
    """(K, K') float64 intersections, in pixels, of nodes of one tree with nodes of another tree of the same image."""
    return _shared_across(_Subtree(tree, nodes), _Subtree(other, others))


def ious(trees: Sequence[MaskHierarchy], nodes: Sequence[np.ndarray]) -> np.ndarray:
    """(K, K) float64 IoUs of nodes; see `intersections`."""
    shared = intersections(trees, nodes)
    areas = np.diag(shared)
    return shared / (areas[:, None] + areas[None] - shared)


class _Subtree:
    """A tree restricted to K distinct nodes, which are numbered 0..K-1, children before parents.

    Attributes:
        partition: The partition of the tree.
        node_of_region: (L,) number of the smallest of these nodes that contains each region; -1 if none does.
        parent: (K,) number of the smallest other node that contains each node; -1 if none does.
        number: The number of each node of the argument `nodes`, which may contain duplicates.
    """

    def __init__(self, tree: MaskHierarchy, nodes: np.ndarray) -> None:
        distinct, self.number = np.unique(np.asarray(nodes, np.int64), return_inverse=True)
        number = nearest_ancestors(tree.parent, distinct)
        up = tree.parent[distinct]
        self.partition, self.node_of_region = tree.partition, number[tree.tree.leaf_of_region]
        self.parent = np.where(up >= 0, number[up], -1)


def _shared_in_tree(tree: MaskHierarchy, nodes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(K, K') intersections of nodes of one tree in pixels: the area of the smaller node if they nest, else 0."""
    first, end, area = tree.first_leaf, tree.end_leaf, tree.area
    inside = (first[nodes][:, None] >= first[others]) & (end[nodes][:, None] <= end[others])
    around = (first[nodes][:, None] <= first[others]) & (end[nodes][:, None] >= end[others])
    return np.where(inside, area[nodes][:, None], np.where(around, area[others], 0))


def _shared_across(one: _Subtree, other: _Subtree) -> np.ndarray:
    """(K, K') float64 intersections in pixels, from the cells of both partitions; see `Partition.cells`.

    The area of a cell is counted for the smallest node of each subtree that contains it. Summing these counts over the
    descendants of two nodes gives the area of their intersection.
    """
    regions, other_regions, areas = one.partition.cells(other.partition)
    counts = _count(one.node_of_region[regions], other.node_of_region[other_regions], areas, one.parent, other.parent)
    return counts[one.number][:, other.number]


@numba.njit(nogil=True, cache=True)
def _count(nodes, other_nodes, areas, parent, other_parent):
    """(K, K') areas of intersections: areas of cells, summed over the descendants of both nodes."""
    n_nodes, n_others = len(parent), len(other_parent)
    counts = np.zeros((n_nodes + 1, n_others + 1))  # the last row and column, index -1, count pixels in no node
    for cell in range(len(areas)):
        counts[nodes[cell], other_nodes[cell]] += areas[cell]
    for node in range(n_nodes):
        counts[parent[node]] += counts[node]
    for row in counts[:n_nodes]:
        for other in range(n_others):
            row[other_parent[other]] += row[other]
    return counts[:n_nodes, :n_others].copy()
