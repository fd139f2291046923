"""Linked classes of objects: nuclei in cells in colonies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from unsam_mm.errors import UnSAMError


@dataclass(frozen=True, eq=False)
class ObjectClass:
    """One kind of object.

    Attributes:
        name: What the user calls it, such as 'nuclei'.
        labels: (H, W) uint32; 0 is background.
        features: One row an object: index (its label), granularity, score, stability, level.
    """

    name: str
    labels: np.ndarray
    features: pd.DataFrame


def linked(classes: Sequence[ObjectClass]) -> list[ObjectClass]:
    """The classes from small to large objects, each object linked to the one of the next class that contains most of it.

    Regions of one tree nest or are disjoint, so between them "most" is all or nothing.

    Args:
        classes: Over one plane, in any order.

    Returns:
        Bands whose features also have `parent` (name of the next band, or '') and `parent_id` (a label there, or 0):
        with them "nuclei per cell" is ``features.groupby('parent_id').size()``.

    Raises:
        UnSAMError: If two classes have one name, or one has no object.
    """
    names = [kind.name for kind in classes]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UnSAMError(f'several classes are called {", ".join(sorted(twice))}; give each its own name')
    for kind in classes:
        if not len(kind.features):
            raise UnSAMError(f'class {kind.name} is empty; choose another level or wider limits')
    ordered = sorted(classes, key=_median_area)
    return [_linked_to(kind, above) for kind, above in zip(ordered, [*ordered[1:], None], strict=True)]


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


def _linked_to(kind: ObjectClass, above: ObjectClass | None) -> ObjectClass:
    held_by = {} if above is None else parents_by_overlap(kind.labels, above.labels)
    parents = [held_by.get(int(label), 0) for label in kind.features['index']]
    names = [above.name if parent else '' for parent in parents]
    return ObjectClass(kind.name, kind.labels, kind.features.assign(parent=names, parent_id=parents))


def _median_area(kind: ObjectClass) -> float:
    return float(np.median(np.unique(kind.labels[kind.labels > 0], return_counts=True)[1]))
