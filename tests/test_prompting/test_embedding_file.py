"""Embeddings on disk: the old one or the new one, whole, and never anything else in their place."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unsam_mm.errors import DamagedError, StoreError
from unsam_mm.prompting.embedding_file import load_arrays, save_arrays

KILLED = """
import os, pathlib, shutil, sys
import numpy as np
from unsam_mm import files
from unsam_mm.prompting import embedding_file

steps = int(sys.argv[2])

def step(act):
    def killed(path, *arguments, **named):
        global steps
        if not path.exists():  # no step
            return act(path, *arguments, **named)
        if steps == 0:
            os._exit(9)
        steps -= 1
        return act(path, *arguments, **named)
    return killed

def replace_folder(*arguments):
    pathlib.Path.rename, shutil.rmtree = step(pathlib.Path.rename), step(shutil.rmtree)
    files.replace_folder(*arguments)

embedding_file.replace_folder = replace_folder
arrays = {'labels': np.full((20, 30), 4, np.int32), 'heights': np.arange(4, dtype=np.float32)}
embedding_file.save_arrays(sys.argv[1], 'tree', arrays)
"""

zarr = pytest.importorskip('zarr')

SUFFIXES = pytest.mark.parametrize('suffix', ['.npz', '.zarr'])


def arrays(value: int) -> dict[str, np.ndarray]:
    return {'labels': np.full((20, 30), value, np.int32), 'heights': np.arange(value, dtype=np.float32)}


def value_in(path: Path) -> int:
    found = load_arrays(path, 'tree')
    assert (found['labels'] == len(found['heights'])).all()
    return int(found['labels'][0, 0])


@SUFFIXES
def test_a_new_embedding_takes_the_place_of_an_old_one(tmp_path, suffix):
    for value in (3, 4):
        save_arrays(tmp_path / f'a{suffix}', 'tree', arrays(value))
    assert value_in(tmp_path / f'a{suffix}') == 4
    assert [path.name for path in tmp_path.iterdir()] == [f'a{suffix}']


def image_group(path: Path) -> None:
    """An OME-Zarr image, as a microscope's software writes it."""
    group = zarr.create_group(path, attributes={'ome': {'version': '0.5', 'multiscales': []}})
    group.create_array('0', data=np.ones((4, 5), np.uint16))


def marked_group(path: Path) -> None:
    """A group that happens to have our attributes, with groups of its own in it."""
    group = zarr.create_group(path, attributes={'kind': 'plate', 'format': 2})
    group.create_group('A1').create_array('0', data=np.ones((4, 5), np.uint16))


def notes(path: Path) -> None:
    path.mkdir()
    (path / 'notes.txt').write_text('mine')


def mine_beside(path: Path) -> None:
    """An embedding into which the user put a file."""
    save_arrays(path, 'tree', arrays(3))
    (path / 'notes.txt').write_text('mine')


@pytest.mark.parametrize('make', [image_group, marked_group, notes, mine_beside])
def test_a_folder_of_the_user_s_is_never_removed(tmp_path, make):
    make(tmp_path / 'slide.zarr')
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob('*')}
    with pytest.raises(StoreError, match=r'slide\.zarr: is a folder that holds no embedding'):
        save_arrays(tmp_path / 'slide.zarr', 'tree', arrays(3))
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob('*')} == before


def test_a_folder_in_which_nothing_is_can_become_an_embedding(tmp_path):
    (tmp_path / 'a.zarr').mkdir()
    save_arrays(tmp_path / 'a.zarr', 'tree', arrays(3))
    assert value_in(tmp_path / 'a.zarr') == 3


def test_a_file_that_claims_to_need_a_later_version_of_zip_is_never_replaced(tmp_path):
    save_arrays(tmp_path / 'a.npz', 'tree', arrays(3))
    damaged = bytearray((tmp_path / 'a.npz').read_bytes())
    damaged[damaged.index(b'PK\1\2') + 6] = 173  # the version that is needed, in the first entry of the list of files
    (tmp_path / 'a.npz').write_bytes(damaged)
    with pytest.raises(StoreError, match=r'a\.npz: is a file that holds no embedding'):
        save_arrays(tmp_path / 'a.npz', 'tree', arrays(4))
    assert (tmp_path / 'a.npz').read_bytes() == damaged


def test_a_file_of_the_user_s_is_never_replaced(tmp_path):
    np.savez(tmp_path / 'a.npz', spectra=np.ones(3))
    with pytest.raises(StoreError, match=r'a\.npz: is a file that holds no embedding'):
        save_arrays(tmp_path / 'a.npz', 'tree', arrays(3))
    assert np.load(tmp_path / 'a.npz')['spectra'].tolist() == [1, 1, 1]


