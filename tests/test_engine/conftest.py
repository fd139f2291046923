"""A training of the shipped small model on real images, cut down until an iteration takes a tenth of a second."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip('mmdet')

from tests.test_engine.runs import Training, write_tiny_data


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `write_tiny_data`."""
    return write_tiny_data(tmp_path_factory.mktemp('tiny'))


@pytest.fixture(scope='session')
def training(tiny_data: Path) -> Training:
    """Starts trainings in `tiny_data`."""
    return Training(tiny_data)
