"""The steps of a training process; steps whose results exist are skipped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from napari_unsam.adapt.job import (
    IMAGES,
    LOCK,
    RESULT,
    START,
    STATE,
    TOKENS,
    TRAINING,
    AdaptSettings,
    Stage,
    mim_home,
    read_settings,
)
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.files import atomic_writer, write_json
from unsam_mm.processes import available_cores

_CHECK_PARENT_S = 2.0
_CHECKPOINTS = 6  # in a training: a stopped one loses at most a sixth of its steps


def adapt(folder: Path) -> None:
    """Trains on the crops in a folder and writes the weights there.

    Raises:
        UnSAMError: If another process is training in the folder, or a step fails.
    """
    try:
        with FileLock(folder / LOCK).acquire(timeout=0):
            _adapt(folder, read_settings(folder))
    except Timeout as error:
        raise StoreError(f'{folder}: another process is adapting the model to this image; wait for it') from error


def end_with_parent(parent: int) -> None:
    """Ends this process and its children when the parent process ends; has no effect on Windows.

    Args:
        parent: Process ID of the parent.
    """
    if os.name == 'posix':
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def write_initial_checkpoint(path: Path) -> None:
    """Writes the packaged weights as a checkpoint for the option `load_from` of MMEngine.

    Raises:
        WeightsError: If the package lacks them.
    """
    import torch

    from unsam_mm.student.weights import load_weights, packaged_weights

    net = load_weights(packaged_weights('unsam_s')).net
    with atomic_writer(path, binary=True) as file:
        torch.save({'state_dict': {f'net.{name}': values for name, values in net.state_dict().items()}}, file)


def _adapt(folder: Path, settings: AdaptSettings) -> None:
    if (folder / RESULT).exists():
        _write_stage(folder, Stage.DONE)
        return
    (folder / TOKENS).mkdir(exist_ok=True)
    if not (folder / START).exists():
        write_initial_checkpoint(folder / START)
    home = mim_home()
    config, options = home / 'configs' / 'unsam_s.py', _config_options(folder, settings)
    latest = folder / TRAINING / 'latest.pth'
    if not latest.exists():
        _write_stage(folder, Stage.PREPARING)
        # Only one process, with all threads: each process needs about a gigabyte.
        _run(home, 'prepare_regions', config, '--workers', '1', '--cfg-options', *options)
        _write_stage(folder, Stage.TRAINING)
        _run(home, 'train', config, '--work-dir', folder / TRAINING, '--resume', '--cfg-options', *options)
    _write_stage(folder, Stage.EXPORTING)
    partial = folder / f'partial-{RESULT}'
    n_crops = len(list((folder / IMAGES).glob('*.png')))
    note = f'origin=unsam_s, then {settings.iterations} iterations on {n_crops} crops of one image'
    _run(home, 'export_regions', latest, partial, '--n-tokens', settings.n_tokens, '--note', note)
    partial.replace(folder / RESULT)
    for path in [folder / START, *(folder / TRAINING).glob('*.pth')]:
        path.unlink()
    _write_stage(folder, Stage.DONE)


def _config_options(folder: Path, settings: AdaptSettings) -> list[str]:
    images, tokens = folder / IMAGES, folder / TOKENS
    tokens_step = 'dataset.pipeline.0'
    return [
        f'data_root={images}',
        f'load_from={folder / START}',
        f'train_cfg.max_iters={settings.iterations}',
        f'optim_wrapper.optimizer.lr={settings.learning_rate}',
        f'param_scheduler.0.end={max(settings.iterations // 20, 1)}',
        f'randomness.seed={settings.seed}',
        f'default_hooks.checkpoint.interval={max(settings.iterations // _CHECKPOINTS, 1)}',
        'default_hooks.logger.interval=5',
        'log_processor.window_size=20',
        # All crops are used for training: there are too few for a useful validation set.
        'train_dataloader.dataset.split=all',
        f'train_dataloader.{tokens_step}.store={tokens}',
        f'train_dataloader.{tokens_step}.n_tokens={settings.n_tokens}',
        *(f'{name}=None' for part in ('val', 'test') for name in (f'{part}_dataloader', f'{part}_evaluator')),
        'val_cfg=None',
        'test_cfg=None',
    ]


def _run(home: Path, tool: str, *arguments: object) -> None:
    """Runs a script in tools/; its output becomes part of the output of this process."""
    command = [sys.executable, str(home / 'tools' / f'{tool}.py'), *map(str, arguments)]
    n_threads = max(available_cores() - 1, 1)  # one core is left to the viewer
    status = subprocess.run(command, env={'OMP_NUM_THREADS': str(n_threads), **os.environ}, check=False).returncode
    if status != 0:
        raise UnSAMError(f'{tool} ended with status {status}')


def _write_stage(folder: Path, stage: Stage) -> None:
    write_json(folder / STATE, {'stage': stage.value})


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_CHECK_PARENT_S)
    os.killpg(os.getpgrp(), signal.SIGTERM)
