"""The one thread in which models run.

It is one long-lived thread, because torch keeps a pool of workers for each calling thread and would build it again in
every short-lived one. Jobs wait in lanes: a new job replaces the older job of the same lane only. When a job reports
its progress, waiting jobs of more urgent lanes are done first, so a click is answered during a long propagation.
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

from unsam_mm.errors import UnSAMError, describe_error

ProgressCallback = Callable[[float, str], None]
"""Called with the fraction done, in [0, 1], and a text; may raise an exception to stop the work."""
Deliver = Callable[[Callable[[], None]], None]
"""Runs a function, usually in another thread."""

_PROGRESS_INTERVAL_S = 0.03  # more frequent reports would only slow the receiving thread down
_EXIT_S = 5.0  # maximum wait when the application exits: compiled code cannot be interrupted
_LISTENER: ContextVar[ProgressCallback | None] = ContextVar('listener', default=None)

logger = logging.getLogger(__name__)


class JobCancelled(Exception):
    """Raised by the progress callback of a cancelled job, so that the model stops at once."""


@contextmanager
def reporting(progress: ProgressCallback) -> Iterator[None]:
    """Makes `report_progress` call `progress`, within the block and in this thread."""
    token = _LISTENER.set(progress)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def report_progress(fraction: float, message: str) -> None:
    """Reports the progress of the current job; engines call it, since they outlive the callbacks of their jobs.

    Raises:
        JobCancelled: If the current job is cancelled.
    """
    listener = _LISTENER.get()
    if listener is not None:
        listener(fraction, message)


def part_of(progress: ProgressCallback, number: int, count: int, name: str = '') -> ProgressCallback:
    """The callback for part `number`, counted from 0, of `count` equal parts of a job; its texts begin with `name`."""
    return lambda fraction, text: progress((number + fraction) / count, f'{name}{text}')


class Lane(IntEnum):
    """How urgent a job is, the most urgent first.

    In this order: masks for prompts, the analysis of a plane, short jobs, long jobs, jobs for idle times.
    """

    CLICK = 0
    PLANE = 1
    TASK = 2
    LONG = 3
    IDLE = 4


@dataclass(eq=False)
class _Job:
    """See `InferenceThread.start`."""

    lane: Lane
    name: str
    work: Callable[[ProgressCallback], Any]
    on_done: Callable[[Any], None]
    on_failed: Callable[[str], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class InferenceThread:
    """Runs jobs in its own thread, one at a time.

    A job replaces the previous job of its lane, except in the lane of tasks: tasks with different names run one after
    the other. A job counts as running until its result is delivered.

    Args:
        deliver: Runs a function in the thread of the callbacks, for example that of the GUI. All methods are called in
            that thread, and the signals are emitted there.

    Attributes:
        changed: Emitted when a job started or ended.
        progressed: Emitted with the fraction done, in [0, 1], and a text; not for idle jobs.
        failed: Emitted with one line for the user when a job failed.
    """

    changed = Signal()
    progressed = Signal(float, str)
    failed = Signal(str)

    def __init__(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._waiting: dict[Lane, _Job] = {}
        self._latest: dict[Lane, _Job] = {}  # waits, runs, or its result is being delivered
        self._tasks: dict[str, _Job] = {}  # wait for the current task; by name, in the order of their start
        self._closed = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def name(self, lane: Lane) -> str | None:
        """The name of the current job of a lane; None if there is none."""
        job = self._latest.get(lane)
        return None if job is None else job.name

    def has_job(self, name: str) -> bool:
        """True if a job of that name runs or waits."""
        return name in self._tasks or any(job.name == name for job in self._latest.values())

    def start(
        self,
        lane: Lane,
        name: str,
        work: Callable[[ProgressCallback], Any],
        on_done: Callable[[Any], None] = lambda result: None,
        on_failed: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Cancels the job of the same lane and runs this one as soon as nothing more urgent waits; see the class for tasks.

        Args:
            lane: How urgent the job is.
            name: What it does, for the user.
            work: Called in the inference thread with a callback for the progress, which raises `JobCancelled` once the job
                is cancelled.
            on_done: Called with the result of `work`; may raise UnSAMError, as `work` may.
            on_failed: Called with one line for the user if `work` or `on_done` fails.
        """
        job = _Job(lane, name, work, on_done, on_failed)
        if lane is Lane.TASK and self.name(lane) not in (None, name):
            self._tasks[name] = job
        else:
            self._begin(job)
        self.changed.emit()

    def cancel(self, *lanes: Lane) -> None:
        """Stops the jobs of some lanes, by default of all; none of their callbacks is called afterwards."""
        cancelled = [lane for lane in lanes or Lane if lane in self._latest]
        with self._wake:
            for lane in cancelled:
                self._cancel_lane(lane)
        if Lane.TASK in (lanes or Lane):
            self._tasks.clear()
        if cancelled:
            self.changed.emit()

    def close(self, timeout_s: float = 0.0) -> bool:
        """Stops the jobs and the thread; returns True if the thread ended within the timeout."""
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

    def _begin(self, job: _Job) -> None:
        with self._wake:
            self._cancel_lane(job.lane)
            self._waiting[job.lane] = self._latest[job.lane] = job
            if self._thread is None:
                # A daemon thread, so that a running model does not keep a closed application alive.
                self._thread = threading.Thread(target=self._run, name='unsam-inference', daemon=True)
                self._thread.start()
                atexit.register(_close_at_exit, weakref.ref(self))
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
                job = self._pop_urgent(len(Lane))
            if job is not None:
                self._run_job(job)

    def _pop_urgent(self, below: int) -> _Job | None:
        """Removes and returns the most urgent waiting job of the lanes below a number; the caller holds the lock."""
        lane = min(self._waiting, default=below)
        return None if lane >= below else self._waiting.pop(lane)

    def _run_job(self, job: _Job) -> None:
        report, result, failure = self._reporter(job), None, None
        try:
            with reporting(report):
                result = job.work(report)
        except JobCancelled:
            return
        except UnSAMError as error:
            failure = str(error)
        except Exception as error:  # no failure of a model or a file ends the thread
            logger.exception('a job of the inference thread failed')
            failure = describe_error(error)
        self._deliver(partial(self._finish, job, result, failure))

    def _finish(self, job: _Job, result: Any, failure: str | None) -> None:
        if job.cancelled.is_set():  # cancelled while its result was being delivered
            return
        with self._wake:
            del self._latest[job.lane]
        try:
            if failure is None:
                try:
                    job.on_done(result)
                except UnSAMError as error:
                    failure = str(error)
            if failure is not None:
                self.failed.emit(failure)
                job.on_failed(failure)
        finally:
            if self._tasks and self.name(Lane.TASK) is None:
                self._begin(self._tasks.pop(next(iter(self._tasks))))
            self.changed.emit()

    def _reporter(self, job: _Job) -> ProgressCallback:
        last_s = -_PROGRESS_INTERVAL_S

        def emit(fraction: float, message: str) -> None:
            if job.lane is not Lane.IDLE and not job.cancelled.is_set():
                self.progressed.emit(fraction, message)

        def report(fraction: float, message: str) -> None:
            nonlocal last_s
            if not job.cancelled.is_set():
                self._do_more_urgent(job)
            if job.cancelled.is_set():
                raise JobCancelled
            now_s = time.monotonic()
            if now_s - last_s >= _PROGRESS_INTERVAL_S:
                last_s = now_s
                self._deliver(partial(emit, fraction, message))

        return report

    def _do_more_urgent(self, job: _Job) -> None:
        if threading.current_thread() is not self._thread:
            return  # a worker thread of the model
        while True:
            with self._wake:
                urgent = self._pop_urgent(job.lane)
            if urgent is None:
                return
            self._run_job(urgent)


def _close_at_exit(thread: weakref.ref[InferenceThread]) -> None:
    """Ends the thread before the interpreter exits; a thread that still runs then would abort the process."""
    if (alive := thread()) is not None:
        alive.close(_EXIT_S)


@dataclass(frozen=True)
class InferenceSettings:
    """Where and how models run.

    Attributes:
        engine: 'model', the trained region model, or 'tree', the region trees alone.
        device: 'cpu', 'cuda' or another torch device; 'auto' is CUDA if there is one, else the CPU.
        threads: Number of CPU threads; 0 is the default of torch.
        store: Folder of the embeddings of planes; None stores nothing.
        store_gb: Maximum size of the files in that folder in GB (1e9 bytes).
    """

    engine: str = 'model'
    device: str = 'auto'
    threads: int = 0
    store: Path | None = None
    store_gb: float = 10.0
