"""Nested pieces of an image around a click, and how far each makes a mask wrong there, all on a small grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_LONG_SIDE = 256  # grid points, and more where they would be too far apart:
_DEPTH_SLACK = 3.0  # grid points
_LARGEST_SPACING_PX = 4.0  # what is six pixels wide has a point in any image


class WorkingGrid:
    """Points spread evenly over an image, no closer than its pixels, on which masks are compared.

    Args:
        size_hw: Height and width of the image in pixels.
    """

    def __init__(self, size_hw: tuple[int, int]) -> None:
        self.size_hw = size_hw
        self.spacing_px = min(max(1.0, max(size_hw) / _LONG_SIDE), _LARGEST_SPACING_PX)
        counts = [max(1, round(side / self.spacing_px)) for side in size_hw]
        self._rows, self._columns = (
            ((np.arange(count) + 0.5) * side / count).astype(np.int64)
            for count, side in zip(counts, size_hw, strict=True)
        )

    def __len__(self) -> int:
        return len(self._rows) * len(self._columns)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of points."""
        return len(self._rows), len(self._columns)

    def sample(self, values: np.ndarray) -> np.ndarray:
        """(P,) what an (H, W) array holds at the points."""
        return values[self._rows[:, None], self._columns].ravel()

    def click(self, point_xy: ArrayLike, positive: bool) -> GridClick:
        """A click at a pixel."""
        (x, y), (height, width) = point_xy, self.size_hw
        squared = ((self._rows - y) ** 2)[:, None] + ((self._columns - x) ** 2)[None]
        rim = float(min(x + 1, y + 1, width - x, height - y)) ** 2
        nearest = int(np.abs(self._rows - y).argmin()), int(np.abs(self._columns - x).argmin())
        return GridClick(bool(positive), squared.astype(np.float32).ravel(), rim, self.spacing_px, nearest)


@dataclass(frozen=True, eq=False)
class GridClick:
    """A click as the grid sees it.

    Attributes:
        positive: Whether the mask lacks something there, or has too much.
        squared_distances_px: (P,) float32 from the points of the grid.
        squared_rim_px: Distance from the nearest pixel outside the image.
        spacing_px: Of the grid.
        nearest: Row and column of the nearest point.
    """

    positive: bool
    squared_distances_px: np.ndarray
    squared_rim_px: float
    spacing_px: float
    nearest: tuple[int, int]


class LabelMap:
    """Which label each pixel of an image has, at the pixels and on the grid.

    Args:
        labels: (H, W) integers from 0, or bool.
        grid: Of the image.
    """

    def __init__(self, labels: np.ndarray, grid: WorkingGrid) -> None:
        self.labels = labels.view(np.uint8) if labels.dtype == bool else labels
        self.sampled = grid.sample(labels).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Chain:
    """N pieces, each of which holds the one before it.

    Attributes:
        label_map: What the pieces are made of.
        ring_of_label: (L,) integers: the first piece that holds each label; N where none does.
        log_prior: (N,) float: how likely each piece is meant, before any click is looked at.
        boxes_xyxy: (N, 4) float bounding boxes, right and bottom edges exclusive, where they are known.
    """

    label_map: LabelMap
    ring_of_label: np.ndarray
    log_prior: np.ndarray
    boxes_xyxy: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.log_prior)

    @cached_property
    def _ring_of_label(self) -> np.ndarray:
        # Mostly bytes: what is done with rings of all pixels, or points, takes as long as reading them.
        return self.ring_of_label.astype(np.min_scalar_type(len(self)))

    @cached_property
    def rings(self) -> np.ndarray:
        """(P,) unsigned integers: the first piece that holds each point of the grid."""
        return self._ring_of_label[self.label_map.sampled]

    def rings_at(self, points_xy: np.ndarray) -> np.ndarray:
        """(K,) unsigned integers: the first piece that holds each of (K, 2) pixels."""
        return self._ring_of_label[self.label_map.labels[points_xy[:, 1], points_xy[:, 0]].astype(np.int64)]

    def draw(self, numbers: Sequence[int], outs: Sequence[np.ndarray]) -> None:
        """Writes the pixels of pieces into as many (H, W) bool arrays of zeros."""
        widest = self._window(max(numbers))
        rings = np.empty(self.label_map.labels.shape, self._ring_of_label.dtype)
        _look_up(self._ring_of_label, self.label_map.labels[widest], rings[widest])
        for number, out in zip(numbers, outs, strict=True):
            window = self._window(number)
            np.less_equal(rings[window], number, out=out[window])

    def _window(self, number: int) -> tuple[slice, slice]:
        if self.boxes_xyxy is None:
            return np.s_[:, :]
        x0, y0, x1, y1 = self.boxes_xyxy[number].astype(int)
        return np.s_[y0:y1, x0:x1]


