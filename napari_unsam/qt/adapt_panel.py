"""The section that adapts the model to an image without labels, and compares both models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import finalize

import numpy as np
from napari.layers import Labels
from qtpy.QtCore import QTimer

from napari_unsam.adapt.comparison import Comparison, compare, window_around
from napari_unsam.adapt.crops import Crop, choose_crops, write_crops
from napari_unsam.adapt.job import IMAGES, AdaptJob, AdaptSettings, JobState, Stage
from napari_unsam.controller import NO_IMAGE
from napari_unsam.io.autosave import image_identity
from napari_unsam.model.plane_prompts import PlanePrompt, on_plane, plane_prompt
from napari_unsam.model.text import counted
from napari_unsam.qt.controls import SLIDER_STEPS, JobBar, Panel, wrapping_label
from napari_unsam.qt.loss_plot import LossPlot
from napari_unsam.viewer.layers import following_arguments
from napari_unsam.viewer.workarounds import insert_quietly, remove_layers
from unsam_mm.errors import UnSAMError
from unsam_mm.weights import cache_dir

if TYPE_CHECKING:
    from napari_unsam.engine.inference import ProgressCallback
    from napari_unsam.model.targets import Target

BEFORE_NAME, AFTER_NAME = 'UnSAM original model', 'UnSAM adapted model'
_POLL_MS = 500
_WRITING = 'Writing training crops'
_MAX_CROPS, _MAX_ITERATIONS = 64, 5000


class AdaptPanel(Panel):
    """Trains on the open image, shows the loss, and compares both models on the plane in view.

    Attributes:
        job: The training of the chosen image; None without an image.
    """

    title = 'Adapt to my images'

    def build(self, folder: Path | None = None) -> None:
        """Makes the controls.

        Args:
            folder: Folder of all trainings; each image has a folder in it.
        """
        self._folder = folder or cache_dir() / 'napari_unsam' / 'adapted'
        self.job: AdaptJob | None = None
        self._jobs: dict[str, AdaptJob] = {}  # by image; a training continues while another image is chosen
        self._layers: dict[str, Labels] = {}
        self._make_controls()
        self._timer = QTimer(self, interval=_POLL_MS)
        self._timer.timeout.connect(self.refresh)
        # Trainings also stop when Python ends, and when napari deletes the dock with its window without a notice.
        self._stop = finalize(self, _stop, self._jobs)
        self.destroyed.connect(self._stop)
        self.subscribe(self._image_changed, self._session.image_changed)
        self.subscribe(self._show_buttons, self._session.controller.state_changed)
        self._image_changed()

    def close_session(self) -> None:
        """Stops a running training when the dock closes; it can be resumed."""
        self._timer.stop()
        super().close_session()
        self._stop()

    def start(self) -> None:
        """Writes crops of the image in the inference thread, then trains on them in a separate process."""
        session, job = self._session, self.job
        if job is None or self._is_adapting():
            return
        work = self._make_crop_writer(job)
        settings = AdaptSettings(iterations=self.iterations_box.value())
        session.controller.run(_WRITING, work, partial(self._train, job, settings), lambda _reason: self.refresh())
        self._show_buttons()

    def cancel(self) -> None:
        """Stops the training; Start resumes from its last checkpoint."""
        if self._writes_crops:
            self._session.controller.cancel()
        if self.job is not None:
            self.job.cancel()
        self.refresh()

    def compare(self) -> None:
        """Compares both models on the plane in view: the masks of its prompts, or all masks if there are none."""
        session, target = self._session, self._session.controller.target
        if target is None or self.job is None or self.job.result is None:
            return
        prompts = on_plane(session.controller.prompts_here, target.plane)
        prompt = plane_prompt(prompts, target.plane) if prompts else None
        window = window_around(target.plane.size_hw, _centre(prompt, target))
        adapted = self.job.result

        def work(progress: ProgressCallback) -> Comparison:
            return compare(_pixels(target, *window), window, adapted, prompt, progress)

        session.controller.run('Comparing both models', work, partial(self._show_comparison, target), is_task=True)

    def use_adapted(self, is_adapted: bool) -> None:
        """Switches clicks between the adapted and the packaged model."""
        self._session.controller.use_weights(self.job.result if is_adapted and self.job is not None else None)

    def refresh(self) -> None:
        """Shows the progress of the training."""
        if self.job is None:
            self._show(JobState(Stage.NONE, False, 0.0, NO_IMAGE))
            return
        state = self.job.poll()
        self._show(state)
        if self._timer.isActive() and not self._is_adapting():
            self._timer.stop()
            if state.problem is None:
                self.show_info(f'{state.text}.')
            else:
                self.show_problem(state.problem)

    def _make_controls(self) -> None:
        self.crops_box = self.make_number(
            1, _MAX_CROPS, 8, 'Evenly spaced crops of the image to train on; each takes some seconds'
        )
        self.iterations_box = self.make_number(
            10,
            _MAX_ITERATIONS,
            AdaptSettings.iterations,
            'Training steps; one takes about half a second on one core',
            step=50,
        )
        self.start_button = self.make_button(
            'Start', 'Train on the image at its current contrast limits; needs no labels', self.start
        )
        self.cancel_button = self.make_button('Cancel', 'Stop the training; Start resumes it', self.cancel)
        self.progress_bar, self.status_label, self.plot = JobBar(), wrapping_label(), LossPlot('Loss')
        self.compare_button = self.make_button(
            'Compare on this slice',
            'Show the masks of both models, for the prompts on this slice if there are any',
            self.compare,
        )
        self.after_box = self.make_check_box(
            'Show the adapted model', 'Switch between the two layers of the comparison', self._show_layer
        )
        self.use_box = self.make_check_box('Use the adapted model', 'Use it for clicks from now on', self.use_adapted)
        grid = self.lay_out(
            ['Crops', self.crops_box],
            ['Steps', self.iterations_box],
            [self.start_button, self.cancel_button],
            [self.progress_bar],
            [self.status_label],
            [self.plot],
            [self.compare_button],
            [self.after_box],
            [self.use_box],
        )
        grid.setRowStretch(grid.rowCount(), 1)

    def _image_changed(self) -> None:
        image, self.job = self._session.image, None
        if image is not None:
            identity = image_identity(image)
            self.job = self._jobs.setdefault(identity, AdaptJob(self._folder / identity))
        self.use_box.setChecked(False)
        self.refresh()

    @property
    def _writes_crops(self) -> bool:
        return self._session.controller.has_job(_WRITING)

    def _is_adapting(self) -> bool:
        """True if the model is being adapted to this or another image; one training uses all cores."""
        return self._writes_crops or any(job.is_running for job in self._jobs.values())

    def _make_crop_writer(self, job: AdaptJob) -> Callable[[ProgressCallback], int]:
        session = self._session
        plane = session.target_at([0] * session.image.ndim).plane
        lengths = [length for axis, length in enumerate(plane.shape) if axis not in plane.axes]
        crops = choose_crops(lengths, plane.size_hw, self.crops_box.value())
        targets = {}
        for crop in crops:
            at = iter(crop.index)
            targets[crop.name] = session.target_at(
                [0 if axis in plane.axes else next(at) for axis in range(len(plane.shape))]
            )

        def read(crop: Crop) -> np.ndarray:
            return _pixels(targets[crop.name], crop.rows, crop.columns)

        return lambda progress: write_crops(job.folder / IMAGES, crops, read, progress)

    def _train(self, job: AdaptJob, settings: AdaptSettings, _written: int) -> None:
        if job is not self.job:
            return
        try:
            job.start(settings)
            self.show_info('Training in the background; you can keep clicking.')
        except UnSAMError as error:
            self.show_problem(str(error))
        self._timer.start()
        self.refresh()

    def _show(self, state: JobState) -> None:
        self.progress_bar.setValue(round(SLIDER_STEPS * state.fraction))
        text = state.text if state.problem is None else f'⚠ {state.problem}'
        if not state.is_running and any(job.is_running for job in self._jobs.values()):
            text += '. Training on another image'
        self.status_label.setText(text)
        self.plot.show_curve(list(state.losses), list(state.losses.values()), state.iterations)
        self._show_buttons()

    def _show_buttons(self) -> None:
        job = self.job
        is_running = self._writes_crops or (job is not None and job.is_running)
        is_free = job is not None and not self._is_adapting()
        has_result = job is not None and job.result is not None and not is_running
        self.start_button.setEnabled(is_free)
        self.cancel_button.setEnabled(is_running)
        for box in (self.crops_box, self.iterations_box):
            box.setEnabled(is_free)
        self.compare_button.setEnabled(has_result and self._session.controller.target is not None)
        self.after_box.setEnabled(bool(self._layers))
        self.use_box.setEnabled(has_result)

    def _show_comparison(self, target: Target, found: Comparison) -> None:
        session, plane = self._session, target.plane
        if session.image is None or session.image.unique_id != target.source:
            return
        viewer = session.viewer
        remove_layers(viewer, list(self._layers.values()))
        origin = list(plane.index)
        for axis, start in zip(plane.axes, (found.top, found.left), strict=True):
            origin[axis] = start
        placed = following_arguments(session.frame, origin)
        for name, labels in ((BEFORE_NAME, found.before), (AFTER_NAME, found.after)):
            shape = [1] * len(plane.shape)
            shape[plane.axes[0]], shape[plane.axes[1]] = labels.shape
            self._layers[name] = Labels(labels.reshape(shape), name=name, opacity=0.5, **placed)
            insert_quietly(viewer, self._layers[name])
        self.after_box.setChecked(True)
        self._show_layer(True)
        self._show_buttons()
        self.show_info(
            f'{_count_objects(found.before)} by the original model, {_count_objects(found.after)} by the adapted one; '
            f'they agree on {found.agreement:.0%} of the objects\' area. "Show the adapted model" switches.'
        )

    def _show_layer(self, is_after: bool) -> None:
        for name, layer in self._layers.items():
            layer.visible = (name == AFTER_NAME) == is_after


def _stop(jobs: dict[str, AdaptJob]) -> None:
    for job in jobs.values():
        job.cancel()


def _pixels(target: Target, rows: slice, columns: slice) -> np.ndarray:
    """The part of a plane that is given to the model; the rest is not read."""
    return target.pixels()[0][rows, columns]


def _centre(prompt: PlanePrompt | None, target: Target) -> tuple[float, float]:
    """Row and column of the centre of the comparison: of the first click, else of the box, else of the plane."""
    height, width = target.plane.size_hw
    if prompt is not None and prompt.points_xy is not None:
        x, y = prompt.points_xy[0]
    elif prompt is not None and prompt.box_xyxy is not None:
        x, y = prompt.box_xyxy.reshape(2, 2).mean(axis=0)
    else:
        x, y = width / 2, height / 2
    return float(y), float(x)


def _count_objects(labels: np.ndarray) -> str:
    return counted(int(labels.max()), 'object')
