"""Converts arrays and files to validated (H, W, 3) uint8 RGB arrays, and lists the image files of a folder."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unsam_mm.errors import ImageError
from unsam_mm.image_io.reader import MAX_PIXELS, check_size, open_image

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.tif', '.tiff', '.bmp', '.webp')
MIN_SIDE_PX = 8
"""The smallest size for which superpixels are computed; shorter sides are often channels or planes of a stack."""

_RESULT = re.compile(r'(\.(jpe?g|png|tiff?|bmp|webp)|~[0-9a-f]{16})\.objects\.tif$', re.IGNORECASE)
_STRETCH_PERCENTILES = (0.1, 99.9)  # not 0 and 100, so that a few hot pixels do not determine the contrast
_DARK = 0.1  # float colour images whose maximum is below this are stretched


def as_rgb_uint8(image: np.ndarray, name: str = 'image') -> np.ndarray:
    """Normalises an array to (H, W, 3) uint8 RGB.

    uint8 is not changed; bool becomes 0 and 255; float colour images with values in [0, 1] are multiplied by 255 unless
    they are nearly black; all other images (uint16, int32, float micrographs) are scaled between their 0.1 and 99.9
    percentiles, all channels together. An alpha channel is dropped.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) array of numbers.
        name: Name of the image in error messages: a file or an argument.

    Raises:
        ImageError: If the shape is that of a stack, a side is shorter than 8 px, or values are not numbers, not finite
            or all equal.
    """
    image = _drop_channels(np.asarray(image), name)
    if image.dtype.kind not in 'buif':
        raise ImageError(f'{name}: dtype {image.dtype} is not a number; convert the image to integers or floats')
    if image.dtype.kind == 'f' and not np.isfinite(image).all():
        count = int((~np.isfinite(image)).sum())
        raise ImageError(
            f'{name}: {count} values are NaN or infinite; replace them first, for example with numpy.nan_to_num'
        )
    rgb = image if image.dtype == np.uint8 else rescale_intensity(image, contrast_limits(image))
    if rgb.min() == rgb.max():
        raise ImageError(
            f'{name}: every pixel has the value {image.flat[0]}, so there is nothing to segment; check the file or channel'
        )
    return np.ascontiguousarray(np.broadcast_to(rgb[..., None], (*rgb.shape, 3)) if rgb.ndim == 2 else rgb)


def contrast_limits(values: np.ndarray) -> tuple[float, float]:
    """The values that become 0 and 255 in `as_rgb_uint8`.

    Args:
        values: Finite numbers: an image, or a sample of its pixels; a float array counts as colours in [0, 1] only if
            it has three axes.
    """
    if values.dtype == np.uint8:
        return 0.0, 255.0
    is_unit = values.dtype.kind == 'f' and values.ndim == 3 and values.min() >= 0 and _DARK < values.max() <= 1
    if values.dtype == bool or is_unit:
        return 0.0, 1.0
    low, high = np.percentile(values, _STRETCH_PERCENTILES)
    if low == high:  # fewer than 0.1 % of the pixels differ from the others; show these
        low, high = values.min(), values.max()
    return float(low), float(high)


def rescale_intensity(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Scales values to uint8: 0 at the lower limit, 255 at the upper one; all 0 if the limits are equal."""
    low, high = limits
    scaled = (values.astype(np.float64) - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)


def read_image(path: str | Path, max_pixels: int | None = MAX_PIXELS) -> np.ndarray:
    """Reads an image file as (H, W, 3) uint8 RGB; see `unsam_mm.image_io.reader.read_pixels` and `as_rgb_uint8`.

    Stacks are refused from the header, before any pixel is read.

    Args:
        path: The file.
        max_pixels: Larger images are refused; None for no limit.

    Raises:
        ImageError: If the file is missing, empty, truncated, not an image, a stack, too large, or has channels that are
            not colours.
    """
    with open_image(path) as file:
        if len(file.shape) > 2:
            raise ImageError(
                f'{path}: expected one image, got a stack with axes {file.axes} of shape {file.shape}; pass one plane of a '
                'stack at a time, each in a file of its own; `python -m napari_unsam batch` and the dock accept stacks'
            )
        if file.n_channels > 1 and not file.is_rgb:
            raise ImageError(
                f'{path}: expected grey or RGB, got {file.n_channels} channels that are not colours; save one of '
                'them, or three as RGB, in a file of its own; `python -m napari_unsam batch --channel N` and the dock '
                'accept channels'
            )
        check_size(file.shape, str(path), max_pixels)
        pixels = file.read()
    return as_rgb_uint8(pixels, str(path))


def list_images(folder: str | Path) -> list[Path]:
    """The image files below a folder, sorted, as `walk_images` finds them; for an image file, this file.

    Raises:
        ImageError: If the folder is missing or contains no image, or the file does not have the suffix of an image.
    """
    folder = Path(folder)
    if folder.is_file():
        if not folder.name.lower().endswith(IMAGE_SUFFIXES):
            raise ImageError(
                f'{folder}: expected a file ending in {" ".join(IMAGE_SUFFIXES)}; convert the image, for example to PNG'
            )
        return [folder]
    names = sorted(walk_images(folder))
    if not names and any(is_result(path.name) for path in folder.rglob('*.objects.*')):
        raise ImageError(f'{folder}: no images found but results of earlier runs; choose the folder of the images')
    if not names:
        raise ImageError(f'{folder}: no images found; expected files ending in {" ".join(IMAGE_SUFFIXES)}')
    return [folder / name for name in names]


def walk_images(root: Path) -> Iterator[str]:
    """Yields paths of the images below a folder, relative to it, with forward slashes. Only folder entries are read.

    Hidden files and folders are left out, and so are results (`is_result`). Links to folders are followed. A folder
    below `root` that cannot be read is left out with a warning.

    Raises:
        ImageError: If `root` is missing or cannot be read.
    """
    if not root.is_dir():
        raise ImageError(f'{root}: no such folder; expected a folder of images ({" ".join(IMAGE_SUFFIXES)})')

    def report(error: OSError) -> None:
        problem = f'{error.filename}: the folder cannot be read ({error.strerror}); check its permissions'
        if error.filename == os.fspath(root):
            raise ImageError(problem) from error
        _log.warning('%s; its images are left out', problem)

    seen = {root.resolve()}

    def is_new(folder: Path) -> bool:
        """False for a link to `root` or to the target of an earlier link: links may form a cycle."""
        if not folder.is_symlink():
            return True
        target = folder.resolve()
        if target in seen:
            return False
        seen.add(target)
        return True

    for parent, folders, files in os.walk(root, onerror=report, followlinks=True):
        folder = Path(parent)
        folders[:] = [name for name in folders if not name.startswith('.') and is_new(folder / name)]
        prefix = '' if folder == root else f'{folder.relative_to(root).as_posix()}/'
        for name in files:  # broken links are yielded, too: reading one raises a specific error
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.') and not is_result(name):
                yield f'{prefix}{name}'


def is_result(name: str) -> bool:
    """True for names of the label files that `python -m napari_unsam batch` or the dock saves beside an image."""
    return _RESULT.search(name) is not None


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
