"""Leaves of the region tree: small regions that follow every visible edge, and which of them touch.

The tree can only ever join leaves, so an edge that no leaf respects is lost: leaves are many and cheap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.measure import label
from skimage.segmentation import watershed

_GRADIENT_SIGMAS_PX = (1.0, 2.0, 4.0)


@dataclass(frozen=True)
class ColourEdges:
    """Colour and where it changes.

    Attributes:
        lab: (H, W, 3) float32 CIE Lab colour.
        fine: (H, W) float32 colour gradient at the finest scale: where an edge lies.
        strength: (H, W) float32 colour gradient summed over scales: how much of an edge it is.
    """

    lab: np.ndarray
    fine: np.ndarray
    strength: np.ndarray

    @classmethod
    def of(cls, image: np.ndarray) -> ColourEdges:
        """Of an (H, W, 3) uint8 RGB image."""
        lab = rgb2lab(image).astype(np.float32)
        gradients = [_gradient(lab, sigma) for sigma in _GRADIENT_SIGMAS_PX]
        return cls(lab, gradients[0], sum(gradients[1:], gradients[0]))


@dataclass(frozen=True)
class Leaves:
    """The finest partition of an image.

    Attributes:
        labels: (H, W) int32, values 0..L-1, every value used, every region 4-connected.
        edges: (E, 2) int32 pairs of touching leaves, smaller number first, sorted.
        edge_lengths_px: (E,) float32 number of pixel sides that the pair shares.
        edge_strength: (E,) float32 mean colour gradient along the shared sides.
        colour: The image's colours and edges, from which the leaves were made.
    """

    labels: np.ndarray
    edges: np.ndarray
    edge_lengths_px: np.ndarray
    edge_strength: np.ndarray
    colour: ColourEdges

    @property
    def count(self) -> int:
        """Number of leaves."""
        return int(self.labels.max()) + 1


def find_leaves(colour: ColourEdges, spacing_px: float = 8.0, max_leaves: int = 20_000) -> Leaves:
    """Watershed of the fine colour gradient from a regular grid of seeds, without slivers.

    A seed that happens to sit on an edge is surrounded before it can grow, and most of a photograph's leaves would be
    slivers and whiskers. So the watershed runs twice: the second time from the cores of the first leaves, which
    are what is at least three pixels wide. Edges are located by the finest gradient and weighed by all scales.

    Args:
        colour: Of the image.
        spacing_px: Distance between seeds; the smallest object that can be found has about its square as area.
        max_leaves: The spacing grows where the grid would have more seeds than this.
    """
    height, width = colour.fine.shape
    spacing_px = max(spacing_px, (height * width / max_leaves) ** 0.5)
    labels = watershed(colour.fine, _grid_seeds(height, width, spacing_px))
    return leaves_of(watershed(colour.fine, _cores(labels)).astype(np.int32) - 1, colour)


def leaves_of(labels: np.ndarray, colour: ColourEdges) -> Leaves:
    """The leaves of a label map with the values 0..L-1, every value used."""
    return Leaves(labels, *_adjacency(labels, colour.strength), colour)


def _cores(labels: np.ndarray) -> np.ndarray:
    """(H, W) int: each connected set of pixels whose four neighbours have their label, numbered from 1; 0 elsewhere."""
    inside = np.ones(labels.shape, bool)
    for axis in range(2):
        first, second = (np.s_[:-1], np.s_[1:]) if axis == 0 else (np.s_[:, :-1], np.s_[:, 1:])
        differ = labels[first] != labels[second]
        inside[first] &= ~differ
        inside[second] &= ~differ
    cores = label(np.where(inside, labels, 0), background=0, connectivity=1)
    return cores if cores.any() else np.ones_like(cores)  # too small for cores: one leaf


def _gradient(lab: np.ndarray, sigma_px: float) -> np.ndarray:
    """(H, W) float32: gradient magnitude of the Lab image at one scale, all channels together."""
    squares = np.zeros(lab.shape[:2], np.float32)
    for channel in range(3):
        for order in ((0, 1), (1, 0)):
            squares += ndimage.gaussian_filter(lab[..., channel], sigma_px, order=order) ** 2
    return np.sqrt(squares)


def _grid_seeds(height: int, width: int, spacing_px: float) -> np.ndarray:
    """(H, W) int32: seeds numbered from 1 at the centres of a regular grid, 0 elsewhere."""
    rows, columns = _centres(height, spacing_px), _centres(width, spacing_px)
    seeds = np.zeros((height, width), np.int32)
    seeds[np.ix_(rows, columns)] = np.arange(1, len(rows) * len(columns) + 1).reshape(len(rows), len(columns))
    return seeds


def _centres(length: int, spacing_px: float) -> np.ndarray:
    count = max(1, round(length / spacing_px))
    return ((np.arange(count) + 0.5) * length / count).astype(int)


def _adjacency(labels: np.ndarray, gradient: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of labels that share a pixel side, how many sides, and the mean gradient there."""
    n_labels = int(labels.max()) + 1
    keys, strengths = [], []
    for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        a, b = labels[first], labels[second]
        differ = a != b
        low, high = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
        keys.append(low.astype(np.int64) * n_labels + high)
        strengths.append((gradient[first][differ] + gradient[second][differ]) / 2)
    keys, index = np.unique(np.concatenate(keys), return_inverse=True)
    lengths = np.bincount(index, minlength=len(keys))
    sums = np.bincount(index, np.concatenate(strengths), minlength=len(keys))
    edges = np.stack([keys // n_labels, keys % n_labels], axis=1).astype(np.int32)
    return edges, lengths.astype(np.float32), (sums / np.maximum(lengths, 1)).astype(np.float32)
