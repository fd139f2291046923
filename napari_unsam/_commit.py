"""Writing a mask into a Labels layer so that napari's own undo takes it back, and its row in the features table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.ndimage import find_objects

if TYPE_CHECKING:
    from napari.layers import Labels

    from napari_unsam._controller import Proposal

FEATURES = ('index', 'area_px', 'granularity', 'score')
"""Columns of the features table; `index` is the label, which is how napari finds the row of a label."""


@dataclass(frozen=True)
class CommittedObject:
    """One object in a Labels layer.

    Attributes:
        label: Its value in the layer.
        area_px: How many voxels were written.
        granularity: Of the mask, in [0, 1].
        score: Of the mask, in [0, 1].
        region: The bounding box in the layer's array, one slice per axis.
    """

    label: int
    area_px: int
    granularity: float
    score: float
    region: tuple[slice, ...]


def commit(labels: Labels, proposal: Proposal, keep_existing: bool = True) -> CommittedObject | None:
    """Writes a mask with a label of its own, as one step of the layer's undo history.

    Args:
        labels: Layer whose array has the shape of the image.
        proposal: The mask.
        keep_existing: Leave voxels alone that hold another object already.

    Returns:
        What was written; None if no voxel was left to write to.
    """
    rows, columns = np.nonzero(proposal.mask)
    x0, y0 = proposal.box_xyxy[:2]
    indices = proposal.plane.indices(rows + y0, columns + x0)
    if keep_existing:
        free = labels.data[indices] == 0
        indices = tuple(index[free] for index in indices)
    area_px = len(indices[0])
    if area_px == 0:
        return None
    label = int(labels.data.max()) + 1
    # Assigning labels.data would wipe the undo history; this call adds to it.
    labels.data_setitem(indices, label)
    labels.selected_label = label
    return CommittedObject(
        label, area_px, proposal.granularity, proposal.score, proposal.plane.region(proposal.box_xyxy)
    )


class ObjectTable:
    """Keeps the features table of a Labels layer in step with the objects in it, through undo and redo.

    Areas follow what later commits take. Columns of others are kept, and so are rows of labels that the layer lacks.

    Args:
        labels: The layer; objects in it that have a row already are followed too.
    """

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._rows = _with_features(labels.features)
        boxes = find_objects(labels.data) if len(self._rows) else []
        present = {label: box for label, box in enumerate(boxes, start=1) if box is not None}
        self._regions = {label: present[label] for label in self._rows['index'] if label in present}
        self._areas = self._count()
        labels.events.set_data.connect(self.refresh)

    def add(self, committed: CommittedObject) -> None:
        """Adds a row, in place of one that the label had before."""
        rows = self._known_rows()
        row = (committed.label, committed.area_px, committed.granularity, committed.score)
        self._rows = _joined(rows[rows['index'] != committed.label], pd.DataFrame([row], columns=list(FEATURES)))
        self._regions[committed.label] = committed.region
        self._areas = self._count()
        self._show()

    def refresh(self) -> None:
        """Shows the rows of the objects that are in the layer now; undone ones are kept in mind for a redo."""
        areas = self._count()
        if areas != self._areas:
            self._areas = areas
            self._rows = self._known_rows()
            self._show()

    def close(self) -> None:
        """Leaves the layer alone from now on."""
        self._labels.events.set_data.disconnect(self.refresh)

    def _count(self) -> dict[int, int]:
        """The area of each object, in voxels, within the box that it was committed in."""
        return {label: int(np.count_nonzero(self._labels.data[box] == label)) for label, box in self._regions.items()}

    def _known_rows(self) -> pd.DataFrame:
        """The rows of the layer with all that the user has put there, then those of undone objects."""
        shown = _with_features(self._labels.features)
        return _joined(shown, self._rows[~self._rows['index'].isin(shown['index'])])

    def _show(self) -> None:
        rows = self._rows
        areas = [self._areas.get(label, noted) for label, noted in zip(rows['index'], rows['area_px'], strict=True)]
        gone = [self._areas.get(label) == 0 for label in rows['index']]
        self._labels.features = rows.assign(area_px=areas)[~np.array(gone, bool)].reset_index(drop=True)


def _with_features(table: pd.DataFrame) -> pd.DataFrame:
    """The table with all columns of `FEATURES`; without an `index`, napari takes the place of a row for its label."""
    if 'index' not in table:
        table = table.assign(index=range(len(table)))
    return table.reindex(columns=[*FEATURES, *(name for name in table if name not in FEATURES)])


def _joined(*tables: pd.DataFrame) -> pd.DataFrame:
    # Without the empty ones, whose columns have no type of their own.
    return pd.concat([table for table in tables if len(table)] or [tables[0]], ignore_index=True)