@dataclass(frozen=True, eq=False)
class Edit:
    """A piece that is added to a mask, or taken from it.

    Attributes:
        chain: Of the piece.
        number: Of the piece in its chain.
        adds: Whether it is added.
    """

    chain: Chain
    number: int
    adds: bool

    def apply(self, mask: np.ndarray, piece: np.ndarray) -> np.ndarray:
        """The mask after it, wherever mask and piece are known."""
        return mask | piece if self.adds else mask & ~piece


@dataclass(frozen=True, eq=False)
class Shape:
    """One mask that clicks may mean.

    Attributes:
        edits: What it is made of, in order, from nothing.
        sampled: (P,) bool on the grid.
        log_prior: How likely it is meant, before clicks say what was wrong with others.
    """

    edits: tuple[Edit, ...]
    sampled: np.ndarray
    log_prior: float

    @cached_property
    def n_points(self) -> int:
        """How many points of the grid it holds."""
        return int(np.count_nonzero(self.sampled))

    def at(self, points_xy: np.ndarray) -> np.ndarray:
        """(K,) bool at each of (K, 2) pixels."""
        inside = np.zeros(len(points_xy), bool)
        for edit in self.edits:
            inside = edit.apply(inside, edit.chain.rings_at(points_xy) <= edit.number)
        return inside

    def edited(self, chain: Chain, number: int, adds: bool, log_prior: float) -> Shape:
        """With one more piece."""
        edit = Edit(chain, number, adds)
        return Shape((*self.edits, edit), edit.apply(self.sampled, chain.rings <= number), log_prior)


def nothing(grid: WorkingGrid) -> Shape:
    """The empty mask."""
    return Shape((), np.zeros(len(grid), bool), 0.0)


def centredness(base: Shape, chain: Chain, adds: bool, shown: np.ndarray, click: GridClick) -> np.ndarray:
    """How near the middle of what is wrong a click is, if `base` with each piece of `chain` is what is meant.

    A positive click speaks of what the mask on show lacks, a negative one of what it has too much. People click where
    most is wrong, so what is wrong in the other way counts against a piece too.

    Args:
        base: The mask that pieces are added to or taken from.
        chain: The N pieces.
        adds: Whether they are added.
        shown: (P,) bool, the mask that was on show when the click was made.
        click: The click.

    Returns:
        (N,) float in (0, 1]: the distance from the click to the nearest point that it does not speak of, over the radius of
        a disc with the area of all that is wrong.
    """
    wrong, nearest = _wrong_parts(
        base.sampled, chain.rings, len(chain), adds, shown, click.positive, click.squared_distances_px
    )
    radii_px = np.sqrt(np.maximum(np.minimum(nearest, click.squared_rim_px), click.spacing_px**2 / 4))
    disc_radii_px = np.sqrt(np.maximum(wrong, 1) / np.pi) * click.spacing_px
    return np.minimum(radii_px / disc_radii_px, 1.0)


def depth_share(mask: np.ndarray, shown: np.ndarray, click: GridClick) -> float:
    """How deep a click lies in what is wrong, as a share of the greatest depth there is, if `mask` is what is meant.

    Slower than `centredness`, and better where what is wrong has several parts: people click in the middle of the largest.

    Args:
        mask: (R, C) bool, on the grid.
        shown: (R, C) bool, the mask that was on show when the click was made.
        click: The click.

    Returns:
        In (0, 1]. Depths are counted from a few points outside, since nobody clicks exactly.
    """
    own, deepest = _depths(mask, shown, click.positive, *click.nearest)
    return (own + _DEPTH_SLACK) / (deepest + _DEPTH_SLACK)


@numba.njit(nogil=True, cache=True)
def _look_up(values, labels, out):
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            out[y, x] = values[labels[y, x]]


