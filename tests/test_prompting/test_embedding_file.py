"""Embeddings on disk: files are complete, and no other file is replaced."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from unsam_mm.errors import DamagedError, StoreError
from unsam_mm.prompting.embedding_file import load_arrays, save_arrays


def arrays(value: int) -> dict[str, np.ndarray]:
    return {'labels': np.full((20, 30), value, np.int32), 'heights': np.arange(value, dtype=np.float32)}


def value_in(path: Path) -> int:
    found = load_arrays(path, 'tree')
    assert (found['labels'] == len(found['heights'])).all()
    return int(found['labels'][0, 0])


def test_a_new_embedding_replaces_an_old_one(tmp_path):
    (tmp_path / 'a.npz').touch()  # an empty file may be replaced, too
    for value in (3, 4):
        save_arrays(tmp_path / 'a.npz', 'tree', arrays(value))
    assert value_in(tmp_path / 'a.npz') == 4
    assert [path.name for path in tmp_path.iterdir()] == ['a.npz']


def test_a_file_that_claims_to_need_a_later_version_of_zip_is_never_replaced(tmp_path):
    save_arrays(tmp_path / 'a.npz', 'tree', arrays(3))
    damaged = bytearray((tmp_path / 'a.npz').read_bytes())
    damaged[damaged.index(b'PK\1\2') + 6] = 173  # the version that is needed, in the first entry of the list of files
    (tmp_path / 'a.npz').write_bytes(damaged)
    with pytest.raises(StoreError, match=r'a\.npz: is a file without an embedding'):
        save_arrays(tmp_path / 'a.npz', 'tree', arrays(4))
    assert (tmp_path / 'a.npz').read_bytes() == damaged


def test_a_file_of_the_user_is_never_replaced(tmp_path):
    np.savez(tmp_path / 'a.npz', spectra=np.ones(3))
    with pytest.raises(StoreError, match=r'a\.npz: is a file without an embedding'):
        save_arrays(tmp_path / 'a.npz', 'tree', arrays(3))
    assert np.load(tmp_path / 'a.npz')['spectra'].tolist() == [1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ['a.npz']


def test_a_folder_of_that_name_is_refused(tmp_path):
    (tmp_path / 'a.npz').mkdir()
    with pytest.raises(StoreError, match=r'a\.npz: is a folder'):
        save_arrays(tmp_path / 'a.npz', 'tree', arrays(3))
    with pytest.raises(StoreError, match=r'a\.npz: cannot be read \(Is a directory\)'):
        load_arrays(tmp_path / 'a.npz', 'tree')
    assert (tmp_path / 'a.npz').is_dir()


def test_an_embedding_that_cannot_be_opened_is_not_called_damaged(tmp_path, monkeypatch):
    with pytest.raises(StoreError, match='no such embedding'):
        load_arrays(tmp_path / 'a.npz', 'tree')
    with pytest.raises(StoreError, match='cannot be read .*too long'):
        load_arrays(tmp_path / ('x' * 300 + '.npz'), 'tree')
    with pytest.raises(StoreError, match='too long'):
        save_arrays(tmp_path / ('x' * 300 + '.npz'), 'tree', arrays(3))
    path = tmp_path / 'a.npz'
    save_arrays(path, 'tree', arrays(3))

    def refused(*arguments, **named):
        raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(np, 'load', refused)
    with pytest.raises(StoreError, match='cannot be read .*Permission denied') as caught:
        load_arrays(path, 'tree')
    assert not isinstance(caught.value, DamagedError)


def test_the_target_of_a_link_is_replaced(tmp_path):
    save_arrays(tmp_path / 'there' / 'a.npz', 'tree', arrays(3))
    (tmp_path / 'link.npz').symlink_to(tmp_path / 'there' / 'a.npz')
    save_arrays(tmp_path / 'link.npz', 'tree', arrays(4))
    assert (tmp_path / 'link.npz').is_symlink()
    assert value_in(tmp_path / 'there' / 'a.npz') == 4


@pytest.mark.parametrize('suffix', ['.zarr', '.png', ''])
def test_other_suffixes_are_refused(tmp_path, suffix):
    with pytest.raises(StoreError, match='must be .npz'):
        save_arrays(tmp_path / f'a{suffix}', 'tree', arrays(3))
