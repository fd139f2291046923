"""Reads files of a single picture with Pillow: PNG, JPEG, WebP, BMP and others."""

from __future__ import annotations

import importlib.util
import io
import os
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from unsam_mm.errors import ImageError
from unsam_mm.image_io.colour import is_grey_mode, picture_array, swaps_sides, upright
from unsam_mm.image_io.image_file import ImageFile
from unsam_mm.threads import without_warnings

_ORIENTATION = 0x0112
_PNG = b'\x89PNG\r\n\x1a\n'
_PNG_CHECKED = (b'IHDR', b'PLTE', b'IDAT')
_PNG_PIXELS = (b'IHDR', b'PLTE', b'acTL', b'IDAT', b'IEND', b'eXIf')
_DEEP_COLOUR = (b'\x10\x02', b'\x10\x04', b'\x10\x06')  # 16 bits, and RGB, grey with alpha, or RGB with alpha
_DEEP_GREY_ALPHA = 4
_limit_lock = threading.Lock()


@dataclass(frozen=True, eq=False)
class Picture(ImageFile):
    """An open file of one picture."""

    _file: Image.Image
    _orientation: int

    def _decode(self) -> np.ndarray:
        if _is_png(self.path):
            _check_png(self.path)
        deep_type = _deep_colour_type(self.path)
        return upright(_read_deep_png(self.path, deep_type) if deep_type else self._load(), self._orientation)

    def _load(self) -> np.ndarray:
        try:
            return picture_array(self._file)
        except ValueError:  # in a PNG, a long text after the pixels may be the reason
            if not _is_png(self.path):
                raise
            with _without_limit(), Image.open(_png_without_metadata(self.path)) as bare:
                return picture_array(bare)


@contextmanager
def open_picture(path: Path) -> Iterator[Picture]:
    """Opens a picture and reads its header.

    Raises:
        ImageError: If the picture is animated.
    """
    with _open(path) as file:
        # An MPO file of a phone contains a photograph, followed by previews or depth maps.
        n_frames = 1 if file.format == 'MPO' else getattr(file, 'n_frames', 1)
        if n_frames > 1:
            raise ImageError(
                f'{path}: expected one image, got a {file.format} of {n_frames} frames; '
                'save each in a file of its own, or all as a TIFF stack'
            )
        orientation = _orientation(file, path)
        width, height = file.size
        is_grey = is_grey_mode(file.mode) or _deep_colour_type(path) == _DEEP_GREY_ALPHA
        shape = (width, height) if swaps_sides(orientation) else (height, width)
        yield Picture(path, 'yx', shape, 1 if is_grey else 3, not is_grey, {}, file, orientation)


def _open(path: Path) -> Image.Image:
    """Opens a picture of any size: Pillow's limit is meant for servers that read untrusted files.

    Raises:
        PIL.UnidentifiedImageError: If the format is unknown.
    """
    with _without_limit():
        try:
            return Image.open(path)
        except (UnidentifiedImageError, ValueError):  # damaged or long text chunks may be the reason
            if not _is_png(path):
                raise
            return Image.open(_png_without_metadata(path))


def read_frames(path: Path, numbers: Iterable[int]) -> Iterator[np.ndarray]:
    """Some frames of a file, as `picture_array` returns them."""
    with _without_limit(), Image.open(path) as file:
        for number in numbers:
            file.seek(number)
            yield picture_array(file)


@contextmanager
def _without_limit() -> Iterator[None]:
    with _limit_lock, without_warnings():  # Pillow warns about harmless irregularities in headers
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _orientation(file: Image.Image, path: Path) -> int:
    """The orientation tag, read without decoding pixels."""
    if file.format == 'TIFF':
        return 1  # Pillow rotates TIFF files itself
    try:
        if file.format == 'PNG' and 'exif' not in file.info:  # the chunk may follow the pixels
            for _, chunk in islice(_png_chunks(path, (b'eXIf',)), 1):
                file.info['exif'] = chunk[8:-4]
        with without_warnings():
            return int(Image.Image.getexif(file).get(_ORIENTATION, 1))  # `file.getexif` of PNG files decodes the pixels
    except Exception:  # noqa: BLE001 (broken EXIF raises anything, and must not prevent reading the pixels)
        return 1


def _is_png(path: Path) -> bool:
    with path.open('rb') as file:
        return file.read(len(_PNG)) == _PNG


def _deep_colour_type(path: Path) -> int:
    """The colour type of a PNG that Pillow would truncate to 8 bits; 0 for all other files."""
    with path.open('rb') as file:
        header = file.read(26)
    return header[25] if header.startswith(_PNG) and header[24:26] in _DEEP_COLOUR else 0


def _read_deep_png(path: Path, colour_type: int) -> np.ndarray:
    """(H, W) or (H, W, 3) uint16 pixels of a PNG with 16 bits per channel; alpha is dropped."""
    if importlib.util.find_spec('cv2') is None:
        raise ImageError(
            f"{path}: PNG files with 16 bits a colour are read by OpenCV; run: pip install 'unsam_mm[codecs]'"
        )
    from unsam_mm.image_io.opencv import import_opencv

    bare = _png_without_metadata(path)
    with _without_limit(), Image.open(bare) as file:
        file.verify()  # raises with a reason, which OpenCV does not
    cv2 = import_opencv()
    pixels = cv2.imdecode(np.frombuffer(bare.getbuffer(), np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageError(f'{path}: cannot be read as an image; copy it again or convert it to TIFF')
    return pixels[..., 0] if colour_type == _DEEP_GREY_ALPHA else pixels[..., [2, 1, 0]]


def _check_png(path: Path) -> None:
    """Raises `ImageError` if a checksum of a PNG's pixels is wrong: Pillow would decode noise after a damaged byte."""
    for _, chunk in _png_chunks(path, _PNG_CHECKED):
        is_whole = len(chunk) == 12 + int.from_bytes(chunk[:4], 'big')  # else Pillow reports a truncated file
        if is_whole and zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], 'big'):
            raise ImageError(f'{path}: the file is damaged (its checksum differs); copy it again')


def _png_without_metadata(path: Path) -> io.BytesIO:
    """A copy of a PNG with pixels and orientation only: decoders fail on long texts and warn about invalid profiles."""
    return io.BytesIO(_PNG + b''.join(chunk for _, chunk in _png_chunks(path, _PNG_PIXELS)))


def _png_chunks(path: Path, wanted: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
    """Yields the kind of each wanted chunk of a PNG, and the whole chunk: length, kind, content and checksum."""
    size = path.stat().st_size
    with path.open('rb') as file:
        file.seek(len(_PNG))
        while len(header := file.read(8)) == 8:
            length, kind = struct.unpack('>I4s', header)
            if kind in wanted:
                yield kind, header + file.read(min(length + 4, size))  # the length in a damaged file may be anything
            else:
                file.seek(length + 4, os.SEEK_CUR)
