"""Bounding boxes of the labels of an array, which is read block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from scipy.ndimage import find_objects

Slices = tuple[slice, ...]
"""A box of an array: one slice for each axis, with integer start and stop."""

MAX_AXES = 6
"""Maximum number of axes of objects: positions, time, channels, depth, rows and columns."""

_BLOCK_VOXELS = 1 << 24


class LazyArray(Protocol):
    """An array that is read by slices, such as a NumPy, zarr or dask array."""

    shape: tuple[int, ...]
    dtype: Any

    def __getitem__(self, index: Any) -> Any:
        """A part of the array."""


def union_box(first: Slices | None, second: Slices) -> Slices:
    """The smallest box that contains two boxes; the second box if the first is None."""
    if first is None:
        return tuple(second)
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))


def blocks(shape: Sequence[int], max_voxels: int = _BLOCK_VOXELS) -> Iterator[Slices]:
    """Boxes that tile an array in C order, each of at most `max_voxels` voxels."""
    row_voxels = int(np.prod(shape[1:], dtype=np.int64))
    step = max(max_voxels // max(row_voxels, 1), 1)
    for start in range(0, shape[0], step):
        rows = slice(start, min(start + step, shape[0]))
        if row_voxels <= max_voxels or len(shape) == 1:
            yield (rows, *(slice(0, side) for side in shape[1:]))
        else:
            yield from ((rows, *rest) for rest in blocks(shape[1:], max_voxels))


def object_boxes(labels: LazyArray) -> dict[int, Slices]:
    """The bounding box of each label except 0, in ascending order of labels; the array is read once, block by block."""
    boxes: dict[int, Slices] = {}
    for block in blocks(labels.shape):
        for label, box in boxes_in(np.asarray(labels[block])):
            moved = tuple(
                slice(at.start + side.start, at.start + side.stop) for at, side in zip(block, box, strict=True)
            )
            boxes[label] = union_box(boxes.get(label), moved)
    return dict(sorted(boxes.items()))


def boxes_in(block: np.ndarray) -> Iterator[tuple[int, Slices]]:
    """The labels of an integer array except 0, in ascending order, each with its bounding box; fast for any label."""
    if block.size == 0:
        return
    if block.min() >= 0 and block.max() <= block.size:
        found = enumerate(find_objects(block if block.dtype != np.uint64 else block.astype(np.int64)), start=1)
    else:  # `find_objects` returns a list as long as the largest label
        is_object = block != 0
        import pandas as pd  # slow to import

        ranks, values = pd.factorize(block[is_object], sort=True)
        numbered = np.zeros(block.shape, np.int32 if len(values) < 1 << 31 else np.int64)
        numbered[is_object] = ranks + 1
        found = zip(values.tolist(), find_objects(numbered), strict=True)
    for label, box in found:
        if box is not None:
            yield int(label), box
