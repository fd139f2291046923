"""The section for stacks and movies: layout and connections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QGroupBox,
    QLabel,
    QProgressBar,
    QPushButton,
    QSpinBox,
    QVBoxLayout,
    QWidget,
)

from napari_unsam.keys import Actions
from napari_unsam.levels.region_properties import Side
from napari_unsam.model.frame import axis_label
from napari_unsam.model.text import counted
from napari_unsam.qt.controls import SLIDER_STEPS, button, choice_of_side, group, key_button, move, slider
from napari_unsam.qt.iou_strip import IouStrip
from napari_unsam.volumes.linking import LinkSettings
from napari_unsam.volumes.propagation import Direction
from napari_unsam.volumes.segmenter import Regions, StackSettings, VolumeSegmenter

if TYPE_CHECKING:
    from napari_unsam.viewer.session import ViewerSession

_MAX_AREA_PX = 1_000_000
_TIMES = ('t', 'time', 'frame', 'frames')
_DIRECTIONS = {
    Direction.BOTH: 'Both directions',
    Direction.FORWARD: 'Forward only',
    Direction.BACK: 'Backward only',
}


class VolumePanel(QWidget):
    """Objects through the slices of a stack or the frames of a movie.

    Args:
        session: Of the viewer.
    """

    title = '3D and time'

    def __init__(self, session: ViewerSession) -> None:
        super().__init__()
        self.work = VolumeSegmenter(session)
        self.key_actions: Actions = {'propagate': self.work.propagate_current}
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for section in (self._slices_group(), self._propagation_group(), self._automatic_group()):
            layout.addWidget(section)
        self._connect()
        self._show()
        self._show_job()

    def close_session(self) -> None:
        """Disconnects from the session."""
        controller = self.work.session.controller
        self.work.changed.disconnect(self._show)
        controller.state_changed.disconnect(self._show_job)
        controller.progress_changed.disconnect(self._show_progress)
        self.work.close()

    def _slices_group(self) -> QGroupBox:
        self.axis_choice = QComboBox()
        self.axis_choice.setToolTip('Axis to follow: depth or time')
        self.first_box, self.last_box = QSpinBox(), QSpinBox()
        self.first_box.setToolTip('First slice to use')
        self.last_box.setToolTip('Last slice to use')
        self.all_button = button('All', 'Use all slices')
        return group(
            'Slices',
            [
                [QLabel('Along'), self.axis_choice, None],
                [QLabel('From'), self.first_box, None],
                [QLabel('To'), self.last_box, self.all_button],
            ],
        )

    def _propagation_group(self) -> QGroupBox:
        settings = self.work.settings
        self.direction_choice = QComboBox()
        for direction, text in _DIRECTIONS.items():
            self.direction_choice.addItem(text, direction)
        self.direction_choice.setToolTip('Direction from the current slice')
        self.threshold_box = QDoubleSpinBox()
        self.threshold_box.setRange(0, 1)
        self.threshold_box.setSingleStep(0.05)
        self.threshold_box.setValue(settings.min_iou)
        self.threshold_box.setToolTip('Stop where the IoU with the previous slice is lower')
        self.current_button = key_button('propagate')
        self.slice_button = button('Propagate all here', 'Propagate all objects of this slice in one run')
        self.again_button = button(
            'Update from corrected slices', 'Correct slices by hand, then update the slices between and beyond them'
        )
        self.cancel_button = button('Cancel', 'Stop; existing objects stay unchanged')
        self.progress_bar = QProgressBar()
        self.progress_bar.setRange(0, SLIDER_STEPS)
        self.object_choice = QComboBox()
        self.object_choice.setToolTip('Object shown in the strip')
        self.strip = IouStrip()
        self.strip.setToolTip('IoU of each slice with the previous one; click a bar to go to its slice')
        return group(
            'Propagation',
            [
                [QLabel('Direction'), self.direction_choice],
                [QLabel('Stop below'), self.threshold_box],
                [self.current_button, self.slice_button],
                [self.again_button, self.cancel_button],
                [self.progress_bar],
                [QLabel('Object'), self.object_choice],
                [self.strip],
            ],
        )

    def _automatic_group(self) -> QGroupBox:
        defaults = StackSettings()
        self.regions_choice = QComboBox()
        for regions in Regions:
            self.regions_choice.addItem(regions.value, regions)
        self.regions_choice.setToolTip('Regions of each slice that are linked to objects')
        self.side_choice = choice_of_side(defaults.side)
        self.level_slider = slider('Level, from fine (left) to coarse (right)')
        move(self.level_slider, defaults.level)
        self.level_label = QLabel()
        self.min_area_box = _number(
            1, _MAX_AREA_PX, defaults.min_area_px, ' px', 'Smaller regions of a slice are left out'
        )
        self.extent_box = _number(1, 1000, defaults.links.min_extent, '', 'Objects in fewer slices are left out')
        self.gap_box = _number(0, 5, defaults.links.max_gap, '', 'Slices in a row in which an object may be missing')
        for box in (self.extent_box, self.gap_box):
            _name_slices(box)
            box.valueChanged.connect(lambda _value, box=box: _name_slices(box))
        self.automatic_button = button('Automatic 3D', 'Find objects in all slices and link them')
        self.tracks_button = button('Tracks', 'Track objects through a movie, with divisions')
        return group(
            'Whole stack',
            [
                [QLabel('Regions'), self.regions_choice],
                [self.level_label, self.level_slider],
                [QLabel('Objects are'), self.side_choice],
                [QLabel('At least'), self.min_area_box],
                [QLabel('In at least'), self.extent_box],
                [QLabel('Largest gap'), self.gap_box],
                [self.automatic_button, self.tracks_button],
            ],
        )

    def _connect(self) -> None:
        work, controller = self.work, self.work.session.controller
        self.axis_choice.activated.connect(lambda _index: work.set_axis(self.axis_choice.currentData()))
        self.first_box.valueChanged.connect(lambda _value: self._set_range())
        self.last_box.valueChanged.connect(lambda _value: self._set_range())
        self.direction_choice.currentIndexChanged.connect(lambda _index: self._set())
        self.threshold_box.valueChanged.connect(lambda _value: self._set())
        self.object_choice.activated.connect(lambda _index: work.show(self.object_choice.currentData()))
        self.strip.slice_wanted.connect(controller.reporting(work.go_to))
        self.level_slider.valueChanged.connect(lambda _value: self._show_level())
        self.regions_choice.currentIndexChanged.connect(lambda _index: self._show_level())
        actions: dict[QPushButton, Callable[[], None]] = {
            self.all_button: self._all_slices,
            self.current_button: work.propagate_current,
            self.slice_button: work.propagate_all,
            self.again_button: work.propagate_again,
            self.cancel_button: controller.cancel,
            self.automatic_button: lambda: work.automatic(self._automatic_settings()),
            self.tracks_button: lambda: work.automatic(self._automatic_settings(), as_tracks=True),
        }
        for pressed, act in actions.items():
            pressed.clicked.connect(controller.reporting(lambda *_, act=act: act()))
        work.changed.connect(self._show)
        controller.state_changed.connect(self._show_job)
        controller.progress_changed.connect(self._show_progress)

    def _all_slices(self) -> None:
        self.work.z_range = None
        self._show()

    def _set_range(self) -> None:
        first, last = sorted((self.first_box.value(), self.last_box.value()))
        self.work.z_range = (first, last + 1)

    def _set(self) -> None:
        self.work.settings = replace(
            self.work.settings,
            direction=Direction(self.direction_choice.currentData()),
            min_iou=self.threshold_box.value(),
        )

    def _automatic_settings(self) -> StackSettings:
        return StackSettings(
            regions=Regions(self.regions_choice.currentData()),
            level=self.level_slider.value() / SLIDER_STEPS,
            min_area_px=self.min_area_box.value(),
            side=Side(self.side_choice.currentData()),
            links=LinkSettings(max_gap=self.gap_box.value(), min_extent=self.extent_box.value()),
        )

    def _show(self) -> None:
        work = self.work
        target, slicing = work.session.controller.target, work.slicing
        names = {} if target is None else {axis: self._axis_name(axis, target.plane.shape[axis]) for axis in work.axes}
        _fill(self.axis_choice, names, work.axis)
        _fill(self.object_choice, {label: f'Object {label}' for label in work.labels}, work.label)
        last = 0 if slicing is None else slicing.n_slices - 1
        chosen = work.z_range or (0, last + 1)
        for box, value in ((self.first_box, chosen[0]), (self.last_box, chosen[1] - 1)):
            box.blockSignals(True)
            box.setRange(0, last)
            box.setValue(value)
            box.blockSignals(False)
        self._show_level()
        self._show_job()

    def _axis_name(self, axis: int, length: int) -> str:
        image = self.work.session.image
        label = None if image is None else axis_label(image, axis)
        planes = counted(length, 'frame' if (label or '').lower() in _TIMES else 'slice')
        if label is None and len(self.work.axes) > 1:
            label = f'axis {axis + 1}'
        return planes if label is None else f'{label}, {planes}'

    def _show_level(self) -> None:
        is_level = self.regions_choice.currentData() == Regions.LEVEL
        self.level_slider.setEnabled(is_level)
        self.level_label.setText(f'Level {self.level_slider.value() / SLIDER_STEPS:.2f}')

    def _show_job(self) -> None:
        """Follows the slice in view and whether anything runs."""
        work = self.work
        slicing, is_busy = work.slicing, work.session.controller.is_busy
        for needs_stack in (self.current_button, self.slice_button, self.automatic_button, self.tracks_button):
            needs_stack.setEnabled(slicing is not None)
        self.again_button.setEnabled(bool(work.labels))
        self.object_choice.setEnabled(bool(work.labels))
        self.cancel_button.setEnabled(is_busy)
        if not is_busy:
            self.progress_bar.reset()
        n_slices, here = (0, 0) if slicing is None else (slicing.n_slices, slicing.here)
        self.strip.set_slices(work.strip, n_slices, here)

    def _show_progress(self, fraction: float, text: str) -> None:
        self.progress_bar.setValue(round(SLIDER_STEPS * fraction))
        self.progress_bar.setFormat(f'{text[:1].upper()}{text[1:]}  %p%')


def _fill(choice: QComboBox, items: dict[int, str], current: int | None) -> None:
    """Sets the items, by value, without a signal."""
    choice.blockSignals(True)
    choice.clear()
    for value, text in items.items():
        choice.addItem(text, value)
    choice.setCurrentIndex(list(items).index(current) if current in items else -1)
    choice.blockSignals(False)


def _name_slices(box: QSpinBox) -> None:
    """Shows the unit after a number."""
    box.setSuffix(counted(box.value(), 'slice').removeprefix(str(box.value())))


def _number(low: int, high: int, value: int, suffix: str, tooltip: str) -> QSpinBox:
    box = QSpinBox()
    box.setRange(low, high)
    box.setValue(value)
    box.setSuffix(suffix)
    box.setToolTip(tooltip)
    return box
