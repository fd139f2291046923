"""Runs a `FolderJob` on a Dask cluster: one model for each worker, small tasks, masks written by the workers.

Only image names and results are sent. A task is a few images, and finished images are skipped, so tasks can be
repeated. If a worker is lost, Dask repeats its tasks. If the scheduler is lost, the next run processes the missing
images.
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
from unsam_mm.pseudo_masks.setting_names import current_settings
from unsam_mm.pseudo_masks.vit import check_device

_log = logging.getLogger(__name__)

_TASK_S = 5.0  # intended duration of a task; longer if there are so many workers that `_TASKS_PER_S` would be exceeded
_TASKS_PER_S = 20  # maximum for all workers; a sixth of what scheduler and client handle in one busy process
_MAX_IMAGES = 100  # in a task
_TASKS_PER_THREAD = 2  # submitted at a time: one that runs and one that waits
_TASK_RETRIES = 2  # of a task that raises an error, for example because a disk is unavailable for a moment
_THREADS_UPDATE_S = 5.0
_UNUSABLE_PAUSE_S = 1.0  # before an unusable worker returns a task
_CONNECT_S = 30.0
_SILENT = logging.CRITICAL + 1

_KILLED = (
    '{}: {} workers died while processing it, perhaps for lack of memory; '
    'make the image smaller or give the workers more memory'
)
_NOT_VISIBLE = '{} is not visible there; mount the folder under the same path on all machines'
_NONE_LEFT = 'no usable worker is left ({}); finished images are kept: fix the cause and run again to continue'
_FAILED = 'a worker failed ({!r}); finished images are kept: see its log, fix the cause and run again to continue'

Result = tuple[str, str | None]
"""Name of an image, and an error message or None if its masks have been written."""


class Job(Protocol):
    """The attributes of `FolderJob` that are used here; it is sent to the workers.

    Attributes:
        images: Folder of images, or one image file.
        out: Folder of the store.
        device: Torch device of the workers.
    """

    images: Path
    out: Path
    device: str

    def path_of(self, name: str) -> Path:
        """The path of an image."""

    def description(self) -> dict:
        """Everything that the masks depend on."""

    def make_worker(self) -> Callable[[str], str | None]:
        """Loads the model, and returns a function that processes an image and returns an error message or None."""


@contextmanager
def cluster_work(
    job: Job, address: str, description: dict, n_images: int
) -> Iterator[Callable[[list[str]], Iterator[Result]]]:
    """A function that processes images on a cluster and yields results in the order of completion.

    At least one worker has been found usable when the block begins.

    Args:
        job: The run; its folders must have the same paths on all workers.
        address: Address of a running scheduler, such as ``tcp://10.0.0.1:8786``, or ``local:N`` for N processes on this
            machine.
        description: Metadata of the run, from `FolderJob.description`.
        n_images: Number of images.

    Raises:
        UnSAMError: If the cluster cannot be reached, has no usable worker, or its scheduler is lost.
    """
    job = replace(job, images=job.images.absolute(), out=job.out.absolute())
    with _silence_dask_logs(), _connected(address, job.device, n_images) as (client, threads), _probe(job.out) as probe:
        run = _Run(client, job, description)

        def work(names: list[str]) -> Iterator[Result]:
            probe.unlink(missing_ok=True)  # from now on workers find the metadata of the store
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
    """A temporary file, by which workers check that they see the same folder as the client."""
    path = temporary_name(folder)
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _explain_lost_scheduler(client: distributed.Client, address: str) -> Iterator[None]:
    """Turns the errors of a client that has lost its scheduler into `UnSAMError`."""
    try:
        yield
    except (CancelledError, OSError, RuntimeError) as error:  # depends on what the client was doing
        if isinstance(error, RuntimeError) and client.status == 'running':
            raise
        raise UnSAMError(
            f'the Dask scheduler at {address} was lost; finished images are kept: '
            'start the cluster again and run the same command to continue'
        ) from error


@contextmanager
def _silence_dask_logs() -> Iterator[None]:
    """Suppresses the log of Dask, which has a dozen lines for a lost scheduler."""
    logger = logging.getLogger('distributed')
    kept = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = [logging.NullHandler()], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = kept


@contextmanager
def _connected(address: str, device: str, n_images: int) -> Iterator[tuple[distributed.Client, int | None]]:
    """A client, and the number of torch threads for each worker if this process starts the workers, else None."""
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
                    memory_limit=None,  # a large image may need more than its share for a moment
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
    """What a task returns.

    Attributes:
        worker: Address of the worker.
        results: Results of the first images of the task; the others were not processed.
        seconds: Duration.
        problem: Why the worker is unusable; None if it is usable.
    """

    worker: str
    results: list[Result]
    seconds: float
    problem: str | None


class _WorkerPlugin(distributed.WorkerPlugin):
    """The state of one run on a worker: its model, loaded for the first image, and why the worker is unusable, if it is."""

    def __init__(self, name: str, job: Job, description: dict, probe: Path, threads: int | None) -> None:
        self.name = name
        self.problem: str | None = None
        self._job, self._description, self._probe, self._threads = job, description, probe, threads

    async def setup(self, worker: distributed.Worker) -> None:
        self._lock, self._process, self._stopped = threading.Lock(), None, False
        self._address = worker.address
        if self._threads:
            # A local worker: Ctrl-C reaches all processes of a terminal, but the client stops its workers itself.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        if _resources(self._job.device).items() <= worker.state.total_resources.items():
            # In a thread, since the worker must answer its scheduler while weights are downloaded.
            self.problem = await asyncio.to_thread(self._find_problem)
        else:
            self.problem = 'it offers no GPU; start it with "dask worker ADDRESS --nthreads 1 --resources GPU=1"'

    def teardown(self, worker: distributed.Worker) -> None:
        """Ends a running task after its current image, and frees the model."""
        self._stopped, self._process = True, None

    def do(self, names: list[str]) -> _Outcome:
        """Processes images; the results are discarded if the worker is unusable at the end, as without a folder."""
        store, results, start_s = PseudoMaskStore(self._job.out), [], time.perf_counter()
        if not (problem := self._find_problem()):
            with self._lock:  # the threads of a worker share one model
                process = self._process = self._process or self._load()
            for name in names:
                if self._stopped:
                    break
                is_done = store.is_current(name, self._job.path_of(name))
                results.append((name, None if is_done else process(name)))
            problem = self._find_problem()
        if problem:
            results.clear()
            time.sleep(_UNUSABLE_PAUSE_S)
        return _Outcome(self._address, results, time.perf_counter() - start_s, problem)

    def _load(self) -> Callable[[str], str | None]:
        if self._threads:
            import torch

            torch.set_num_threads(self._threads)
        return self._job.make_worker()

    def _find_problem(self) -> str | None:
        """Why this worker is unusable: it sees other folders or would compute other masks than the client; or None."""
        job, manifest = self._job, self._job.out / MANIFEST
        try:
            if not job.images.exists():
                return _NOT_VISIBLE.format(job.images)
            # The client writes the metadata when the run begins; before that there is only the probe.
            expected = self._description
            if not self._probe.exists():
                if not manifest.exists():
                    return _NOT_VISIBLE.format(manifest)
                expected = current_settings(read_json(manifest))
            own = job.description()
            if differing := ', '.join(key for key in own if expected.get(key) != own[key]):
                return f'it has another {differing}; install the same versions and share one folder UNSAM_CACHE'
            check_device(job.device)
        except (UnSAMError, OSError) as error:
            return str(error)
        return None


def _do(run: str, names: list[str]) -> _Outcome:
    """The task: processes images with the plugin of a run on this worker."""
    return distributed.get_worker().plugins[run].do(names)


class _Run:
    """The client's side of a run: submits tasks, a limited number at a time, and yields their results."""

    def __init__(self, client: distributed.Client, job: Job, description: dict) -> None:
        self._client, self._job, self._description = client, job, description
        self._name = f'unsam-{uuid.uuid4().hex[:8]}'
        self._numbers = itertools.count()
        self._running: dict[distributed.Future, list[str]] = {}
        self._finished = distributed.as_completed(loop=client.loop)
        self._suspects: list[str] = []  # images of tasks whose workers died
        self._unusable: set[str] = set()  # addresses of unusable workers
        self._images_done, self._busy_s = 0, 0.0
        self._threads_of: dict[str, int] = {}
        self._threads_updated_s = float('-inf')

    def prepare(self, torch_threads: int | None, probe: Path) -> None:
        """Sets up present and future workers, and checks that at least one is usable."""

        def version() -> str | None:  # pickled by value, since workers may lack the package
            import importlib.util

            return importlib.import_module('unsam_mm').__version__ if importlib.util.find_spec('unsam_mm') else None

        for worker, found in self._client.run(version).items():
            if found != unsam_mm.__version__:
                raise UnSAMError(
                    f'worker {worker} has {f"unsam_mm {found}" if found else "no unsam_mm"}; '
                    f'install unsam_mm {unsam_mm.__version__} for all workers and start them again'
                )
        plugin = _WorkerPlugin(self._name, self._job, self._description, probe, torch_threads)
        self._client.register_plugin(plugin, name=self._name)
        name = self._name
        problems = self._client.run(lambda dask_worker: dask_worker.plugins[name].problem)
        for worker, problem in problems.items():
            if all(problems.values()):
                raise UnSAMError(f'worker {worker} is unusable: {problem}')
            if problem:
                self._leave_out(worker, problem)

    def results(self, names: list[str]) -> Iterator[Result]:
        """Processes the images. Images of tasks whose workers died are processed again at the end, one in a task."""
        yield from self._in_batches(names)
        for name in self._suspects:
            yield from self._in_batches([name], alone=True)

    def close(self) -> None:
        """Cancels running tasks and frees the models, unless the scheduler is lost."""
        if self._client.status == 'running':
            with suppress(OSError, ValueError, CancelledError):
                self._client.cancel(list(self._running))
                self._client.unregister_worker_plugin(self._name)

    def _in_batches(self, names: list[str], alone: bool = False) -> Iterator[Result]:
        waiting, left = iter(names), len(names)
        while True:
            while left and len(self._running) < _TASKS_PER_THREAD * self._count_threads():
                batch = list(itertools.islice(waiting, self._batch_size(left)))
                left -= len(batch)
                self._submit(batch)
            if not self._running:
                return
            future = next(self._finished)
            batch = self._running.pop(future)
            if future.status in ('lost', 'pending'):  # its worker died before its result was sent: Dask repeats it
                self._await(future, batch)
                continue
            try:
                outcome = future.result()
            except Exception as error:
                if future.status != 'error':  # an error of the scheduler, not of the task
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
        if worker not in self._unusable:
            self._unusable.add(worker)
            _log.warning('worker %s is unusable: %s', worker, problem)
            if self._unusable >= self._client.nthreads().keys():
                raise UnSAMError(_NONE_LEFT.format(problem))

    def _submit(self, batch: list[str]) -> None:
        usable = [worker for worker in self._threads_of if worker not in self._unusable] if self._unusable else []
        future = self._client.submit(
            _do,
            self._name,
            batch,
            key=f'pseudo-masks-{next(self._numbers):07}-{self._name}-{batch[0]}',  # the dashboard groups tasks by the prefix
            retries=_TASK_RETRIES,
            resources=_resources(self._job.device),
            workers=usable or None,
            allow_other_workers=bool(usable),  # since these may be lost, or restarted under other addresses
        )
        self._await(future, batch)

    def _await(self, future: distributed.Future, batch: list[str]) -> None:
        self._running[future] = batch
        self._finished.add(future)

    def _batch_size(self, left: int) -> int:
        """Number of images for a task of a few seconds; fewer at the end, so that all workers finish together."""
        threads = self._count_threads()
        task_s = max(_TASK_S, threads / _TASKS_PER_S)
        fitting = int(task_s * self._images_done / self._busy_s) if self._busy_s else 1
        return max(1, min(fitting, _MAX_IMAGES, left // (2 * _TASKS_PER_THREAD * threads)))

    def _count_threads(self) -> int:
        """Number of threads of all workers, updated at intervals since workers come and go."""
        if time.monotonic() - self._threads_updated_s > _THREADS_UPDATE_S:
            self._threads_of = self._client.nthreads()
            self._threads_updated_s = time.monotonic()
        return max(1, sum(self._threads_of.values()))
