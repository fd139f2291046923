"""``generate`` over a folder: resumable after any interruption, tolerant of single bad images."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import warm_python
from tests.conftest import forbid_reading, shared_generator, skip_without_weights
from unsam_mm import MaskSet
from unsam_mm import generator as generator_module
from unsam_mm.errors import ImageError, StoreError, UnSAMError, WeightsError
from unsam_mm.folders import run as folder_module
from unsam_mm.folders.run import FolderJob, Quarantine
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.pseudo_masks.region_trees import GeneratorSettings

FAST = GeneratorSettings(long_side_px=112, merge_weights=((0.2, 0.6),), lightness_levels=0)


@pytest.fixture
def images(tmp_path, coffee):
    """Six crops of a photograph, in two folders."""
    skip_without_weights()
    for i in range(6):
        path = tmp_path / 'images' / 'ab'[i % 2] / f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coffee[20 * i : 20 * i + 90, :120]).save(path)
    return tmp_path / 'images'


@pytest.fixture(autouse=True)
def _one_generator(monkeypatch):
    """The weights are read once in this process."""
    monkeypatch.setattr(folder_module, 'PseudoMaskGenerator', shared_generator)


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


@pytest.mark.parametrize('time_s', [10**9, 2**32], ids=['older', 'younger'])
def test_images_that_were_exchanged_are_done_again_and_copies_are_not(images, tmp_path, time_s):
    job = FolderJob(images, tmp_path / 'out', FAST)
    job.run()
    before = contents(tmp_path / 'out')
    (images / 'a' / '2.png').write_bytes((images / 'a' / '4.png').read_bytes())
    for path in images.rglob('*.png'):
        os.utime(path, (time_s, time_s))
    report = job.run()
    assert (report.done, report.skipped) == (1, 5)
    changed = {name for name, content in contents(tmp_path / 'out').items() if content != before[name]}
    assert changed == {'a/2.png.json'}


KILLED = """
import os, signal, sys
from unsam_mm.__main__ import main
from unsam_mm.folders.store import PseudoMaskStore

write = PseudoMaskStore.write

def write_and_die(store, *masks):
    if len(store.names()) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    write(store, *masks)

PseudoMaskStore.write = write_and_die
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_ends_the_same(images, tmp_path):
    for name in ('a/4.png', 'b/5.png'):  # four are enough
        (images / name).unlink()
    FolderJob(images, tmp_path / 'whole', GeneratorSettings(), max_masks=50).run()
    command = ['generate', images, tmp_path / 'out', '--max-masks', '50']
    assert warm_python.run('-c', KILLED, *command).returncode == -signal.SIGKILL
    store = PseudoMaskStore(tmp_path / 'out')
    finished = {name: store.path_of(name).stat().st_mtime_ns for name in store.names()}
    assert len(finished) == 2
    for name in finished:
        store.read(name)  # every file that is there is whole

    assert warm_python.run('-m', 'unsam_mm', *command).returncode == 0
    assert {name: store.path_of(name).stat().st_mtime_ns for name in finished} == finished
    assert contents(tmp_path / 'out') == contents(tmp_path / 'whole')


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
    with pytest.raises(StoreError, match='a file is where a folder is needed'):
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
def test_several_processes_make_the_same_files_as_one_and_one_that_is_killed_costs_no_image(images, tmp_path):
    def kill_a_worker(report):
        if report.done == 3:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    FolderJob(images, tmp_path / 'one', FAST).run()
    report = FolderJob(images, tmp_path / 'two', FAST, workers=2).run(kill_a_worker)
    assert (report.done, report.failed) == (6, {})
    assert contents(tmp_path / 'two') == contents(tmp_path / 'one')


class Failing:
    """In place of the generator: fails in some way at images of one width, and finds all of the others."""

    failure: BaseException = RuntimeError()

    def __init__(self, settings, device):
        pass

    def __call__(self, image):
        if image.shape[1] == 77:
            raise self.failure
        return self

    def select(self, max_masks):
        return MaskSet.from_bitmaps(np.ones((1, 8, 9), bool))


@pytest.fixture
def failing(images, tmp_path, monkeypatch):
    """A job with one image, of an awkward name, at which the generator fails as it is told."""
    Image.fromarray(np.arange(77 * 20, dtype=np.uint8).reshape(20, 77)).save(images / 'a' / '3\n\udcfc.png')
    monkeypatch.setattr(folder_module, 'PseudoMaskGenerator', Failing)
    return FolderJob(images, tmp_path / 'out', FAST)


@pytest.mark.parametrize(
    ('failure', 'reason'),
    [
        (RuntimeError('did not converge\nin 1000 iterations'), 'RuntimeError: did not converge'),
        (MemoryError(), 'MemoryError'),
        (UnSAMError('cannot be cut'), 'cannot be cut'),
        (RecursionError('too deep'), 'RecursionError: too deep'),
    ],
)
def test_any_failure_at_one_image_is_quarantined_and_the_others_are_done(failing, monkeypatch, failure, reason):
    monkeypatch.setattr(Failing, 'failure', failure)
    report = failing.run()
    name = 'a/3\n\udcfc.png'
    assert report.done == 6
    assert report.failed == {name: f'{failing.images / name}: {reason}'}
    assert Quarantine(failing.out).names() == {name}
    note = (failing.out / 'quarantine' / f'{name}.txt').read_text(errors='surrogateescape')
    assert note.count('\n') == 1
    assert json.loads(note.split('\t')[0]) == name
    assert note.endswith(f'{reason}\n')


