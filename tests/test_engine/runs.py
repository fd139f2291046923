"""Trainings in processes of their own, killed or not, and what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / 'tools' / 'train.py'

_LIMIT_S = 400.0


class Training:
    """Runs tools/train.py in processes of its own, as users and schedulers do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(
        self, work_dir: Path, *options: str, config: str = 'tiny.py', launcher: tuple[str, ...] = (), **variables: str
    ) -> subprocess.Popen[str]:
        """A training that goes on after this returns, with environment variables of its own."""
        command = [sys.executable, *launcher, str(TRAIN), config, '--work-dir', str(work_dir), *options]
        environment = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'} | variables
        with (work_dir.parent / f'{work_dir.name}.log').open('a') as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True
            )

    def run(self, work_dir: Path, *options: str, **how: str | tuple[str, ...]) -> str:
        """A training that has to succeed; all that was printed in this work dir."""
        status = self.start(work_dir, *options, **how).wait(timeout=_LIMIT_S)
        printed = (work_dir.parent / f'{work_dir.name}.log').read_text()
        assert status == 0, printed[-4000:]
        return printed

    def run_until(self, condition: Callable[[], bool], work_dir: Path, *options: str, **how: str) -> None:
        """A training that is killed, without notice, as soon as the condition holds."""
        process = self.start(work_dir, *options, **how)
        deadline = time.monotonic() + _LIMIT_S
        while not condition():
            assert process.poll() is None, (work_dir.parent / f'{work_dir.name}.log').read_text()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.wait()


def losses(work_dir: Path) -> dict[int, float]:
    """Loss by iteration, from the logs of all runs in a work dir; later runs win."""
    rows = [
        json.loads(line)
        for log in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in log.read_text().splitlines()
    ]
    return {row['step']: row['loss'] for row in rows if 'loss' in row}


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights in a checkpoint."""
    return torch.load(path, weights_only=False)['state_dict']


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two models are the same to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
