"""Bad input costs one clear line that names the file and the remedy, never a traceback or finished work."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.conftest import skip_without_weights
from unsam_mm import files
from unsam_mm.__main__ import main
from unsam_mm.folders.store import PseudoMaskStore


def save(path, pixels):
    tifffile.imwrite(path, pixels) if path.suffix == '.tif' else Image.fromarray(pixels).save(path)


@pytest.fixture
def images(tmp_path, coffee):
    """A folder with one good image."""
    skip_without_weights()
    (tmp_path / 'images').mkdir()
    save(tmp_path / 'images' / 'good.png', coffee[:90, :120])
    return tmp_path / 'images'


@pytest.mark.parametrize(
    ('name', 'make', 'message'),
    [
        pytest.param('a.jpg', lambda path: path.write_bytes(b'GIF8?'), 'cannot be read as an image', id='broken'),
        pytest.param('a.png', lambda path: path.touch(), 'the file is empty', id='empty'),
        pytest.param('a.png', lambda path: save(path, np.ones((1, 1), np.uint8)), 'at least 8 px', id='one pixel'),
        pytest.param('a.png', lambda path: save(path, np.full((40, 30), 9, np.uint8)), 'value 9', id='constant'),
        pytest.param('a.tif', lambda path: save(path, np.full((40, 30), np.nan)), '1200 values are NaN', id='NaN'),
        pytest.param('a.tif', lambda path: save(path, np.zeros((7, 40, 30))), 'one plane of a stack', id='stack'),
    ],
)
def test_a_bad_image_is_reported_and_the_others_are_done(images, tmp_path, capsys, name, make, message):
    make(images / name)
    assert main(['generate', str(images), str(tmp_path / 'out')]) == 0
    printed = capsys.readouterr()
    reported = [line for line in printed.err.splitlines() if line.startswith('skipped: ')]
    assert len(reported) == 1
    assert f'{images / name}: ' in reported[0]
    assert message in reported[0]
    assert '1 images done now, 0 before, 1 failed' in printed.out
    assert PseudoMaskStore(tmp_path / 'out').names() == ['good.png']

    # The bad image alone: nothing useful can be done.
    (images / 'good.png').unlink()
    assert main(['generate', str(images), str(tmp_path / 'other')]) == 1


@pytest.mark.parametrize(
    ('code', 'message'), [(errno.ENOSPC, 'the disk is full'), (errno.EROFS, 'the folder cannot be written')]
)
def test_a_disk_that_fails_midway_ends_the_run_and_keeps_what_is_done(
    images, tmp_path, capsys, monkeypatch, coffee, code, message
):
    save(images / 'second.png', coffee[90:180, :120])
    calls = []

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) > 2:  # the description of the folder and the first image go through
            raise OSError(code, 'simulated')

    monkeypatch.setattr(files.os, 'fsync', failing)
    command = ['generate', str(images), str(tmp_path / 'out')]
    assert main(command) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
    assert len(lines) == 1
    assert 'second.png.json' in lines[0]
    assert message in lines[0]

    monkeypatch.undo()
    assert main(command) == 0
    assert '1 images done now, 1 before' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        pytest.param('{"images": [', 'not a JSON file', id='cut short'),
        pytest.param('{"a": 1}', 'expected a COCO file', id='another structure'),
        pytest.param('{"images": [], "annotations": []}', 'is empty', id='no images'),
    ],
)
def test_a_bad_annotation_file_is_named(tmp_path, capsys, content, message):
    (tmp_path / 'truth.json').write_text(content)
    assert main(['evaluate', str(tmp_path), str(tmp_path / 'truth.json')]) == 1
    line = capsys.readouterr().err.strip()
    assert line.startswith(f'error: {tmp_path / "truth.json"}')
    assert message in line
    assert '\n' not in line
