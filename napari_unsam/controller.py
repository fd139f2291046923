"""The state of a segmentation and the actions on it, without Qt and without layers.

The controller holds what is being segmented, the prompts on it, the masks that they may mean and the jobs that run.
It never shows anything: views read its properties when a signal says that something changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import numpy as np
from psygnal import Signal

from napari_unsam.engine.embeddings import StackReport
from napari_unsam.engine.inference import Deliver, InferenceThread, Lane, ProgressCallback
from napari_unsam.engine.planes import Embed, EmbeddedPlane, PlaneCache
from napari_unsam.keys import KEYS, TO_UNDO
from napari_unsam.model.candidates import NO_CANDIDATES, Candidates, Place
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
_NO_FIT = f'One pixel has object and background clicks. Remove one of them ({KEYS["undo"].key}: undo).'
_ONLY_NEGATIVE = 'There are only background clicks. Click on the object, or draw a box around it.'
_NOT_DONE = 'Commit cancelled: slice or prompts changed.'
_FORGOTTEN = (
    f'Nothing more to undo: the history keeps {MAX_ACTIONS} actions, or as many as fit in {MAX_BYTES // 2**20} MB.'
)
_NOTHING_YET = 'No mask yet; click on an object first.'
_NOTHING_THERE = 'No mask found here; click elsewhere.'
_ANSWER, _MORE, _EXACT = 'Predicting masks', 'Searching larger masks', 'Searching this size'


class SegmentationController:
    """The state of one dock.

    Args:
        embed: Analyses a plane; called in the inference thread.
        deliver: Runs a function in the thread that this object belongs to; by default at once, in the caller's.
        load: Does what the first embedding would have to do besides; called in the inference thread by `warm_up`.

    Attributes:
        history: Everything that the user did, to be undone.
        target: What is being segmented; None if nothing can be.
        embedding: The plane that is being analysed, which may not be the target.
        polarity: The polarity of the next plain click.
        status: The latest line for the user.
        candidates: The masks that fit the prompts on this plane.
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
        self._embed, self._load = embed, load
        self._jobs = InferenceThread(deliver)
        self._jobs.changed.connect(self.state_changed.emit)
        self._jobs.progressed.connect(self.progress_changed.emit)
        self.history.changed.connect(self.state_changed.emit)
        self._planes = PlaneCache()
        self._prompts: dict[Hashable, Prompts] = {}
        self._no_target = NO_IMAGE
        self._waiting: tuple[Hashable, Callable[[], None]] | None = (
            None  # which prompts are to be answered, and for what
        )
        self._is_quiet = False

    @property
    def plane(self) -> EmbeddedPlane | None:
        """The analysed target; None before."""
        return self._planes.get(self.target)

    @property
    def hierarchy(self) -> MaskHierarchy | None:
        """The region tree of the target; None before it is made, and for planes that are analysed in windows."""
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
        """Whether something runs that may take long."""
        return self.job is not None

    @property
    def job(self) -> str | None:
        """What runs and may take long."""
        in_windows = self.plane is not None and self.plane.hierarchy is None
        lanes = (Lane.TASK, Lane.LONG, Lane.PLANE, *([Lane.CLICK] if in_windows else []))
        return next(filter(None, map(self._jobs.name, lanes)), None)

    def runs(self, name: str) -> bool:
        """Whether a job of that name runs, or waits for others."""
        return self._jobs.holds(name)

    @property
    def is_loading(self) -> bool:
        """Whether the model is being loaded in the background."""
        return self._jobs.name(Lane.IDLE) is not None

    @property
    def is_answering(self) -> bool:
        """Whether the current mask does not answer the prompts yet."""
        return self._jobs.name(Lane.CLICK) == _ANSWER

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
        """Sets the status line to a problem that the user has to know of."""
        self.status = Status(text, is_problem=True)
        self.state_changed.emit()

    def reporting(self, act: Callable[P, None]) -> Callable[P, None]:
        """Wraps a function, such as one for a button or a key, so that its `UnSAMError` is shown in the status line."""

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
        """Changes what is being segmented; prompts stay with their image, and the plane that is being analysed is finished.

        Args:
            target: The new target, or None.
            reason: What the user is told if there is none.
        """
        if target is not None and target == self.target:
            self.target = target  # which may read its pixels in another way
            return
        before, self.target = self.target, target
        self._no_target = reason
        self._drop_answer()
        if target is not None and (before is None or before.source != target.source):
            self.prompts_changed.emit()
        self.show_info(reason if target is None else f'Click on an object in "{target.name}".')
        self.target_changed.emit()
        self._predict()
        if self.prompts_here and self.plane is None and self.embedding is None:
            self.embed()  # it was given up for another one

    def forget(self, source: Hashable) -> None:
        """Drops the analysed planes of an image that has changed or was removed."""
        if self.embedding is not None and self.embedding.source == source:
            self._jobs.cancel(Lane.PLANE)
            self.embedding = None
        self._planes.forget_source(source)
        if self.target is not None and self.target.source == source:
            self._drop_answer()
            self.proposal_changed.emit()
            self.state_changed.emit()

    def use_weights(self, path: Path | None) -> None:
        """Uses other weights of the model; None for those of the package."""

        def loaded(_: None) -> None:
            self._planes.clear()
            self._drop_answer()
            if self.prompts_here:
                self.embed()
            else:
                self.show_info('The model is ready. Click on an object.')
            self._predict()

        self.run('Loading the weights', lambda _: self._embed.use_weights(path), loaded)

    def load_ahead(self, name: str, work: Callable[[], None]) -> None:
        """Runs something in the inference thread while that is idle; replaces the idle job before."""
        self._jobs.start(Lane.IDLE, name, lambda _: work(), lambda _: None, self._failed)

    def warm_up(self) -> None:
        """Loads the model in the background, once, so that the first click need not wait for it."""
        load, self._load = self._load, None
        if load is not None:
            self.load_ahead('Loading the model', load)

    def embed(self) -> None:
        """Analyses the target in the background, again if it is analysed; cancels the plane that is being analysed."""
        target = self.target
        if target is None:
            self.show_no_target()
            return
        self._planes.forget(target)
        self.embedding = target
        name = f'Analysing "{target.name}"'
        done = partial(self._embedded, target)
        self._jobs.start(Lane.PLANE, name, partial(self.embedded, target), done, self._failed)
        self.progress_changed.emit(0.0, 'Starting')
        self.show_info(f'{name} ...')

    def embedded(self, target: Target, progress: ProgressCallback) -> EmbeddedPlane:
        """An analysed plane, from memory, from the store, or analysed now; call it only inside a job."""
        plane = self._planes.get(target)
        if plane is None:
            version = self.version(target.source)
            plane = self._embed(target, progress)
            self._planes.put(target, plane, version)
        return plane

    def version(self, source: Hashable) -> int:
        """How often the analysed planes of an image were dropped; any thread may ask."""
        return self._planes.version(source)

    def store_planes(
        self, targets: Sequence[Target], progress: ProgressCallback, kept: Callable[[int], None]
    ) -> StackReport:
        """Analyses planes into the store, see `PlaneEmbedder.stack`; call it only inside a job."""
        return self._embed.stack(targets, progress, kept)

    def run(
        self,
        name: str,
        work: Callable[[ProgressCallback], T],
        on_done: Callable[[T], None],
        on_failed: Callable[[str], None] | None = None,
        is_task: bool = False,
    ) -> None:
        """Runs something long in the inference thread; stops the one before, except for tasks.

        Args:
            name: Shown while it runs.
            work: Is given a callback for the fraction done and what is being done, which raises `JobCancelled` once the
                job is to stop, and lets clicks be answered.
            on_done: Told what `work` returned, in the thread that this object belongs to; never called once cancelled. May
                raise UnSAMError, as `work` may.
            on_failed: Told why it failed; the user is told anyway.
            is_task: Whether it is done in the midst of what takes longer, after other tasks; none of them stops another.
        """

        def failed(reason: str) -> None:
            self._failed(reason)
            if on_failed is not None:
                on_failed(reason)

        def done(result: T) -> None:
            try:
                on_done(result)
            except UnSAMError as error:  # what it was for may be gone
                failed(str(error))

        lane = Lane.TASK if is_task else Lane.LONG
        before = self._jobs.name(lane)
        self._jobs.start(lane, name, work, done, failed)
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
        """Stops the inference thread; returns whether it ended within the timeout. Do not use the object afterwards."""
        self.embedding = None
        return self._jobs.close(timeout_s)

    def add_prompt(self, position: Sequence[float], polarity: Polarity | None = None) -> bool:
        """Adds a click, and analyses the plane if needed.

        Args:
            position: Data coordinates in the image.
            polarity: What the click says; by default `polarity`.

        Returns:
            Whether the click lies in the plane in view; if not, the user is told.
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

    def put_prompts(self, source: Hashable, prompts: Prompts) -> None:
        """Sets prompts without an entry in the history, as after a restart."""
        self._prompts[source] = prompts
        if self.target is not None and source == self.target.source:
            self._predict()
            self.prompts_changed.emit()

    def clear_prompts(self) -> None:
        """Removes the prompts on the plane in view."""
        if self.target is not None:
            self.set_prompts(self.prompts.without(on_plane(self.prompts, self.target.plane)), 'clear prompts')

    def next_object(self, done: Prompts, kept: PendingObject | None = None) -> Action:
        """The action after which the next prompt is about another object, without the prompts of what is done.

        Args:
            done: Prompts that go.
            kept: The current object, if it is kept for a later commit.
        """
        left, latest = self.prompts.without(done), max(self.prompts.object_id, self.prompts_here.object_id)
        after = replace(left, pending=(*left.pending, *([] if kept is None else [kept])), object_id=latest + 1)
        return self._prompts_change('next object' if kept is None else 'keep object', after)

    def undo(self) -> None:
        """Undoes the last action."""
        name = self._quietly(self.history.undo)
        nothing = _FORGOTTEN if self.history.is_cut else 'Nothing to undo.'
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

    def restoring_prompts(self, source: Hashable, prompts: Prompts, polarity: Polarity) -> Action:
        """The action that replaces the prompts of an image and the polarity, as after a restart."""
        change_prompts = Change('prompts', partial(self.put_prompts, source), self.prompts_of(source), prompts)
        change_polarity = Change('polarity', self._put_polarity, self.polarity, polarity)
        return ActionGroup('restore prompts', [change_prompts, change_polarity])

    def coarser(self) -> None:
        """Shows the next larger answer."""
        self._step(1)

    def finer(self) -> None:
        """Shows the next smaller answer."""
        self._step(-1)

    def slide(self, steps: int) -> None:
        """Shows a coarser region of the tree under the prompts for positive steps, a finer one for negative ones."""
        if self.candidates.shown is None:
            self.show_problem(_NOTHING_YET)
        elif len(self.candidates.chain):
            self._choose(self.candidates.slid(steps))
        else:
            self._ask_beyond(self.plane, plane_prompt(self.prompts_here, self.target.plane), steps)

    def set_granularity(self, granularity: float) -> None:
        """Shows the mask under the prompts that is nearest to the size of a granularity in [0, 1]."""
        if self.candidates.shown is None:
            self.show_problem(_NOTHING_YET)
        elif len(self.candidates.chain):
            self._choose(self.candidates.at_granularity(granularity))
        else:
            plane, prompt = self.plane, plane_prompt(self.prompts_here, self.target.plane)
            area_px = granularity_area(granularity, np.prod(plane.size_hw))
            self._ask_exact(lambda _: plane.answer(*prompt.parts, area_px), _NOTHING_THERE)

    def when_answered(self, call: Callable[[], None]) -> None:
        """Calls a function once the current mask answers the prompts; not at all if they change before."""
        call = self.reporting(call)
        if self.prompts_here and self.plane is None and self.embedding == self.target:
            self._waiting = self._asked(), call
            self.show_info('Waiting for the mask.')
        else:
            self._once_answered(call)

    def _once_answered(self, call: Callable[[], None]) -> None:
        if self.is_answering:
            self._waiting = self._asked(), call
        else:
            call()

    def _take_waiting(self) -> Callable[[], None] | None:
        """What waits for the answer to the prompts in view, which waits no longer."""
        if self._waiting is None or self._waiting[0] != self._asked():
            return None
        (_, call), self._waiting = self._waiting, None
        return call

    def _asked(self) -> Hashable:
        """Which prompts on which plane are to be answered."""
        if self.target is None:
            return None
        # Not the target, which can read the image: the history would keep that in memory.
        return self.target.source, self.target.plane, self.version(self.target.source), self.prompts_here

    def _quietly(self, call: Callable[[], T]) -> T:
        """Calls a function; masks that it asks for or shows do not change the status line."""
        self._is_quiet = True
        try:
            return call()
        finally:
            self._is_quiet = False

    def _step(self, direction: int) -> None:
        stepped = self.candidates.stepped(direction)
        if self.candidates.shown is None:
            self.show_problem(_NOTHING_YET)
        elif stepped.place == self.candidates.place:
            self.show_info(f'This is the {"coarsest" if direction > 0 else "finest"} mask.')
        else:
            self._choose(stepped)

    def _choose(self, candidates: Candidates) -> None:
        """Shows another candidate, as an action of the user."""
        if self.is_answering:
            self._show(candidates)  # until the answer comes
        elif candidates.place != self.candidates.place:
            asked, places = self._asked(), (self.candidates.place, candidates.place)
            change = Change('choose mask', partial(self._show_again, asked), *places, joins=('choose mask', asked))
            self.history.do(change)

    def _show(self, candidates: Candidates, is_quiet: bool = False) -> None:
        self.candidates = candidates
        if not is_quiet:
            self.show_info(HINT)
        self.proposal_changed.emit()

    def _show_again(self, asked: Hashable, place: Place | None) -> None:
        """Shows a former mask once the same prompts are answered; does nothing for others."""
        is_quiet = self._is_quiet

        def show() -> None:
            if len(self.candidates):
                self._show(self.candidates.at(place), is_quiet)

        if place is not None and asked == self._asked():
            self._once_answered(show)

    def _prompts_change(self, name: str, after: Prompts) -> Action:
        """The action that replaces the prompts on the image; taken back, it also shows the mask that was chosen for them."""
        show_again = Change(name, partial(self._show_again, self._asked()), self.candidates.place, None)
        return ActionGroup(
            name, [show_again, Change(name, partial(self._put, self.target.source), self.prompts, after)]
        )

    def _put(self, source: Hashable, prompts: Prompts) -> None:
        self.put_prompts(source, prompts)
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
        if self._waiting is not None and self._waiting[0] != self._asked():
            self._waiting = None
            self.show_problem(_NOT_DONE)
        elif not self.is_answering and (call := self._take_waiting()) is not None:
            call()

    def _failed(self, reason: str) -> None:
        if self._jobs.name(Lane.PLANE) is None:
            self.embedding = self._waiting = None
        self.show_problem(reason)

    def _predict(self) -> None:
        """Predicts the masks for the prompts in view, or removes the mask if there are none."""
        plane, here = self.plane, self.prompts_here
        if plane is not None and here:
            prompt = plane_prompt(here, self.target.plane)
            if prompt.can_be_asked and not prompt.is_contradictory:
                self._ask(plane, prompt)
                return
            self.status = Status(_NO_FIT if prompt.can_be_asked else _ONLY_NEGATIVE, is_problem=True)
        self._drop_answer()
        self.proposal_changed.emit()
        self.state_changed.emit()

    def _drop_answer(self) -> None:
        """Drops the masks, and the question for them if it is not answered yet."""
        if self.is_answering:
            self._waiting = None
        self._jobs.cancel(Lane.CLICK)
        self.candidates = NO_CANDIDATES

    def _ask(self, plane: EmbeddedPlane, prompt: PlanePrompt) -> None:
        """Predicts masks; on planes in windows first one of them. The latest prompt wins."""
        in_windows, is_quiet = plane.hierarchy is None, self._is_quiet

        def answered(candidates: Candidates) -> None:
            call = self._take_waiting()
            self.candidates = candidates
            if not len(candidates):
                self.show_problem(_NOTHING_THERE)
            elif not is_quiet:
                self.show_info(HINT)
            self.proposal_changed.emit()
            if in_windows:
                self._jobs.start(Lane.CLICK, _MORE, lambda _: _answer(plane, prompt), self._join, self._failed)
            if call is not None:
                call()

        if self.is_answering:
            self._waiting = None
        count = {'max_masks': 1} if in_windows else {}
        self._jobs.start(Lane.CLICK, _ANSWER, lambda _: _answer(plane, prompt, **count), answered, self._failed)

    def _join(self, candidates: Candidates) -> None:
        # The user may have gone on from the first mask meanwhile.
        shown = self.candidates.shown
        self.candidates = candidates if shown is None else candidates.starting_with(shown)
        self.proposal_changed.emit()

    def _ask_beyond(self, plane: EmbeddedPlane, prompt: PlanePrompt, steps: int) -> None:
        """Searches a mask larger than the one on screen for positive steps, smaller for negative ones, on a plane in windows."""
        search = partial(plane.beyond, prompt, self.candidates.shown.area_px, steps)
        self._ask_exact(search, f'This is the {"coarsest" if steps > 0 else "finest"} mask.')

    def _ask_exact(self, ask: Callable[[ProgressCallback], list[BoxMask]], nothing: str) -> None:
        """Searches one mask on a plane in windows, which has no tree to slide along."""

        def answered(found: list[BoxMask]) -> None:
            if found:
                self._choose(self.candidates.with_exact(found[0]))
            else:
                self.show_info(nothing)

        self._jobs.start(Lane.CLICK, _EXACT, ask, answered, self._failed)


def _answer(plane: EmbeddedPlane, prompt: PlanePrompt, **count: int) -> Candidates:
    answers = plane.answer(*prompt.parts, mask=prompt.mask, **count)
    return Candidates.of_answers(answers, plane.chain(*prompt.parts), plane.hierarchy)
