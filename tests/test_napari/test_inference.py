import threading

import numpy as np
import pytest

from napari_unsam._inference import GeneratorEmbed, InferenceSettings, InferenceThread, Job
from tests.test_napari.stand_ins import patches_tree
from unsam_mm.errors import ImageError

IMAGE = np.zeros((4, 6), np.uint8)


class Listener:
    """Collects what a job tells."""

    def __init__(self):
        self.progress, self.results, self.failures = [], [], []

    def job(self, read=lambda: IMAGE):
        return Job(read, lambda *told: self.progress.append(told), self.results.append, self.failures.append)


@pytest.fixture
def start():
    threads = []

    def make(embed, deliver):
        threads.append(InferenceThread(embed, deliver))
        return threads[-1]

    yield make
    assert all(thread.close(timeout_s=10) for thread in threads)


def test_jobs_run_in_one_thread_that_is_not_the_callers(start, mailbox):
    idents = []
    thread = start(lambda image, progress: idents.append(threading.get_ident()), mailbox)
    for _ in range(3):
        listener = Listener()
        thread.submit(listener.job())
        mailbox.open_until(lambda listener=listener: listener.results)
    assert len(set(idents)) == 1
    assert threading.get_ident() not in idents


def test_the_image_is_read_in_the_thread_too(start, mailbox):
    readers, listener = [], Listener()
    thread = start(lambda image, progress: patches_tree(), mailbox)
    thread.submit(listener.job(read=lambda: readers.append(threading.get_ident())))
    mailbox.open_until(lambda: listener.results)
    assert readers != [threading.get_ident()]


def test_the_latest_job_wins_and_the_others_are_never_heard_of(start, mailbox):
    entered, seen = threading.Event(), []

    def embed(image, progress):
        seen.append(image)
        while image == 'first':
            entered.set()
            progress(0.5, 'working')
        return image

    thread = start(embed, mailbox)
    first, second, third = Listener(), Listener(), Listener()
    thread.submit(first.job(lambda: 'first'))
    assert entered.wait(10)
    thread.submit(second.job(lambda: 'second'))
    thread.submit(third.job(lambda: 'third'))
    mailbox.open_until(lambda: third.results)
    assert third.results == ['third']
    assert first.results == first.failures == second.results == []
    assert seen[-1] == 'third'


def test_a_result_that_was_under_way_when_the_job_was_cancelled_is_dropped(start, mailbox):
    finished, listener = threading.Event(), Listener()
    thread = start(lambda image, progress: patches_tree(), lambda call: (mailbox(call), finished.set()))
    thread.submit(listener.job())
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
def test_a_failure_is_told_in_one_line_and_the_next_job_still_runs(start, mailbox, error, line):
    def embed(image, progress):
        if image is IMAGE:
            raise error
        return patches_tree()

    thread = start(embed, mailbox)
    failing, working = Listener(), Listener()
    thread.submit(failing.job())
    mailbox.open_until(lambda: failing.failures)
    thread.submit(working.job(read=lambda: IMAGE + 1))
    mailbox.open_until(lambda: working.results)
    assert failing.failures == [line]


def test_a_model_that_reports_all_the_time_does_not_flood_the_listener(start, mailbox):
    def embed(image, progress):
        for _ in range(10_000):
            progress(0.5, 'working')
        return patches_tree()

    listener = Listener()
    start(embed, mailbox).submit(listener.job())
    mailbox.open_until(lambda: listener.results)
    assert 1 <= len(listener.progress) < 1000


def test_closing_a_thread_that_never_ran_is_harmless(mailbox):
    assert InferenceThread(lambda image, progress: None, mailbox).close()


@pytest.mark.slow
@pytest.mark.parametrize('device', ['auto', 'cpu'])
def test_the_generator_is_built_once_with_the_preferences(monkeypatch, device):
    import torch

    import unsam_mm

    built = []

    class Generator:
        @classmethod
        def from_preset(cls, preset, device):
            built.append((preset, device, torch.get_num_threads()))
            return lambda image, progress: patches_tree()

    monkeypatch.setattr(unsam_mm, 'PseudoMaskGenerator', Generator, raising=False)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    before, messages = torch.get_num_threads(), []
    embed = GeneratorEmbed(InferenceSettings(device, threads=2))
    try:
        for _ in range(2):
            assert len(embed(IMAGE, lambda fraction, message: messages.append(message))) == 7
    finally:
        torch.set_num_threads(before)
    assert built == [('default', 'cpu', 2)]
    assert messages == ['Loading the model']
