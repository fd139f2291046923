"""Work that is done side by side, as far as the calling thread may use several cores.

How many that are is said in one place for everything: torch's number of threads. It follows OMP_NUM_THREADS and the cores
that the process may use, the processes of a folder job and the workers of a cluster set it to their share, and napari to
what its user chose. With one thread everything here runs in turn, in the calling thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

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


@contextmanager
def alongside(job: Callable[[], _T]) -> Iterator[Callable[[], _T]]:
    """Runs a function while the block does something else; gives what waits for its answer.

    The function has one of the threads, torch in the block the others: threads that wait for one another at every
    product of matrices lose more to a busy core than it gives. If the block raises, the function is still waited for,
    since it holds the memory of an image.
    """
    import torch

    threads = torch.get_num_threads()
    if threads < 2:
        yield job
        return
    torch.set_num_threads(threads - 1)
    try:
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(job).result
    finally:
        torch.set_num_threads(threads)
