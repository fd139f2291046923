"""The images of a folder in the viewer, one after the other, with their objects; without Qt."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
from napari.layers import Labels
from psygnal import Signal

from napari_unsam.engine.inference import ProgressCallback
from napari_unsam.folders.results import ImageList, Results
from napari_unsam.io.objects import LabelledObjects, known_columns, objects_of_layer, with_progress
from napari_unsam.model.frame import full_resolution
from napari_unsam.model.label_boxes import Slices, blocks, object_boxes
from napari_unsam.viewer.changes import LayerChanges
from napari_unsam.viewer.layers import belongs_to, holds_objects
from napari_unsam.viewer.object_write import ObjectWrite, limited_to_free, with_parent_renumbered
from napari_unsam.viewer.workarounds import remove_layers
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.image_io.reader import ImagePixels, read_pixels

if TYPE_CHECKING:
    from napari.layers import Image

    from napari_unsam.viewer.session import ViewerSession

_CHANNELS = 'c'


class ImageSeries:
    """Opens the images of a list, one at a time.

    Args:
        session: The session that shows the images and their objects.
        images: The images.
        results: The files of their objects.

    Attributes:
        images: The images.
        position: Position of the open image in the list; None before the first.
        requested: Position of the image that was requested last, even if it could not be opened; None before the first
            request.
        changed: Emitted when an image was opened, saved, or could not be opened.
    """

    changed = Signal()

    def __init__(self, session: ViewerSession, images: ImageList, results: Results) -> None:
        self._session, self._results = session, results
        self.images = images
        self.position: int | None = None
        self.requested: int | None = None
        self._layer: Image | None = None
        self._changes = LayerChanges(session.viewer)
        # Number of changes and fingerprint of each layer, so that unchanged layers are not read again.
        self._known: WeakKeyDictionary[Labels, tuple[Hashable, int]] = WeakKeyDictionary()
        # Fingerprints of the objects as last opened or saved; None if they were changed while they were saved.
        self._saved: tuple[int, ...] | None = ()
        self._done = {name for name in images.names if results.has(name)}
        self._broken: set[str] = set()
        self._unopened: set[str] = set()  # images with results that could not be opened

    @property
    def name(self) -> str | None:
        """Name of the open image; None if there is none."""
        return None if self.position is None else self.images.names[self.position]

    @property
    def is_dirty(self) -> bool:
        """True if the objects of the open image differ from those in its files, or some are pending."""
        is_open = self.position is not None and self._layer in self._session.viewer.layers
        return is_open and (self._has_pending or self._fingerprints() != self._saved)

    def is_done(self, position: int) -> bool:
        """True if the objects of an image are saved."""
        return self.images.names[position] in self._done

    def is_broken(self, position: int) -> bool:
        """True if an image could not be opened."""
        return self.images.names[position] in self._broken

    def first_unfinished(self) -> int:
        """Position of the first image that is not done; 0 if all are."""
        todo = (position for position in range(len(self.images.names)) if not self.is_done(position))
        return next(todo, 0)

    def open(self, position: int) -> None:
        """Reads an image in the background and shows it with its saved objects, in place of the open one.

        Unsaved changes are lost: ask the user first if `is_dirty`. If the image is open already, it stays as it is.
        """
        name = self.images.names[position]
        self.requested = position
        if position == self.position and self._layer in self._session.viewer.layers:
            self.changed.emit()
            return
        before = self._fingerprints()

        def read(opened: tuple[ImagePixels, ReadMasks | None]) -> None:
            if self._fingerprints() == before:
                self._show(position, *opened)
            else:
                self._session.controller.show_problem(f'{self.name} was changed in the meantime and stays open.')

        def failed(_reason: str) -> None:
            self._broken.add(name)
            self.changed.emit()

        self._session.controller.run(f'Opening {name}', partial(self._read, name), read, failed, is_task=True)

    def save(self, then: Callable[[], None] = lambda: None) -> None:
        """Writes the objects of the open image as a label TIFF and a table, in the background.

        Pending objects are committed first; the current mask is not.

        Args:
            then: Called after the objects were written.
        """
        name = self.name
        try:
            labels = self._layer_to_save()
        except UnSAMError as error:
            self._session.controller.show_problem(str(error))
            return
        objects, before = self._objects(labels), self._changes.count(labels)
        counts = {layer: self._changes.count(layer) for layer in self._layers()}

        def write(progress: ProgressCallback) -> dict[Labels, tuple[Hashable, int]]:
            written = {layer: (number, fingerprint(layer)) for layer, number in counts.items()}
            self._results.write(name, objects, progress=progress)
            return written

        def saved(written: dict[Labels, tuple[Hashable, int]]) -> None:
            self._done.add(name)
            if self.name == name:
                self._known.update(written)
                value = tuple(value for _, value in written.values() if value)
                # The files may contain a part of a change that was made meanwhile, even if it was undone.
                is_unchanged = self._changes.count(labels) == before and self._fingerprints() == value
                self._saved = value if is_unchanged else None
                if is_unchanged:
                    self._emit_exported(labels)
            self._session.controller.show_info(f'Objects of {name} saved in {self._results.folder}.')
            self.changed.emit()
            then()

        self._session.controller.run(f'Saving {name}', write, saved, is_task=True)

    def close(self) -> None:
        """Removes the open image and its objects from the viewer; unsaved changes are lost."""
        remove_layers(self._session.viewer, [*self._layers(), self._layer])
        self.position, self._layer = None, None

    def _layer_to_save(self) -> Labels | None:
        """The layer of objects of the open image; None if it has none.

        Raises:
            UnSAMError: If no image is open, its files contain other objects, or it has objects in several layers.
        """
        name = self.name
        if name is None or self._layer not in self._session.viewer.layers:
            raise UnSAMError('No image of the list is open; open one first.')
        if self._has_pending:
            self._session.pending.commit(include_current=False)
        if name in self._unopened and self._results.has(name):
            raise UnSAMError(
                f'{self._results.path(name, "tiff")} holds other objects, which could not be opened; move it away to save '
                'these.'
            )
        layers = self._layers()
        filled = layers if len(layers) == 1 else [layer for layer in layers if self._fingerprint(layer)]
        if len(filled) > 1:
            names = ' and '.join(f'"{layer.name}"' for layer in filled)
            raise UnSAMError(
                f'{name} has objects in {names}, and its results hold those of one layer: export the others, delete their '
                'layers and save again.'
            )
        return next(iter(filled or layers), None)

    def _read(self, name: str, progress: ProgressCallback) -> tuple[ImagePixels, ReadMasks | None]:
        """An image and its saved objects; None if it has none."""
        progress(0.0, f'Reading {name}')
        pixels = read_pixels(self.images.path(name))
        return pixels, read_masks(self._results.read(name), progress) if self._results.has(name) else None

    def _show(self, position: int, pixels: ImagePixels, objects: ReadMasks | None) -> None:
        """Shows an image in place of the open one."""
        self._session.set_image(None)
        self.close()
        session, name = self._session, self.images.names[position]
        self.position = position
        self._broken.discard(name)
        self._layer = session.viewer.add_image(name=name, **_layer_arguments(pixels))
        session.set_image(self._layer)
        if objects is not None:
            self._restore(objects)
        session.history.clear()  # its actions belong to removed layers
        session.viewer.reset_view()
        self._saved = self._fingerprints()
        self._emit_exported(session.objects)
        self.changed.emit()

    def _restore(self, objects: ReadMasks) -> None:
        self._unopened.discard(self.name)
        try:
            layer = self._session.ensure_objects()
            place_objects(self._session, layer, objects, 'open objects', keep_labels=True)
        except UnSAMError as error:
            self._unopened.add(self.name)
            self._session.controller.show_problem(f'The saved objects were not opened: {error}')

    def _emit_exported(self, labels: Labels | None) -> None:
        """Emits `exported` if the session shows these objects of this image."""
        if self._session.image is self._layer and self._session.objects is labels:
            self._session.exported.emit()

    def _layers(self) -> list[Labels]:
        """All layers of objects of the open image; each choice of a channel axis has its own."""
        layers = [] if self._layer is None else self._session.viewer.layers
        return [layer for layer in layers if holds_objects(layer) and belongs_to(layer, self._layer)]

    def _objects(self, labels: Labels | None) -> LabelledObjects:
        image = self._layer
        shape = image.data.shape[: image.ndim]
        if labels is None:
            labels = Labels(
                np.zeros(shape, np.uint8), scale=image.scale, units=image.units, axis_labels=image.axis_labels
            )
            channel_axis = 0 if str(image.axis_labels[0]) == _CHANNELS else None
            return objects_of_layer(labels, self.name, channel_axis)
        # Labels have length 1 along the channel axis.
        channel_axes = [axis for axis, side in enumerate(labels.data.shape) if side == 1 < shape[axis]]
        return objects_of_layer(labels, self.name, channel_axes[0] if channel_axes else None)

    @property
    def _has_pending(self) -> bool:
        return self._session.image is self._layer and bool(self._session.controller.prompts.pending)

    def _fingerprints(self) -> tuple[int, ...]:
        """Fingerprints of the layers of objects that are not empty."""
        values = map(self._fingerprint, self._layers())
        return tuple(value for value in values if value)

    def _fingerprint(self, layer: Labels) -> int:
        """The fingerprint of a layer; the layer is read only if it may have changed."""
        number, known = self._changes.count(layer), self._known.get(layer)
        if known is None or known[0] != number or not layer.visible:  # changes of hidden layers are not reported
            known = self._known[layer] = number, fingerprint(layer)
        return known[1]


@dataclass(frozen=True, eq=False)
class ReadMasks:
    """Objects with their masks in memory.

    Attributes:
        objects: The objects.
        masks: For each label, its bounding box in the array of labels and the mask in this box.
    """

    objects: LabelledObjects
    masks: dict[int, tuple[Slices, np.ndarray]]


def read_masks(objects: LabelledObjects, progress: ProgressCallback = lambda fraction, text: None) -> ReadMasks:
    """Reads all masks; can be called in any thread. The labels are read block by block, then box by box.

    Raises:
        UnSAMError: If a label is negative or needs more than 32 bits.
    """
    boxes = object_boxes(with_progress(objects.labels, progress, 'Finding the objects'))
    return ReadMasks(objects, {label: (box, np.asarray(objects.labels[box]) == label) for label, box in boxes.items()})


def place_objects(
    session: ViewerSession, layer: Labels, read: ReadMasks, name: str, keep_labels: bool = False
) -> tuple[int, int]:
    """Writes objects into a layer as one action.

    Args:
        session: The session of the layer.
        layer: A layer of the same shape as the objects, apart from axes of length 1.
        read: The objects.
        name: Name of the action.
        keep_labels: True to write the objects with their labels. Otherwise they get new ones, and if `keep_existing` is
            set in the session, existing objects are not overwritten.

    Returns:
        The number of objects that were written, and of those left out since they have no free pixel.

    Raises:
        StoreError: If the shapes differ.
    """
    objects, masks, shape = read.objects, read.masks, layer.data.shape
    if [side for side in shape if side > 1] != [side for side in objects.shape if side > 1]:
        raise StoreError(f'the objects of {objects.name} have shape {objects.shape}, but the image has {shape}')
    rows = objects.rows()
    new = {label: label for label in masks}
    if not keep_labels:
        first = session.next_label(layer)
        new = {label: first + i for i, label in enumerate(masks)}
    writes = []
    for label, (box, mask) in masks.items():
        long_axes = iter([part for part, side in zip(box, objects.shape, strict=True) if side > 1])
        box = tuple(next(long_axes) if side > 1 else slice(0, 1) for side in shape)
        mask = mask.reshape([part.stop - part.start for part in box])
        row = with_parent_renumbered(known_columns(rows.get(label, {})), new, keep_absent=keep_labels)
        writes.append(ObjectWrite(box, mask, new[label], row))
    if session.keep_existing and not keep_labels:
        writes = limited_to_free(writes, layer.data)
    session.write_objects(name, writes, layer)
    return len(writes), len(masks) - len(writes)


def fingerprint(layer: Labels) -> int:
    """A checksum of the pixels and the features table of a layer; 0 if both are empty."""
    value = 0
    data = full_resolution(layer)
    for block in blocks(data.shape):
        pixels = np.ascontiguousarray(data[block])
        if pixels.any() or value:
            value = zlib.crc32(pixels, zlib.crc32(repr(block).encode(), value))
    table = layer.features
    return zlib.crc32(table.to_csv(index=False).encode(errors='surrogatepass'), value) if len(table) else value


def _layer_arguments(pixels: ImagePixels) -> dict[str, Any]:
    """Arguments of an image layer. Channels that are not colours are its first axis and share one layer of objects."""
    arrays = list(pixels.channels.values())
    if pixels.is_rgb or len(arrays) == 1:
        data, scale, units, axes = pixels.picture(), pixels.scale, pixels.units, pixels.axes
    else:
        data, axes = np.stack(arrays), (_CHANNELS, *pixels.axes)
        scale, units = (1.0, *pixels.scale), ('pixel', *pixels.units)
    return {'data': data, 'rgb': pixels.is_rgb, 'scale': scale, 'units': units, 'axis_labels': tuple(axes)}
