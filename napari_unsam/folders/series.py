"""The images of a folder in the viewer, one after the other, with their objects; knows no Qt."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from psygnal import Signal

from napari_unsam.engine.inference import ProgressCallback
from napari_unsam.folders.results import ImageList, Results
from napari_unsam.io.objects import LabelledObjects, known_columns, objects_of_layer, with_progress
from napari_unsam.model.label_boxes import Slices, blocks, object_boxes
from napari_unsam.viewer.changes import LayerChanges
from napari_unsam.viewer.commit import ObjectWrite, limited_to_free, with_parent_renumbered
from napari_unsam.viewer.layers import holds_objects, is_of
from napari_unsam.viewer.workarounds import remove_layers
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.image_io.reader import ImagePixels, read_pixels

if TYPE_CHECKING:
    from napari.layers import Image

    from napari_unsam.viewer.session import ViewerSession

_CHANNELS = 'c'


class ImageSeries:
    """Walks through a list of images; at most one of them is in the viewer.

    Args:
        session: Whose viewer shows the images, and which holds the objects.
        images: The images.
        results: Where their objects are kept.

    Attributes:
        images: The images.
        position: Which image is open; None before the first.
        asked: Which image was asked for last, even if it could not be opened; None before the first.
        changed: Emitted when another image was opened, one was saved, or one could not be opened.
    """

    changed = Signal()

    def __init__(self, session: ViewerSession, images: ImageList, results: Results) -> None:
        self._session, self._results = session, results
        self.images = images
        self.position: int | None = None
        self.asked: int | None = None
        self._layer: Image | None = None
        self._changes = LayerChanges(session.viewer)
        # The fingerprints of what was opened or saved last; None if it was changed while it was saved.
        self._saved: tuple[int, ...] | None = ()
        self._unchanged_at = self._count()  # a state that has these fingerprints
        self._done = {name for name in images.names if results.has(name)}
        self._broken: set[str] = set()
        self._foreign: set[str] = set()  # images with results that could not be opened

    @property
    def name(self) -> str | None:
        """Name of the open image; None if there is none."""
        return None if self.position is None else self.images.names[self.position]

    @property
    def is_dirty(self) -> bool:
        """Whether the objects of the open image differ from what was opened or saved last, or some wait to be committed."""
        is_open = self.position is not None and self._layer in self._session.viewer.layers
        return is_open and (self._has_pending or not self._is_as_saved())

    def is_done(self, position: int) -> bool:
        """Whether there are saved objects of an image."""
        return self.images.names[position] in self._done

    def is_broken(self, position: int) -> bool:
        """Whether an image could not be opened."""
        return self.images.names[position] in self._broken

    def start(self) -> int:
        """Where to begin: the first image that is not done, or the first of all."""
        todo = (position for position in range(len(self.images.names)) if not self.is_done(position))
        return next(todo, 0)

    def open(self, position: int) -> None:
        """Reads an image in the background and shows it, with its saved objects, in place of the one that is open.

        What was not saved is lost: ask first if `is_dirty`. An image that is open stays as it is.
        """
        name = self.images.names[position]
        self.asked = position
        if position == self.position and self._layer in self._session.viewer.layers:
            self.changed.emit()
            return
        left = self._count(), self._saved if self._is_as_saved() else self._fingerprints()

        def read(opened: tuple[ImagePixels, ReadMasks | None]) -> None:
            if self._is_still(*left):
                self._show(position, *opened)
            else:
                self._session.controller.show_problem(f'{self.name} was changed in the meantime and stays open.')

        def failed(_reason: str) -> None:
            self._broken.add(name)
            self.changed.emit()

        self._session.controller.run(f'Opening {name}', partial(self._read, name), read, failed, is_task=True)

    def save(self, then: Callable[[], None] = lambda: None) -> None:
        """Writes the objects of the open image as a label TIFF and a table, in the background.

        Pending objects are committed before; the current mask is not.

        Args:
            then: Called once they are written.
        """
        name = self.name
        try:
            labels = self._layer_to_save()
        except UnSAMError as error:
            self._session.controller.show_problem(str(error))
            return
        layers, objects, before = self._layers(), self._objects(labels), self._count()

        def write(progress: ProgressCallback) -> tuple[int, ...]:
            saved = self._fingerprints(layers)
            self._results.write(name, objects, progress=progress)
            return saved

        def saved(value: tuple[int, ...]) -> None:
            self._done.add(name)
            is_known = labels is None or self._count() == before
            is_unchanged = is_known and self._is_still(before, value)
            if self.name == name:
                # What was changed meanwhile may be in the files in part: nothing that is there now counts as saved.
                self._saved, self._unchanged_at = (value if is_unchanged else None), before
                if is_unchanged:
                    self._tell_saved(labels)
            self._session.controller.show_info(f'Objects of {name} saved in {self._results.folder}.')
            self.changed.emit()
            then()

        self._session.controller.run(f'Saving {name}', write, saved, is_task=True)

    def close(self) -> None:
        """Takes the open image and its objects out of the viewer; what was not saved is lost."""
        remove_layers(self._session.viewer, [*self._layers(), self._layer])
        self.position, self._layer = None, None

    def _layer_to_save(self) -> Labels | None:
        """The layer of objects that the results of the open image are to hold; None if it has none.

        Raises:
            UnSAMError: If there is no such image, or its results cannot be replaced or cannot hold all of its objects.
        """
        name = self.name
        if name is None or self._layer not in self._session.viewer.layers:
            raise UnSAMError('No image of the list is open; open one first.')
        if self._has_pending:
            self._session.pending.commit(with_shown=False)
        if name in self._foreign and self._results.has(name):
            raise UnSAMError(
                f'{self._results.path(name, "tiff")} holds other objects, which could not be opened; move it away to save '
                'these.'
            )
        layers = self._layers()
        filled = layers if len(layers) == 1 else [layer for layer in layers if fingerprint(layer)]
        if len(filled) > 1:
            names = ' and '.join(f'"{layer.name}"' for layer in filled)
            raise UnSAMError(
                f'{name} has objects in {names}, and its results hold those of one layer: export the others, delete their '
                'layers and save again.'
            )
        return next(iter(filled or layers), None)

    def _read(self, name: str, progress: ProgressCallback) -> tuple[ImagePixels, ReadMasks | None]:
        """An image with what was saved of it."""
        progress(0.0, f'Reading {name}')
        pixels = read_pixels(self.images.path(name))
        return pixels, read_masks(self._results.read(name), progress) if self._results.has(name) else None

    def _show(self, position: int, pixels: ImagePixels, objects: ReadMasks | None) -> None:
        """Puts an image in place of the one that is open."""
        self._session.set_image(None)
        self.close()
        session, name = self._session, self.images.names[position]
        self.position = position
        self._broken.discard(name)
        self._layer = session.viewer.add_image(name=name, **_layer(pixels))
        session.set_image(self._layer)
        if objects is not None:
            self._restore(objects)
        session.history.clear()  # its actions belong to layers that were removed
        session.viewer.reset_view()
        self._saved, self._unchanged_at = self._fingerprints(), self._count()
        self._tell_saved(session.objects)
        self.changed.emit()

    def _restore(self, objects: ReadMasks) -> None:
        self._foreign.discard(self.name)
        try:
            layer = self._session.ensure_objects()
            place_objects(self._session, layer, objects, 'open objects', keep_labels=True)
        except UnSAMError as error:
            self._foreign.add(self.name)
            self._session.controller.show_problem(f'The saved objects were not opened: {error}')

    def _tell_saved(self, labels: Labels | None) -> None:
        """Tells that objects are in files as they are now, unless the session is at another image or at other objects."""
        if self._session.image is self._layer and self._session.objects is labels:
            self._session.exported.emit()

    def _layers(self) -> list[Labels]:
        """The layers of objects of the open image, whichever the session is at; each choice of a channel axis has its own."""
        layers = [] if self._layer is None else self._session.viewer.layers
        return [layer for layer in layers if holds_objects(layer) and is_of(layer, self._layer)]

    def _objects(self, labels: Labels | None) -> LabelledObjects:
        image = self._layer
        shape = image.data.shape[: image.ndim]
        if labels is None:
            labels = Labels(
                np.zeros(shape, np.uint8), scale=image.scale, units=image.units, axis_labels=image.axis_labels
            )
            channel_axis = 0 if str(image.axis_labels[0]) == _CHANNELS else None
            return objects_of_layer(labels, self.name, channel_axis)
        # Along channels objects are one thick.
        thin = [axis for axis, side in enumerate(labels.data.shape) if side == 1 < shape[axis]]
        return objects_of_layer(labels, self.name, thin[0] if thin else None)

    @property
    def _has_pending(self) -> bool:
        return self._session.image is self._layer and bool(self._session.controller.prompts.pending)

    def _is_as_saved(self) -> bool:
        is_same = self._saved is not None and self._is_still(self._unchanged_at, self._saved)
        if is_same:  # what was undone is as it was
            self._unchanged_at = self._count()
        return is_same

    def _is_still(self, count: Hashable, fingerprints: tuple[int, ...]) -> bool:
        """Whether the objects are those of a state; they are read unless none of their layers was touched since."""
        # Of a layer that is hidden, napari does not tell.
        is_untouched = self._count() == count and all(layer.visible for layer in self._layers())
        return is_untouched or self._fingerprints() == fingerprints

    def _count(self) -> Hashable:
        return tuple(self._changes.count(layer) for layer in self._layers())

    def _fingerprints(self, layers: Sequence[Labels] | None = None) -> tuple[int, ...]:
        """Those of the layers that hold objects, by default of all layers."""
        values = [fingerprint(layer) for layer in (self._layers() if layers is None else layers)]
        return tuple(value for value in values if value)


@dataclass(frozen=True, eq=False)
class ReadMasks:
    """Objects with their masks in memory, each in its box.

    Attributes:
        objects: What is known of them.
        masks: By label, where the mask lies in the labels, and the mask.
    """

    objects: LabelledObjects
    masks: dict[int, tuple[Slices, np.ndarray]]


def read_masks(objects: LabelledObjects, progress: ProgressCallback = lambda fraction, text: None) -> ReadMasks:
    """Reads all masks, in any thread; the labels are read twice, part by part.

    Raises:
        UnSAMError: If a label is negative or needs more than 32 bits.
    """
    boxes = object_boxes(with_progress(objects.labels, progress, 'Finding the objects'))
    return ReadMasks(objects, {label: (box, np.asarray(objects.labels[box]) == label) for label, box in boxes.items()})


def place_objects(
    session: ViewerSession, layer: Labels, objects: LabelledObjects | ReadMasks, name: str, keep_labels: bool = False
) -> tuple[int, int]:
    """Writes objects into the layer of a session as one action; returns how many, and how many had no free pixel.

    Args:
        session: Whose layer it is.
        layer: Has as many voxels along each axis as the objects, apart from axes of length 1.
        objects: What to write; if they are large, their masks are best read in another thread.
        name: Of the action.
        keep_labels: Keep their labels; else they get new ones, and leave objects alone that the session is to keep.

    Raises:
        StoreError: If the shapes differ.
    """
    read = objects if isinstance(objects, ReadMasks) else read_masks(objects)
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
    """A number that changes with the pixels and the table of a layer; 0 if there are no objects."""
    value = 0
    data = layer.data[0] if layer.multiscale else layer.data
    for block in blocks(data.shape):
        pixels = np.ascontiguousarray(data[block])
        if pixels.any() or value:
            value = zlib.crc32(pixels, zlib.crc32(repr(block).encode(), value))
    table = layer.features
    return zlib.crc32(table.to_csv(index=False).encode(errors='surrogatepass'), value) if len(table) else value


def _layer(pixels: ImagePixels) -> dict[str, Any]:
    """What makes an image layer: channels that are not colours are its first axis, so that objects belong to all of them."""
    arrays = list(pixels.channels.values())
    if pixels.is_rgb or len(arrays) == 1:
        data, scale, units, axes = pixels.picture(), pixels.scale, pixels.units, pixels.axes
    else:
        data, axes = np.stack(arrays), (_CHANNELS, *pixels.axes)
        scale, units = (1.0, *pixels.scale), ('pixel', *pixels.units)
    return {'data': data, 'rgb': pixels.is_rgb, 'scale': scale, 'units': units, 'axis_labels': tuple(axes)}
