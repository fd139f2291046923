"""The pixels of a plane at the contrast limits of its layer, read lazily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_unsam.model.frame import Channels, LayerChannels
from napari_unsam.model.plane import Plane

if TYPE_CHECKING:
    from napari.layers import Image


class PlanePixels:
    """One plane of an array as uint8, scaled by the contrast limits; pixels are read when it is indexed.

    Args:
        array: The data of the layer, a NumPy, dask or zarr array, for example.
        plane: The plane.
        contrast_limits: Values of black and white; without effect for RGB.
        is_rgb: True if the last axis is RGB or RGBA; alpha is dropped.
        channel: The channel axis and the index along it; None if there is no such axis.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        array: Any,
        plane: Plane,
        contrast_limits: Sequence[float],
        is_rgb: bool = False,
        channel: tuple[int, int] | None = None,
    ) -> None:
        self._array, self._plane, self._limits = array, plane, tuple(contrast_limits)
        self._is_rgb, self._channel = is_rgb, channel
        height, width = (array.shape[axis] for axis in plane.axes)
        self.shape: tuple[int, ...] = (height, width, 3) if is_rgb else (height, width)

    def __getitem__(self, index: slice | tuple[slice, slice]) -> np.ndarray:
        """(h, w) or (h, w, 3) uint8 pixels."""
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        where: list[int | slice] = list(self._plane.index)
        where[self._plane.axes[0]], where[self._plane.axes[1]] = rows, columns
        if self._channel is not None:
            where[self._channel[0]] = self._channel[1]
        pixels = np.asarray(self._array[tuple(where)])
        return eight_bit_colours(pixels[..., :3]) if self._is_rgb else to_uint8(pixels, self._limits)


class JoinedPixels:
    """The same plane of several channels as RGB; pixels are read when it is indexed.

    Args:
        parts: Red and green, or red, green and blue, of the same size; blue is 0 if it is not given.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, parts: Sequence[PlanePixels]) -> None:
        self._parts = tuple(parts)
        self.shape: tuple[int, ...] = (*parts[0].shape[:2], 3)

    def __getitem__(self, index: slice | tuple[slice, slice]) -> np.ndarray:
        """(h, w, 3) uint8 pixels."""
        channels = [part[index] for part in self._parts]
        return np.stack([*channels, *[np.zeros_like(channels[0])] * (3 - len(channels))], axis=-1)


def plane_pixels(
    image: Image, plane: Plane, channels: Channels | LayerChannels | None = None
) -> list[PlanePixels | JoinedPixels]:
    """The pixels of a plane at full resolution, then at coarser levels of a pyramid that halve only the plane's sides.

    Args:
        image: The layer.
        plane: The plane.
        channels: The channels, along an axis or in several layers; of several layers, only the levels that all of them
            have are returned.
    """
    if isinstance(channels, LayerChannels):
        of_channels = [_resolutions(layer, plane) for layer in channels.layers]
    elif channels is not None:
        of_channels = [_resolutions(image, plane, (channels.axis, channel)) for channel in channels.chosen]
    else:
        of_channels = [_resolutions(image, plane)]
    shared = [parts for parts in zip(*of_channels, strict=False) if len({part.shape for part in parts}) == 1]
    return [parts[0] if len(parts) == 1 else JoinedPixels(parts) for parts in shared]


def _resolutions(image: Image, plane: Plane, channel: tuple[int, int] | None = None) -> list[PlanePixels]:
    arrays = list(image.data) if image.multiscale else [image.data]
    across = [axis for axis in range(image.ndim) if axis not in plane.axes]
    matching = [
        array
        for i, array in enumerate(arrays)
        if all(array.shape[axis] == arrays[0].shape[axis] for axis in across)
        and all(abs(arrays[0].shape[axis] / 2**i - array.shape[axis]) <= 1 for axis in plane.axes)
    ]
    return [PlanePixels(array, plane, image.contrast_limits, image.rgb, channel) for array in matching]


def to_uint8(pixels: np.ndarray, contrast_limits: Sequence[float]) -> np.ndarray:
    """Scales numbers linearly to uint8 so that the limits become 0 and 255; values beyond the limits are clipped.

    Args:
        pixels: Array of any shape and numeric dtype; NaN becomes 0.
        contrast_limits: Lower and upper limit; lower < upper.
    """
    low, high = contrast_limits
    scaled = np.subtract(pixels, low, dtype=np.float64) * (255 / (high - low))
    return np.rint(np.nan_to_num(scaled).clip(0, 255)).astype(np.uint8)


def eight_bit_colours(pixels: np.ndarray) -> np.ndarray:
    """Colours as uint8, scaled as napari does: floats from 0 to 1, integers from 0 to the maximum of their dtype."""
    if pixels.dtype == np.uint8:
        return pixels
    return to_uint8(pixels, (0.0, float(np.iinfo(pixels.dtype).max) if pixels.dtype.kind in 'ui' else 1.0))
