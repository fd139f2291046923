"""High-dimensional Gaussian filtering on the permutohedral lattice.

Values are splatted onto the vertices of the enclosing simplices, blurred along the axes of the lattice, and sliced. The
cost is linear in the number of points and quadratic in the number of dimensions.

Source: Adams, Baek and Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from unsam_mm.errors import UnSAMError

_CHUNK = 1 << 18  # points; bounds the temporary arrays


class PermutohedralFilter:
    """Approximates ``out[i] = sum_j exp(-|p_i - p_j|^2 / 2) * in[j]``, including j = i, up to a common factor.

    Args:
        points: (N, D) float coordinates, in units of the standard deviation along each dimension.

    Raises:
        UnSAMError: If the extent of the points is too large for 64-bit vertex numbers.
    """

    def __init__(self, points: np.ndarray) -> None:
        n_points, n_axes = points.shape
        chunks = [_corners(points[start : start + _CHUNK]) for start in range(0, n_points, _CHUNK)]
        corners = np.concatenate([corner for corner, _ in chunks])
        weights = np.concatenate([weight for _, weight in chunks])
        lowest = corners.reshape(-1, n_axes).min(axis=0) - n_axes
        extent = corners.reshape(-1, n_axes).max(axis=0) + n_axes + 1 - lowest
        if np.prod(extent.astype(float)) >= 2.0**62:
            raise UnSAMError('the points of a lattice filter are too far apart; use larger standard deviations')
        radix = np.cumprod(np.r_[1, extent[:-1]]).astype(np.int64)
        keys, index = np.unique((corners - lowest) @ radix, return_inverse=True)
        rows = np.arange(0, n_points * (n_axes + 1) + 1, n_axes + 1)
        self._slice = sparse.csr_matrix((weights.ravel(), index.ravel(), rows), shape=(n_points, len(keys)))
        self._splat = self._slice.T.tocsr()
        self._neighbours = [_neighbours(keys, step, radix) for step in _axis_steps(n_axes)]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """(N,) float64 filtered values, from (N,) values at the points."""
        lattice = np.append(self._splat @ values, 0.0)  # the last entry is the value of all unoccupied vertices
        for before, after in self._neighbours:
            lattice[:-1] += 0.5 * (lattice[before] + lattice[after])
        return self._slice @ lattice[:-1]


def _corners(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The D + 1 vertices of the simplex around each point: (N, D + 1, D) int32 coordinates, (N, D + 1) weights."""
    n_points, n_axes = points.shape
    n_corners = n_axes + 1
    axis = np.arange(n_axes)
    # Splatting, blurring and slicing together have a standard deviation of sqrt(2 / 3) * (D + 1) on the lattice.
    scaled = points * (np.sqrt(2 / 3) * n_corners / np.sqrt((axis + 1) * (axis + 2)))
    # Embed into the hyperplane whose D + 1 coordinates sum to zero.
    tail = np.cumsum(scaled[:, ::-1], axis=1)[:, ::-1]
    elevated = np.empty((n_points, n_corners))
    elevated[:, 0] = tail[:, 0]
    elevated[:, 1:-1] = tail[:, 1:] - scaled[:, :-1] * (axis[:-1] + 1)
    elevated[:, -1] = -n_axes * scaled[:, -1]

    nearest = np.rint(elevated / n_corners).astype(np.int32) * n_corners
    excess = nearest.sum(axis=1, keepdims=True) // n_corners
    order = np.argsort(nearest - elevated, axis=1, kind='stable')
    rank = np.empty_like(nearest)
    np.put_along_axis(rank, order, np.arange(n_corners, dtype=np.int32)[None], axis=1)
    rank += excess
    wrapped = (rank < 0).astype(np.int32) - (rank > n_axes)
    rank += wrapped * n_corners
    nearest += wrapped * n_corners

    # Barycentric weights are the differences of the remainders in descending order.
    remainder = np.empty((n_points, n_corners))
    np.put_along_axis(remainder, rank, (elevated - nearest) / n_corners, axis=1)
    weights = np.empty((n_points, n_corners))
    weights[:, 1:] = (remainder[:, :-1] - remainder[:, 1:])[:, ::-1]
    weights[:, 0] = 1.0 + remainder[:, -1] - remainder[:, 0]
    step = np.arange(n_corners, dtype=np.int32)[None, :, None]
    shift = np.where(rank[:, None, :-1] > n_axes - step, step - n_corners, step)
    return nearest[:, None, :-1] + shift.astype(np.int32), weights


def _axis_steps(n_axes: int) -> np.ndarray:
    """(D + 1, D) int: steps along the D + 1 directions of the lattice, in the first D coordinates."""
    steps = np.ones((n_axes + 1, n_axes), np.int64)
    steps[np.arange(n_axes), np.arange(n_axes)] = -n_axes
    return steps


def _neighbours(keys: np.ndarray, step: np.ndarray, radix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the vertices one step before and after each of M vertices; M where there is none."""
    found = []
    for wanted in (keys - step @ radix, keys + step @ radix):
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        found.append(np.where(keys[at] == wanted, at, len(keys)).astype(np.int32))
    return found[0], found[1]
