"""Outlines of masks as line segments along pixel edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from napari_unsam.model.label_boxes import Slices
from napari_unsam.model.targets import Proposal


def outline_segments(mask: np.ndarray) -> np.ndarray:
    """The pixel edges along the outline of a mask; edges in a straight line are merged into one segment.

    Args:
        mask: (h, w) bool mask.

    Returns:
        (S, 2, 2) float64: start and direction vector of each segment, as row and column. Pixel centres are integers.
    """
    padded = np.pad(mask, 1)
    # Row r of `horizontal_edges` is the line above pixel row r; row c of `vertical_edges` is the line left of column c.
    horizontal_edges = padded[1:, 1:-1] != padded[:-1, 1:-1]
    vertical_edges = (padded[1:-1, 1:] != padded[1:-1, :-1]).T
    horizontal, vertical = _runs(horizontal_edges), _runs(vertical_edges)
    starts = np.concatenate([horizontal[:, :2], vertical[:, 1::-1]]) - 0.5
    steps = np.zeros_like(starts)
    steps[: len(horizontal), 1], steps[len(horizontal) :, 0] = horizontal[:, 2], vertical[:, 2]
    return np.stack([starts, steps], axis=1)


def outline_in_array(mask: np.ndarray, box: Slices, axes: Sequence[int]) -> np.ndarray:
    """(S, 2, N) segments, as from `outline_segments`, around a mask in a box of an N-dimensional array.

    Each plane is outlined separately; `axes` are the two axes that planes span, ascending.
    """
    planes = np.moveaxis(mask, axes, (-2, -1))
    other_axes = [axis for axis in range(mask.ndim) if axis not in axes]
    found = [np.zeros((0, 2, mask.ndim))]
    for index in np.ndindex(planes.shape[:-2]):
        segments = outline_segments(planes[index])
        placed = np.zeros((len(segments), 2, mask.ndim))
        placed[:, :, list(axes)] = segments
        placed[:, 0, other_axes] = index
        found.append(placed)
    outline = np.concatenate(found)
    outline[:, 0] += [part.start for part in box]
    return outline


def outline_of(proposal: Proposal) -> np.ndarray:
    """(S, 2, N) segments around a mask on its plane of an N-dimensional array; see `outline_in_array`."""
    return outline_in_array(*proposal.plane.in_array(proposal), proposal.plane.axes)


def _runs(lines: np.ndarray) -> np.ndarray:
    """(S, 3) float64 line, start and length of each run of True in (L, n) bool lines."""
    padded = np.zeros((lines.shape[0], lines.shape[1] + 2), np.int8)
    padded[:, 1:-1] = lines
    changes = np.diff(padded, axis=1)
    line, first = np.nonzero(changes == 1)
    _, end = np.nonzero(changes == -1)
    return np.stack([line, first, end - first], axis=1).astype(np.float64)
