"""Reads TIFF files: axes and colours from the headers, and pixels."""

from __future__ import annotations

import importlib.util
import math
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from unsam_mm.errors import ImageError
from unsam_mm.image_io.colour import cmyk_to_rgb, invert, lab_to_rgb, palette_to_rgb, swaps_sides, upright, ycbcr_to_rgb
from unsam_mm.image_io.image_file import ImageFile
from unsam_mm.image_io.pictures import read_frames
from unsam_mm.image_io.tiff_metadata import own_ome_xml, pixel_sizes

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffFrame, TiffPage, TiffPageSeries

_MAGIC = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
_PHOTOMETRIC = tifffile.PHOTOMETRIC
_COLOUR_SAMPLES = {
    _PHOTOMETRIC.RGB: 3,
    _PHOTOMETRIC.YCBCR: 3,
    _PHOTOMETRIC.CIELAB: 3,
    _PHOTOMETRIC.ICCLAB: 3,
    _PHOTOMETRIC.SEPARATED: 4,
}
_ALPHA = {1, 2}  # values of the tag ExtraSamples: associated and unassociated alpha
_PIXEL_TAGS = {273, 279, 320, 324, 325, 347}  # offsets and sizes of strips and tiles, the palette, JPEG's tables
_AXES = 'TZYX'
# Formats that tifffile would read from several files at once. Here, only the planes in the opened file are read.
_OF_SEVERAL_FILES = {'is_mmstack': False, 'is_ndtiff': False}
# Formats of microscopes whose pages can be read without their metadata.
_MICROSCOPES = ('is_micromanager', 'is_lsm', 'is_fluoview', 'is_sis', 'is_scanimage')
_WITHOUT_METADATA = dict.fromkeys(('is_ome', 'is_imagej', 'is_shaped', *_MICROSCOPES), False)
_PAGES_OF_ONE_KIND = ('generic', 'uniform', 'shaped', 'ome', 'imagej')


@dataclass(frozen=True, eq=False)
class TiffImage(ImageFile):
    """One image of a TIFF file."""

    _series: TiffPageSeries

    def _decode(self) -> np.ndarray:
        page, last = self._series.keyframe, len(self.shape)
        if not page.is_contiguous:  # missing parts would be read as zeros, or in JPEG as any values
            for part in filter(None, self._series.pages):
                _check_parts(part, self.path)
                if page.compression != 1:
                    _check_end(part, self.path)
        try:
            pixels, axes = self._series.asarray(), self._series.axes.upper()
            channel_axis = _channel_axis(axes)
            pixels = pixels if channel_axis is None else np.moveaxis(pixels, channel_axis, -1)
            pixels = upright(_converted(pixels, page, self.is_rgb, 'S' in axes), _orientation(page), last - 2)
        except Exception as error:  # noqa: BLE001 (decoders raise anything; `_read_with_pillow` raises it again)
            pixels = self._read_with_pillow(error)
        if self.n_channels == 1 and pixels.ndim > last:  # alpha is dropped
            pixels = pixels[..., 0]
        expected = (*self.shape, *((self.n_channels,) if self.n_channels > 1 else ()))
        if pixels.shape != expected:
            raise ImageError(
                f'{self.path}: expected pixels of shape {expected}, got {pixels.shape}; save the image again'
            )
        return pixels.astype(pixels.dtype.newbyteorder('='), copy=False)

    def _read_with_pillow(self, reason: Exception) -> np.ndarray:
        """Reads pages that tifffile cannot decompress with Pillow's libtiff, upright and in RGB.

        Raises:
            Exception: `reason`, if decompression is not its cause, or if Pillow cannot read the pages either.
            ImageError: If imagecodecs is needed and not installed: Pillow cannot read the pages, or would lose bits.
        """
        if not (_lacks_codec(reason) or isinstance(reason, NotImplementedError)):
            raise reason
        first, axes = self._series.keyframe, self._series.axes.upper()
        front = self._series.shape[: len(axes) - first.ndim]
        pages = [page and page.aspage() for page in self._series.pages]
        # Pillow truncates colours to 8 bits, and reads uncompressed subsampled colours as if they were not subsampled.
        loses = first.samplesperpixel > 1 and (first.dtype is None or first.dtype.itemsize > 1)
        is_mixed = first.is_subsampled and first.compression == 1
        if loses or is_mixed or len(pages) != math.prod(front) or any(page is None or page.is_subifd for page in pages):
            raise self._unreadable(reason)
        for page in pages:  # checked here, since libtiff would write errors to stderr
            _check_tags(page, self.path)
            _check_end(page, self.path)
        try:
            planes = list(read_frames(self.path, [page.index for page in pages]))
        except Exception as error:
            raise self._unreadable(reason) from error
        pixels = np.stack(planes).reshape(*front, *planes[0].shape)
        if 'C' in axes[: len(front)] and 'S' not in axes:
            pixels = np.moveaxis(pixels, axes.index('C'), -1)
        if planes[0].ndim == 2 and first.photometric == _PHOTOMETRIC.MINISWHITE and first.bitspersample > 8:
            pixels = invert(pixels, first.bitspersample)  # Pillow inverts up to 8 bits
        # Pillow has no int8, int16 and uint32; it returns other integers with the same bits.
        is_cast = pixels.dtype != first.dtype and pixels.dtype.kind in 'iu' and first.dtype.kind in 'iu'
        return pixels.astype(first.dtype) if is_cast else pixels

    def _unreadable(self, error: Exception) -> Exception:
        page = self._series.keyframe
        if not _lacks_codec(error) or importlib.util.find_spec('imagecodecs') is not None:
            return error
        kind = getattr(page.compression, 'name', str(page.compression))
        kind = f'{page.bitspersample} bits a number' if kind == 'NONE' else f'{kind} compression'
        return ImageError(
            f"{self.path}: TIFF files with {kind} are read by imagecodecs; run: pip install 'unsam_mm[codecs]'"
        )


