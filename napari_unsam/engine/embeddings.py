"""Embeddings of planes on disk, by a hash of pixels and settings, so that no plane is analysed twice.

An entry is named by its content, appears under that name as a whole and never changes. So any number of sessions may
share a folder without locks: two that save the same entry save the same thing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_unsam.engine.inference import ProgressCallback, part_of
from napari_unsam.model.label_boxes import LazyArray
from unsam_mm.errors import StoreError
from unsam_mm.files import read_json, remove_leftovers

ReadPlane = Callable[[], np.ndarray]
EmbedPlane = Callable[[np.ndarray, ProgressCallback], Mapping[str, np.ndarray]]

_SUFFIX = '.zarr'
_KIND = 'plane'
_TEMPORARY = '.unsam-'
_KEY = re.compile('[0-9a-f]{32}')  # of `plane_key`, and of windows
_LEFTOVER_AGE_S = 3600.0  # no entry takes longer to write
_BLOCK_BYTES = 4_000_000  # of a plane, hashed at once

logger = logging.getLogger(__name__)


def plane_key(pixels: LazyArray, settings: str) -> str:
    """The name of an embedding: a hash of the plane's values, shape and dtype, and of what looks at it.

    Args:
        pixels: The plane as the engine is given it; read a few megabytes at a time.
        settings: All else that the embedding depends on: engine, weights, version, tile side.

    Returns:
        32 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=16)
    dtype = np.dtype(pixels.dtype)
    digest.update(repr((settings, tuple(map(int, pixels.shape)), dtype.str)).encode())
    row_bytes = int(np.prod(pixels.shape[1:], dtype=np.int64)) * dtype.itemsize
    rows = max(_BLOCK_BYTES // max(row_bytes, 1), 1)
    for start in range(0, pixels.shape[0], rows):
        stop = min(start + rows, pixels.shape[0])
        digest.update(np.ascontiguousarray(pixels[start:stop]).view(np.uint8))
    return digest.hexdigest()


class EmbeddingStore:
    """Arrays by key, in zarr; the least recently used are deleted when space is short. Other files in its folders stay.

    Args:
        folder: Made at the first `save`.
        max_bytes: The most that all entries take together on disk, and the windows with them.
        windows: Folder of what `unsam_mm.prompting.TiledEngine` keeps of large planes, as files that it never removes.
    """

    def __init__(self, folder: Path, max_bytes: int, windows: Path | None = None) -> None:
        self.folder, self.max_bytes, self.windows = Path(folder), int(max_bytes), windows
        self._sizes: dict[Path, int] = {}  # entries never change, so each is measured once

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_dir()

    @property
    def size_bytes(self) -> int:
        """What all entries and windows take on disk, those of other sessions included."""
        return sum(self._size(path) for path in self._entries())

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays of an entry, marked as used now; None if there is none. A damaged entry is deleted."""
        from unsam_mm.prompting.embedding_file import load_arrays

        path = self._path(key)
        if not path.is_dir():
            return None
        try:
            arrays = load_arrays(path, _KIND)
        except StoreError as error:
            logger.warning('dropped a damaged embedding: %s', error)
            self._drop(path)
            return None
        _touch(path)
        return arrays

    def save(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Stores arrays under a key, unless they are there.

        Args:
            key: Of `plane_key`.
            arrays: Of any shape and number type, by name; scalars come back with shape (1,).

        Raises:
            StoreError: If the folder cannot be written or the disk is full.
        """
        from unsam_mm.prompting.embedding_file import save_arrays

        path = self._path(key)
        if path.is_dir():
            _touch(path)
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=_TEMPORARY) as folder:
                finished = Path(folder, f'new{_SUFFIX}')
                save_arrays(finished, _KIND, dict(arrays))
                if not _moved(finished, path):
                    return
        except OSError as error:
            raise StoreError(f'{path}: cannot be written ({error.strerror or error}); choose another place') from error
        self.trim()

    def used(self, window: Path) -> None:
        """Notes that a file of `windows` was read or written now."""
        _touch(window)
        if window not in self._sizes:
            self.trim()

    def clear(self) -> None:
        """Removes all entries and windows."""
        for path in self._entries():
            self._drop(path)

    def trim(self) -> None:
        """Deletes entries, the least recently used first, until the others fit; also leftovers of killed sessions."""
        entries = sorted((_used_at(path), path) for path in self._entries())
        excess = sum(self._size(path) for _, path in entries) - self.max_bytes
        for _, path in entries:
            if excess <= 0:
                break
            excess -= self._size(path)
            self._drop(path)
        for path in self.folder.glob(f'{_TEMPORARY}*/'):
            if time.time() - _used_at(path) > _LEFTOVER_AGE_S:
                shutil.rmtree(path, ignore_errors=True)
        if self.windows is not None:
            remove_leftovers(self.windows)

    def _path(self, key: str) -> Path:
        return self.folder / f'{key}{_SUFFIX}'

    def _entries(self) -> list[Path]:
        windows = [] if self.windows is None else self.windows.glob('*/*.npz')
        return [
            *(path for path in self.folder.glob(f'*{_SUFFIX}') if self._is_entry(path)),
            *(path for path in windows if path in self._sizes or _KEY.fullmatch(path.stem)),
        ]

    def _is_entry(self, path: Path) -> bool:
        if path in self._sizes or _KEY.fullmatch(path.stem):
            return True
        try:
            return read_json(path / 'zarr.json')['attributes']['kind'] == _KIND
        except (StoreError, KeyError, TypeError):
            return False

    def _size(self, path: Path) -> int:
        if path not in self._sizes:
            self._sizes[path] = _bytes_below(path)
        return self._sizes[path]

    def _drop(self, path: Path) -> None:
        """Takes an entry away at once, so that no other session finds half of it."""
        self._sizes.pop(path, None)
        try:
            if path.suffix != _SUFFIX:
                path.unlink(missing_ok=True)
                return
            folder = tempfile.mkdtemp(dir=self.folder, prefix=_TEMPORARY)
            _moved(path, Path(folder, 'old'))
        except OSError as error:
            logger.warning('an embedding could not be removed: %s', error)
            return
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class StackReport:
    """What `embed_stack` did.

    Attributes:
        keys: Of the planes, in their order; equal planes have equal keys. Fewer than there are planes if the store was
            full before the last one.
        made: How many were made now.
        found: How many were there before.
        kept: How many of the planes the store holds now.
    """

    keys: tuple[str, ...]
    made: int
    found: int
    kept: int


