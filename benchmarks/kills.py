"""Kills commands at random moments and checks that nothing is lost: ``python -m benchmarks.kills WHAT [--moments 20]``.

WHAT is `generate`, `generate-workers`, `npz` or `train`. For `generate` the command is killed repeatedly, with its
workers, and started again. After each kill, finished files must be complete and unchanged; only the images that were
being processed may be processed again; and the final files must equal those of a run without kills. For `npz` a process
that repeatedly replaces an embedding file is killed, and the file must contain the last embedding that the process
reported, or the next one. For `train` a training is killed repeatedly, with its workers, and resumed: only iterations
after the last complete checkpoint may be lost, and the final losses and weights must be bit-identical to those of a
training without kills.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from unsam_mm.folders.run import Quarantine
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.prompting.embedding_file import load_arrays

SAVING = """
import sys
import numpy as np
from unsam_mm.prompting.embedding_file import save_arrays
value = int(sys.argv[2])
while True:
    value += 1
    save_arrays(sys.argv[1], 'tree', {'first': np.full((300, 400), value), 'last': np.full((300, 400), value)})
    print(value, flush=True)
"""
N_IMAGES = 60
TRAINING = """
_base_ = './tiny.py'
train_cfg = dict(max_iters=60)
"""
CHECKPOINT_EVERY = 2  # iterations, in tiny.py


def main() -> int:
    """Prints the outcome; exit status 1 if anything was lost."""
    sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=('generate', 'generate-workers', 'npz', 'train'))
    parser.add_argument('--moments', type=int, default=20)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        if options.what.startswith('generate'):
            workers = 2 if options.what == 'generate-workers' else 1
            return _kill_generate(Path(folder), workers, options.moments, moments)
        if options.what == 'train':
            return _kill_training(Path(folder), options.moments, moments)
        return _kill_saving(Path(folder, 'a.npz'), options.moments, moments)


def _kill_generate(folder: Path, workers: int, n_moments: int, moments: random.Random) -> int:
    images, out = folder / 'images', folder / 'out'
    images.mkdir()
    random_pixels = np.random.default_rng(0)
    for number in range(N_IMAGES):
        pixels = np.kron(random_pixels.integers(0, 255, (4, 5, 3), np.uint8), np.ones((12, 12, 1), np.uint8))
        Image.fromarray(pixels).save(images / f'{number:03}.png')
    command = [sys.executable, '-m', 'unsam_mm', 'generate', str(images), '', '--max-masks', '20']
    command += ['--workers', str(workers)]
    store, finished, noted, again, began = PseudoMaskStore(out), {}, set(), 0, 0
    for moment in range(n_moments):
        command[5] = str(out)
        process = _start(command)
        before = len(finished)
        _wait(process, lambda count=before: out.is_dir() and len(_written(store)) > count)
        time.sleep(moments.uniform(0, 1.5))
        _kill(process)
        now = _written(store)
        lost = [name for name in finished if now.get(name) != finished[name]]
        for name in now:
            store.read(name)
        noted, old = Quarantine(out).names(), noted
        in_progress = len(noted - old)
        if lost or in_progress > workers:
            print(f'moment {moment}: {len(lost)} lost or processed again, {in_progress} in progress')
            return 1
        again += in_progress
        began += process.returncode == -signal.SIGKILL
        finished = now
        print(f'moment {moment}: {len(now)} images finished, {in_progress} in progress, nothing lost')
    subprocess.run(command, check=True, capture_output=True)
    command[5] = str(folder / 'quiet')
    subprocess.run(command, check=True, capture_output=True)
    same = _contents(out) == _contents(folder / 'quiet')
    kept = all(_written(store)[name] == time_ns for name, time_ns in finished.items())
    print(
        f'{began} kills, {workers} worker(s): {again} images in progress were processed again, none of {len(finished)} '
        f'finished ones was lost or processed again: {kept}; the same files as without kills: {same}'
    )
    return 0 if same and kept else 1


def training_runs() -> ModuleType:
    """The module `tests.test_engine.runs` of this checkout, even if another package called `tests` is installed."""
    ours = ModuleType('tests')
    ours.__path__ = [str(Path(__file__).resolve().parents[1] / 'tests')]
    sys.modules['tests'] = ours
    return importlib.import_module('tests.test_engine.runs')


def _kill_training(folder: Path, n_moments: int, moments: random.Random) -> int:
    from unsam_mm.engine import find_resumable

    runs = training_runs()
    runs.write_tiny_data(folder)
    (folder / 'kills.py').write_text(TRAINING, encoding='utf-8')
    quiet, killed = folder / 'quiet', folder / 'killed'

    def start(work_dir: Path) -> subprocess.Popen:
        return _start(
            [sys.executable, str(runs.TRAIN), 'kills.py', '--work-dir', str(work_dir), '--resume'], cwd=folder
        )

    began = time.monotonic()
    process = start(quiet)
    _wait(process, (quiet / f'iter_{CHECKPOINT_EVERY}.pth').exists)
    startup_s = time.monotonic() - began
    if process.wait() != 0:
        raise RuntimeError('the training without kills failed')
    kept, kills, lost = 0, 0, []
    for moment in range(n_moments):
        process = start(killed)
        if moment % 2:  # every other training is killed while it starts, the others after a new checkpoint
            _wait(process, lambda known=kept: _last_iteration(killed) > known)
        time.sleep(moments.uniform(0, 1.5 if moment % 2 else startup_s))
        _kill(process)
        if process.returncode != -signal.SIGKILL:
            if process.returncode == 0:
                break
            print(f'moment {moment}: could not be resumed')
            return 1
        kills += 1
        path = find_resumable(killed)
        found = 0 if path is None else int(path.stem.removeprefix('iter_'))
        logged = max(runs.losses(killed), default=0)
        lost.append(logged - found)
        # A checkpoint that was being written may be truncated; a truncated checkpoint is ignored.
        if found < kept or logged - found > 2 * CHECKPOINT_EVERY:
            print(f'moment {moment}: resumed from {found} after {logged} iterations, although {kept} was saved before')
            return 1
        kept = found
        print(f'moment {moment}: killed after iteration {logged}, resumed from {found}')
    if start(killed).wait() != 0:
        print('the last run could not be resumed')
        return 1
    same_losses = runs.losses(killed) == runs.losses(quiet)
    last = sorted(path.name for path in quiet.glob('*.pth'))
    same_files = last == sorted(path.name for path in killed.glob('*.pth')) and all(
        runs.equal(*(runs.weights(run / name) for run in (quiet, killed))) for name in last
    )
    left = [path.name for path in killed.rglob('*.part')]
    print(
        f'{kills} kills: at most {max(lost, default=0)} iterations were repeated; the same losses as without '
        f'kills: {same_losses}; the same weights in {", ".join(last)}: {same_files}; leftovers: {left}'
    )
    return 0 if same_losses and same_files and not left else 1


def _last_iteration(work_dir: Path) -> int:
    return max((int(path.stem.removeprefix('iter_')) for path in work_dir.glob('iter_*.pth')), default=0)


def _kill_saving(path: Path, n_moments: int, moments: random.Random) -> int:
    value = kept_old = 0
    for moment in range(n_moments):
        process = _start([sys.executable, '-c', SAVING, str(path), str(value)], subprocess.PIPE)
        process.stdout.readline()
        time.sleep(moments.uniform(0, 0.3))
        _kill(process)
        reported = [int(line) for line in process.stdout.read().splitlines()] or [value + 1]
        arrays = load_arrays(path, 'tree')
        found = int(arrays['first'][0, 0])
        if not all((array == found).all() for array in arrays.values()) or found not in (
            reported[-1],
            reported[-1] + 1,
        ):
            print(f'moment {moment}: found {found} after {reported[-1]} was saved')
            return 1
        kept_old += found == reported[-1]
        value = found
    left = [entry.name for entry in path.parent.iterdir() if entry != path]
    print(
        f'{n_moments} kills, {value} saves: {kept_old} times the last reported one, otherwise the next; '
        f'leftovers: {left}'
    )
    return 0


def _start(command: list[str], stdout: int = subprocess.DEVNULL, cwd: Path | None = None) -> subprocess.Popen:
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL, start_new_session=True, cwd=cwd)


def _kill(process: subprocess.Popen) -> None:
    """Kills the process and its workers at once, as the memory limit of a cluster or container does."""
    with suppress(ProcessLookupError):  # raised if the process has ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.2)  # until the workers have ended, too


def _wait(process: subprocess.Popen, condition) -> None:
    deadline_s = time.monotonic() + 300
    while not condition() and process.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.02)


def _written(store: PseudoMaskStore) -> dict[str, int]:
    return {name: store.path_of(name).stat().st_mtime_ns for name in store.names()}


def _contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob('*') if path.is_file() and path.suffix != '.part']
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


if __name__ == '__main__':
    sys.exit(main())
