"""Runs a `FolderJob` on a Dask cluster: one model per worker, small tasks, masks written by the workers.

Only names and status lines travel. A task is a handful of images; it leaves out what is finished, so it can be done
again at any time: Dask repeats the tasks of a worker that is gone, and a run after a lost scheduler does what
is missing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Protocol

import distributed

import unsam_mm
from unsam_mm.errors import UnSAMError
from unsam_mm.files import read_json, temporary_name
from unsam_mm.folders.store import MANIFEST, PseudoMaskStore
from unsam_mm.processes import threads_each
from unsam_mm.pseudo_masks.vit import check_device

_log = logging.getLogger(__name__)

_TASK_S = 5.0  # how often a worker reports; longer where so many work that
_TASKS_A_S = 20  # would be exceeded, a sixth of what scheduler and client did in one busy process
_MOST_IMAGES = 100
_TASKS_A_THREAD = 2  # in the scheduler's hands: one at work, one that waits
_TASK_RETRIES = 2  # of tasks that raise, such as for a disk that is away for a moment
_ASK_AGAIN_S = 5.0
_UNFIT_PAUSE_S = 1.0  # before a worker that cannot take part hands a task back
_CONNECT_S = 30.0
_SILENT = logging.CRITICAL + 1

_KILLED = (
    '{}: {} workers died over it, one after the other, perhaps for lack of memory; '
    'make the image smaller or give the workers more memory'
)
_NOT_VISIBLE = '{} is not visible there; mount the folder under the same path on all machines'
_NONE_LEFT = 'no worker is left that can take part ({}); finished images are kept: mend it and run again to go on'
_FAILED = 'a worker failed ({!r}); finished images are kept: its log has more, mend it and run again to go on'

Result = tuple[str, str | None]
"""Name of an image and error message, None if all is well."""


class Job(Protocol):
    """What a cluster needs of a run over a folder; a frozen dataclass that can be pickled.

    Attributes:
        images: Folder of images, or one image file.
        out: Folder of the store.
        device: Torch device of the workers.
    """

    images: Path
    out: Path
    device: str

    def path_of(self, name: str) -> Path:
        """Where an image lies."""

    def description(self) -> dict:
        """What the masks depend on."""

    def make_worker(self) -> Callable[[str], str | None]:
        """Loads the model; what it gives does an image and returns an error message, None if all is well."""


@contextmanager
def cluster_work(
    job: Job, address: str, description: dict, n_images: int
) -> Iterator[Callable[[list[str]], Iterator[Result]]]:
    """Does images on a cluster; results come in the order in which they finish.

    Scheduler and workers are there, and one worker at least can take part, before the block begins.

    Args:
        job: What to do; its folders must be visible to all workers under the same paths.
        address: Of a running scheduler, such as ``tcp://10.0.0.1:8786``, or ``local:N`` for N processes on this
            machine.
        description: Of the job, as the store notes it.
        n_images: How many images are to be done.

    Raises:
        UnSAMError: If the cluster cannot be reached, none of its workers can take part, or the scheduler is lost.
    """
    job = replace(job, images=job.images.absolute(), out=job.out.absolute())
    with _silence_dask_logs(), _connected(address, job.device, n_images) as (client, threads), _probe(job.out) as probe:
        run = _Run(client, job, description)

        def work(names: list[str]) -> Iterator[Result]:
            probe.unlink(missing_ok=True)  # from now on the note in the store shows workers that the folder is the same
            with _explain_lost_scheduler(client, address):
                yield from run.results(names)

        try:
            with _explain_lost_scheduler(client, address):
                run.prepare(threads, probe)
            yield work
        finally:
            run.close()


@contextmanager
def _probe(folder: Path) -> Iterator[Path]:
    """A file by which workers see that the folder is the client's."""
    path = temporary_name(folder)
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _explain_lost_scheduler(client: distributed.Client, address: str) -> Iterator[None]:
    """Explains what a client raises where its scheduler is lost."""
    try:
        yield
    except (CancelledError, OSError, RuntimeError) as error:  # what a client raises depends on where it was
        if isinstance(error, RuntimeError) and client.status == 'running':
            raise
        raise UnSAMError(
            f'the Dask scheduler at {address} was lost; finished images are kept: '
            'start the cluster again and run the same command to go on'
        ) from error


@contextmanager
def _silence_dask_logs() -> Iterator[None]:
    """Dask logs a dozen lines for a lost scheduler, where one line with the remedy is enough."""
    logger = logging.getLogger('distributed')
    kept = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [logging.NullHandler()], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = kept


