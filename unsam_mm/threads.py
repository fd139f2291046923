"""Work that is done side by side, as far as the calling thread may use several cores.

How many that are is said in one place for everything: torch's number of threads. It follows OMP_NUM_THREADS and the cores
that the process may use, the processes of a folder job and the workers of a cluster set it to their share, and napari to
what its user chose. With one thread everything here runs in turn, in the calling thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Generic, TypeVar

_T = TypeVar('_T')


def all_of(jobs: Sequence[Callable[[], _T]]) -> list[_T]:
    """What each of some functions returns, in their order.

    They should spend their time where Python's lock is released, as compiled loops and array functions do, and not in
    torch, which has threads of its own.
    """
    import torch

    threads = min(torch.get_num_threads(), len(jobs))
    if threads < 2:
        return [job() for job in jobs]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda job: job(), jobs))


class SideJob(Generic[_T]):
    """What runs beside a block of `alongside`.

    Args:
        result: Waits for what it returns.
        is_done: Whether that is there.
        threads: That torch may use once it is.
    """

    def __init__(self, result: Callable[[], _T], is_done: Callable[[], bool], threads: int) -> None:
        self._result, self._is_done, self._threads = result, is_done, threads

    def __call__(self) -> _T:
        """What it returns, or raises."""
        return self._result()

    def take_thread(self) -> None:
        """Has torch use the thread of the job too, if the job is done; a block that takes long calls it now and then."""
        import torch

        if self._is_done() and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)


@contextmanager
def alongside(job: Callable[[], _T]) -> Iterator[SideJob[_T]]:
    """Runs a function while the block does something else.

    The function has one of the threads, torch in the block the others: threads that wait for one another at every
    product of matrices lose more to a busy core than it gives. If the block raises, the function is still waited for,
    since it holds the memory of an image.
    """
    import torch

    threads = torch.get_num_threads()
    if threads < 2:
        yield SideJob(job, lambda: False, threads)
        return
    torch.set_num_threads(threads - 1)
    try:
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(job)
            yield SideJob(future.result, future.done, threads)
    finally:
        torch.set_num_threads(threads)