def test_an_embedding_of_an_earlier_version_is_replaced(tmp_path):
    """Format 1 had no checksums."""
    save_arrays(tmp_path / 'a.zarr', 'tree', arrays(3))
    noted = json.loads((tmp_path / 'a.zarr' / 'zarr.json').read_text())
    noted['attributes'] = {'kind': 'tree', 'format': 1}
    (tmp_path / 'a.zarr' / 'zarr.json').write_text(json.dumps(noted))
    save_arrays(tmp_path / 'a.zarr', 'tree', arrays(4))
    assert value_in(tmp_path / 'a.zarr') == 4


@pytest.mark.parametrize(('name', 'message'), [('a.npz', 'is a folder, but an'), ('a.zarr', 'is a file, but a')])
@pytest.mark.parametrize(
    'act', [lambda path: save_arrays(path, 'tree', arrays(3)), lambda path: load_arrays(path, 'tree')]
)
def test_a_folder_where_a_file_is_needed_and_the_other_way_round(tmp_path, name, message, act):
    (tmp_path / name).mkdir() if name == 'a.npz' else (tmp_path / name).write_text('mine')
    with pytest.raises(StoreError, match=message):
        act(tmp_path / name)
    assert (tmp_path / name).exists()


@pytest.mark.parametrize(('steps', 'expected'), [(0, 3), (1, 3), (2, 3), (3, 4)])
def test_a_zarr_embedding_whose_replacement_is_killed_is_the_old_one_or_the_new(tmp_path, steps, expected):
    """The steps are: the new one beside, the old one aside, the new one in place, the old one removed."""
    path = tmp_path / 'a.zarr'
    save_arrays(path, 'tree', arrays(3))
    finished = subprocess.run([sys.executable, '-c', KILLED, str(path), str(steps)], check=False)
    assert finished.returncode == 9
    assert value_in(path) == expected
    save_arrays(path, 'tree', arrays(5))
    assert value_in(path) == 5
    assert not [*tmp_path.glob('.unsam-*.old'), *tmp_path.glob('.unsam-*.new')]


def test_an_embedding_that_was_removed_after_a_kill_stays_removed(tmp_path, monkeypatch):
    path, remove = tmp_path / 'a.zarr', shutil.rmtree
    save_arrays(path, 'tree', arrays(3))

    def killed(folder, **named):
        if folder.suffix == '.old' and folder.exists():
            raise SystemExit
        remove(folder, **named)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, 'rmtree', killed)
        with pytest.raises(SystemExit):
            save_arrays(path, 'tree', arrays(4))
    assert value_in(path) == 4
    remove(path)
    with pytest.raises(StoreError, match='no such embedding'):
        load_arrays(path, 'tree')


def test_a_zarr_embedding_that_is_read_while_it_is_replaced_is_replaced(tmp_path, monkeypatch):
    path, rename, found = tmp_path / 'a.zarr', Path.rename, []

    def read_after(*arguments):
        rename(*arguments)
        found.append(value_in(path))

    save_arrays(path, 'tree', arrays(3))
    monkeypatch.setattr(Path, 'rename', read_after)
    save_arrays(path, 'tree', arrays(4))
    assert found == [3, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ['a.zarr']


def test_what_a_file_manager_puts_into_a_zarr_embedding_does_not_stand_in_the_way_of_the_next(tmp_path):
    save_arrays(tmp_path / 'a.zarr', 'tree', arrays(3))
    for name in ('.DS_Store', 'Thumbs.db', 'desktop.ini'):
        (tmp_path / 'a.zarr' / name).touch()
    save_arrays(tmp_path / 'a.zarr', 'tree', arrays(4))
    assert value_in(tmp_path / 'a.zarr') == 4


@SUFFIXES
def test_an_embedding_that_the_system_does_not_give_is_not_called_damaged(tmp_path, suffix, monkeypatch):
    (tmp_path / 'notes').touch()
    with pytest.raises(StoreError, match='no such embedding'):
        load_arrays(tmp_path / 'notes' / f'a{suffix}', 'tree')
    with pytest.raises(StoreError, match='cannot be read .*too long'):
        load_arrays(tmp_path / ('x' * 300 + suffix), 'tree')
    with pytest.raises(StoreError, match='too long'):
        save_arrays(tmp_path / ('x' * 300 + suffix), 'tree', arrays(3))
    path = tmp_path / f'a{suffix}'
    save_arrays(path, 'tree', arrays(3))

    def refused(*arguments, **named):
        raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(np if suffix == '.npz' else zarr, 'load' if suffix == '.npz' else 'open_group', refused)
    with pytest.raises(StoreError, match='cannot be read .*Permission denied') as caught:
        load_arrays(path, 'tree')
    assert not isinstance(caught.value, DamagedError)


def test_a_link_to_an_embedding_goes_on_leading_to_it(tmp_path):
    save_arrays(tmp_path / 'there' / 'a.zarr', 'tree', arrays(3))
    (tmp_path / 'link.zarr').symlink_to(tmp_path / 'there' / 'a.zarr')
    save_arrays(tmp_path / 'link.zarr', 'tree', arrays(4))
    assert (tmp_path / 'link.zarr').is_symlink()
    assert value_in(tmp_path / 'there' / 'a.zarr') == 4
