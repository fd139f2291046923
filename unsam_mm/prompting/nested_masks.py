"""Nested candidate masks for clicks, and how well a click fits each of them, computed on a coarse grid of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_LONG_SIDE = 256  # grid points along the longer side; more if the spacing would exceed `_LARGEST_SPACING_PX`
_DEPTH_SLACK = 3.0  # grid points; added to depths, since clicks are imprecise
_LARGEST_SPACING_PX = 4.0  # so that an object six pixels wide contains a grid point


class SamplingGrid:
    """A regular grid of points, at most one for each pixel, at which masks are compared.

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
        """(P,) values of an (H, W) array at the grid points."""
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
    """A click on the grid.

    Attributes:
        positive: True if the mask should contain the point, False if it should not.
        squared_distances_px: (P,) float32 squared distance to each grid point.
        squared_border_px: Squared distance to the nearest pixel outside the image.
        spacing_px: Spacing of the grid.
        nearest: Row and column of the nearest grid point.
    """

    positive: bool
    squared_distances_px: np.ndarray
    squared_border_px: float
    spacing_px: float
    nearest: tuple[int, int]


class LabelMap:
    """A label map at full resolution and on the grid.

    Args:
        labels: (H, W) non-negative integers, or bool.
        grid: The grid of the image.
    """

    def __init__(self, labels: np.ndarray, grid: SamplingGrid) -> None:
        self.labels = labels.view(np.uint8) if labels.dtype == bool else labels
        self.sampled = grid.sample(labels).astype(np.int64)


@dataclass(frozen=True, eq=False)
class NestedMasks:
    """N nested masks, from the smallest to the largest. Mask i is the set of labels with ``first_index_of_label <= i``.

    Attributes:
        label_map: Labels of the pixels; each mask is a set of labels.
        first_index_of_label: (L,) integers, index of the first mask that contains each label; N if none does.
        log_prior: (N,) float log prior of each mask, before the positions of clicks are taken into account.
        boxes_xyxy: (N, 4) float bounding boxes, right and bottom edges exclusive; None if unknown.
    """

    label_map: LabelMap
    first_index_of_label: np.ndarray
    log_prior: np.ndarray
    boxes_xyxy: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.log_prior)

    @cached_property
    def _first_index_of_label(self) -> np.ndarray:
        # Usually uint8: operations on the indices of all pixels or points are limited by memory bandwidth.
        return self.first_index_of_label.astype(np.min_scalar_type(len(self)))

    @cached_property
    def first_indices(self) -> np.ndarray:
        """(P,) unsigned integers, index of the first mask that contains each grid point; N if none does."""
        return self._first_index_of_label[self.label_map.sampled]

    def first_indices_at(self, points_xy: np.ndarray) -> np.ndarray:
        """(K,) unsigned integers, index of the first mask that contains each of (K, 2) pixels; N if none does."""
        return self._first_index_of_label[self.label_map.labels[points_xy[:, 1], points_xy[:, 0]].astype(np.int64)]

    def draw(self, indices: Sequence[int], outs: Sequence[np.ndarray]) -> None:
        """Draws the masks with the given indices into `outs`, one (H, W) bool array for each, all False before."""
        widest = self._window(max(indices))
        first_indices = np.empty(self.label_map.labels.shape, self._first_index_of_label.dtype)
        _look_up(self._first_index_of_label, self.label_map.labels[widest], first_indices[widest])
        for index, out in zip(indices, outs, strict=True):
            window = self._window(index)
            np.less_equal(first_indices[window], index, out=out[window])

    def _window(self, index: int) -> tuple[slice, slice]:
        if self.boxes_xyxy is None:
            return np.s_[:, :]
        x0, y0, x1, y1 = self.boxes_xyxy[index].astype(int)
        return np.s_[y0:y1, x0:x1]


