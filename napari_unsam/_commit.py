"""Writing objects into a Labels layer, so that it can be taken back, and their rows in the features table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import find_objects

from unsam_mm.granularity import area_granularity

if TYPE_CHECKING:
    import pandas as pd
    from napari.layers import Labels

    from napari_unsam._targets import Proposal

FEATURES = ('index', 'area_px', 'granularity', 'score')
"""Columns that every features table has; `index` is the label, which is how napari finds the row of a label."""


@dataclass(frozen=True, eq=False)
class ObjectWrite:
    """One object to write into a Labels layer.

    Attributes:
        region: Of the labels array, one slice per axis.
        mask: Bool, shape of the region.
        label: The value to write; 0 erases.
        features: Columns of its row in the table: score, parent_id, level, ... `area_px` and `granularity` are counted.
        axes: The two axes of the array that its planes span, of which granularity is a share.
    """

    region: tuple[slice, ...]
    mask: np.ndarray
    label: int
    features: Mapping[str, object] = field(default_factory=dict)
    axes: tuple[int, int] = (-2, -1)


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


def renumbered(writes: Iterable[ObjectWrite], offset: int) -> list[ObjectWrite]:
    """Objects with labels, and those of their parents, higher by a number."""
    moved = []
    for write in writes:
        features = dict(write.features)
        if 'parent_id' in features and not features.get('parent'):  # else it is a label of another layer
            features['parent_id'] += offset
        moved.append(replace(write, label=write.label + offset, features=features))
    return moved


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
            is_free = np.isin(array[write.region], [0, write.label, *own])
            write = replace(write, mask=write.mask & is_free)
        if write.mask.any():
            left.append(write)
    return left


class WriteObjects:
    """Objects written into a Labels layer as one action; also erases and overwrites.

    Args:
        name: What the user did.
        table: Of the layer.
        writes: In their order; later ones win where they overlap.
        on_written: Called after they were written, and after they were taken back.
        bring_back: Called before either; puts the layer back into the viewer if it was deleted meanwhile.
    """

    def __init__(
        self,
        name: str,
        table: ObjectTable,
        writes: Sequence[ObjectWrite],
        on_written: Callable[[], None] = lambda: None,
        bring_back: Callable[[], None] = lambda: None,
    ) -> None:
        self.name, self._table, self._writes, self._on_written = name, table, tuple(writes), on_written
        self._bring_back = bring_back
        self._before: np.ndarray | None = None
        self._rows: pd.DataFrame | None = None

    def do(self) -> None:
        """Writes them in one go."""
        self._bring_back()
        labels, (indices, values) = self._table.labels, self._pixels()
        self._before = np.asarray(labels.data[indices])
        self._rows = self._table.rows()
        self._table.add(self._writes)
        with self._table.writing():
            _set(labels, indices, values)
        self._table.refresh()
        self._on_written()

    def undo(self) -> None:
        """Puts back what was there."""
        self._bring_back()
        self._table.restore(self._rows, [write.label for write in self._writes])
        with self._table.writing():
            _set(self._table.labels, self._pixels()[0], self._before)
        self._table.refresh()
        self._on_written()

    def _pixels(self) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """Indices of the pixels that change, one array for each axis, and their values; each pixel comes once.

        napari leaves out what is as it should be before it writes, so of two values for a pixel the wrong one may stay.
        """
        shape = self._table.labels.data.shape
        places, values = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for write in reversed(self._writes):
            starts = [part.start for part in write.region]
            inside = [found + start for found, start in zip(np.nonzero(write.mask), starts, strict=True)]
            places.append(np.ravel_multi_index(inside, shape))
            values.append(np.full(len(places[-1]), write.label))
        kept, first = np.unique(np.concatenate(places), return_index=True)
        return np.unravel_index(kept, shape), np.concatenate(values)[first]


def _set(labels: Labels, indices: tuple[np.ndarray, ...], values: np.ndarray) -> None:
    if len(indices) and len(indices[0]):
        # Assigning labels.data would redraw all of it and wipe the layer's own history; this call adds to it.
        try:
            labels.data_setitem(indices, np.asarray(values, labels.data.dtype))
        except IndexError:  # napari 0.9 cannot tell what of an oblique view to draw anew; the values are written
            labels.refresh()


class ObjectTable:
    """Keeps the features table of a Labels layer in step with the objects in it, whoever changes them.

    Areas follow what later commits take. Columns of others are kept, and so are rows of labels that the layer lacks.

    Args:
        labels: The layer; objects in it that have a row already are followed too.
        is_empty: Whether it is known to hold no object, which is then not looked for.
    """

    def __init__(self, labels: Labels, is_empty: bool = False) -> None:
        self.labels = labels
        self._rows = _with_features(labels.features)
        boxes = find_objects(labels.data) if len(self._rows) else []
        present = {label: box for label, box in enumerate(boxes, start=1) if box is not None}
        self._regions = {label: present[label] for label in self._rows['index'] if label in present}
        self._axes: dict[int, tuple[int, int]] = {}
        self._areas = self._count()
        self._highest = 0 if is_empty else int(np.max(labels.data, initial=0))
        self._is_written = self._is_painted = False
        self.open()

    @property
    def highest(self) -> int:
        """The highest label that was ever seen in the layer."""
        return self._highest

    def rows(self) -> pd.DataFrame:
        """The rows of the layer with all that the user has put there, then those of objects that are gone."""
        shown = _with_features(self.labels.features)
        return _joined(shown, self._rows[~self._rows['index'].isin(shown['index'])])

    def add(self, writes: Sequence[ObjectWrite]) -> None:
        """Adds a row for each object, in place of one that its label had before; `refresh` shows them."""
        import pandas as pd

        rows = {write.label: _row(write, self.labels.data.shape) for write in writes if write.label}
        if not rows:
            return
        known = self.rows()
        added = _with_features(pd.DataFrame(list(rows.values())))
        self._rows = _joined(known[~known['index'].isin(list(rows))], added)
        for write in writes:
            if write.label:
                self._regions[write.label] = _union(self._regions.get(write.label), write.region)
                self._axes[write.label] = write.axes
        self._highest = max(self._highest, *rows)
        self._areas = {}

    def restore(self, rows: pd.DataFrame, changed: Sequence[int]) -> None:
        """Takes back the rows of some labels as they were; the others are as the user has them now."""
        known = self.rows()
        before = rows[rows['index'].isin(changed)]
        self._rows = _joined(known[~known['index'].isin(before['index'])], before)
        self._areas = {}

    def refresh(self) -> None:
        """Shows the rows of the objects that are in the layer now; undone ones are kept in mind for a redo."""
        areas = self._count()
        if areas != self._areas:
            if self._areas:
                self._rows = self.rows()
            self._areas = areas
            self._show()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Does not look for changes by others in the block, after which `refresh` is called."""
        self._is_written = True
        try:
            yield
        finally:
            self._is_written = False

    def open(self) -> None:
        """Follows the layer from now on."""
        self.labels.events.set_data.connect(self.refresh)
        self.labels.events.paint.connect(self._painted)
        self.labels.events.labels_update.connect(self._updated)
        self.labels.events.data.connect(self._replaced)

    def close(self) -> None:
        """Leaves the layer alone from now on."""
        self.labels.events.set_data.disconnect(self.refresh)
        self.labels.events.paint.disconnect(self._painted)
        self.labels.events.labels_update.disconnect(self._updated)
        self.labels.events.data.disconnect(self._replaced)

    def _painted(self, event: Any) -> None:
        """Labels that were painted by hand are never given to a new object."""
        for atom in event.value:
            value = getattr(atom, 'new_value', None)
            value = atom[2] if value is None else value
            self._highest = max(self._highest, int(np.max(value, initial=0)))
        if not self._is_written:
            self._is_painted = True
            self.refresh()

    def _updated(self, _event: Any) -> None:
        # Some tools of napari tell of a stroke before they write it.
        if self._is_painted and not self._is_written:
            self._is_painted = False
            self.refresh()

    def _replaced(self, _event: Any) -> None:
        """Nor are those of an array that was put in place of the one before."""
        self._highest = max(self._highest, int(np.max(self.labels.data, initial=0)))

    def _count(self) -> dict[int, int]:
        """The area of each object, in voxels, within the box that it was written in."""
        return {label: int(np.count_nonzero(self.labels.data[box] == label)) for label, box in self._regions.items()}

    def _show(self) -> None:
        rows = self._rows
        areas = [self._areas.get(label, noted) for label, noted in zip(rows['index'], rows['area_px'], strict=True)]
        gone = [self._areas.get(label) == 0 for label in rows['index']]
        granularity = [
            self._granularity(label) if self._areas.get(label, noted_px) not in (0, noted_px) else noted
            for label, noted_px, noted in zip(rows['index'], rows['area_px'], rows['granularity'], strict=True)
        ]
        rows = rows.assign(area_px=areas, granularity=granularity)
        self.labels.features = rows[~np.array(gone, bool)].reset_index(drop=True)

    def _granularity(self, label: int) -> float:
        data = self.labels.data
        return object_granularity(data[self._regions[label]] == label, data.shape, self._axes.get(label, (-2, -1)))


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


def _row(write: ObjectWrite, shape: tuple[int, ...]) -> dict[str, object]:
    area_px, granularity = int(np.count_nonzero(write.mask)), object_granularity(write.mask, shape, write.axes)
    return {'index': write.label, 'area_px': area_px, **write.features, 'granularity': granularity}


def _union(known: tuple[slice, ...] | None, region: tuple[slice, ...]) -> tuple[slice, ...]:
    if known is None:
        return tuple(region)
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(known, region, strict=True))


def _with_features(table: pd.DataFrame) -> pd.DataFrame:
    """The table with all columns of `FEATURES`; without an `index`, napari takes the place of a row for its label."""
    if 'index' not in table:
        table = table.assign(index=range(len(table)))
    return table.reindex(columns=[*FEATURES, *(name for name in table if name not in FEATURES)])


def _joined(*tables: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    # Without the empty ones, whose columns have no type of their own.
    return pd.concat([table for table in tables if len(table)] or [tables[0]], ignore_index=True)
