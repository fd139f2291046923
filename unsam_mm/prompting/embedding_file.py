"""Reads and writes image embeddings as an npz file or a zarr folder, atomically."""

from __future__ import annotations

import os
import shutil
import zipfile
import zlib
from pathlib import Path

import numpy as np

from unsam_mm.errors import DamagedError, StoreError
from unsam_mm.files import (
    SYSTEM_FILES,
    atomic_writer,
    read_json,
    readable_folder,
    replace_folder,
    temporary_name,
)
from unsam_mm.npz import UNREADABLE, read_npz, unreadable

_FORMAT = 2
_SUFFIXES = ('.npz', '.zarr')


def save_arrays(path: str | Path, kind: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes named arrays.

    Args:
        path: A path with the suffix .npz or .zarr, which decides the format; zarr needs the package zarr.
        kind: Name of the engine that reads them.
        arrays: Arrays of any shape.

    Raises:
        StoreError: If the suffix is another, zarr is not installed, or the path cannot be written.
    """
    path = _checked(path)
    finished = temporary_name(path.parent)
    try:
        if path.suffix == '.npz':
            _check_replaceable(path)
            with atomic_writer(path, binary=True) as file:
                np.savez_compressed(file, _kind=np.array(kind), _format=np.int64(_FORMAT), **arrays)
            return
        zarr = _zarr(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        group = zarr.open_group(finished, mode='w')
        for name, values in arrays.items():
            group.create_array(name, data=np.ascontiguousarray(values))
        group.attrs.update({'kind': kind, 'format': _FORMAT, 'crc32': _checksums(arrays)})
        replace_folder(finished, path, _check_replaceable)
    except OSError as error:
        raise StoreError(f'{path}: cannot be written ({error.strerror or error}); choose another path') from error
    finally:
        shutil.rmtree(finished, ignore_errors=True)


def load_arrays(path: str | Path, kind: str) -> dict[str, np.ndarray]:
    """Reads arrays that `save_arrays` wrote.

    Raises:
        DamagedError: If the file or folder is damaged.
        StoreError: If it is missing, cannot be read, or is of another kind.
    """
    path = _checked(path)
    try:
        place = readable_folder(path) if path.suffix == '.zarr' else path
        if not place.exists():
            raise StoreError(f'{path}: no such embedding; make it with save_embedding(path)')
        _check_form(place)
        arrays, found, number = _read_npz(place) if path.suffix == '.npz' else _read_zarr(place)
    except StoreError:
        raise
    except UNREADABLE as error:
        raise unreadable(path, 'not an embedding', error) from error
    if (found, number) != (kind, _FORMAT):
        raise StoreError(f'{path}: is for the engine {found!r} (format {number}), not for {kind!r} (format {_FORMAT})')
    return arrays


def _read_npz(path: Path) -> tuple[dict[str, np.ndarray], str, int]:
    arrays = read_npz(path)
    return arrays, str(arrays.pop('_kind')), int(arrays.pop('_format'))


def _read_zarr(path: Path) -> tuple[dict[str, np.ndarray], str, int]:
    group = _zarr(path).open_group(path, mode='r')
    arrays = {name: values[...] for name, values in group.arrays()}
    # Missing chunks read as zeros, hence the checksums. Folders of earlier versions have none.
    if group.attrs.get('crc32', expected := _checksums(arrays)) != expected:
        raise DamagedError(f'{path}: chunks are missing or were changed; remove the folder and make it again')
    return arrays, group.attrs['kind'], int(group.attrs['format'])


def _checksums(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    return {name: zlib.crc32(np.ascontiguousarray(values).tobytes()) for name, values in arrays.items()}


def _check_form(path: Path) -> None:
    """Raises `StoreError` if the path is a folder but the suffix that of a file, or the other way round."""
    if path.suffix == '.npz' and path.is_dir():
        raise StoreError(f'{path}: is a folder, but an .npz embedding is a file; choose another name')
    if path.suffix == '.zarr' and path.exists() and not path.is_dir():
        raise StoreError(f'{path}: is a file, but a .zarr embedding is a folder; choose another name')


def _check_replaceable(path: Path) -> None:
    """Raises `StoreError` if the path exists and is no embedding, so that no foreign file is overwritten."""
    _check_form(path)
    if path.is_dir() and any(path.iterdir()) and not _is_our_folder(path):
        raise StoreError(f'{path}: is a folder that holds no embedding; choose another name')
    if path.is_file() and path.stat().st_size and not _is_our_file(path):
        raise StoreError(f'{path}: is a file that holds no embedding; choose another name')


def _is_our_file(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return {'_kind.npy', '_format.npy'} <= set(file.namelist())
    except UNREADABLE:
        return False


def _is_our_folder(path: Path) -> bool:
    """Whether a folder is a zarr group with our attributes that holds arrays only."""
    try:
        noted = read_json(path / 'zarr.json')
        is_marked = isinstance(noted['attributes']['kind'], str) and noted['attributes']['format'] in range(
            1, _FORMAT + 1
        )
        return is_marked and all(
            entry.name in ('zarr.json', *SYSTEM_FILES) or _is_array(entry) for entry in path.iterdir()
        )
    except (StoreError, KeyError, TypeError):
        return False


def _is_array(folder: Path) -> bool:
    try:
        return read_json(folder / 'zarr.json')['node_type'] == 'array'
    except (StoreError, KeyError, TypeError):
        return False


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise StoreError(f'{path}: the suffix of an embedding must be {" or ".join(_SUFFIXES)}; choose such a name')
    is_link = os.path.islink(path)  # noqa: PTH114 - false for a name that the file system does not accept
    return Path(os.path.realpath(path)) if is_link else path  # the target is replaced, not the link


def _zarr(path: Path):
    try:
        import zarr
    except ImportError as error:
        raise StoreError(f"{path}: zarr is not installed; pip install 'zarr>=3', or choose a name in .npz") from error
    return zarr
