"""The layers of committed objects of the images of a session, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakSet

import numpy as np
from napari.layers import Labels

from napari_unsam.model.label_boxes import object_boxes
from napari_unsam.model.pixel_changes import PixelChange
from napari_unsam.model.plane import view_of_layer
from napari_unsam.viewer.layers import OBJECTS_NAME, SOURCE_KEY, belongs_to, holds_objects, object_colours
from napari_unsam.viewer.object_table import ObjectTable, WriteObjects
from napari_unsam.viewer.object_write import MAX_LABEL, ObjectWrite
from napari_unsam.viewer.port import SessionPort
from napari_unsam.viewer.workarounds import clear_layer_history, insert_quietly
from unsam_mm.errors import UnSAMError

if TYPE_CHECKING:
    from napari.layers import Image, Layer

_OPEN: WeakSet[Objects] = WeakSet()  # of all sessions: several may write into one layer


class Objects:
    """Finds, makes, writes and restores the layers of objects.

    Args:
        session: The session.
        on_changed: Called after objects were written, and after a write was undone.
    """

    def __init__(self, session: SessionPort, on_changed: Callable[[], None]) -> None:
        self._session, self._on_changed = session, on_changed
        self._tables: dict[Labels, ObjectTable] = {}
        self._undrawn: Labels | None = None  # a layer that was made ahead and is not visible yet
        _OPEN.add(self)

    @property
    def current(self) -> Labels | None:
        """The layer of objects of the chosen image; None before it is made."""
        image, layers = self._session.image, self._session.viewer.layers
        if image is None:
            return None
        shape = self._session.frame.shape
        found = (layer for layer in layers if isinstance(layer, Labels) and belongs_to(layer, image))
        return next((layer for layer in found if layer.data.shape == shape), None)

    def prepare(self) -> bool:
        """Makes or draws the layer ahead of the first commit, one step per call; returns False if nothing was left."""
        if self.current not in self._tables:
            self._ensure(is_drawn=False)
            return True
        return self._draw()

    def add_table(self) -> bool:
        """Makes the table of one layer of objects that has none; returns False if all have one."""
        for layer in self._session.viewer.layers:
            if holds_objects(layer) and layer not in self._tables:
                self._add_table(layer)
                return True
        return False

    def ensure(self) -> Labels:
        """The layer of objects of the chosen image, made if there is none.

        Raises:
            UnSAMError: If no image is chosen, the memory is too small, or the image has too many axes.
        """
        labels = self._ensure(is_drawn=True)
        self._draw()
        return labels

    def table(self, layer: Labels | None = None) -> ObjectTable:
        """The table of a layer, by default that of the chosen image; a deleted layer is put back into the viewer.

        Raises:
            UnSAMError: If the image of that layer was removed, or no image is chosen.
        """
        layer = self.ensure() if layer is None else layer
        if layer not in self._tables:
            if layer not in self._session.viewer.layers:
                image = self._image_of(layer)
                if image is None:
                    raise UnSAMError('Nothing was written: its image was deleted.')
                self._insert(layer, image)
            self._add_table(layer)
        return self._tables[layer]

    def write_action(self, name: str, writes: Sequence[ObjectWrite], layer: Labels | None = None) -> WriteObjects:
        """Makes the action that writes objects. Each do and undo puts a deleted layer back into the viewer.

        Args:
            name: What the user did.
            writes: The objects.
            layer: The layer to write to; by default that of the chosen image.

        Raises:
            UnSAMError: If the image of that layer was removed, or the layer's dtype is too small for a label.
        """
        table = self.table(layer)
        highest, dtype = max((write.label for write in writes), default=0), np.dtype(table.labels.data.dtype)
        if highest > np.iinfo(dtype).max:
            fix = 'convert it to uint32' if highest <= MAX_LABEL else 'give its objects lower labels'
            raise UnSAMError(f'"{table.labels.name}" holds labels of type {dtype}, too small for {highest}; {fix}.')
        return WriteObjects(name, table, writes, self._on_changed, self._restoring(table))

    def unused(self, image: Image) -> list[Labels]:
        """The layers of an image that never had an object."""
        known = [labels for labels, table in self._tables.items() if table.highest == 0 and belongs_to(labels, image)]
        return [labels for labels in known if not object_boxes(labels.data)]  # scripts may write without an event

    def removed(self, layer: Layer) -> bool:
        """Closes the table of a layer that was removed from the viewer; returns False if it had none."""
        table = self._tables.pop(layer, None)
        if table is not None:
            self._detach(table)
            self._session.inputs.unbind(layer)
        return table is not None

    def close(self) -> None:
        """Closes all tables; the layers stay."""
        for table in self._tables.values():
            self._detach(table)
        self._tables.clear()

    def _ensure(self, is_drawn: bool) -> Labels:
        labels = self.current
        is_new = labels is None
        if is_new:
            labels = self._make(is_drawn)
            self._undrawn = None if is_drawn else labels
        if labels not in self._tables:
            self._add_table(labels, is_empty=is_new)
        return labels

    def _make(self, is_drawn: bool) -> Labels:
        frame = self._session.frame
        frame.check_axes()
        image = frame.image
        try:
            array = np.zeros(frame.shape, np.uint32)
        except MemoryError:
            size_gb = 4 * np.prod(frame.shape, dtype=float) / 1e9
            raise UnSAMError(
                f'The objects of "{image.name}" would take {size_gb:.0f} GB, more than the memory available; crop the image.'
            ) from None
        labels = Labels(
            array,
            name=OBJECTS_NAME,
            opacity=0.6,
            visible=is_drawn,
            colormap=object_colours(),
            metadata={SOURCE_KEY: image.unique_id},
            **frame.transform(),
        )
        self._insert(labels, image)
        return labels

    def _insert(self, labels: Labels, image: Image) -> None:
        """Adds a layer just above its image; on top of all layers if the image was removed."""
        layers = self._session.viewer.layers
        insert_quietly(self._session.viewer, labels, layers.index(image) + 1 if image in layers else None)

    def _draw(self) -> bool:
        """Shows the layer that was made ahead; returns False if there is none."""
        labels, self._undrawn = self._undrawn, None
        if labels is not None:
            labels.visible = True
        return labels is not None

    def _image_of(self, layer: Labels) -> Image | None:
        return next((image for image in self._session.viewer.layers if belongs_to(layer, image)), None)

    def _add_table(self, labels: Labels, is_empty: bool = False) -> None:
        view = partial(view_of_layer, self._session.viewer, labels)
        self._attach(ObjectTable(labels, is_empty, view, self._painted))

    def _attach(self, table: ObjectTable) -> None:
        self._tables[table.labels] = table
        self._session.inputs.bind(table.labels)
        self._replace_undo(table.labels)

    def _replace_undo(self, labels: Labels) -> None:
        """Redirects the layer's undo and redo to the session's history; napari's own contains brush strokes only."""
        controller, after_stroke = self._session.controller, self._session.inputs.unless_drawing
        labels.undo, labels.redo = after_stroke(controller.undo), after_stroke(controller.redo)

    def _detach(self, table: ObjectTable) -> None:
        table.close()
        labels = table.labels
        others = [one for one in _OPEN if one is not self and labels in one._tables]
        if others:
            others[0]._replace_undo(labels)
        else:
            del labels.undo, labels.redo
        clear_layer_history(labels)

    def _painted(self, table: ObjectTable, changes: Sequence[PixelChange]) -> None:
        labels = {int(label) for change in changes for label in np.unique(change.new.unpacked())}
        name = 'erase by hand' if labels == {0} else f'paint label {max(labels, default=0)}'
        self._session.history.add(WriteObjects(name, table, (), self._on_changed, self._restoring(table), changes))

    def _restoring(self, table: ObjectTable) -> Callable[[], None]:
        return partial(self._restore, table, self._image_of(table.labels))

    def _restore(self, table: ObjectTable, image: Image | None) -> None:
        layers = self._session.viewer.layers
        if table.labels not in layers and image in layers:
            self._insert(table.labels, image)
            table.open()
            self._attach(table)
