"""Writing objects into a Labels layer, so that it can be taken back, and their rows in the features table."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_unsam.model import pixel_changes as pixel_changes
from napari_unsam.model.label_boxes import LazyArray, Region, around, boxes_in, object_boxes
from napari_unsam.model.pixel_changes import Counts, PixelChange, areas_in, total
from unsam_mm.masks.granularity import area_granularity

if TYPE_CHECKING:
    import pandas as pd
    from napari.layers import Labels

    from napari_unsam.model.targets import Proposal

FEATURES = ('index', 'area_px', 'granularity', 'score')
"""Columns that every features table has; `index` is the label, which is how napari finds the row of a label."""

MAX_LABEL = np.iinfo(np.uint32).max
"""The highest one that a layer made here can hold."""

_ROW_BYTES = 1000  # of memory that a row of a table takes, about


@dataclass(frozen=True, eq=False)
class ObjectWrite:
    """One object to write into a Labels layer.

    Attributes:
        region: Of the labels array, one slice per axis.
        mask: Bool, shape of the region.
        label: The value to write; 0 erases.
        features: Columns of its row in the table: score, parent_id, level, ... `area_px` and `granularity` are counted.
        axes: The two axes of the array that its planes span, of which granularity is a share.
        replaces: Only pixels that have this label when it is written are written to; None for all.
    """

    region: tuple[slice, ...]
    mask: np.ndarray
    label: int
    features: Mapping[str, object] = field(default_factory=dict)
    axes: tuple[int, int] = (-2, -1)
    replaces: int | None = None


def write_of(proposal: Proposal, label: int, labels: np.ndarray, keep_existing: bool = True) -> ObjectWrite | None:
    """The mask on screen as an object.

    Args:
        proposal: The mask.
        label: The object's label.
        labels: The array to write to.
        keep_existing: Leave voxels alone that hold another object already.

    Returns:
        None if no voxel is left to write to.
    """
    region = proposal.plane.region(proposal.box_xyxy)
    mask = proposal.mask.reshape([part.stop - part.start for part in region])
    if keep_existing:
        mask = mask & (np.asarray(labels[region]) == 0)
    if not mask.any():
        return None
    return ObjectWrite(region, mask, label, {'score': proposal.score}, proposal.plane.axes)


def renumbered(writes: Sequence[ObjectWrite], offset: int) -> list[ObjectWrite]:
    """Objects with labels, and those of their parents, higher by a number; numbered from there on where one would not fit."""
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
    """Objects without the pixels that others have by now; what is erased stays as it is.

    Args:
        writes: The objects.
        array: What they are to be written into.
        own: Labels whose pixels are free as well, as their objects are written anew.
    """
    left = []
    for write in writes:
        if write.label:
            there = np.asarray(array[write.region])
            is_taken = (there != 0) & (there != write.label)
            if is_taken.any():
                is_taken[is_taken] = ~np.isin(there[is_taken], list(own))
                write = replace(write, mask=write.mask & ~is_taken)
        if write.mask.any():
            left.append(write)
    return left


class WriteObjects:
    """Objects written into a Labels layer as one action; also erases and overwrites.

    Taken back, it leaves pixels alone that were changed since. Its masks are not kept, only what it has changed.

    Args:
        name: What the user did.
        table: Of the layer.
        writes: In their order; later ones win where they overlap.
        on_written: Called after they were written, and after they were taken back.
        bring_back: Called before either; puts the layer back into the viewer if it was deleted meanwhile.

    Attributes:
        nbytes: Bytes of memory that it keeps to be taken back, about.
    """

    def __init__(
        self,
        name: str,
        table: ObjectTable,
        writes: Sequence[ObjectWrite],
        on_written: Callable[[], None] = lambda: None,
        bring_back: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self._table, self._on_written, self._bring_back = name, table, on_written, bring_back
        self._writes: tuple[ObjectWrite, ...] = tuple(writes)
        self._labels = [write.label for write in writes if write.label]
        self._changes: Sequence[PixelChange] | None = None
        self._rows: pd.DataFrame | None = None  # of these labels: as they were, or once taken back, as they are to be
        self.nbytes = 0

    @classmethod
    def painted(
        cls,
        table: ObjectTable,
        changes: Sequence[PixelChange],
        on_written: Callable[[], None] = lambda: None,
        bring_back: Callable[[], None] = lambda: None,
    ) -> WriteObjects:
        """What napari's tools have painted, done already.

        Args:
            table: Of the layer.
            changes: In their order.
            on_written: See the class.
            bring_back: See the class.
        """
        action = cls(_painting_name(changes), table, (), on_written, bring_back)
        action._keep(table.rows_of(()), changes)
        return action

    def do(self) -> None:
        """Writes them in one go."""
        self._bring_back()
        if self._changes is None:
            rows = self._table.rows_of(self._labels)
            self._table.add([(write.label, write.features) for write in self._writes if write.label])
            self._keep(rows, self._table.write(self._writes))
        else:
            self._rows = self._table.exchange(self._labels, self._rows)
            self._table.redo(self._changes)
        self._on_written()

    def undo(self) -> None:
        """Puts back what was there."""
        self._bring_back()
        self._rows = self._table.exchange(self._labels, self._rows)
        self._table.undo(self._changes)
        self._on_written()

    def _keep(self, rows: pd.DataFrame, changes: Sequence[PixelChange]) -> None:
        self._rows, self._changes, self._writes = rows, changes, ()
        self.nbytes = _ROW_BYTES * len(rows) + sum(change.nbytes for change in changes)


class ObjectTable:
    """Writes into a Labels layer, and keeps its features table in step with the objects in it, whichever tool changes them.

    Areas follow what later commits and napari's tools take. Columns of others are kept, and so are rows of labels that the
    layer lacks.

    Args:
        labels: The layer; objects in it that have a row already are followed too.
        is_empty: Whether it is known to hold no object, which is then not looked for.
        view: What the viewer's sliders show: while it and the look of the layer stay the same, a layer that is drawn anew has
            other pixels, and all objects are counted again. By default it never changes.
        on_painted: Told what napari's tools have changed.
    """

    def __init__(
        self,
        labels: Labels,
        is_empty: bool = False,
        view: Callable[[], object] = lambda: None,
        on_painted: Callable[[ObjectTable, Sequence[PixelChange]], None] = lambda _table, _changes: None,
    ) -> None:
        self.labels, self._view, self._on_painted = labels, view, on_painted
        self._is_written = self._is_ahead = False
        self._painted_over: set[int] = set()  # labels that are to be counted
        self._regions: dict[int, Region] = {}
        if not is_empty:
            self._regions = regions_of(labels.data)
        self._highest = max(self._regions, default=0)
        self._rows = _with_features(labels.features)
        self._axes: dict[int, tuple[int, int]] = {}
        self._areas = self._count()
        self._seen: object = self._look() if labels.visible or is_empty else None
        self.open()

    @property
    def highest(self) -> int:
        """The highest label that was ever in the layer."""
        return self._highest

    def region_of(self, label: int) -> Region | None:
        """The bounding box of an object; None if it is not there."""
        known = self._regions.get(label)
        if known is None:
            return None
        found = dict(boxes_in((np.asarray(self.labels.data[known]) == label).astype(np.uint8)))
        if not found:
            return None
        return tuple(
            slice(part.start + own.start, part.start + own.stop) for part, own in zip(known, found[1], strict=True)
        )

    def rows(self) -> pd.DataFrame:
        """The rows of the layer with all that the user has put there, then those of objects that are gone."""
        shown = _with_features(self.labels.features)
        return _joined(shown, self._rows[~self._rows['index'].isin(shown['index'])])

    def rows_of(self, labels: Sequence[int]) -> pd.DataFrame:
        """The rows of some labels."""
        rows = self.rows()
        return rows[rows['index'].isin(labels)]

    def add(self, objects: Sequence[tuple[int, Mapping[str, object]]]) -> None:
        """Adds rows, in place of those that their labels had before; shown with what is written next.

        Args:
            objects: The label of each and its columns.
        """
        import pandas as pd

        added = {label: {'index': label, 'area_px': 0, **features} for label, features in objects}
        if added:
            known = self.rows()
            kept = known[~known['index'].isin(list(added))]
            self._rows = _joined(kept, _with_features(pd.DataFrame(list(added.values()))))
            self._is_ahead = True

    def exchange(self, labels: Sequence[int], rows: pd.DataFrame) -> pd.DataFrame:
        """Puts other rows in place of those of some labels, and returns these; shown with what is written next."""
        known = self.rows()
        is_theirs = known['index'].isin(labels)
        self._rows, self._is_ahead = _joined(known[~is_theirs], rows), True
        return known[is_theirs]

    def write(self, writes: Sequence[ObjectWrite]) -> list[PixelChange]:
        """Writes objects, later ones over earlier ones; returns what that has changed."""
        changes = []
        for write in writes:
            self._grow({write.label: 1}, write.region)
            self._axes[write.label] = write.axes
            mask = write.mask
            if write.replaces is not None:
                mask = mask & (np.asarray(self.labels.data[write.region]) == write.replaces)
            change = pixel_changes.write(self.labels.data, write.region, mask, write.label)
            if change is not None:
                changes.append(change)
        self._written([change.counts for change in changes])
        return changes

    def undo(self, changes: Sequence[PixelChange]) -> None:
        """Takes back changes, the last one first."""
        self._apply([(change, change.undo) for change in reversed(changes)])

    def redo(self, changes: Sequence[PixelChange]) -> None:
        """Makes changes again."""
        self._apply([(change, change.redo) for change in changes])

    def open(self) -> None:
        """Follows the layer from now on."""
        for name, act in self._receivers().items():
            self.labels.events[name].connect(act)

    def close(self) -> None:
        """Leaves the layer alone from now on."""
        for name, act in self._receivers().items():
            self.labels.events[name].disconnect(act)

    def _receivers(self) -> dict[str, Callable[[Any], None]]:
        return {
            'set_data': self._drawn,
            'paint': self._painted,
            'labels_update': self._count_painted,
            'visible': self._shown_or_hidden,
            'data': self._look_again,
        }

    def _apply(self, steps: Sequence[tuple[PixelChange, Callable[[Any], Counts]]]) -> None:
        counts = []
        for change, step in steps:
            counts.append(step(self.labels.data))
            self._grow(counts[-1], change.region)
        self._written(counts)

    def _written(self, counts: Sequence[Counts]) -> None:
        """Shows pixels that were changed behind napari's back: it would keep lists of them, of 36 bytes a pixel."""
        self._is_written = True
        try:
            self.labels.refresh(extent=False, highlight=False)
        finally:
            self._is_written = False
        self._recount(total(counts))

    def _grow(self, counts: Counts, region: Region) -> None:
        """Notes that labels may have pixels in a box."""
        for label, number in counts.items():
            if label and number > 0:
                self._regions[label] = around(self._regions.get(label), region)
                self._areas.setdefault(label, 0)
                self._highest = max(self._highest, label)

    def _recount(self, counts: Counts) -> None:
        for label, number in counts.items():
            if label in self._areas:
                self._areas[label] += number
        self._show()

    def _look(self) -> object:
        """What a layer may be drawn anew for that has the same pixels."""
        labels = self.labels
        selected = labels.selected_label if labels.show_selected_label else None
        placed = (labels.scale, labels.translate, labels.rotate, labels.shear, labels.affine.affine_matrix)
        drawn = (id(labels.colormap), selected, labels.contour, str(labels.projection_mode), labels.units)
        return self._view(), id(labels.data), labels.visible, drawn, [values.tobytes() for values in placed]

    def _drawn(self, _event: Any = None) -> None:
        """Looks for all objects anew if the layer was drawn anew though it looks the same, or was hidden."""
        before, self._seen = self._seen, self._look()
        if self._is_written:
            return
        if before is None or before == self._seen:
            self._look_again()
        else:
            self._count_painted()

    def _shown_or_hidden(self, _event: Any) -> None:
        if not self.labels.visible:  # napari does not tell then that the layer is to be drawn
            self._seen = None

    def _look_again(self, _event: Any = None) -> None:
        """Looks for all objects: the array is another one, or somebody may have written anywhere in it."""
        found = regions_of(self.labels.data)
        nothing = (slice(0, 0),) * self.labels.data.ndim
        self._regions = dict.fromkeys(self._regions, nothing) | found
        self._highest = max(self._highest, *found, 0)
        areas = self._count()
        self._painted_over.clear()
        if areas != self._areas:
            self._areas = areas
            self._show()

    def _painted(self, event: Any) -> None:
        """Takes note of what was painted by hand: such labels are never given to a new object."""
        changes = pixel_changes.changes_of_paint(event.value, self.labels.data)
        for change in changes:
            counts = change.counts
            self._grow(counts, change.region)
            self._painted_over.update(counts)
        if all(change.is_in(self.labels.data) for change in changes[-1:]):  # else napari writes next, and draws then
            self._count_painted()
        self._on_painted(self, changes)

    def _count_painted(self, _event: Any = None) -> None:
        # Not by adding what was painted: of a stroke a part was counted, if the layer was drawn anew in the midst of it.
        painted, self._painted_over = self._painted_over, set()
        if painted:
            self._areas |= self._count(painted)
            self._show()

    def _count(self, labels: Collection[int] | None = None) -> dict[int, int]:
        """The areas of objects, by default of all, in voxels within the boxes that they were written in."""
        boxes = {label: box for label, box in self._regions.items() if labels is None or label in labels}
        data = self.labels.data
        in_boxes = sum(math.prod(part.stop - part.start for part in box) for box in boxes.values())
        if in_boxes > math.prod(data.shape):  # boxes of which many overlap
            areas = areas_in(data)
            return {label: areas.get(label, 0) for label in boxes}
        return {label: int(np.count_nonzero(np.asarray(data[box]) == label)) for label, box in boxes.items()}

    def _show(self) -> None:
        """Shows the rows of the objects that are in the layer now; those of undone ones are kept for redo."""
        if not self._is_ahead:  # of what the layer shows
            self._rows = self.rows()
        rows, self._is_ahead = self._rows, False
        areas = [self._areas.get(label, noted) for label, noted in zip(rows['index'], rows['area_px'], strict=True)]
        gone = [self._areas.get(label) == 0 for label in rows['index']]
        granularity = [
            self._granularity(label) if self._areas.get(label, noted_px) not in (0, noted_px) else noted
            for label, noted_px, noted in zip(rows['index'], rows['area_px'], rows['granularity'], strict=True)
        ]
        shown = rows.assign(area_px=areas, granularity=granularity)[~np.array(gone, bool)].reset_index(drop=True)
        if not shown.equals(self.labels.features):
            self.labels.features = shown

    def _granularity(self, label: int) -> float:
        data = self.labels.data
        mask = np.asarray(data[self._regions[label]]) == label
        return object_granularity(mask, data.shape, self._axes.get(label, (-2, -1)))


