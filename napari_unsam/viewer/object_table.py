"""The objects of a Labels layer and their features table, and the action that writes objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_unsam.model import pixel_changes
from napari_unsam.model.label_boxes import LazyArray, Slices, boxes_in, object_boxes, union_box
from napari_unsam.model.pixel_changes import Counts, PixelChange, areas_in, total
from napari_unsam.viewer.object_write import ObjectWrite
from unsam_mm.masks.granularity import area_granularity

if TYPE_CHECKING:
    import pandas as pd
    from napari.layers import Labels

_COLUMNS = ('index', 'area_px', 'granularity', 'score')  # of every table; `index` is the label, as napari expects
_ROW_BYTES = 1000  # approximate memory of a row


class ObjectTable:
    """Writes into a Labels layer, and updates its features table when any tool or script changes the objects.

    Columns added by other tools are kept, and so are rows of labels that are not in the layer.

    Args:
        labels: The layer.
        is_empty: True if the layer has no objects; the array is not read then.
        view: Returns the position of the viewer's sliders. If the layer is redrawn although neither this position nor
            its display settings have changed, its pixels must have changed, and all objects are counted again.
        on_painted: Called with this table and the changes after napari's tools have painted.

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
        # Each box contains all pixels of its label; it may be too large.
        self._boxes: dict[int, Slices] = {} if is_empty else boxes_of(labels.data)
        self._areas = self._count()
        self._axes: dict[int, tuple[int, int]] = {}
        self._painted_labels: set[int] = set()  # labels whose areas have to be counted again
        self.highest = max(self._boxes, default=0)
        self._rows = _with_columns(labels.features)
        self._has_new_rows = False  # True if the layer does not show `_rows` yet
        self._display_before = self._display() if labels.visible or is_empty else None
        self.open()

    def box_of(self, label: int) -> Slices | None:
        """The bounding box of an object; None if it is not in the layer."""
        known = self._boxes.get(label)
        found = {} if known is None else dict(boxes_in((np.asarray(self.labels.data[known]) == label).astype(np.uint8)))
        if not found:
            return None
        return tuple(
            slice(part.start + own.start, part.start + own.stop) for part, own in zip(known, found[1], strict=True)
        )

    def replace_rows(self, labels: Sequence[int], rows: pd.DataFrame) -> pd.DataFrame:
        """Replaces the rows of some labels and returns the old ones; the layer shows new rows after the next write."""
        known = self._all_rows()
        is_replaced = known['index'].isin(labels)
        self._rows, self._has_new_rows = _joined(known[~is_replaced], rows), True
        return known[is_replaced]

    def write(self, writes: Sequence[ObjectWrite]) -> list[PixelChange]:
        """Writes objects, later ones over earlier ones; returns the changed pixels."""
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
        """Connects to the events of the layer."""
        for name, act in self._receivers().items():
            self.labels.events[name].connect(act)

    def close(self) -> None:
        """Disconnects from the events of the layer."""
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

        Pixels are changed in the array itself, since napari's own undo would need 36 bytes for each pixel.
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
        """Extends the boxes of labels that have gained pixels in a box."""
        for label, number in counts.items():
            if label and number > 0:
                self._boxes[label] = union_box(self._boxes.get(label), box)
                self._areas.setdefault(label, 0)
                self.highest = max(self.highest, label)

    def _display(self) -> object:
        """All values whose change makes napari redraw the layer although its pixels are the same."""
        labels = self.labels
        selected = labels.selected_label if labels.show_selected_label else None
        placed = (labels.scale, labels.translate, labels.rotate, labels.shear, labels.affine.affine_matrix)
        drawn = (id(labels.colormap), selected, labels.contour, str(labels.projection_mode), labels.units)
        return self._view(), id(labels.data), labels.visible, drawn, [values.tobytes() for values in placed]

    def _on_drawn(self, _event: Any) -> None:
        """Counts all objects if the layer was redrawn without a change of its display, or was hidden before."""
        before, self._display_before = self._display_before, self._display()
        if self._is_writing:
            return
        if before is None or before == self._display_before:
            self._count_all()
        else:
            self._count_painted()

    def _on_visible(self, _event: Any) -> None:
        if not self.labels.visible:  # hidden layers are not redrawn, so later changes go unnoticed
            self._display_before = None

    def _on_paint(self, event: Any) -> None:
        """Registers painted labels, which new objects never get, and reports the changes."""
        changes = pixel_changes.changes_of_paint(event.value, self.labels.data)
        for change in changes:
            counts = change.counts
            self._extend_boxes(counts, change.box)
            self._painted_labels.update(counts)
        if all(change.is_applied_to(self.labels.data) for change in changes[-1:]):  # else napari will write and redraw
            self._count_painted()
        self._on_painted(self, changes)

    def _count_painted(self, _event: Any = None) -> None:
        # Not added up: a redraw during a stroke may have counted a part of it already.
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
        """The areas of objects in pixels, by default of all objects."""
        boxes = {label: box for label, box in self._boxes.items() if labels is None or label in labels}
        data = self.labels.data
        in_boxes = sum(math.prod(part.stop - part.start for part in box) for box in boxes.values())
        if in_boxes > math.prod(data.shape):  # many boxes overlap
            areas = areas_in(data)
            return {label: areas.get(label, 0) for label in boxes}
        return {label: int(np.count_nonzero(np.asarray(data[box]) == label)) for label, box in boxes.items()}

    def _all_rows(self) -> pd.DataFrame:
        """The rows that the layer shows, with all edits of the user, then those of removed objects, kept for redo."""
        shown = _with_columns(self.labels.features)
        return _joined(shown, self._rows[~self._rows['index'].isin(shown['index'])])

    def _show_rows(self) -> None:
        """Shows the rows of the objects that are in the layer."""
        if not self._has_new_rows:
            self._rows = self._all_rows()
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


