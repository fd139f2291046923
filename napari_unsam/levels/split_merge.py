"""Split and merge along the tree: the closest region, its parts, the larger region."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from napari_unsam.model.mask import BoxMask, node_mask
from napari_unsam.model.plane import Plane
from napari_unsam.viewer.object_write import ObjectWrite
from unsam_mm.masks.hierarchy import MaskHierarchy

_MIN_PART_SHARE = 0.05  # of the area of a region; smaller children are slivers of its outline
_SAME_REGION_IOU = 0.9
_MIN_GAIN = 0.1  # in IoU; regions of the main tree are preferred over those of other trees


def region_ious(tree: MaskHierarchy, mask: np.ndarray, top: int, left: int) -> np.ndarray:
    """(N,) IoU of every region of a tree with a mask.

    Args:
        tree: Tree over a plane.
        mask: (h, w) bool mask within a box of the plane.
        top: First row of the box.
        left: First column of the box.
    """
    leaves = tree.leaf_labels[top : top + mask.shape[0], left : left + mask.shape[1]][mask]
    shared = tree.tree.sums_of_leaves(np.bincount(leaves, minlength=tree.n_leaves))
    return shared / (tree.area + len(leaves) - shared)


def closest_region(trees: Sequence[MaskHierarchy], mask: np.ndarray, top: int = 0, left: int = 0) -> tuple[int, int]:
    """The region with the largest IoU with a mask; of the first tree unless another tree has a clearly better one.

    Args:
        trees: Trees over one plane; the first is the main one.
        mask: (h, w) bool mask within a box of the plane.
        top: First row of the box.
        left: First column of the box.

    Returns:
        The index of the tree, and the node.
    """
    best, best_iou = (0, 0), -1.0
    for source, tree in enumerate(trees):
        ious = region_ious(tree, mask, top, left)
        node = int(ious.argmax())
        if ious[node] > best_iou + (_MIN_GAIN if best[0] == 0 else 0):
            best, best_iou = (source, node), ious[node]
    return best


def parts_of(tree: MaskHierarchy, node: int) -> np.ndarray:
    """(K,) the parts of a region, K >= 2; empty if it has no parts.

    Parts are its children, without slivers of its outline; if only one child is left, the children of that child.
    """
    least = _MIN_PART_SHARE * tree.area[node]
    while True:
        children = tree.children(node)
        children = children[tree.area[children] >= least]
        if len(children) != 1:
            return children
        node = int(children[0])


def larger_region(tree: MaskHierarchy, node: int) -> int | None:
    """The smallest clearly larger region that contains a region; None if that would be the whole plane."""
    up = int(tree.parent[node])
    while up >= 0 and tree.area[node] > _SAME_REGION_IOU * tree.area[up]:
        up = int(tree.parent[up])
    return None if up < 0 or up == len(tree) - 1 else up


def split_writes(
    plane: Plane, labels: np.ndarray, label: int, tree: MaskHierarchy, parts: np.ndarray, first_label: int
) -> list[ObjectWrite]:
    """Replaces an object by parts; pixels of other objects are not changed.

    Args:
        plane: The plane.
        labels: (H, W) labels of the plane.
        label: Label of the object.
        tree: Tree over the plane.
        parts: (K,) nodes of the parts.
        first_label: Label of the first part; the others are numbered from it.

    Returns:
        The objects to write, without parts that have no free pixel.
    """
    writes, left = [], labels == label
    for node in parts:
        part = node_mask(tree, node)
        there = labels[part.slices]
        mask = part.mask & ((there == label) | (there == 0))
        if mask.any():
            left[part.slices] &= ~mask
            found, row = BoxMask(part.box_xyxy, mask), {'score': part.score}
            writes.append(ObjectWrite.on_plane(plane, found, first_label + len(writes), row))
    return writes + _erasing(plane, left)


def merge_writes(
    plane: Plane, labels: np.ndarray, label: int, tree: MaskHierarchy, whole: int
) -> tuple[list[ObjectWrite], list[int]]:
    """Replaces an object, and all others of which more than half lies in a region, by that region.

    Args:
        plane: The plane.
        labels: (H, W) labels of the plane.
        label: Label of the object; the region gets the same label.
        tree: Tree over the plane.
        whole: Node of the region.

    Returns:
        The objects to write, and the labels of the other replaced objects.
    """
    region = node_mask(tree, whole)
    there = labels[region.slices]
    others, counts = np.unique(there[region.mask], return_counts=True)
    merged = [
        int(other)
        for other, count in zip(others, counts, strict=True)
        if other and (other == label or 2 * count > np.count_nonzero(labels == other))
    ]
    mask = region.mask & ((there == 0) | np.isin(there, [label, *merged]))
    left = np.isin(labels, [label, *merged])
    left[region.slices] &= ~mask
    write = ObjectWrite.on_plane(plane, BoxMask(region.box_xyxy, mask), label, {'score': region.score})
    return [write, *_erasing(plane, left)], [other for other in merged if other != label]


def _erasing(plane: Plane, mask: np.ndarray) -> list[ObjectWrite]:
    """The write that erases the pixels of an (H, W) mask, in a list; an empty list if the mask is empty."""
    return [ObjectWrite.on_plane(plane, BoxMask.of(mask), 0)] if mask.any() else []
