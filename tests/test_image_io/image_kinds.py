"""Kinds of image files, each written from numbers that are known: what every reader is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image, ImageCms
from skimage import data

from tests.test_image_io.image_writers import lzw, packed_bits, png_chunk, write_png, write_tiff

RGB = np.ascontiguousarray(data.coffee()[100:196:2, 100:228:2])
"""(48, 64, 3) uint8."""
GREY = RGB[..., 1].copy()
DEEP_GREY = GREY.astype(np.uint16) * 201 + np.arange(64, dtype=np.uint16)
DEEP_RGB = RGB.astype(np.uint16) * 203 + np.arange(3, dtype=np.uint16)
ALPHA = np.linspace(10, 250, GREY.size).astype(np.uint8).reshape(GREY.shape)
BITMAP = GREY > 90
SHAPE = GREY.shape


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of file.

    Attributes:
        ending: Of the file's name.
        numbers: What it holds.
        write: Writes it.
        tolerance: How far numbers that are read may lie from those in the mean.
    """

    ending: str
    numbers: np.ndarray
    write: Callable[[Path], object]
    tolerance: float = 0.0


KINDS: dict[str, Kind] = {}


def _add(name, ending, numbers, write, tolerance=0.0):
    KINDS[name] = Kind(ending, numbers, write, tolerance)


def _tiff(**options):
    pixels = options.pop('pixels')
    return lambda path: tifffile.imwrite(path, pixels, **options)


def _pillow(image, **options):
    return lambda path: image.save(path, **options)


def _raw(stored, **options):
    return lambda path: write_tiff(path, stored.tobytes(), SHAPE, **options)


