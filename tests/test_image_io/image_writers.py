"""Writers of kinds of TIFF and PNG files that no library at hand writes."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_ASCII, _SHORT, _LONG, _RATIONAL = 2, 3, 4, 5


def write_tiff(path, data, shape_hw, *, bits=8, samples=1, photometric=1, compression=1, tags=()):
    """Writes a little-endian TIFF of one strip.

    Args:
        path: Where.
        data: The bytes of the strip.
        shape_hw: Height and width.
        bits: Of a number.
        samples: Numbers of a pixel.
        photometric: Value of the tag PhotometricInterpretation.
        compression: Value of the tag Compression.
        tags: More of them: (number, type, values); texts are bytes, rationals pairs of numbers in one flat list.
    """
    height, width = shape_hw
    entries = [
        (256, _LONG, [width]),
        (257, _LONG, [height]),
        (258, _SHORT, [bits] * samples),
        (259, _SHORT, [compression]),
        (262, _SHORT, [photometric]),
        (273, _LONG, [0]),  # where the strip begins
        (277, _SHORT, [samples]),
        (278, _LONG, [height]),
        (279, _LONG, [len(data)]),
        *tags,
    ]
    entries.sort()
    end = 8 + 2 + 12 * len(entries) + 4
    beyond = [_packed(kind, values) for _, kind, values in entries]
    start = end + sum(len(value) for value in beyond if len(value) > 4)
    ifd, more = struct.pack('<H', len(entries)), b''
    for (number, kind, values), value in zip(entries, beyond, strict=True):
        count = len(values) // (2 if kind == _RATIONAL else 1)
        if number == 273:
            value = struct.pack('<I', start)
        if len(value) > 4:
            value, more = struct.pack('<I', end + len(more)), more + value
        ifd += struct.pack('<HHI', number, kind, count) + value.ljust(4, b'\0')
    path.write_bytes(b'II*\0' + struct.pack('<I', 8) + ifd + struct.pack('<I', 0) + more + data)


def _packed(kind, values):
    if kind == _ASCII:
        return values
    return struct.pack(f'<{len(values)}{"H" if kind == _SHORT else "I"}', *values)


def packed_bits(numbers, bits):
    """The bytes of (H, W) numbers of so many bits, each row filled up to whole bytes."""
    digits = (numbers[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return b''.join(np.packbits(row.ravel().astype(np.uint8)).tobytes() for row in digits)


def lzw(data):
    """TIFF's LZW, in which no string is ever repeated: the table is cleared before codes need 10 bits."""
    codes = []
    for i, byte in enumerate(data):
        codes += [256, byte] if i % 200 == 0 else [byte]
    digits = (np.array([*codes, 257])[:, None] >> np.arange(8, -1, -1)) & 1
    return np.packbits(digits.ravel().astype(np.uint8)).tobytes()


def png_chunk(kind, data):
    """A chunk of a PNG file."""
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def write_png(path, pixels, colour_type, *, bits=None, is_interlaced=False, chunks=b'', end_chunks=b''):
    """Writes a PNG.

    Args:
        path: Where.
        pixels: (H, W) or (H, W, C) uint8 or uint16.
        colour_type: 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGB and alpha.
        bits: Of a number; by default those of the dtype.
        is_interlaced: By Adam7.
        chunks: More chunks, before the pixels.
        end_chunks: More chunks, behind them.
    """
    bits = bits or 8 * pixels.dtype.itemsize
    passes = [(0, 0, 1, 1)]
    if is_interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [row for y, x, down, right in passes for row in pixels[y::down, x::right] if row.size]
    data = b''.join(b'\0' + _row(row, bits) for row in rows)
    height, width = pixels.shape[:2]
    header = struct.pack('>IIBBBBB', width, height, bits, colour_type, 0, 0, is_interlaced)
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + png_chunk(b'IHDR', header)
        + chunks
        + png_chunk(b'IDAT', zlib.compress(data))
        + end_chunks
        + png_chunk(b'IEND', b'')
    )


def _row(row, bits):
    if bits < 8:
        return packed_bits(row[None], bits)
    return row.astype(row.dtype.newbyteorder('>')).tobytes()
