import threading

import pytest

from napari_unsam.engine.inference import InferenceThread, JobCancelled, Lane, report_progress
from unsam_mm.errors import ImageError


class Listener:
    """Collects the results and failures of a job."""

    def __init__(self):
        self.results, self.failures = [], []

    def start(self, thread, work=lambda progress: 'done', lane=Lane.LONG):
        thread.start(lane, 'job', work, self.results.append, self.failures.append)


@pytest.fixture
def start():
    threads = []

    def make(deliver):
        threads.append(InferenceThread(deliver))
        return threads[-1]

    yield make
    assert all(thread.close(timeout_s=10) for thread in threads)


@pytest.fixture
def thread(start, mailbox):
    return start(mailbox)


class Endless:
    """Works until it is stopped."""

    def __init__(self):
        self.entered, self.left = threading.Event(), threading.Event()

    def __call__(self, progress):
        try:
            while True:
                self.entered.set()
                progress(0.5, 'working')
        finally:
            self.left.set()


def test_jobs_run_in_one_thread_that_is_not_the_callers(thread, mailbox):
    idents = []
    for _ in range(3):
        listener = Listener()
        listener.start(thread, lambda progress: idents.append(threading.get_ident()))
        mailbox.open_until(lambda listener=listener: listener.results)
    assert len(set(idents)) == 1
    assert threading.get_ident() not in idents


def test_the_latest_job_of_a_lane_wins_and_the_others_are_never_heard_of(thread, mailbox):
    endless, first, second, third = Endless(), Listener(), Listener(), Listener()
    first.start(thread, endless)
    assert endless.entered.wait(10)
    second.start(thread, lambda progress: 'second')
    third.start(thread, lambda progress: 'third')
    mailbox.open_until(lambda: third.results)
    assert third.results == ['third']
    assert first.results == first.failures == second.results == []


def test_a_more_urgent_job_is_done_in_the_midst_of_a_longer_one_which_goes_on(thread, mailbox):
    entered, seen, order, click, plane, long = (
        threading.Event(),
        threading.Event(),
        [],
        Listener(),
        Listener(),
        Listener(),
    )

    def work(progress):
        order.append('long begins')
        entered.set()
        assert seen.wait(10)
        progress(0.5, 'half')
        order.append('long ends')

    long.start(thread, work)
    assert entered.wait(10)
    plane.start(thread, lambda progress: order.append('plane'), Lane.PLANE)
    click.start(thread, lambda progress: order.append('click'), Lane.CLICK)
    seen.set()
    mailbox.open_until(lambda: long.results)
    assert order == ['long begins', 'click', 'plane', 'long ends']
    assert click.results == plane.results == [None]


def test_a_less_urgent_job_waits(thread, mailbox):
    release, order, long, idle = threading.Event(), [], Listener(), Listener()

    def work(progress):
        assert release.wait(10)
        progress(0.5, 'half')
        order.append('long')

    long.start(thread, work)
    idle.start(thread, lambda progress: order.append('idle'), Lane.IDLE)
    release.set()
    mailbox.open_until(lambda: idle.results)
    assert order == ['long', 'idle']


def test_a_longer_job_that_is_cancelled_while_a_click_is_answered_stops_after_it(thread, mailbox):
    answering, release, endless, click = threading.Event(), threading.Event(), Endless(), Listener()
    Listener().start(thread, endless)
    assert endless.entered.wait(10)
    click.start(thread, lambda progress: (answering.set(), release.wait(10))[1], Lane.CLICK)
    assert answering.wait(10)
    thread.cancel(Lane.LONG)
    release.set()
    mailbox.open_until(lambda: click.results)
    assert endless.left.wait(10)


def test_what_an_engine_reports_reaches_the_job_that_it_works_for(thread, mailbox):
    def work(progress):
        report_progress(0.25, 'looking')

    listener, progress = Listener(), []
    thread.progressed.connect(lambda *told: progress.append(told))
    listener.start(thread, work)
    mailbox.open_until(lambda: listener.results)
    assert progress == [(0.25, 'looking')]
    report_progress(1.0, 'to nobody')


def test_a_cancelled_job_is_stopped_where_its_engine_reports(thread):
    stopped, entered = threading.Event(), threading.Event()

    def work(progress):
        try:
            while True:
                entered.set()
                report_progress(0.5, 'looking')
        except JobCancelled:
            stopped.set()
            raise

    Listener().start(thread, work)
    assert entered.wait(10)
    thread.cancel()
    assert stopped.wait(10)


def test_a_result_that_was_under_way_when_the_job_was_cancelled_is_dropped(start, mailbox):
    finished, listener = threading.Event(), Listener()
    thread = start(lambda call: (mailbox(call), finished.set()))
    listener.start(thread)
    assert finished.wait(10)
    thread.cancel()
    mailbox.open_until(lambda: True)
    assert listener.results == []


@pytest.mark.parametrize(
    ('error', 'line'),
    [
        pytest.param(ImageError('scan.tif: the file is empty'), 'scan.tif: the file is empty', id='meant for the user'),
        pytest.param(KeyError('weight'), "KeyError: 'weight'", id='unforeseen'),
    ],
)
def test_a_failure_is_told_in_one_line_and_the_next_job_still_runs(thread, mailbox, error, line):
    def fail(progress):
        raise error

    failing, working = Listener(), Listener()
    failing.start(thread, fail)
    mailbox.open_until(lambda: failing.failures)
    working.start(thread)
    mailbox.open_until(lambda: working.results)
    assert failing.failures == [line]


def test_a_model_that_reports_all_the_time_does_not_flood_the_listener(thread, mailbox):
    def work(progress):
        for _ in range(10_000):
            progress(0.5, 'working')

    listener, progress = Listener(), []
    thread.progressed.connect(lambda *told: progress.append(told))
    listener.start(thread, work)
    mailbox.open_until(lambda: listener.results)
    assert 1 <= len(progress) < 1000


def test_closing_a_thread_that_never_ran_is_harmless(mailbox):
    assert InferenceThread(mailbox).close()
