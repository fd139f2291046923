"""What several test modules share: real images, the default generator, and trees of random shape."""

from __future__ import annotations

import errno
import io
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from skimage import data

from unsam_mm import PseudoMaskGenerator, weights

settings.register_profile('unsam', deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('unsam')


def skip_without_weights():
    """Skips a test whose weights were not fetched before; tests themselves use no network."""
    if weights.cached_path('dinov2_vits14') is None:
        pytest.skip('the weights are not in the cache: python -m unsam_mm weights fetch')


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
    """The default generator."""
    skip_without_weights()
    return PseudoMaskGenerator.from_preset('default')


@pytest.fixture(scope='session')
def coins_tree(generator, coins):
    """The region tree of the coins."""
    return generator(coins)


def forbid_reading(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `chmod 000` does for everybody but root."""
    opened = os.open, io.open

    def refused(act, name, *arguments, **named):
        if not isinstance(name, int) and Path(os.fsdecode(name)) == path:
            raise PermissionError(errno.EACCES, 'Permission denied', str(name))
        return act(name, *arguments, **named)

    monkeypatch.setattr(os, 'open', partial(refused, opened[0]))
    monkeypatch.setattr(io, 'open', partial(refused, opened[1]))