def is_tiff(path: Path) -> bool:
    """True if a file begins with the magic number of TIFF or BigTIFF."""
    with path.open('rb') as file:
        return file.read(4) in _MAGIC


@contextmanager
def open_tiff(path: Path) -> Iterator[TiffImage]:
    """Opens a TIFF file and reads its headers.

    The largest image is used. Other images are ignored if they are marked as thumbnails or masks, or are at most half
    as wide and high.

    Raises:
        ImageError: If the file contains several images besides those, or has axes other than t, z, y, x and channels.
    """
    opened, file, series = _open_series(path)
    with opened:
        page, axes = series.keyframe, series.axes.upper()
        n_channels, is_rgb = _channels(series)
        channel_axis = _channel_axis(axes)
        along = [i for i in range(len(axes)) if i != channel_axis]
        names, shape = ''.join(axes[i] for i in along), [series.shape[i] for i in along]
        if not 2 <= len(names) <= len(_AXES) or not names.endswith('YX'):
            raise ImageError(
                f'{path}: expected axes of {_AXES} and channels, got {series.axes} of shape {series.shape}; '
                'save a part with fewer axes in a file of its own'
            )
        if not set(names) <= set(_AXES) or len(set(names)) < len(names):  # unknown axes count as z, or t and z
            names = _AXES[-len(names) :]
        sizes = pixel_sizes(file)
        if swaps_sides(_orientation(page)):
            shape[-2:] = shape[-1], shape[-2]
            sizes = {{'X': 'Y', 'Y': 'X'}.get(axis, axis): size for axis, size in sizes.items()}
        yield TiffImage(path, names.lower(), tuple(shape), n_channels, is_rgb, sizes, series)


def _open_series(path: Path) -> tuple[ExitStack, TiffFile, TiffPageSeries]:
    """Opens the file and finds its main image; metadata that are broken or do not fit the pages are ignored.

    Returns:
        A stack that closes the file, the file, and its main image.
    """
    for flags in ({}, _WITHOUT_METADATA):
        with ExitStack() as opened:
            try:
                file = opened.enter_context(tifffile.TiffFile(path, **_OF_SEVERAL_FILES, **flags))
                if not file.pages:
                    raise ImageError(f'{path}: the file ends before its first page; copy it again')
                if file.is_ome:
                    own_xml = own_ome_xml(file.ome_metadata or '', path.name)
                    if own_xml is None:
                        continue
                    if own_xml != file.ome_metadata:
                        file = opened.enter_context(tifffile.TiffFile(path, omexml=own_xml, **_OF_SEVERAL_FILES))
                if file.series[0].kind == 'shaped' and len(file.series) > 1:  # pages that tifffile wrote separately
                    continue
                if file.is_imagej:
                    _check_planes_of_imagej(file, path)
                series = _main_series(file, path)
                _check_tags(series.keyframe, path)
                if series.kind != 'ome' or all(page is not None for page in series.pages):
                    return opened.pop_all(), file, series
            except ImageError:
                raise
            except Exception:
                if flags:
                    raise
    raise ImageError(f'{path}: contains no image; copy it again')


