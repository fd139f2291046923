"""Selects regions of a plane by level or similarity, and collects classes of objects. Does not depend on Qt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from functools import partial

import numpy as np
from napari.layers import Labels
from napari.utils.naming import inc_name_count
from psygnal import Signal

from napari_unsam.engine.inference import ProgressCallback
from napari_unsam.keys import KEYS, TO_UNDO
from napari_unsam.levels.candidate_table import CandidateTable
from napari_unsam.levels.cuts import RegionFilter
from napari_unsam.levels.disjoint import Selection
from napari_unsam.levels.part_whole import ObjectClass, linked
from napari_unsam.levels.preview import LevelPreview
from napari_unsam.levels.split_merge import closest_region
from napari_unsam.model.targets import Target
from napari_unsam.model.text import counted
from napari_unsam.viewer.layers import AddLayers, following_arguments
from napari_unsam.viewer.object_write import ObjectWrite
from napari_unsam.viewer.port import SessionPort

_EMPTY_SELECTION = Selection(np.zeros(0, np.int64), np.zeros(0, np.int64))
_DEFAULT_SIMILARITY = 0.5
_NO_REGIONS = 'No regions are shown; move the level slider or press Auto first.'
_TOO_LARGE = 'This slice is too large for Levels; crop it to at most 2048 px on each side, or use clicks.'


class PreviewMode(Enum):
    """How the previewed regions are selected."""

    NOTHING = 'nothing'
    LEVEL = 'level'
    BEST = 'best'
    SIMILAR = 'similar'


class RegionSelector:
    """Selects regions of the plane in view, previews them, and converts them to objects.

    Attributes:
        session: The session.
        mode: How the previewed regions are selected.
        level: Level of the slider, in [0, 1].
        region_filter: Which regions count as objects.
        min_similarity: Minimum similarity to the examples, in [0, 1].
        examples: Nodes of the main tree that are the examples of *Find similar*.
        classes: The classes added so far; `make_layers` makes a layer of each.
        selection: The previewed regions.
        changed: Emitted when the preview, the examples, the minimum similarity or the classes may have changed.
    """

    changed = Signal()

    def __init__(self, session: SessionPort) -> None:
        self.session = session
        self.mode = PreviewMode.NOTHING
        self.level = 0.5
        self.region_filter = RegionFilter()
        self.min_similarity = _DEFAULT_SIMILARITY
        self.examples: list[int] = []
        self.classes: list[ObjectClass] = []
        self.selection = _EMPTY_SELECTION
        self._target: Target | None = None
        self._table: CandidateTable | None = None
        self._similarities: np.ndarray | None = None
        self._preview: LevelPreview | None = None
        self._request: tuple[Target, Callable[[CandidateTable], None]] | None = None
        session.controller.state_changed.connect(self._drop_outdated)
        session.image_changed.connect(self._change_image)

    def close(self) -> None:
        """Removes the preview and disconnects from the session."""
        self.session.controller.state_changed.disconnect(self._drop_outdated)
        self.session.image_changed.disconnect(self._change_image)
        self._request = None
        self._change_image()

    def with_table(self, then: Callable[[CandidateTable], None]) -> None:
        """Calls a function with the candidate table of the plane in view.

        If the regions are not measured yet, they are measured first, in the inference thread. If this method is called
        again before that is done, only the latest function is called.
        """
        controller, target = self.session.controller, self.session.controller.target
        if target is None:
            controller.show_no_target()
            return
        if self._is_fresh():
            then(self._table)
            return
        name = f'Measuring the regions of "{target.name}"'
        is_running = self._request is not None and self._request[0] == target and controller.has_job(name)
        self._request = (target, then)
        if not is_running:
            controller.run(name, partial(self._make_table, target), partial(self._set_table, target), is_task=True)

    def show_level(self, level: float) -> None:
        """Shows one level of the tree; 0 is the finest, 1 the whole plane."""
        self.level = float(np.clip(level, 0, 1))
        self._show(PreviewMode.LEVEL)

    def propose_level(self) -> None:
        """Shows the level that contains the largest number of the best objects."""
        self.with_table(lambda table: self.show_level(table.proposed_level(self.region_filter)))

    def show_best(self) -> None:
        """Shows the best objects of all levels."""
        self._show(PreviewMode.BEST)

    def set_region_filter(self, region_filter: RegionFilter) -> None:
        """Changes which regions count as objects."""
        self.region_filter = region_filter
        self._show(self.mode)

    def find_similar(self) -> None:
        """Adds the object under the cursor, or else the current mask, as an example, and shows the similar regions."""
        self.with_table(self._add_example)

    def set_min_similarity(self, min_similarity: float) -> None:
        """Changes the minimum similarity, in [0, 1]."""
        self.min_similarity = float(min_similarity)
        if self.examples:
            self._show(PreviewMode.SIMILAR)
        self.changed.emit()

    def clear_examples(self) -> None:
        """Clears the examples."""
        self.examples, self._similarities = [], None
        if self.mode is PreviewMode.SIMILAR:
            self.hide()
        self.changed.emit()

    def hide(self) -> None:
        """Hides the preview."""
        self.mode, self.selection = PreviewMode.NOTHING, _EMPTY_SELECTION
        if self._preview is not None:
            self._preview.hide()
        self.changed.emit()

    def accept(self) -> None:
        """Writes the previewed regions as objects, as one action; pixels of existing objects are not overwritten."""
        controller = self.session.controller
        if self.mode is PreviewMode.NOTHING or self._table is None:
            controller.show_problem(_NO_REGIONS)
            return
        plane, labels = self._preview.plane, self.session.ensure_objects()
        first, mode = self.session.next_label(), self.mode
        level_column = {'level': self.level} if mode is PreviewMode.LEVEL else {}
        writes = [
            ObjectWrite.on_plane(plane, free, first + number, {**features, **level_column})
            for number, (free, features) in enumerate(
                self._table.free_regions(self.selection, plane.of(labels.data) != 0)
            )
        ]
        if not writes:
            controller.show_problem('Nothing was accepted: all regions overlap existing objects.')
            return
        self.session.write_objects(f'accept {counted(len(writes), "object")}', writes)
        left_out = len(self.selection) - len(writes)
        self.hide()
        if mode is PreviewMode.SIMILAR:
            self.clear_examples()
        overlapping = f'; {left_out} left out (overlap with existing objects)' if left_out else ''
        controller.show_info(f'Accepted {counted(len(writes), "object")}{overlapping}. {TO_UNDO}')

    def add_class(self, name: str) -> None:
        """Adds the previewed regions as a class, which replaces a class of the same name."""
        name, controller = name.strip(), self.session.controller
        if self.mode is PreviewMode.NOTHING or not len(self.selection):
            controller.show_problem(_NO_REGIONS)
        elif not name:
            controller.show_problem('Enter a class name first, such as nuclei.')
        else:
            level = self.level if self.mode is PreviewMode.LEVEL else None
            kept = [one for one in self.classes if one.name != name]
            self.classes = [*kept, self._table.object_class(name, self.selection, level)]
            count = counted(len(self.selection), 'object')
            controller.show_info(f'Class "{name}" with {count} added; choose another level, or press Make layers.')
        self.changed.emit()

    def make_layers(self) -> None:
        """Makes a layer of each class, and links each object to the larger object that contains it, as one action."""
        controller = self.session.controller
        if not self.classes:
            controller.show_problem('Add at least one class first.')
            return
        taken, named = {layer.name for layer in self.session.viewer.layers}, []
        for objects in self.classes:
            name = objects.name
            while name in taken:  # as napari would do later; the features tables need the final names
                name = inc_name_count(name)
            taken.add(name)
            named.append(replace(objects, name=name))
        plane, frame = controller.target.plane, self.session.frame
        classes, layers = linked(named), []
        for objects in reversed(classes):  # layers of the smallest objects on top
            data = np.zeros(frame.shape, np.uint32)
            data[plane.slicing] = objects.labels
            layers.append(
                Labels(data, name=objects.name, opacity=0.5, features=objects.features, **following_arguments(frame))
            )
        self.classes = []
        self.hide()
        name = f'make layers {", ".join(one.name for one in classes)}'
        self.session.history.do(AddLayers(name, self.session.viewer, layers))
        controller.show_info(
            'Layers added; the column parent_id of their features tables links each part to its whole.'
        )

    def _show(self, mode: PreviewMode) -> None:
        self.mode = mode
        if mode is not PreviewMode.NOTHING:
            self.with_table(self._draw)

    def _draw(self, table: CandidateTable) -> None:
        match self.mode:
            case PreviewMode.LEVEL:
                self.selection = table.at_level(self.level, self.region_filter)
            case PreviewMode.BEST:
                self.selection = table.best(self.region_filter)
            case PreviewMode.SIMILAR:
                self.selection = table.similar(self._similarities, self.min_similarity, self.region_filter)
            case PreviewMode.NOTHING:
                return
        session, plane = self.session, self.session.controller.target.plane
        if self._preview is None or not self._preview.move_to(session.frame, plane):
            self._drop_preview()
            self._preview = LevelPreview(session.viewer, session.ensure_objects(), session.frame, plane)
        table.draw(self.selection, self._preview.pixels)
        self._preview.redraw()
        self.changed.emit()

    def _add_example(self, table: CandidateTable) -> None:
        controller, found = self.session.controller, current_object(self.session)
        if found is not None:
            label, labels = found
            _, node = closest_region((table.hierarchy,), labels == label)
        elif (proposal := controller.proposal) is not None:
            left, top, _, _ = proposal.box_xyxy
            _, node = closest_region((table.hierarchy,), proposal.mask, top, left)
        else:
            controller.show_problem(f'Point at, select or click an object, then press {KEYS["find_similar"].key}.')
            return
        self.examples = [*(example for example in self.examples if example != node), node]
        self._similarities = table.similarity(self.examples)
        self._show(PreviewMode.SIMILAR)
        controller.show_info(
            f'{counted(len(self.selection), "similar region")} found with {counted(len(self.examples), "example")}. '
            'Move the slider or add examples to refine.'
        )

    def _make_table(self, target: Target, progress: ProgressCallback) -> CandidateTable | None:
        """The candidate table of a plane; None for a large plane, which has no trees. Runs in the inference thread."""
        plane = self.session.controller.planes.get_or_embed(target, progress)
        if plane.hierarchy is None:
            return None
        table = CandidateTable(plane.hierarchy, target.read(), progress)
        table.best(RegionFilter())  # compiles functions here, not in the GUI thread
        return table

    def _set_table(self, target: Target, table: CandidateTable | None) -> None:
        controller, request = self.session.controller, self._request
        self._request = None
        if table is None:
            self.mode = PreviewMode.NOTHING
            controller.show_problem(_TOO_LARGE)
        elif target == controller.target:
            self._target, self._table = target, table
            self.examples, self._similarities = [], None
            controller.show_info(f'The regions of "{target.name}" are measured.')
            if request is not None:
                request[1](table)
        self.changed.emit()

    def _is_fresh(self) -> bool:
        """True if the table belongs to the plane in view with its current pixels and channels."""
        controller, table = self.session.controller, self._table
        return table is not None and self._target == controller.target and controller.hierarchy is table.hierarchy

    def _change_image(self) -> None:
        self._drop_outdated()
        self.hide()
        self._drop_preview()

    def _drop_preview(self) -> None:
        preview, self._preview = self._preview, None
        if preview is not None:
            self.session.later(preview.remove)

    def _drop_outdated(self) -> None:
        """If the plane in view or its pixels changed, drops the table, examples and classes, and hides the preview."""
        if self._table is not None and not self._is_fresh():
            self._target = self._table = self._similarities = None
            classes, self.examples, self.classes = self.classes, [], []
            self.hide()
            if classes:
                self.session.controller.show_info('Classes cleared: the slice, its channels or its pixels changed.')


def current_object(session: SessionPort) -> tuple[int, np.ndarray] | None:
    """The label of the object under the cursor, and the (H, W) labels of the plane; None if there is no object.

    If the mouse is not over the canvas, the selected object is used.
    """
    objects, target = session.objects, session.controller.target
    if objects is None or target is None:
        return None
    viewer = session.viewer
    labels = target.plane.of(objects.data)
    if not viewer.mouse_over_canvas:
        label = int(objects.selected_label)
        return (label, labels) if label and (labels == label).any() else None
    pixel = target.plane.pixel(session.frame.to_data(viewer.cursor.position))
    label = 0 if pixel is None else int(labels[pixel])
    return (label, labels) if label else None
