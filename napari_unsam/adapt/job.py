"""A training in its own process: start, poll through files, stop, resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import unsam_mm
from napari_unsam.model.text import counted
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.files import read_json, write_json

IMAGES, TOKENS, TRAINING = 'images', 'tokens', 'training'
SETTINGS, STATE, LOG, LOCK = 'settings.json', 'state.json', 'adapting.log', 'adapting.lock'
START, RESULT = 'start.pth', 'adapted.safetensors'

_PREPARING_SHARE = 0.3  # of the time of a job, roughly
_TRAINED_SHARE = 0.97
_GRACE_S = 5.0  # for processes that are asked to end


class Stage(Enum):
    """Stage of a job."""

    NONE = 'none'
    PREPARING = 'preparing'
    TRAINING = 'training'
    EXPORTING = 'exporting'
    DONE = 'done'


@dataclass(frozen=True)
class AdaptSettings:
    """Settings of a training.

    Attributes:
        iterations: Of one crop each.
        learning_rate: At its highest; a quarter of that with which the model of the package was trained.
        n_tokens: Most regions per crop, as in the packaged model.
        seed: Of the order of crops and prompts.
    """

    iterations: int = 300
    learning_rate: float = 3e-4
    n_tokens: int = 768
    seed: int = 0


@dataclass(frozen=True)
class Curve:
    """One number a logged step.

    Attributes:
        steps: Counted from 1, rising.
        losses: Means over the steps since some before.
        ious: With the pseudo-masks that are learnt, in [0, 1].
    """

    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    ious: tuple[float, ...] = ()

    @property
    def step(self) -> int:
        """The last one; 0 before the first is logged."""
        return self.steps[-1] if self.steps else 0


@dataclass(frozen=True)
class JobState:
    """State of a job.

    Attributes:
        stage: How far it has come; stays where it was when the job is stopped.
        is_running: Whether its process lives.
        fraction: Done, in [0, 1].
        text: One line for the user.
        iterations: How many there are to be; 0 before the start.
        curve: Of the training.
        problem: Why the process ended before the end; None if it did not, or was stopped.
    """

    stage: Stage
    is_running: bool
    fraction: float
    text: str
    iterations: int = 0
    curve: Curve = field(default_factory=Curve)
    problem: str | None = None


class AdaptJob:
    """One training, in one folder; not tied to any thread or window.

    Args:
        folder: Contains the crops in ``images`` and all other files of the job.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._process: subprocess.Popen | None = None
        self._was_cancelled = False

    @property
    def result(self) -> Path | None:
        """The adapted weights, once they are there."""
        path = self.folder / RESULT
        return path if path.exists() else None

    @property
    def is_running(self) -> bool:
        """Whether the process that this object started lives."""
        return self._process is not None and self._process.poll() is None

    def start(self, settings: AdaptSettings) -> None:
        """Starts the training, or resumes a stopped one with the same settings and crops.

        Raises:
            UnSAMError: If there are no crops, or the job is running.
            StoreError: If the folder cannot be written.
        """
        if self.is_running:
            raise UnSAMError('training is already running; wait, or cancel it first')
        crops = sorted((path.name, path.stat().st_mtime_ns) for path in (self.folder / IMAGES).glob('*.png'))
        if not crops:
            raise UnSAMError(f'{self.folder / IMAGES}: no crops to train on')
        wanted = {'settings': asdict(settings), 'pictures': [list(crop) for crop in crops]}
        if self._differs(wanted):
            self.forget()
        write_json(self.folder / SETTINGS, wanted)
        self._was_cancelled = False
        # Without the current folder, whose files might go by the names of packages.
        command = [sys.executable, '-P', '-m', 'napari_unsam.adapt', str(self.folder), '--parent', str(os.getpid())]
        path = os.pathsep.join(filter(None, [str(Path(unsam_mm.__file__).parents[1]), os.environ.get('PYTHONPATH')]))
        try:
            with (self.folder / LOG).open('wb') as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, 'PYTHONPATH': path, 'PYTHONUNBUFFERED': '1'},
                    # A group of its own, so that workers end with it.
                    start_new_session=os.name == 'posix',
                )
        except OSError as error:
            raise StoreError(f'{self.folder}: the training cannot start ({error.strerror})') from error

    def poll(self) -> JobState:
        """What is known now; reads small files only."""
        stage, curve, is_running = self._stage(), read_curve(self.folder / TRAINING), self.is_running
        iterations = self._iterations()
        made = len(list((self.folder / TOKENS).rglob('*.npz')))
        crops = len(list((self.folder / IMAGES).glob('*.png')))
        match stage:
            case Stage.NONE:
                fraction, text = 0.0, 'Starting' if is_running else 'Not adapted yet'
            case Stage.PREPARING:
                fraction = _PREPARING_SHARE * min(made / max(crops, 1), 1)
                text = f'Analysing crop {min(made + 1, crops)} of {crops}'
            case Stage.TRAINING:
                trained = curve.step / max(iterations, 1)
                fraction = _PREPARING_SHARE + (_TRAINED_SHARE - _PREPARING_SHARE) * trained
                text = f'Training, step {curve.step} of {iterations}'
            case Stage.EXPORTING:
                fraction, text = _TRAINED_SHARE, 'Writing the adapted model'
            case Stage.DONE:
                fraction, text = 1.0, f'Adapted in {counted(iterations, "step")} on {counted(crops, "crop")}'
        problem = None if is_running else self._problem()
        if not is_running and stage not in (Stage.NONE, Stage.DONE) and problem is None:
            text = f'Stopped: {text[:1].lower()}{text[1:]}. Start resumes it'
        return JobState(stage, is_running, fraction, text, iterations, curve, problem)

    def cancel(self) -> None:
        """Stops the process and its children; `start` resumes from the last checkpoint."""
        if not self.is_running:
            return
        self._was_cancelled = True
        _end_group(self._process)

    def forget(self) -> None:
        """Removes everything but the crops and their regions."""
        for name in (RESULT, f'partial-{RESULT}', STATE, SETTINGS, LOG):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / TRAINING, ignore_errors=True)

    def _differs(self, wanted: dict) -> bool:
        try:
            return read_json(self.folder / SETTINGS) != wanted
        except StoreError:
            return True

    def _stage(self) -> Stage:
        if self.result is not None:
            return Stage.DONE
        try:
            stage = Stage(read_json(self.folder / STATE)['stage'])
        except (StoreError, KeyError, TypeError, ValueError):
            return Stage.NONE
        return Stage.EXPORTING if stage is Stage.DONE else stage

    def _iterations(self) -> int:
        try:
            return read_settings(self.folder).iterations
        except StoreError:
            return 0

    def _problem(self) -> str | None:
        if self._process is None or self._was_cancelled or self._process.returncode == 0:
            return None
        try:
            lines = (self.folder / LOG).read_text(encoding='utf-8', errors='replace').splitlines()
        except OSError:
            lines = []
        # The first names the cause; those after it say which steps failed for it.
        named = [line.removeprefix('error: ') for line in lines if line.startswith('error: ')]
        last = lines[-1] if lines else f'the process ended with status {self._process.returncode}'
        return f'{named[0] if named else last} (the whole log: {self.folder / LOG})'


