"""Files are whole or absent, whatever interrupts the writing."""

from __future__ import annotations

import errno
import json
import os
import time

import pytest

from unsam_mm.errors import StoreError
from unsam_mm.files import atomic_writer, read_json, remove_leftovers, write_json


def test_what_is_written_is_read(tmp_path):
    write_json(tmp_path / 'deep' / 'a.json', {'é': [1, 2]})
    assert read_json(tmp_path / 'deep' / 'a.json') == {'é': [1, 2]}


def test_an_error_while_writing_keeps_the_old_file(tmp_path):
    write_json(tmp_path / 'a.json', 'old')
    with pytest.raises(TypeError):
        write_json(tmp_path / 'a.json', object())
    assert [path.name for path in tmp_path.iterdir()] == ['a.json']
    assert json.loads((tmp_path / 'a.json').read_text()) == 'old'


def test_others_may_read_the_file(tmp_path):
    write_json(tmp_path / 'a.json', 1)
    (tmp_path / 'plain').touch()
    assert (tmp_path / 'a.json').stat().st_mode == (tmp_path / 'plain').stat().st_mode


@pytest.mark.parametrize(
    ('code', 'message'),
    [(errno.ENOSPC, 'disk is full'), (errno.EROFS, 'cannot be written'), (errno.EIO, 'cannot be written')],
)
def test_a_full_or_read_only_disk_is_explained(tmp_path, code, message):
    with pytest.raises(StoreError, match=rf'a\.json.*{message}'), atomic_writer(tmp_path / 'a.json'):
        raise OSError(code, 'reason')
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_folder_is_explained(tmp_path):
    (tmp_path / 'out').touch()
    with pytest.raises(StoreError, match='a file stands where a folder is needed'):
        write_json(tmp_path / 'out' / 'a.json', 1)


def test_leftovers_of_killed_processes_are_removed_but_not_those_of_living_ones(tmp_path):
    (tmp_path / 'sub').mkdir()
    for name, age_s in (('.unsam-old.part', 7200), ('.unsam-new.part', 1), ('.unsam-notes', 7200)):
        (tmp_path / 'sub' / name).touch()
        os.utime(tmp_path / 'sub' / name, (time.time() - age_s,) * 2)
    write_json(tmp_path / 'sub' / 'a.json', 1)
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in (tmp_path / 'sub').iterdir()) == ['.unsam-new.part', '.unsam-notes', 'a.json']


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StoreError, match='a.json: no such file'):
        read_json(tmp_path / 'a.json')
