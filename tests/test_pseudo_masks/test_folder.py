"""``generate`` over a folder: resumable after any interruption, tolerant of single bad images."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unsam_mm.errors import ImageError, StoreError, UnSAMError
from unsam_mm.pseudo_masks import folder as folder_module
from unsam_mm.pseudo_masks import generator as generator_module
from unsam_mm.pseudo_masks.folder import FolderJob
from unsam_mm.pseudo_masks.generator import GeneratorSettings
from unsam_mm.pseudo_masks.store import PseudoMaskStore

from ..conftest import skip_without_weights

FAST = GeneratorSettings(long_side_px=112)


@pytest.fixture
def images(tmp_path, coffee):
    """Six crops of a photograph, in two folders."""
    skip_without_weights()
    for i in range(6):
        path = tmp_path / 'images' / 'ab'[i % 2] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coffee[20 * i : 20 * i + 90, :120]).save(path)
    return tmp_path / 'images'


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_every_image_gets_a_file_of_its_own(images, tmp_path):
    reports = []
    FolderJob(images, tmp_path / 'out', FAST, max_masks=20).run(lambda report: reports.append(report.done))
    assert PseudoMaskStore(tmp_path / 'out').names() == [f'{"ab"[i % 2]}/{i}.png' for i in (0, 2, 4, 1, 3, 5)]
    assert reports == [0, 1, 2, 3, 4, 5, 6]


def test_a_second_run_does_only_what_is_missing(images, tmp_path):
    job = FolderJob(images, tmp_path / 'out', FAST)
    job.run()
    before = contents(tmp_path / 'out')
    store = PseudoMaskStore(tmp_path / 'out')
    store.path_of('a/2.png').unlink()
    report = job.run()
    assert (report.done, report.skipped) == (1, 5)
    assert contents(tmp_path / 'out') == before


def test_images_that_were_exchanged_are_done_again_and_copies_are_not(images, tmp_path):
    job = FolderJob(images, tmp_path / 'out', FAST)
    job.run()
    before = contents(tmp_path / 'out')
    (images / 'a' / '2.png').write_bytes((images / 'a' / '4.png').read_bytes())
    for path in images.rglob('*.png'):
        os.utime(path, (2**32, 2**32))
    report = job.run()
    assert (report.done, report.skipped) == (1, 5)
    changed = {name for name, content in contents(tmp_path / 'out').items() if content != before[name]}
    assert changed == {'a/2.png.json'}


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(images, tmp_path):
    FolderJob(images, tmp_path / 'whole', GeneratorSettings(), max_masks=50).run()
    command = [sys.executable, '-m', 'unsam_mm', 'generate', str(images), str(tmp_path / 'out'), '--max-masks', '50']
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store = PseudoMaskStore(tmp_path / 'out')
    deadline_s = time.monotonic() + 60
    while not (store.root.is_dir() and len(store.names()) >= 2) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {name: store.path_of(name).stat().st_mtime_ns for name in store.names()}
    assert 2 <= len(finished) < 6
    for name in finished:
        store.read(name)  # every file that is there is whole

    subprocess.run(command, check=True, capture_output=True)
    assert {name: store.path_of(name).stat().st_mtime_ns for name in finished} == finished
    assert contents(tmp_path / 'out') == contents(tmp_path / 'whole')


@pytest.mark.slow
def test_several_processes_make_the_same_files_as_one(images, tmp_path):
    FolderJob(images, tmp_path / 'one', FAST).run()
    FolderJob(images, tmp_path / 'two', FAST, workers=2).run()
    assert contents(tmp_path / 'one') == contents(tmp_path / 'two')


def test_bad_images_are_reported_and_the_others_done(images, tmp_path):
    (images / 'broken.jpg').write_bytes(b'no image')
    (images / 'empty.png').touch()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(images / 'black.png')
    report = FolderJob(images, tmp_path / 'out', FAST).run()
    assert report.done == 6
    assert {name: message.split(': ')[1][:12] for name, message in report.failed.items()} == {
        'broken.jpg': 'cannot be re',
        'empty.png': 'the file is ',
        'black.png': 'every pixel ',
    }


def test_an_output_that_cannot_be_written_costs_no_computation(images, tmp_path):
    (tmp_path / 'out').write_text('a file')
    with pytest.raises(StoreError, match='a file stands where a folder is needed'):
        FolderJob(images, tmp_path / 'out', FAST).run()


def test_a_folder_without_images_leaves_no_output(tmp_path):
    (tmp_path / 'images').mkdir()
    with pytest.raises(ImageError, match='no images found'):
        FolderJob(tmp_path / 'images', tmp_path / 'out', FAST).run()
    assert not (tmp_path / 'out').exists()


def test_other_settings_need_another_folder_or_overwriting(images, tmp_path):
    FolderJob(images, tmp_path / 'out', FAST, max_masks=5).run()
    with pytest.raises(StoreError, match='max_masks.*--overwrite'):
        FolderJob(images, tmp_path / 'out', FAST, max_masks=7).run()
    report = FolderJob(images, tmp_path / 'out', FAST, max_masks=7, overwrite=True).run()
    assert report.done == 6
    assert len(PseudoMaskStore(tmp_path / 'out').read('a/0.png')) == 7


def test_overwriting_that_is_interrupted_never_mixes_settings(images, tmp_path):
    FolderJob(images, tmp_path / 'out', FAST, max_masks=5).run()

    def stop(report):
        if report.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FolderJob(images, tmp_path / 'out', FAST, max_masks=7, overwrite=True).run(stop)
    FolderJob(images, tmp_path / 'out', FAST, max_masks=7).run()
    store = PseudoMaskStore(tmp_path / 'out')
    assert [len(store.read(name)) for name in store.names()] == [7] * 6


def test_another_version_of_the_algorithm_needs_another_folder(images, tmp_path, monkeypatch):
    FolderJob(images, tmp_path / 'out', FAST).run()
    monkeypatch.setattr(generator_module, '_ALGORITHM', 999)
    with pytest.raises(StoreError, match='another signature'):
        FolderJob(images, tmp_path / 'out', FAST).run()


@pytest.mark.slow
def test_a_worker_that_is_killed_is_explained(images, tmp_path):
    def kill_a_worker(report):
        if report.done == 1:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with pytest.raises(UnSAMError, match='fewer --workers than 2'):
        FolderJob(images, tmp_path / 'out', FAST, workers=2).run(kill_a_worker)
    assert FolderJob(images, tmp_path / 'out', FAST).run().skipped >= 1


@pytest.mark.parametrize('device', ['gpu', 'cuda:7'])
def test_a_device_that_is_not_there_is_named(images, tmp_path, device):
    with pytest.raises(UnSAMError, match=f"device '{device}' cannot be used"):
        FolderJob(images, tmp_path / 'out', FAST, device=device).run()


def test_a_finished_folder_needs_no_model(images, tmp_path, monkeypatch):
    FolderJob(images, tmp_path / 'out', FAST).run()
    monkeypatch.setattr(folder_module, 'PseudoMaskGenerator', None)
    assert FolderJob(images, tmp_path / 'out', FAST).run().skipped == 6


def test_a_single_image_can_stand_for_a_folder(images, tmp_path):
    FolderJob(images / 'a' / '0.png', tmp_path / 'out', FAST).run()
    assert PseudoMaskStore(tmp_path / 'out').names() == ['0.png']
