"""Nested pieces of an image around a click, and how far each makes a mask wrong there, all on a small grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_LONG_SIDE = 256  # grid points; a mask of five pixels in an image of 1024 still has one


class WorkingGrid:
    """Points spread evenly over an image, no closer than its pixels, on which masks are compared.

    Args:
        size_hw: Height and width of the image in pixels.
    """

    def __init__(self, size_hw: tuple[int, int]) -> None:
        self.size_hw, self.spacing_px = size_hw, max(1.0, max(size_hw) / _LONG_SIDE)
        counts = [max(1, round(side / self.spacing_px)) for side in size_hw]
        self._rows, self._columns = (
            ((np.arange(count) + 0.5) * side / count).astype(np.int64)
            for count, side in zip(counts, size_hw, strict=True)
        )

    def __len__(self) -> int:
        return len(self._rows) * len(self._columns)

    def sample(self, values: np.ndarray) -> np.ndarray:
        """(P,) what an (H, W) array holds at the points."""
        return values[self._rows[:, None], self._columns].ravel()

    def click(self, point_xy: ArrayLike, positive: bool) -> GridClick:
        """A click at a pixel."""
        (x, y), (height, width) = point_xy, self.size_hw
        squared = ((self._rows - y) ** 2)[:, None] + ((self._columns - x) ** 2)[None]
        rim = float(min(x + 1, y + 1, width - x, height - y)) ** 2
        return GridClick(bool(positive), squared.astype(np.float32).ravel(), rim, self.spacing_px)


@dataclass(frozen=True, eq=False)
class GridClick:
    """A click as the grid sees it.

    Attributes:
        positive: Whether the mask lacks something there, or has too much.
        squared_distances_px: (P,) float32 from the points of the grid.
        squared_rim_px: Distance from the nearest pixel outside the image.
        spacing_px: Of the grid.
    """

    positive: bool
    squared_distances_px: np.ndarray
    squared_rim_px: float
    spacing_px: float


class LabelMap:
    """Which label each pixel of an image has, at the pixels and on the grid.

    Args:
        labels: (H, W) integers from 0, or bool.
        grid: Of the image.
    """

    def __init__(self, labels: np.ndarray, grid: WorkingGrid) -> None:
        self.labels, self.sampled = labels, grid.sample(labels).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Chain:
    """N pieces, each of which holds the one before it.

    Attributes:
        label_map: What the pieces are made of.
        ring_of_label: (L,) int64: the first piece that holds each label; N where none does.
        log_prior: (N,) float: how likely each piece is meant, before any click is looked at.
    """

    label_map: LabelMap
    ring_of_label: np.ndarray
    log_prior: np.ndarray

    def __len__(self) -> int:
        return len(self.log_prior)

    @property
    def rings(self) -> np.ndarray:
        """(P,) int64: the first piece that holds each point of the grid."""
        return self.ring_of_label[self.label_map.sampled]

    def rings_at(self, points_xy: np.ndarray) -> np.ndarray:
        """(K,) int64: the first piece that holds each of (K, 2) pixels."""
        return self.ring_of_label[self.label_map.labels[points_xy[:, 1], points_xy[:, 0]].astype(np.int64)]

    def mask(self, number: int) -> np.ndarray:
        """(H, W) bool pixels of one piece."""
        return np.take(self.ring_of_label <= number, self.label_map.labels)


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

    def at(self, points_xy: np.ndarray) -> np.ndarray:
        """(K,) bool at each of (K, 2) pixels."""
        inside = np.zeros(len(points_xy), bool)
        for edit in self.edits:
            inside = edit.apply(inside, edit.chain.rings_at(points_xy) <= edit.number)
        return inside

    def mask(self) -> np.ndarray:
        """(H, W) bool at the pixels."""
        first, *others = self.edits
        mask = first.chain.mask(first.number)
        for edit in others:
            mask = edit.apply(mask, edit.chain.mask(edit.number))
        return mask

    def edited(self, chain: Chain, number: int, adds: bool, log_prior: float) -> Shape:
        """With one more piece."""
        edit = Edit(chain, number, adds)
        return Shape((*self.edits, edit), edit.apply(self.sampled, chain.rings <= number), log_prior)


def nothing(grid: WorkingGrid) -> Shape:
    """The empty mask."""
    return Shape((), np.zeros(len(grid), bool), 0.0)


def centredness(base: Shape, chain: Chain, adds: bool, shown: np.ndarray, click: GridClick) -> np.ndarray:
    """How near the middle of what is wrong a click is, if `base` with each piece of `chain` is what is meant.

    What is wrong is what the mask on show lacks, for a positive click, or has too much, for a negative one.

    Args:
        base: The mask that pieces are added to or taken from.
        chain: The N pieces.
        adds: Whether they are added.
        shown: (P,) bool, the mask that was on show when the click was made.
        click: The click.

    Returns:
        (N,) float in (0, 1]: the distance from the click to where nothing is wrong, over the radius of a disc with the area
        of what is wrong.
    """
    wrong, nearest = _wrong_parts(
        base.sampled, chain.rings, len(chain), adds, shown, click.positive, click.squared_distances_px
    )
    radii_px = np.sqrt(np.maximum(np.minimum(nearest, click.squared_rim_px), click.spacing_px**2 / 4))
    disc_radii_px = np.sqrt(np.maximum(wrong, 1) / np.pi) * click.spacing_px
    return np.minimum(radii_px / disc_radii_px, 1.0)


@numba.njit(nogil=True, cache=True)
def _wrong_parts(base, rings, n_pieces, adds, shown, positive, squared_px):
    """Of the mask that each piece makes: grid points that are wrong in the click's way; least distance to one that is not.

    A mask grows along the chain where pieces are added and shrinks where they are taken, and what is wrong grows or
    shrinks with it, so each point changes sides at most once: at its ring.
    """
    grows = adds == positive
    always = 0
    nearest_never = np.inf
    changing = np.zeros(n_pieces + 1, np.int64)
    nearest_changing = np.full(n_pieces + 1, np.inf)
    for point in range(len(rings)):
        ring = rings[point]
        if shown[point] == positive:
            side = -1  # is right whatever the mask
        elif base[point] == adds:
            side = 1 if adds == positive else -1  # the pieces do not change it; it is as in the base
        else:
            side = 0
        if side == 1:
            always += 1
        elif side == -1:
            nearest_never = min(nearest_never, squared_px[point])
        else:
            changing[ring] += 1
            nearest_changing[ring] = min(nearest_changing[ring], squared_px[point])
    wrong = np.zeros(n_pieces, np.int64)
    nearest = np.full(n_pieces, nearest_never)
    if grows:
        count, least = always, np.inf
        for piece in range(n_pieces):
            count += changing[piece]
            wrong[piece] = count
        for piece in range(n_pieces - 1, -1, -1):
            least = min(least, nearest_changing[piece + 1])
            nearest[piece] = min(nearest[piece], least)
        return wrong, nearest
    count, least = always, np.inf
    for piece in range(n_pieces - 1, -1, -1):
        count += changing[piece + 1]
        wrong[piece] = count
    for piece in range(n_pieces):
        least = min(least, nearest_changing[piece])
        nearest[piece] = min(nearest[piece], least)
    return wrong, nearest
