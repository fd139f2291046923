"""The masks on offer: asked for in the inference thread, stepped through at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from psygnal import Signal

from napari_unsam.engine.inference import Lane, ProgressCallback
from napari_unsam.engine.jobs import Jobs
from napari_unsam.engine.planes import EmbeddedPlane
from napari_unsam.keys import KEYS
from napari_unsam.model.actions import MaskChoice, Situation
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
    """What an engine says to the prompts; the latest question wins.

    Args:
        jobs: Where questions are asked.
        tell: Sets the status line.
        history: Where the user's choices go.
        situation: Gives the prompts on the plane that questions are about.
    """

    changed = Signal()

    def __init__(
        self,
        jobs: Jobs,
        tell: Callable[[Status], None],
        history: ActionHistory,
        situation: Callable[[], Situation],
    ) -> None:
        self._jobs, self._tell, self._history, self._situation = jobs, tell, history, situation
        self._then: Callable[[], None] | None = None
        self._is_quiet = False
        self.candidates = NO_CANDIDATES

    @property
    def is_pending(self) -> bool:
        """Whether what is on screen is not yet the answer to the last question."""
        return self._jobs.name(Lane.CLICK) == _ANSWER

    def drop(self) -> None:
        """Forgets the masks, and the question that is being asked."""
        self._jobs.cancel(Lane.CLICK)
        self.candidates, self._then = NO_CANDIDATES, None

    def quietly(self, call: Callable[[], T]) -> T:
        """Calls a function; masks that are asked for or shown in it leave the status line alone, now and once they come."""
        self._is_quiet = True
        try:
            return call()
        finally:
            self._is_quiet = False

    def show(self, candidates: Candidates, is_quiet: bool = False) -> None:
        """Has another mask of those to choose from on screen."""
        self.candidates = candidates
        if not is_quiet:
            self._tell(Status(HINT))
        self.changed.emit()

    def choose(self, candidates: Candidates) -> None:
        """Has another mask on screen that the user wants, as an action."""
        if self.is_pending:
            self.show(candidates)  # until the answer comes
        elif candidates.place != self.candidates.place:
            places = self.candidates.place, candidates.place
            self._history.do(MaskChoice(self._situation(), self.show_again, *places))

    def show_again(self, situation: Situation, place: Place) -> None:
        """Shows a mask that was on screen before, once the same question is answered; nothing if it is another one."""
        is_quiet = self._is_quiet

        def show() -> None:
            if len(self.candidates):
                self.show(self.candidates.at(place), is_quiet)

        if situation == self._situation():
            self.then(show)

    def then(self, call: Callable[[], None]) -> None:
        """Calls a function once the answer is there: now if it is; not at all if another question is asked first."""
        if self.is_pending:
            self._then = call
        else:
            call()

    def ask(self, plane: EmbeddedPlane, question: Question) -> None:
        """Asks for the masks of a prompt; where that takes long, first for one of them."""
        in_windows, is_quiet = plane.hierarchy is None, self._is_quiet

        def answered(candidates: Candidates) -> None:
            then, self._then = self._then, None
            self.candidates = candidates
            if not (is_quiet and len(candidates)):
                self._tell(Status(HINT) if len(candidates) else Status(_NOTHING_THERE, Level.PROBLEM))
            self.changed.emit()
            if in_windows:
                self._jobs.start(Lane.CLICK, _MORE, lambda _: _answer(plane, question), self._joined, self._failed)
            if then is not None:
                then()

        self._then = None
        count = {'max_masks': 1} if in_windows else {}
        self._jobs.start(Lane.CLICK, _ANSWER, lambda _: _answer(plane, question, **count), answered, self._failed)

    def ask_near(self, plane: EmbeddedPlane, question: Question, area_px: float) -> None:
        """Asks for the mask nearest to an area, of a plane in windows, which has no tree to slide along."""
        self._ask_exact(lambda _: plane.answer(*question.parts, area_px), _NOTHING_THERE)

    def ask_beyond(self, plane: EmbeddedPlane, question: Question, steps: int) -> None:
        """Asks for a mask larger than the one on screen for positive steps, smaller for negative ones; see `ask_near`."""
        shown_px = self.candidates.shown.area_px

        def look(progress: ProgressCallback) -> list[PlaneMask]:
            area_px = shown_px
            while 1 <= area_px <= np.prod(plane.size_hw):
                progress(0.0, _EXACT)  # raises if another question is asked
                area_px *= 10 ** (steps / _STEPS_PER_DECADE)
                found = plane.answer(*question.parts, area_px)
                if not found or (found[0].area_px - shown_px) * steps > 0:
                    return found
            return []

        self._ask_exact(look, f'This is the {"coarsest" if steps > 0 else "finest"} mask.')

    def _ask_exact(self, ask: Callable[[ProgressCallback], list[PlaneMask]], nothing: str) -> None:
        def answered(found: list[PlaneMask]) -> None:
            if found:
                self.choose(self.candidates.with_exact(found[0]))
            else:
                self._tell(Status(nothing))

        self._jobs.start(Lane.CLICK, _EXACT, ask, answered, self._failed)

    def _joined(self, candidates: Candidates) -> None:
        # The user may have gone on from the first mask meanwhile.
        shown = self.candidates.shown
        self.candidates = candidates if shown is None else candidates.led_by(shown)
        self.changed.emit()

    def _failed(self, reason: str) -> None:
        self._tell(Status(reason, Level.PROBLEM))


def _answer(plane: EmbeddedPlane, question: Question, **count: int) -> Candidates:
    answers = plane.answer(*question.parts, mask=question.mask, **count)
    return Candidates.of_answers(answers, plane.chain(*question.parts), plane.hierarchy)
