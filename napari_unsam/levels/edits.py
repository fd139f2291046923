"""Split and merge of the object under the cursor, and the review of objects; without Qt."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from psygnal import Signal

from napari_unsam.keys import TO_UNDO
from napari_unsam.levels.candidate_table import CandidateTable
from napari_unsam.levels.preview import ReviewOutline
from napari_unsam.levels.review import REVIEWED, ReviewQueue, accepted
from napari_unsam.levels.selector import RegionSelector, current_object
from napari_unsam.levels.split_merge import closest_region, larger_region, merge_writes, parts_of, split_writes
from napari_unsam.model.history import Change
from napari_unsam.model.text import counted
from napari_unsam.viewer.object_write import ObjectWrite
from napari_unsam.viewer.port import SessionPort

if TYPE_CHECKING:
    from napari.layers import Labels

_NO_OBJECT = 'No object is under the cursor or selected on this slice.'
_NOT_STARTED = 'Press Next to start with the least certain object.'
_VISIBLE_PX = (60, 500)  # on screen; the camera zooms to an object that is smaller or larger
_ZOOMED_PX = 150


class ObjectEdits:
    """Splits and merges objects along the tree, each as one action."""

    def __init__(self, selector: RegionSelector) -> None:
        self._selector, self._session = selector, selector.session

    def split(self) -> None:
        """Splits the object under the cursor into its parts."""
        self._selector.with_table(partial(self._edit, self._split))

    def merge(self) -> None:
        """Merges the object under the cursor, and other objects in the next larger region, into that region."""
        self._selector.with_table(partial(self._edit, self._merge))

    def _edit(self, edit: Callable[[CandidateTable, int, np.ndarray], None], table: CandidateTable) -> None:
        found = current_object(self._session)
        if found is None:
            self._session.controller.show_problem(_NO_OBJECT)
        else:
            edit(table, *found)

    def _split(self, table: CandidateTable, label: int, labels: np.ndarray) -> None:
        session, controller = self._session, self._session.controller
        source, node = closest_region(table.trees, labels == label)
        tree = table.trees[source]
        parts = parts_of(tree, node)
        if len(parts) == 0:
            controller.show_problem(f'Object {label} has no parts.')
            return
        writes = split_writes(controller.target.plane, labels, label, tree, parts, session.next_label())
        session.write_objects(f'split object {label}', writes)
        # Selects the last part; no part is written if all pixels of the parts belong to other objects.
        session.objects.selected_label = max((write.label for write in writes), default=label)
        controller.show_info(f'Object {label} split into {sum(write.label > 0 for write in writes)}. {TO_UNDO}')

    def _merge(self, table: CandidateTable, label: int, labels: np.ndarray) -> None:
        controller, tree = self._session.controller, table.hierarchy
        _, node = closest_region((tree,), labels == label)
        whole = larger_region(tree, node)
        if whole is None:
            controller.show_problem(f'There is no larger object to merge object {label} into.')
            return
        writes, others = merge_writes(controller.target.plane, labels, label, tree, whole)
        self._session.write_objects(f'merge object {label}', writes)
        partner = counted(len(others), 'object') if others else 'its surroundings'
        controller.show_info(f'Object {label} merged with {partner}. {TO_UNDO}')


class Reviewing:
    """Goes through the objects of the image, the least certain first; an outline marks the current one.

    Attributes:
        changed: Emitted when the queue may have changed.
        outline: Outline of the current object; hidden after each action, undo and redo.
    """

    changed = Signal()

    def __init__(self, session: SessionPort) -> None:
        self._session = session
        self._current: int | None = None
        self.outline = ReviewOutline(session)
        self._connected: Labels | None = None
        session.image_changed.connect(self._restart)
        session.history.changed.connect(self._history_changed)

    def close(self) -> None:
        """Disconnects from the session."""
        self._session.image_changed.disconnect(self._restart)
        self._session.history.changed.disconnect(self._history_changed)
        self._connect(None)
        self.outline.remove()

    @property
    def queue(self) -> ReviewQueue:
        """The objects of the image, and the one being reviewed."""
        objects = self._session.objects
        if objects is None:
            return ReviewQueue(())
        return ReviewQueue.of(objects.features, self._current)

    def next(self) -> None:
        """Shows the next object to review."""
        label = self.queue.next()
        if label is None:
            self.outline.hide()
            self._session.controller.show_info('All objects were reviewed.' if self.queue.done else 'No objects yet.')
        else:
            self._current = label
            self._go_to(label)
        self.changed.emit()

    def accept(self) -> None:
        """Marks the current object as correct, and shows the next one."""
        label = self.queue.current
        if label is None:
            self._session.controller.show_problem(_NOT_STARTED)
            return
        put = partial(_mark_reviewed, self._session.objects, label)
        self._session.history.do(Change(f'accept object {label}', put, False, True))
        self.next()

    def reject(self) -> None:
        """Deletes the current object, as one action, and shows the next one."""
        label = self.queue.current
        if label is None:
            self._session.controller.show_problem(_NOT_STARTED)
            return
        after = self.queue.next()
        box = self._session.box_of(label)
        if box is not None:
            mask = np.asarray(self._session.objects.data[box]) == label
            self._session.write_objects(f'reject object {label}', [ObjectWrite(box, mask, 0)])
        self._current = None
        self.outline.hide()
        if after is not None and after != label:
            self._current = after
            self._go_to(after)
        self.changed.emit()

    def _restart(self) -> None:
        self._current = None
        self.outline.remove()
        self.changed.emit()

    def _history_changed(self) -> None:
        self.outline.hide()
        self.changed.emit()

    def _connect(self, objects: Labels | None) -> None:
        """Connects to the events of one layer of objects, and disconnects from those of the previous one."""
        if objects is self._connected:
            return
        for layer, act in ((self._connected, 'disconnect'), (objects, 'connect')):
            if layer is not None:
                getattr(layer.events.features, act)(self._table_changed)
                getattr(self._session.viewer.layers.events.removed, act)(self._table_changed)
        self._connected = objects

    def _table_changed(self, _event: Any = None) -> None:
        if self._current is not None and self.queue.current is None:
            label, self._current = self._current, None
            self.outline.hide()
            self._session.controller.show_info(f'Object {label} was removed; press Next to continue.')
        self.changed.emit()

    def _go_to(self, label: int) -> None:
        """Moves the sliders to the middle plane of an object and the camera to its centre."""
        objects, viewer = self._session.objects, self._session.viewer
        self._connect(objects)
        box = self._session.box_of(label)
        if box is None:
            return
        offset = viewer.dims.ndim - objects.ndim
        middle = np.array([(part.start + part.stop - 1) / 2 for part in box])
        hidden = [axis - offset for axis in viewer.dims.not_displayed if axis >= offset]
        middle[hidden] = np.round(middle[hidden])
        to_world = self._session.frame.to_world
        world = to_world(middle)
        for axis in hidden:
            viewer.dims.set_point(axis + offset, world[axis])
        shown = [axis - offset for axis in viewer.dims.displayed if axis >= offset]
        viewer.scene.camera.center = (*[0.0] * (3 - len(shown)), *world[shown])
        corners = [to_world([getattr(part, end) for part in box]) for end in ('start', 'stop')]
        extent = float(np.abs(np.subtract(*corners))[shown].max())
        if not _VISIBLE_PX[0] <= extent * viewer.scene.camera.zoom <= _VISIBLE_PX[1]:
            viewer.scene.camera.zoom = _ZOOMED_PX / extent
        if len(shown) == 2:
            self.outline.show(objects, label, box, shown)
        objects.selected_label = label
        self._session.controller.show_info(f'Object {label}: right or wrong?')


def _mark_reviewed(objects: Labels, label: int, value: bool) -> None:
    rows: Any = objects.features
    objects.features = rows.assign(**{REVIEWED: np.where(rows['index'] == label, value, accepted(rows))})
