"""The two values that everything else passes around: a tree of regions and a set of masks.

`MaskHierarchy` is a tree whose leaves tile the image and whose inner nodes are unions of leaves.
The leaves are numbered in depth-first order, so every node is an interval of leaf numbers: two nodes
either nest or are disjoint, and areas, overlaps, paths, cuts and run lengths need no pixel.

`MaskSet` is a flat list of masks as COCO run lengths, with the parent relation kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.rle import LabelRuns, Rle, decode_rles, encode_bitmaps, rle_to_json


@dataclass(frozen=True, eq=False)
class MaskSet:
    """Masks of one image, best first.

    Attributes:
        rles: N run-length encodings, ``{'size': [H, W], 'counts': bytes}``.
        scores: (N,) float32 in [0, 1], not increasing where the set comes from `MaskHierarchy.select`.
        granularity: (N,) float32 in [0, 1]; 0 is the finest, 1 the whole image.
        parents: (N,) int64 index, within this set, of the smallest mask that holds this one; -1 if none does.
        areas: (N,) int64 in pixels.
        boxes_xyxy: (N, 4) float32 in pixels; the right and bottom edges are exclusive.
        size_hw: Height and width of the image in pixels.
    """

    rles: list[Rle]
    scores: np.ndarray
    granularity: np.ndarray
    parents: np.ndarray
    areas: np.ndarray
    boxes_xyxy: np.ndarray
    size_hw: tuple[int, int]

    def __post_init__(self) -> None:
        lengths = {
            name: len(getattr(self, name))
            for name in ('rles', 'scores', 'granularity', 'parents', 'areas', 'boxes_xyxy')
        }
        if len(set(lengths.values())) != 1:
            raise UnSAMError(f'MaskSet fields must have one length, got {lengths}')

    @classmethod
    def from_bitmaps(cls, masks: np.ndarray, scores: np.ndarray | None = None) -> MaskSet:
        """Wraps boolean masks of shape (N, H, W); parents are found by containment, granularity is sqrt(area share).

        Args:
            masks: Array of shape (N, H, W); what is not zero belongs to the mask.
            scores: (N,) floats in [0, 1]; ones if not given.
        """
        masks = np.asarray(masks, bool)
        rles = encode_bitmaps(masks)
        areas = masks.sum(axis=(1, 2), dtype=np.int64)
        size_hw = masks.shape[1:]
        return cls(
            rles=rles,
            scores=np.ones(len(masks), np.float32) if scores is None else np.asarray(scores, np.float32),
            granularity=np.sqrt(areas / max(size_hw[0] * size_hw[1], 1)).astype(np.float32),
            parents=_parents_by_containment(masks, areas),
            areas=areas,
            boxes_xyxy=_boxes_of_bitmaps(masks),
            size_hw=size_hw,
        )

    def __len__(self) -> int:
        return len(self.rles)

    def __iter__(self) -> Iterator[MaskSet]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int | slice | np.ndarray | list[int]) -> MaskSet:
        """The masks at `index` as a smaller set; a parent that is left out is replaced by its own parent.

        Raises:
            IndexError: If an index is out of range.
        """
        kept = np.atleast_1d(np.arange(len(self))[index])
        position = np.full(len(self) + 1, -1)
        position[kept] = np.arange(len(kept))
        parents = self.parents[kept]
        while (lost := (parents >= 0) & (position[parents] < 0)).any():
            parents = np.where(lost, self.parents[parents], parents)
        return MaskSet(
            rles=[self.rles[i] for i in kept],
            scores=self.scores[kept],
            granularity=self.granularity[kept],
            parents=np.where(parents >= 0, position[parents], -1),
            areas=self.areas[kept],
            boxes_xyxy=self.boxes_xyxy[kept],
            size_hw=self.size_hw,
        )

    def to_bitmaps(self) -> np.ndarray:
        """Boolean masks of shape (N, H, W). A large set takes N * H * W bytes: slice it first."""
        return decode_rles(self.rles, self.size_hw)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO result records, one a mask, with `granularity` and `parent` (index in this list) added."""
        boxes_xywh = self.boxes_xyxy.copy()
        boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
        return [
            {
                'image_id': image_id,
                'category_id': 1,
                'segmentation': rle_to_json(rle),
                'area': int(self.areas[i]),
                'bbox': [float(side) for side in boxes_xywh[i]],
                'score': round(float(self.scores[i]), 6),
                'granularity': round(float(self.granularity[i]), 6),
                'parent': int(self.parents[i]),
            }
            for i, rle in enumerate(self.rles)
        ]


