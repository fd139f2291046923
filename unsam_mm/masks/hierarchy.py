"""Region trees: the hierarchy of masks of an image.

The leaves of a `MaskHierarchy` partition the image, and its inner nodes are unions of leaves. Leaves are numbered in
depth-first order, so every node is an interval of leaf numbers: two nodes either nest or are disjoint, and areas,
overlaps, paths, cuts and run lengths are computed without pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numba
import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.granularity import area_granularity
from unsam_mm.masks.laminar import laminar_trees
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.overlaps import intersections
from unsam_mm.masks.rle import LabelRuns, Rle


@dataclass(frozen=True, eq=False)
class MaskHierarchy:
    """A region tree of an image. Build it with `from_merges` or `from_masks`.

    Nodes 0..L-1 are the leaves; a parent always has a larger number than its children, so the root is N-1.

    Attributes:
        leaf_labels: (H, W) int32; the leaf that holds each pixel, numbered depth-first.
        parent: (N,) int64; -1 at the root.
        height: (N,) float32; the dissimilarity at which the node was merged, 0 at the leaves; never smaller than that
            of a child.
        score: (N,) float32 in [0, 1]; objectness of the node. Nodes with the score 0 are no masks of their own; they
            only complete the partition, and `select` leaves them out.
        alternatives: Other trees of the same image, whose masks `select` includes. This tree is the main one; the
            others add masks that cross its regions or differ slightly from them.

    Raises:
        UnSAMError: If the arrays do not describe such a tree.
    """

    leaf_labels: np.ndarray
    parent: np.ndarray
    height: np.ndarray
    score: np.ndarray
    alternatives: tuple[MaskHierarchy, ...] = ()

    def __post_init__(self) -> None:
        for name in ('leaf_labels', 'parent', 'height', 'score'):
            if not isinstance(getattr(self, name), np.ndarray):
                raise UnSAMError(f'{name} must be an array, got {type(getattr(self, name)).__name__}')
        n_leaves = _count_labels(self.leaf_labels)
        _check_nodes(self.parent, self.height, self.score)
        _check_tree(self.parent, n_leaves)
        for name, dtype in (
            ('leaf_labels', np.int32),
            ('parent', np.int64),
            ('height', np.float32),
            ('score', np.float32),
        ):
            # The dtypes of the compiled functions, which do not support other byte orders.
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))
        if (self.height[:-1] > self.height[self.parent[:-1]]).any():
            raise UnSAMError('no node may be higher than its parent; build the tree with MaskHierarchy.from_merges')
        if (self.first_leaf[:n_leaves] != np.arange(n_leaves)).any():
            raise UnSAMError('leaves must be numbered depth-first; build the tree with MaskHierarchy.from_merges')
        if sizes := {tree.size_hw for tree in self.alternatives} - {self.size_hw}:
            raise UnSAMError(
                f'alternatives must be trees over the same {self.size_hw} px, found one over {sizes.pop()}'
            )

    @classmethod
    def from_merges(
        cls, leaf_labels: np.ndarray, parent: np.ndarray, height: np.ndarray, score: np.ndarray | None = None
    ) -> MaskHierarchy:
        """Builds a tree from merges; leaves are renumbered depth-first.

        Args:
            leaf_labels: (H, W) integers 0..L-1, every value used.
            parent: (N,) integers; parent[i] > i, except -1 at the root, which is the last node.
            height: (N,) floats; raised where needed so that no node is lower than a child.
            score: (N,) floats in [0, 1]; by default the persistence: the height that the node survives
                before its parent is formed, over the largest such height.

        Raises:
            UnSAMError: If `parent` is no tree in this order, the labels are not its leaves, or heights or scores are
                invalid.
        """
        leaf_labels, parent, height = np.asarray(leaf_labels), np.asarray(parent), np.asarray(height)
        n_leaves = _count_labels(leaf_labels)
        _check_nodes(parent, height, None if score is None else np.asarray(score))
        _check_tree(parent, n_leaves)
        parent = parent.astype(np.int64)
        height = _monotone(height.astype(np.float32), parent)
        if score is None:
            score = _persistence(height, parent)
        first_leaf = _first_leaves(parent, n_leaves)[:n_leaves]
        # Leaf i becomes leaf first_leaf[i]; inner nodes keep their numbers.
        order = np.argsort(first_leaf)
        renumbered = np.concatenate([order, np.arange(n_leaves, len(parent))])
        return cls(
            leaf_labels=first_leaf.astype(np.int32)[leaf_labels],
            parent=parent[renumbered],
            height=height[renumbered],
            score=np.asarray(score, np.float32)[renumbered],
        )

    @classmethod
    def from_masks(cls, rles: list[Rle], scores: np.ndarray, size_hw: tuple[int, int]) -> MaskHierarchy:
        """Builds a hierarchy from any masks; masks that cross others go into the alternatives.

        Args:
            rles: K masks; empty masks and duplicates are left out.
            scores: (K,) in (0, 1]; masks are assigned to trees in the order of their scores.
            size_hw: Height and width of the image in pixels.

        Raises:
            UnSAMError: If a mask has another size than the image, or scores are out of range or differ in number.
        """
        first, *others = (cls.from_merges(*tree) for tree in laminar_trees(rles, scores, size_hw))
        return replace(first, alternatives=tuple(others))

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.leaf_labels.shape

    @cached_property
    def n_leaves(self) -> int:
        """Number of leaves (finest regions)."""
        return int(self.leaf_labels.max()) + 1

    @cached_property
    def first_leaf(self) -> np.ndarray:
        """(N,) int64: the node holds the leaves first_leaf[node] .. last_leaf[node] - 1."""
        return _first_leaves(self.parent, self.n_leaves)

    @cached_property
    def last_leaf(self) -> np.ndarray:
        """(N,) int64, exclusive end of the leaf interval of each node."""
        return self.first_leaf + sum_over_descendants(
            np.r_[np.ones(self.n_leaves, np.int64), np.zeros(len(self) - self.n_leaves, np.int64)], self.parent
        )

    @cached_property
    def area(self) -> np.ndarray:
        """(N,) int64 area of each node in pixels."""
        areas = np.zeros(len(self), np.int64)
        areas[: self.n_leaves] = np.bincount(self.leaf_labels.ravel(), minlength=self.n_leaves)
        return sum_over_descendants(areas, self.parent)

    @cached_property
    def granularity(self) -> np.ndarray:
        """(N,) float32 in [0, 1], see `unsam_mm.masks.granularity`; never larger than that of the parent."""
        return area_granularity(self.area, self.leaf_labels.size).astype(np.float32)

    @cached_property
    def level(self) -> np.ndarray:
        """(N,) float32 in [0, 1], the level at which a node is formed: 1 - log(k) / log(L) for the k regions left then.

        The level of leaves is 0, that of the root 1. A cut at level l has about L ** (1 - l) regions, so equal steps of
        l divide the number of regions by equal factors.
        """
        n_inner = len(self) - self.n_leaves
        if n_inner == 0:
            return np.ones(len(self), np.float32)  # a single region is the whole image
        n_children = np.bincount(self.parent[:-1], minlength=len(self))[self.n_leaves :]
        left = self.n_leaves - np.cumsum(n_children - 1)
        inner = 1.0 - np.log(left) / np.log(self.n_leaves)
        return np.concatenate([np.zeros(self.n_leaves), inner]).astype(np.float32)

    @cached_property
    def boxes_xyxy(self) -> np.ndarray:
        """(N, 4) float32 bounding boxes in pixels; right and bottom edges exclusive."""
        boxes = np.empty((len(self), 4), np.int64)
        boxes[: self.n_leaves] = _boxes_of_labels(self.leaf_labels, self.n_leaves)
        boxes[self.n_leaves :] = [np.iinfo(np.int64).max] * 2 + [-1] * 2
        _grow_parents(boxes, self.parent)
        return boxes.astype(np.float32)

    @cached_property
    def border_share(self) -> np.ndarray:
        """(N,) float32 in [0, 1]: fraction of the pixels at the image border that belong to each node."""
        outline = np.concatenate([self.leaf_labels[[0, -1]].ravel(), self.leaf_labels[:, [0, -1]].ravel()])
        return sum_over_descendants(np.bincount(outline, minlength=len(self)) / len(outline), self.parent).astype(
            np.float32
        )

    @cached_property
    def runs(self) -> LabelRuns:
        """The runs of the leaf label map, from which the RLE of any node is computed."""
        return LabelRuns(self.leaf_labels, self.n_leaves)

    def children(self, node: int) -> np.ndarray:
        """(K,) node numbers; empty for a leaf."""
        return np.flatnonzero(self.parent == node)

    def path(self, y: int, x: int) -> np.ndarray:
        """(K,) node numbers from the leaf at pixel (y, x) to the root: nested masks, finest first.

        Raises:
            UnSAMError: If the pixel lies outside the image.
        """
        height, width = self.size_hw
        if not (0 <= y < height and 0 <= x < width):
            raise UnSAMError(f'pixel (y={y}, x={x}) lies outside the {height} x {width} image')
        nodes = [int(self.leaf_labels[int(y), int(x)])]
        while (up := self.parent[nodes[-1]]) >= 0:
            nodes.append(int(up))
        return np.array(nodes)

    def mask(self, node: int) -> np.ndarray:
        """(H, W) bool mask of one node."""
        return (self.leaf_labels >= self.first_leaf[node]) & (self.leaf_labels < self.last_leaf[node])

    def cut_nodes(self, level: float) -> np.ndarray:
        """(K,) the coarsest nodes formed at or below a level; they partition the image.

        Args:
            level: In [0, 1]; 0 gives the leaves, 1 the whole image.

        Raises:
            UnSAMError: If `level` lies outside [0, 1].
        """
        if not 0 <= level <= 1:
            raise UnSAMError(f'level must lie in [0, 1], got {level}')
        below = self.level <= level
        below[: self.n_leaves] = True
        above = np.ones(len(self), bool)
        above[:-1] = ~below[self.parent[:-1]]
        nodes = np.flatnonzero(below & above)
        return nodes[np.argsort(self.first_leaf[nodes])]

    def cut(self, level: float) -> np.ndarray:
        """(H, W) int32 label map of a cut, labels 1..K; every pixel belongs to exactly one region.

        Label i is node ``cut_nodes(level)[i - 1]``; 0 is not used, since viewers show it as background.
        """
        nodes = self.cut_nodes(level)
        sizes = self.last_leaf[nodes] - self.first_leaf[nodes]
        return np.repeat(np.arange(1, len(nodes) + 1, dtype=np.int32), sizes)[self.leaf_labels]

    def iou(self, node: int, others: np.ndarray) -> np.ndarray:
        """(K,) IoU of a node with others: the ratio of areas for nested nodes, else 0."""
        others = np.asarray(others)
        first, last = self.first_leaf, self.last_leaf
        nested = ((first[others] <= first[node]) & (last[node] <= last[others])) | (
            (first[node] <= first[others]) & (last[others] <= last[node])
        )
        area, area_others = self.area[node], self.area[others]
        return np.where(nested, np.minimum(area, area_others) / np.maximum(area, area_others), 0.0)

    def select(self, max_masks: int = 1000, min_area_px: int = 1) -> MaskSet:
        """The masks of the highest scores of this tree and its alternatives, without duplicates.

        Args:
            max_masks: Maximum number of masks.
            min_area_px: Smaller masks are left out.

        Raises:
            UnSAMError: If `max_masks` is not a whole number above 0.
        """
        source, nodes = self.best_nodes(max_masks, min_area_px)
        return self.to_mask_set(nodes, source)

    def best_nodes(self, max_masks: int = 1000, min_area_px: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The regions that `select` returns: (K,) numbers of their trees, 0 for this one, and (K,) node numbers.

        See `select` for the arguments.

        Raises:
            UnSAMError: If `max_masks` is not a whole number above 0.
        """
        if max_masks < 1 or int(max_masks) != max_masks:
            raise UnSAMError(f'max_masks must be a whole number of at least 1, got {max_masks}')
        trees = (self, *self.alternatives)
        candidates = [np.flatnonzero((tree.area >= min_area_px) & (tree.score > 0)) for tree in trees]
        source = np.repeat(np.arange(len(trees)), [len(nodes) for nodes in candidates])
        nodes = np.concatenate(candidates)
        scores = np.concatenate([tree.score[chosen] for tree, chosen in zip(trees, candidates, strict=True)])
        best: list[int] = []
        alike: dict[bytes, list[int]] = {}
        for i in np.argsort(-scores, kind='stable'):
            if len(best) == max_masks:
                break
            tree, node = trees[source[i]], nodes[i]
            rivals = alike.setdefault(tree.boxes_xyxy[node].tobytes() + tree.area[node].tobytes(), [])
            if rivals and tree.rle(node)['counts'] in [trees[source[k]].rle(nodes[k])['counts'] for k in rivals]:
                continue
            rivals.append(i)
            best.append(i)
        return source[best], nodes[best]

    def rle(self, node: int) -> Rle:
        """COCO run lengths of one node."""
        return self.runs.encode(self.first_leaf[node], self.last_leaf[node])

    def to_mask_set(self, nodes: np.ndarray, source: np.ndarray | None = None) -> MaskSet:
        """The given nodes as a mask set, in the given order.

        Args:
            nodes: (K,) node numbers.
            source: (K,) number of the tree of each node, as from `best_nodes`; by default this tree.
        """
        nodes = np.asarray(nodes, np.int64)
        source = np.zeros(len(nodes), np.int64) if source is None else np.asarray(source, np.int64)
        return _mask_set((self, *self.alternatives), source, nodes)


