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

from napari_unsam.engine.answers import Answers
from napari_unsam.engine.embeddings import StackReport
from napari_unsam.engine.inference import Deliver, Lane, ProgressCallback
from napari_unsam.engine.jobs import Jobs
from napari_unsam.engine.planes import Embed, EmbeddedPlane, PlaneCache
from napari_unsam.keys import KEYS, TO_UNDO
from napari_unsam.model.actions import Change, PromptsChange, PromptState
from napari_unsam.model.candidates import Candidates
from napari_unsam.model.history import MAX_ACTIONS, MAX_BYTES, Action, ActionGroup, ActionHistory
from napari_unsam.model.prompts import PendingObject, PointPrompt, Polarity, Position, Prompts
from napari_unsam.model.questions import on_plane, question_of
from napari_unsam.model.targets import Level, Proposal, Status, Target
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.granularity import granularity_area
from unsam_mm.masks.hierarchy import MaskHierarchy

__all__ = ['NO_IMAGE', 'Level', 'Proposal', 'SegmentationController', 'Status', 'Target']

P = ParamSpec('P')
T = TypeVar('T')

NO_IMAGE = 'Choose an image to begin.'
_NO_FIT = f'One pixel has object and background clicks. Remove one of them ({KEYS["undo"].key}: undo).'
_ONLY_NEGATIVE = 'There are only background clicks. Click on the object, or draw a box around it.'
_NOT_DONE = 'Commit cancelled: slice or prompts changed.'
_FORGOTTEN = (
    f'Nothing more to undo: the history keeps {MAX_ACTIONS} actions, or as many as fit in {MAX_BYTES // 2**20} MB.'
)
_NOTHING_YET = 'No mask yet; click on an object first.'


