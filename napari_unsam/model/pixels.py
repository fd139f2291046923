"""The pixels of a plane as the user sees them, read where and when they are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_unsam.model.frame import Channels, LayerChannels
from napari_unsam.model.plane import Plane

if TYPE_CHECKING:
    from napari.layers import Image


class PlanePixels:
    """One plane of an array, 8 bit, black and white at the layer's contrast limits; nothing is read before it is indexed.

    Args:
        array: All axes of the layer, and its colours last if it is RGB: NumPy, dask, zarr or the like.
        plane: Which plane.
        contrast_limits: For arrays without colours.
        is_rgb: Whether the last axis is of colours; an alpha channel is dropped.
        channels: Which channels, if an axis is of such: one gives grey values, two or three red, green and blue.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        array: Any,
        plane: Plane,
        contrast_limits: Sequence[float],
        is_rgb: bool = False,
        channels: Channels | None = None,
    ) -> None:
        self._array, self._plane, self._limits = array, plane, tuple(contrast_limits)
        self._is_rgb, self._channels = is_rgb, channels
        height, width = (array.shape[axis] for axis in plane.axes)
        colours = is_rgb or (channels is not None and len(channels.chosen) > 1)
        self.shape: tuple[int, ...] = (height, width, 3) if colours else (height, width)

    def __getitem__(self, index: slice | tuple[slice, slice]) -> np.ndarray:
        """(h, w) or (h, w, 3) uint8 pixels."""
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        if self._is_rgb:
            return eight_bit_colours(self._read(rows, columns)[..., :3])
        if self._channels is None:
            return to_uint8(self._read(rows, columns), self._limits)
        read = [to_uint8(self._read(rows, columns, channel), self._limits) for channel in self._channels.chosen]
        return read[0] if len(read) == 1 else _as_colours(read)

    def _read(self, rows: slice, columns: slice, channel: int = 0) -> np.ndarray:
        where: list[int | slice] = list(self._plane.index)
        where[self._plane.axes[0]], where[self._plane.axes[1]] = rows, columns
        if self._channels is not None:
            where[self._channels.axis] = channel
        return np.asarray(self._array[tuple(where)])


class JoinedPixels:
    """The same plane of several layers as one in colours; nothing is read before it is indexed.

    Args:
        parts: Two or three of the same size: red, green and blue.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, parts: Sequence[PlanePixels]) -> None:
        self._parts = tuple(parts)
        self.shape: tuple[int, ...] = (*parts[0].shape[:2], 3)

    def __getitem__(self, index: slice | tuple[slice, slice]) -> np.ndarray:
        """(h, w, 3) uint8 pixels."""
        return _as_colours([part[index] for part in self._parts])


def plane_pixels(
    image: Image, plane: Plane, channels: Channels | LayerChannels | None = None
) -> list[PlanePixels | JoinedPixels]:
    """A plane of a layer at full resolution, then at those coarser ones of a pyramid that halve both sides of the plane alone.

    Args:
        image: The layer.
        plane: The plane.
        channels: Along an axis of the layer, or in several layers, of which those resolutions are given that all have.
    """
    if isinstance(channels, LayerChannels):
        levels = list(zip(*(plane_pixels(layer, plane) for layer in channels.layers), strict=False))
        shared = [parts for parts in levels if all(part.shape == parts[0].shape for part in parts)]
        return [parts[0] if len(parts) == 1 else JoinedPixels(parts) for parts in shared]
    arrays = list(image.data) if image.multiscale else [image.data]
    across = [axis for axis in range(image.ndim) if axis not in plane.axes]
    matching = [
        array
        for i, array in enumerate(arrays)
        if all(array.shape[axis] == arrays[0].shape[axis] for axis in across)
        and all(_is_halved(arrays[0].shape[axis], array.shape[axis], i) for axis in plane.axes)
    ]
    return [PlanePixels(array, plane, image.contrast_limits, image.rgb, channels) for array in matching]


def to_uint8(pixels: np.ndarray, contrast_limits: Sequence[float]) -> np.ndarray:
    """Scales numbers of any type linearly so that the limits become 0 and 255; values beyond them are clipped.

    Args:
        pixels: Numbers of any shape; NaN becomes 0.
        contrast_limits: Lower and upper limit, lower < upper.
    """
    low, high = contrast_limits
    scaled = np.subtract(pixels, low, dtype=np.float64) * (255 / (high - low))
    return np.rint(np.nan_to_num(scaled).clip(0, 255)).astype(np.uint8)


def eight_bit_colours(pixels: np.ndarray) -> np.ndarray:
    """Colours as napari shows them: floats run from 0 to 1, integers over all of their type."""
    if pixels.dtype == np.uint8:
        return pixels
    top = 1.0 if pixels.dtype.kind == 'f' else float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind in 'ui' else 1.0
    return to_uint8(pixels, (0.0, top))


def _as_colours(channels: list[np.ndarray]) -> np.ndarray:
    """(h, w, 3) of two or three (h, w) arrays; what lacks is black."""
    return np.stack([*channels, *[np.zeros_like(channels[0])] * (3 - len(channels))], axis=-1)


def _is_halved(full: int, coarse: int, times: int) -> bool:
    return abs(full / 2**times - coarse) <= 1
