"""The one thread in which models run.

One long-lived thread, because torch keeps a pool of workers per calling thread and builds it again in every
short-lived one. Jobs wait in lanes: a new job takes the place of the older one of its lane and of no other. When a job
reports its progress, jobs of more urgent lanes that came meanwhile are done there and then, so a click is answered in the
midst of a long propagation.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any

from psygnal import Signal

from unsam_mm.errors import UnSAMError, explained

ProgressCallback = Callable[[float, str], None]
Deliver = Callable[[Callable[[], None]], None]

_PROGRESS_INTERVAL_S = 0.03  # more often than this would only keep the receiving thread busy
_EXIT_S = 5.0  # that an application which ends waits for a job in compiled code, which cannot be left before
_LISTENER: ContextVar[ProgressCallback | None] = ContextVar('listener', default=None)

logger = logging.getLogger(__name__)


class JobCancelled(Exception):
    """Raised inside the progress callback of a cancelled job to leave the model at once."""


@contextmanager
def reporting(progress: ProgressCallback) -> Iterator[None]:
    """Has `report_progress` tell `progress` in the block, in this thread."""
    token = _LISTENER.set(progress)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def report_progress(fraction: float, message: str) -> None:
    """Tells whom the work at hand is for; an engine outlives those whom it works for, so it cannot keep their callbacks.

    Raises:
        JobCancelled: If the job at hand is to stop.
    """
    listener = _LISTENER.get()
    if listener is not None:
        listener(fraction, message)


def part_of(progress: ProgressCallback, number: int, count: int, name: str = '') -> ProgressCallback:
    """A callback for the progress of one of several equal parts of what is being done, counted from 0."""
    return lambda fraction, text: progress((number + fraction) / count, f'{name}{text}')


class Lane(IntEnum):
    """How soon a job has to be done; the smaller goes first."""

    CLICK = 0
    PLANE = 1
    TASK = 2
    LONG = 3
    IDLE = 4


@dataclass(eq=False)
class Job:
    """Something to do in the inference thread, and whom to tell.

    Attributes:
        work: Does it; is given a callback for the fraction done, in [0, 1], and what is being done, which raises
            `JobCancelled` once the job is to stop.
        on_progress: Told the same.
        on_done: Told what `work` returned.
        on_failed: Told one line for the user.
        lane: How urgent it is.
        name: What the user is told that it does.
    """

    work: Callable[[ProgressCallback], Any]
    on_progress: ProgressCallback
    on_done: Callable[[Any], None]
    on_failed: Callable[[str], None]
    lane: Lane = Lane.LONG
    name: str = ''
    cancelled: threading.Event = field(default_factory=threading.Event)


class InferenceThread:
    """Runs jobs in its own thread, one at a time.

    A job takes the place of the one before it in its lane, but for tasks: these wait for each other, unless they have the
    same name. A job counts as running until its result has arrived.

    Args:
        deliver: Runs a function in the thread that the callbacks of a job belong to, for example the GUI's. All methods are
            called in that thread, and the signals are emitted there.

    Attributes:
        changed: Emitted when a job began or ended.
        progressed: Emitted with the fraction done and what is being done; not for idle jobs.
    """

    changed = Signal()
    progressed = Signal(float, str)

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._waiting: dict[Lane, Job] = {}
        self._latest: dict[Lane, Job] = {}  # waiting, running, or with its result under way
        self._tasks: dict[str, Job] = {}  # that wait for the one before, by name, the first in front
        self._closed = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def name(self, lane: Lane) -> str | None:
        """The job of a lane that has not ended yet; None if there is none."""
        job = self._latest.get(lane)
        return None if job is None else job.name

    def holds(self, name: str) -> bool:
        """Whether a job of that name runs or waits."""
        return name in self._tasks or any(job.name == name for job in self._latest.values())

    def start(
        self,
        lane: Lane,
        name: str,
        work: Callable[[ProgressCallback], Any],
        on_done: Callable[[Any], None],
        on_failed: Callable[[str], None],
    ) -> None:
        """Has a job done; see `Job`."""

        def on_progress(fraction: float, text: str) -> None:
            if lane is not Lane.IDLE:
                self.progressed.emit(fraction, text)

        self.submit(Job(work, on_progress, on_done, on_failed, lane, name))

    def submit(self, job: Job) -> None:
        """Cancels the job of the same lane and runs this one as soon as nothing more urgent waits; see the class for tasks."""
        if job.lane is Lane.TASK and self.name(job.lane) not in (None, job.name):
            self._tasks[job.name] = job
        else:
            self._begin(job)
        self.changed.emit()

    def cancel(self, *lanes: Lane) -> None:
        """Stops the jobs of some lanes, by default of all; none of their callbacks is called any more."""
        cancelled = [lane for lane in lanes or Lane if lane in self._latest]
        with self._wake:
            for lane in cancelled:
                self._cancel_lane(lane)
        if Lane.TASK in (lanes or Lane):
            self._tasks.clear()
        if cancelled:
            self.changed.emit()

    def close(self, timeout_s: float = 0.0) -> bool:
        """Stops the jobs and the thread; returns whether the thread has ended within the timeout."""
        self._tasks.clear()
        with self._wake:
            for lane in Lane:
                self._cancel_lane(lane)
            self._closed = True
            self._wake.notify()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _begin(self, job: Job) -> None:
        with self._wake:
            self._cancel_lane(job.lane)
            self._waiting[job.lane] = self._latest[job.lane] = job
            if self._thread is None:
                # A daemon, so that a model in mid-flight cannot keep a closed application alive.
                self._thread = threading.Thread(target=self._run, name='unsam-inference', daemon=True)
                self._thread.start()
                atexit.register(_end, weakref.ref(self))
            self._wake.notify()

    def _cancel_lane(self, lane: Lane) -> None:
        self._waiting.pop(lane, None)
        if (job := self._latest.pop(lane, None)) is not None:
            job.cancelled.set()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._take(len(Lane))
            if job is not None:
                self._work(job)

    def _take(self, below: int) -> Job | None:
        """The most urgent waiting job of the lanes below a number; the caller holds the lock."""
        lane = min(self._waiting, default=below)
        return None if lane >= below else self._waiting.pop(lane)

    def _work(self, job: Job) -> None:
        report = self._reporter(job)
        try:
            with reporting(report):
                result = job.work(report)
        except JobCancelled:
            return
        except UnSAMError as error:
            self._deliver(partial(self._ended, job, job.on_failed, str(error)))
        except Exception as error:  # the thread outlives any failure of a model or a file; the user is told
            logger.exception('a job of the inference thread failed')
            self._deliver(partial(self._ended, job, job.on_failed, explained(error)))
        else:
            self._deliver(partial(self._ended, job, job.on_done, result))

    def _ended(self, job: Job, tell: Callable[[Any], None], result: Any) -> None:
        if job.cancelled.is_set():  # while its result was under way
            return
        with self._wake:
            del self._latest[job.lane]
        try:
            tell(result)
        finally:
            if self._tasks and self.name(Lane.TASK) is None:
                self._begin(self._tasks.pop(next(iter(self._tasks))))
            self.changed.emit()

    def _reporter(self, job: Job) -> ProgressCallback:
        last_s = -_PROGRESS_INTERVAL_S

        def tell(fraction: float, message: str) -> None:
            if not job.cancelled.is_set():
                job.on_progress(fraction, message)

        def report(fraction: float, message: str) -> None:
            nonlocal last_s
            if not job.cancelled.is_set():
                self._do_more_urgent(job)
            if job.cancelled.is_set():
                raise JobCancelled
            now_s = time.monotonic()
            if now_s - last_s >= _PROGRESS_INTERVAL_S:
                last_s = now_s
                self._deliver(partial(tell, fraction, message))

        return report

    def _do_more_urgent(self, job: Job) -> None:
        if threading.current_thread() is not self._thread:
            return  # a helper thread of the model; the job's own thread comes by soon
        while True:
            with self._wake:
                urgent = self._take(job.lane)
            if urgent is None:
                return
            self._work(urgent)


def _end(thread: weakref.ref[InferenceThread]) -> None:
    """Ends the thread before Python does, which would take the whole process down with an abort."""
    if (known := thread()) is not None:
        known.close(_EXIT_S)


@dataclass(frozen=True)
class InferenceSettings:
    """Where and how models run.

    Attributes:
        engine: 'model', the trained region model, or 'tree', the region trees alone.
        device: 'cpu', 'cuda' or another torch device; 'auto' is CUDA if there is one, else the CPU.
        threads: How many CPU threads a model may use; 0 leaves it to torch.
        store: Folder where what is known of planes is kept for later sessions; None keeps nothing.
        store_gb: The most that folder may hold.
    """

    engine: str = 'model'
    device: str = 'auto'
    threads: int = 0
    store: Path | None = None
    store_gb: float = 10.0
