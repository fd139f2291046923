"""The section for stacks and movies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qtpy.QtCore import QSignalBlocker
from qtpy.QtWidgets import QGroupBox, QLabel, QSpinBox

from napari_unsam.model.frame import axis_label
from napari_unsam.model.text import counted
from napari_unsam.qt.controls import (
    MAX_AREA_PX,
    SLIDER_STEPS,
    JobBar,
    Panel,
    group,
    move,
    set_items,
)
from napari_unsam.qt.iou_strip import IouStrip
from napari_unsam.volumes.linking import LinkSettings
from napari_unsam.volumes.propagation import Direction
from napari_unsam.volumes.segmenter import Regions, StackSettings, VolumeSegmenter

_TIMES = ('t', 'time', 'frame', 'frames')
_DIRECTIONS = {
    Direction.BOTH: 'Both directions',
    Direction.FORWARD: 'Forward only',
    Direction.BACK: 'Backward only',
}


class VolumePanel(Panel):
    """Objects through the slices of a stack or the frames of a movie."""

    title = '3D and time'

    def build(self) -> None:
        session = self._session
        self.segmenter = VolumeSegmenter(session)
        self.key_actions = {'propagate': self.segmenter.propagate_current}
        self.lay_out([self._slices_group()], [self._propagation_group()], [self._automatic_group()])
        self.subscribe(self._show, self.segmenter.changed)
        self.subscribe(self._show_job, session.controller.state_changed)
        self.subscribe(self.progress_bar.show_progress, session.controller.progress_changed)
        self._show()
        self._show_job()

    def close_session(self) -> None:
        """Disconnects from the session."""
        super().close_session()
        self.segmenter.close()

    def _slices_group(self) -> QGroupBox:
        self.axis_choice = self.make_choice('Axis to follow: depth or time', self.segmenter.set_axis)
        self.first_box = self.make_number(0, 0, 0, 'First slice to use', self._set_range)
        self.last_box = self.make_number(0, 0, 0, 'Last slice to use', self._set_range)
        self.all_button = self.make_button('All', 'Use all slices', self._all_slices)
        return group(
            'Slices',
            ['Along', self.axis_choice, None],
            ['From', self.first_box, None],
            ['To', self.last_box, self.all_button],
        )

    def _propagation_group(self) -> QGroupBox:
        segmenter = self.segmenter
        self.direction_choice = self.make_choice('Direction from the current slice', self._set, _DIRECTIONS)
        self.threshold_box = self.make_number(
            0,
            1,
            segmenter.settings.min_iou,
            'Stop where the IoU with the previous slice is lower',
            self._set,
            step=0.05,
        )
        self.current_button = self.make_key_button('propagate')
        self.slice_button = self.make_button(
            'Propagate all here', 'Propagate all objects of this slice in one run', segmenter.propagate_all
        )
        self.again_button = self.make_button(
            'Update from corrected slices',
            'Correct slices by hand, then update the slices between and beyond them',
            segmenter.propagate_again,
        )
        self.cancel_button = self.make_button(
            'Cancel', 'Stop; existing objects stay unchanged', segmenter.session.controller.cancel
        )
        self.progress_bar = JobBar()
        self.object_choice = self.make_choice('Object shown in the strip', segmenter.show)
        self.strip = IouStrip()
        self.strip.setToolTip('IoU of each slice with the previous one; click a bar to go to its slice')
        self.strip.slice_wanted.connect(segmenter.session.controller.reporting(segmenter.go_to))
        return group(
            'Propagation',
            ['Direction', self.direction_choice],
            ['Stop below', self.threshold_box],
            [self.current_button, self.slice_button],
            [self.again_button, self.cancel_button],
            [self.progress_bar],
            ['Object', self.object_choice],
            [self.strip],
        )

    def _automatic_group(self) -> QGroupBox:
        defaults = StackSettings()
        self.regions_choice = self.make_choice(
            'Regions of each slice that are linked to objects',
            self._show_level,
            {regions: regions.value for regions in Regions},
        )
        self.brightness_choice = self.make_brightness_choice(defaults.brightness)
        self.level_slider = self.make_slider('Level, from fine (left) to coarse (right)', self._show_level)
        move(self.level_slider, defaults.level)
        self.level_label = QLabel()
        self.min_area_box = self.make_number(
            1, MAX_AREA_PX, defaults.min_area_px, 'Smaller regions of a slice are left out', suffix=' px'
        )
        self.extent_box = self._number_of_slices(
            1, 1000, defaults.links.min_extent, 'Objects in fewer slices are left out'
        )
        self.gap_box = self._number_of_slices(
            0, 5, defaults.links.max_gap, 'Slices in a row in which an object may be missing'
        )
        self.automatic_button = self.make_button(
            'Automatic 3D',
            'Find objects in all slices and link them',
            lambda: self.segmenter.automatic(self._automatic_settings()),
        )
        self.tracks_button = self.make_button(
            'Tracks',
            'Track objects through a movie, with divisions',
            lambda: self.segmenter.automatic(self._automatic_settings(), as_tracks=True),
        )
        return group(
            'Whole stack',
            ['Regions', self.regions_choice],
            [self.level_label, self.level_slider],
            ['Objects are', self.brightness_choice],
            ['At least', self.min_area_box],
            ['In at least', self.extent_box],
            ['Largest gap', self.gap_box],
            [self.automatic_button, self.tracks_button],
        )

    def _number_of_slices(self, low: int, high: int, value: int, tooltip: str) -> QSpinBox:
        def show_unit(value: int) -> None:
            box.setSuffix(counted(value, 'slice').removeprefix(str(value)))

        box = self.make_number(low, high, value, tooltip, show_unit)
        show_unit(value)
        return box

    def _all_slices(self) -> None:
        self.segmenter.z_range = None
        self._show()

    def _set_range(self, _value: int) -> None:
        first, last = sorted((self.first_box.value(), self.last_box.value()))
        self.segmenter.z_range = (first, last + 1)

    def _set(self, _value: Any) -> None:
        self.segmenter.settings = replace(
            self.segmenter.settings,
            direction=self.direction_choice.currentData(),
            min_iou=self.threshold_box.value(),
        )

    def _automatic_settings(self) -> StackSettings:
        return StackSettings(
            regions=self.regions_choice.currentData(),
            level=self.level_slider.value() / SLIDER_STEPS,
            min_area_px=self.min_area_box.value(),
            brightness=self.brightness_choice.currentData(),
            links=LinkSettings(max_gap=self.gap_box.value(), min_extent=self.extent_box.value()),
        )

    def _show(self) -> None:
        segmenter = self.segmenter
        target, slicing = segmenter.session.controller.target, segmenter.slicing
        names = (
            {} if target is None else {axis: self._axis_name(axis, target.plane.shape[axis]) for axis in segmenter.axes}
        )
        set_items(self.axis_choice, names, segmenter.axis)
        set_items(self.object_choice, {label: f'Object {label}' for label in segmenter.labels}, segmenter.label)
        last = 0 if slicing is None else slicing.n_slices - 1
        chosen = segmenter.z_range or (0, last + 1)
        for box, value in ((self.first_box, chosen[0]), (self.last_box, chosen[1] - 1)):
            with QSignalBlocker(box):
                box.setRange(0, last)
                box.setValue(value)
        self._show_level()
        self._show_job()

    def _axis_name(self, axis: int, length: int) -> str:
        image = self.segmenter.session.image
        label = None if image is None else axis_label(image, axis)
        planes = counted(length, 'frame' if (label or '').lower() in _TIMES else 'slice')
        if label is None and len(self.segmenter.axes) > 1:
            label = f'axis {axis + 1}'
        return planes if label is None else f'{label}, {planes}'

    def _show_level(self, _value: Any = None) -> None:
        is_level = self.regions_choice.currentData() == Regions.LEVEL
        self.level_slider.setEnabled(is_level)
        self.level_label.setText(f'Level {self.level_slider.value() / SLIDER_STEPS:.2f}')

    def _show_job(self) -> None:
        """Shows the slice in view in the strip, and enables the buttons that the running job and the image allow."""
        segmenter = self.segmenter
        slicing, is_busy = segmenter.slicing, segmenter.session.controller.is_busy
        for needs_stack in (self.current_button, self.slice_button, self.automatic_button, self.tracks_button):
            needs_stack.setEnabled(slicing is not None)
        self.again_button.setEnabled(bool(segmenter.labels))
        self.object_choice.setEnabled(bool(segmenter.labels))
        self.cancel_button.setEnabled(is_busy)
        if not is_busy:
            self.progress_bar.reset()
        n_slices, here = (0, 0) if slicing is None else (slicing.n_slices, slicing.current)
        self.strip.set_slices(segmenter.strip, n_slices, here)
