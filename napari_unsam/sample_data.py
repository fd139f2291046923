"""Sample data: images of scikit-image, and a synthetic stack and movie; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import ndimage
from skimage import data

LayerData = tuple[Any, dict[str, Any], str]

_EM_SHAPE = (20, 256, 256)
_N_NEURITES, _N_MITOCHONDRIA = 60, 18
_MOVIE_SHAPE = (16, 256, 256)
_N_CELLS = 14


def coffee() -> list[LayerData]:
    """A photo of a cup on a table: parts within objects within a scene."""
    return [(data.coffee(), {'name': 'Coffee cup'}, 'image')]


def coins() -> list[LayerData]:
    """Greek coins, greyscale: many similar objects."""
    return [(data.coins(), {'name': 'Coins'}, 'image')]


def cell() -> list[LayerData]:
    """A quantitative phase image of one cell, greyscale."""
    return [(data.cell(), {'name': 'Cell'}, 'image')]


def nuclei() -> list[LayerData]:
    """Stained tissue: nuclei within glands."""
    return [(data.immunohistochemistry(), {'name': 'Tissue'}, 'image')]


def em_stack() -> list[LayerData]:
    """A stack that looks like electron microscopy: neurites with dark membranes, some with mitochondria."""
    placed = {'scale': (45.0, 8.0, 8.0), 'units': ('nm', 'nm', 'nm'), 'axis_labels': ('z', 'y', 'x')}
    return [(neurites(), {'name': 'EM-like stack'} | placed, 'image')]


def movie() -> list[LayerData]:
    """A movie of bright nuclei that move; some divide."""
    return [(dividing_nuclei(), {'name': 'Nuclei over time', 'axis_labels': ('t', 'y', 'x')}, 'image')]


def neurites(shape: tuple[int, int, int] = _EM_SHAPE, seed: int = 0) -> np.ndarray:
    """A (Z, Y, X) uint8 stack of tubes along z, with membranes, texture and mitochondria.

    The tubes in a slice are the cells of a power diagram, whose centres move with z.
    """
    rng = np.random.default_rng(seed)
    depth, height, width = shape
    centres = _paths(rng, _N_NEURITES, shape, step_px=2.0)
    sizes = rng.uniform(0, 400, _N_NEURITES)
    grey = rng.uniform(150, 200, _N_NEURITES)
    hosts = rng.choice(_N_NEURITES, _N_MITOCHONDRIA, replace=False)
    middles, lengths = rng.integers(0, depth, _N_MITOCHONDRIA), rng.integers(3, 8, _N_MITOCHONDRIA)
    rows, columns = np.indices((height, width))
    stack = np.empty(shape, np.uint8)
    for z in range(depth):
        apart = (rows - centres[z, :, 0, None, None]) ** 2 + (columns - centres[z, :, 1, None, None]) ** 2
        power = apart - sizes[:, None, None]
        nearest, second = np.argpartition(power, 1, axis=0)[:2]
        gap = np.linalg.norm(centres[z, nearest] - centres[z, second], axis=-1)
        from_border = np.diff(np.take_along_axis(power, np.stack([nearest, second]), axis=0), axis=0)[0] / (2 * gap)
        plane = grey[nearest]
        for host, middle, length in zip(hosts, middles, lengths, strict=True):
            along = 1 - ((z - middle) / length) ** 2
            if along > 0:
                radius = 9 * np.sqrt(along)
                rim = np.abs(np.sqrt(apart[host]) - radius)
                plane = np.where(apart[host] < radius**2, 105.0, plane) - 45 * np.exp(-((rim / 1.5) ** 2))
        plane -= 120 * np.exp(-((from_border / 1.8) ** 2))
        texture = ndimage.gaussian_filter(rng.standard_normal((height, width)), 1.2) * 25
        stack[z] = np.clip(ndimage.gaussian_filter(plane, 0.8) + texture, 0, 255)
    return stack


def dividing_nuclei(shape: tuple[int, int, int] = _MOVIE_SHAPE, seed: int = 0) -> np.ndarray:
    """A (T, Y, X) uint16 movie of nuclei; every third one divides in the middle of the movie."""
    rng = np.random.default_rng(seed)
    n_frames, height, width = shape
    paths = _paths(rng, _N_CELLS, shape, step_px=1.5)
    radii = rng.uniform(8, 12, _N_CELLS)
    heading = rng.uniform(0, 2 * np.pi, _N_CELLS)
    rows, columns = np.indices((height, width))
    frames = np.empty(shape, np.uint16)
    for t in range(n_frames):
        light = np.zeros((height, width))
        for number in range(_N_CELLS):
            apart_px = max(0.0, t - n_frames / 2) * 2.2 if number % 3 == 0 else 0.0
            for side in (-1, 1) if apart_px else (1,):
                at = paths[t, number] + side * apart_px * np.array([np.sin(heading[number]), np.cos(heading[number])])
                radius = radii[number] * (0.75 if apart_px else 1.0)
                distance = np.hypot(rows - at[0], columns - at[1])
                light = np.maximum(light, 1 / (1 + np.exp((distance - radius) / 0.9)))
        noise = rng.standard_normal((height, width)) * 60
        frames[t] = np.clip(400 + 5000 * ndimage.gaussian_filter(light, 1) + noise, 0, None)
    return frames


def _paths(rng: np.random.Generator, count: int, shape: tuple[int, int, int], step_px: float) -> np.ndarray:
    """(T, count, 2) smooth random walks; their starts are spread over the plane."""
    n_steps, height, width = shape
    starts = [rng.uniform((0, 0), (height, width))]
    while len(starts) < count:  # of 12 random positions, the one farthest from the other starts
        tries = rng.uniform((0, 0), (height, width), (12, 2))
        gaps = np.linalg.norm(tries[:, None] - np.array(starts)[None], axis=2).min(axis=1)
        starts.append(tries[gaps.argmax()])
    steps = ndimage.gaussian_filter1d(rng.standard_normal((n_steps, count, 2)), 2, axis=0) * 2 * step_px
    return np.array(starts) + np.cumsum(steps, axis=0)
