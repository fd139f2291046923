"""Objects to write into a Labels layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

import numpy as np

from napari_unsam.model.mask import BoxMask
from napari_unsam.model.plane import Plane

MAX_LABEL = np.iinfo(np.uint32).max
"""The highest label that fits in the layers of the plugin."""


@dataclass(frozen=True, eq=False)
class ObjectWrite:
    """One object to write into a Labels layer.

    Attributes:
        box: Box in the labels array: one slice per axis.
        mask: Bool, shape of the box.
        label: The value to write; 0 erases.
        features: Columns of its row in the table, such as score, parent_id and level; `area_px` and `granularity` are
            computed.
        axes: The two axes of the array that its planes span; granularity is relative to the area of a plane.
        replaces: If given, only those pixels are written that have this label at that time.
    """

    box: tuple[slice, ...]
    mask: np.ndarray
    label: int
    features: Mapping[str, object] = field(default_factory=dict)
    axes: tuple[int, int] = (-2, -1)
    replaces: int | None = None

    @classmethod
    def on_plane(
        cls, plane: Plane, found: BoxMask, label: int, features: Mapping[str, object] | None = None
    ) -> ObjectWrite:
        """A mask on one plane of the array; see the attributes."""
        mask, box = plane.in_array(found)
        return cls(box, mask, label, features or {}, plane.axes)


def renumbered(writes: Sequence[ObjectWrite], offset: int) -> list[ObjectWrite]:
    """Objects with `offset` added to their labels and to those of their parents.

    If the highest label would not fit in uint32, objects are numbered from `offset` + 1 instead.
    """
    labels = sorted({write.label for write in writes})
    new = {label: label + offset for label in labels}
    if labels and new[labels[-1]] > MAX_LABEL:
        new = {label: offset + number for number, label in enumerate(labels, start=1)}
    return [
        replace(write, label=new[write.label], features=with_parent_renumbered(write.features, new)) for write in writes
    ]


def with_parent_renumbered(
    features: Mapping[str, Any], new: Mapping[int, int], keep_absent: bool = False
) -> dict[str, Any]:
    """A row with the new label of the object's parent; unchanged if the parent is in another layer.

    Args:
        features: Columns of the row.
        new: The new labels of objects by their old ones.
        keep_absent: True to keep a parent without a new label. By default it is removed, since another object may have
            its label.
    """
    row = dict(features)
    parent, layer = row.get('parent_id'), row.get('parent')
    if not isinstance(parent, Real) or (isinstance(layer, str) and layer):
        return row
    if parent in new:
        row['parent_id'] = new[parent]
    elif parent > 0 and not keep_absent:  # other values, such as 0, mean that there is no parent
        del row['parent_id']
    return row


def limited_to_free(writes: Iterable[ObjectWrite], array: np.ndarray, own: Collection[int] = ()) -> list[ObjectWrite]:
    """Removes the pixels that other objects have from objects to write, and drops objects without any pixel left.

    Args:
        writes: The objects; those with label 0, which erase, are not changed.
        array: The labels array to write to.
        own: Labels whose pixels are free too, since these objects are written again.
    """
    left = []
    for write in writes:
        if write.label:
            labels = np.asarray(array[write.box])
            is_taken = (labels != 0) & (labels != write.label)
            if is_taken.any():
                is_taken[is_taken] = ~np.isin(labels[is_taken], list(own))
                write = replace(write, mask=write.mask & ~is_taken)
        if write.mask.any():
            left.append(write)
    return left
