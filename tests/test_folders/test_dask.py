"""``generate --dask``: the same files as without, whatever happens to workers, scheduler and single images."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import shared_generator, skip_without_weights
from unsam_mm.__main__ import main
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.folders import run as folder_module
from unsam_mm.folders.run import FolderJob, FolderReport, Quarantine
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.processes import threads_each
from unsam_mm.pseudo_masks.region_trees import GeneratorSettings

distributed = pytest.importorskip('distributed', reason='needs the extra "dask"')
psutil = pytest.importorskip('psutil')
scale = pytest.importorskip('unsam_mm.folders.dask')

FAST = GeneratorSettings(long_side_px=112, merge_weights=((0.2, 0.6),), lightness_levels=0)
N_IMAGES = 12
PREPARED_S = 120  # a busy machine may need a minute to import torch in two processes


@pytest.fixture(scope='module')
def images(tmp_path_factory, coffee):
    """Crops of a photograph, in two folders, and one broken file."""
    skip_without_weights()
    root = tmp_path_factory.mktemp('scale') / 'images'
    for i in range(N_IMAGES):
        path = root / 'ab'[i % 2] / f'{i:02}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coffee[4 * i : 4 * i + 80, 7 * i : 7 * i + 110]).save(path)
    (root / 'a' / '04.png').write_bytes(b'no image')
    return root


@pytest.fixture(autouse=True)
def _one_generator(monkeypatch):
    """The weights are read once in this process."""
    monkeypatch.setattr(folder_module, 'PseudoMaskGenerator', shared_generator)


@pytest.fixture(scope='module')
def quiet(images, tmp_path_factory):
    """All files of a run in one process without any incident."""
    out = tmp_path_factory.mktemp('quiet')
    report = FolderJob(images, out, FAST, max_masks=20).run()
    assert (report.done, list(report.failed)) == (N_IMAGES - 1, ['a/04.png'])
    return contents(out)


@pytest.fixture
def job(images, tmp_path):
    """Called with the address of a cluster: the job whose result should be `quiet`."""
    return lambda address, **more: FolderJob(images, tmp_path / 'out', FAST, max_masks=20, dask=address, **more)


@pytest.fixture
def cluster():
    """Two workers in threads of this process, so that tests can reach into them; the second one offers a GPU."""
    workers = {
        name: {'cls': distributed.Worker, 'options': {'nthreads': 1, 'resources': resources}}
        for name, resources in (('plain', {}), ('with GPU', {'GPU': 1}))
    }
    scheduler = {'cls': distributed.Scheduler, 'options': {'protocol': 'inproc://', 'dashboard': False}}
    with distributed.SpecCluster(workers, scheduler, silence_logs=logging.CRITICAL) as cluster:
        yield cluster


def contents(folder: Path) -> dict[str, bytes]:
    """All files, without those that a killed worker has begun to write."""
    files = [path for path in folder.rglob('*') if path.is_file() and path.suffix != '.part']
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def when(done: int, act: Callable[[], None]) -> Callable[[FolderReport], None]:
    """Does something once, when so many images are done."""
    acted = []

    def on_image(report: FolderReport) -> None:
        if report.done >= done and not acted:
            acted.append(True)
            act()

    return on_image


class TestCluster:
    def test_its_files_are_those_of_a_run_without_it(self, job, cluster, quiet, tmp_path):
        report = job(cluster.scheduler_address).run()
        assert (report.done, list(report.failed)) == (N_IMAGES - 1, ['a/04.png'])
        assert contents(tmp_path / 'out') == quiet

    def test_it_does_what_is_missing_and_nothing_else(self, job, cluster, quiet, tmp_path):
        job(cluster.scheduler_address).run()
        (tmp_path / 'out' / 'b' / '07.png.json').unlink()
        kept = (tmp_path / 'out' / 'b' / '09.png.json').stat().st_mtime_ns
        report = job(cluster.scheduler_address).run()
        assert (report.done, report.skipped, len(report.failed)) == (1, N_IMAGES - 2, 1)
        assert (tmp_path / 'out' / 'b' / '09.png.json').stat().st_mtime_ns == kept
        assert contents(tmp_path / 'out') == quiet

    def test_every_worker_that_can_takes_part(self, job, cluster):
        seen = set()
        job(cluster.scheduler_address).run(
            lambda report: seen.update(
                worker.name for worker in cluster.workers.values() if worker.state.executed_count
            )
        )
        assert seen == {'plain', 'with GPU'}

    def test_tasks_are_named_for_the_dashboard(self, job, cluster):
        prefixes = set()
        job(cluster.scheduler_address).run(lambda report: prefixes.update(cluster.scheduler.task_prefixes))
        assert 'pseudo-masks' in prefixes

    def test_the_scheduler_holds_a_few_tasks_at_a_time(self, job, cluster, monkeypatch):
        monkeypatch.setattr(scale, '_MAX_IMAGES', 1)
        held = []
        job(cluster.scheduler_address).run(lambda report: held.append(len(cluster.scheduler.tasks)))
        assert 2 <= max(held) <= 2 * scale._TASKS_PER_THREAD + 2  # and two that have just ended

    def test_gpu_work_goes_to_workers_that_offer_one(self, job, cluster, monkeypatch):
        monkeypatch.setattr(scale, 'check_device', lambda device: None)
        monkeypatch.setattr(folder_module, 'PseudoMaskGenerator', lambda settings, device: None)
        job(cluster.scheduler_address, device='cuda').run()
        executed = {worker.name: worker.state.executed_count for worker in cluster.workers.values()}
        assert executed['plain'] == 0
        assert executed['with GPU'] > 0

    def test_an_image_that_fails_unexpectedly_is_quarantined_with_its_error(self, job, cluster, tmp_path, monkeypatch):
        def read_image(path):
            if path.name == '07.png':
                raise RecursionError('a strange file')
            return folder_read_image(path)

        folder_read_image = folder_module.read_image
        monkeypatch.setattr(folder_module, 'read_image', read_image)
        report = job(cluster.scheduler_address).run()
        assert set(report.failed) == {'a/04.png', 'b/07.png'}
        note = (tmp_path / 'out' / 'quarantine' / 'b' / '07.png.txt').read_text()
        assert 'b/07.png: RecursionError: a strange file' in note

    def test_a_disk_that_fails_ends_the_run(self, job, cluster, monkeypatch):
        def write(self, name, masks, stamp):
            raise StoreError(f'{name}: the disk is full')

        monkeypatch.setattr(PseudoMaskStore, 'write', write)
        with pytest.raises(StoreError, match='the disk is full'):
            job(cluster.scheduler_address).run()

    def test_a_worker_that_cannot_see_the_folders_takes_no_part(
        self, job, cluster, quiet, tmp_path, monkeypatch, caplog
    ):
        blind = cluster.workers['plain'].address

        def find_problem(self):
            return 'not visible' if self._address == blind else None

        monkeypatch.setattr(scale._WorkerPlugin, '_find_problem', find_problem)
        monkeypatch.setattr(scale, '_UNUSABLE_PAUSE_S', 0.0)
        report = job(cluster.scheduler_address).run()
        assert report.done == N_IMAGES - 1
        assert contents(tmp_path / 'out') == quiet
        assert 'is unusable: not visible' in caplog.text

    def test_a_worker_that_loses_sight_of_the_folders_hands_its_images_on(
        self, job, cluster, quiet, tmp_path, monkeypatch, caplog
    ):
        blind, do_image = set(), folder_module.ImageWorker.__call__

        def lose_sight(self, name):
            if name == 'b/07.png' and not blind:
                blind.add(self)
            return 'no such file' if self in blind else do_image(self, name)

        monkeypatch.setattr(folder_module.ImageWorker, '__call__', lose_sight)
        monkeypatch.setattr(
            scale._WorkerPlugin, '_find_problem', lambda self: 'not mounted' if self._process in blind else None
        )
        monkeypatch.setattr(scale, '_UNUSABLE_PAUSE_S', 0.0)
        report = job(cluster.scheduler_address).run()
        assert list(report.failed) == ['a/04.png']
        assert contents(tmp_path / 'out') == quiet
        assert caplog.text.count('is unusable: not mounted') == 1

    def test_a_run_ends_once_no_worker_can_go_on(self, job, cluster, quiet, tmp_path, monkeypatch):
        monkeypatch.setattr(scale._WorkerPlugin, '_find_problem', lambda self: 'not mounted' if self._process else None)
        monkeypatch.setattr(scale, '_UNUSABLE_PAUSE_S', 0.0)
        with pytest.raises(UnSAMError, match=r'no usable worker is left \(not mounted\); finished images'):
            job(cluster.scheduler_address).run()
        monkeypatch.undo()
        job(cluster.scheduler_address).run()
        assert contents(tmp_path / 'out') == quiet

    def test_a_result_that_is_lost_with_its_worker_is_made_again(self, job, cluster, quiet, tmp_path, monkeypatch):
        lost, again, do = [], threading.Event(), scale._WorkerPlugin.do
        monkeypatch.setattr(scale._WorkerPlugin, 'do', lambda self, names: again.wait(PREPARED_S) and do(self, names))

        class Losing(distributed.as_completed):
            """The first worker to finish dies before anybody has asked for its result, which is not made at once."""

            def __next__(self):
                again.set()
                future = super().__next__()
                if not lost:
                    again.clear()
                    task = cluster.scheduler.tasks[future.key]
                    lost.append(next(iter(task.who_has)).address)
                    cluster.sync(cluster.scheduler.remove_worker, lost[0], stimulus_id='test')
                    wait_until(lambda: future.status != 'finished')
                return future

        monkeypatch.setattr(distributed, 'as_completed', Losing)
        report = job(cluster.scheduler_address).run()
        assert (len(lost), list(report.failed)) == (1, ['a/04.png'])
        assert contents(tmp_path / 'out') == quiet

    def test_an_interruption_leaves_nothing_behind_but_finished_images(self, job, cluster, quiet, tmp_path):
        def interrupt():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            job(cluster.scheduler_address).run(when(3, interrupt))
        assert not [name for name in cluster.scheduler.worker_plugins if name.startswith('unsam')]
        left = contents(tmp_path / 'out')
        finished = {name: content for name, content in left.items() if not name.startswith('quarantine/')}
        assert len(finished) >= 3
        assert finished.items() <= quiet.items()
        notes = [left[name].decode() for name in left.keys() - finished.keys() - quiet.keys()]
        assert all('the run ended during this image' in note for note in notes)


class TestClustersThatCannotWork:
    @pytest.mark.parametrize(
        ('address', 'message'),
        [
            ('local:none', 'the number of local workers must be positive'),
            ('local:0', 'the number of local workers must be positive'),
            ('', 'the address of the Dask scheduler is empty'),
            ('nowhere', 'no Dask scheduler answers there'),
            ('tcp://127.0.0.1:9', 'no Dask scheduler answers there'),
        ],
    )
    def test_an_address_without_a_scheduler_is_explained(self, job, monkeypatch, address, message):
        monkeypatch.setattr(scale, '_CONNECT_S', 0.5)
        with pytest.raises(UnSAMError, match=message):
            job(address).run()
        gc.collect()  # a client that failed takes a lock when it is collected, which the next one holds while it starts

    def test_a_scheduler_without_workers_is_explained(self, job, cluster, monkeypatch):
        cluster.scale(0)
        monkeypatch.setattr(scale, '_CONNECT_S', 0.5)
        with pytest.raises(UnSAMError, match='has no workers; start some with "dask worker'):
            job(cluster.scheduler_address).run()

    def test_workers_without_this_package_are_named(self, job, cluster, monkeypatch):
        monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
        with pytest.raises(UnSAMError, match=r'worker inproc://.* has no unsam_mm; install unsam_mm \d'):
            job(cluster.scheduler_address).run()

    def test_folders_that_no_worker_sees_are_named(self, job, cluster, monkeypatch):
        monkeypatch.setattr(scale, '_probe', lambda folder: nullcontext(folder / 'on another disk'))
        with pytest.raises(UnSAMError, match=r'is unusable: .*/out/unsam\.json is not visible there'):
            job(cluster.scheduler_address).run()

    def test_workers_with_other_weights_are_named(self, job, cluster, monkeypatch):
        own, signatures = FolderJob.description, iter(['of the client'])  # which asks first

        def description(self):
            noted = own(self)
            return {**noted, 'signature': next(signatures, noted['signature'])}

        monkeypatch.setattr(FolderJob, 'description', description)
        with pytest.raises(UnSAMError, match='is unusable: it has another signature'):
            job(cluster.scheduler_address).run()

    def test_without_dask_the_extra_is_named(self, job, monkeypatch):
        monkeypatch.delitem(sys.modules, 'unsam_mm.folders.dask')
        monkeypatch.setitem(sys.modules, 'distributed', None)
        with pytest.raises(UnSAMError, match=r'pip install "unsam_mm\[dask\]"'):
            job('local:2').run()


class TestQuarantine:
    def test_an_image_leaves_it_once_it_is_done(self, images, tmp_path):
        (tmp_path / 'images').mkdir()
        mended = tmp_path / 'images' / 'a.png'
        mended.touch()
        note = tmp_path / 'out' / 'quarantine' / 'a.png.txt'
        FolderJob(tmp_path / 'images', tmp_path / 'out', FAST).run()
        assert 'the file is empty' in note.read_text()

        mended.write_bytes((images / 'b' / '01.png').read_bytes())
        FolderJob(tmp_path / 'images', tmp_path / 'out', FAST).run()
        assert not note.exists()

    def test_a_run_that_was_killed_before_it_took_an_image_out_is_made_up_for(self, images, tmp_path):
        FolderJob(images, tmp_path, FAST).run()
        Quarantine(tmp_path).add('a/00.png', 'its worker died')
        FolderJob(images, tmp_path, FAST).run()
        assert Quarantine(tmp_path).names() == {'a/04.png'}

    def test_its_files_are_no_masks(self, quiet, tmp_path):
        for name, content in quiet.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        assert Quarantine(tmp_path).names() == {'a/04.png'}
        assert 'a/04.png' not in PseudoMaskStore(tmp_path).names()


def test_cores_are_shared_out_and_the_environment_may_ask_for_fewer_threads(monkeypatch):
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)), raising=False)
    assert [threads_each(workers) for workers in (1, 2, 3, 20)] == [8, 4, 2, 1]
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    assert [threads_each(workers) for workers in (1, 2, 3, 20)] == [3, 3, 2, 1]


@contextmanager
def processes(folder: Path, *worker_options: str, **environment: str) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """Address and processes of a scheduler and two workers under nannies, as people start them."""
    file = folder / f'scheduler-{time.monotonic_ns()}.json'
    scheduler = ['scheduler', '--port', '0', '--dashboard-address', '127.0.0.1:0']
    worker = ['worker', '--nthreads', '1', '--memory-limit', '0', *worker_options]
    with ExitStack() as stack:
        running = []
        for command in (scheduler, worker, worker):
            process = subprocess.Popen(
                [sys.executable, '-m', 'dask', *command, '--host', '127.0.0.1', '--scheduler-file', str(file)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env={**os.environ, **environment},
            )
            stack.callback(end, process)
            running.append(process)
            wait_until(file.is_file)
        yield json.loads(file.read_text())['address'], running


def end(process: subprocess.Popen) -> None:
    """Ends a process and what it started, by their ids."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in family:
        if child.is_running():
            child.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + PREPARED_S
    while not condition():
        assert time.monotonic() < deadline_s, 'the cluster did not start'
        time.sleep(0.05)


