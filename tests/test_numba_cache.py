"""Compiled functions need a folder; one is found where neither the package's nor the user's can be written."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from unsam_mm import _numba_cache

READ_ONLY = """
import os
access = os.access
os.access = lambda path, mode: 'unsam_mm' not in str(path) and access(path, mode)
import unsam_mm.masks.hierarchy
print(os.environ['NUMBA_CACHE_DIR'])
"""


def test_compiled_modules_are_imported_from_a_read_only_package_without_a_home(tmp_path):
    """numba is told not to look into the package's own folder, which the tests can write."""
    environment = {key: value for key, value in os.environ.items() if key not in ('NUMBA_CACHE_DIR', 'XDG_CACHE_HOME')}
    environment |= {
        'HOME': '/dev/null/nohome',
        'TMPDIR': str(tmp_path),
        'NUMBA_CACHE_LOCATOR_CLASSES': 'UserProvidedCacheLocator,UserWideCacheLocator',
    }
    command = [sys.executable, '-c', READ_ONLY]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    folder = Path(finished.stdout.strip())
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder for temporary files."""
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    return tmp_path


def test_the_folder_is_the_same_in_every_process(temporary):
    assert _numba_cache._temporary_folder() == _numba_cache._temporary_folder()


@pytest.mark.parametrize('trap', ['writable by all', 'a link', 'a file', "someone else's"])
def test_a_folder_that_others_may_have_filled_is_never_used(temporary, monkeypatch, trap):
    """What lies in it is executed."""
    expected = temporary / f'unsam-numba-{os.getuid()}'
    if trap == 'a link':
        (temporary / 'elsewhere').mkdir(mode=0o700)
        expected.symlink_to(temporary / 'elsewhere')
    elif trap == 'a file':
        expected.touch()
    else:
        expected.mkdir()
        expected.chmod(0o777 if trap == 'writable by all' else 0o700)
    if trap == "someone else's":
        lstat = Path.lstat
        monkeypatch.setattr(Path, 'lstat', lambda path: os.stat_result((*lstat(path)[:4], 4711, *lstat(path)[5:])))
    found = Path(_numba_cache._temporary_folder())
    assert found != expected
    assert stat.S_IMODE(found.stat().st_mode) == 0o700


def test_nothing_is_named_where_the_package_can_be_written(monkeypatch):
    monkeypatch.delenv('NUMBA_CACHE_DIR', raising=False)
    _numba_cache.ensure_cache_folder()
    assert 'NUMBA_CACHE_DIR' not in os.environ
