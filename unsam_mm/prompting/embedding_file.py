"""Reads and writes image embeddings as .npz files, atomically."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from unsam_mm.errors import DamagedError, StoreError, UnSAMError
from unsam_mm.files import atomic_writer
from unsam_mm.npz import UNREADABLE, read_npz, unreadable
from unsam_mm.prompting.engine import Engine

_FORMAT = 2


def save_arrays(path: str | Path, kind: str, arrays: dict[str, np.ndarray]) -> None:
    """Writes named arrays.

    Args:
        path: A path with the suffix .npz. An existing embedding is replaced; any other file is not.
        kind: Name of the engine that reads them.
        arrays: Arrays of any shape.

    Raises:
        StoreError: If the path has another suffix, is a file other than an embedding, or cannot be written.
    """
    path = _checked(path)
    with atomic_writer(path, binary=True) as file:
        if path.exists() and path.stat().st_size and not _is_embedding(path):
            raise StoreError(f'{path}: is a file without an embedding; choose another name')
        np.savez_compressed(file, _kind=np.array(kind), _format=np.int64(_FORMAT), **arrays)


def load_arrays(path: str | Path, kind: str) -> dict[str, np.ndarray]:
    """Reads arrays that `save_arrays` wrote.

    Raises:
        DamagedError: If the file is damaged.
        StoreError: If it is missing, cannot be read, or was written for another engine.
    """
    path = _checked(path)
    try:
        arrays = read_npz(path)
    except FileNotFoundError as error:
        raise StoreError(f'{path}: no such embedding; make it with save_embedding(path)') from error
    try:
        found, number = str(arrays.pop('_kind')), int(arrays.pop('_format'))
    except UNREADABLE as error:
        raise unreadable(path, 'not an embedding', error) from error
    if (found, number) != (kind, _FORMAT):
        raise StoreError(f'{path}: is for the engine {found!r} (format {number}), not for {kind!r} (format {_FORMAT})')
    return arrays


def load_embedding(path: str | Path, engine: Engine) -> None:
    """Reads a file with the embedding of an image into an engine, in place of `Engine.set_image`.

    Raises:
        StoreError: If the file is missing, cannot be read, or was written for another engine.
        DamagedError: If it is damaged, or does not match the weights.
    """
    arrays = load_arrays(path, engine.name)
    try:
        engine.set_embedding(arrays)
    except UnSAMError as error:
        raise DamagedError(f'{path}: {error}') from error


def _is_embedding(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return {'_kind.npy', '_format.npy'} <= set(file.namelist())
    except UNREADABLE:
        return False


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != '.npz':
        raise StoreError(f'{path}: the suffix of an embedding must be .npz; choose such a name')
    return path
