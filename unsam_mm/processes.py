"""Process pool with one model per process."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from unsam_mm.errors import UnSAMError, describe_error

_log = logging.getLogger(__name__)

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
_MIN_DONE = 100  # items per process; after these, a process that ends by itself is no sign of too many processes
_start_lock = threading.Lock()  # all threads share the environment


def in_processes(
    make_worker: Callable[[], Callable[[Item], Result]],
    items: Iterable[Item],
    processes: int,
    advice: str,
    lost: Callable[[Item], Result],
) -> Iterator[tuple[Item, Result]]:
    """Yields each item with its result, in the order in which they finish. If the consumer stops, the processes end.

    If a process ends by itself, perhaps killed for lack of memory, half as many processes continue with the other
    items, or as many as before if many items had been finished. The unfinished items that had been sent to the
    processes are processed again at the end, one at a time, to find those that end their process; `lost` returns the
    result for these.

    Args:
        make_worker: Called once in each process; returns a function, such as a model, that is called with one item
            after another. `make_worker` is sent to the processes, so it must be picklable.
        items: There may be millions: at most two for each process are read from the iterable in advance.
        processes: At least 1.
        advice: Added to the message if no worker can be started.
        lost: Returns the result for an item that ends its process.

    Raises:
        UnSAMError: If the first process cannot make its worker, or ends by itself before any item.
    """
    waiting, suspects = iter(items), deque()
    while True:
        running: dict[Future, Item] = {}
        n_done = 0
        try:
            with _pool(make_worker, processes, advice) as pool:
                for finished in _as_completed(pool, waiting, running, max_running=2 * processes):
                    n_done += 1
                    yield finished
            break
        except BrokenProcessPool:
            suspects += running.values()
            if n_done < _MIN_DONE * processes:
                processes = max(1, processes // 2)
            _log.warning(
                'a worker process ended by itself, perhaps for lack of memory; %d items are tried again at the end, '
                'the others with %d process(es)',
                len(running),
                processes,
            )
        except _WorkerStartError as error:
            waiting = itertools.chain(list(running.values()), waiting)
            processes = max(1, processes // 2)
            _log.warning('a worker process could not start (%s); going on with %d process(es)', error, processes)
    while suspects:
        running = {}
        try:
            with _pool(make_worker, 1, advice) as pool:
                yield from _as_completed(pool, _drain(suspects), running, max_running=1)
        except BrokenProcessPool:
            yield from ((item, lost(item)) for item in running.values())


def _drain(items: deque[Item]) -> Iterator[Item]:
    while items:
        yield items.popleft()


@contextmanager
def _pool(make_worker: Callable[[], Any], processes: int, advice: str) -> Iterator[ProcessPoolExecutor]:
    """A pool in which at least one process has made its worker."""
    threads = threads_each(processes)
    context = multiprocessing.context.SpawnContext()
    context.Process = partial(_Process, threads)
    with ProcessPoolExecutor(processes, context, _start, (make_worker, threads)) as pool:
        try:
            try:
                pool.submit(_check_worker).result()
            except BrokenProcessPool as error:
                raise UnSAMError(
                    f'a worker process ended before it began, perhaps for lack of memory; {advice}'
                ) from error
            except _WorkerStartError as error:
                raise UnSAMError(f'a worker process could not start ({error}); {advice}') from error
            yield pool
        except BrokenProcessPool:
            raise
        except BaseException:
            # Workers write their files atomically, so they can be ended at any moment.
            for process in (pool._processes or {}).values():
                process.terminate()
            raise


def available_cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def threads_each(processes: int) -> int:
    """Threads per process: the cores divided by the number of processes, and at most OMP_NUM_THREADS if it is set."""
    share = max(1, available_cores() // processes)
    if (asked := os.environ.get('OMP_NUM_THREADS', '')).isdecimal():
        return min(share, max(1, int(asked)))
    return share


class _Process(multiprocessing.context.SpawnProcess):
    """A process whose libraries use `threads` threads each.

    The process is spawned, because a forked child of a process that has used torch can hang. Most libraries read the
    number of threads once, when they are loaded, so the environment is set before the process starts.
    """

    def __init__(self, threads: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._threads = threads

    def start(self) -> None:
        with _start_lock:
            before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
            os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(self._threads)))
            try:
                super().start()
            finally:
                for name, value in before.items():
                    if value is None:
                        del os.environ[name]
                    else:
                        os.environ[name] = value


def _as_completed(
    pool: ProcessPoolExecutor, waiting: Iterator[Any], running: dict[Future, Any], max_running: int
) -> Iterator[tuple[Any, Any]]:
    """Yields items with their results; `running` maps the futures of unfinished items to the items."""
    while True:
        for item in itertools.islice(waiting, max_running - len(running)):
            try:
                future = pool.submit(_work, item)
            except BrokenProcessPool:
                running[Future()] = item
                raise
            running[future] = item
        if not running:
            return
        done = wait(running, return_when=FIRST_COMPLETED).done
        for future in sorted(done, key=lambda future: future.exception() is not None):  # no result is lost to an error
            result = future.result()
            yield running.pop(future), result


class _WorkerStartError(Exception):
    """A process could not make its worker, perhaps for lack of memory; other processes may have made theirs."""


_worker: Callable[[Any], Any] | None = None  # global in each process: a model cannot be sent along with every item
_start_error: UnSAMError | _WorkerStartError | None = None


def _start(make_worker: Callable[[], Callable[[Any], Any]], threads: int) -> None:
    global _worker, _start_error
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        import torch

        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        _worker = make_worker()
    except UnSAMError as error:
        _start_error = error
    except Exception as error:  # noqa: BLE001 - the pool would only raise BrokenProcessPool
        _start_error = _WorkerStartError(describe_error(error))


def _check_worker() -> None:
    """Raises the error, if any, that this process met while it made its worker."""
    if _start_error is not None:
        raise _start_error


def _end_with_parent() -> None:
    """Ends this process with its parent: otherwise it would wait for items forever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(item: Any) -> Any:
    _check_worker()
    return _worker(item)
