"""Work on many items in several processes, each with one model."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from unsam_mm.errors import UnSAMError

Item = TypeVar('Item')
Result = TypeVar('Result')

_THREAD_VARIABLES = (
    'OMP_NUM_THREADS',
    'MKL_NUM_THREADS',
    'OPENBLAS_NUM_THREADS',
    'VECLIB_MAXIMUM_THREADS',
    'NUMBA_NUM_THREADS',
    'OPENCV_FOR_THREADS_NUM',
    'TIFFFILE_NUM_THREADS',
)
_start_lock = threading.Lock()  # the environment is one for all threads


def in_processes(
    make_worker: Callable[[], Callable[[Item], Result]], items: Iterable[Item], processes: int, advice: str
) -> Iterator[tuple[Item, Result]]:
    """Each item with its result, in the order in which they finish; where the consumer stops, so do the processes.

    Args:
        make_worker: Called once in each process; what it gives, such as a model, does one item after another. It travels
            to the processes, so it must be picklable.
        items: May be millions: no more than two for each process wait at a time.
        processes: At least 1.
        advice: Added to the message where a process ends by itself.

    Raises:
        UnSAMError: If a process ends by itself.
    """
    threads = threads_each(processes)
    with ProcessPoolExecutor(processes, _Context(threads), _start, (make_worker, threads)) as pool:
        try:
            yield from _as_they_finish(pool, items, at_once=2 * processes)
        except BrokenProcessPool as error:
            raise UnSAMError(f'a worker process ended by itself, perhaps for lack of memory; {advice}') from error
        except BaseException:
            # Whatever they write is written atomically, so what is in the making can be dropped at once.
            for process in (pool._processes or {}).values():
                process.terminate()
            raise


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def threads_each(processes: int) -> int:
    """Threads for each of several processes: an equal share of the cores, and OMP_NUM_THREADS at most where that is set."""
    share = max(1, available_cores() // processes)
    if (asked := os.environ.get('OMP_NUM_THREADS', '')).isdecimal():
        return min(share, max(1, int(asked)))
    return share


class _Context(multiprocessing.context.SpawnContext):
    """Starts processes whose libraries have so many threads each.

    A forked child of a process that has used torch can hang, so they start afresh. Most of these numbers are read once,
    when a library is loaded, so they have to be there before.
    """

    def __init__(self, threads: int) -> None:
        super().__init__()
        self._threads = threads

    def Process(self, *args: Any, **kwargs: Any) -> _Process:
        process = _Process(*args, **kwargs)
        process.threads = self._threads
        return process


class _Process(multiprocessing.context.SpawnProcess):
    threads = 1

    def start(self) -> None:
        with _start_lock:
            before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
            os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(self.threads)))
            try:
                super().start()
            finally:
                for name, value in before.items():
                    if value is None:
                        del os.environ[name]
                    else:
                        os.environ[name] = value


def _as_they_finish(pool: ProcessPoolExecutor, items: Iterable[Any], at_once: int) -> Iterator[tuple[Any, Any]]:
    waiting, running = iter(items), {}
    while True:
        for item in itertools.islice(waiting, at_once - len(running)):
            running[pool.submit(_work, item)] = item
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


_worker: Callable[[Any], Any] | None = None  # one for each process, since a model cannot be sent along with every item


def _start(make_worker: Callable[[], Callable[[Any], Any]], threads: int) -> None:
    import torch

    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    _worker = make_worker()


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for items for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(item: Any) -> Any:
    if _worker is None:
        raise UnSAMError('this process was not started by in_processes')
    return _worker(item)