class WriteObjects:
    """The action that writes, overwrites and erases objects in a Labels layer.

    Undo leaves pixels that were changed later. After the first `do`, only the changes are stored, not the masks.

    Args:
        name: What the user did.
        table: Table of the layer.
        writes: The objects in order; later ones win where they overlap.
        on_changed: Called after each do and undo.
        restore_layer: Called before each do and undo; puts the layer back into the viewer if it was deleted.
        painted: Changes that napari's tools have made already; None if this action makes them.
    """

    def __init__(
        self,
        name: str,
        table: ObjectTable,
        writes: Sequence[ObjectWrite],
        on_changed: Callable[[], None] = lambda: None,
        restore_layer: Callable[[], None] = lambda: None,
        painted: Sequence[PixelChange] | None = None,
    ) -> None:
        self.name, self._table, self._on_changed, self._restore_layer = name, table, on_changed, restore_layer
        import pandas as pd

        self._writes, self._changes = tuple(writes), painted
        # Areas are counted when the objects are written.
        rows = {write.label: {'index': write.label, 'area_px': 0, **write.features} for write in writes if write.label}
        self._labels, self._rows = list(rows), _with_columns(pd.DataFrame(list(rows.values())))

    @property
    def nbytes(self) -> int:
        """Approximate memory for undo in bytes."""
        return _ROW_BYTES * len(self._rows) + sum(change.nbytes for change in self._changes or ())

    def do(self) -> None:
        """Writes the objects."""
        self._restore_layer()
        self._exchange_rows()
        if self._changes is None:
            self._changes, self._writes = self._table.write(self._writes), ()
        else:
            self._table.redo(self._changes)
        self._on_changed()

    def undo(self) -> None:
        """Restores the former pixels and rows."""
        self._restore_layer()
        self._exchange_rows()
        self._table.undo(self._changes)
        self._on_changed()

    def _exchange_rows(self) -> None:
        """Swaps the stored rows of its labels with those in the table."""
        if self._labels:
            self._rows = self._table.replace_rows(self._labels, self._rows)


def object_granularity(mask: np.ndarray, shape: tuple[int, ...], axes: tuple[int, int] = (-2, -1)) -> float:
    """Granularity of an object in [0, 1]: the mean over the planes that contain pixels of it; 0 for an empty mask.

    Args:
        mask: Bool mask of the object within any box, with as many axes as the array.
        shape: Shape of the array.
        axes: The two axes that planes span.
    """
    areas = np.count_nonzero(mask, axis=axes).ravel()
    areas = areas[areas > 0]
    return float(area_granularity(areas, shape[axes[0]] * shape[axes[1]]).mean()) if len(areas) else 0.0


def boxes_of(array: LazyArray) -> dict[int, Slices]:
    """The bounding box of each positive label of an array."""
    return {label: box for label, box in object_boxes(array).items() if label > 0}


def _with_columns(table: pd.DataFrame) -> pd.DataFrame:
    """The table with all `_COLUMNS`; without an `index`, the number of a row is its label, as in napari."""
    if 'index' not in table:
        table = table.assign(index=range(len(table)))
    return table.reindex(columns=[*_COLUMNS, *(name for name in table if name not in _COLUMNS)])


def _joined(*tables: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    # Empty tables are left out: their columns have no dtype of their own.
    return pd.concat([table for table in tables if len(table)] or [tables[0]], ignore_index=True)