@pytest.mark.parametrize('failure', [StoreError('the disk is full'), WeightsError('no weights'), KeyboardInterrupt()])
def test_what_would_fail_at_every_image_ends_the_run(failing, monkeypatch, failure):
    monkeypatch.setattr(Failing, 'failure', failure)
    monkeypatch.setattr(folder_module.PseudoMaskStore, 'write', partial(_raise, failure))
    with pytest.raises(type(failure)):
        failing.run()
    assert Quarantine(failing.out).names() == set()


def _raise(failure, *_):
    raise failure


def test_an_image_at_which_the_process_was_killed_comes_last(failing, monkeypatch):
    order = []
    monkeypatch.setattr(Failing, 'select', lambda self, max_masks: MaskSet.from_bitmaps(np.ones((1, 8, 9), bool)))
    Quarantine(failing.out).add('a/0.png', 'the run ended while this image was at work')
    write = PseudoMaskStore.write
    monkeypatch.setattr(
        PseudoMaskStore, 'write', lambda self, name, *rest: order.append(name) or write(self, name, *rest)
    )
    failing.run()
    assert order[-1] == 'a/0.png'
    assert 'a/0.png' not in Quarantine(failing.out).names()


def test_an_image_is_in_quarantine_until_it_is_done(failing, monkeypatch):
    noted = []
    monkeypatch.setattr(Failing, 'select', lambda self, _: noted.append(Quarantine(failing.out).names()) or [])
    monkeypatch.setattr(PseudoMaskStore, 'write', lambda self, name, *rest: None)
    failing.run()
    assert noted[:2] == [{'a/0.png'}, {'a/2.png'}]
    assert Quarantine(failing.out).names() == {'a/3\n\udcfc.png'}


def test_the_quarantine_is_gone_where_nothing_is_in_it(images, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, 'PseudoMaskGenerator', Failing)
    FolderJob(images, tmp_path / 'out', FAST).run()
    assert not (tmp_path / 'out' / 'quarantine').exists()


def test_masks_that_may_not_be_read_fail_one_image_alone(images, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, 'PseudoMaskGenerator', Failing)
    job = FolderJob(images, tmp_path / 'out', FAST)
    job.run()
    forbid_reading(tmp_path / 'out' / 'a' / '0.png.json', monkeypatch)
    report = job.run()
    assert (report.done, report.skipped) == (0, 5)
    assert 'a/0.png.json: cannot be read (Permission denied)' in report.failed['a/0.png']


def test_a_file_in_the_place_of_masks_fails_one_image_alone(images, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, 'PseudoMaskGenerator', Failing)
    (tmp_path / 'out' / 'a').mkdir(parents=True)
    (tmp_path / 'out' / 'a' / '0.png.json').write_text('{"note": "mine"}')
    for overwrite in (False, True):
        report = FolderJob(images, tmp_path / 'out', FAST, overwrite=overwrite).run()
        assert report.done == 5
        assert 'a/0.png.json: exists and was not written by unsam_mm' in report.failed['a/0.png']
        assert (tmp_path / 'out' / 'a' / '0.png.json').read_text() == '{"note": "mine"}'


def test_an_image_whose_note_the_disk_does_not_take_has_none(tmp_path):
    root = tmp_path.joinpath(*['d' * 100] * 39)  # with the name of the image more than 4096 bytes
    quarantine = Quarantine(root)
    quarantine.add('x' * 100 + '/' + 'y' * 100 + '.png', 'a reason')
    assert quarantine.names() == set()


def test_notes_of_the_user_s_in_the_quarantine_stay(images, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, 'PseudoMaskGenerator', Failing)
    note = tmp_path / 'out' / 'quarantine' / 'a' / '0.png.txt'
    note.parent.mkdir(parents=True)
    note.write_text('blurred, ask for another one')
    FolderJob(images, tmp_path / 'out', FAST).run()
    assert note.read_text() == 'blurred, ask for another one'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        pytest.param({'images': 'none'}, 'no such folder', id='no images'),
        pytest.param({'device': 'cuda:7'}, "device 'cuda:7' cannot be used", id='no such device'),
        pytest.param({'settings': GeneratorSettings(vit='none')}, 'none', id='no such ViT'),
        pytest.param({'dask': 'tcp://127.0.0.1:9'}, 'no Dask scheduler answers', id='no scheduler'),
        pytest.param({'dask': 'local:0'}, 'must be positive', id='no local workers'),
        pytest.param(
            {'dask': 'local:1', 'device': 'cuda:7'},
            'is unusable.*cuda:7',
            id='no worker with the device',
            marks=pytest.mark.slow,
        ),
    ],
)
def test_overwriting_that_cannot_begin_removes_nothing(images, tmp_path, monkeypatch, change, message):
    if change.get('dask', '').startswith('tcp'):
        monkeypatch.setattr(pytest.importorskip('unsam_mm.folders.dask'), '_CONNECT_S', 0.5)
    FolderJob(images, tmp_path / 'out', FAST, max_masks=5).run()
    before = contents(tmp_path / 'out')
    job = replace(FolderJob(images, tmp_path / 'out', FAST, max_masks=7, overwrite=True), **change)
    job = replace(job, images=Path(job.images))
    with pytest.raises(UnSAMError, match=message):
        job.run()
    assert contents(tmp_path / 'out') == before


def test_overwriting_with_weights_that_are_broken_removes_nothing(images, tmp_path, monkeypatch):
    FolderJob(images, tmp_path / 'out', FAST).run()
    before = contents(tmp_path / 'out')
    monkeypatch.setattr(folder_module, 'PseudoMaskGenerator', partial(_raise, WeightsError('model.safetensors is cut')))
    for workers in (1, 2):
        with pytest.raises(WeightsError):
            FolderJob(images, tmp_path / 'out', FAST, overwrite=True, workers=workers).run()
    assert contents(tmp_path / 'out') == before


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