def _mask_set(trees: tuple[MaskHierarchy, ...], source: np.ndarray, nodes: np.ndarray) -> MaskSet:
    """The mask set of nodes of several trees; node i belongs to tree source[i]."""

    def gathered(name: str) -> np.ndarray:
        values = np.empty((len(nodes), *getattr(trees[0], name).shape[1:]), getattr(trees[0], name).dtype)
        for number, tree in enumerate(trees):
            values[source == number] = getattr(tree, name)[nodes[source == number]]
        return values

    areas = gathered('area')
    return MaskSet(
        rles=[trees[number].rle(node) for number, node in zip(source, nodes, strict=True)],
        scores=gathered('score'),
        parents=_smallest_holder(_holders(trees, source, nodes), areas),
        areas=areas,
        boxes_xyxy=gathered('boxes_xyxy'),
        size_hw=trees[0].size_hw,
    )


def _holders(trees: tuple[MaskHierarchy, ...], source: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """(K, K) bool; whether mask j contains mask i and is larger."""
    order = np.argsort(source, kind='stable')
    shared = intersections(trees, [nodes[order][source[order] == number] for number in range(len(trees))])
    areas = np.diag(shared)
    holds = np.empty(shared.shape, bool)
    holds[np.ix_(order, order)] = (shared == areas[:, None]) & (areas[None] > areas[:, None])
    return holds


def _smallest_holder(holders: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """(K,) index of the smallest mask that contains each mask; -1 if none does."""
    if len(areas) == 0:
        return np.zeros(0, np.int64)
    candidate_areas = np.where(holders, areas[None], np.iinfo(np.int64).max)
    return np.where(holders.any(axis=1), candidate_areas.argmin(axis=1), -1)


def _check_nodes(parent: np.ndarray, height: np.ndarray, score: np.ndarray | None) -> None:
    """Raises `UnSAMError` unless parents are integers, heights finite and scores in [0, 1], all of one length."""
    if parent.ndim != 1 or parent.dtype.kind not in 'iu':
        raise UnSAMError(f'parent must be whole numbers of shape (N,), got {parent.dtype}{parent.shape}')
    for name, values in (('height', height), ('score', score)):
        if values is None:
            continue
        if values.shape != parent.shape:
            raise UnSAMError(f'every node needs a {name}: parent has shape {parent.shape}, {name} {values.shape}')
        if values.dtype.kind not in 'fiu':
            raise UnSAMError(f'{name} must be numbers, got {values.dtype}')
    if (wrong := ~(np.abs(height) <= np.finfo(np.float32).max)).any():
        raise UnSAMError(f'height must be finite, got {height[wrong][0]}')
    if score is not None and (wrong := ~((score >= 0) & (score <= 1))).any():
        raise UnSAMError(f'score must lie in [0, 1], got {score[wrong][0]}')


def _check_tree(parent: np.ndarray, n_leaves: int) -> None:
    n_nodes = len(parent)
    if (
        n_nodes == 0
        or parent[-1] != -1
        or (parent[:-1] <= np.arange(n_nodes - 1)).any()
        or (parent[:-1] >= n_nodes).any()
    ):
        raise UnSAMError('parent must hold one root, as its last entry (-1), and parent[i] > i elsewhere')
    is_leaf = np.bincount(parent[:-1], minlength=n_nodes) == 0
    if is_leaf.sum() != n_leaves or not is_leaf[:n_leaves].all():
        raise UnSAMError(
            f'the label map has {n_leaves} labels, the tree {int(is_leaf.sum())} leaves; expected the labels as its first nodes'
        )


def _count_labels(labels: np.ndarray) -> int:
    """Number of labels; raises `UnSAMError` unless they are 0..L-1 without gaps."""
    if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in 'iu':
        raise UnSAMError(f'leaf labels must be whole numbers of shape (H, W), got {labels.dtype}{labels.shape}')
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= labels.size or not np.bincount(labels.ravel().astype(np.int64, copy=False)).all():
        raise UnSAMError(f'leaf labels must be 0..{len(np.unique(labels)) - 1} without gaps, got {low}..{high}')
    return high + 1


def _monotone(height: np.ndarray, parent: np.ndarray) -> np.ndarray:
    height = height.copy()
    _raise_parents(height, parent)
    return height


def _persistence(height: np.ndarray, parent: np.ndarray) -> np.ndarray:
    persistence = np.zeros_like(height)
    persistence[:-1] = height[parent[:-1]] - height[:-1]
    # Never 0, the score of nodes that are no masks.
    return np.maximum(persistence / max(float(persistence.max()), np.finfo(np.float32).tiny), 1e-6)


def sum_over_descendants(values: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """(N,) sum of the values of each node and all its descendants."""
    total = np.array(values)
    _add_to_parents(total, np.asarray(parent, np.int64))
    return total


@numba.njit(nogil=True, cache=True)
def _add_to_parents(total, parent):
    for node in range(len(parent) - 1):
        total[parent[node]] += total[node]


@numba.njit(nogil=True, cache=True)
def _raise_parents(height, parent):
    for node in range(len(parent) - 1):
        height[parent[node]] = max(height[parent[node]], height[node])


@numba.njit(nogil=True, cache=True)
def _grow_parents(boxes, parent):
    """Extends the box of every node to those of its children."""
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
    for position in range(n_nodes - 1, -1, -1):
        node = order[position]
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


@numba.njit(nogil=True, cache=True)
def _boxes_of_labels(labels, n_labels):
    """(n_labels, 4) int64 x0, y0, x1, y1 of each label; right and bottom edges exclusive."""
    boxes = np.empty((n_labels, 4), np.int64)
    boxes[:, :2], boxes[:, 2:] = max(labels.shape), 0
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            box = boxes[labels[y, x]]
            box[0], box[1] = min(box[0], x), min(box[1], y)
            box[2], box[3] = max(box[2], x + 1), max(box[3], y + 1)
    return boxes