def read_curve(work_dir: Path) -> Curve:
    """The curve of a training, which may be running, and may have been resumed any number of times."""
    rows: dict[int, tuple[float, float]] = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for row in _rows(path):
            if isinstance(row, dict) and 'loss' in row and 'step' in row:
                # What a resumed training did again counts, not what it had done before.
                rows[int(row['step'])] = float(row['loss']), float(row.get('iou', 'nan'))
    steps = sorted(rows)
    return Curve(tuple(steps), tuple(rows[step][0] for step in steps), tuple(rows[step][1] for step in steps))


def _rows(path: Path) -> Iterator[Any]:
    with suppress(OSError):
        for line in path.read_text(encoding='utf-8').splitlines():
            with suppress(json.JSONDecodeError):  # the last line may be half written
                yield json.loads(line)


def read_settings(folder: Path) -> AdaptSettings:
    """The settings of a job.

    Raises:
        StoreError: If there are none, or they cannot be read.
    """
    try:
        return AdaptSettings(**read_json(folder / SETTINGS)['settings'])
    except (KeyError, TypeError) as error:
        raise StoreError(f'{folder / SETTINGS}: no settings of a job ({error}); start it from the dock') from error


def mim_home() -> Path:
    """The folder that holds configs/ and tools/: the checkout, or what an installed package carries.

    Raises:
        UnSAMError: If neither is there.
    """
    package = Path(unsam_mm.__file__).parent
    for home in (package.parent, package / '.mim'):
        if (home / 'configs' / 'unsam_s.py').is_file() and (home / 'tools' / 'train.py').is_file():
            return home
    raise UnSAMError(f'{package}: this installation lacks the training tools; install a wheel of unsam_mm again')


def _end_group(process: subprocess.Popen) -> None:
    if os.name != 'posix':
        subprocess.run(['taskkill', '/PID', str(process.pid), '/T', '/F'], capture_output=True, check=False)
        process.wait(_GRACE_S)
        return
    for order in (signal.SIGTERM, signal.SIGKILL):  # the second for what is left of the group, if anything is
        with suppress(ProcessLookupError):
            os.killpg(process.pid, order)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
