"""Undoable writing of objects into a Labels layer and of their rows in the features table."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_unsam.model import pixel_changes
from napari_unsam.model.label_boxes import LazyArray, Slices, around, boxes_in, object_boxes
from napari_unsam.model.mask import BoxMask
from napari_unsam.model.pixel_changes import Counts, PixelChange, areas_in, total
from napari_unsam.model.plane import Plane
from napari_unsam.model.targets import Proposal
from unsam_mm.masks.granularity import area_granularity

if TYPE_CHECKING:
    import pandas as pd
    from napari.layers import Labels

FEATURES = ('index', 'area_px', 'granularity', 'score')
"""Columns that every features table has; `index` is the label, which is how napari finds the row of a label."""

MAX_LABEL = np.iinfo(np.uint32).max
"""The highest one that a layer made here can hold."""

_ROW_BYTES = 1000  # of memory that a row of a table takes, about


@dataclass(frozen=True, eq=False)
class ObjectWrite:
    """One object to write into a Labels layer.

    Attributes:
        box: Box in the labels array: one slice per axis.
        mask: Bool, shape of the box.
        label: The value to write; 0 erases.
        features: Columns of its row in the table: score, parent_id, level, ... `area_px` and `granularity` are computed.
        axes: The two axes of the array that its planes span; granularity is relative to the area of a plane.
        replaces: Only pixels that have this label when it is written are written to; None for all.
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
        """A mask of one plane of the array; see the attributes."""
        mask, box = plane.in_array(found)
        return cls(box, mask, label, features or {}, plane.axes)


def write_of(
    proposal: Proposal, label: int, labels: np.ndarray, keep_existing: bool = True, before: Sequence[BoxMask] = ()
) -> ObjectWrite | None:
    """The current mask as an object.

    Args:
        proposal: The mask.
        label: The object's label, which the array lacks.
        labels: The array to write to.
        keep_existing: Leave voxels alone that hold another object already.
        before: Masks of the same plane whose pixels this object must not take.

    Returns:
        None if no voxel is left to write to.
    """
    write = ObjectWrite.on_plane(proposal.plane, proposal.without(before), label, {'score': proposal.score})
    left = free_now([write], labels) if keep_existing else [write]
    return next((one for one in left if one.mask.any()), None)


def renumbered(writes: Sequence[ObjectWrite], offset: int) -> list[ObjectWrite]:
    """Objects with `offset` added to their labels and to those of their parents.

    If the highest would not fit in uint32, objects are numbered from `offset` + 1 instead.
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
    """A row with the new label of the object's parent, unless that lies in another layer.

    Args:
        features: Columns of the row.
        new: The new labels of objects by their old ones.
        keep_absent: Keep a parent that has no new label; else it is left out, as its label may be that of any object.
    """
    row = dict(features)
    parent, layer = row.get('parent_id'), row.get('parent')
    if not isinstance(parent, Real) or (isinstance(layer, str) and layer):
        return row
    if parent in new:
        row['parent_id'] = new[parent]
    elif parent > 0 and not keep_absent:  # others, such as 0, mean that there is none
        del row['parent_id']
    return row


def free_now(writes: Iterable[ObjectWrite], array: np.ndarray, own: Collection[int] = ()) -> list[ObjectWrite]:
    """Removes pixels that belong to other objects by now; writes that erase are not changed.

    Args:
        writes: The objects.
        array: What they are to be written into.
        own: Labels whose pixels are free as well, as their objects are written again.
    """
    left = []
    for write in writes:
        if write.label:
            there = np.asarray(array[write.box])
            is_taken = (there != 0) & (there != write.label)
            if is_taken.any():
                is_taken[is_taken] = ~np.isin(there[is_taken], list(own))
                write = replace(write, mask=write.mask & ~is_taken)
        if write.mask.any():
            left.append(write)
    return left


class WriteObjects:
    """Objects written into a Labels layer as one action; also erases and overwrites.

    Undo does not touch pixels that were changed later. Only the changes are stored, not the masks.

    Args:
        name: What the user did.
        table: Table of the layer.
        writes: The objects in order; later ones win where they overlap.
        on_written: Called after they were written, and after they were undone.
        bring_back: Called before it is done and before it is undone; puts the layer back into the viewer if it was deleted meanwhile.
        painted: Changes that napari's tools have made already; None if this action makes them.
    """

    def __init__(
        self,
        name: str,
        table: ObjectTable,
        writes: Sequence[ObjectWrite],
        on_written: Callable[[], None] = lambda: None,
        bring_back: Callable[[], None] = lambda: None,
        painted: Sequence[PixelChange] | None = None,
    ) -> None:
        self.name, self._table, self._on_written, self._bring_back = name, table, on_written, bring_back
        self._writes = tuple(writes)
        self._labels = [write.label for write in writes if write.label]
        self._changes = painted
        self._rows = new_rows([(write.label, write.features) for write in writes if write.label])

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it keeps to be undone, about."""
        return _ROW_BYTES * len(self._rows) + sum(change.nbytes for change in self._changes or ())

    def do(self) -> None:
        """Writes them in one go."""
        self._bring_back()
        self._exchange_rows()
        if self._changes is None:
            self._changes, self._writes = self._table.write(self._writes), ()
        else:
            self._table.redo(self._changes)
        self._on_written()

    def undo(self) -> None:
        """Restores the former pixels and rows."""
        self._bring_back()
        self._exchange_rows()
        self._table.undo(self._changes)
        self._on_written()

    def _exchange_rows(self) -> None:
        """Swaps the stored rows of its labels with those in the table."""
        if self._labels:
            self._rows = self._table.replace_rows(self._labels, self._rows)


