"""The committed objects of the images of a session: their layers, their tables and the writing into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakSet

import numpy as np

from napari_unsam.model.label_boxes import object_boxes
from napari_unsam.model.pixel_changes import PixelChange, Region
from napari_unsam.model.plane import view_of_layer
from napari_unsam.viewer.commit import MAX_LABEL, ObjectTable, ObjectWrite, WriteObjects
from napari_unsam.viewer.layers import ObjectLayers, holds_objects, is_of
from unsam_mm.errors import UnSAMError

if TYPE_CHECKING:
    from napari.layers import Image, Labels, Layer

    from napari_unsam.viewer.port import SessionPort

_OPEN: WeakSet[Objects] = WeakSet()  # of all sessions, as several may be at work on one layer


class Objects:
    """Finds, makes, writes and brings back the layers of objects.

    Args:
        session: Whose objects.
        on_written: Called after objects were written, and after that was undone.
    """

    def __init__(self, session: SessionPort, on_written: Callable[[], None]) -> None:
        self._session, self._on_written = session, on_written
        self._layers = ObjectLayers(session.viewer)
        self._tables: dict[Labels, ObjectTable] = {}
        self._undrawn: Labels | None = None
        _OPEN.add(self)

    def of(self, image: Image | None) -> Labels | None:
        """The layer of objects of the image that is chosen; None before it is made."""
        return None if image is None else self._layers.find(image, self._session.frame.shape)

    @property
    def are_followed(self) -> bool:
        """Whether the image that is chosen has a layer of objects with a table."""
        return self._session.objects in self._tables

    def prepare(self) -> bool:
        """Prepares the first commit by one step: makes the layer, or draws it; returns whether a step was left."""
        if not self.are_followed:
            self._ensure(is_drawn=False)
            return True
        return self._draw()

    def follow_next(self) -> bool:
        """Follows one of the layers of objects in the viewer that are not followed yet; returns whether one was left."""
        for layer in self._session.viewer.layers:
            if holds_objects(layer) and layer not in self._tables:
                self._follow(self._table_for(layer))
                return True
        return False

    def ensure(self) -> Labels:
        """The layer of objects of the image that is chosen, made if there is none."""
        labels = self._ensure(is_drawn=True)
        self._draw()
        return labels

    def _ensure(self, is_drawn: bool) -> Labels:
        labels = self._session.objects
        is_new = labels is None
        if is_new:
            labels = self._layers.make(self._session.frame, is_drawn)
            self._undrawn = None if is_drawn else labels
        if labels not in self._tables:
            self._follow(self._table_for(labels, is_empty=is_new))
        return labels

    def _draw(self) -> bool:
        labels, self._undrawn = self._undrawn, None
        if labels is not None:
            labels.visible = True
        return labels is not None

    def next_label(self, layer: Labels | None = None) -> int:
        """A label that no object of the image has, or had in this session."""
        return self._table(layer).highest + 1

    def region_of(self, label: int) -> Region | None:
        """The bounding box of an object of the image that is chosen; None if it is not there."""
        labels = self._session.objects
        return None if labels is None else self._table(labels).region_of(label)

    def writing(self, name: str, writes: Sequence[ObjectWrite], layer: Labels | None = None) -> WriteObjects:
        """The action that writes objects, not done yet; done or undone, it brings a layer back that was deleted.

        Args:
            name: What the user did.
            writes: What to write.
            layer: Where to, in the viewer again if it left; by default the layer of the image that is chosen.

        Raises:
            UnSAMError: If the image of that layer was removed, or its type is too small for a label.
        """
        table = self._table(layer)
        highest, dtype = max((write.label for write in writes), default=0), np.dtype(table.labels.data.dtype)
        if highest > np.iinfo(dtype).max:
            fix = 'convert it to uint32' if highest <= MAX_LABEL else 'give its objects lower labels'
            raise UnSAMError(f'"{table.labels.name}" holds labels of type {dtype}, too small for {highest}; {fix}.')
        return WriteObjects(name, table, writes, self._on_written, self._bringing_back(table))

    def _table(self, layer: Labels | None) -> ObjectTable:
        layer = self.ensure() if layer is None else layer
        if layer not in self._tables and layer in self._session.viewer.layers:
            self._follow(self._table_for(layer))
        elif layer not in self._tables:
            image = self._image_of(layer)
            if image is None:
                raise UnSAMError('Nothing was written: its image was deleted.')
            self._layers.add(layer, image)
            self._follow(self._table_for(layer))
        return self._tables[layer]

    def _image_of(self, layer: Labels) -> Image | None:
        return next((image for image in self._session.viewer.layers if is_of(layer, image)), None)

    def unused(self, image: Image) -> list[Labels]:
        """The layers of an image, in the viewer or not, that never held an object."""
        known = [labels for labels, table in self._tables.items() if table.highest == 0 and is_of(labels, image)]
        return [labels for labels in known if not object_boxes(labels.data)]  # others may have written unnoticed

    def removed(self, layer: Layer) -> bool:
        """Follows a layer no longer that has left the viewer; returns whether it was one of objects."""
        table = self._tables.pop(layer, None)
        if table is not None:
            self._leave(table)
            self._session.unbind(layer)
        return table is not None

    def close(self) -> None:
        """Leaves all layers as they are."""
        for table in self._tables.values():
            self._leave(table)
        self._tables.clear()

    def _table_for(self, labels: Labels, is_empty: bool = False) -> ObjectTable:
        return ObjectTable(labels, is_empty, partial(view_of_layer, self._session.viewer, labels), self._painted)

    def _painted(self, table: ObjectTable, changes: Sequence[PixelChange]) -> None:
        self._session.history.add(WriteObjects.painted(table, changes, self._on_written, self._bringing_back(table)))

    def _bringing_back(self, table: ObjectTable) -> Callable[[], None]:
        return partial(self._bring_back, self._image_of(table.labels), table)

    def _leave(self, table: ObjectTable) -> None:
        table.close()
        labels = table.labels
        others = [one for one in _OPEN if one is not self and labels in one._tables]
        if others:
            others[0]._take_undo(labels)
        else:
            del labels.undo, labels.redo
        # napari's own history knows of no commit, and would put back what was there before one. A lock wipes it.
        mode, editable = labels.mode, labels.editable
        labels.editable = not editable
        labels.editable = editable
        labels.mode = mode

    def _follow(self, table: ObjectTable) -> None:
        self._tables[table.labels] = table
        self._session.bind(table.labels)
        self._take_undo(table.labels)

    def _take_undo(self, labels: Labels) -> None:
        # So that Ctrl-Z, however it is bound, and U go through one history: napari's own holds strokes of the brush alone.
        controller, after_stroke = self._session.controller, self._session.unless_drawing
        labels.undo, labels.redo = after_stroke(controller.undo), after_stroke(controller.redo)

    def _bring_back(self, image: Image, table: ObjectTable) -> None:
        layers = self._session.viewer.layers
        if table.labels not in layers and image in layers:
            self._layers.add(table.labels, image)
            table.open()
            self._follow(table)
