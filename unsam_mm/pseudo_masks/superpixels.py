"""Superpixels and their region adjacency graph, by a watershed of the colour gradient.

Superpixels are the leaves of the region trees. Merging cannot recover an edge that no superpixel follows, so they are
small.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
from skimage.measure import label

from unsam_mm.pseudo_masks.gradients import gradient_magnitude, lab_planes
from unsam_mm.pseudo_masks.watershed import flood, ranks_of

_GRADIENT_SIGMAS_PX = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class ColourEdges:
    """Colour of an image and its gradient.

    Attributes:
        lab: (H, W, 3) float32 CIE Lab colour.
        fine: (H, W) float32 gradient magnitude at the finest scale, which locates edges.
        strength: (H, W) float32 gradient magnitude summed over scales, which measures edge strength.
    """

    lab: np.ndarray
    fine: np.ndarray
    strength: np.ndarray

    @classmethod
    def from_image(cls, image: np.ndarray) -> ColourEdges:
        """Colour and gradients of an (H, W, 3) uint8 RGB image."""
        planes = lab_planes(image)
        gradients = [gradient_magnitude(planes, sigma) for sigma in _GRADIENT_SIGMAS_PX]
        return cls(planes.transpose(1, 2, 0), gradients[0], sum(gradients[1:], gradients[0]))


@dataclass(frozen=True)
class Superpixels:
    """A partition of an image and its region adjacency graph.

    Attributes:
        labels: (H, W) int32, values 0..L-1, all used; each superpixel is 4-connected.
        edges: (E, 2) int32 pairs of adjacent superpixels, smaller number first, sorted.
        edge_lengths_px: (E,) float32 number of pixel sides that the pair shares.
        edge_strength: (E,) float32 mean gradient magnitude along the shared sides.
        colour: Colour and gradient of the image.
    """

    labels: np.ndarray
    edges: np.ndarray
    edge_lengths_px: np.ndarray
    edge_strength: np.ndarray
    colour: ColourEdges

    @property
    def count(self) -> int:
        """Number of superpixels."""
        return int(self.labels.max()) + 1

    @cached_property
    def _pixel(self) -> np.ndarray:
        """(L,) index of one pixel of each superpixel in the flattened image."""
        pixel = np.zeros(self.count, np.int64)
        pixel[self.labels.ravel()] = np.arange(self.labels.size)
        return pixel

    def numbers_in(self, leaf_labels: np.ndarray) -> np.ndarray:
        """(L,) number of each superpixel in another (H, W) label map of the same superpixels, as that of a tree."""
        return leaf_labels.ravel()[self._pixel].astype(np.int64)


def find_superpixels(colour: ColourEdges, spacing_px: float = 8.0, max_superpixels: int = 20_000) -> Superpixels:
    """Superpixels by a watershed of the fine gradient from a regular grid of seeds.

    A seed on an edge is enclosed by its neighbours before it can grow, which leaves thin slivers. The watershed
    therefore runs twice; the seeds of the second run are the cores of the first superpixels, their parts at least three
    pixels wide.

    Args:
        colour: Colour and gradient of the image.
        spacing_px: Distance between seeds. The smallest object that can be found has an area of about its square.
        max_superpixels: The spacing is increased where the grid would have more seeds than this.
    """
    height, width = colour.fine.shape
    spacing_px = max(spacing_px, (height * width / max_superpixels) ** 0.5)
    ranks = ranks_of(colour.fine)
    labels = flood(ranks, _grid_seeds(height, width, spacing_px))
    return superpixels_from_labels(flood(ranks, _cores(labels)) - 1, colour)


def superpixels_from_labels(labels: np.ndarray, colour: ColourEdges) -> Superpixels:
    """Superpixels from an (H, W) label map with the values 0..L-1, all used."""
    low, high, lengths, strengths = _adjacency(np.ascontiguousarray(labels), colour.strength)
    return Superpixels(labels, np.stack([low, high], axis=1), lengths, strengths, colour)


def _cores(labels: np.ndarray) -> np.ndarray:
    """(H, W) int: connected sets of pixels whose four neighbours have the same label, numbered from 1; 0 elsewhere."""
    inside = np.ones(labels.shape, bool)
    for axis in range(2):
        first, second = (np.s_[:-1], np.s_[1:]) if axis == 0 else (np.s_[:, :-1], np.s_[:, 1:])
        differ = labels[first] != labels[second]
        inside[first] &= ~differ
        inside[second] &= ~differ
    cores = label(np.where(inside, labels, 0), background=0, connectivity=1)
    return cores if cores.any() else np.ones_like(cores)  # an image too small for cores is one superpixel


def _grid_seeds(height: int, width: int, spacing_px: float) -> np.ndarray:
    """(H, W) int32: seeds numbered from 1 at the centres of a regular grid, 0 elsewhere."""
    rows, columns = _centres(height, spacing_px), _centres(width, spacing_px)
    seeds = np.zeros((height, width), np.int32)
    seeds[np.ix_(rows, columns)] = np.arange(1, len(rows) * len(columns) + 1).reshape(len(rows), len(columns))
    return seeds


def _centres(length: int, spacing_px: float) -> np.ndarray:
    count = max(1, round(length / spacing_px))
    return ((np.arange(count) + 0.5) * length / count).astype(int)


@numba.njit(nogil=True, cache=True)
def _adjacency(labels, gradient):
    """Pairs of labels that share a pixel side, smaller and larger; number of shared sides, and mean gradient there."""
    low, high, strength = _sides(labels, gradient)
    n_labels = labels.max() + 1
    order = _stable_order(high, n_labels)
    order = order[_stable_order(low[order], n_labels)]
    n_pairs = 0
    firsts, seconds = np.empty(len(order), np.int32), np.empty(len(order), np.int32)
    lengths, sums = np.zeros(len(order), np.float32), np.zeros(len(order))
    for side in order:
        if n_pairs == 0 or low[side] != firsts[n_pairs - 1] or high[side] != seconds[n_pairs - 1]:
            firsts[n_pairs], seconds[n_pairs] = low[side], high[side]
            n_pairs += 1
        lengths[n_pairs - 1] += 1
        sums[n_pairs - 1] += strength[side]
    lengths = lengths[:n_pairs].copy()
    return firsts[:n_pairs].copy(), seconds[:n_pairs].copy(), lengths, (sums[:n_pairs] / lengths).astype(np.float32)


@numba.njit(nogil=True, cache=True)
def _sides(labels, gradient):
    """The smaller label, the larger one and the mean gradient at every pixel side between two labels."""
    height, width = labels.shape
    count = 0
    for y in range(height):
        for x in range(width):
            count += x + 1 < width and labels[y, x] != labels[y, x + 1]
            count += y + 1 < height and labels[y, x] != labels[y + 1, x]
    low, high, strength = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.float32)
    count = 0
    for down, right in ((0, 1), (1, 0)):
        for y in range(height - down):
            for x in range(width - right):
                one, other = labels[y, x], labels[y + down, x + right]
                if one != other:
                    low[count], high[count] = min(one, other), max(one, other)
                    strength[count] = (gradient[y, x] + gradient[y + down, x + right]) / np.float32(2)
                    count += 1
    return low, high, strength


@numba.njit(nogil=True, cache=True)
def _stable_order(values, n_values):
    """What sorts integers 0 .. n_values - 1; equal ones stay in their order. Takes linear time."""
    starts = np.zeros(n_values + 1, np.int64)
    for value in values:
        starts[value + 1] += 1
    starts = np.cumsum(starts)
    order = np.empty(len(values), np.int64)
    for i in range(len(values)):
        order[starts[values[i]]] = i
        starts[values[i]] += 1
    return order
