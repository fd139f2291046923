"""Label images with all that is hard to write down: holes, parts, touching neighbours, single pixels, the image's rim."""

from __future__ import annotations

import numpy as np
import pandas as pd

from napari_unsam.io.objects import LabelledObjects

DRAWN = np.array(
    [
        [1, 1, 1, 1, 1, 0, 0, 9],
        [1, 2, 2, 2, 1, 0, 3, 0],
        [1, 2, 0, 2, 1, 3, 0, 0],
        [1, 2, 2, 2, 1, 4, 4, 4],
        [1, 1, 1, 1, 4, 0, 0, 4],
        [0, 0, 5, 0, 4, 4, 0, 4],
        [5, 0, 0, 6, 6, 4, 4, 4],
    ],
    np.uint32,
)
"""1 holds 2, and 4 a hole, both open in a corner; 3 has two parts that meet in a corner, 5 two apart; 9 is a pixel."""


def drawn_objects(n_planes: int = 0, largest: int = 9) -> LabelledObjects:
    """The objects of `DRAWN`, or of a stack of which every other plane is mirrored and the last empty."""
    labels = np.where(DRAWN == 9, largest, DRAWN).astype(np.uint32)
    if n_planes:
        labels = np.stack(
            [labels[:, :: (-1) ** z] if z < n_planes - 1 else np.zeros_like(labels) for z in range(n_planes)]
        )
    index = np.unique(labels)[1:].astype(np.int64)
    features = pd.DataFrame(
        {
            'index': index,
            'granularity': np.linspace(0, 1, len(index)),
            'score': np.where(index == 5, np.nan, 0.25),
            'parent_id': np.where(index == 2, 1, 0),
            'level': 0.5,
        }
    )
    scale, units = ((2.0, 0.5, 0.25), ('micrometer',) * 3) if n_planes else ((0.5, 0.25), ('micrometer',) * 2)
    return LabelledObjects(labels, features, 'drawn.tif', scale, units)


def background_of_one_object(size_hw: tuple[int, int] = (40, 30)) -> LabelledObjects:
    """One object that fills the image."""
    return LabelledObjects(np.ones(size_hw, np.uint16), pd.DataFrame({'index': [1]}))