@contextmanager
def _connected(address: str, device: str, n_images: int) -> Iterator[tuple[distributed.Client, int | None]]:
    """A client, and the number of torch threads per worker if this process starts the workers."""
    if not address:
        raise UnSAMError('the address of the Dask scheduler is empty; give one such as tcp://10.0.0.1:8786, or local:2')
    with ExitStack() as stack:
        threads, cluster = None, address
        if address.startswith('local:'):
            workers = min(_local_workers(address), n_images)
            threads = threads_each(workers)
            cluster = stack.enter_context(
                distributed.LocalCluster(
                    n_workers=workers,
                    threads_per_worker=1,
                    host='127.0.0.1',
                    dashboard_address='127.0.0.1:0',
                    memory_limit=None,  # a large image may take more than its share for a moment
                    resources=_resources(device),
                    silence_logs=_SILENT,
                )
            )
        try:
            client = stack.enter_context(distributed.Client(cluster, timeout=_CONNECT_S))
        except (OSError, ValueError) as error:
            raise UnSAMError(
                f'{address}: no Dask scheduler answers there ({error}); '
                'start one with "dask scheduler" and give its address, or use local:N'
            ) from error
        try:
            client.wait_for_workers(1, timeout=_CONNECT_S)
        except TimeoutError as error:
            raise UnSAMError(
                f'{address}: the scheduler has no workers; start some with "dask worker {address} --nthreads 1"'
            ) from error
        _log.info('dashboard: %s', client.dashboard_link)
        yield client, threads


def _local_workers(address: str) -> int:
    count = address.removeprefix('local:')
    if not count.isdecimal() or int(count) < 1:
        raise UnSAMError(f'{address}: the number of local workers must be positive; write local:2 for two')
    return int(count)


def _resources(device: str) -> dict[str, int]:
    return {'GPU': 1} if device.startswith('cuda') else {}


class _Outcome(NamedTuple):
    """What becomes of a task: all that travels back. Images that are missing in the results were not tried."""

    worker: str
    results: list[Result]
    seconds: float
    problem: str | None


class _OnWorker(distributed.WorkerPlugin):
    """What a worker keeps for one run: the model, once the first image comes, and why it cannot take part, if so."""

    def __init__(self, name: str, job: Job, description: dict, probe: Path, threads: int | None) -> None:
        self.name = name
        self.problem: str | None = None
        self._job, self._description, self._probe, self._threads = job, description, probe, threads

    async def setup(self, worker: distributed.Worker) -> None:
        self._lock, self._images, self._stopped = threading.Lock(), None, False
        self._address = worker.address
        if self._threads:
            # Ours: Ctrl-C reaches all processes of a terminal, and the client's word is enough to stop them.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if _resources(self._job.device).items() <= worker.state.total_resources.items():
            # Weights may have to be downloaded, and meanwhile the worker must answer its scheduler.
            self.problem = await asyncio.to_thread(self._find_problem)
        else:
            self.problem = 'it offers no GPU; start it with "dask worker ADDRESS --nthreads 1 --resources GPU=1"'

    def teardown(self, worker: distributed.Worker) -> None:
        """The task at work ends after its present image."""
        self._stopped, self._images = True, None

    def do(self, names: list[str]) -> _Outcome:
        """Images one after the other; what was done while a folder was out of sight does not count."""
        store, results, start_s = PseudoMaskStore(self._job.out), [], time.perf_counter()
        if not (problem := self._find_problem()):
            with self._lock:  # the threads of a worker share one model
                images = self._images = self._images or self._load()
            for name in names:
                if self._stopped:
                    break
                is_done = store.is_current(name, self._job.path_of(name))
                results.append((name, None if is_done else images(name)))
            problem = self._find_problem()
        if problem:
            results.clear()
            time.sleep(_UNFIT_PAUSE_S)
        return _Outcome(self._address, results, time.perf_counter() - start_s, problem)

    def _load(self) -> Callable[[str], str | None]:
        if self._threads:
            import torch

            torch.set_num_threads(self._threads)
        return self._job.make_worker()

    def _find_problem(self) -> str | None:
        """Compares the worker's view of the run with the client's: same folders, same masks."""
        job, manifest = self._job, self._job.out / MANIFEST
        try:
            if not job.images.exists():
                return _NOT_VISIBLE.format(job.images)
            # The client notes its settings in the folder when it begins, and shows it by another file before that.
            noted = self._description
            if not self._probe.exists():
                if not manifest.exists():
                    return _NOT_VISIBLE.format(manifest)
                noted = read_json(manifest)
            own = job.description()
            if differing := ', '.join(key for key in own if noted.get(key) != own[key]):
                return f'it has another {differing}; install the same versions and share one folder UNSAM_CACHE'
            check_device(job.device)
        except (UnSAMError, OSError) as error:
            return str(error)
        return None


def _do(run: str, names: list[str]) -> _Outcome:
    """The task: calls the job that the worker keeps for this run."""
    return distributed.get_worker().plugins[run].do(names)