@dataclass(frozen=True, eq=False)
class MaskHierarchy:
    """A tree of regions over one image. Build it with `from_merges`.

    Nodes 0..L-1 are the leaves; a parent always has a larger number than its children, so the root is N-1.

    Attributes:
        leaf_labels: (H, W) int32; the leaf that holds each pixel, numbered depth-first.
        parent: (N,) int64; -1 at the root.
        height: (N,) float32; the dissimilarity at which the node was formed, 0 at the leaves, never
            smaller than at a child.
        score: (N,) float32 in [0, 1]; how much the node looks like an object.
    """

    leaf_labels: np.ndarray
    parent: np.ndarray
    height: np.ndarray
    score: np.ndarray

    @classmethod
    def from_merges(
        cls, leaf_labels: np.ndarray, parent: np.ndarray, height: np.ndarray, score: np.ndarray | None = None
    ) -> MaskHierarchy:
        """Renumbers the leaves depth-first and checks the tree.

        Args:
            leaf_labels: (H, W) integers 0..L-1, every value used.
            parent: (N,) integers; parent[i] > i, except -1 at the root, which is the last node.
            height: (N,) floats; raised where needed so that no node is lower than a child.
            score: (N,) floats in [0, 1]; by default the persistence: the height that the node survives
                before its parent is formed, over the largest such height.

        Raises:
            UnSAMError: If `parent` is not a tree in the order above, or the labels are not its leaves.
        """
        parent, height = np.asarray(parent, np.int64), np.asarray(height)
        labels = np.unique(leaf_labels)
        n_leaves = len(labels)
        if labels[0] != 0 or labels[-1] != n_leaves - 1:
            raise UnSAMError(f'leaf labels must be 0..{n_leaves - 1} without gaps, got {labels[0]}..{labels[-1]}')
        if height.shape != parent.shape:
            raise UnSAMError(f'every node needs a height: parent has shape {parent.shape}, height {height.shape}')
        _check_tree(parent, n_leaves)
        height = _monotone(np.asarray(height, np.float32), parent)
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

    def __len__(self) -> int:
        return len(self.parent)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.leaf_labels.shape

    @cached_property
    def n_leaves(self) -> int:
        """How many leaves (finest regions) there are."""
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
        """(N,) float32 in [0, 1]: 1 - log(k) / log(L), where k regions are left once the node is formed.

        Leaves have 0, the root 1, and a cut at granularity g has about L ** (1 - g) regions, so equal
        steps of g divide the number of regions by equal factors, whatever the image.
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
        for node in range(len(self) - 1):
            up = boxes[self.parent[node]]
            np.minimum(up[:2], boxes[node, :2], out=up[:2])
            np.maximum(up[2:], boxes[node, 2:], out=up[2:])
        return boxes.astype(np.float32)

    @cached_property
    def border_share(self) -> np.ndarray:
        """(N,) float32 in [0, 1]: how much of the image's outline each node touches."""
        outline = np.concatenate([self.leaf_labels[[0, -1]].ravel(), self.leaf_labels[:, [0, -1]].ravel()])
        return sum_over_descendants(np.bincount(outline, minlength=len(self)) / len(outline), self.parent).astype(
            np.float32
        )

    @cached_property
    def runs(self) -> LabelRuns:
        """The run structure of the leaf map, from which any node's RLE is read."""
        return LabelRuns(self.leaf_labels, self.n_leaves)

    def children(self, node: int) -> np.ndarray:
        """(K,) node numbers; empty for a leaf."""
        return np.flatnonzero(self.parent == node)

    def path(self, y: int, x: int) -> np.ndarray:
        """Node numbers from the finest region that holds pixel (y, x) up to the root: nested masks.

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

    def cut_nodes(self, granularity: float) -> np.ndarray:
        """(K,) the coarsest nodes whose granularity does not exceed the given one; together they tile the image.

        Args:
            granularity: In [0, 1]; 0 gives the leaves, 1 the whole image.

        Raises:
            UnSAMError: If `granularity` lies outside [0, 1].
        """
        if not 0 <= granularity <= 1:
            raise UnSAMError(f'granularity must lie in [0, 1], got {granularity}')
        below = self.granularity <= granularity
        below[: self.n_leaves] = True
        above = np.ones(len(self), bool)
        above[:-1] = ~below[self.parent[:-1]]
        nodes = np.flatnonzero(below & above)
        return nodes[np.argsort(self.first_leaf[nodes])]

    def cut(self, granularity: float) -> np.ndarray:
        """(H, W) int32 label map of one level of the hierarchy, labels 1..K; every pixel is in exactly one region.

        Label i is node ``cut_nodes(granularity)[i - 1]``; 0 is left free, since viewers draw it as background.
        """
        nodes = self.cut_nodes(granularity)
        sizes = self.last_leaf[nodes] - self.first_leaf[nodes]
        return np.repeat(np.arange(1, len(nodes) + 1, dtype=np.int32), sizes)[self.leaf_labels]

    def iou(self, node: int, others: np.ndarray) -> np.ndarray:
        """(K,) intersection over union of one node with others: the ratio of areas where they nest, else 0."""
        others = np.asarray(others)
        first, last = self.first_leaf, self.last_leaf
        nested = ((first[others] <= first[node]) & (last[node] <= last[others])) | (
            (first[node] <= first[others]) & (last[others] <= last[node])
        )
        area, area_others = self.area[node], self.area[others]
        return np.where(nested, np.minimum(area, area_others) / np.maximum(area, area_others), 0.0)

    def select(self, max_masks: int = 1000, min_area_px: int = 1) -> MaskSet:
        """The best nodes by score as a mask set; no two masks are equal.

        Args:
            max_masks: The largest number of masks wanted.
            min_area_px: Nodes smaller than this are left out.

        Raises:
            UnSAMError: If `max_masks` is not positive.
        """
        if max_masks < 1:
            raise UnSAMError(f'max_masks must be at least 1, got {max_masks}')
        candidates = np.flatnonzero(self.area >= min_area_px)
        best = candidates[np.argsort(-self.score[candidates], kind='stable')][:max_masks]
        return self.to_mask_set(best)

    def to_mask_set(self, nodes: np.ndarray) -> MaskSet:
        """The given nodes, in the given order, as a mask set."""
        nodes = np.asarray(nodes, np.int64)
        return MaskSet(
            rles=[self.runs.encode(self.first_leaf[node], self.last_leaf[node]) for node in nodes],
            scores=self.score[nodes],
            granularity=self.granularity[nodes],
            parents=self._nearest_ancestors(nodes),
            areas=self.area[nodes],
            boxes_xyxy=self.boxes_xyxy[nodes],
            size_hw=self.size_hw,
        )

    def _nearest_ancestors(self, nodes: np.ndarray) -> np.ndarray:
        """(K,) position in `nodes` of each node's nearest ancestor that is itself in `nodes`; -1 if none is."""
        position = np.full(len(self), -1, np.int64)
        position[nodes] = np.arange(len(nodes))
        nearest = np.full(len(self), -1, np.int64)
        for node in range(len(self) - 2, -1, -1):
            up = self.parent[node]
            nearest[node] = position[up] if position[up] >= 0 else nearest[up]
        return nearest[nodes]


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
            f'the label map has {n_leaves} leaves, the tree {int(is_leaf.sum())}; they must be its first nodes'
        )


