"""The candidate masks for the prompts, predicted in the inference thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from psygnal import Signal

from napari_unsam.engine.inference import Lane, ProgressCallback
from napari_unsam.engine.jobs import Jobs
from napari_unsam.engine.planes import EmbeddedPlane
from napari_unsam.keys import KEYS
from napari_unsam.model.actions import MaskChoice, PromptState
from napari_unsam.model.candidates import NO_CANDIDATES, Candidates, Place
from napari_unsam.model.history import ActionHistory
from napari_unsam.model.mask import PlaneMask
from napari_unsam.model.questions import Question
from napari_unsam.model.targets import Level, Status

T = TypeVar('T')

HINT = f'{KEYS["coarser"].key}: larger mask, {KEYS["finer"].key}: smaller mask, {KEYS["commit"].key}: commit.'
_NOTHING_THERE = 'No mask found here; click elsewhere.'
_ANSWER, _MORE, _EXACT = 'Predicting masks', 'Searching larger masks', 'Searching this size'
_STEPS_PER_DECADE = 8  # sizes of masks that a turn of the wheel tells apart in a factor of ten, as planes in windows do


class Answers:
    """The candidate masks; the latest question wins.

    Args:
        jobs: Where questions are asked.
        set_status: Sets the status line.
        history: Where the user's choices go.
        prompt_state: Gives the prompts on the plane that questions are about.
    """

    changed = Signal()

    def __init__(
        self,
        jobs: Jobs,
        set_status: Callable[[Status], None],
        history: ActionHistory,
        prompt_state: Callable[[], PromptState],
    ) -> None:
        self._jobs, self._set_status, self._history, self._prompt_state = jobs, set_status, history, prompt_state
        self._waiting: Callable[[], None] | None = None
        self._is_quiet = False
        self.candidates = NO_CANDIDATES

    @property
    def is_pending(self) -> bool:
        """Whether the last question is not answered yet."""
        return self._jobs.name(Lane.CLICK) == _ANSWER

    def drop(self) -> None:
        """Drops the masks and the question."""
        self._jobs.cancel(Lane.CLICK)
        self.candidates, self._waiting = NO_CANDIDATES, None

    def without_status(self, call: Callable[[], T]) -> T:
        """Calls a function; masks that it asks for or shows do not change the status line."""
        self._is_quiet = True
        try:
            return call()
        finally:
            self._is_quiet = False

    def show(self, candidates: Candidates, is_quiet: bool = False) -> None:
        """Shows another candidate."""
        self.candidates = candidates
        if not is_quiet:
            self._set_status(Status(HINT))
        self.changed.emit()

    def choose(self, candidates: Candidates) -> None:
        """Shows another candidate, as an action of the user."""
        if self.is_pending:
            self.show(candidates)  # until the answer comes
        elif candidates.place != self.candidates.place:
            places = self.candidates.place, candidates.place
            self._history.do(MaskChoice(self._prompt_state(), self.show_again, *places))

    def show_again(self, prompt_state: PromptState, place: Place) -> None:
        """Shows a former mask once the same question is answered; does nothing for another question."""
        is_quiet = self._is_quiet

        def show() -> None:
            if len(self.candidates):
                self.show(self.candidates.at(place), is_quiet)

        if prompt_state == self._prompt_state():
            self.when_answered(show)

    def when_answered(self, call: Callable[[], None]) -> None:
        """Calls a function once the question is answered; not at all if another is asked first."""
        if self.is_pending:
            self._waiting = call
        else:
            call()

    def ask(self, plane: EmbeddedPlane, question: Question) -> None:
        """Predicts the masks of a prompt; on planes in windows first one of them."""
        in_windows, is_quiet = plane.hierarchy is None, self._is_quiet

        def answered(candidates: Candidates) -> None:
            waiting, self._waiting = self._waiting, None
            self.candidates = candidates
            if not (is_quiet and len(candidates)):
                self._set_status(Status(HINT) if len(candidates) else Status(_NOTHING_THERE, Level.PROBLEM))
            self.changed.emit()
            if in_windows:
                self._jobs.start(Lane.CLICK, _MORE, lambda _: _answer(plane, question), self._joined, self._failed)
            if waiting is not None:
                waiting()

        self._waiting = None
        count = {'max_masks': 1} if in_windows else {}
        self._jobs.start(Lane.CLICK, _ANSWER, lambda _: _answer(plane, question, **count), answered, self._failed)

    def ask_near(self, plane: EmbeddedPlane, question: Question, area_px: float) -> None:
        """Asks for the mask nearest to an area, of a plane in windows, which has no tree to slide along."""
        self._ask_exact(lambda _: plane.answer(*question.parts, area_px), _NOTHING_THERE)

    def ask_beyond(self, plane: EmbeddedPlane, question: Question, steps: int) -> None:
        """Asks for a mask larger than the one on screen for positive steps, smaller for negative ones; see `ask_near`."""
        shown_px = self.candidates.shown.area_px

        def search(progress: ProgressCallback) -> list[PlaneMask]:
            area_px = shown_px
            while 1 <= area_px <= np.prod(plane.size_hw):
                progress(0.0, _EXACT)  # raises if another question is asked
                area_px *= 10 ** (steps / _STEPS_PER_DECADE)
                found = plane.answer(*question.parts, area_px)
                if not found or (found[0].area_px - shown_px) * steps > 0:
                    return found
            return []

        self._ask_exact(search, f'This is the {"coarsest" if steps > 0 else "finest"} mask.')

    def _ask_exact(self, ask: Callable[[ProgressCallback], list[PlaneMask]], nothing: str) -> None:
        def answered(found: list[PlaneMask]) -> None:
            if found:
                self.choose(self.candidates.with_exact(found[0]))
            else:
                self._set_status(Status(nothing))

        self._jobs.start(Lane.CLICK, _EXACT, ask, answered, self._failed)

    def _joined(self, candidates: Candidates) -> None:
        # The user may have gone on from the first mask meanwhile.
        shown = self.candidates.shown
        self.candidates = candidates if shown is None else candidates.starting_with(shown)
        self.changed.emit()

    def _failed(self, reason: str) -> None:
        self._set_status(Status(reason, Level.PROBLEM))


def _answer(plane: EmbeddedPlane, question: Question, **count: int) -> Candidates:
    answers = plane.answer(*question.parts, mask=question.mask, **count)
    return Candidates.of_answers(answers, plane.chain(*question.parts), plane.hierarchy)
