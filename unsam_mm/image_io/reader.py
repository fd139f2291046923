"""Reads image files of all common formats: unscaled pixel values, axes, channels and pixel size."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from unsam_mm.errors import ImageError
from unsam_mm.image_io.pictures import Picture, open_picture
from unsam_mm.image_io.tiff import TiffImage, is_tiff, open_tiff
from unsam_mm.image_io.tiff_metadata import PixelSizes, scale_and_units

MAX_PIXELS = 178_956_970
"""Larger images are refused by default; Pillow's limit too."""

_COLOURS = ('red', 'green', 'blue')
_is_reading: ContextVar[bool] = ContextVar('is_reading', default=False)


@dataclass(frozen=True, eq=False)
class ImagePixels:
    """One image of two to four axes.

    Attributes:
        channels: Arrays of one shape by name; '' if there is one only.
        is_rgb: Whether the channels are red, green and blue.
        scale: Size of a pixel along each axis.
        units: The unit of each; 'pixel' where the file gives none.
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
        """Pixels for display: (..., H, W, 3) of colour images, else those of one channel, (..., H, W).

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


class ImageFile:
    """An open image file, of which no pixel has been read yet.

    Attributes:
        path: The file.
        axes: A letter for each axis, of 'tzyx'.
        shape: Number of pixels along each, the image being upright.
        n_channels: How many channels it has; alpha is none.
        is_rgb: Whether they are red, green and blue.
        sizes: Of a pixel, by axis.
    """

    def __init__(self, opened: Picture | TiffImage) -> None:
        self.path = opened.path
        self.axes: str = opened.axes
        self.shape: tuple[int, ...] = opened.shape
        self.n_channels: int = opened.n_channels
        self.is_rgb: bool = opened.is_rgb
        self.sizes: PixelSizes = opened.sizes
        self._opened = opened

    def read(self) -> np.ndarray:
        """Unscaled pixel values, `shape` or (*shape, n_channels).

        Raises:
            ImageError: If they cannot be decoded.
        """
        with _explaining(self.path):
            return self._opened.read()


def read_pixels(path: str | Path, max_pixels: int | None = None) -> ImagePixels:
    """Reads an image file with the numbers and the dtype that it holds.

    Images are turned upright according to their orientation tag. Colours of other spaces (CMYK, CIELAB, YCbCr,
    palettes) become RGB, grey that is small where it is bright is inverted, and numbers of 2 to 7 bits are scaled to 8.
    An alpha channel is dropped; samples beyond that are channels. A file of a multi-file set gives the planes in it.

    Args:
        path: The file.
        max_pixels: Images with larger planes are refused before they are read; None: none is.

    Raises:
        ImageError: If the file is missing, broken, too large or no image, holds several images or is animated, or has
            axes beyond t, z, y, x and channels.
    """
    with open_image(path) as file:
        check_size(file.shape[-2:], str(path), max_pixels)
        pixels = file.read()
        arrays = [pixels] if file.n_channels == 1 else [pixels[..., i] for i in range(file.n_channels)]
        names = _COLOURS if file.is_rgb else [''] if len(arrays) == 1 else [str(i) for i in range(len(arrays))]
        scale, units = scale_and_units(file.sizes, file.axes)
        return ImagePixels(dict(zip(names, arrays, strict=True)), file.is_rgb, scale, units, file.axes)


def check_size(shape_hw: tuple[int, ...], name: str, max_pixels: int | None) -> None:
    """Refuses an image that is too large to be processed whole.

    Args:
        shape_hw: Its height and width.
        name: What the message calls it.
        max_pixels: The limit; None for no limit.

    Raises:
        ImageError: If it has more than `max_pixels` pixels.
    """
    height, width = shape_hw
    if max_pixels is not None and height * width > max_pixels:
        raise ImageError(
            f'{name}: {width} x {height} px are more than the limit of {max_pixels / 1e6:.0f} million; '
            'cut the image into tiles, make it smaller, or take UnSAMPredictor(tile_px=1024) on a zarr array, see '
            'docs/large_images.md'
        )


@contextmanager
def open_image(path: str | Path) -> Iterator[ImageFile]:
    """Opens an image file; the format is detected from the content, not from the name.

    Raises:
        ImageError: As `read_pixels`. Errors of the block come out as they are.
    """
    path = Path(path)
    with ExitStack() as stack:
        with _explaining(path):
            check_is_file(path)
            opened = stack.enter_context(open_tiff(path) if is_tiff(path) else open_picture(path))
        yield ImageFile(opened)


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    """Turns whatever decoders raise into `ImageError`, and keeps what they log to itself."""
    token = _is_reading.set(True)
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            f'{path}: takes more memory than is free; close other programs, or make the image smaller'
        ) from error
    except PermissionError as error:
        raise ImageError(f'{path}: cannot be opened ({error.strerror}); check its permissions') from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f'{path}: cannot be read as an image (its content is of no known format); copy it again or convert it to PNG'
        ) from error
    except Exception as error:  # decoders of broken files raise anything, struct.error for one
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise ImageError(
            f'{path}: cannot be read as an image ({reason}); copy it again or convert it to PNG'
        ) from error
    finally:
        _is_reading.reset(token)


def check_is_file(path: Path) -> None:
    """Called before an image file is opened: opening a pipe would wait for ever.

    Raises:
        ImageError: If it is missing, empty, or no file.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        is_link = path.is_symlink()
        raise ImageError(f'{path}: {"a link to a file that is not there" if is_link else "no such file"}') from error
    except (OSError, ValueError) as error:
        raise ImageError(f'{path}: cannot be opened ({getattr(error, "strerror", None) or error})') from error
    if not stat.S_ISREG(status.st_mode):
        kind = 'a folder' if stat.S_ISDIR(status.st_mode) else 'a device or pipe'
        raise ImageError(f'{path}: expected an image file, got {kind}')
    if status.st_size == 0:
        raise ImageError(f'{path}: the file is empty (0 bytes); copy it again')


def _is_wanted(record: logging.LogRecord) -> bool:
    """Decoders log oddities of metadata; what matters to a reader is raised."""
    return not _is_reading.get()


for _name in ('tifffile', 'PIL.TiffImagePlugin', 'PIL.PngImagePlugin'):
    logging.getLogger(_name).addFilter(_is_wanted)
