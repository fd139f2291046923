"""An open image file, and the errors of decoders in one form."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from unsam_mm.errors import ImageError
from unsam_mm.image_io.tiff_metadata import PixelSizes

_is_reading: ContextVar[bool] = ContextVar('is_reading', default=False)


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An open image file whose pixels have not been read yet.

    Attributes:
        path: The file.
        axes: One letter of 'tzyx' for each axis.
        shape: Number of pixels along each of these axes, after rotation to upright.
        n_channels: Number of channels without alpha.
        is_rgb: True if the channels are red, green and blue.
        sizes: Size and unit of a pixel, by axis; axes of unknown size are left out.
    """

    path: Path
    axes: str
    shape: tuple[int, ...]
    n_channels: int
    is_rgb: bool
    sizes: PixelSizes

    def read(self) -> np.ndarray:
        """Pixel values of shape `shape`, or (*shape, n_channels) for several channels; see `reader.read_pixels`.

        Raises:
            ImageError: If the pixels cannot be decoded, or a package for decoding is missing.
        """
        with decoder_errors(self.path):
            return self._decode()

    def _decode(self) -> np.ndarray:
        raise NotImplementedError


@contextmanager
def decoder_errors(path: Path) -> Iterator[None]:
    """Turns all errors of decoders into `ImageError`, and suppresses their log messages."""
    token = _is_reading.set(True)
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            f'{path}: needs more memory than is free; close other programs, or make the image smaller'
        ) from error
    except PermissionError as error:
        raise ImageError(f'{path}: cannot be opened ({error.strerror}); check its permissions') from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f'{path}: cannot be read as an image (its content is of no known format); copy it again or convert it to PNG'
        ) from error
    except Exception as error:  # decoders raise anything for broken files, for example struct.error
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise ImageError(
            f'{path}: cannot be read as an image ({reason}); copy it again or convert it to PNG'
        ) from error
    finally:
        _is_reading.reset(token)


def check_is_file(path: Path) -> None:
    """Checks an image file before it is opened: opening a pipe would wait forever.

    Raises:
        ImageError: If it is missing, empty, or not a regular file.
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
    return not _is_reading.get()  # decoders log irregular metadata, which are harmless here


for _name in ('tifffile', 'PIL.TiffImagePlugin', 'PIL.PngImagePlugin'):
    logging.getLogger(_name).addFilter(_is_wanted)
