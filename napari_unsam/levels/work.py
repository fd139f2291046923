"""Levels, likeness and linked layers at work in a viewer; without Qt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Labels
from psygnal import Signal

from napari_unsam.engine.inference import ProgressCallback
from napari_unsam.keys import KEYS, TO_UNDO
from napari_unsam.levels.best import Chosen
from napari_unsam.levels.cuts import RegionFilter
from napari_unsam.levels.part_whole import Band, linked
from napari_unsam.levels.preview import LevelPreview
from napari_unsam.levels.sheet import Sheet
from napari_unsam.levels.split_merge import region_like, region_write
from napari_unsam.model.targets import Level, Target
from napari_unsam.model.words import counted
from napari_unsam.viewer.layers import AddLayers, following
from unsam_mm.errors import UnSAMError

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_unsam.model.plane import Plane
    from napari_unsam.viewer.session import ViewerSession

_NOTHING = Chosen(np.zeros(0, np.int64), np.zeros(0, np.int64))
_LIKE = 0.5
_TILED = 'This slice is too large for Levels; crop it to at most 2048 px a side, or use clicks.'


class Shown(Enum):
    """What the preview shows."""

    NOTHING = 'nothing'
    LEVEL = 'level'
    BEST = 'best'
    ALIKE = 'alike'


class LevelsWork:
    """What is chosen on the plane in view, from a level of its tree to objects.

    Args:
        session: Of the viewer.

    Attributes:
        changed: Emitted when anything that a view shows has changed.
    """

    changed = Signal()

    def __init__(self, session: ViewerSession) -> None:
        self.session = session
        self.shown = Shown.NOTHING
        self.level = 0.5
        self.limits = RegionFilter()
        self.least_likeness = _LIKE
        self.examples: list[int] = []
        self.bands: list[Band] = []
        self.chosen = _NOTHING
        self._target: Target | None = None
        self._sheet: Sheet | None = None
        self._how_like: np.ndarray | None = None
        self._preview: LevelPreview | None = None
        self._waiting: tuple[Target, Callable[[Sheet], None]] | None = None
        session.controller.state_changed.connect(self._follow)
        session.image_changed.connect(self._change_image)

    def close(self) -> None:
        """Takes the preview away and follows the session no longer."""
        self.session.controller.state_changed.disconnect(self._follow)
        self.session.image_changed.disconnect(self._change_image)
        self._waiting = None
        self._change_image()

    def when_measured(self, then: Callable[[Sheet], None]) -> None:
        """Calls a function with all that is known of the plane in view: now, or once that has been measured.

        While it is being measured, the latest call wins.
        """
        controller, target = self.session.controller, self.session.controller.target
        if target is None:
            controller.say_no_target()
            return
        if self._is_fresh(target):
            then(self._sheet)
            return
        name = f'Measuring the regions of "{target.name}"'
        being_measured = self._waiting is not None and self._waiting[0] == target and controller.runs(name)
        self._waiting = (target, then)
        if not being_measured:
            controller.run(name, self._measuring(target), self._measured, is_task=True)

    def show_level(self, level: float) -> None:
        """Shows one level of the tree; 0 is the finest, 1 the whole plane."""
        self.level = float(np.clip(level, 0, 1))
        self._show(Shown.LEVEL)

    def propose_level(self) -> None:
        """Shows the level that holds most of the best objects."""

        def propose(sheet: Sheet) -> None:
            self.show_level(sheet.proposed_level(self.limits))

        self.when_measured(propose)

    def show_best(self) -> None:
        """Shows the best objects of all levels."""
        self._show(Shown.BEST)

    def set_limits(self, limits: RegionFilter) -> None:
        """Changes which regions count as objects."""
        self.limits = limits
        self._show(self.shown)

    def find_alike(self) -> None:
        """Takes the object under the cursor, or else the mask on offer, for a further example, and shows all like them."""
        self.when_measured(self._add_example)

    def set_likeness(self, least: float) -> None:
        """Changes how like the examples a region must be, in [0, 1]."""
        self.least_likeness = float(least)
        if self.examples:
            self._show(Shown.ALIKE)
        self.changed.emit()

    def forget_examples(self) -> None:
        """Begins anew with other examples."""
        self.examples, self._how_like = [], None
        if self.shown is Shown.ALIKE:
            self.hide()
        self.changed.emit()

    def hide(self) -> None:
        """Takes what is chosen off the screen."""
        self.shown, self.chosen = Shown.NOTHING, _NOTHING
        if self._preview is not None:
            self._preview.hide()
        self.changed.emit()

    def accept(self) -> None:
        """Makes objects of what is chosen, as one action; pixels of objects that are there already stay theirs.

        Raises:
            UnSAMError: If they cannot be written.
        """
        controller = self.session.controller
        if self.shown is Shown.NOTHING or self._sheet is None:
            controller.say('No regions are shown; move the level slider or press Auto first.', Level.PROBLEM)
            return
        plane, labels = self._preview.plane, self.session.ensure_objects()
        first, shown, level = self.session.next_label(), self.shown, self.level
        writes = []
        for piece in self._sheet.pieces(self.chosen, plane_labels(labels, self._preview.plane) != 0):
            row = {**piece.features, 'level': level} if shown is Shown.LEVEL else piece.features
            writes.append(region_write(plane, piece.box_xyxy, piece.mask, first + len(writes), row))
        if not writes:
            controller.say('Nothing was accepted: all regions overlap existing objects.', Level.PROBLEM)
            return
        self.session.write_objects(f'accept {counted(len(writes), "object")}', writes)
        left_out = len(self.chosen) - len(writes)
        self.hide()
        if shown is Shown.ALIKE:
            self.forget_examples()
        overlapping = f'; {left_out} left out (overlap with existing objects)' if left_out else ''
        controller.say(f'Accepted {counted(len(writes), "object")}{overlapping}. {TO_UNDO}')

    def add_band(self, name: str) -> None:
        """Notes what is chosen as one kind of object, for a layer of its own."""
        name = name.strip()
        if self.shown is Shown.NOTHING or not len(self.chosen):
            self.session.controller.say(
                'No regions are shown; move the level slider or press Auto first.', Level.PROBLEM
            )
        elif not name:
            self.session.controller.say('Enter a class name first, such as nuclei.', Level.PROBLEM)
        else:
            level = self.level if self.shown is Shown.LEVEL else None
            kept = [band for band in self.bands if band.name != name]
            self.bands = [*kept, self._sheet.band(name, self.chosen, level)]
            self.session.controller.say(f'{len(self.chosen)} {name} added; choose another level, or press Make layers.')
        self.changed.emit()

    def clear_bands(self) -> None:
        """Forgets the kinds of objects that were noted."""
        self.bands = []
        self.changed.emit()

    def make_layers(self) -> None:
        """Makes a layer of each kind of object that was noted, linked from part to whole, as one action."""
        if not self.bands:
            self.session.controller.say('Add at least one class first.', Level.PROBLEM)
            return
        taken = {layer.name for layer in self.session.viewer.layers}
        try:
            # Tables name the layer of the whole, so the name that napari would give has to be known before.
            bands = linked([replace(band, name=free_name(band.name, taken)) for band in self.bands])
        except UnSAMError as error:
            self.session.controller.say(str(error), Level.PROBLEM)
            return
        plane, frame = self.session.controller.target.plane, self.session.frame
        layers = []
        for band in reversed(bands):  # the finest on top
            data = np.zeros(frame.shape, np.uint32)
            data[plane.slicing] = band.labels
            layers.append(Labels(data, name=band.name, opacity=0.5, features=band.features, **following(frame)))
        self.clear_bands()
        self.hide()
        self.session.history.do(
            AddLayers(f'make layers {", ".join(band.name for band in bands)}', self.session.viewer, layers)
        )
        self.session.controller.say('Layers made; parent_id in their features tables links parts to wholes.')

    def _show(self, shown: Shown) -> None:
        self.shown = shown
        if shown is not Shown.NOTHING:
            self.when_measured(self._draw)

    def _draw(self, sheet: Sheet) -> None:
        match self.shown:
            case Shown.LEVEL:
                self.chosen = sheet.at_level(self.level, self.limits)
            case Shown.BEST:
                self.chosen = sheet.best(self.limits)
            case Shown.ALIKE:
                self.chosen = sheet.alike(self._how_like, self.least_likeness, self.limits)
            case Shown.NOTHING:
                return
        session, plane = self.session, self.session.controller.target.plane
        if self._preview is None or not self._preview.move_to(session.frame, plane):
            self._drop_preview()
            self._preview = LevelPreview(session.viewer, session.ensure_objects(), session.frame, plane)
        sheet.draw(self.chosen, self._preview.pixels)
        self._preview.redraw()
        self.changed.emit()

    def _add_example(self, sheet: Sheet) -> None:
        controller, found = self.session.controller, object_in_question(self.session)
        if found is not None:
            node = region_like((sheet.hierarchy,), found[1] == found[0]).node
        elif (offer := controller.proposal) is not None:
            node = region_like((sheet.hierarchy,), offer.mask, offer.box_xyxy[1], offer.box_xyxy[0]).node
        else:
            controller.say(
                f'Point at, select or click an object, then press {KEYS["find_similar"].key}.', Level.PROBLEM
            )
            return
        self.examples = [*(example for example in self.examples if example != node), node]
        self._how_like = sheet.likeness(self.examples)
        self._show(Shown.ALIKE)
        controller.say(
            f'{counted(len(self.chosen), "similar region")} found with {counted(len(self.examples), "example")}. '
            'Move the slider or add examples to refine.'
        )

    def _measuring(self, target: Target) -> Callable[[ProgressCallback], tuple[Target, Sheet | None]]:
        controller = self.session.controller

        def work(progress: ProgressCallback) -> tuple[Target, Sheet | None]:
            plane = controller.embedded(target, progress)
            if plane.hierarchy is None:
                return target, None
            sheet = Sheet(plane.hierarchy, target.read(), progress)
            sheet.warm_up()
            return target, sheet

        return work

    def _measured(self, result: tuple[Target, Sheet | None]) -> None:
        target, sheet = result
        controller, waiting = self.session.controller, self._waiting
        self._waiting = None
        if sheet is None:
            self.shown = Shown.NOTHING
            controller.say(_TILED, Level.PROBLEM)
        elif target == controller.target:
            self._target, self._sheet = target, sheet
            self.examples, self._how_like = [], None
            controller.say(f'The regions of "{target.name}" are measured.')
            if waiting is not None:
                waiting[1](sheet)
        self.changed.emit()

    def _is_fresh(self, target: Target | None) -> bool:
        """Whether what was measured is of this plane, and of its pixels and channels as they are."""
        if self._sheet is None or self._target != target:
            return False
        return self.session.controller.hierarchy is self._sheet.hierarchy

    def _change_image(self) -> None:
        self._follow()
        self.hide()
        self._drop_preview()

    def _drop_preview(self) -> None:
        preview, self._preview = self._preview, None
        if preview is not None:
            self.session.later(preview.remove)

    def _follow(self) -> None:
        """Takes the preview away when another plane comes into view, or the same with other pixels."""
        if self._sheet is not None and not self._is_fresh(self.session.controller.target):
            self._target = self._sheet = self._how_like = None
            noted, self.examples, self.bands = self.bands, [], []
            self.hide()
            if noted:
                self.session.controller.say('Classes cleared: slice changed.')


def plane_labels(objects: Labels, plane: Plane) -> np.ndarray:
    """(H, W) labels of a plane."""
    return np.asarray(objects.data[plane.slicing])


def object_in_question(session: ViewerSession) -> tuple[int, np.ndarray] | None:
    """The label of an object and the (H, W) labels of its plane: the one under the cursor, or, while the mouse is at a button, the
    selected one. None if there is none on the plane."""
    objects, target = session.objects, session.controller.target
    if objects is None or target is None:
        return None
    viewer: ViewerModel = session.viewer
    labels = plane_labels(objects, target.plane)
    if not viewer.mouse_over_canvas:
        label = int(objects.selected_label)
        return (label, labels) if label and (labels == label).any() else None
    pixel = target.plane.pixel(session.frame.to_data(viewer.cursor.position))
    label = 0 if pixel is None else int(labels[pixel])
    return (label, labels) if label else None


def free_name(name: str, taken: set[str]) -> str:
    """A name that no layer has, made as napari makes them."""
    found, number = name, 0
    while found in taken:
        number += 1
        found = f'{name} [{number}]'
    return found