@dataclass(frozen=True, eq=False)
class Edit:
    """Adds a mask to another one (union), or subtracts it (difference).

    Attributes:
        nested: Nested masks, one of which is added or subtracted.
        index: Index of that mask.
        adds: True to add it, False to subtract it.
    """

    nested: NestedMasks
    index: int
    adds: bool

    def apply(self, mask: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The edited mask; both masks are bool arrays over the same pixels or grid points."""
        return mask | other if self.adds else mask & ~other


@dataclass(frozen=True, eq=False)
class CandidateMask:
    """A candidate for the mask that the user intends.

    Attributes:
        edits: The unions and differences that give the mask, applied in this order to the empty mask.
        sampled: (P,) bool, the mask at the grid points.
        log_prior: Log prior, before the positions of clicks are taken into account.
    """

    edits: tuple[Edit, ...]
    sampled: np.ndarray
    log_prior: float

    @cached_property
    def n_points(self) -> int:
        """Number of grid points in the mask."""
        return int(np.count_nonzero(self.sampled))

    def at(self, points_xy: np.ndarray) -> np.ndarray:
        """(K,) bool, True for each of (K, 2) pixels that the mask contains."""
        inside = np.zeros(len(points_xy), bool)
        for edit in self.edits:
            inside = edit.apply(inside, edit.nested.first_indices_at(points_xy) <= edit.index)
        return inside

    def edited(self, nested: NestedMasks, index: int, adds: bool, log_prior: float) -> CandidateMask:
        """The candidate with one more edit."""
        edit = Edit(nested, index, adds)
        return CandidateMask((*self.edits, edit), edit.apply(self.sampled, nested.first_indices <= index), log_prior)


def empty_mask(grid: SamplingGrid) -> CandidateMask:
    """The empty mask."""
    return CandidateMask((), np.zeros(len(grid), bool), 0.0)


def click_centrality(
    base: CandidateMask, nested: NestedMasks, adds: bool, shown: np.ndarray, click: GridClick
) -> np.ndarray:
    """How central a click is in the error region of the shown mask if a candidate is the true mask, for N candidates.

    The candidates are `base` plus or minus each of `nested`. A positive click marks false negatives of the shown mask, a
    negative click false positives. Users click in the largest error, so a candidate with a large error of the other kind
    also gets a lower value.

    Args:
        base: The mask that is edited.
        nested: N masks that are added or subtracted.
        adds: True to add them, False to subtract them.
        shown: (P,) bool, the mask that was shown when the click was made.
        click: The click.

    Returns:
        (N,) float in (0, 1]: the distance from the click to the nearest point that is not an error of the same kind, divided
        by the radius of a disc with the area of all errors; at most 1.
    """
    wrong, nearest = _error_counts_and_distances(
        base.sampled, nested.first_indices, len(nested), adds, shown, click.positive, click.squared_distances_px
    )
    radii_px = np.sqrt(np.maximum(np.minimum(nearest, click.squared_border_px), click.spacing_px**2 / 4))
    disc_radii_px = np.sqrt(np.maximum(wrong, 1) / np.pi) * click.spacing_px
    return np.minimum(radii_px / disc_radii_px, 1.0)


def relative_depth(mask: np.ndarray, shown: np.ndarray, click: GridClick) -> float:
    """Depth of a click in the error region, relative to the largest depth, if `mask` is the true mask.

    The depth is the distance to the boundary of the error region. This is slower than `click_centrality`, and better where
    the error region has several components: users click the middle of the largest.

    Args:
        mask: (R, C) bool, on the grid.
        shown: (R, C) bool, the mask that was shown when the click was made.
        click: The click.

    Returns:
        In (0, 1]. A few points are added to both depths, since clicks are imprecise.
    """
    at_click, deepest = _depths(mask, shown, click.positive, *click.nearest)
    return (at_click + _DEPTH_SLACK) / (deepest + _DEPTH_SLACK)


@numba.njit(nogil=True, cache=True)
def _look_up(values, labels, out):
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            out[y, x] = values[labels[y, x]]


@numba.njit(nogil=True, cache=True)
def _error_counts_and_distances(base, first_indices, n_masks, adds, shown, positive, squared_px):
    """(N,) number of errors, and (N,) squared distance to the nearest point that is not an error of the click's kind.

    In the names and comments, a point is inside if it is an error of the click's kind, and outside if not. The masks are
    nested, so with increasing index a point enters or leaves at most once, at its first index.
    """
    always_wrong, nearest_always_outside = 0, np.inf
    wrong_from, wrong_until = np.zeros(n_masks + 1, np.int64), np.zeros(n_masks + 1, np.int64)
    nearest_at = np.full(n_masks + 1, np.inf)
    for point in range(len(first_indices)):
        first_index = first_indices[point]
        if base[point] == adds:  # no mask changes this point
            is_wrong = base[point] != shown[point]
            always_wrong += is_wrong
            enters_or_leaves, is_always_outside = False, not is_wrong or base[point] != positive
        elif shown[point] == adds:
            wrong_until[first_index] += 1
            enters_or_leaves = adds != positive
            is_always_outside = not enters_or_leaves
        else:
            wrong_from[first_index] += 1
            enters_or_leaves = adds == positive
            is_always_outside = not enters_or_leaves
        if enters_or_leaves:
            nearest_at[first_index] = min(nearest_at[first_index], squared_px[point])
        elif is_always_outside:
            nearest_always_outside = min(nearest_always_outside, squared_px[point])
    wrong, nearest = np.zeros(n_masks, np.int64), np.full(n_masks, nearest_always_outside)
    count = always_wrong + wrong_until.sum()
    for i in range(n_masks):
        count += wrong_from[i] - wrong_until[i]
        wrong[i] = count
    least = np.inf
    if adds == positive:  # the error region grows with the index: points of larger first index are outside
        for i in range(n_masks - 1, -1, -1):
            least = min(least, nearest_at[i + 1])
            nearest[i] = min(nearest_always_outside, least)
    else:  # it shrinks: points of smaller first index are outside
        for i in range(n_masks):
            least = min(least, nearest_at[i])
            nearest[i] = min(nearest_always_outside, least)
    return wrong, nearest


@numba.njit(nogil=True, cache=True)
def _depths(mask, shown, positive, click_row, click_column):
    """Depths in grid points: at the click, and the largest.

    A depth is the distance to the nearest point that is not an error of the same kind, from a 3-4 chamfer
    distance transform in two passes over the bounding box of the errors (G. Borgefors, 1986).
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
    # Padded with zeros. Errors with different values in `mask` are of different kinds, each background for the other.
    depths = np.zeros((bottom - top + 3, right - left + 3), np.int32)
    deepest = 0
    for row in range(top, bottom + 1):
        for column in range(left, right + 1):
            if mask[row, column] != shown[row, column]:
                depths[row - top + 1, column - left + 1] = _chamfer_step(depths, mask, row, column, top, left, -1)
    for row in range(bottom, top - 1, -1):
        for column in range(right, left - 1, -1):
            if mask[row, column] != shown[row, column]:
                i, k = row - top + 1, column - left + 1
                depths[i, k] = min(depths[i, k], _chamfer_step(depths, mask, row, column, top, left, 1))
                deepest = max(deepest, depths[i, k])
    at_click = 0
    if top <= click_row <= bottom and left <= click_column <= right and mask[click_row, click_column] == positive:
        at_click = depths[click_row - top + 1, click_column - left + 1]
    return at_click / 3, deepest / 3


@numba.njit(nogil=True, cache=True)
def _chamfer_step(depths, mask, row, column, top, left, side):
    """The smallest depth of a point that its four neighbours before it (side -1) or after it (side 1) allow."""
    least = 1 << 30
    for row_step, column_step, length in ((side, -1, 4), (side, 0, 3), (side, 1, 4), (0, side, 3)):
        depth = depths[row - top + 1 + row_step, column - left + 1 + column_step]
        # A neighbour with a positive depth is an error, so it lies on the grid.
        same = depth > 0 and mask[row + row_step, column + column_step] == mask[row, column]
        least = min(least, depth + length if same else length)
    return least
