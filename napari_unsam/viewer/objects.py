"""The committed objects of the images of a session: their layers, their tables and the writing into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakSet

import numpy as np
from napari.layers import Labels

from napari_unsam.model.frame import Frame
from napari_unsam.model.label_boxes import object_boxes
from napari_unsam.model.pixel_changes import PixelChange
from napari_unsam.model.plane import view_of_layer
from napari_unsam.viewer.commit import MAX_LABEL, ObjectTable, ObjectWrite, WriteObjects, painting_name
from napari_unsam.viewer.layers import OBJECTS_NAME, SOURCE_KEY, holds_objects, is_of, object_colours
from napari_unsam.viewer.port import SessionPort
from napari_unsam.viewer.workarounds import clear_layer_history, insert_quietly
from unsam_mm.errors import UnSAMError

if TYPE_CHECKING:
    from napari.layers import Image, Layer

_OPEN: WeakSet[Objects] = WeakSet()  # of all sessions, as several may be at work on one layer


class Objects:
    """Finds, makes, writes and brings back the layers of objects.

    Args:
        session: Whose objects.
        on_written: Called after objects were written, and after that was undone.
    """

    def __init__(self, session: SessionPort, on_written: Callable[[], None]) -> None:
        self._session, self._on_written = session, on_written
        self._tables: dict[Labels, ObjectTable] = {}
        self._undrawn: Labels | None = None
        _OPEN.add(self)

    @property
    def current(self) -> Labels | None:
        """The layer of objects of the chosen image, whatever its name; None before it is made."""
        image, layers = self._session.image, self._session.viewer.layers
        if image is None:
            return None
        shape = self._session.frame.shape
        found = (layer for layer in layers if isinstance(layer, Labels) and is_of(layer, image))
        return next((layer for layer in found if layer.data.shape == shape), None)

    def prepare(self) -> bool:
        """Prepares the first commit by one step: makes the layer, or draws it; returns whether a step was left."""
        if self.current not in self._tables:
            self._ensure(is_drawn=False)
            return True
        return self._draw()

    def follow_next(self) -> bool:
        """Follows one of the layers of objects in the viewer that are not followed yet; returns whether one was left."""
        for layer in self._session.viewer.layers:
            if holds_objects(layer) and layer not in self._tables:
                self._follow(layer)
                return True
        return False

    def ensure(self) -> Labels:
        """The layer of objects of the chosen image, made if there is none.

        Raises:
            UnSAMError: If no image is chosen, there is not memory enough, or the image has too many axes.
        """
        labels = self._ensure(is_drawn=True)
        self._draw()
        return labels

    def table(self, layer: Labels | None = None) -> ObjectTable:
        """The table of a layer, in the viewer again if it left; by default of the layer of the chosen image.

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
            self._follow(layer)
        return self._tables[layer]

    def writing(self, name: str, writes: Sequence[ObjectWrite], layer: Labels | None = None) -> WriteObjects:
        """The action that writes objects, not done yet; done or undone, it brings a layer back that was deleted.

        Args:
            name: What the user did.
            writes: What to write.
            layer: Where to, in the viewer again if it left; by default the layer of the image that is chosen.

        Raises:
            UnSAMError: If the image of that layer was removed, or its type is too small for a label.
        """
        table = self.table(layer)
        highest, dtype = max((write.label for write in writes), default=0), np.dtype(table.labels.data.dtype)
        if highest > np.iinfo(dtype).max:
            fix = 'convert it to uint32' if highest <= MAX_LABEL else 'give its objects lower labels'
            raise UnSAMError(f'"{table.labels.name}" holds labels of type {dtype}, too small for {highest}; {fix}.')
        return WriteObjects(name, table, writes, self._on_written, self._bringing_back(table))

    def unused(self, image: Image) -> list[Labels]:
        """The layers of an image, in the viewer or not, that never held an object."""
        known = [labels for labels, table in self._tables.items() if table.highest == 0 and is_of(labels, image)]
        return [labels for labels in known if not object_boxes(labels.data)]  # others may have written unnoticed

    def removed(self, layer: Layer) -> bool:
        """Follows a layer no longer that has left the viewer; returns whether it was one of objects."""
        table = self._tables.pop(layer, None)
        if table is not None:
            self._leave(table)
            self._session.inputs.unbind(layer)
        return table is not None

    def close(self) -> None:
        """Leaves all layers as they are."""
        for table in self._tables.values():
            self._leave(table)
        self._tables.clear()

    def _ensure(self, is_drawn: bool) -> Labels:
        labels = self.current
        is_new = labels is None
        if is_new:
            labels = self._make(self._session.frame, is_drawn)
            self._undrawn = None if is_drawn else labels
        if labels not in self._tables:
            self._follow(labels, is_empty=is_new)
        return labels

    def _make(self, frame: Frame, is_drawn: bool) -> Labels:
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
        """Puts a layer just above its image, on top of all if that was removed."""
        layers = self._session.viewer.layers
        insert_quietly(self._session.viewer, labels, layers.index(image) + 1 if image in layers else None)

    def _draw(self) -> bool:
        labels, self._undrawn = self._undrawn, None
        if labels is not None:
            labels.visible = True
        return labels is not None

    def _image_of(self, layer: Labels) -> Image | None:
        return next((image for image in self._session.viewer.layers if is_of(layer, image)), None)

    def _follow(self, labels: Labels, is_empty: bool = False) -> None:
        view = partial(view_of_layer, self._session.viewer, labels)
        self._take(ObjectTable(labels, is_empty, view, self._painted))

    def _take(self, table: ObjectTable) -> None:
        self._tables[table.labels] = table
        self._session.inputs.bind(table.labels)
        self._replace_undo(table.labels)

    def _replace_undo(self, labels: Labels) -> None:
        # So that Ctrl-Z, however it is bound, and U go through one history: napari's own holds strokes of the brush alone.
        controller, after_stroke = self._session.controller, self._session.inputs.unless_drawing
        labels.undo, labels.redo = after_stroke(controller.undo), after_stroke(controller.redo)

    def _leave(self, table: ObjectTable) -> None:
        table.close()
        labels = table.labels
        others = [one for one in _OPEN if one is not self and labels in one._tables]
        if others:
            others[0]._replace_undo(labels)
        else:
            del labels.undo, labels.redo
        clear_layer_history(labels)

    def _painted(self, table: ObjectTable, changes: Sequence[PixelChange]) -> None:
        told = self._on_written, self._bringing_back(table)
        self._session.history.add(WriteObjects(painting_name(changes), table, (), *told, changes))

    def _bringing_back(self, table: ObjectTable) -> Callable[[], None]:
        return partial(self._bring_back, self._image_of(table.labels), table)

    def _bring_back(self, image: Image | None, table: ObjectTable) -> None:
        layers = self._session.viewer.layers
        if table.labels not in layers and image in layers:
            self._insert(table.labels, image)
            table.open()
            self._take(table)
