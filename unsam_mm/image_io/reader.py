"""Reads image files of all common formats: unscaled pixel values, axes, channels and pixel size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unsam_mm.errors import ImageError
from unsam_mm.image_io.image_file import ImageFile, check_is_file, decoder_errors
from unsam_mm.image_io.pictures import open_picture
from unsam_mm.image_io.tiff import is_tiff, open_tiff
from unsam_mm.image_io.tiff_metadata import scale_and_units

MAX_PIXELS = 178_956_970
"""Larger images are refused by default; this is also Pillow's limit."""

_COLOURS = ('red', 'green', 'blue')


@dataclass(frozen=True, eq=False)
class ImagePixels:
    """One image of two to four axes.

    Attributes:
        channels: Channel name to array; all arrays have the same shape. The name of a single channel is ''.
        is_rgb: True if the channels are red, green and blue.
        scale: Size of a pixel along each axis, in `units`.
        units: Unit of the size along each axis; 'pixel' if the file gives no size.
        axes: One letter of 'tzyx' for each axis.
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
        """Pixels for display: (..., H, W, 3) for colour images, else one channel, (..., H, W).

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
        """Yields each plane of `picture` with its index along the axes before rows and columns."""
        picture = self.picture(channel)
        for plane in np.ndindex(*self.shape[:-2]):
            yield plane, picture[plane]


def read_pixels(path: str | Path, max_pixels: int | None = None) -> ImagePixels:
    """Reads an image file; apart from the following conversions, its values and dtype are not changed.

    Images are rotated to upright according to their orientation tag. Other colour spaces (CMYK, CIELAB, YCbCr, palettes)
    are converted to RGB, grey values that are small where the image is bright are inverted, and values of 2 to 7 bits are
    scaled to 8 bits. An alpha channel is dropped; other additional samples are channels. If the file belongs to a
    multi-file set, only the planes in this file are read.

    Args:
        path: The file.
        max_pixels: Images with larger planes are refused before they are read; None for no limit.

    Raises:
        ImageError: If the file is missing, broken, too large or not an image, contains several images or is animated,
            or has axes other than t, z, y, x and channels.
    """
    with open_image(path) as file:
        check_size(file.shape[-2:], str(path), max_pixels)
        pixels = file.read()
        arrays = [pixels] if file.n_channels == 1 else [pixels[..., i] for i in range(file.n_channels)]
        names = _COLOURS if file.is_rgb else [''] if len(arrays) == 1 else [str(i) for i in range(len(arrays))]
        scale, units = scale_and_units(file.sizes, file.axes)
        return ImagePixels(dict(zip(names, arrays, strict=True)), file.is_rgb, scale, units, file.axes)


def check_size(shape_hw: tuple[int, ...], name: str, max_pixels: int | None) -> None:
    """Checks that an image is not too large to be processed at once.

    Args:
        shape_hw: Height and width of the image.
        name: Name of the image in the message.
        max_pixels: The limit; None for no limit.

    Raises:
        ImageError: If the image has more than `max_pixels` pixels.
    """
    height, width = shape_hw
    if max_pixels is not None and height * width > max_pixels:
        raise ImageError(
            f'{name}: {width} x {height} px are more than the limit of {max_pixels / 1e6:.0f} million; '
            'cut the image into tiles, make it smaller, or use UnSAMPredictor(tile_px=1024) on a zarr array, see '
            'docs/large_images.md'
        )


@contextmanager
def open_image(path: str | Path) -> Iterator[ImageFile]:
    """Opens an image file; the format is detected from the content, not from the name.

    Raises:
        ImageError: For the same reasons as in `read_pixels`, except for the size. Errors in the block are not changed.
    """
    path = Path(path)
    with ExitStack() as stack:
        with decoder_errors(path):
            check_is_file(path)
            file = stack.enter_context(open_tiff(path) if is_tiff(path) else open_picture(path))
        yield file