class ObjectTable:
    """Writes into a Labels layer, and keeps its features table in step with the objects in it, whichever tool changes them.

    Columns added by other tools are kept, and so are rows of labels that the layer lacks.

    Args:
        labels: The layer; objects in it that have a row already are followed too.
        is_empty: Whether it is known to hold no object, which is then not looked for.
        view: Returns the position of the viewer's sliders. If neither it nor the look of the layer has changed, a redraw means
            that pixels have changed, and all objects are counted again. By default it never changes.
        on_painted: Told what napari's tools have changed.

    Attributes:
        highest: The highest label that was ever in the layer.
    """

    def __init__(
        self,
        labels: Labels,
        is_empty: bool = False,
        view: Callable[[], object] = lambda: None,
        on_painted: Callable[[ObjectTable, Sequence[PixelChange]], None] = lambda _table, _changes: None,
    ) -> None:
        self.labels, self._view, self._on_painted = labels, view, on_painted
        self._is_writing = False
        self._boxes: dict[int, Slices] = (
            {} if is_empty else boxes_of(labels.data)
        )  # hold all pixels of a label, or more
        self._areas = self._count()
        self._axes: dict[int, tuple[int, int]] = {}
        self._painted_labels: set[int] = set()  # whose areas are not counted yet
        self.highest = max(self._boxes, default=0)
        self._rows = _with_features(labels.features)
        self._has_new_rows = False  # that the layer does not show yet
        self._display_before = self._display() if labels.visible or is_empty else None
        self.open()

    def box_of(self, label: int) -> Slices | None:
        """The bounding box of an object; None if it is not there."""
        known = self._boxes.get(label)
        found = {} if known is None else dict(boxes_in((np.asarray(self.labels.data[known]) == label).astype(np.uint8)))
        if not found:
            return None
        return tuple(
            slice(part.start + own.start, part.start + own.stop) for part, own in zip(known, found[1], strict=True)
        )

    def rows(self) -> pd.DataFrame:
        """The rows of the layer with all that the user has put there, then those of objects that were removed."""
        shown = _with_features(self.labels.features)
        return _joined(shown, self._rows[~self._rows['index'].isin(shown['index'])])

    def replace_rows(self, labels: Sequence[int], rows: pd.DataFrame) -> pd.DataFrame:
        """Puts other rows in place of those of some labels, and returns these; shown with what is written next."""
        known = self.rows()
        is_theirs = known['index'].isin(labels)
        self._rows, self._has_new_rows = _joined(known[~is_theirs], rows), True
        return known[is_theirs]

    def write(self, writes: Sequence[ObjectWrite]) -> list[PixelChange]:
        """Writes objects, later ones over earlier ones; returns what that has changed."""
        changes = []
        for write in writes:
            self._extend_boxes({write.label: 1}, write.box)
            self._axes[write.label] = write.axes
            mask = write.mask
            if write.replaces is not None:
                mask = mask & (np.asarray(self.labels.data[write.box]) == write.replaces)
            change = pixel_changes.write(self.labels.data, write.box, mask, write.label)
            if change is not None:
                changes.append(change)
        self._show_written([change.counts for change in changes])
        return changes

    def undo(self, changes: Sequence[PixelChange]) -> None:
        """Undoes changes, the last one first."""
        self._show_written([self._applied(change, change.undo) for change in reversed(changes)])

    def redo(self, changes: Sequence[PixelChange]) -> None:
        """Redoes changes."""
        self._show_written([self._applied(change, change.redo) for change in changes])

    def open(self) -> None:
        """Follows the layer from now on."""
        for name, act in self._receivers().items():
            self.labels.events[name].connect(act)

    def close(self) -> None:
        """Disconnects from the layer."""
        for name, act in self._receivers().items():
            self.labels.events[name].disconnect(act)

    def _receivers(self) -> dict[str, Callable[[Any], None]]:
        return {
            'set_data': self._on_drawn,
            'paint': self._on_paint,
            'labels_update': self._count_painted,
            'visible': self._on_visible,
            'data': self._count_all,
        }

    def _applied(self, change: PixelChange, step: Callable[[Any], Counts]) -> Counts:
        counts = step(self.labels.data)
        self._extend_boxes(counts, change.box)
        return counts

    def _show_written(self, counts: Sequence[Counts]) -> None:
        """Redraws the layer and updates its rows.

        Pixels are changed in the array itself, since napari's own undo would keep 36 bytes for each.
        """
        self._is_writing = True
        try:
            self.labels.refresh(extent=False, highlight=False)
        finally:
            self._is_writing = False
        for label, number in total(counts).items():
            if label in self._areas:
                self._areas[label] += number
        self._show_rows()

    def _extend_boxes(self, counts: Counts, box: Slices) -> None:
        """Notes that labels may have pixels in a box."""
        for label, number in counts.items():
            if label and number > 0:
                self._boxes[label] = around(self._boxes.get(label), box)
                self._areas.setdefault(label, 0)
                self.highest = max(self.highest, label)

    def _display(self) -> object:
        """The display settings for which a layer is redrawn with the same pixels."""
        labels = self.labels
        selected = labels.selected_label if labels.show_selected_label else None
        placed = (labels.scale, labels.translate, labels.rotate, labels.shear, labels.affine.affine_matrix)
        drawn = (id(labels.colormap), selected, labels.contour, str(labels.projection_mode), labels.units)
        return self._view(), id(labels.data), labels.visible, drawn, [values.tobytes() for values in placed]

    def _on_drawn(self, _event: Any = None) -> None:
        """Counts all objects if the layer was redrawn without a change of its display, or was hidden before."""
        before, self._display_before = self._display_before, self._display()
        if self._is_writing:
            return
        if before is None or before == self._display_before:
            self._count_all()
        else:
            self._count_painted()

    def _on_visible(self, _event: Any) -> None:
        if not self.labels.visible:  # napari does not tell then that the layer is to be drawn
            self._display_before = None

    def _on_paint(self, event: Any) -> None:
        """Notes painted labels: they are never given to a new object."""
        changes = pixel_changes.changes_of_paint(event.value, self.labels.data)
        for change in changes:
            counts = change.counts
            self._extend_boxes(counts, change.box)
            self._painted_labels.update(counts)
        if all(change.is_in(self.labels.data) for change in changes[-1:]):  # else napari writes and redraws next
            self._count_painted()
        self._on_painted(self, changes)

    def _count_painted(self, _event: Any = None) -> None:
        # Counted anew instead of added: a redraw in the middle of a stroke has counted a part of it already.
        painted, self._painted_labels = self._painted_labels, set()
        if painted:
            self._areas |= self._count(painted)
            self._show_rows()

    def _count_all(self, _event: Any = None) -> None:
        """Finds all objects again: the array was replaced, or a script may have written anywhere in it."""
        found = boxes_of(self.labels.data)
        nothing = (slice(0, 0),) * self.labels.data.ndim
        self._boxes = dict.fromkeys(self._boxes, nothing) | found
        self.highest = max(self.highest, *found, 0)
        areas = self._count()
        self._painted_labels.clear()
        if areas != self._areas:
            self._areas = areas
            self._show_rows()

    def _count(self, labels: Collection[int] | None = None) -> dict[int, int]:
        """The areas of objects, by default of all, in voxels within their boxes."""
        boxes = {label: box for label, box in self._boxes.items() if labels is None or label in labels}
        data = self.labels.data
        in_boxes = sum(math.prod(part.stop - part.start for part in box) for box in boxes.values())
        if in_boxes > math.prod(data.shape):  # boxes of which many overlap
            areas = areas_in(data)
            return {label: areas.get(label, 0) for label in boxes}
        return {label: int(np.count_nonzero(np.asarray(data[box]) == label)) for label, box in boxes.items()}

    def _show_rows(self) -> None:
        """Shows the rows of the objects that are in the layer now; those of undone ones are kept for redo."""
        if not self._has_new_rows:
            self._rows = self.rows()
        rows, self._has_new_rows = self._rows, False
        labels, noted_px = list(rows['index']), list(rows['area_px'])
        areas = [self._areas.get(label, noted) for label, noted in zip(labels, noted_px, strict=True)]
        is_removed = [self._areas.get(label) == 0 for label in labels]
        granularity = [
            self._granularity(label) if area not in (0, noted) else before
            for label, area, noted, before in zip(labels, areas, noted_px, rows['granularity'], strict=True)
        ]
        shown = rows.assign(area_px=areas, granularity=granularity)[~np.array(is_removed, bool)].reset_index(drop=True)
        if not shown.equals(self.labels.features):
            self.labels.features = shown

    def _granularity(self, label: int) -> float:
        data = self.labels.data
        mask = np.asarray(data[self._boxes[label]]) == label
        return object_granularity(mask, data.shape, self._axes.get(label, (-2, -1)))


