"""Image planes that are read lazily, tile by tile, from arrays on disk or from dask arrays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

from unsam_mm.errors import ImageError
from unsam_mm.images import MIN_SIDE_PX, contrast_limits, rescale_intensity
from unsam_mm.prompting.tile_pyramid import Tile

_BLOCK_PX = 1024  # side of the blocks that are read at once, a multiple of common chunk sizes
_SAMPLE_SIDE_PX, _SAMPLES_A_SIDE = 128, 8  # side of the patches for contrast limits, and their number along each side


class LazyArray(Protocol):
    """An array that can be sliced: NumPy arrays, memory maps, zarr and dask arrays."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W) or (H, W, 1, 3 or 4)."""

    def __getitem__(self, index: tuple[slice, slice]) -> object:
        """An object that `numpy.asarray` converts to an array."""


class LazyPlane:
    """A plane of which only the pixels of requested tiles are read.

    Args:
        pixels: (H, W) or (H, W, 1, 3 or 4) array, or a pyramid: a list of such arrays of the same plane, downsampled by
            powers of two, from which coarse tiles are read. An alpha channel is dropped; NaN and infinite values
            count as 0.
        limits: The values that are mapped to black and white in all tiles. By default they are 0 and 255 for uint8,
            and otherwise estimated, as for `as_rgb_uint8`, from at most 64 patches of the coarsest array.
        name: Name of the plane in error messages.

    Raises:
        ImageError: If an array is not a plane, too small, or not downsampled by a power of two; or if the limits are not
            two ascending numbers.
    """

    def __init__(
        self, pixels: LazyArray | Sequence[LazyArray], limits: tuple[float, float] | None = None, name: str = 'plane'
    ) -> None:
        arrays = list(pixels) if isinstance(pixels, Sequence) else [pixels]
        if not arrays:
            raise ImageError(f'{name}: expected at least one array, got an empty list')
        for array in arrays:
            _check_shape(array, name)
        self.size_hw: tuple[int, int] = tuple(int(side) for side in arrays[0].shape[:2])
        if min(self.size_hw) < MIN_SIDE_PX:
            raise ImageError(f'{name}: {self.size_hw} px is too small; both sides must have at least {MIN_SIDE_PX} px')
        if limits is not None and not (
            np.shape(limits) == (2,) and np.isfinite(limits).all() and limits[0] < limits[1]
        ):
            raise ImageError(f'{name}: limits must be two ascending numbers, got {limits}')
        self._name, self._limits = name, limits
        self._levels = {self._level_of(array): array for array in arrays}

    def read(self, tile: Tile) -> np.ndarray:
        """(H, W, 3) uint8 RGB pixels of a tile.

        Raises:
            ImageError: If the values are not real numbers.
        """
        level = max(level for level in self._levels if level <= tile.level)
        array, factor = self._levels[level], 1 << (tile.level - level)
        height, width = array.shape[:2]
        top, left = tile.top * factor, tile.left * factor
        out = np.empty((tile.height, tile.width, 3), np.uint8)
        # Blocks are aligned to multiples of their side, so that chunks are rarely read twice.
        for y0, y1 in _pieces(top, min(top + tile.height * factor, height), factor):
            for x0, x1 in _pieces(left, min(left + tile.width * factor, width), factor):
                rgb = self._to_rgb(_means(self._values(array, y0, y1, x0, x1), factor))
                y, x = (y0 - top) // factor, (x0 - left) // factor
                out[y : y + rgb.shape[0], x : x + rgb.shape[1]] = rgb
        # The sides of coarser arrays may be rounded down; their last row and column are repeated.
        rows, columns = -(-(height - top) // factor), -(-(width - left) // factor)
        out[rows:] = out[rows - 1 : rows]
        out[:, columns:] = out[:, columns - 1 : columns]
        return out

    @property
    def limits(self) -> tuple[float, float]:
        """The values that are mapped to black and white; estimated on first access."""
        if self._limits is None:
            array = self._levels[max(self._levels)]
            if getattr(array, 'dtype', None) == np.uint8:
                self._limits = 0.0, 255.0
                return self._limits
            spots = [
                self._values(array, y, y + _SAMPLE_SIDE_PX, x, x + _SAMPLE_SIDE_PX)
                for y in _spots(array.shape[0])
                for x in _spots(array.shape[1])
            ]
            colours = spots[0].shape[2:]
            self._limits = contrast_limits(np.concatenate([spot.reshape(-1, 1, *colours) for spot in spots]))
        return self._limits

    def _to_rgb(self, values: np.ndarray) -> np.ndarray:
        is_plain = values.dtype == np.uint8 and self.limits == (0.0, 255.0)
        rgb = values if is_plain else rescale_intensity(values, self.limits)
        return rgb if rgb.ndim == 3 else np.broadcast_to(rgb[..., None], (*rgb.shape, 3))

    def _values(self, array: LazyArray, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        values = np.asarray(array[y0:y1, x0:x1])
        if values.dtype.kind not in 'buif':
            raise ImageError(
                f'{self._name}: pixels of dtype {values.dtype} are not real numbers; convert it to integers or floats'
            )
        if values.ndim == 3:
            values = values[..., 0] if values.shape[2] == 1 else values[..., :3]
        return np.nan_to_num(values, posinf=0, neginf=0) if values.dtype.kind == 'f' else values

    def _level_of(self, array: LazyArray) -> int:
        ratios = np.divide(self.size_hw, array.shape[:2])
        level = max(round(float(np.log2(ratios.mean()))), 0)
        # Sides may be rounded up or down at each level; either way they are less than one pixel off.
        if (np.abs(np.divide(self.size_hw, 1 << level) - array.shape[:2]) > 1).any():
            raise ImageError(
                f'{self._name}: an array of {array.shape[:2]} px is not the first one, of {self.size_hw} px, '
                'downsampled by a power of two; pass a pyramid with the factors 1, 2, 4, ..., or only the first array'
            )
        return level


def _check_shape(array: LazyArray, name: str) -> None:
    shape = getattr(array, 'shape', None)
    if shape is None or len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(
            f'{name}: expected an array of shape (H, W), (H, W, 3) or (H, W, 4), got {shape}; '
            'pass one plane of a stack at a time, and move a leading channel axis to the end'
        )


def _pieces(start: int, stop: int, factor: int) -> list[tuple[int, int]]:
    """Splits an interval at multiples of the block side, which are also multiples of the factor."""
    side = max(_BLOCK_PX, factor)
    cuts = [start, *range((start // side + 1) * side, stop, side), stop]
    return list(pairwise(cuts))


def _spots(length: int) -> list[int]:
    """Start positions of evenly spaced patches along a side; a short side is covered completely."""
    last = max(length - _SAMPLE_SIDE_PX, 0)
    return np.unique(np.linspace(0, last, min(_SAMPLES_A_SIDE, last // _SAMPLE_SIDE_PX + 2)).astype(int)).tolist()


def _means(values: np.ndarray, factor: int) -> np.ndarray:
    """Block means of (H, W, ...) values; the last row and column are repeated to fill the last blocks."""
    if factor == 1:
        return values
    height, width = values.shape[:2]
    lacking = [(0, -height % factor), (0, -width % factor), *[(0, 0)] * (values.ndim - 2)]
    squares = np.pad(values, lacking, mode='edge').reshape(
        -(-height // factor), factor, -(-width // factor), factor, *values.shape[2:]
    )
    means = squares.mean(axis=(1, 3), dtype=np.float32)
    return np.rint(means).astype(np.uint8) if values.dtype == np.uint8 else means
