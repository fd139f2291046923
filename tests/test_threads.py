"""Work is shared among as many threads as torch may use, and one thread means no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from unsam_mm import threads


def of_new_thread():
    """Torch's number of threads where torch was not used yet."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_answers_come_in_the_order_of_the_jobs(n_threads):
    assert threads.run_parallel([lambda i=i: i * i for i in range(20)]) == [i * i for i in range(20)]
    assert threads.run_parallel([]) == []


def test_no_more_threads_run_than_torch_may_use(n_threads):
    here = threading.current_thread()
    used = set(threads.run_parallel([threading.current_thread for _ in range(30)]))
    assert len(used) <= n_threads
    assert (used == {here}) == (n_threads == 1)


def test_what_runs_in_the_background_has_one_of_the_threads(n_threads):
    with threads.run_in_background(lambda: (threading.current_thread(), torch.get_num_threads())) as job:
        assert torch.get_num_threads() == max(1, n_threads - 1)
        thread, of_job = job()
        assert of_job == 1
        assert (thread is threading.current_thread()) == (n_threads == 1)
    assert torch.get_num_threads() == n_threads


def test_jobs_that_run_in_parallel_have_one_thread_each(n_threads):
    assert threads.run_parallel([torch.get_num_threads] * 3) == [1] * 3
    assert torch.get_num_threads() == n_threads


def test_a_job_in_the_background_shares_its_thread_with_nobody(n_threads):
    def nested():
        with threads.run_in_background(threading.current_thread) as job:
            return {job(), *threads.run_parallel([threading.current_thread] * 5)}, threading.current_thread()

    with threads.run_in_background(nested) as job:
        used, own = job()
    assert used == {own}


def test_blocks_in_blocks_give_each_thread_out_once(three_threads):
    outer_may_end, inner_may_end = threading.Event(), threading.Event()
    with threads.run_in_background(outer_may_end.wait) as outer:
        assert torch.get_num_threads() == 2
        with threads.run_in_background(inner_may_end.wait) as inner:
            assert torch.get_num_threads() == 1
            outer_may_end.set()
            outer()
            outer.reclaim_thread()
            outer.reclaim_thread()
            assert torch.get_num_threads() == 2
            inner_may_end.set()
            inner()
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 3


def test_the_thread_of_a_job_can_be_reclaimed_once_it_is_done(n_threads):
    waits = threading.Event()
    with threads.run_in_background(waits.wait if n_threads > 1 else lambda: True) as answer:
        answer.reclaim_thread()
        assert torch.get_num_threads() == max(1, n_threads - 1)
        waits.set()
        assert answer()
        answer.reclaim_thread()
        assert torch.get_num_threads() == n_threads


def test_errors_arrive_and_give_the_threads_back(n_threads):
    with pytest.raises(ZeroDivisionError), threads.run_in_background(lambda: 1 / 0) as answer:
        answer()
    with pytest.raises(KeyError), threads.run_in_background(lambda: 1):
        raise KeyError
    with pytest.raises(ZeroDivisionError):
        threads.run_parallel([lambda: 1, lambda: 1 / 0])
    assert torch.get_num_threads() == n_threads == of_new_thread()


def test_two_callers_at_once_leave_the_threads_as_they_were(three_threads):
    """The blocks begin one after the other, and end in the same order."""
    both_use_torch = threading.Barrier(2)  # a thread that uses it first in the midst of a change may get another number
    first_began, second_began, first_ended = (threading.Event() for _ in range(3))

    def first():
        before = torch.get_num_threads()
        both_use_torch.wait()
        with threads.run_in_background(lambda: None):
            first_began.set()
            second_began.wait()
        first_ended.set()
        return before, torch.get_num_threads()

    def second():
        before = torch.get_num_threads()
        both_use_torch.wait()
        first_began.wait()
        with threads.run_in_background(lambda: None):
            second_began.set()
            first_ended.wait()
        return before, torch.get_num_threads()

    with ThreadPoolExecutor(2) as pool:
        assert [future.result() for future in [pool.submit(first), pool.submit(second)]] == [(3, 3), (3, 3)]
    assert torch.get_num_threads() == of_new_thread() == 3


def test_setting_the_threads_of_one_caller_changes_no_other(three_threads):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(threads.set_own_threads, 2).result()
        assert pool.submit(torch.get_num_threads).result() == 2
    assert torch.get_num_threads() == of_new_thread() == 3


COUNT = """
import json, sys, threading, time
import psutil, torch
from unsam_mm import threads

promised = int(sys.argv[1])
torch.set_num_threads(promised)
all_at_work = threading.Barrier(promised)
counted = threading.Event()

def multiply():  # large enough to be shared among threads
    torch.ones(600, 600) @ torch.ones(600, 600)

def count():  # what has ended may take a moment to go
    counts = []
    for _ in range(20):
        counts.append(psutil.Process().num_threads())
        time.sleep(0.01)
    return min(counts)

def job():
    multiply()
    if all_at_work.wait() == 0:
        count_of.append(count())
        counted.set()
    counted.wait()

def beside():
    multiply()
    counted.wait()

before, count_of = count(), []
threads.run_parallel([job] * promised)
parallel = count_of[0]
counted.clear()
if promised > 1:
    with threads.run_in_background(beside):
        multiply()
        background = count()
        counted.set()
else:
    background = count()
print(json.dumps([parallel - before, background - before]))
"""


@pytest.mark.parametrize('promised', [1, 3])
def test_the_number_that_is_promised_is_the_number_that_runs(promised):
    """Threads of the operating system, with products of matrices on both sides, in a process of its own."""
    pytest.importorskip('psutil')
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
    finished = subprocess.run(
        [sys.executable, '-c', COUNT, str(promised)], capture_output=True, text=True, env=environment, check=True
    )
    # While jobs run in parallel, the calling thread waits for those that it has started.
    assert json.loads(finished.stdout) == [promised if promised > 1 else 0, promised - 1]
