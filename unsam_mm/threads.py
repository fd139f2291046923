"""Thread pools limited to the number of torch threads of the calling thread.

That number follows OMP_NUM_THREADS and the available cores. Processes of a folder job and workers of a cluster set it
to their share, and napari to its user's choice. With one thread everything runs in turn, in the calling thread.

torch has a pool of threads for each thread that calls it, so several threads may use these functions at once. Each
function that they run in another thread has one thread, in torch too.
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
    """Ignores warnings of a kind, in one thread at a time.

    The filters are one for all threads: two that put back what they have found would leave those of the other.
    """
    with _settings_lock, warnings.catch_warnings():
        warnings.simplefilter('ignore', category)
        yield


def run_parallel(jobs: Sequence[Callable[[], _T]]) -> list[_T]:
    """What each of some functions returns, in their order.

    They should spend their time where Python's lock is released, as compiled loops and array functions do.
    """
    import torch

    threads = min(torch.get_num_threads(), len(jobs))
    if threads < 2:
        return [job() for job in jobs]
    with ThreadPoolExecutor(threads, initializer=partial(set_own_threads, 1)) as pool:
        return list(pool.map(lambda job: job(), jobs))


class BackgroundJob(Generic[_T]):
    """What runs beside a block of `run_in_background`.

    Args:
        job: The function. Without a future it runs when its result is asked for.
        future: Of its run in another thread.
    """

    def __init__(self, job: Callable[[], _T], future: Future[_T] | None = None) -> None:
        self._job, self._future = job, future
        self._has_thread = future is not None

    def __call__(self) -> _T:
        """Returns the result of the job, or raises its error."""
        return self._job() if self._future is None else self._future.result()

    def reclaim_thread(self) -> None:
        """Returns the thread of the job to torch once the job is done; long blocks call it repeatedly."""
        if self._has_thread and self._future.done():
            self._give_back()

    def _give_back(self) -> None:
        import torch

        if self._has_thread:
            self._has_thread = False
            set_own_threads(torch.get_num_threads() + 1)


@contextmanager
def run_in_background(job: Callable[[], _T]) -> Iterator[BackgroundJob[_T]]:
    """Runs a function while the block does something else.

    The function has one of the threads, torch in the block the others: threads that wait for one another at every
    product of matrices lose more to a busy core than it gives. If the block raises, the function is still waited for,
    since it holds the memory of an image.
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
            running._give_back()


def set_own_threads(threads: int) -> None:
    """Sets torch's number of threads for the calling thread alone.

    `torch.set_num_threads` also decides for all threads that have not used torch yet; those keep what they would have,
    unless they use it first while this function runs.
    """
    import torch

    with _lock:
        of_others = _in_new_thread(torch.get_num_threads)
        torch.get_num_threads()  # on first use of torch a thread takes the global number, even if it has set another
        torch.set_num_threads(threads)
        if of_others != threads:
            _in_new_thread(partial(torch.set_num_threads, of_others))


def _in_new_thread(call: Callable[[], _T]) -> _T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()