@numba.njit(nogil=True, cache=True)
def _wrong_parts(base, rings, n_pieces, adds, shown, positive, squared_px):
    """(N,) points that differ from what is shown, and (N,) squared distance to the nearest that the click speaks not of.

    Each point changes sides at most once along the chain, at its ring, and so does whether it is wrong.
    """
    always_wrong, nearest_never = 0, np.inf
    wrong_from, wrong_until = np.zeros(n_pieces + 1, np.int64), np.zeros(n_pieces + 1, np.int64)
    nearest_at = np.full(n_pieces + 1, np.inf)
    for point in range(len(rings)):
        ring = rings[point]
        if base[point] == adds:  # the pieces change nothing
            is_wrong = base[point] != shown[point]
            always_wrong += is_wrong
            changes, stays_out = False, not is_wrong or base[point] != positive
        elif shown[point] == adds:
            wrong_until[ring] += 1
            changes = adds != positive
            stays_out = not changes
        else:
            wrong_from[ring] += 1
            changes = adds == positive
            stays_out = not changes
        if changes:
            nearest_at[ring] = min(nearest_at[ring], squared_px[point])
        elif stays_out:
            nearest_never = min(nearest_never, squared_px[point])
    wrong, nearest = np.zeros(n_pieces, np.int64), np.full(n_pieces, nearest_never)
    count = always_wrong + wrong_until.sum()
    for piece in range(n_pieces):
        count += wrong_from[piece] - wrong_until[piece]
        wrong[piece] = count
    least = np.inf
    if adds == positive:  # the wrong part grows: outer rings are outside it
        for piece in range(n_pieces - 1, -1, -1):
            least = min(least, nearest_at[piece + 1])
            nearest[piece] = min(nearest_never, least)
    else:  # it shrinks: inner rings are
        for piece in range(n_pieces):
            least = min(least, nearest_at[piece])
            nearest[piece] = min(nearest_never, least)
    return wrong, nearest


@numba.njit(nogil=True, cache=True)
def _depths(mask, shown, positive, click_row, click_column):
    """Distances, in points, to the nearest point that is not wrong in the same way: of the click, and the largest.

    Chamfer distances 3-4 in two sweeps over the window of what is wrong (G. Borgefors, 1986).
    """
    n_rows, n_columns = mask.shape
    top, bottom, left, right = n_rows, -1, n_columns, -1
    for row in range(n_rows):
        for column in range(n_columns):
            if mask[row, column] != shown[row, column]:
                top, bottom = min(top, row), row
                left, right = min(left, column), max(right, column)
    if bottom < 0:
        return 0.0, 0.0
    # A rim of zeros all around; of two wrong points that differ, one is lacked and the other too much.
    depths = np.zeros((bottom - top + 3, right - left + 3), np.int32)
    deepest = 0
    for row in range(top, bottom + 1):
        for column in range(left, right + 1):
            if mask[row, column] != shown[row, column]:
                depths[row - top + 1, column - left + 1] = _stepped(depths, mask, row, column, top, left, -1)
    for row in range(bottom, top - 1, -1):
        for column in range(right, left - 1, -1):
            if mask[row, column] != shown[row, column]:
                i, k = row - top + 1, column - left + 1
                depths[i, k] = min(depths[i, k], _stepped(depths, mask, row, column, top, left, 1))
                deepest = max(deepest, depths[i, k])
    own = 0
    if top <= click_row <= bottom and left <= click_column <= right and mask[click_row, click_column] == positive:
        own = depths[click_row - top + 1, click_column - left + 1]
    return own / 3, deepest / 3


@numba.njit(nogil=True, cache=True)
def _stepped(depths, mask, row, column, top, left, side):
    """The least depth that the four neighbours on one side of a point allow it."""
    least = 1 << 30
    for row_step, column_step, length in ((side, -1, 4), (side, 0, 3), (side, 1, 4), (0, side, 3)):
        depth = depths[row - top + 1 + row_step, column - left + 1 + column_step]
        # Where the depth is not zero the point is wrong too, and then lies in the grid.
        same = depth > 0 and mask[row + row_step, column + column_step] == mask[row, column]
        least = min(least, depth + length if same else length)
    return least
