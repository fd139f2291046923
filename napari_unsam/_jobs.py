"""What the inference thread is at, as the thread of the user sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from psygnal import Signal

from napari_unsam._inference import Deliver, InferenceThread, Job, Lane, ProgressCallback


class Jobs:
    """Starts jobs and knows which have not ended; belongs to one thread, which `deliver` leads back to."""

    changed = Signal()
    progressed = Signal(float, str)

    def __init__(self, deliver: Deliver) -> None:
        self._thread = InferenceThread(deliver)
        self._names: dict[Lane, str] = {}

    def name(self, lane: Lane) -> str | None:
        """The job of a lane that has not ended yet; None if there is none."""
        return self._names.get(lane)

    def start(
        self,
        lane: Lane,
        name: str,
        work: Callable[[ProgressCallback], Any],
        on_done: Callable[[Any], None],
        on_failed: Callable[[str], None],
    ) -> None:
        """Has the inference thread do something, in place of what it did in that lane; nobody hears how far an idle job is."""

        def ended(tell: Callable[[Any], None], result: Any) -> None:
            del self._names[lane]
            tell(result)
            self.changed.emit()

        self._names[lane] = name
        self._thread.submit(
            Job(
                work=work,
                on_progress=lambda *news: None if lane is Lane.IDLE else self.progressed.emit(*news),
                on_done=lambda result: ended(on_done, result),
                on_failed=lambda reason: ended(on_failed, reason),
                lane=lane,
            )
        )
        self.changed.emit()

    def cancel(self, *lanes: Lane) -> None:
        """Stops the jobs of some lanes, by default of all; they never end for those who wait for them."""
        self._thread.cancel(*lanes)
        if [lane for lane in lanes or Lane if self._names.pop(lane, None) is not None]:
            self.changed.emit()

    def close(self, timeout_s: float) -> bool:
        """Stops everything; returns whether the thread has ended within the timeout."""
        self._names.clear()
        return self._thread.close(timeout_s)
