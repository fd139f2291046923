"""What several test modules share: real images, the default generator, and trees of random shape."""

from __future__ import annotations

import errno
import gc
import io
import os
import subprocess
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from skimage import data

from benchmarks import timing
from tests import warm_python
from unsam_mm import PseudoMaskGenerator, weights

settings.register_profile('unsam', deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('unsam')


def pytest_collection_finish():
    """Garbage is collected after each test of a window, which shall not look at all that is imported by now."""
    gc.collect()
    gc.freeze()


def skip_without_weights():
    """Skips a test whose weights were not fetched before; tests themselves use no network."""
    if weights.cached_path('dinov2_vits14') is None:
        pytest.skip('the weights are not in the cache: python -m unsam_mm weights fetch')


shared_generator = cache(PseudoMaskGenerator)
"""In place of the class, where a test makes many generators of the same settings: their weights are read once."""


@pytest.fixture(scope='session')
def coins():
    """(303, 384) uint8: two dozen coins on a dark ground, off centre, more wide than high."""
    return data.coins()


@pytest.fixture(scope='session')
def coffee():
    """(200, 300, 3) uint8: the middle of a photograph of a red cup."""
    return np.ascontiguousarray(data.coffee()[::2, ::2])


@pytest.fixture(scope='session')
def generator():
    """The default generator, but for the size at which its ViT sees an image: a tree takes a third of the time."""
    skip_without_weights()
    return PseudoMaskGenerator.from_preset('default', long_side_px=280)


@pytest.fixture(scope='session')
def coins_tree():
    """The region tree of the coins that the default generator finds."""
    skip_without_weights()
    return PseudoMaskGenerator.from_preset('default')(data.coins())


@pytest.fixture(scope='module')
def _unformatted_configs():
    """Logs and work dirs hold configs as they are: yapf, which lays them out, takes longer than a small training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, style_config: (text, False))
        yield


@pytest.fixture
def _benchmarks_fork(monkeypatch):
    """Processes of the benchmarks are forks of one that has imported their packages."""

    def run(command, *, check, cwd, env, stdout):
        finished = warm_python.run(*command[1:], cwd=cwd, env=env)
        assert finished.returncode == 0, finished.stderr
        return finished

    monkeypatch.setattr(timing, 'subprocess', SimpleNamespace(run=run, PIPE=subprocess.PIPE))


def forbid_reading(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `chmod 000` does for everybody but root."""
    opened = os.open, io.open

    def refused(act, name, *arguments, **named):
        if not isinstance(name, int) and Path(os.fsdecode(name)) == path:
            raise PermissionError(errno.EACCES, 'Permission denied', str(name))
        return act(name, *arguments, **named)

    monkeypatch.setattr(os, 'open', partial(refused, opened[0]))
    monkeypatch.setattr(io, 'open', partial(refused, opened[1]))
