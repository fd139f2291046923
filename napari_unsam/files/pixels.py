"""An image file as arrays of its own numbers, with channels and the size of a pixel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageOps

from napari_unsam.output.images import voxel_size
from unsam_mm.errors import ImageError

_AXES = 'TZYX'
_COLOURS = ('red', 'green', 'blue')


@dataclass(frozen=True, eq=False)
class ImagePixels:
    """One image of two to four axes.

    Attributes:
        channels: Arrays of one shape by name; '' if there is one only.
        is_rgb: Whether the channels are red, green and blue.
        scale: Size of a pixel along each axis.
        units: The unit of each; 'pixel' where the file does not say.
        axes: A letter for each axis, of 'tzyx'.
    """

    channels: dict[str, np.ndarray]
    is_rgb: bool
    scale: tuple[float, ...]
    units: tuple[str, ...]
    axes: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape without channels."""
        return next(iter(self.channels.values())).shape

    def picture(self, channel: int = 0) -> np.ndarray:
        """The pixels to look at: of colour images (..., H, W, 3), of others those of one channel, (..., H, W).

        Raises:
            ImageError: If there is no such channel.
        """
        arrays = list(self.channels.values())
        if self.is_rgb:
            return np.stack(arrays, axis=-1)
        if not 0 <= channel < len(arrays):
            raise ImageError(f'there is no channel {channel}; the image has {len(arrays)}, counted from 0')
        return arrays[channel]

    def planes(self, channel: int = 0) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        """Each plane of `picture`, with its place along the axes before rows and columns."""
        picture = self.picture(channel)
        for plane in np.ndindex(*self.shape[:-2]):
            yield plane, picture[plane]


def read_pixels(path: str | Path) -> ImagePixels:
    """Reads an image file.

    Photographs are turned as their EXIF orientation says, and an alpha channel is dropped.

    Raises:
        ImageError: If the file is missing, broken, no image, or has axes beyond t, z, y, x and channels.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f'{path}: no such file')
    try:
        if path.suffix.lower() in ('.tif', '.tiff') and (image := _read_tiff(path)) is not None:
            return image
        return _read_with_pillow(path)
    except ImageError:
        raise
    except Exception as error:  # decoders of broken files raise anything, struct.error for one
        raise ImageError(f'{path}: cannot be read as an image ({error}); copy it again or convert it to PNG') from error


def _read_tiff(path: Path) -> ImagePixels | None:
    """None for what Pillow reads better: pictures with a palette."""
    with tifffile.TiffFile(path) as file:
        if file.pages[0].photometric == tifffile.PHOTOMETRIC.PALETTE:
            return None
        series = file.series[0]
        axes, pixels, size = series.axes.upper(), series.asarray(), voxel_size(file)
    is_rgb = 'S' in axes and pixels.shape[axes.index('S')] in (3, 4)
    axes = axes if is_rgb else axes.replace('S', 'C', 1)
    channel_axis = axes.find('S' if is_rgb else 'C')
    if channel_axis < 0:
        arrays = [pixels]
    else:
        arrays = list(np.moveaxis(pixels, channel_axis, 0))[: 3 if is_rgb else None]
        axes = axes[:channel_axis] + axes[channel_axis + 1 :]
    if not 2 <= len(axes) <= len(_AXES) or not axes.endswith('YX'):
        raise ImageError(f'{path}: expected axes of {_AXES} and channels, got {series.axes} of shape {pixels.shape}')
    order = axes if set(axes) <= set(_AXES) else _AXES[-len(axes) :]  # planes without a name are a stack
    return _image(arrays, is_rgb, order.lower(), **size.get(len(axes), {}))


def _read_with_pillow(path: Path) -> ImagePixels:
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file)
        is_grey = upright.mode in ('1', 'L', 'LA', 'I', 'F') or upright.mode.startswith('I;')
        if upright.mode == 'LA':
            upright = upright.convert('L')
        pixels = np.asarray(upright if is_grey else upright.convert('RGB'))
    return _image([pixels] if is_grey else list(np.moveaxis(pixels, -1, 0)), not is_grey, 'yx')


def _image(
    arrays: list[np.ndarray],
    is_rgb: bool,
    axes: str,
    scale: tuple[float, ...] | None = None,
    units: tuple[str, ...] | None = None,
) -> ImagePixels:
    names = _COLOURS if is_rgb else [''] if len(arrays) == 1 else [str(i) for i in range(len(arrays))]
    return ImagePixels(
        channels=dict(zip(names, arrays, strict=True)),
        is_rgb=is_rgb,
        scale=scale or (1.0,) * len(axes),
        units=units or ('pixel',) * len(axes),
        axes=axes,
    )