class SegmentationController:
    """The state of one dock.

    Args:
        embed: Analyses a plane; called in the inference thread.
        deliver: Runs a function in the thread that this object belongs to; by default at once, in the caller's.
        load: Does what the first embedding would have to do besides; called in the inference thread by `warm_up`.

    Attributes:
        history: Everything that the user did, to be undone.
    """

    state_changed = Signal()
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
        self._embed, self._load = embed, load
        self._jobs = Jobs(deliver)
        self._jobs.changed.connect(self.state_changed.emit)
        self._jobs.progressed.connect(self.progress_changed.emit)
        self.history.changed.connect(self.state_changed.emit)
        self._planes = PlaneCache()
        self._prompts: dict[Hashable, Prompts] = {}
        self._answers = Answers(self._jobs, self._set_status, self.history, self._prompt_state)
        self._answers.changed.connect(self.proposal_changed.emit)
        self._target: Target | None = None
        self._embedding: Target | None = None
        self._once_embedded: tuple[PromptState, Callable[[], None]] | None = None
        self._polarity = Polarity.POSITIVE
        self._status = Status(NO_IMAGE)
        self._no_target = NO_IMAGE

    @property
    def target(self) -> Target | None:
        """What is being segmented; None if nothing can be."""
        return self._target

    @property
    def plane(self) -> EmbeddedPlane | None:
        """The analysed target; None before."""
        return self._planes.get(self._target)

    @property
    def embedding(self) -> Target | None:
        """The plane that is being analysed, which may not be the target."""
        return self._embedding

    @property
    def hierarchy(self) -> MaskHierarchy | None:
        """The region tree of the target; None before it is made, and for planes that are analysed in windows."""
        return self.plane.hierarchy if self.plane is not None else None

    @property
    def prompts(self) -> Prompts:
        """All prompts on the image, on any plane."""
        return self.prompts_of(None if self._target is None else self._target.source)

    def prompts_of(self, source: Hashable) -> Prompts:
        """All prompts on an image."""
        return self._prompts.get(source, Prompts())

    @property
    def prompts_here(self) -> Prompts:
        """The prompts of the current object on the plane in view."""
        if self._target is None:
            return Prompts()
        return on_plane(self.prompts, self._target.plane).current()

    @property
    def polarity(self) -> Polarity:
        """The polarity of the next plain click."""
        return self._polarity

    @property
    def is_busy(self) -> bool:
        """Whether something runs that may take long."""
        return self.job is not None

    @property
    def job(self) -> str | None:
        """What runs and may take long."""
        in_windows = self.plane is not None and self.plane.hierarchy is None
        clicks = self._jobs.name(Lane.CLICK) if in_windows else None
        return self._jobs.name(Lane.TASK) or self._jobs.name(Lane.LONG) or self._jobs.name(Lane.PLANE) or clicks

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
        return self._answers.is_pending

    @property
    def status(self) -> Status:
        """The latest line for the user."""
        return self._status

    @property
    def candidates(self) -> Candidates:
        """The masks that fit the prompts on this plane."""
        return self._answers.candidates

    @property
    def proposal(self) -> Proposal | None:
        """The current mask; None if there is none."""
        shown = self.candidates.shown
        if shown is None or self._target is None:
            return None
        return Proposal.of(shown, self._target.plane, self.candidates.rank, len(self.candidates))

    def say(self, text: str, level: Level = Level.INFO) -> None:
        """Sets the status line."""
        self._set_status(Status(text, level))

    def reporting(self, act: Callable[P, None]) -> Callable[P, None]:
        """Wraps a function, such as one for a button or a key, so that its `UnSAMError` is shown in the status line."""

        def reported(*args: P.args, **options: P.kwargs) -> None:
            try:
                act(*args, **options)
            except UnSAMError as error:
                self.say(str(error), Level.PROBLEM)

        return reported

    def say_no_target(self) -> None:
        """Shows why nothing can be segmented."""
        self.say(self._no_target, Level.PROBLEM)

    def set_target(self, target: Target | None, reason: str = NO_IMAGE) -> None:
        """Changes what is being segmented; prompts stay with their image.

        The plane that is being analysed is finished and kept.

        Args:
            target: The new target, or None.
            reason: What the user is told if there is none.
        """
        if target is not None and target == self._target:
            self._target = target  # which may read its pixels in another way
            return
        before, self._target = self._target, target
        self._no_target = reason
        self._answers.drop()
        if target is not None and (before is None or before.source != target.source):
            self.prompts_changed.emit()
        self.say(reason if target is None else f'Click on an object in "{target.name}".')
        self._refresh_answer()
        if self.prompts_here and self.plane is None and self._embedding is None:
            self.embed()  # it was given up for another one

    def forget(self, source: Hashable) -> None:
        """Drops the analysed planes of an image that has changed or was removed."""
        if self._embedding is not None and self._embedding.source == source:
            self._jobs.cancel(Lane.PLANE)
            self._embedding = None
        self._planes.forget_source(source)
        if self._target is not None and self._target.source == source:
            self._answers.drop()
            self.proposal_changed.emit()
            self.state_changed.emit()

    def use_weights(self, path: Path | None) -> None:
        """Uses other weights of the model; None for those of the package."""

        def loaded(_: None) -> None:
            self._planes.clear()
            self._answers.drop()
            if self.prompts_here:
                self.embed()
            else:
                self.say('The model is ready. Click on an object.')
            self._refresh_answer()

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
        target = self._target
        if target is None:
            self.say_no_target()
            return
        self._planes.forget(target)
        self._embedding = target
        name = f'Analysing "{target.name}"'
        self._jobs.start(
            Lane.PLANE,
            name,
            lambda progress: self.embedded(target, progress),
            partial(self._embedded, target),
            self._failed,
        )
        self.progress_changed.emit(0.0, 'Starting')
        self.say(f'{name} ...')

    def embedded(self, target: Target, progress: ProgressCallback) -> EmbeddedPlane:
        """An analysed plane, from memory, from the store, or analysed now; call it only inside a job."""
        plane = self._planes.get(target)
        if plane is None:
            version = self._planes.version(target.source)
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
        self.say(f'{name} ...{other}')

    def cancel(self) -> None:
        """Stops all jobs; prompts are kept."""
        was_busy = self.is_busy
        self._jobs.cancel()
        self._embedding = self._once_embedded = None
        if was_busy:
            self.say('Cancelled. Prompts and analysed slices are kept.')

    def close(self, timeout_s: float = 0.0) -> bool:
        """Stops the inference thread; returns whether it ended within the timeout. Do not use the object afterwards."""
        self._embedding = None
        return self._jobs.close(timeout_s)

    def add_prompt(self, position: Sequence[float], polarity: Polarity | None = None) -> bool:
        """Adds a click, and analyses the plane if needed.

        Args:
            position: Data coordinates in the image.
            polarity: What the click says; by default `polarity`.

        Returns:
            Whether the click lies in the plane in view; if not, the user is told.
        """
        if self._target is None:
            self.say_no_target()
            return False
        if self._target.plane.pixel(position) is None:
            self.say(f'That click lies outside "{self._target.name}".', Level.PROBLEM)
            return False
        at: Position = tuple(float(value) for value in position)
        point = PointPrompt(at, polarity or self._polarity, self.prompts_here.object_id)
        self.set_prompts(replace(self.prompts, points=(*self.prompts.points, point)), 'click')
        return True

    def set_prompts(self, prompts: Prompts, name: str = 'change prompts') -> None:
        """Replaces all prompts on the image, as one action; clicks outside the image are left out."""
        if self._target is None:
            return
        inside = self._target.plane.inside
        prompts = replace(prompts, points=tuple(point for point in prompts.points if inside(point.position)))
        if prompts != self.prompts:
            self.history.do(self._prompts_change(name, prompts))

    def put_prompts(self, source: Hashable, prompts: Prompts) -> None:
        """Sets prompts without an entry in the history, as after a restart."""
        self._prompts[source] = prompts
        if self._target is not None and source == self._target.source:
            self._refresh_answer()
            self.prompts_changed.emit()

    def clear_prompts(self) -> None:
        """Removes the prompts on the plane in view."""
        if self._target is not None:
            self.set_prompts(self.prompts.without(on_plane(self.prompts, self._target.plane)), 'clear prompts')

    def next_object(self, done: Prompts, kept: PendingObject | None = None) -> Action:
        """The action after which the next prompt is about another object.

        Args:
            done: Prompts that go, with what they led to.
            kept: The current object, if it is kept for a later commit.
        """
        left, latest = self.prompts.without(done), max(self.prompts.object_id, self.prompts_here.object_id)
        after = replace(left, pending=(*left.pending, *([] if kept is None else [kept])), object_id=latest + 1)
        name = 'next object' if kept is None else 'keep object'
        return self._prompts_change(name, after)

    def undo(self) -> None:
        """Undoes the last action."""
        name = self._answers.without_status(self.history.undo)
        nothing = _FORGOTTEN if self.history.is_cut else 'Nothing to undo.'
        self.say(nothing if name is None else f'Undone: {name}. Press {KEYS["redo"].key} to redo.')

    def redo(self) -> None:
        """Redoes the last undone action."""
        name = self._answers.without_status(self.history.redo)
        self.say('Nothing to redo.' if name is None else f'Redone: {name}. {TO_UNDO}')

    def toggle_polarity(self) -> None:
        """Switches between object and background clicks."""
        self.set_polarity(self._polarity.flipped())

    def set_polarity(self, polarity: Polarity) -> None:
        """Chooses object or background clicks."""
        if polarity is not self._polarity:
            self.history.do(Change('switch click type', self._put_polarity, self._polarity, polarity))

    def restoring_prompts(self, source: Hashable, prompts: Prompts, polarity: Polarity) -> Action:
        """The action that replaces the prompts of an image and the polarity, as after a restart."""
        change_prompts = Change('prompts', partial(self.put_prompts, source), self.prompts_of(source), prompts)
        change_polarity = Change('polarity', self._put_polarity, self._polarity, polarity)
        return ActionGroup('restore prompts', [change_prompts, change_polarity])

    def coarser(self) -> None:
        """Shows the next larger answer."""
        self._step(1)

    def finer(self) -> None:
        """Shows the next smaller answer."""
        self._step(-1)

    def slide(self, steps: int) -> None:
        """Shows a coarser region of the tree under the prompts for positive steps, a finer one for negative ones."""
        shown = self.candidates.shown
        if shown is None:
            self.say(_NOTHING_YET, Level.PROBLEM)
        elif len(self.candidates.chain):
            self._answers.choose(self.candidates.slid(steps))
        else:
            self._answers.ask_beyond(self.plane, question_of(self.prompts_here, self._target.plane), steps)

    def set_granularity(self, granularity: float) -> None:
        """Shows the mask under the prompts that is nearest to the size of a granularity in [0, 1]."""
        if self.candidates.shown is None:
            self.say(_NOTHING_YET, Level.PROBLEM)
        elif len(self.candidates.chain):
            self._answers.choose(self.candidates.at_granularity(granularity))
        else:
            area_px = granularity_area(granularity, np.prod(self.plane.size_hw))
            self._answers.ask_near(self.plane, question_of(self.prompts_here, self._target.plane), area_px)

    def when_answered(self, call: Callable[[], None]) -> None:
        """Calls a function once the current mask answers the prompts; not at all if they change before."""
        call = self.reporting(call)
        if self.prompts_here and self.plane is None and self._embedding == self._target:
            self._once_embedded = self._prompt_state(), call
            self.say('Waiting for the mask.')
        else:
            self._answers.when_answered(call)

    def _set_status(self, status: Status) -> None:
        self._status = status
        self.state_changed.emit()

    def _step(self, direction: int) -> None:
        stepped = self.candidates.stepped(direction)
        if self.candidates.shown is None:
            self.say(_NOTHING_YET, Level.PROBLEM)
        elif stepped.place == self.candidates.place:
            self.say(f'This is the {"coarsest" if direction > 0 else "finest"} mask.')
        else:
            self._answers.choose(stepped)

    def _prompt_state(self) -> PromptState:
        if self._target is None:
            return None
        # Not the target, which can read the image: the history would keep that in memory.
        return self._target.source, self._target.plane, self.version(self._target.source), self.prompts_here

    def _prompts_change(self, name: str, after: Prompts) -> Action:
        put, shown = partial(self._put, self._target.source), self.candidates.place
        return PromptsChange(name, put, self.prompts, after, self._answers.show_again, self._prompt_state(), shown)

    def _put_polarity(self, polarity: Polarity) -> None:
        self._polarity = polarity
        self.state_changed.emit()

    def _embedded(self, target: Target, _plane: EmbeddedPlane) -> None:
        self._embedding = None
        if target == self._target:
            self._answers.drop()
        self.say(f'"{target.name}" is ready. Click on an object.')
        self._refresh_answer()
        waiting, self._once_embedded = self._once_embedded, None
        if waiting is not None and waiting[0] == self._prompt_state():
            self._answers.when_answered(waiting[1])
        elif waiting is not None:
            self.say(_NOT_DONE, Level.PROBLEM)

    def _failed(self, reason: str) -> None:
        if self._jobs.name(Lane.PLANE) is None:
            self._embedding = self._once_embedded = None
        self.say(reason, Level.PROBLEM)

    def _put(self, source: Hashable, prompts: Prompts) -> None:
        self.put_prompts(source, prompts)
        here = self._target is not None and source == self._target.source
        if here and self.plane is None and self._embedding != self._target and self.prompts_here:
            self.embed()

    def _refresh_answer(self) -> None:
        """Predicts again, or removes the mask if there are no prompts."""
        plane, here = self.plane, self.prompts_here
        if plane is not None and here:
            question = question_of(here, self._target.plane)
            if question.can_be_asked and not question.is_contradictory:
                self._answers.ask(plane, question)
                return
            self._status = Status(_NO_FIT if question.can_be_asked else _ONLY_NEGATIVE, Level.PROBLEM)
        self._answers.drop()
        self.proposal_changed.emit()
        self.state_changed.emit()
