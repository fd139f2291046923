"""Work in several processes: every item once, and no process is left over, whatever ends the work."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch  # noqa: F401  (this process has the real one before another is found first)

from unsam_mm import processes
from unsam_mm.errors import UnSAMError
from unsam_mm.processes import in_processes

psutil = pytest.importorskip('psutil')
WAIT_S = 60


SQUARES = """
import fcntl, os, signal, time
from pathlib import Path


class Squarer:
    # Notes its process in a folder, with a line for each worker made there; ends it at item 13.

    def __init__(self, folder, memory='for all', together=1):
        self.folder, self.together = Path(folder), together
        self.memory, refused = (self.folder / 'memory').open('w'), self.folder / 'refused'
        self.waits = memory != 'for all' and not refused.exists()  # so that the other process has its turn
        try:
            if memory != 'for all':
                fcntl.flock(self.memory, fcntl.LOCK_EX | fcntl.LOCK_NB)  # one process has it until it ends
            if 'none' in memory:
                raise BlockingIOError
        except BlockingIOError:
            refused.touch()
            if 'killed' in memory:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError('CUDA out of memory')
        with (self.folder / str(os.getpid())).open('a') as file:
            print('made a worker', file=file)

    def __call__(self, item):
        deadline_s = time.monotonic() + 60
        while sum(path.name.isdecimal() for path in self.folder.iterdir()) < self.together:
            # One process could do all items before the next one has started.
            assert time.monotonic() < deadline_s, f'{self.together} processes did not start'
            time.sleep(0.01)
        if self.waits:
            time.sleep(60)
        if item == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return item * item
"""


@pytest.fixture
def squarer(tmp_path, monkeypatch):
    """Makes a worker that squares; in a module of its own, since the processes must be able to import it.

    It needs no torch, which takes a second to import: each process is given something of that name instead.
    """
    (tmp_path / 'squares.py').write_text(SQUARES)
    (tmp_path / 'torch.py').write_text(
        'def set_num_threads(threads): pass\nset_num_interop_threads = set_num_threads\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield partial(import_module('squares').Squarer, tmp_path)
    del sys.modules['squares']


def lost(item: int) -> int:
    return -1


COUNTS = """
import threading


class Counter:
    # Uses the libraries that have threads of their own; says how many these would be, and how many there are more.

    def __call__(self, size):
        import cv2, numba, numpy, psutil, torch

        numpy.ones((size, size)) @ numpy.ones((size, size))
        torch.ones(size, size) @ torch.ones(size, size)
        cv2.GaussianBlur(numpy.ones((size, size), numpy.float32), (31, 31), 5)
        return {
            'torch': torch.get_num_threads(),
            'torch interop': torch.get_num_interop_threads(),
            'numba': numba.config.NUMBA_NUM_THREADS,
            'opencv': cv2.getNumThreads(),
            'not of Python': psutil.Process().num_threads() - threading.active_count(),
        }
"""


@pytest.mark.slow
def test_processes_have_the_threads_that_they_are_given_in_every_library(tmp_path, monkeypatch):
    """Here one each; the environment of the calling process stays as it was."""
    (tmp_path / 'counts.py').write_text(COUNTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(processes, 'threads_each', lambda processes: 1)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    monkeypatch.setenv('OPENBLAS_NUM_THREADS', '5')
    before = dict(os.environ)
    [(_, counts)] = in_processes(import_module('counts').Counter, [600], 1, 'advice', lost)
    assert counts == {'torch': 1, 'torch interop': 1, 'numba': 1, 'opencv': 1, 'not of Python': 0}
    assert dict(os.environ) == before
    del sys.modules['counts']


def noted(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


def wait_until_gone(pids: list[int]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids):
        assert time.monotonic() < deadline_s, 'a process was left over'
        time.sleep(0.1)


@pytest.mark.slow
def test_each_item_has_its_result_and_each_process_one_worker(tmp_path, squarer):
    results = dict(in_processes(partial(squarer, together=2), range(12), 2, 'advice', lost))
    assert results == {item: item * item for item in range(12)}
    assert [(tmp_path / str(pid)).read_text() for pid in noted(tmp_path)] == ['made a worker\n'] * 2


@pytest.mark.slow
def test_an_item_that_ends_its_process_costs_no_other_item(tmp_path, squarer, caplog):
    results = list(in_processes(squarer, range(20), 2, 'advice', lost))
    assert len(results) == 20
    assert dict(results) == {item: -1 if item == 13 else item * item for item in range(20)}
    assert 'a worker process ended by itself' in caplog.text
    wait_until_gone(noted(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    ('memory', 'message'),
    [
        ('for none, killed', 'ended before it began.*; take fewer'),
        ('for none', r'could not start \(RuntimeError: CUDA out of memory\); take fewer'),
    ],
)
def test_processes_that_cannot_begin_are_reported_with_the_advice(squarer, memory, message):
    with pytest.raises(UnSAMError, match=message):
        list(in_processes(partial(squarer, memory=memory), range(20), 2, 'take fewer', lost))


@pytest.mark.slow
@pytest.mark.parametrize('memory', ['for one, killed', 'for one'])
def test_where_memory_is_short_fewer_processes_do_all(squarer, memory, caplog):
    results = dict(in_processes(partial(squarer, memory=memory), range(12), 2, 'take fewer', lost))
    assert results == {item: item * item for item in range(12)}
    assert len(caplog.messages) == 1
    assert 'with 1 process(es)' in caplog.text


@pytest.mark.slow
def test_processes_end_where_the_consumer_stops(tmp_path, squarer):
    with closing(in_processes(squarer, range(10**9), 2, 'advice', lost)) as results:
        next(results)
    wait_until_gone(noted(tmp_path))


PARENT = """
import sys, time
from functools import partial
from importlib import import_module
from pathlib import Path
from squares import Squarer
from unsam_mm.processes import in_processes

if __name__ == '__main__':
    folder = Path(__file__).parent
    for item, _ in in_processes(partial(Squarer, folder), range(10), 2, '', None):
        if item == 9:
            (folder / 'ready').touch()
            time.sleep(600)
"""


@pytest.mark.slow
def test_processes_end_with_a_parent_that_was_killed(tmp_path, squarer):
    (tmp_path / 'parent.py').write_text(PARENT)
    parent = subprocess.Popen([sys.executable, str(tmp_path / 'parent.py')])
    try:
        deadline_s = time.monotonic() + WAIT_S
        while not (tmp_path / 'ready').exists():
            assert time.monotonic() < deadline_s, 'the work did not begin'
            time.sleep(0.1)
        workers = noted(tmp_path)
        assert workers
    finally:
        parent.kill()
        parent.wait()
    wait_until_gone(workers)
