"""Work is shared among as many threads as torch may use, and one thread means no other."""

from __future__ import annotations

import threading

import pytest
import torch

from unsam_mm import threads


@pytest.fixture(params=[1, 2, 3])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_answers_come_in_the_order_of_the_jobs(n_threads):
    assert threads.all_of([lambda i=i: i * i for i in range(20)]) == [i * i for i in range(20)]
    assert threads.all_of([]) == []


def test_no_more_threads_run_than_torch_may_use(n_threads):
    here = threading.current_thread()
    used = set(threads.all_of([threading.current_thread for _ in range(30)]))
    assert len(used) <= n_threads
    assert (used == {here}) == (n_threads == 1)


def test_what_runs_alongside_has_one_of_the_threads(n_threads):
    with threads.alongside(threading.current_thread) as running_in:
        assert torch.get_num_threads() == max(1, n_threads - 1)
        assert (running_in() is threading.current_thread()) == (n_threads == 1)
    assert torch.get_num_threads() == n_threads


def test_the_thread_of_what_ran_alongside_can_be_taken_once_it_is_done(n_threads):
    waits = threading.Event()
    with threads.alongside(waits.wait if n_threads > 1 else lambda: True) as answer:
        answer.take_thread()
        assert torch.get_num_threads() == max(1, n_threads - 1)
        waits.set()
        assert answer()
        answer.take_thread()
        assert torch.get_num_threads() == n_threads


def test_errors_arrive_and_give_the_threads_back(n_threads):
    with pytest.raises(ZeroDivisionError), threads.alongside(lambda: 1 / 0) as answer:
        answer()
    with pytest.raises(KeyError), threads.alongside(lambda: 1):
        raise KeyError
    with pytest.raises(ZeroDivisionError):
        threads.all_of([lambda: 1, lambda: 1 / 0])
    assert torch.get_num_threads() == n_threads
