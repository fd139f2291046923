"""The state of a segmentation and the actions on it, without Qt and without layers.

The controller contains the plane to segment, the prompts, the candidate masks and the running jobs. Views read its
properties when a signal says that something changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from psygnal import Signal

from napari_unsam.engine.inference import Deliver, InferenceThread, Lane, ProgressCallback
from napari_unsam.engine.planes import MAX_MASKS, Embed, EmbeddedPlane, PlaneCache
from napari_unsam.keys import KEYS, TO_UNDO
from napari_unsam.model.candidates import NO_CANDIDATES, Candidates, Selection
from napari_unsam.model.history import MAX_ACTIONS, MAX_BYTES, Action, ActionGroup, ActionHistory, Change
from napari_unsam.model.mask import BoxMask
from napari_unsam.model.plane_prompts import PlanePrompt, on_plane, plane_prompt
from napari_unsam.model.prompts import PendingObject, PointPrompt, Polarity, Prompts
from napari_unsam.model.targets import Proposal, Status, Target
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.granularity import granularity_area
from unsam_mm.masks.hierarchy import MaskHierarchy

__all__ = ['HINT', 'NO_IMAGE', 'Proposal', 'SegmentationController', 'Status', 'Target']

P = ParamSpec('P')
T = TypeVar('T')

NO_IMAGE = 'Choose an image to begin.'
HINT = f'{KEYS["coarser"].key}: larger mask, {KEYS["finer"].key}: smaller mask, {KEYS["commit"].key}: commit.'
_CONTRADICTORY = f'One pixel has object and background clicks. Remove one of them ({KEYS["undo"].key}: undo).'
_ONLY_NEGATIVE = 'There are only background clicks. Click on the object, or draw a box around it.'
_NOT_COMMITTED = 'Commit cancelled: slice or prompts changed.'
_HISTORY_IS_CUT = (
    f'Nothing more to undo: the history keeps {MAX_ACTIONS} actions, or as many as fit in {MAX_BYTES // 2**20} MB.'
)
_NO_MASK_YET = 'No mask yet; click on an object first.'
_NO_MASK_FOUND = 'No mask found here; click elsewhere.'
_PREDICTING, _SEARCHING_LARGER, _SEARCHING_SIZE = 'Predicting masks', 'Searching larger masks', 'Searching this size'


class SegmentationController:
    """The state of one dock.

    Args:
        embed: Analyses a plane; called in the inference thread.
        deliver: Runs a function in the thread of this object; by default at once, in the thread of the caller.
        load: Loads the model; called in the inference thread by `warm_up`.

    Attributes:
        history: The actions of the user.
        planes: The analysed planes.
        target: The plane to segment; None if no plane can be segmented.
        embedding: The plane that is being analysed, which need not be the target; None if there is none.
        polarity: Polarity of the next click without modifier keys.
        status: The status line.
        candidates: The masks for the prompts in view.
        state_changed: Emitted when the status line, the polarity, the history or the jobs changed.
        progress_changed: Emitted with the fraction done, in [0, 1], and a text.
    """

    state_changed = Signal()
    target_changed = Signal()
    prompts_changed = Signal()
    proposal_changed = Signal()
    progress_changed = Signal(float, str)

    def __init__(
        self,
        embed: Embed,
        deliver: Deliver = lambda call: call(),
        load: Callable[[], None] | None = None,
    ) -> None:
        self.history = ActionHistory()
        self.target: Target | None = None
        self.embedding: Target | None = None
        self.polarity = Polarity.POSITIVE
        self.status = Status(NO_IMAGE)
        self.candidates = NO_CANDIDATES
        self.planes = PlaneCache(embed)
        self._load = load
        self._jobs = InferenceThread(deliver)
        self._jobs.changed.connect(self.state_changed.emit)
        self._jobs.progressed.connect(self.progress_changed.emit)
        self._jobs.failed.connect(self._failed)
        self.history.changed.connect(self.state_changed.emit)
        self._prompts: dict[Hashable, Prompts] = {}
        self._no_target = NO_IMAGE
        # The function to call after a prediction, and the key of that prediction, see `_prediction_key`.
        self._waiting: tuple[Hashable, Callable[[], None]] | None = None
        self._is_quiet = False

    @property
    def plane(self) -> EmbeddedPlane | None:
        """The analysed target; None if it is not analysed."""
        return self.planes.get(self.target)

    @property
    def hierarchy(self) -> MaskHierarchy | None:
        """The region tree of the target; None if it is not analysed, or analysed in tiles."""
        return self.plane.hierarchy if self.plane is not None else None

    @property
    def prompts(self) -> Prompts:
        """All prompts on the image, on any plane."""
        return self.prompts_of(None if self.target is None else self.target.source)

    def prompts_of(self, source: Hashable) -> Prompts:
        """All prompts on an image."""
        return self._prompts.get(source, Prompts())

    @property
    def prompts_here(self) -> Prompts:
        """The prompts of the current object on the plane in view."""
        return Prompts() if self.target is None else on_plane(self.prompts, self.target.plane).current()

    @property
    def is_busy(self) -> bool:
        """True if a job runs that may take long."""
        return self.job is not None

    @property
    def job(self) -> str | None:
        """The name of the running job that may take long; None if there is none."""
        in_tiles = self.plane is not None and self.plane.hierarchy is None
        lanes = (Lane.TASK, Lane.LONG, Lane.PLANE, *([Lane.CLICK] if in_tiles else []))
        return next(filter(None, map(self._jobs.name, lanes)), None)

    def has_job(self, name: str) -> bool:
        """True if a job of that name runs or waits."""
        return self._jobs.has_job(name)

    @property
    def is_loading(self) -> bool:
        """True if an idle job, such as loading the model, is not done."""
        return self._jobs.name(Lane.IDLE) is not None

    @property
    def is_predicting(self) -> bool:
        """True if the masks for the prompts in view are not predicted yet."""
        return self._jobs.name(Lane.CLICK) == _PREDICTING

    @property
    def proposal(self) -> Proposal | None:
        """The current mask; None if there is none."""
        shown = self.candidates.shown
        if shown is None or self.target is None:
            return None
        parts = shown.box_xyxy, shown.mask, shown.granularity, shown.score, shown.node
        return Proposal(*parts, plane=self.target.plane, rank=self.candidates.rank, count=len(self.candidates))

    def show_info(self, text: str) -> None:
        """Sets the status line."""
        self.status = Status(text)
        self.state_changed.emit()

    def show_problem(self, text: str) -> None:
        """Sets the status line to a problem."""
        self.status = Status(text, is_problem=True)
        self.state_changed.emit()

    def reporting(self, act: Callable[P, None]) -> Callable[P, None]:
        """Wraps a function, such as that of a button, so that its `UnSAMError` is shown in the status line."""

        def reported(*args: P.args, **options: P.kwargs) -> None:
            try:
                act(*args, **options)
            except UnSAMError as error:
                self.show_problem(str(error))

        return reported

    def show_no_target(self) -> None:
        """Shows why nothing can be segmented."""
        self.show_problem(self._no_target)

    def set_target(self, target: Target | None, reason: str = NO_IMAGE) -> None:
        """Changes the plane to segment. Prompts stay on their image, and a running analysis of another plane goes on.

        Args:
            target: The new target, or None.
            reason: Shown to the user if the target is None.
        """
        if target is not None and target == self.target:
            self.target = target  # its function `pixels` may be new
            return
        before, self.target = self.target, target
        self._no_target, self.candidates = reason, NO_CANDIDATES
        if target is not None and (before is None or before.source != target.source):
            self.prompts_changed.emit()
        self.show_info(reason if target is None else f'Click on an object in "{target.name}".')
        self.target_changed.emit()
        self._predict()
        if self.prompts_here and self.plane is None and self.embedding is None:
            self.embed()  # its analysis was cancelled to analyse another plane

    def forget(self, source: Hashable) -> None:
        """Drops the analysed planes of an image that has changed or was removed."""
        if self.embedding is not None and self.embedding.source == source:
            self._jobs.cancel(Lane.PLANE)
            self.embedding = None
        self.planes.forget_source(source)
        if self.target is not None and self.target.source == source:
            self._predict()

    def use_weights(self, path: Path | None) -> None:
        """Uses other weights of the model; None is the weights of the package."""

        def loaded(_: None) -> None:
            self.planes.clear()
            self._predict()
            if self.prompts_here:
                self.embed()
            else:
                self.show_info('The model is ready. Click on an object.')

        self.run('Loading the weights', lambda _: self.planes.embedder.use_weights(path), loaded)

    def run_when_idle(self, name: str, work: Callable[[], None]) -> None:
        """Runs a function in the inference thread while it is idle; replaces the previous idle job."""
        self._jobs.start(Lane.IDLE, name, lambda _: work())

    def warm_up(self) -> None:
        """Loads the model in the background, once, so that the first click is fast."""
        load, self._load = self._load, None
        if load is not None:
            self.run_when_idle('Loading the model', load)

    def embed(self) -> None:
        """Analyses the target in the background, even if it is analysed already; cancels that of another plane."""
        target = self.target
        if target is None:
            self.show_no_target()
            return
        self.planes.forget(target)
        self.embedding = target
        name = f'Analysing "{target.name}"'
        self._jobs.start(Lane.PLANE, name, partial(self.planes.get_or_embed, target), partial(self._embedded, target))
        self.progress_changed.emit(0.0, 'Starting')
        self.show_info(f'{name} ...')

    def run(
        self,
        name: str,
        work: Callable[[ProgressCallback], T],
        on_done: Callable[[T], None],
        on_failed: Callable[[str], None] = lambda reason: None,
        is_task: bool = False,
    ) -> None:
        """Runs a job in the inference thread; cancels the previous one, except for tasks.

        Args:
            name: Shown while it runs.
            work: See `InferenceThread.start`; each call of its progress callback also answers waiting clicks.
            on_done: See there; not called if the job is cancelled.
            on_failed: See there; the reason is also shown to the user.
            is_task: True for a short job, which runs after earlier tasks and interrupts a long job.
        """

        lane = Lane.TASK if is_task else Lane.LONG
        before = self._jobs.name(lane)
        self._jobs.start(lane, name, work, on_done, on_failed)
        self.progress_changed.emit(0.0, name)
        other = '' if before in (None, name) else f' "{before}" {"runs first" if is_task else "was stopped"}.'
        self.show_info(f'{name} ...{other}')

    def cancel(self) -> None:
        """Stops all jobs; prompts are kept."""
        was_busy = self.is_busy
        self._jobs.cancel()
        self.embedding = self._waiting = None
        if was_busy:
            self.show_info('Cancelled. Prompts and analysed slices are kept.')

    def close(self, timeout_s: float = 0.0) -> bool:
        """Stops the inference thread; True if it ended within the timeout. The object cannot be used afterwards."""
        self.embedding = None
        return self._jobs.close(timeout_s)

    def add_prompt(self, position: Sequence[float], polarity: Polarity | None = None) -> bool:
        """Adds a click, and analyses the plane if needed.

        Args:
            position: Position in the frame of the image, one number per axis.
            polarity: Polarity of the click; by default `self.polarity`.

        Returns:
            True if the click lies in the plane in view; if not, a problem is shown.
        """
        if self.target is None:
            self.show_no_target()
            return False
        if self.target.plane.pixel(position) is None:
            self.show_problem(f'That click lies outside "{self.target.name}".')
            return False
        point = PointPrompt(tuple(map(float, position)), polarity or self.polarity, self.prompts_here.object_id)
        self.set_prompts(replace(self.prompts, points=(*self.prompts.points, point)), 'click')
        return True

    def set_prompts(self, prompts: Prompts, name: str = 'change prompts') -> None:
        """Replaces all prompts on the image, as one action; clicks outside the image are left out."""
        if self.target is None:
            return
        inside = self.target.plane.inside
        prompts = replace(prompts, points=tuple(point for point in prompts.points if inside(point.position)))
        if prompts != self.prompts:
            self.history.do(self._prompts_change(name, prompts))

    def set_prompts_without_undo(self, source: Hashable, prompts: Prompts) -> None:
        """Sets the prompts on an image without an action in the history."""
        self._prompts[source] = prompts
        if self.target is not None and source == self.target.source:
            self._predict()
            self.prompts_changed.emit()

    def clear_prompts(self) -> None:
        """Removes the prompts on the plane in view."""
        if self.target is not None:
            self.set_prompts(self.prompts.without(on_plane(self.prompts, self.target.plane)), 'clear prompts')

    def next_object_action(self, done: Prompts, pending: PendingObject | None = None) -> Action:
        """The action that starts the next object.

        Args:
            done: Prompts to remove.
            pending: The current object, if it is to be committed later.
        """
        left, latest = self.prompts.without(done), max(self.prompts.object_id, self.prompts_here.object_id)
        after = replace(left, pending=(*left.pending, *([] if pending is None else [pending])), object_id=latest + 1)
        return self._prompts_change('next object' if pending is None else 'keep object', after)

    def undo(self) -> None:
        """Undoes the last action."""
        name = self._quietly(self.history.undo)
        nothing = _HISTORY_IS_CUT if self.history.is_cut else 'Nothing to undo.'
        self.show_info(nothing if name is None else f'Undone: {name}. Press {KEYS["redo"].key} to redo.')

    def redo(self) -> None:
        """Redoes the last undone action."""
        name = self._quietly(self.history.redo)
        self.show_info('Nothing to redo.' if name is None else f'Redone: {name}. {TO_UNDO}')

    def toggle_polarity(self) -> None:
        """Switches between object and background clicks."""
        self.set_polarity(self.polarity.flipped())

    def set_polarity(self, polarity: Polarity) -> None:
        """Chooses object or background clicks."""
        if polarity is not self.polarity:
            self.history.do(Change('switch click type', self._put_polarity, self.polarity, polarity))

    def restore_action(self, source: Hashable, prompts: Prompts, polarity: Polarity) -> Action:
        """The action that replaces the prompts of an image and the polarity, for example after a restart."""
        change_prompts = Change(
            'prompts', partial(self.set_prompts_without_undo, source), self.prompts_of(source), prompts
        )
        change_polarity = Change('polarity', self._put_polarity, self.polarity, polarity)
        return ActionGroup('restore prompts', [change_prompts, change_polarity])

    def larger_mask(self) -> None:
        """Shows the next larger mask."""
        self._step(1)

    def smaller_mask(self) -> None:
        """Shows the next smaller mask."""
        self._step(-1)

    def step_region(self, steps: int) -> None:
        """Shows a larger region under the prompts for positive steps, a smaller one for negative steps.

        Without regions, as on planes in tiles, it searches the next larger or smaller mask.
        """
        shown = self.candidates.shown
        if shown is None:
            self.show_problem(_NO_MASK_YET)
        elif len(self.candidates.chain):
            self._choose(self.candidates.stepped_in_chain(steps))
        else:
            prompt = plane_prompt(self.prompts_here, self.target.plane)
            self._search(partial(self.plane.next_by_area, prompt, shown.area_px, steps), _last_mask(steps))

    def set_granularity(self, granularity: float) -> None:
        """Shows the region or mask under the prompts whose granularity is nearest to a number in [0, 1]."""
        if self.candidates.shown is None:
            self.show_problem(_NO_MASK_YET)
        elif len(self.candidates.chain):
            self._choose(self.candidates.at_granularity(granularity))
        else:
            plane, prompt = self.plane, plane_prompt(self.prompts_here, self.target.plane)
            area_px = granularity_area(granularity, np.prod(plane.size_hw))
            self._search(lambda _: plane.answer(*prompt.parts, area_px), _NO_MASK_FOUND)

    def after_prediction(self, call: Callable[[], None]) -> None:
        """Calls a function once the masks for the prompts in view are predicted; never if the prompts change first."""
        call = self.reporting(call)
        if self.prompts_here and self.plane is None and self.embedding == self.target:
            self._waiting = self._prediction_key(), call
            self.show_info('Waiting for the mask.')
        else:
            self._once_predicted(call)

    def _once_predicted(self, call: Callable[[], None]) -> None:
        if self.is_predicting:
            self._waiting = self._prediction_key(), call
        else:
            call()

    def _call_waiting(self) -> None:
        """Calls the function that waits for the masks of the prompts in view, if there is one."""
        if self._waiting is not None and self._waiting[0] == self._prediction_key():
            (_, call), self._waiting = self._waiting, None
            call()

    def _prediction_key(self) -> Hashable:
        """What the candidates depend on: the plane, the version of its pixels and model, the prompts."""
        if self.target is None:
            return None
        # Not the target, which can read the image: the history would keep the image in memory.
        return self.target.source, self.target.plane, self.planes.version(self.target.source), self.prompts_here

    def _quietly(self, call: Callable[[], T]) -> T:
        """Calls a function; the masks that it predicts or shows do not change the status line."""
        self._is_quiet = True
        try:
            return call()
        finally:
            self._is_quiet = False

    def _step(self, direction: int) -> None:
        stepped = self.candidates.stepped(direction)
        if self.candidates.shown is None:
            self.show_problem(_NO_MASK_YET)
        elif stepped is self.candidates:
            self.show_info(_last_mask(direction))
        else:
            self._choose(stepped)

    def _choose(self, candidates: Candidates) -> None:
        """Shows another candidate, as an action of the user."""
        before, after = self.candidates.selection, candidates.selection
        if self.is_predicting:
            self._show(candidates)  # only until the new masks are predicted, so not in the history
        elif after != before:
            key = self._prediction_key()
            select = partial(self._select, key)
            self.history.do(Change('choose mask', select, before, after, merge_key=('choose mask', key)))

    def _show(self, candidates: Candidates, is_quiet: bool = False) -> None:
        self.candidates = candidates
        if not len(candidates):
            self.show_problem(_NO_MASK_FOUND)
        elif not is_quiet:
            self.show_info(HINT)
        self.proposal_changed.emit()

    def _select(self, key: Hashable, selection: Selection | None) -> None:
        """Shows a mask of the candidates once they are predicted, unless `_prediction_key` has changed by then."""
        is_quiet = self._is_quiet

        def show() -> None:
            if len(self.candidates):
                self._show(self.candidates.with_selection(selection), is_quiet)

        if selection is not None and key == self._prediction_key():
            self._once_predicted(show)

    def _prompts_change(self, name: str, after: Prompts) -> Action:
        """The action that replaces the prompts on the image; undone, it also shows the mask that was shown before."""
        select = Change(name, partial(self._select, self._prediction_key()), self.candidates.selection, None)
        return ActionGroup(
            name, [select, Change(name, partial(self._put_prompts, self.target.source), self.prompts, after)]
        )

    def _put_prompts(self, source: Hashable, prompts: Prompts) -> None:
        self.set_prompts_without_undo(source, prompts)
        here = self.target is not None and source == self.target.source
        if here and self.plane is None and self.embedding != self.target and self.prompts_here:
            self.embed()

    def _put_polarity(self, polarity: Polarity) -> None:
        self.polarity = polarity
        self.state_changed.emit()

    def _embedded(self, target: Target, _plane: EmbeddedPlane) -> None:
        self.embedding = None
        if target == self.target:
            self._jobs.cancel(Lane.CLICK)
            self.candidates = NO_CANDIDATES
        self.show_info(f'"{target.name}" is ready. Click on an object.')
        self._predict()
        if self._waiting is not None and self._waiting[0] != self._prediction_key():
            self._waiting = None
            self.show_problem(_NOT_COMMITTED)
        elif not self.is_predicting:
            self._call_waiting()

    def _failed(self, reason: str) -> None:
        if self._jobs.name(Lane.PLANE) is None:
            self.embedding = self._waiting = None
        self.show_problem(reason)

    def _predict(self) -> None:
        """Predicts the masks for the prompts in view; if that is not possible, drops the previous masks."""
        if self.is_predicting:
            self._waiting = None
        plane, here = self.plane, self.prompts_here
        if plane is not None and here:
            prompt = plane_prompt(here, self.target.plane)
            if prompt.has_positive and not prompt.is_contradictory:
                self._start_prediction(plane, prompt)
                return
            self.status = Status(_CONTRADICTORY if prompt.has_positive else _ONLY_NEGATIVE, is_problem=True)
        self._jobs.cancel(Lane.CLICK)
        self.candidates = NO_CANDIDATES
        self.proposal_changed.emit()
        self.state_changed.emit()

    def _start_prediction(self, plane: EmbeddedPlane, prompt: PlanePrompt) -> None:
        """Predicts masks, on planes in tiles the best one first. Replaces the prediction for earlier prompts."""
        in_tiles, is_quiet = plane.hierarchy is None, self._is_quiet

        def predict(max_masks: int, _progress: ProgressCallback) -> Candidates:
            masks = plane.answer(*prompt.parts, mask=prompt.mask, max_masks=max_masks)
            return Candidates.from_masks(masks, plane.chain(*prompt.parts), plane.hierarchy)

        def predicted(candidates: Candidates) -> None:
            self._show(candidates, is_quiet)
            if in_tiles:
                work = partial(predict, MAX_MASKS)
                self._jobs.start(Lane.CLICK, _SEARCHING_LARGER, work, self._add_candidates)
            self._call_waiting()

        work = partial(predict, 1 if in_tiles else MAX_MASKS)
        self._jobs.start(Lane.CLICK, _PREDICTING, work, predicted)

    def _add_candidates(self, candidates: Candidates) -> None:
        shown = self.candidates.shown  # not always the first mask: the user may have stepped on
        self.candidates = candidates if shown is None else candidates.still_showing(shown)
        self.proposal_changed.emit()

    def _search(self, search: Callable[[ProgressCallback], list[BoxMask]], not_found: str) -> None:
        """Searches a mask by its size, for prompts without regions of a tree, as on planes in tiles."""

        def done(found: list[BoxMask]) -> None:
            if found:
                self._choose(self.candidates.with_other_mask(found[0]))
            else:
                self.show_info(not_found)

        self._jobs.start(Lane.CLICK, _SEARCHING_SIZE, search, done)


def _last_mask(direction: int) -> str:
    return f'This is the {"largest" if direction > 0 else "smallest"} mask.'
