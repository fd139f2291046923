"""Writing a mask into a Labels layer so that napari's own undo takes it back, and its row in the features table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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

    Rows that were there before, for example from an earlier session, are kept as they are.
    """

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._committed: dict[int, CommittedObject] = {}
        table = labels.features
        self._earlier = table[list(FEATURES)].to_numpy().tolist() if set(FEATURES) <= set(table.columns) else []
        labels.events.set_data.connect(self.refresh)

    def add(self, committed: CommittedObject) -> None:
        """Adds a row."""
        self._committed[committed.label] = committed
        self.refresh()

    def refresh(self) -> None:
        """Shows the rows of the objects that are in the layer now; undone ones are kept in mind for a redo."""
        rows = [row for row in self._earlier if row[0] not in self._committed]
        rows += [
            (committed.label, committed.area_px, committed.granularity, committed.score)
            for committed in self._committed.values()
            if (self._labels.data[committed.region] == committed.label).any()
        ]
        columns = {name: np.array([row[i] for row in rows]) for i, name in enumerate(FEATURES)}
        columns |= {name: columns[name].astype(np.int64) for name in ('index', 'area_px')}
        if columns['index'].tolist() != self._labels.features.get('index', columns['index'][:0]).tolist():
            self._labels.features = columns

    def close(self) -> None:
        """Leaves the layer alone from now on."""
        self._labels.events.set_data.disconnect(self.refresh)
