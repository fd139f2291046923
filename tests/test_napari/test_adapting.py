"""Adapting the model to an image: what it learns from, and the process that trains."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from filelock import FileLock
from PIL import Image as PngImage
from skimage import data

import unsam_mm
from napari_unsam.adapt import job as job_module
from napari_unsam.adapt import steps
from napari_unsam.adapt.__main__ import main
from napari_unsam.adapt.comparison import compare, disjoint_labels, window_around
from napari_unsam.adapt.crops import MAX_SIDE_PX, choose_crops, write_crops
from napari_unsam.adapt.job import AdaptJob, AdaptSettings, Stage, mim_home, read_losses
from napari_unsam.model.plane_prompts import PlanePrompt
from unsam_mm.errors import ImageError, UnSAMError
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.student.weights import load_weights, net_of_checkpoint, packaged_weights


def no_progress(fraction, text):
    pass


def write_photos(folder, count=2, side=96):
    """Parts of a real photo, so small that their regions are found in a moment."""
    photo, folder = data.coffee(), folder / 'images'
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        PngImage.fromarray(photo[60 * i : 60 * i + side, 200 : 200 + side + 32]).save(folder / f'part_{i}.png')


def wait_until(condition, timeout_s=180.0):
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, 'waited in vain'
        time.sleep(0.1)


def living_in_group(group):
    """The processes of a group, besides those that have ended and were not yet asked for their status."""
    living = []
    for process in psutil.process_iter(['status']):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.info['status'] != psutil.STATUS_ZOMBIE:
                living.append(process.pid)
    return living


def test_pictures_are_spread_evenly_over_the_planes_and_leave_out_the_ends():
    crops = choose_crops((20,), (300, 400), 4)
    assert [crop.index for crop in crops] == [(2,), (7,), (12,), (17,)]
    assert all((crop.rows, crop.columns) == (slice(0, 300), slice(0, 400)) for crop in crops)


def test_a_single_plane_gives_one_picture():
    (crop,) = choose_crops((), (300, 400), 8)
    assert crop.index == ()


def test_large_planes_are_cut_into_parts_that_cover_them():
    crops = choose_crops((), (1500, 2100), 100)
    covered = np.zeros((1500, 2100), int)
    for crop in crops:
        covered[crop.rows, crop.columns] += 1
        assert max(crop.rows.stop - crop.rows.start, crop.columns.stop - crop.columns.start) <= MAX_SIDE_PX
    assert (covered == 1).all()
    assert len({crop.name for crop in crops}) == len(crops) == 6


def test_pictures_are_written_as_the_model_sees_them_and_empty_ones_left_out(tmp_path):
    stack = np.stack([data.coins(), np.zeros_like(data.coins()), data.coins()[::-1]])
    crops = choose_crops((3,), stack.shape[1:], 3)
    read = lambda crop: stack[(*crop.index, crop.rows, crop.columns)]  # noqa: E731
    assert write_crops(tmp_path, crops, read, no_progress) == 2
    there = np.asarray(PngImage.open(tmp_path / crops[2].name))
    assert np.array_equal(there, np.repeat(stack[2][..., None], 3, axis=2))


def test_pictures_that_did_not_change_keep_their_files_and_others_go(tmp_path):
    crops = choose_crops((), data.coins().shape, 1)
    (tmp_path / 'other.png').write_bytes(b'')
    for expected in (True, True, False):
        before = [path.stat().st_mtime_ns for path in tmp_path.glob('part*')]
        write_crops(tmp_path, crops, lambda crop, same=expected: data.coins()[:: 1 if same else -1], no_progress)
        after = [path.stat().st_mtime_ns for path in tmp_path.glob('*.png')]
        assert (before == after) == (expected and bool(before))


def test_an_image_of_one_colour_is_refused(tmp_path):
    with pytest.raises(ImageError, match='one colour'):
        write_crops(tmp_path, choose_crops((), (50, 60), 1), lambda crop: np.zeros((50, 60)), no_progress)


def write_log(work_dir, started, rows, rest=''):
    folder = work_dir / started / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(json.dumps(row) for row in rows) + rest)


def test_the_losses_of_a_resumed_training_are_one_curve(tmp_path):
    write_log(tmp_path, '20260101_000000', [{'step': step, 'loss': 1.0} for step in (5, 10, 15)])
    write_log(tmp_path, '20260101_000100', [{'step': step, 'loss': 0.5} for step in (15, 20)])
    assert list(read_losses(tmp_path).items()) == [(5, 1.0), (10, 1.0), (15, 0.5), (20, 0.5)]


def test_a_log_that_is_being_written_is_read_as_far_as_it_goes(tmp_path):
    write_log(tmp_path, '20260101_000000', [{'step': 5, 'loss': 1.0}, {'coco/AR': 0.1}], '\n12\n{"step": 10, "lo')
    assert read_losses(tmp_path) == {5: 1.0}
    assert read_losses(tmp_path / 'nothing') == {}


def test_the_tools_are_found_in_a_checkout_and_in_an_installed_package(tmp_path, monkeypatch):
    assert (mim_home() / 'configs' / 'unsam_s.py').is_file()
    monkeypatch.setattr(unsam_mm, '__file__', str(tmp_path / 'unsam_mm' / '__init__.py'))
    with pytest.raises(UnSAMError, match='lacks the training tools'):
        mim_home()
    for name in ('configs/unsam_s.py', 'tools/train.py'):
        path = tmp_path / 'unsam_mm' / '.mim' / name
        path.parent.mkdir(parents=True)
        path.touch()
    assert mim_home() == tmp_path / 'unsam_mm' / '.mim'


def test_a_job_without_pictures_is_refused(tmp_path):
    with pytest.raises(UnSAMError, match='no crops'):
        AdaptJob(tmp_path).start(AdaptSettings())


def test_a_job_that_was_never_started_says_so(tmp_path):
    state = AdaptJob(tmp_path).poll()
    assert (state.stage, state.is_running, state.fraction) == (Stage.NONE, False, 0.0)


@pytest.fixture
def instead_of_training(tmp_path, monkeypatch):
    """Has jobs start a shell script."""

    def replace(script):
        write_photos(tmp_path)
        path = tmp_path / 'python'
        path.write_text(f'#!/bin/sh\n{script}\n')
        path.chmod(0o755)
        monkeypatch.setattr(job_module.sys, 'executable', str(path))
        return AdaptJob(tmp_path)

    return replace


needs_shell = pytest.mark.skipif(os.name != 'posix', reason='needs a shell')


@needs_shell
def test_cancelling_ends_all_processes_of_a_job_and_is_no_problem(instead_of_training):
    job = instead_of_training('sleep 60 & sleep 60')
    job.start(AdaptSettings())
    assert job.poll().text == 'Starting'
    with pytest.raises(UnSAMError, match='already'):
        job.start(AdaptSettings())
    group = job._process.pid
    job.cancel()
    assert (job.is_running, job.poll().problem) == (False, None)
    wait_until(lambda: not living_in_group(group), 10)
    job.cancel()


@needs_shell
@pytest.mark.parametrize(
    ('output', 'expected'),
    [
        pytest.param('error: no weights\nerror: train ended with status 1', 'no weights (', id='the cause'),
        pytest.param('Traceback\nMemoryError', 'MemoryError (', id='the last line'),
        pytest.param('', 'the process ended with status 1', id='not a word'),
    ],
)
def test_the_cause_of_a_failure_is_told_with_the_place_of_the_log(instead_of_training, output, expected):
    job = instead_of_training(f'printf "{output}"; exit 1'.replace('\n', '\\n'))
    job.start(AdaptSettings())
    wait_until(lambda: not job.is_running, 10)
    assert job.poll().problem.startswith(expected)
    assert 'adapting.log' in job.poll().problem


@needs_shell
def test_other_settings_or_pictures_start_over_and_the_same_go_on(instead_of_training):
    job = instead_of_training('exit 0')
    training = job.folder / 'training'
    for settings, is_kept in ((AdaptSettings(), False), (AdaptSettings(), True), (AdaptSettings(seed=1), False)):
        training.mkdir(exist_ok=True)
        job.start(settings)
        assert training.exists() == is_kept
        wait_until(lambda: not job.is_running, 10)
    training.mkdir(exist_ok=True)
    (job.folder / 'images' / 'part_0.png').unlink()
    job.start(AdaptSettings(seed=1))
    assert not training.exists()


def test_each_stage_says_how_far_it_is(tmp_path):
    write_photos(tmp_path, count=4)
    job = AdaptJob(tmp_path)
    (tmp_path / 'settings.json').write_text('{"settings": {"iterations": 100}}')
    (tmp_path / 'tokens').mkdir()
    (tmp_path / 'tokens' / 'one.npz').touch()
    write_log(tmp_path / 'training', '20260101_000000', [{'step': 50, 'loss': 1.0}])
    told = {}
    for stage in ('preparing', 'training', 'exporting', 'done'):
        (tmp_path / 'state.json').write_text(json.dumps({'stage': stage}))
        told[stage] = job.poll()
    assert 'crop 2 of 4' in told['preparing'].text
    assert 'step 50 of 100' in told['training'].text
    assert told['done'].stage is Stage.EXPORTING  # the weights are not there
    fractions = [state.fraction for state in told.values()]
    assert fractions == sorted(fractions)
    assert 0 < fractions[0] < fractions[1] < fractions[2] < 1


def test_the_steps_are_done_in_their_order_and_what_is_there_is_not_done_again(tmp_path, monkeypatch):
    done = []

    def run(home, tool, *arguments):
        done.append(tool)
        if tool == 'train':
            (tmp_path / 'training').mkdir()
            (tmp_path / 'training' / 'latest.pth').touch()
            if done.count('train') == 1:
                raise UnSAMError('train ended with status 1')
        if tool == 'export_regions':
            arguments[1].touch()

    monkeypatch.setattr(steps, '_run', run)
    write_photos(tmp_path)
    (tmp_path / 'settings.json').write_text('{"settings": {"iterations": 100}}')
    with pytest.raises(UnSAMError, match='status 1'):
        steps.adapt(tmp_path)
    assert net_of_checkpoint(tmp_path / 'start.pth') is not None
    for _ in range(2):
        steps.adapt(tmp_path)
    assert done == ['prepare_regions', 'train', 'export_regions']
    assert AdaptJob(tmp_path).poll().stage is Stage.DONE


def test_two_processes_do_not_adapt_to_one_image_at_once(tmp_path):
    with FileLock(tmp_path / 'adapting.lock'), pytest.raises(UnSAMError, match='another process'):
        steps.adapt(tmp_path)


def test_a_job_with_broken_settings_is_told(tmp_path):
    (tmp_path / 'settings.json').write_text('{}')
    with pytest.raises(UnSAMError, match='no settings of a job'):
        steps.adapt(tmp_path)


def test_the_command_line_tells_a_failure_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['adapting', str(tmp_path)])
    monkeypatch.setattr(os, 'nice', lambda steps: None)
    assert main() == 1
    assert capsys.readouterr().err.startswith('error: ')


@pytest.mark.slow
@pytest.mark.skipif(os.name != 'posix', reason='looks at process groups')
def test_a_training_is_stopped_resumed_and_ends_with_weights_of_its_own(tmp_path):
    write_photos(tmp_path)
    job, settings = AdaptJob(tmp_path), AdaptSettings(iterations=18, n_tokens=128)
    job.start(settings)
    with pytest.raises(UnSAMError, match='already'):
        job.start(settings)
    wait_until(lambda: (tmp_path / 'training' / 'last_checkpoint').exists() or not job.is_running)
    assert job.is_running, (tmp_path / 'adapting.log').read_text()[-2000:]
    pid = job._process.pid
    job.cancel()
    stopped = job.poll()
    assert not stopped.is_running
    assert stopped.problem is None
    assert stopped.text.startswith('Stopped: training, step')
    wait_until(lambda: not living_in_group(pid), 10)

    job.start(settings)
    wait_until(lambda: not job.is_running)
    done = job.poll()
    assert (done.stage, done.fraction, done.problem) == (Stage.DONE, 1.0, None)
    assert 'resumed' in (tmp_path / 'adapting.log').read_text()
    assert max(done.losses) >= 15
    adapted, original = load_weights(job.result).net, load_weights(packaged_weights('unsam_s')).net
    assert any((a != b).any() for a, b in zip(adapted.parameters(), original.parameters(), strict=True))
    assert '18 iterations on 2 crops' in load_weights(job.result).notes['origin']

    assert not list((tmp_path / 'training').glob('*.pth'))

    job.start(AdaptSettings(iterations=20))
    assert job.result is None
    job.cancel()


@pytest.mark.slow
def test_what_goes_wrong_in_the_process_is_told_in_one_line(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'part.png').write_bytes(b'no image')
    job = AdaptJob(tmp_path)
    job.start(AdaptSettings())
    wait_until(lambda: not job.is_running)
    assert 'can be read' in job.poll().problem
    assert '\n' not in job.poll().problem


@pytest.mark.slow
@pytest.mark.skipif(os.name != 'posix', reason='looks at process groups')
def test_a_training_ends_when_the_viewer_is_killed(tmp_path):
    write_photos(tmp_path)
    script = (
        'import sys, time; from pathlib import Path\n'
        'from napari_unsam.adapt.job import AdaptJob, AdaptSettings\n'
        'job = AdaptJob(Path(sys.argv[1])); job.start(AdaptSettings(iterations=1000))\n'
        'print(job._process.pid, flush=True); time.sleep(600)'
    )
    viewer = subprocess.Popen([sys.executable, '-c', script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    pid = int(viewer.stdout.readline())
    wait_until((tmp_path / 'adapting.lock').exists)
    assert living_in_group(pid)
    viewer.send_signal(signal.SIGKILL)
    viewer.wait()
    wait_until(lambda: not living_in_group(pid), 30)


def test_a_window_lies_within_the_plane_and_around_its_centre():
    assert window_around((300, 400), (10.0, 20.0)) == (slice(0, 300), slice(0, 400))
    assert window_around((5000, 6000), (2500.0, 5900.0)) == (slice(1988, 3012), slice(4976, 6000))


def test_masks_are_laid_flat_best_first_without_the_ground_and_what_is_covered():
    masks = np.zeros((4, 60, 90), bool)
    masks[0, 2:8, 2:8] = True
    masks[1, 3:9, 2:8] = True  # mostly covered by the first
    masks[2, 5:15, 5:15] = True  # a tenth of it is
    masks[3] = True  # the ground
    labels = disjoint_labels(MaskSet.from_bitmaps(masks))
    assert np.unique(labels).tolist() == [0, 1, 2]
    assert (labels == 1).sum() == 36
    assert (labels == 2).sum() == 91


@pytest.mark.slow
@pytest.mark.parametrize('asks', [False, True])
def test_both_models_are_asked_the_same(tmp_path, asks):
    window = (slice(50, 150), slice(270, 390))
    question = PlanePrompt(np.array([[330.0, 100.0]]), np.array([1])) if asks else None
    same = shutil.copy(packaged_weights('unsam_s'), tmp_path / 'same.safetensors')
    found = compare(data.coffee()[window], window, same, question, no_progress)
    assert (found.top, found.left) == (50, 270)
    assert np.array_equal(found.before, found.after)
    assert found.agreement == 1.0
    assert found.before[50, 60] > 0
    assert (found.before.max() == 1) == asks


def test_the_module_of_jobs_does_without_torch():
    code = f'import sys, {job_module.__name__}; sys.exit("torch" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
