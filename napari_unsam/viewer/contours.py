"""Outlines of masks as line segments along the sides of their pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from napari_unsam.model.targets import Proposal


def outline_segments(mask: np.ndarray) -> np.ndarray:
    """The sides of pixels between a mask and what is not of it, straight runs joined.

    Args:
        mask: (h, w) bool mask.

    Returns:
        (S, 2, 2) float64: row and column of where each segment begins, and how far it goes; pixel centres are whole numbers.
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


def placed_outline(proposal: Proposal) -> np.ndarray:
    """(S, 2, N) segments of the outline of a mask on its plane of an array of N axes, as `outline_segments` gives them."""
    segments, plane = outline_segments(proposal.mask), proposal.plane
    placed = np.zeros((len(segments), 2, len(plane.shape)))
    placed[:, 0] = plane.index
    placed[:, :, list(plane.axes)] = segments
    placed[:, 0, list(plane.axes)] += proposal.box_xyxy[1::-1]
    return placed


def _runs(lines: np.ndarray) -> np.ndarray:
    """(S, 3) float64 line, first place and length of each run of True in (L, n) bool lines."""
    padded = np.zeros((lines.shape[0], lines.shape[1] + 2), np.int8)
    padded[:, 1:-1] = lines
    changes = np.diff(padded, axis=1)
    line, first = np.nonzero(changes == 1)
    _, end = np.nonzero(changes == -1)
    return np.stack([line, first, end - first], axis=1).astype(np.float64)
