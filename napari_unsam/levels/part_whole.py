"""Linked classes of objects, such as nuclei in cells in colonies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True, eq=False)
class ObjectClass:
    """The objects of one class on a plane.

    Attributes:
        name: Name that the user has entered, such as 'nuclei'.
        labels: (H, W) uint32; 0 is background.
        features: One row per object: index (its label), area_px, granularity, score, stability, level.
    """

    name: str
    labels: np.ndarray
    features: pd.DataFrame


def linked(classes: Sequence[ObjectClass]) -> list[ObjectClass]:
    """Sorts classes from small to large objects, and links each object to the one of the next class that contains it.

    That is the object with the largest share of its pixels; there is none if the largest share is background.

    Args:
        classes: Classes with different names over one plane, in any order; none is empty.

    Returns:
        Classes whose features also have `parent` (name of the next class, or '') and `parent_id` (a label of it, or 0):
        the number of nuclei per cell is ``features.groupby('parent_id').size()``.
    """
    ordered = sorted(classes, key=lambda one: one.features['area_px'].median())
    return [_linked_to(one, above) for one, above in zip(ordered, [*ordered[1:], None], strict=True)]


def parents_by_overlap(labels: np.ndarray, wholes: np.ndarray) -> dict[int, int]:
    """For each object, the label of the whole with the largest share of it; 0 if the largest share lies in no whole.

    Args:
        labels: Integer label map of the objects; 0 is background.
        wholes: Label map of the wholes, of the same shape.
    """
    inside = labels != 0
    pairs, counts = np.unique(np.stack([labels[inside], wholes[inside]]), axis=1, return_counts=True)
    order = np.argsort(counts, kind='stable')  # in a dict the last item of a key wins: the whole with the largest share
    return {int(part): int(whole) for part, whole in pairs[:, order].T}


def _linked_to(objects: ObjectClass, above: ObjectClass | None) -> ObjectClass:
    parent_of = {} if above is None else parents_by_overlap(objects.labels, above.labels)
    parents = [parent_of.get(int(label), 0) for label in objects.features['index']]
    names = [above.name if parent else '' for parent in parents]
    return ObjectClass(objects.name, objects.labels, objects.features.assign(parent=names, parent_id=parents))
