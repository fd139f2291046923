"""A training in its own process; its state is read from files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path

import unsam_mm
from napari_unsam.model.text import counted
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.files import read_json, write_json

IMAGES, TOKENS, TRAINING = 'images', 'tokens', 'training'
SETTINGS, STATE, LOG, LOCK = 'settings.json', 'state.json', 'adapting.log', 'adapting.lock'
START, RESULT = 'start.pth', 'adapted.safetensors'

# Approximate fractions of the time of a job that have passed after the preparation and after the training.
_PREPARED = 0.3
_TRAINED = 0.97
_GRACE_S = 5.0  # for processes to end after a signal


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
        iterations: Number of training steps, each on one crop.
        learning_rate: The maximum learning rate; a quarter of that with which the packaged model was trained.
        n_tokens: Maximum number of regions of a crop, as in the packaged model.
        seed: Random seed for the order of crops and for prompts.
    """

    iterations: int = 300
    learning_rate: float = 3e-4
    n_tokens: int = 768
    seed: int = 0


@dataclass(frozen=True)
class JobState:
    """State of a job.

    Attributes:
        stage: The stage; of a stopped job, the one in which it was stopped.
        is_running: True if its process runs.
        fraction: Fraction done, in [0, 1].
        text: One line for the user.
        iterations: Number of all training steps of the job; 0 before the start.
        losses: The logged losses by training step, in ascending order; steps count from 1.
        problem: Why the process failed; None if it did not.
    """

    stage: Stage
    is_running: bool
    fraction: float
    text: str
    iterations: int = 0
    losses: dict[int, float] = field(default_factory=dict)
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
        """The adapted weights; None before the job is done."""
        path = self.folder / RESULT
        return path if path.exists() else None

    @property
    def is_running(self) -> bool:
        """True if the process that this object started is running."""
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
        # -P: files in the current folder may have the names of packages.
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
                    # In its own process group, so that `cancel` also ends its children.
                    start_new_session=os.name == 'posix',
                )
        except OSError as error:
            raise StoreError(f'{self.folder}: the training cannot start ({error.strerror})') from error

    def poll(self) -> JobState:
        """The current state; reads small files only."""
        stage, losses, is_running = self._stage(), read_losses(self.folder / TRAINING), self.is_running
        iterations, step = self._iterations(), max(losses, default=0)
        n_analysed = len(list((self.folder / TOKENS).rglob('*.npz')))
        n_crops = len(list((self.folder / IMAGES).glob('*.png')))
        match stage:
            case Stage.NONE:
                fraction, text = 0.0, 'Starting' if is_running else 'Not adapted yet'
            case Stage.PREPARING:
                fraction = _PREPARED * min(n_analysed / max(n_crops, 1), 1)
                text = f'Analysing crop {min(n_analysed + 1, n_crops)} of {n_crops}'
            case Stage.TRAINING:
                fraction = _PREPARED + (_TRAINED - _PREPARED) * (step / max(iterations, 1))
                text = f'Training, step {step} of {iterations}'
            case Stage.EXPORTING:
                fraction, text = _TRAINED, 'Writing the adapted model'
            case Stage.DONE:
                fraction, text = 1.0, f'Adapted in {counted(iterations, "step")} on {counted(n_crops, "crop")}'
        problem = None if is_running else self._problem()
        if not is_running and stage not in (Stage.NONE, Stage.DONE) and problem is None:
            text = f'Stopped: {text[:1].lower()}{text[1:]}. Start resumes it'
        return JobState(stage, is_running, fraction, text, iterations, losses, problem)

    def cancel(self) -> None:
        """Stops the process and its children; `start` resumes from the last checkpoint."""
        if not self.is_running:
            return
        self._was_cancelled = True
        _end_group(self._process)

    def forget(self) -> None:
        """Removes the settings, state, log, checkpoints and result; keeps the crops and their regions."""
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
        # The first error is the cause; later ones name the steps that failed.
        named = [line.removeprefix('error: ') for line in lines if line.startswith('error: ')]
        last = lines[-1] if lines else f'the process ended with status {self._process.returncode}'
        return f'{named[0] if named else last} (the whole log: {self.folder / LOG})'


def read_losses(work_dir: Path) -> dict[int, float]:
    """The losses of a training by step, in ascending order; if a resumed training repeated a step, its last loss."""
    losses: dict[int, float] = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        with suppress(OSError):  # the training was removed meanwhile
            for line in path.read_text(encoding='utf-8').splitlines():
                with suppress(json.JSONDecodeError):
                    row = json.loads(line)
                    if isinstance(row, dict) and 'loss' in row and 'step' in row:
                        losses[int(row['step'])] = float(row['loss'])
    return dict(sorted(losses.items()))


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
    """The folder with configs/ and tools/: the checkout, or the ``.mim`` folder of an installed package.

    Raises:
        UnSAMError: If neither exists.
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
    for signal_number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
