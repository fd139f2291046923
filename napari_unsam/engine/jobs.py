"""The jobs of the inference thread, as the GUI thread sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psygnal import Signal

from napari_unsam.engine.inference import Deliver, InferenceThread, Job, Lane, ProgressCallback


class Jobs:
    """Starts jobs and knows which have not ended; belongs to one thread, which `deliver` leads back to.

    A job takes the place of the one before it in its lane, but for tasks: these wait for each other, unless they have the same
    name.
    """

    changed = Signal()
    progressed = Signal(float, str)

    def __init__(self, deliver: Deliver) -> None:
        self._thread = InferenceThread(deliver)
        self._names: dict[Lane, str] = {}
        self._waiting: dict[str, Job] = {}  # tasks by name, the first in front

    def name(self, lane: Lane) -> str | None:
        """The job of a lane that has not ended yet; None if there is none."""
        return self._names.get(lane)

    def holds(self, name: str) -> bool:
        """Whether a job of that name runs or waits."""
        return name in self._names.values() or name in self._waiting

    def start(
        self,
        lane: Lane,
        name: str,
        work: Callable[[ProgressCallback], Any],
        on_done: Callable[[Any], None],
        on_failed: Callable[[str], None],
    ) -> None:
        """Has the inference thread do something; nobody hears how far an idle job is."""

        def ended(tell: Callable[[Any], None], result: Any) -> None:
            del self._names[lane]
            try:
                tell(result)
            finally:
                if lane is Lane.TASK and lane not in self._names and self._waiting:
                    first = next(iter(self._waiting))
                    self._submit(first, self._waiting.pop(first))
                self.changed.emit()

        job = Job(
            work=work,
            on_progress=lambda *news: None if lane is Lane.IDLE else self.progressed.emit(*news),
            on_done=lambda result: ended(on_done, result),
            on_failed=lambda reason: ended(on_failed, reason),
            lane=lane,
        )
        if lane is Lane.TASK and self._names.get(lane, name) != name:
            self._waiting[name] = job
            self.changed.emit()
        else:
            self._submit(name, job)

    def cancel(self, *lanes: Lane) -> None:
        """Stops the jobs of some lanes, by default of all; they never end for those who wait for them."""
        self._thread.cancel(*lanes)
        if Lane.TASK in (lanes or Lane):
            self._waiting.clear()
        if [lane for lane in lanes or Lane if self._names.pop(lane, None) is not None]:
            self.changed.emit()

    def close(self, timeout_s: float) -> bool:
        """Stops everything; returns whether the thread has ended within the timeout."""
        self._names.clear()
        self._waiting.clear()
        return self._thread.close(timeout_s)

    def _submit(self, name: str, job: Job) -> None:
        self._names[job.lane] = name
        self._thread.submit(job)
        self.changed.emit()
