"""Converts arbitrary masks to trees.

Masks of one tree are nested or disjoint (a laminar family); a mask that partially overlaps one of them goes into
another tree.
"""

from __future__ import annotations

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import Rle, run_edges
from unsam_mm.masks.tree import nested_regions


def laminar_trees(
    rles: list[Rle], scores: np.ndarray, size_hw: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Assigns each mask, in descending order of score, to the first tree in which it partially overlaps no mask.

    Args:
        rles: K masks; empty masks and duplicates are left out.
        scores: (K,) in (0, 1].
        size_hw: Height and width of the image in pixels.

    Returns:
        Leaf labels, parents, heights and scores of each tree, the arguments of `MaskHierarchy.from_merges`. Regions
        that were added to complete the partition have the score 0.

    Raises:
        UnSAMError: If a mask has another size than the image, a score is out of range, or the numbers of masks and
            scores differ.
    """
    scores = np.asarray(scores, np.float32)
    if len(scores) != len(rles):
        raise UnSAMError(f'every mask needs a score: got {len(rles)} masks and {len(scores)} scores')
    if wrong := [rle['size'] for rle in rles if tuple(rle['size']) != tuple(size_hw)]:
        raise UnSAMError(f'masks must have the size of the image, {tuple(size_hw)}; found one of {tuple(wrong[0])}')
    if (wrong := ~((scores > 0) & (scores <= 1))).any():
        raise UnSAMError(f'scores must lie in (0, 1], got {scores[wrong][0]}')
    runs = [run_edges(rle) for rle in rles]
    kept = _distinct(runs, scores)
    labels, member = _find_atoms([runs[i] for i in kept], size_hw)
    areas = np.bincount(labels.ravel(), minlength=member.shape[1])
    return [_build_tree(labels, areas, member[group], scores[kept[group]]) for group in _nested_groups(areas, member)]


def _distinct(runs: list[np.ndarray], scores: np.ndarray) -> np.ndarray:
    """Indices of the masks that are neither empty nor duplicates, in descending order of score."""
    kept, seen = [], {b''}  # an empty mask has no runs
    for i in np.argsort(-scores, kind='stable'):
        if (pixels := runs[i].tobytes()) not in seen:
            seen.add(pixels)
            kept.append(i)
    return np.array(kept, np.int64)


def _find_atoms(runs: list[np.ndarray], size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Partitions an image into atoms, the largest sets of pixels that are contained in exactly the same masks.

    Returns:
        (H, W) int32 atom of each pixel, 0..A-1, and (K, A) bool, True if mask k contains atom a.
    """
    # The column-major pixels are split at the start and end of every run: pixels of a piece belong to the same masks.
    n_pixels = size_hw[0] * size_hw[1]
    borders = np.unique(np.concatenate([np.array([0, n_pixels]), *(run.ravel() for run in runs)]))
    member = np.zeros((len(runs), len(borders)), np.int8)
    for row, run in zip(member, runs, strict=True):
        np.add.at(row, np.searchsorted(borders, run[:, 0]), 1)
        np.add.at(row, np.searchsorted(borders, run[:, 1]), -1)
    member = np.cumsum(member, axis=1, dtype=np.int8)[:, :-1].astype(bool)
    _, representative, atom = np.unique(np.packbits(member, axis=0), axis=1, return_index=True, return_inverse=True)
    if len(runs) == 0:
        representative, atom = np.array([0]), np.zeros(len(borders) - 1, np.int64)
    labels = np.repeat(atom.ravel().astype(np.int32), np.diff(borders)).reshape(size_hw[1], size_hw[0]).T
    return np.ascontiguousarray(labels), member[:, representative]


def _nested_groups(areas: np.ndarray, member: np.ndarray) -> list[np.ndarray]:
    """Indices of masks in groups, in which no two masks partially overlap; at least one group, which may be empty."""
    shared = (member * areas.astype(np.float64)) @ member.T.astype(np.float64)
    mask_areas = np.diag(shared)
    crosses = (shared > 0) & (shared < np.minimum(mask_areas[:, None], mask_areas[None]))
    groups: list[list[int]] = [[]]
    for i in range(len(mask_areas)):
        group = next((group for group in groups if not crosses[i, group].any()), None)
        if group is None:
            groups.append([i])
        else:
            group.append(i)
    return [np.array(group, np.int64) for group in groups]


def _build_tree(
    labels: np.ndarray, areas: np.ndarray, member: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Leaf labels, parents, heights and scores of the tree of nested or disjoint masks; see `laminar_trees`."""
    by_area = np.argsort(member @ areas, kind='stable')
    member, scores = member[by_area], scores[by_area]
    if len(member) == 0 or not member[-1].all():
        member = np.concatenate([member, np.ones((1, len(areas)), bool)])
        scores = np.append(scores, 0.0)
    # Masks are sorted by area, so the first mask that contains an atom is the smallest one.
    parent_mask = np.full(len(member), -1)
    for i in range(len(member) - 1):
        parent_mask[i] = i + 1 + member[i + 1 :, member[i].argmax()].argmax()
    leaf_of_atom, parent, node = nested_regions(member.argmax(axis=0), parent_mask)
    height, score = np.zeros(len(parent)), np.zeros(len(parent))
    height[node] = member @ areas / labels.size
    height[: leaf_of_atom.max() + 1] = 0  # leaves
    score[node] = scores
    return leaf_of_atom.astype(np.int32)[labels], parent, height, score
