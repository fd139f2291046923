"""Outlines of masks as line segments along the sides of their pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from napari_unsam.model.label_boxes import Slices
from napari_unsam.model.targets import Proposal


def outline_segments(mask: np.ndarray) -> np.ndarray:
    """The sides of pixels along the outline of a mask; sides in a straight line are joined to one segment.

    Args:
        mask: (h, w) bool mask.

    Returns:
        (S, 2, 2) float64: row and column of the start of each segment, and its extent in both; pixel centres are whole numbers.
    """
    padded = np.pad(mask, 1)
    # Row r of `across` is the line above pixel row r, column c of `along` the line left of pixel column c.
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]
    along = (padded[1:-1, 1:] != padded[1:-1, :-1]).T
    horizontal, vertical = _runs(across), _runs(along)
    starts = np.concatenate([horizontal[:, :2], vertical[:, 1::-1]]) - 0.5
    steps = np.zeros_like(starts)
    steps[: len(horizontal), 1], steps[len(horizontal) :, 0] = horizontal[:, 2], vertical[:, 2]
    return np.stack([starts, steps], axis=1)


def outline_in_array(mask: np.ndarray, box: Slices, axes: Sequence[int]) -> np.ndarray:
    """(S, 2, N) segments, as from `outline_segments`, around a mask in a box of an N-dimensional array.

    Each plane is outlined separately; `axes` are the two axes that planes span, ascending.
    """
    planes = np.moveaxis(mask, axes, (-2, -1))
    hidden = [axis for axis in range(mask.ndim) if axis not in axes]
    found = [np.zeros((0, 2, mask.ndim))]
    for index in np.ndindex(planes.shape[:-2]):
        segments = outline_segments(planes[index])
        placed = np.zeros((len(segments), 2, mask.ndim))
        placed[:, :, list(axes)] = segments
        placed[:, 0, hidden] = index
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
