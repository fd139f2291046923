"""Superpixels and their region adjacency graph, by a watershed of the colour gradient.

Superpixels are the leaves of the region trees. Merging cannot recover an edge inside a superpixel, so superpixels are
small.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from skimage.measure import label

from unsam_mm.masks.partition import Partition
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


class Superpixels:
    """Superpixels of an image and their adjacency graph.

    Args:
        labels: (H, W) int32, values 0..L-1, all used. Superpixels from `find_superpixels` are 4-connected.
        colour: Colour and gradient of the image.

    Attributes:
        partition: The partition of the image. Trees refer to it, not to the colours, which take more memory.
        edges: (E, 2) int32 pairs of adjacent superpixels, smaller number first, sorted.
        edge_lengths_px: (E,) float32 number of pixel sides that the pair shares.
        edge_strength: (E,) float32 mean gradient magnitude along the shared sides.
    """

    def __init__(self, labels: np.ndarray, colour: ColourEdges) -> None:
        self.partition, self.colour = Partition(labels), colour
        self.edges, self.edge_lengths_px, self.edge_strength = self.partition.borders(colour.strength)

    def __len__(self) -> int:
        return len(self.partition)

    @property
    def labels(self) -> np.ndarray:
        """(H, W) int32, values 0..L-1."""
        return self.partition.labels


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
    return Superpixels(flood(ranks, _cores(labels)) - 1, colour)


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