def object_granularity(mask: np.ndarray, shape: tuple[int, ...], axes: tuple[int, int] = (-2, -1)) -> float:
    """The granularity of an object in [0, 1]: the mean of those of its masks in all planes that hold it.

    Args:
        mask: Bool of any box that holds it, of as many axes as the array.
        shape: Of the array.
        axes: The two that planes span.
    """
    areas = np.count_nonzero(mask, axis=axes).ravel()
    areas = areas[areas > 0]
    return float(area_granularity(areas, shape[axes[0]] * shape[axes[1]]).mean()) if len(areas) else 0.0


def regions_of(array: LazyArray) -> dict[int, Region]:
    """The bounding box of each positive label of an array."""
    return {label: box for label, box in object_boxes(array).items() if label > 0}


def _painting_name(changes: Sequence[PixelChange]) -> str:
    labels = {int(label) for change in changes for label in np.unique(change.new.unpacked())}
    return 'erase by hand' if labels == {0} else f'paint label {max(labels, default=0)}'


def _with_features(table: pd.DataFrame) -> pd.DataFrame:
    """The table with all columns of `FEATURES`; without an `index`, napari takes the place of a row for its label."""
    if 'index' not in table:
        table = table.assign(index=range(len(table)))
    return table.reindex(columns=[*FEATURES, *(name for name in table if name not in FEATURES)])


def _joined(*tables: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    # Without the empty ones, whose columns have no type of their own.
    return pd.concat([table for table in tables if len(table)] or [tables[0]], ignore_index=True)
