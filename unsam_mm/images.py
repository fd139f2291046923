"""Images at the door: any common array or file becomes one checked (H, W, 3) uint8 RGB array."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from unsam_mm.errors import ImageError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.tif', '.tiff', '.bmp', '.webp')
MIN_SIDE_PX = 8
"""Below this no superpixel fits; also catches a stack with its axes in another order."""

_STRETCH_PERCENTILES = (0.1, 99.9)  # a few hot pixels must not set the contrast


def as_rgb_uint8(image: np.ndarray, name: str = 'image') -> np.ndarray:
    """Normalises an array to (H, W, 3) uint8 RGB.

    uint8 is kept as it is; bool becomes 0 and 255; float colour images with values in [0, 1] are multiplied by 255;
    all else (uint16, int32, float microscopy) is stretched between its 0.1 and 99.9 percentiles, all channels alike.
    An alpha channel is dropped.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) array of numbers.
        name: What error messages call the image: a file or an argument.

    Raises:
        ImageError: If the shape is a stack's, a side is shorter than 8 px, values are not finite or all equal.
    """
    image = _drop_channels(np.asarray(image), name)
    if image.dtype.kind not in 'buif':
        raise ImageError(f'{name}: dtype {image.dtype} is not a number; convert the image to integers or floats')
    if image.dtype.kind == 'f' and not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        raise ImageError(
            f'{name}: {count} values are NaN or infinite; replace them first, for example with numpy.nan_to_num'
        )
    if image.min() == image.max():
        raise ImageError(
            f'{name}: every pixel has the value {image.flat[0]}, so there is nothing to segment; check the file or channel'
        )
    rgb = _to_uint8(image)
    return np.ascontiguousarray(np.broadcast_to(rgb[..., None], (*rgb.shape, 3)) if rgb.ndim == 2 else rgb)


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image file as (H, W, 3) uint8 RGB; see `as_rgb_uint8`.

    Raises:
        ImageError: If the file is missing, empty, cut short, not an image, or not one 2D image.
    """
    path = Path(path)
    if not path.is_file():
        raise ImageError(f'{path}: no such file')
    if path.stat().st_size == 0:
        raise ImageError(f'{path}: the file is empty (0 bytes); copy it again')
    try:
        if path.suffix.lower() in ('.tif', '.tiff'):
            pixels = tifffile.imread(path)
        else:
            with Image.open(path) as file, warnings.catch_warnings():
                warnings.simplefilter('ignore')  # PIL warns on harmless EXIF oddities
                pixels = np.asarray(file.convert('RGB') if file.mode in ('P', 'CMYK', 'YCbCr', 'LA') else file)
    except Exception as error:
        raise ImageError(f'{path}: cannot be read as an image ({error}); copy it again or convert it to PNG') from error
    return as_rgb_uint8(pixels, str(path))


def list_images(folder: str | Path) -> list[Path]:
    """The image files below a folder, sorted, at any depth; hidden files and folders are skipped.

    Raises:
        ImageError: If the folder is missing or holds no image.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise ImageError(f'{folder}: no such folder; give a folder of images ({" ".join(IMAGE_SUFFIXES)})')
    paths = sorted(
        path
        for path in folder.rglob('*')
        if path.suffix.lower() in IMAGE_SUFFIXES
        and path.is_file()
        and not any(part.startswith('.') for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise ImageError(f'{folder}: no images found; expected files ending in {" ".join(IMAGE_SUFFIXES)}')
    return paths


def _drop_channels(image: np.ndarray, name: str) -> np.ndarray:
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    elif image.ndim == 3 and image.shape[-1] == 4:
        image = image[..., :3]
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[-1] != 3):
        raise ImageError(
            f'{name}: expected one image of shape (H, W), (H, W, 3) or (H, W, 4), got {image.shape}; '
            'pass one plane of a stack at a time, and move a leading channel axis to the end'
        )
    if min(image.shape[:2]) < MIN_SIDE_PX:
        raise ImageError(
            f'{name}: {image.shape[0]} x {image.shape[1]} px is too small; both sides must have at least {MIN_SIDE_PX} px'
        )
    return image


def _to_uint8(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    if image.dtype == bool:
        return image.astype(np.uint8) * 255
    if image.dtype.kind == 'f' and image.ndim == 3 and image.min() >= 0 and image.max() <= 1:
        return np.rint(image * 255).astype(np.uint8)
    low, high = np.percentile(image, _STRETCH_PERCENTILES)
    if low == high:  # fewer than 0.1 % of the pixels differ; they are all there is to see
        low, high = float(image.min()), float(image.max())
    scaled = (image.astype(np.float64) - low) / (high - low)
    return np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)
