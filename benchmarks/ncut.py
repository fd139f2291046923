"""The second eigenvector of a normalized cut by Lanczos against scipy's dense solver, which the released code calls."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh

from benchmarks.inputs import Inputs, patch_keys
from benchmarks.timing import Comparison, Row, in_turns, one_thread
from unsam_mm.published.maskcut import second_eigenvector, similar_patches

_TAU = 0.15
_WEAK_EDGE = 1e-5


def run(inputs: Inputs, side: int = 60, repetitions: int = 3) -> Row:
    """Cuts the patch graph of a photograph in two.

    Args:
        inputs: Unused.
        side: Patches along each side; 60 is MaskCut's grid.
        repetitions: Runs of each side.
    """
    with one_thread():
        keys = patch_keys(side)
        similar = similar_patches(keys.reshape(side * side, -1), _TAU)
        second_eigenvector(similar)  # compiles
        sides = {'ours': lambda: second_eigenvector(similar), 'dense': lambda: dense_second_eigenvector(similar)}
        costs, vectors = in_turns(sides, repetitions)
    ours, dense = (vector > vector.mean() for vector in vectors.values())
    same = max(int((ours == dense).sum()), int((ours != dense).sum()))  # the sign of an eigenvector is arbitrary
    checked = f'{side} x {side} patches: {same} of {len(ours)} on the same side of the cut'
    return Row(
        'ncut',
        [Comparison('scipy.linalg.eigh, 2nd of 2', costs['ours'], costs['dense'], checked, same == len(ours))],
    )


def dense_second_eigenvector(similar: np.ndarray) -> np.ndarray:
    """(P,) float64 solution of the generalised problem (D - A) y = lambda D y for the second smallest lambda."""
    weights = np.where(similar, 1.0, _WEAK_EDGE)
    degrees = np.diag(weights.sum(axis=1))
    _, vectors = eigh(degrees - weights, degrees, subset_by_index=[1, 2])
    return vectors[:, 0]