def embed_stack(
    reads: Sequence[ReadPlane],
    embed: EmbedPlane,
    settings: str,
    store: EmbeddingStore,
    progress: ProgressCallback = lambda fraction, text: None,
    kept: Callable[[int], None] = lambda number: None,
) -> StackReport:
    """Analyses all planes of a stack that the store lacks.

    Each plane is kept as soon as it is made, so a run that is cancelled or killed goes on where it stopped. Where the store
    is too small for the stack, the run ends once a plane would push the first ones out.

    Args:
        reads: Each gives the pixels of one plane; one plane is held at a time.
        embed: Makes the arrays of one plane.
        settings: See `plane_key`.
        store: Where the embeddings are kept.
        progress: Told the fraction done and what is being done; cancels by raising.
        kept: Told the number of each plane, counted from 0, once the store holds it.

    Raises:
        StoreError: If an embedding cannot be kept: the planes after it would be made in vain.
    """
    keys, found = [], 0
    for number, read in enumerate(reads):
        inner = part_of(progress, number, len(reads), f'slice {number + 1} of {len(reads)}: ')
        inner(0.0, 'reading')
        pixels = read()
        key = plane_key(pixels, settings)
        keys.append(key)
        # Loading, not looking: it finds damage, and counts as a use, so that no plane pushes its neighbours out.
        if store.load(key) is not None:
            found += 1
        else:
            store.save(key, embed(pixels, inner))
        if keys[0] not in store:
            break
        kept(number)
    else:
        progress(1.0, 'all slices are analysed')
    return StackReport(tuple(keys), len(keys) - found, found, sum(key in store for key in keys))


def _moved(source: Path, target: Path) -> bool:
    """Renames a folder; returns False if another process was first: the target is there, or the source was removed."""
    try:
        source.replace(target)
    except OSError:
        if target.is_dir() or not source.exists():
            return False
        raise
    return True


def _touch(path: Path) -> None:
    with suppress(OSError):  # gone meanwhile, or a folder that nobody may write: then it is not trimmed either
        os.utime(path)


def _used_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _bytes_below(path: Path) -> int:
    try:
        files = path.rglob('*') if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files if file.is_file())
    except OSError:
        return 0  # dropped by another session meanwhile