@pytest.mark.slow
class TestProcesses:
    @pytest.fixture(autouse=True)
    def patience(self, monkeypatch):
        monkeypatch.setattr(scale, '_CONNECT_S', PREPARED_S)
        monkeypatch.setattr(scale, '_MAX_IMAGES', 1)  # so that there are enough tasks to lose

    def test_a_killed_worker_and_a_lost_scheduler_change_nothing_in_the_end(self, job, cluster, quiet, tmp_path):
        def kill_a_worker():
            worker = psutil.Process(workers[0].pid).children(recursive=True)[-1]
            os.kill(worker.pid, signal.SIGKILL)

        with processes(tmp_path) as (address, (scheduler, *workers)):
            report = job(address).run(when(4, kill_a_worker))
            assert (report.done, list(report.failed)) == (N_IMAGES - 1, ['a/04.png'])
            assert contents(tmp_path / 'out') == quiet

            with distributed.Client(address) as client:
                client.wait_for_workers(2, timeout=PREPARED_S)  # its nanny starts the one that was killed again
            lost = when(4, lambda: os.kill(scheduler.pid, signal.SIGKILL))
            with pytest.raises(UnSAMError, match=f'{address} was lost; finished images are kept'):
                job(address, overwrite=True).run(lost)
            wait_until(lambda: scheduler.poll() is not None)
        finished = contents(tmp_path / 'out')
        assert finished.items() <= quiet.items()
        assert 4 <= len(finished) < len(quiet)

        report = job(cluster.scheduler_address).run()
        assert report.skipped >= 4
        assert report.done + report.skipped == N_IMAGES - 1
        assert contents(tmp_path / 'out') == quiet

    def test_an_image_that_kills_workers_is_quarantined_and_its_neighbours_are_done(self, job, quiet, tmp_path):
        (tmp_path / 'deadly.py').write_text(
            'import os, signal\n'
            'from unsam_mm.folders import run\n'
            'class Deadly(run.ImageWorker):\n'
            '    def __call__(self, name):\n'
            '        if name == "b/07.png": os.kill(os.getpid(), signal.SIGKILL)\n'
            '        return super().__call__(name)\n'
            'run.ImageWorker = Deadly\n'
        )
        # Two deaths tell as much as the usual eight.
        patience = {'DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES': '0'}
        with processes(tmp_path, '--preload', str(tmp_path / 'deadly.py'), **patience) as (address, _):
            report = job(address).run()
        assert set(report.failed) == {'a/04.png', 'b/07.png'}
        assert '1 workers died while processing it' in report.failed['b/07.png']
        expected = {name: data for name, data in quiet.items() if name != 'b/07.png.json'}
        found = contents(tmp_path / 'out')
        assert report.failed['b/07.png'] in found.pop('quarantine/b/07.png.txt').decode()
        assert found == expected

    def test_local_processes_give_the_same_files(self, job, quiet, tmp_path):
        job('local:2').run()
        assert contents(tmp_path / 'out') == quiet

    def test_the_command_line(self, images, tmp_path, capsys):
        """With one process; the files are those of a run without Dask."""
        (tmp_path / 'two').mkdir()
        for name in ('b/01.png', 'b/03.png'):
            (tmp_path / 'two' / Path(name).name).write_bytes((images / name).read_bytes())
        assert main(['generate', str(tmp_path / 'two'), str(tmp_path / 'out'), '--dask', 'local:1']) == 0
        printed = capsys.readouterr()
        assert '2 images done now' in printed.out
        assert 'with Dask at local:1 on cpu' in printed.out
        assert 'distributed' not in printed.err
        assert main(['generate', str(tmp_path / 'two'), str(tmp_path / 'without')]) == 0
        assert contents(tmp_path / 'out') == contents(tmp_path / 'without')