def _main_series(file: TiffFile, path: Path) -> TiffPageSeries:
    series = file.series
    if series[0].kind not in _PAGES_OF_ONE_KIND:  # in files of slide scanners, labels and overviews follow the image
        return series[0]
    _check_last_page(file, path)
    main = max(series, key=lambda image: image.keyframe.imagewidth * image.keyframe.imagelength)
    others = [image for image in series if image is not main and not _is_thumbnail(image.keyframe, main.keyframe)]
    if others:
        shapes = ', '.join(str(image.shape) for image in (main, *others[:3]))
        raise ImageError(
            f'{path}: contains {len(others) + 1} images (of shapes {shapes}), expected one; save each in a file of '
            'its own'
        )
    return main


def _check_last_page(file: TiffFile, path: Path) -> None:
    """Raises `ImageError` if the file ends before its last page: else, the rest would be read as a smaller stack."""
    file.filehandle.seek(file.pages.next_page_offset)
    stored = file.filehandle.read(file.tiff.offsetsize)
    if len(stored) < file.tiff.offsetsize or any(stored):
        raise ImageError(f'{path}: the file ends before its last page; copy it again')


def _check_tags(page: TiffPage, path: Path) -> None:
    """Raises `ImageError` if a tag that the pixels need lies beyond the end of the file, or has too few values.

    tifffile ignores such tags.
    """
    file, tiff = page.parent.filehandle, page.parent.tiff
    file.seek(page.offset)
    (count,) = struct.unpack(tiff.tagnoformat, file.read(tiff.tagnosize))
    entries = file.read(count * tiff.tagsize)
    stored = {struct.unpack_from(f'{tiff.byteorder}H', entries, i)[0] for i in range(0, len(entries), tiff.tagsize)}
    if stored & _PIXEL_TAGS - {tag.code for tag in page.tags}:
        raise ImageError(f'{path}: the file ends before its last value; copy it again')
    _check_parts(page, path)


def _check_parts(page: TiffPage | TiffFrame, path: Path) -> None:
    """Raises `ImageError` if a page has fewer strips or tiles than its size needs.

    A tile of zeros, which has the offset 0, is no error. The number does not matter if the pixels are contiguous in the
    file.
    """
    found = min(len(page.dataoffsets), len(page.databytecounts))
    in_one_piece = page.is_contiguous and sum(page.databytecounts) >= page.nbytes
    if not in_one_piece and found < (needed := math.prod(page.chunked)):
        raise ImageError(f'{path}: has {found} of the {needed} strips or tiles that its size needs; copy it again')


def _check_end(page: TiffPage | TiffFrame, path: Path) -> None:
    """Raises `ImageError` if pixels of a page lie beyond the end of the file."""
    ends = (at + size for at, size in zip(page.dataoffsets, page.databytecounts, strict=False))
    if max(ends, default=0) > page.parent.filehandle.size:
        raise ImageError(f'{path}: the file ends before its last pixel; copy it again')


def _check_planes_of_imagej(file: TiffFile, path: Path) -> None:
    """Raises `ImageError` if the file ends before the last plane of a large ImageJ stack.

    Such a stack has a header for the first plane only, in front of all planes, so bytes after the first plane belong to
    other planes. There are none in a file with the metadata of a stack in which another program saved a single plane.
    """
    page, n_planes = file.pages.first, (file.imagej_metadata or {}).get('images', 1)
    if file.pages.is_multipage or page.compression != 1 or file.series[0].kind == 'imagej':
        return
    begin = min(page.dataoffsets, default=0)
    if n_planes != 1 and page.offset < begin and begin + page.nbytes < file.filehandle.size:
        raise ImageError(f'{path}: the file ends before the last of its {n_planes} planes; copy it again')


