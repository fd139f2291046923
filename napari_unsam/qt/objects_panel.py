"""The section for all objects of an image: count, measure, open, export, delete."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Labels
from qtpy.QtWidgets import QFileDialog

from napari_unsam.folders.series import ReadMasks, place_objects, read_masks
from napari_unsam.io.formats import FORMATS, READABLE, export, is_lossless, read_objects
from napari_unsam.io.measurements import measure, merged
from napari_unsam.io.objects import LabelledObjects, channels_of_layer, objects_of_layer, parent_of
from napari_unsam.keys import TO_UNDO
from napari_unsam.model.text import counted
from napari_unsam.qt.controls import Panel, wrapping_label
from napari_unsam.viewer.changes import LayerChanges
from napari_unsam.viewer.object_write import ObjectWrite

if TYPE_CHECKING:
    from napari.layers import Image

    from napari_unsam.engine.inference import ProgressCallback
    from napari_unsam.model.label_boxes import LazyArray

_FORBIDDEN_CHARACTERS = r'[\\/:*?"<>|]'  # not allowed in file names on some system
_NO_OBJECTS = 'No objects yet; commit one first.'


class ObjectsPanel(Panel):
    """Counts, measures, exports and deletes the objects of the session's image."""

    title = 'Objects'

    def build(self) -> None:
        session = self._session
        self._followed: Labels | None = None
        self._changes = LayerChanges(session.viewer)
        self.summary_label = wrapping_label()
        self.measure_button = self.make_button(
            'Measure', 'Add size, position, shape and intensity of all objects to the features table', self.measure
        )
        self.parent_button = self.make_button(
            'Show parent', 'Select the object that contains the selected one', self.show_parent
        )
        self.delete_button = self.make_button('Delete object', 'Delete the selected object', self.delete)
        self.open_button = self.make_button(
            'Open...',
            'Add the objects of a label TIFF, a COCO file or an OME-Zarr folder (choose its zarr.json)',
            self.open,
        )
        self.export_button = self.make_button('Export...', 'Write all objects to a file', self.export)
        self.format_choice = self.make_choice(
            'Format of the exported file', items={name: form.title for name, form in FORMATS.items()}
        )
        self.lay_out(
            [self.summary_label],
            [self.measure_button, self.open_button],
            [self.parent_button, self.delete_button],
            [self.format_choice, self.export_button],
        )
        layers = session.viewer.layers
        self.subscribe(
            self._follow,
            session.image_changed,
            layers.events.inserted,
            layers.events.removed,
            layers.selection.events.active,
        )
        self._follow()

    @property
    def layer(self) -> Labels | None:
        """The layer that the panel shows: the selected one if it has a table of objects, else that of the session."""
        layers = self._session.viewer.layers
        # From the list, as napari gives plugins a proxy for the active layer.
        active = next((layer for layer in layers if layer == layers.selection.active), None)
        is_linked = isinstance(active, Labels) and {'index', 'area_px'} <= set(active.features)
        return active if is_linked else self._session.objects

    def close_session(self) -> None:
        """Disconnects from the session and the viewer."""
        super().close_session()
        self._unfollow()

    def measure(self) -> None:
        """Adds measurements of all objects to the features table."""
        layer, image = self._objects(), self._session.image
        if layer is None or image is None:
            return
        objects = self._labelled_objects(layer)
        channels = {name: pixels for name, pixels in self._channels(image).items() if pixels.shape == objects.shape}

        def done(measured: object) -> None:
            layer.features = merged(layer.features, measured)
            self.show_info(
                f'{counted(len(measured), "object")} measured; see Layers > Metadata > Features table widget.'
            )

        work = partial(measure, objects, channels)
        self._session.controller.run('Measuring', work, done, is_task=True)

    def export(self) -> None:
        """Asks for a file name and writes the objects."""
        layer = self._objects()
        if layer is None:
            return
        name = self.format_choice.currentData()
        form = FORMATS[name]
        path = self.choose_path(
            # Not the name of the image, which often is a TIFF too.
            f'{re.sub(_FORBIDDEN_CHARACTERS, "_", self._image_name())}.objects{form.ending}',
            f'{form.title} (*{form.ending})',
        )
        if path is None:
            return
        if not path.name.endswith(form.ending):
            path = path.with_name(path.name + form.ending)
        if path.exists() and not self.confirm('Export objects', f'{path.name} exists. Replace it?'):
            return
        objects, before = self._labelled_objects(layer), self._changes.count(layer)

        def written(_nothing: None) -> None:
            is_complete = self._changes.count(layer) == before and is_lossless(name, objects.features)
            # The user may have chosen another image meanwhile.
            if is_complete and layer is self._session.objects:
                self._session.exported.emit()
            self.show_info(f'Written: {path}')

        work = partial(export, path, objects, name)
        self._session.controller.run(f'Writing {path.name}', work, written, is_task=True)

    def open(self) -> None:
        """Asks for a file and adds its objects to the image, with new labels."""
        if self._session.image is None:
            self.show_problem('Choose an image first.')
            return
        path = self.choose_existing(f'Objects (*{" *".join(READABLE)})')
        if path is not None:
            layer = self._session.ensure_objects()

            def read(progress: ProgressCallback) -> ReadMasks:
                return read_masks(read_objects(path), progress)

            self._session.controller.run(f'Reading {path.name}', read, partial(self._add, layer), is_task=True)

    def delete(self) -> None:
        """Erases the selected object of the session's layer."""
        layer = self._session.objects
        if layer is None:
            self.show_problem(_NO_OBJECTS)
            return
        label = int(layer.selected_label)
        box = self._session.box_of(label)
        if box is None:
            self.show_problem(f'There is no object {label}; pick one with the pick tool (L).')
            return
        mask = np.asarray(layer.data[box]) == label
        self._session.write_objects(f'delete object {label}', [ObjectWrite(box, mask, 0)], layer)
        self.show_info(f'Object {label} deleted. {TO_UNDO}')

    def show_parent(self) -> None:
        """Selects the object that contains the selected one, possibly in another layer."""
        layer = self._objects()
        if layer is None:
            return
        match self._parent_of(layer):
            case None:
                self.show_problem(f'Object {layer.selected_label} is not part of another one.')
            case '', label:
                layer.selected_label = label
                self.show_info(f'Object {label} is selected.')
            case name, label if name in self._session.viewer.layers:
                self._session.viewer.layers[name].selected_label = label
                self._session.viewer.layers.selection.active = self._session.viewer.layers[name]
                self.show_info(f'Object {label} of "{name}" is selected.')
            case name, label:
                self.show_problem(f'It is part of object {label} of "{name}", a layer that was removed.')

    def choose_path(self, suggestion: str, kinds: str) -> Path | None:
        """Asks for a file to write; None if cancelled."""
        # `export` asks whether to replace a file, or an OME-Zarr folder.
        options = QFileDialog.Option.DontConfirmOverwrite
        path, _ = QFileDialog.getSaveFileName(self, 'Export objects', suggestion, kinds, options=options)
        return Path(path) if path else None

    def choose_existing(self, kinds: str) -> Path | None:
        """Asks for a file to read; None if cancelled."""
        path, _ = QFileDialog.getOpenFileName(self, 'Open objects', '', kinds)
        return Path(path) if path else None

    def _follow(self) -> None:
        """Connects to the layer that the panel shows, in place of the previous one."""
        layer = self.layer
        if layer is not self._followed:
            self._unfollow()
            self._followed = layer
            if layer is not None:
                layer.events.features.connect(self._show)
                layer.events.selected_label.connect(self._show)
        self._show()

    def _unfollow(self) -> None:
        if self._followed is not None:
            self._followed.events.features.disconnect(self._show)
            self._followed.events.selected_label.disconnect(self._show)
            self._followed = None

    def _show(self) -> None:
        layer = self._followed
        for control in (self.measure_button, self.parent_button, self.delete_button, self.export_button):
            control.setEnabled(layer is not None)
        self.open_button.setEnabled(self._session.image is not None)
        if layer is None:
            self.summary_label.setText('No objects yet')
            return
        text = f'"{layer.name}": {counted(len(layer.features), "object")}'
        row = self._row(layer)
        if row is not None:
            text += f'; selected: {layer.selected_label}, {int(row.get("area_px", 0)):,} px'
        parent = self._parent_of(layer)
        if parent is not None:
            text += f', part of {" ".join(map(str, parent)).strip()}'
        self.summary_label.setText(text)
        self.parent_button.setEnabled(parent is not None)
        self.delete_button.setEnabled(row is not None and layer is self._session.objects)

    def _add(self, layer: Labels, read: ReadMasks) -> None:
        name = read.objects.name
        count, left = place_objects(self._session, layer, read, f'open {name}')
        overlapping = f' {left} left out (overlap with existing objects).' if left else ''
        self.show_info(f'{counted(count, "object")} of {name} added.{overlapping} {TO_UNDO}')

    def _objects(self) -> Labels | None:
        layer = self.layer
        if layer is None:
            self.show_problem(_NO_OBJECTS)
        return layer

    def _row(self, layer: Labels) -> dict | None:
        table = layer.features
        rows = table[table['index'] == layer.selected_label] if 'index' in table else table[:0]
        return rows.iloc[0].to_dict() if len(rows) else None

    def _parent_of(self, layer: Labels) -> tuple[str, int] | None:
        row = self._row(layer)
        return None if row is None else parent_of(row)

    def _labelled_objects(self, layer: Labels) -> LabelledObjects:
        kind = {} if layer is self._session.objects else {'kind': layer.name}
        return objects_of_layer(layer, self._image_name(), self._channel_axis(), **kind)

    def _channels(self, image: Image) -> dict[str, LazyArray]:
        """The channels of the image; if it has only one, all layers of its shape and position are channels."""
        found = channels_of_layer(image, self._channel_axis())
        if image.rgb or len(found) > 1:
            return found
        pixels = found['']
        matching = [
            layer
            for layer in self._session.viewer.layers
            if type(layer) is type(image)
            and not layer.rgb
            and np.array_equal(layer.extent.world, image.extent.world)
            and not layer.multiscale
        ]
        by_name = {layer.name: layer.data for layer in matching if tuple(layer.data.shape) == tuple(pixels.shape)}
        return by_name if len(by_name) > 1 else found

    def _channel_axis(self) -> int | None:
        channels = self._session.channels
        return None if channels is None else channels.axis

    def _image_name(self) -> str:
        return 'objects' if self._session.image is None else self._session.image.name
