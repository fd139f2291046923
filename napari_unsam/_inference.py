"""The one thread in which models run.

One long-lived thread, because torch keeps a pool of workers per calling thread and builds it anew in every
short-lived one. It holds at most one waiting job: the latest wins, and an older one is told to stop.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.hierarchy import MaskHierarchy

ProgressCallback = Callable[[float, str], None]
Embed = Callable[[np.ndarray, ProgressCallback], MaskHierarchy]
Deliver = Callable[[Callable[[], None]], None]

_PROGRESS_INTERVAL_S = 0.03  # more often than this would only keep the receiving thread busy

logger = logging.getLogger(__name__)


class JobCancelled(Exception):
    """Raised inside the progress callback of a cancelled job to leave the model at once."""


@dataclass(eq=False)
class Job:
    """One image to turn into a region tree, and whom to tell.

    Attributes:
        read: Gives the image; called in the inference thread, since reading may take long.
        on_progress: Told the fraction done, in [0, 1], and what is being done.
        on_done: Told the result.
        on_failed: Told one line for the user.
    """

    read: Callable[[], np.ndarray]
    on_progress: ProgressCallback
    on_done: Callable[[MaskHierarchy], None]
    on_failed: Callable[[str], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class InferenceThread:
    """Runs jobs one at a time in a thread of its own.

    Args:
        embed: Turns an image into a region tree; called in the thread.
        deliver: Runs a function in the thread that the callbacks of a job belong to, for example the GUI's.
    """

    def __init__(self, embed: Embed, deliver: Deliver) -> None:
        self._embed = embed
        self._deliver = deliver
        self._waiting: Job | None = None
        self._running: Job | None = None
        self._closed = False
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, job: Job) -> None:
        """Cancels the job at hand and runs this one as soon as it has stopped."""
        with self._wake:
            self._cancel_jobs()
            self._waiting = job
            if self._thread is None:
                # A daemon, so that a model in mid-flight cannot keep a closed application alive.
                self._thread = threading.Thread(target=self._run, name='unsam-inference', daemon=True)
                self._thread.start()
            self._wake.notify()

    def cancel(self) -> None:
        """Stops the jobs at hand; none of their callbacks is called any more."""
        with self._wake:
            self._cancel_jobs()

    def close(self, timeout_s: float = 0.0) -> bool:
        """Stops the jobs and the thread; returns whether the thread has ended within the timeout."""
        with self._wake:
            self._cancel_jobs()
            self._closed = True
            self._wake.notify()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _cancel_jobs(self) -> None:
        for job in (self._running, self._waiting):
            if job is not None:
                job.cancelled.set()
        self._waiting = None

    def _run(self) -> None:
        while (job := self._next_job()) is not None:
            self._work(job)

    def _next_job(self) -> Job | None:
        with self._wake:
            self._running = None
            self._wake.wait_for(lambda: self._waiting is not None or self._closed)
            if self._closed:
                return None
            self._running, self._waiting = self._waiting, None
            return self._running

    def _work(self, job: Job) -> None:
        try:
            hierarchy = self._embed(job.read(), _throttled(job, self._tell))
        except JobCancelled:
            return
        except UnSAMError as error:
            self._tell(job, job.on_failed, str(error))
        except Exception as error:  # the thread outlives any failure of a model or a file; the user is told
            logger.exception('the region tree could not be made')
            self._tell(job, job.on_failed, f'{type(error).__name__}: {error}')
        else:
            self._tell(job, job.on_done, hierarchy)

    def _tell(self, job: Job, callback: Callable[..., None], *args: object) -> None:
        def call() -> None:
            # Looked up on arrival: the job may have been cancelled while the message was under way.
            if not job.cancelled.is_set():
                callback(*args)

        self._deliver(call)


def _throttled(job: Job, tell: Callable[..., None]) -> ProgressCallback:
    last_s = -_PROGRESS_INTERVAL_S

    def report(fraction: float, message: str) -> None:
        nonlocal last_s
        if job.cancelled.is_set():
            raise JobCancelled
        now_s = time.monotonic()
        if now_s - last_s >= _PROGRESS_INTERVAL_S:
            last_s = now_s
            tell(job, job.on_progress, fraction, message)

    return report


@dataclass(frozen=True)
class InferenceSettings:
    """Where and how models run.

    Attributes:
        device: 'cpu', 'cuda' or another torch device; 'auto' is CUDA if there is one, else the CPU.
        threads: How many CPU threads a model may use; 0 leaves it to torch.
    """

    device: str = 'auto'
    threads: int = 0


class GeneratorEmbed:
    """Makes region trees with `unsam_mm.PseudoMaskGenerator`, which is built at the first call."""

    def __init__(self, settings: InferenceSettings) -> None:
        self._settings = settings
        self._generator: Embed | None = None

    def __call__(self, image: np.ndarray, progress: ProgressCallback) -> MaskHierarchy:
        """Turns an image, (H, W) uint8 or (H, W, 3), into a region tree."""
        if self._generator is None:
            progress(0.0, 'Loading the model')
            self._generator = self._build()
        return self._generator(image, progress=progress)

    def _build(self) -> Embed:
        import torch

        import unsam_mm.prompting  # noqa: F401  loaded here so that the first click after the embedding finds it ready
        from unsam_mm import PseudoMaskGenerator

        device = self._settings.device
        if device == 'auto':
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
        if self._settings.threads:
            torch.set_num_threads(self._settings.threads)  # holds for the calling thread, which is the inference thread
        return PseudoMaskGenerator.from_preset('default', device=device)