def _lacks_codec(error: Exception) -> bool:
    return isinstance(error, ImportError) or any(word in str(error) for word in ('imagecodecs', '<COMPRESSION.'))


def _is_thumbnail(page: TiffPage, main: TiffPage) -> bool:
    is_small = 2 * page.imagewidth <= main.imagewidth and 2 * page.imagelength <= main.imagelength
    return is_small or page.is_reduced or page.is_mask


def _channel_axis(axes: str) -> int | None:
    return next((axes.index(letter) for letter in 'SC' if letter in axes), None)


def _channels(series: TiffPageSeries) -> tuple[int, bool]:
    """Number of channels without alpha, and True if they are red, green and blue."""
    page, axes = series.keyframe, series.axes.upper()
    channel_axis = _channel_axis(axes)
    if channel_axis is None:
        is_palette = page.photometric == _PHOTOMETRIC.PALETTE and page.colormap is not None
        return (3, True) if is_palette else (1, False)
    n = series.shape[channel_axis]
    # Bio-Formats calls the samples of a pixel channels.
    return _channels_of_samples(page, n) if axes[channel_axis] == 'S' or page.samplesperpixel == n > 1 else (n, False)


def _channels_of_samples(page: TiffPage, samples: int) -> tuple[int, bool]:
    """Like `_channels`: RGB or grey if there are no additional samples but alpha; else each sample is a channel."""
    base = _COLOUR_SAMPLES.get(page.photometric, 3 if samples == 3 else 1)
    n_extra = samples - base
    is_ink = page.photometric == _PHOTOMETRIC.SEPARATED and _tag(page, 'InkSet', 1) != 1
    is_alpha = len(page.extrasamples) >= n_extra >= 0 and set(page.extrasamples[-n_extra:] if n_extra else ()) <= _ALPHA
    if is_ink or not is_alpha:
        return samples, False
    return (1, False) if base == 1 else (3, True)


def _converted(pixels: np.ndarray, page: TiffPage, is_rgb: bool, has_samples: bool) -> np.ndarray:
    """Converts stored values to RGB, or to grey values that are large where the image is bright."""
    photometric, bits = page.photometric, page.bitspersample
    if is_rgb and not has_samples and photometric == _PHOTOMETRIC.PALETTE:
        return palette_to_rgb(pixels, page.colormap)
    if 1 < bits < 8 and pixels.dtype == np.uint8:
        pixels = np.rint(pixels * (255 / ((1 << bits) - 1))).astype(np.uint8)
        bits = 8
    if not is_rgb:
        return invert(pixels, bits) if photometric == _PHOTOMETRIC.MINISWHITE else pixels
    pixels = pixels[..., : _COLOUR_SAMPLES.get(photometric, 3)]
    is_decoded = page.compression in tifffile.TIFF.IMAGE_COMPRESSIONS  # decoders of JPEG and others return RGB
    if photometric == _PHOTOMETRIC.SEPARATED:
        return cmyk_to_rgb(pixels)
    if photometric in (_PHOTOMETRIC.CIELAB, _PHOTOMETRIC.ICCLAB):
        return lab_to_rgb(pixels, is_icc=photometric == _PHOTOMETRIC.ICCLAB)
    if photometric == _PHOTOMETRIC.YCBCR and not is_decoded:
        luma, black_white = _tag(page, 'YCbCrCoefficients', None), _tag(page, 'ReferenceBlackWhite', None)
        return ycbcr_to_rgb(pixels, *(_rationals(value) for value in (luma, black_white)))
    return pixels


def _orientation(page: TiffPage) -> int:
    value = _tag(page, 'Orientation', 1)
    return value if isinstance(value, int) else 1


def _tag(page: TiffPage, name: str, default: Any) -> Any:
    return page.tags[name].value if name in page.tags else default


def _rationals(value: tuple[int, ...] | None) -> tuple[float, ...] | None:
    """Converts numerators and denominators of a tag to fractions; None without a tag, or if a denominator is 0."""
    if value is None or not all(value[1::2]):
        return None
    return tuple(top / bottom for top, bottom in zip(value[::2], value[1::2], strict=True))