# Numbers of every width, as they stand in uncompressed TIFF files.
for _dtype in ('bool', 'uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'float16', 'float32', 'float64'):
    _values = BITMAP if _dtype == 'bool' else (GREY.astype(np.int32) - 100 * (_dtype == 'int8')).astype(_dtype)
    _add(f'tiff {_dtype}', '.tif', _values, _tiff(pixels=_values, photometric='minisblack'))
_add('tiff uint16 RGB', '.tif', DEEP_RGB, _tiff(pixels=DEEP_RGB, photometric='rgb'))
_add('tiff float32 RGB', '.tif', (RGB / 255).astype('f4'), _tiff(pixels=(RGB / 255).astype('f4'), photometric='rgb'))
_add('tiff big-endian', '.tif', DEEP_GREY, _tiff(pixels=DEEP_GREY, byteorder='>'))
_add('BigTIFF', '.tif', DEEP_RGB, _tiff(pixels=DEEP_RGB, bigtiff=True, photometric='rgb'))
_add('tiff tiles', '.tif', RGB, _tiff(pixels=RGB, tile=(16, 32), photometric='rgb'))
_add('tiff planar', '.tif', RGB, _tiff(pixels=np.moveaxis(RGB, -1, 0), photometric='rgb', planarconfig='separate'))
_add('tiff by another name', '.png', DEEP_GREY, _tiff(pixels=DEEP_GREY))
_add('png by another name', '.tif', RGB, _pillow(Image.fromarray(RGB), format='PNG'))

# Compressions.
for _compression in ('zlib', 'lzma'):
    _add(f'tiff {_compression}', '.tif', DEEP_RGB, _tiff(pixels=DEEP_RGB, photometric='rgb', compression=_compression))
for _compression in ('tiff_lzw', 'packbits', 'zstd'):
    _add(f'tiff {_compression}', '.tif', RGB, _pillow(Image.fromarray(RGB), compression=_compression))
    _add(
        f'tiff {_compression} uint16', '.tif', DEEP_GREY, _pillow(Image.fromarray(DEEP_GREY), compression=_compression)
    )
_add('tiff jpeg', '.tif', RGB, _pillow(Image.fromarray(RGB), compression='jpeg', quality=95), tolerance=4)
for _compression in ('group3', 'group4'):
    _add(f'tiff {_compression}', '.tif', BITMAP, _pillow(Image.fromarray(BITMAP), compression=_compression))
for _dtype in ('int8', 'int16', 'uint32', 'float32'):
    _values = (GREY.astype(np.int64) - 100 * (_dtype[0] == 'i')).astype(_dtype)
    _format = (339, 3, [{'i': 2, 'u': 1, 'f': 3}[_dtype[0]]])
    _add(
        f'tiff lzw {_dtype}',
        '.tif',
        _values,
        lambda path, values=_values, sample_format=_format: write_tiff(
            path, lzw(values.tobytes()), SHAPE, bits=8 * values.itemsize, compression=5, tags=[sample_format]
        ),
    )


# Colours and grey of other kinds.
_add('tiff min-is-white', '.tif', GREY, _raw(255 - GREY, photometric=0))
_add('tiff min-is-white uint16', '.tif', DEEP_GREY, _raw(65535 - DEEP_GREY, photometric=0, bits=16))
_add(
    'tiff min-is-white lzw uint16',
    '.tif',
    DEEP_GREY,
    lambda path: write_tiff(path, lzw((65535 - DEEP_GREY).tobytes()), SHAPE, bits=16, photometric=0, compression=5),
)
_add(
    'tiff min-is-white bitmap',
    '.tif',
    BITMAP,
    lambda path: write_tiff(path, packed_bits(~BITMAP, 1), SHAPE, bits=1, photometric=0),
)
for _bits in (2, 4):
    _few = GREY >> (8 - _bits)
    _scaled = _few * (255 // (2**_bits - 1))
    _add(
        f'tiff {_bits} bit',
        '.tif',
        _scaled,
        lambda path, few=_few, bits=_bits: write_tiff(path, packed_bits(few, bits), SHAPE, bits=bits),
    )
    _add(f'png {_bits} bit', '.png', _scaled, lambda path, few=_few, bits=_bits: write_png(path, few, 0, bits=bits))
_add(
    'tiff min-is-white 4 bit', '.tif', (GREY >> 4) * 17,
    lambda path: write_tiff(path, packed_bits(15 - (GREY >> 4), 4), SHAPE, bits=4, photometric=0),
)  # fmt: skip
_add(
    'tiff 12 bit',
    '.tif',
    DEEP_GREY >> 4,
    lambda path: write_tiff(path, packed_bits(DEEP_GREY >> 4, 12), SHAPE, bits=12),
)
_palette = Image.fromarray(RGB).quantize(64)
for _ending in ('.tif', '.png', '.bmp'):
    _add(f'palette{_ending}', _ending, np.asarray(_palette.convert('RGB')), _pillow(_palette))
_add('palette lzw', '.tif', np.asarray(_palette.convert('RGB')), _pillow(_palette, compression='tiff_lzw'))

_INKS = 255 - np.dstack([RGB, np.full(SHAPE, 255, np.uint8)])
_add('tiff CMYK', '.tif', RGB, _raw(_INKS, samples=4, photometric=5))
_add('tiff CMYK by Pillow', '.tif', RGB, _pillow(Image.fromarray(RGB).convert('CMYK')))
_add('tiff CMYK lzw', '.tif', RGB, _pillow(Image.fromarray(RGB).convert('CMYK'), compression='tiff_lzw'))
_add(
    'tiff CMYK uint16',
    '.tif',
    RGB.astype(np.uint16) * 257,
    _raw(_INKS.astype(np.uint16) * 257, bits=16, samples=4, photometric=5),
)
_add(
    'tiff CMYK planar',
    '.tif',
    RGB,
    _tiff(pixels=np.moveaxis(_INKS, -1, 0), photometric='separated', planarconfig='separate'),
)
_add(
    'tiff CMYK and alpha', '.tif', RGB, _raw(np.dstack([_INKS, ALPHA]), samples=5, photometric=5, tags=[(338, 3, [2])])
)
_BLACK = np.dstack([np.zeros_like(RGB), 255 - GREY])
_add('tiff CMYK with nothing but black', '.tif', np.dstack([GREY] * 3), _raw(_BLACK, samples=4, photometric=5))
_add('jpeg CMYK', '.jpg', RGB, _pillow(Image.fromarray(RGB).convert('CMYK'), quality=95), tolerance=4)

_LAB = ImageCms.profileToProfile(
    Image.fromarray(RGB), ImageCms.createProfile('sRGB'), ImageCms.createProfile('LAB'), outputMode='LAB'
)
_add('tiff CIELAB', '.tif', RGB, _pillow(_LAB), tolerance=2)
_add('tiff CIELAB lzw', '.tif', RGB, _pillow(_LAB, compression='tiff_lzw'), tolerance=2)
_add(
    'tiff ICCLAB',
    '.tif',
    RGB,
    _raw(np.asarray(_LAB) + np.array([0, 128, 128], np.uint8), samples=3, photometric=9),
    tolerance=2,
)
_YCBCR = np.asarray(Image.fromarray(RGB).convert('YCbCr'))
_add('tiff YCbCr', '.tif', RGB, _raw(_YCBCR, samples=3, photometric=6, tags=[(530, 3, [1, 1])]), tolerance=1)
_add('tiff YCbCr by Pillow', '.tif', RGB, _pillow(Image.fromarray(RGB).convert('YCbCr')), tolerance=1)
_add(
    'tiff YCbCr jpeg',
    '.tif',
    RGB,
    _pillow(Image.fromarray(RGB).convert('YCbCr'), compression='jpeg', quality=95),
    tolerance=5,
)
_STUDIO = np.rint(_YCBCR * ([219 / 255, 224 / 255, 224 / 255]) + [16, 16, 16]).astype(np.uint8)
_add(
    'tiff YCbCr of video', '.tif', RGB,
    _raw(_STUDIO, samples=3, photometric=6, tags=[(530, 3, [1, 1]), (532, 5, [16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1])]),
    tolerance=2,
)  # fmt: skip

# Alpha, marked as such.
_RGBA = np.dstack([RGB, ALPHA])
for _extra in (1, 2):
    _add(f'tiff RGBA {_extra}', '.tif', RGB, _raw(_RGBA, samples=4, photometric=2, tags=[(338, 3, [_extra])]))
    _add(
        f'tiff grey and alpha {_extra}',
        '.tif',
        GREY,
        _raw(np.dstack([GREY, ALPHA]), samples=2, tags=[(338, 3, [_extra])]),
    )
_add('tiff RGBA lzw', '.tif', RGB, _pillow(Image.fromarray(_RGBA), compression='tiff_lzw'))
_DARKENED = (RGB * (ALPHA[..., None] / 255)).astype(np.uint8)
_add(
    'tiff associated alpha lzw', '.tif', _DARKENED,
    lambda path: write_tiff(
        path, lzw(np.dstack([_DARKENED, ALPHA]).tobytes()), SHAPE, samples=4, photometric=2, compression=5, tags=[(338, 3, [1])]
    ),
    tolerance=1,
)  # fmt: skip
_add('png RGBA', '.png', RGB, _pillow(Image.fromarray(_RGBA)))
_add('png grey and alpha', '.png', GREY, _pillow(Image.fromarray(np.dstack([GREY, ALPHA]))))
_add('png transparent palette', '.png', np.asarray(_palette.convert('RGB')), _pillow(_palette, transparency=3))

# 16 bits in PNG.
_DEEP_ALPHA = ALPHA.astype(np.uint16) * 257
for _name, _stored, _type, _own in (
    ('grey', DEEP_GREY, 0, DEEP_GREY),
    ('RGB', DEEP_RGB, 2, DEEP_RGB),
    ('grey and alpha', np.dstack([DEEP_GREY, _DEEP_ALPHA]), 4, DEEP_GREY),
    ('RGBA', np.dstack([DEEP_RGB, _DEEP_ALPHA]), 6, DEEP_RGB),
):
    for _is_interlaced in (False, True):
        _add(
            f'png 16 bit {_name}{" interlaced" * _is_interlaced}', '.png', _own,
            lambda path, stored=_stored, type_=_type, laced=_is_interlaced: write_png(path, stored, type_, is_interlaced=laced),
        )  # fmt: skip
_add(
    'png 16 bit transparent RGB',
    '.png',
    DEEP_RGB,
    lambda path: write_png(path, DEEP_RGB, 2, chunks=png_chunk(b'tRNS', bytes(6))),
)
_add(
    'png 16 bit transparent grey',
    '.png',
    DEEP_GREY,
    lambda path: write_png(path, DEEP_GREY, 0, chunks=png_chunk(b'tRNS', bytes(2))),
)

# Photographs.
for _ending, _options in (('.jpg', {'quality': 95}), ('.webp', {'lossless': True}), ('.bmp', {}), ('.png', {})):
    _add(f'RGB{_ending}', _ending, RGB, _pillow(Image.fromarray(RGB), **_options), tolerance=4 * (_ending == '.jpg'))
_add('grey.jpg', '.jpg', GREY, _pillow(Image.fromarray(GREY), quality=95), tolerance=2)
_add(
    "a phone's photograph with a preview", '.jpg', RGB,
    _pillow(Image.fromarray(RGB), format='MPO', save_all=True, append_images=[Image.fromarray(RGB[::2, ::2])], quality=95),
    tolerance=4,
)  # fmt: skip
