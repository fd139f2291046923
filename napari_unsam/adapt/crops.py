"""Crops of an image to train on, and their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import numpy as np
from PIL import Image as PngImage

from unsam_mm.errors import ImageError
from unsam_mm.files import atomic_writer
from unsam_mm.images import MIN_SIDE_PX, as_rgb_uint8

MAX_SIDE_PX = 1024
"""Maximum side of a crop. The number of regions is limited, so those of a larger crop would contain several objects."""


@dataclass(frozen=True)
class Crop:
    """A crop of one plane.

    Attributes:
        index: Index of the plane along each axis that is not an axis of the plane.
        rows: Rows of the plane.
        columns: Columns of the plane.
    """

    index: tuple[int, ...]
    rows: slice
    columns: slice

    @property
    def name(self) -> str:
        """A file name that is unique for the image."""
        position = '_'.join(f'{number:05d}' for number in (*self.index, self.rows.start, self.columns.start))
        return f'part_{position}.png'


def choose_crops(lengths: Sequence[int], size_hw: tuple[int, int], count: int) -> list[Crop]:
    """Chooses crops that are spaced evenly over all planes of an image.

    Args:
        lengths: Length of each axis that is not an axis of the planes; empty for a single plane.
        size_hw: Height and width of a plane in pixels.
        count: Maximum number of crops.
    """
    crops = [
        Crop(index, rows, columns)
        for index in product(*(range(length) for length in lengths))
        for rows in _split(size_hw[0])
        for columns in _split(size_hw[1])
    ]
    # The middles of equal parts: the first and last planes of stacks are often empty.
    count = min(count, len(crops))
    chosen = ((np.arange(count) + 0.5) * len(crops) / count).astype(int)
    return [crops[i] for i in chosen]


def write_crops(
    folder: Path,
    crops: Sequence[Crop],
    read: Callable[[Crop], np.ndarray],
    progress: Callable[[float, str], None],
) -> int:
    """Writes the crops as PNG files and removes other PNG files in the folder.

    Args:
        folder: Folder for these files only.
        crops: The crops.
        read: Returns the pixels of a crop as the model sees them.
        progress: Called with the progress; an exception raised inside stops the work.

    Returns:
        Number of files; crops that have one colour or a side below `MIN_SIDE_PX` are left out.

    Raises:
        ImageError: If all crops are left out.
        StoreError: If the folder cannot be written.
    """
    written = set()
    for number, crop in enumerate(crops):
        progress(number / len(crops), f'writing crop {number + 1} of {len(crops)}')
        pixels = read(crop)
        if min(pixels.shape[:2]) < MIN_SIDE_PX or pixels.min() == pixels.max():
            continue
        _write_png(folder / crop.name, as_rgb_uint8(pixels))
        written.add(crop.name)
    for path in folder.glob('*.png'):
        if path.name not in written:
            path.unlink()
    if not written:
        raise ImageError(
            f'every crop has only one colour or a side below {MIN_SIDE_PX} px; choose other contrast limits or another image'
        )
    return len(written)


def _write_png(path: Path, rgb: np.ndarray) -> None:
    if path.exists():
        with PngImage.open(path) as there:
            # The regions of a rewritten file would be computed again.
            if np.array_equal(np.asarray(there), rgb):
                return
    with atomic_writer(path, binary=True) as file:
        PngImage.fromarray(rgb).save(file, format='PNG', compress_level=1)


def _split(length: int) -> list[slice]:
    """Equal parts of a side, each of at most `MAX_SIDE_PX`."""
    edges = np.linspace(0, length, -(-length // MAX_SIDE_PX) + 1).astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(edges)]
