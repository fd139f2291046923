"""Layers of objects that know what they are parts of: nuclei in cells in colonies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from unsam_mm.errors import UnSAMError


@dataclass(frozen=True, eq=False)
class Band:
    """One kind of object.

    Attributes:
        name: What the user calls it, such as 'nuclei'.
        labels: (H, W) uint32; 0 is background.
        features: One row an object: index (its label), granularity, score, stability, level.
    """

    name: str
    labels: np.ndarray
    features: pd.DataFrame


def linked(bands: Sequence[Band]) -> list[Band]:
    """The bands from the finest to the coarsest, each object linked to the one of the next band that holds most of it.

    Regions of one tree nest or are disjoint, so between them "most" is all or nothing.

    Args:
        bands: Over one plane, in any order.

    Returns:
        Bands whose features also have `parent` (name of the next band, or '') and `parent_id` (a label there, or 0):
        with them "nuclei per cell" is ``features.groupby('parent_id').size()``.

    Raises:
        UnSAMError: If two bands have one name, or one has no object.
    """
    names = [band.name for band in bands]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UnSAMError(f'several classes are called {", ".join(sorted(twice))}; give each its own name')
    for band in bands:
        if not len(band.features):
            raise UnSAMError(f'class {band.name} is empty; choose another level or wider limits')
    ordered = sorted(bands, key=_median_area)
    return [_linked_to(band, above) for band, above in zip(ordered, [*ordered[1:], None], strict=True)]


def parents_by_overlap(labels: np.ndarray, wholes: np.ndarray) -> dict[int, int]:
    """For each object the one of another label map that holds most of it; 0 if most of it lies in none.

    Args:
        labels: Integers of any shape, 0 is background.
        wholes: The same shape.

    Raises:
        UnSAMError: If the shapes differ.
    """
    if labels.shape != wholes.shape:
        raise UnSAMError(f'label maps must have one shape to be linked, got {labels.shape} and {wholes.shape}')
    inside = labels != 0
    pairs, counts = np.unique(np.stack([labels[inside], wholes[inside]]), axis=1, return_counts=True)
    # The last of equal keys stays: the whole with the largest share of each object.
    order = np.argsort(counts, kind='stable')
    return {int(part): int(whole) for part, whole in pairs[:, order].T}


def _linked_to(band: Band, above: Band | None) -> Band:
    held_by = {} if above is None else parents_by_overlap(band.labels, above.labels)
    parents = [held_by.get(int(label), 0) for label in band.features['index']]
    names = [above.name if parent else '' for parent in parents]
    return Band(band.name, band.labels, band.features.assign(parent=names, parent_id=parents))


def _median_area(band: Band) -> float:
    return float(np.median(np.unique(band.labels[band.labels > 0], return_counts=True)[1]))