def _monotone(height: np.ndarray, parent: np.ndarray) -> np.ndarray:
    height = height.copy()
    for node in range(len(parent) - 1):
        height[parent[node]] = max(height[parent[node]], height[node])
    return height


def _persistence(height: np.ndarray, parent: np.ndarray) -> np.ndarray:
    persistence = np.zeros_like(height)
    persistence[:-1] = height[parent[:-1]] - height[:-1]
    return persistence / max(float(persistence.max()), np.finfo(np.float32).tiny)


def sum_over_descendants(values: np.ndarray, parent: np.ndarray) -> np.ndarray:
    """(N,) the value of every node plus the values of all its descendants."""
    total = values.tolist()
    for node, up in enumerate(parent[:-1].tolist()):
        total[up] += total[node]
    return np.array(total, values.dtype)


def _first_leaves(parent: np.ndarray, n_leaves: int) -> np.ndarray:
    """(N,) depth-first number of the first leaf below each node; children are visited in order of node number.

    Applied to a tree whose leaves are already depth-first, the leaves keep their numbers.
    """
    n_nodes = len(parent)
    size = sum_over_descendants(
        np.r_[np.ones(n_leaves, np.int64), np.zeros(n_nodes - n_leaves, np.int64)], parent
    ).tolist()
    up = parent.tolist()
    # The smallest leaf number below each node orders siblings, which makes the numbering idempotent.
    smallest = list(range(n_leaves)) + [n_leaves] * (n_nodes - n_leaves)
    for node in range(n_nodes - 1):
        smallest[up[node]] = min(smallest[up[node]], smallest[node])
    children: list[list[int]] = [[] for _ in range(n_nodes)]
    for node in range(n_nodes - 1):
        children[up[node]].append(node)
    first = [0] * n_nodes
    for node in range(n_nodes - 1, n_leaves - 1, -1):
        cursor = first[node]
        for child in sorted(children[node], key=smallest.__getitem__):
            first[child] = cursor
            cursor += size[child]
    return np.array(first, np.int64)