def painting_name(changes: Sequence[PixelChange]) -> str:
    """What an undo of changes that napari's tools have made is called."""
    labels = {int(label) for change in changes for label in np.unique(change.new.unpacked())}
    return 'erase by hand' if labels == {0} else f'paint label {max(labels, default=0)}'


def new_rows(objects: Sequence[tuple[int, Mapping[str, object]]]) -> pd.DataFrame:
    """Rows of a features table for objects that are not counted yet, from the label of each and its columns."""
    import pandas as pd

    rows = {label: {'index': label, 'area_px': 0, **features} for label, features in objects}
    return _with_features(pd.DataFrame(list(rows.values())))


def object_granularity(mask: np.ndarray, shape: tuple[int, ...], axes: tuple[int, int] = (-2, -1)) -> float:
    """The granularity of an object in [0, 1]: the mean of those of its masks in all planes that hold it.

    Args:
        mask: Bool of any box that holds it, of as many axes as the array.
        shape: Shape of the array.
        axes: The two that planes span.
    """
    areas = np.count_nonzero(mask, axis=axes).ravel()
    areas = areas[areas > 0]
    return float(area_granularity(areas, shape[axes[0]] * shape[axes[1]]).mean()) if len(areas) else 0.0


def boxes_of(array: LazyArray) -> dict[int, Slices]:
    """The bounding box of each positive label of an array."""
    return {label: box for label, box in object_boxes(array).items() if label > 0}


def _with_features(table: pd.DataFrame) -> pd.DataFrame:
    """The table with all columns of `FEATURES`; without an `index`, napari uses the number of a row as its label."""
    if 'index' not in table:
        table = table.assign(index=range(len(table)))
    return table.reindex(columns=[*FEATURES, *(name for name in table if name not in FEATURES)])


def _joined(*tables: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    # Without the empty ones, whose columns have no type of their own.
    return pd.concat([table for table in tables if len(table)] or [tables[0]], ignore_index=True)
