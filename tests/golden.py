"""Weights and a picture computed from names alone, so that another implementation can be asked what it makes of them.

The authors' code was filled with these weights and run on this picture in float64. A part of what it computed is in
``tests/data/golden``; ``checksums.json`` there has SHA-256 sums of some of the weights and of the picture as they were.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent / 'data' / 'golden'

_TABLES = ('query_feat.weight', 'query_embed.weight', 'level_embed.weight', 'level_embed')
_DAMPED = ('out_proj.weight', 'linear2.weight')
_FROM_CONFIG = 'criterion.empty_weight'

_DISCS = (  # y, x, radius, colour
    (48, 64, 26, (230, 60, 40)),
    (48, 64, 12, (250, 210, 60)),
    (130, 190, 38, (40, 90, 200)),
    (140, 60, 18, (30, 170, 80)),
)
_RECTANGLES = (  # first row and column, last row and column (exclusive), colour
    (20, 120, 70, 180, (200, 200, 205)),
    (32, 134, 58, 166, (60, 50, 45)),
    (150, 90, 184, 150, (150, 40, 150)),
)


def golden_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 values that depend on the official name and the shape; no file is read.

    Look-up tables have unit scale and the last matrix of a residual branch a small one, since otherwise nine layers of
    random weights make all queries the same.
    """
    seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
    noise = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if name.endswith('running_var'):
        return 1 + np.float32(0.1) * np.abs(noise)
    if name.endswith('running_mean'):
        return np.float32(0.1) * noise
    if len(shape) == 1:
        return 1 + np.float32(0.1) * noise if name.endswith('weight') else np.float32(0.02) * noise
    if name.endswith(_TABLES):
        return noise
    scaled = noise * np.float32(math.sqrt(1 / math.prod(shape[1:])))
    return scaled * np.float32(0.2) if name.endswith(_DAMPED) else scaled


def official_shapes(num_queries: int = 2000) -> dict[str, tuple[int, ...]]:
    """Names and shapes in the released whole-image checkpoints, as their authors' code lists them."""
    shapes = json.loads((FOLDER / 'whole_image_shapes.json').read_text())
    return {name: (num_queries, *shape[1:]) if shape[0] == 2000 else tuple(shape) for name, shape in shapes.items()}


def official_state(num_queries: int = 2000) -> dict[str, torch.Tensor]:
    """The released whole-image model with golden weights."""
    return {
        name: torch.tensor([1.0, 0.1]) if name == _FROM_CONFIG else torch.from_numpy(golden_tensor(name, shape))
        for name, shape in official_shapes(num_queries).items()
    }


@cache
def golden_image() -> np.ndarray:
    """(192, 256, 3) uint8 RGB: waves, four discs, three rectangles, noise."""
    y, x = np.mgrid[0:192, 0:256].astype(np.float64)
    red = 120 + 50 * np.sin(x / 17) + 30 * np.cos(y / 23)
    green = 110 + 45 * np.sin((x + 2 * y) / 29) + 25 * np.sin(y / 9)
    blue = 130 + 40 * np.cos((2 * x - y) / 37) + 35 * np.sin(x / 11 + y / 13)
    image = np.stack([red, green, blue], axis=-1)
    for cy, cx, radius, colour in _DISCS:
        image[(y - cy) ** 2 + (x - cx) ** 2 <= radius * radius] = colour
    for y0, x0, y1, x1, colour in _RECTANGLES:
        image[y0:y1, x0:x1] = colour
    noise = np.random.RandomState(0).randint(-8, 9, size=image.shape)
    return np.clip(np.floor(image + 0.5) + noise, 0, 255).astype(np.uint8)


def remember(module: nn.Module, method: str) -> None:
    """Lets a method that depends on one tensor, or on a tuple of tensors, alone be computed once for each."""
    known: dict[bytes, Any] = {}
    compute = getattr(module, method)

    def remembered(values: Tensor | tuple[Tensor, ...]) -> Any:
        tensors = [values] if isinstance(values, Tensor) else values
        key = hashlib.sha256(b''.join(tensor.numpy().tobytes() for tensor in tensors)).digest()
        if key not in known:
            known[key] = compute(values)
        return known[key]

    setattr(module, method, remembered)


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    """What the authors' code computed."""
    with np.load(FOLDER / f'{name}.npz') as file:
        return dict(file)