class _Run:
    """One client's run: hands out tasks, a bounded number at a time, and tells what becomes of them."""

    def __init__(self, client: distributed.Client, job: Job, description: dict) -> None:
        self._client, self._job, self._description = client, job, description
        self._name = f'unsam-{uuid.uuid4().hex[:8]}'
        self._numbers = itertools.count()
        self._running: dict[distributed.Future, list[str]] = {}
        self._finished = distributed.as_completed(loop=client.loop)
        self._suspects: list[str] = []  # images of tasks whose workers died
        self._unfit: set[str] = set()  # workers
        self._images_done, self._busy_s = 0, 0.0
        self._threads_of: dict[str, int] = {}
        self._threads_known_s = float('-inf')

    def prepare(self, torch_threads: int | None, probe: Path) -> None:
        """Sets up the workers, present and future, and makes sure that one at least can take part."""

        def version() -> str | None:  # travels by value, since the package may be missing over there
            import importlib.util

            return importlib.import_module('unsam_mm').__version__ if importlib.util.find_spec('unsam_mm') else None

        for worker, found in self._client.run(version).items():
            if found != unsam_mm.__version__:
                raise UnSAMError(
                    f'worker {worker} has {f"unsam_mm {found}" if found else "no unsam_mm"}; '
                    f'install unsam_mm {unsam_mm.__version__} for all workers and start them again'
                )
        plugin = _OnWorker(self._name, self._job, self._description, probe, torch_threads)
        self._client.register_plugin(plugin, name=self._name)
        name = self._name
        problems = self._client.run(lambda dask_worker: dask_worker.plugins[name].problem)
        for worker, problem in problems.items():
            if all(problems.values()):
                raise UnSAMError(f'worker {worker} cannot take part: {problem}')
            if problem:
                self._leave_out(worker, problem)

    def results(self, names: list[str]) -> Iterator[Result]:
        """Does the images; those whose workers died come last, each alone, so that none is blamed for another."""
        yield from self._in_batches(names)
        for name in self._suspects:
            yield from self._in_batches([name], alone=True)

    def close(self) -> None:
        """Stops what is still at work and drops the model; without a scheduler nothing is left to stop."""
        if self._client.status == 'running':
            with suppress(OSError, ValueError, CancelledError):
                self._client.cancel(list(self._running))
                self._client.unregister_worker_plugin(self._name)

    def _in_batches(self, names: list[str], alone: bool = False) -> Iterator[Result]:
        waiting, left = iter(names), len(names)
        while True:
            while left and len(self._running) < _TASKS_A_THREAD * self._count_threads():
                batch = list(itertools.islice(waiting, self._batch_size(left)))
                left -= len(batch)
                self._submit(batch)
            if not self._running:
                return
            future = next(self._finished)
            batch = self._running.pop(future)
            if future.status in ('lost', 'pending'):  # its worker died before the result was fetched: Dask repeats it
                self._await(future, batch)
                continue
            try:
                outcome = future.result()
            except Exception as error:
                if future.status != 'error':  # not the task's: the scheduler's
                    raise
                yield from self._take_error(batch, error, alone)
            else:
                yield from self._take(batch, outcome)

    def _take_error(self, batch: list[str], error: Exception, alone: bool) -> Iterator[Result]:
        if not isinstance(error, distributed.KilledWorker):
            raise error if isinstance(error, UnSAMError) else UnSAMError(_FAILED.format(error)) from error
        if alone:
            yield batch[0], _KILLED.format(self._job.path_of(batch[0]), error.allowed_failures + 1)
        else:
            self._suspects += batch

    def _take(self, batch: list[str], outcome: _Outcome) -> Iterator[Result]:
        self._images_done += len(outcome.results)
        self._busy_s += outcome.seconds
        if outcome.problem:
            self._leave_out(outcome.worker, outcome.problem)
        if untried := batch[len(outcome.results) :]:
            self._submit(untried)
        yield from outcome.results

    def _leave_out(self, worker: str, problem: str) -> None:
        if worker not in self._unfit:
            self._unfit.add(worker)
            _log.warning('worker %s takes no part: %s', worker, problem)
            if self._unfit >= self._client.nthreads().keys():
                raise UnSAMError(_NONE_LEFT.format(problem))

    def _submit(self, batch: list[str]) -> None:
        fit = [worker for worker in self._threads_of if worker not in self._unfit] if self._unfit else []
        future = self._client.submit(
            _do,
            self._name,
            batch,
            key=f'pseudo-masks-{next(self._numbers):07}-{self._name}-{batch[0]}',  # the words group them on the dashboard
            retries=_TASK_RETRIES,
            resources=_resources(self._job.device),
            workers=fit or None,
            allow_other_workers=bool(fit),  # if all of these are gone, perhaps to come back under another address
        )
        self._await(future, batch)

    def _await(self, future: distributed.Future, batch: list[str]) -> None:
        self._running[future] = batch
        self._finished.add(future)

    def _batch_size(self, left: int) -> int:
        """Images that take some seconds; fewer at the end, so that all workers finish together."""
        threads = self._count_threads()
        task_s = max(_TASK_S, threads / _TASKS_A_S)
        fitting = int(task_s * self._images_done / self._busy_s) if self._busy_s else 1
        return max(1, min(fitting, _MOST_IMAGES, left // (2 * _TASKS_A_THREAD * threads)))

    def _count_threads(self) -> int:
        """Of all workers, which may come and go; asked for now and then."""
        if time.monotonic() - self._threads_known_s > _ASK_AGAIN_S:
            self._threads_of = self._client.nthreads()
            self._threads_known_s = time.monotonic()
        return max(1, sum(self._threads_of.values()))
