"""Thread pools limited to the number of torch threads of the calling thread.

This number follows OMP_NUM_THREADS and the available cores. Processes of a folder job and workers of a cluster set it
to their share, and napari to the user's choice. With one thread, everything runs sequentially in the calling thread.

torch has a thread pool for each thread that calls it, so several threads may use these functions at once. A function
that runs in another thread has one thread, also in torch.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Generic, TypeVar

_T = TypeVar('_T')
_lock = threading.Lock()
_settings_lock = threading.RLock()


@contextmanager
def without_warnings(category: type[Warning] = Warning) -> Iterator[None]:
    """Ignores warnings of a category, in one thread at a time.

    All threads share the warning filters: two threads that change and restore them at once would undo each other's
    changes in the wrong order.
    """
    with _settings_lock, warnings.catch_warnings():
        warnings.simplefilter('ignore', category)
        yield


def run_parallel(jobs: Sequence[Callable[[], _T]]) -> list[_T]:
    """Runs functions in parallel, and returns their results in the same order.

    The functions should release Python's global interpreter lock most of the time, as compiled loops and NumPy do.
    """
    import torch

    threads = min(torch.get_num_threads(), len(jobs))
    if threads < 2:
        return [job() for job in jobs]
    with ThreadPoolExecutor(threads, initializer=partial(set_own_threads, 1)) as pool:
        return list(pool.map(lambda job: job(), jobs))


class BackgroundJob(Generic[_T]):
    """A function that runs during the block of `run_in_background`.

    Args:
        job: The function.
        future: Its result, if the function runs in another thread. None: it runs when its result is requested.
    """

    def __init__(self, job: Callable[[], _T], future: Future[_T] | None = None) -> None:
        self._job, self._future = job, future
        self._has_thread = future is not None

    def __call__(self) -> _T:
        """Returns the result of the job, or raises its error."""
        return self._job() if self._future is None else self._future.result()

    def reclaim_thread(self) -> None:
        """Returns the thread of the job to torch if the job is done; long blocks call this repeatedly."""
        import torch

        if self._has_thread and self._future.done():
            self._has_thread = False
            set_own_threads(torch.get_num_threads() + 1)


@contextmanager
def run_in_background(job: Callable[[], _T]) -> Iterator[BackgroundJob[_T]]:
    """Runs a function while the block does something else.

    The function has one of the calling thread's torch threads, and torch in the block has the others. With more threads
    than cores, matrix products would be slower, since their threads wait for each other. Even if the
    block raises an error, the end of the function is awaited, since it uses the memory of an image.
    """
    import torch

    threads = torch.get_num_threads()
    if threads < 2:
        yield BackgroundJob(job)
        return
    set_own_threads(threads - 1)
    with ThreadPoolExecutor(1, initializer=partial(set_own_threads, 1)) as pool:
        running = BackgroundJob(job, pool.submit(job))
        try:
            yield running
        finally:
            pool.shutdown()
            running.reclaim_thread()


def set_own_threads(threads: int) -> None:
    """Sets torch's number of threads for the calling thread only.

    `torch.set_num_threads` also sets the default of all threads that have not used torch yet. That default is restored;
    only a thread that first uses torch while this function runs may get another number.
    """
    import torch

    with _lock:
        of_others = _in_new_thread(torch.get_num_threads)
        torch.get_num_threads()  # the first use of torch in a thread sets the default number, which is then replaced
        torch.set_num_threads(threads)
        if of_others != threads:
            _in_new_thread(partial(torch.set_num_threads, of_others))


def _in_new_thread(call: Callable[[], _T]) -> _T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()
