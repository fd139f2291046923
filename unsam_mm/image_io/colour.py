"""Converts pixels of other colour spaces to RGB or grey, and applies the orientation tag."""

from __future__ import annotations

import numpy as np
from PIL import Image

_D50_TO_D65 = np.array(  # Bradford's adaptation, for XYZ column vectors
    [[0.9555766, -0.0230393, 0.0631636], [-0.0282895, 1.0099416, 0.0210077], [0.0122982, -0.0204830, 1.3299098]]
)
_REC_601 = (0.299, 0.587, 0.114)
_FULL_RANGE = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)


def upright(pixels: np.ndarray, orientation: int, y_axis: int = 0) -> np.ndarray:
    """Rotates and flips pixels according to the orientation tag of TIFF and EXIF.

    Args:
        pixels: Rows along `y_axis`, columns along the next axis.
        orientation: 1 to 8; other values count as 1, which changes nothing.
        y_axis: Index of the axis of the rows.
    """
    x_axis = y_axis + 1
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(y_axis, x_axis)
    if orientation in (2, 3, 6, 7):
        pixels = np.flip(pixels, x_axis)
    if orientation in (3, 4, 7, 8):
        pixels = np.flip(pixels, y_axis)
    return pixels


def swaps_sides(orientation: int) -> bool:
    """True if `upright` exchanges rows and columns."""
    return orientation in (5, 6, 7, 8)


def invert(values: np.ndarray, bits: int) -> np.ndarray:
    """Inverts values that are small where the image is bright.

    Args:
        values: Booleans, integers of a dtype with at least `bits` bits, or floats, whose sign is changed.
        bits: Number of bits of a value in the file.
    """
    if values.dtype.kind == 'b':
        return ~values
    if values.dtype.kind == 'u':
        return (np.array((1 << bits) - 1, values.dtype) - values).astype(values.dtype)
    return ~values if values.dtype.kind == 'i' else -values


def cmyk_to_rgb(cmyk: np.ndarray) -> np.ndarray:
    """(..., 4) unsigned CMYK, 0 for no ink, to (..., 3) RGB of the same dtype, without a colour profile."""
    if cmyk.dtype == np.uint8:
        flat = np.ascontiguousarray(cmyk).reshape(1, -1, 4)
        rgb = Image.frombuffer('CMYK', flat.shape[1::-1], flat.tobytes(), 'raw', 'CMYK', 0, 1).convert('RGB')
        return np.asarray(rgb).reshape(*cmyk.shape[:-1], 3)
    white = np.iinfo(cmyk.dtype).max
    light = 1 - cmyk.astype(np.float64) / white
    return np.rint(light[..., :3] * light[..., 3:] * white).astype(cmyk.dtype)


def lab_to_rgb(lab: np.ndarray, is_icc: bool) -> np.ndarray:
    """(..., 3) CIELAB as TIFF encodes it, white point D50, to (..., 3) sRGB of the same dtype.

    Args:
        lab: uint8 or uint16.
        is_icc: True if a and b are stored with an offset (ICCLAB), False if they are stored as signed integers
            (CIELAB).
    """
    from skimage.color import lab2xyz, xyz2rgb

    bits = 8 * lab.dtype.itemsize
    step = 1 << (bits - 8)  # of a and b
    white = 255 * step if is_icc else np.iinfo(lab.dtype).max  # 0xFF00 in 16 bit ICCLAB
    lightness = lab[..., :1] / white * 100
    if is_icc:
        a_b = lab[..., 1:].astype(np.float64) / step - 128
    else:
        a_b = np.ascontiguousarray(lab[..., 1:]).view(f'i{lab.dtype.itemsize}') / step
    xyz = lab2xyz(np.concatenate([lightness, a_b], axis=-1), illuminant='D50') @ _D50_TO_D65.T
    return np.rint(xyz2rgb(xyz).clip(0, 1) * np.iinfo(lab.dtype).max).astype(lab.dtype)


def ycbcr_to_rgb(
    ycbcr: np.ndarray, luma: tuple[float, ...] | None = None, black_white: tuple[float, ...] | None = None
) -> np.ndarray:
    """(..., 3) uint8 YCbCr to (..., 3) uint8 RGB.

    Args:
        ycbcr: Y, Cb and Cr.
        luma: The shares of red, green and blue in luma (tag YCbCrCoefficients); by default those of Rec. 601.
        black_white: The values of black and white of each channel (tag ReferenceBlackWhite); by default the full range.
    """
    luma, black_white = luma or _REC_601, black_white or _FULL_RANGE
    low, high = np.array(black_white[::2]), np.array(black_white[1::2])
    y, cb, cr = np.moveaxis((ycbcr - low) / (high - low) * (255, 127, 127), -1, 0)
    red_share, green_share, blue_share = luma
    red, blue = y + (2 - 2 * red_share) * cr, y + (2 - 2 * blue_share) * cb
    green = (y - red_share * red - blue_share * blue) / green_share
    return np.rint(np.stack([red, green, blue], axis=-1).clip(0, 255)).astype(np.uint8)


def palette_to_rgb(indices: np.ndarray, colormap: np.ndarray) -> np.ndarray:
    """(...) indices into a (3, N) uint16 palette to (..., 3) uint8 RGB."""
    return (colormap >> 8).astype(np.uint8).T[indices]


def picture_array(file: Image.Image) -> np.ndarray:
    """The pixels of a Pillow image: (H, W) if it is grey, else (H, W, 3) RGB; alpha is dropped.

    Pillow rotates TIFF files to upright, but no others.
    """
    mode = file.mode
    if is_grey_mode(mode):
        return np.asarray(file)[..., 0] if mode in ('LA', 'La') else np.asarray(file)
    if mode == 'LAB':
        return lab_to_rgb(np.asarray(file), is_icc=False)
    if mode == 'P' and isinstance(file.info.get('transparency'), bytes):
        del file.info['transparency']  # otherwise Pillow warns that the conversion drops it
    if mode == 'RGBA' and file.format == 'TIFF' and file.tile and file.tile[0].args[0] == 'RGBa':
        file = file.convert('RGBa')  # colours multiplied by alpha, as they are stored
    return np.asarray(file if mode.startswith('RGB') else file.convert('RGB'))[..., :3]


def is_grey_mode(mode: str) -> bool:
    """True if a mode of Pillow has one channel besides alpha."""
    return mode in ('1', 'L', 'LA', 'La', 'I', 'F') or mode.startswith('I;')
