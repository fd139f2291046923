"""Converts arbitrary masks to trees: masks of one tree are nested or disjoint; crossing masks go into further trees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import Rle, run_edges
from unsam_mm.masks.tree import nested_regions


@dataclass(frozen=True)
class _Atoms:
    """The partition of an image into sets of pixels that belong to the same masks.

    Attributes:
        labels: (H, W) int32 atom of each pixel, 0..A-1.
        areas: (A,) int64 in pixels.
        member: (K, A) bool; whether mask k contains atom a.
    """

    labels: np.ndarray
    areas: np.ndarray
    member: np.ndarray


def laminar_trees(
    rles: list[Rle], scores: np.ndarray, size_hw: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Assigns each mask, best first, to the first tree whose masks it does not cross.

    Args:
        rles: K masks; empty masks and duplicates are left out.
        scores: (K,) in (0, 1].
        size_hw: Height and width of the image in pixels.

    Returns:
        Leaf labels, parents, heights and scores of each tree, the arguments of `MaskHierarchy.from_merges`. Regions
        that are no masks but complete the partition have the score 0.

    Raises:
        UnSAMError: If a mask has another size than the image, or scores are out of range or differ in number.
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
    atoms = _find_atoms([runs[i] for i in kept], size_hw)
    return [_build(atoms, family, scores[kept]) for family in _families(atoms)]


def _distinct(runs: list[np.ndarray], scores: np.ndarray) -> np.ndarray:
    """Indices of the masks without empty masks and duplicates, best first."""
    kept, seen = [], {b''}
    for i in np.argsort(-scores, kind='stable'):
        if (pixels := runs[i].tobytes()) not in seen:
            seen.add(pixels)
            kept.append(i)
    return np.array(kept, np.int64)


def _find_atoms(runs: list[np.ndarray], size_hw: tuple[int, int]) -> _Atoms:
    """Splits the column-major pixels at all run borders; segments in the same masks form one atom."""
    n_pixels = size_hw[0] * size_hw[1]
    borders = np.unique(np.concatenate([np.array([0, n_pixels]), *(run.ravel() for run in runs)]))
    held = np.zeros((len(runs), len(borders)), np.int8)
    for row, run in zip(held, runs, strict=True):
        np.add.at(row, np.searchsorted(borders, run[:, 0]), 1)
        np.add.at(row, np.searchsorted(borders, run[:, 1]), -1)
    held = np.cumsum(held, axis=1, dtype=np.int8)[:, :-1].astype(bool)
    _, example, atom = np.unique(np.packbits(held, axis=0), axis=1, return_index=True, return_inverse=True)
    if len(runs) == 0:
        example, atom = np.array([0]), np.zeros(len(borders) - 1, np.int64)
    atom = atom.ravel()
    lengths = np.diff(borders)
    labels = np.repeat(atom.astype(np.int32), lengths).reshape(size_hw[1], size_hw[0]).T
    areas = np.bincount(atom, lengths, minlength=len(example)).astype(np.int64)
    return _Atoms(np.ascontiguousarray(labels), areas, held[:, example])


def _families(atoms: _Atoms) -> list[np.ndarray]:
    """Groups of mask indices; no two masks of a group cross."""
    weighted = atoms.member * atoms.areas.astype(np.float64)
    shared = weighted @ atoms.member.T.astype(np.float64)
    areas = np.diag(shared)
    crosses = (shared > 0) & (shared < np.minimum(areas[:, None], areas[None]))
    families: list[list[int]] = [[]]
    for i in range(len(areas)):
        home = next((family for family in families if not crosses[i, family].any()), None)
        if home is None:
            families.append([i])
        else:
            home.append(i)
    return [np.array(family, np.int64) for family in families]


def _build(
    atoms: _Atoms, family: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    n_pixels = int(atoms.areas.sum())
    areas = atoms.member[family] @ atoms.areas
    family = family[np.argsort(areas, kind='stable')]
    member, mask_scores = atoms.member[family], scores[family]
    if len(family) == 0 or areas.max() < n_pixels:
        member = np.concatenate([member, np.ones((1, len(atoms.areas)), bool)])
        mask_scores = np.append(mask_scores, 0.0)
    # Masks are sorted by area, so the first mask with an atom is the smallest.
    up = np.full(len(member), -1)
    for i in range(len(member) - 1):
        up[i] = i + 1 + member[i + 1 :, member[i].argmax()].argmax()
    leaf_of_atom, parent, node = nested_regions(member.argmax(axis=0), up)
    height, score = np.zeros(len(parent)), np.zeros(len(parent))
    height[node] = member @ atoms.areas / n_pixels
    height[: leaf_of_atom.max() + 1] = 0
    score[node] = mask_scores
    return leaf_of_atom.astype(np.int32)[atoms.labels], parent, height, score