def _boxes_of_labels(labels: np.ndarray, n_labels: int) -> np.ndarray:
    """(n_labels, 4) int64 x0, y0, x1, y1 of each label; right and bottom edges exclusive."""
    boxes = np.empty((n_labels, 4), np.int64)
    for axis, (low, high) in ((1, (0, 2)), (0, (1, 3))):
        index = np.broadcast_to(np.expand_dims(np.arange(labels.shape[axis]), 1 - axis), labels.shape).ravel()
        order = np.lexsort((index, labels.ravel()))
        sorted_labels, sorted_index = labels.ravel()[order], index[order]
        firsts = np.searchsorted(sorted_labels, np.arange(n_labels))
        lasts = np.r_[firsts[1:], len(sorted_labels)] - 1
        boxes[:, low], boxes[:, high] = sorted_index[firsts], sorted_index[lasts] + 1
    return boxes


def _boxes_of_bitmaps(masks: np.ndarray) -> np.ndarray:
    boxes = np.zeros((len(masks), 4), np.float32)
    for i, mask in enumerate(masks):
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(ys):
            boxes[i] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return boxes


def _parents_by_containment(masks: np.ndarray, areas: np.ndarray) -> np.ndarray:
    parents = np.full(len(masks), -1, np.int64)
    order = np.argsort(areas, kind='stable')
    for rank, i in enumerate(order):
        for j in order[rank + 1 :]:
            if areas[j] > areas[i] and not (masks[i] & ~masks[j]).any():
                parents[i] = j
                break
    return parents
