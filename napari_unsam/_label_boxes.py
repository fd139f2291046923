"""Bounding boxes of the labels of an array."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.ndimage import find_objects

Region = tuple[slice, ...]
"""One slice for each axis, with whole numbers at both ends."""


def boxes_in(block: np.ndarray) -> Iterator[tuple[int, Region]]:
    """The bounding box of each label but 0 in an array of integers in memory, in rising order of labels.

    It takes as long for large labels as for small ones.
    """
    if block.size == 0:
        return
    if block.min() >= 0 and block.max() <= block.size:
        found = enumerate(find_objects(block if block.dtype != np.uint64 else block.astype(np.int64)), start=1)
    else:  # `find_objects` makes a list as long as the largest label
        is_object = block != 0
        import pandas as pd  # here: it takes long to load

        ranks, values = pd.factorize(block[is_object], sort=True)
        numbered = np.zeros(block.shape, np.int32 if len(values) < 1 << 31 else np.int64)
        numbered[is_object] = ranks + 1
        found = zip(values.tolist(), find_objects(numbered), strict=True)
    for label, box in found:
        if box is not None:
            yield int(label), box
