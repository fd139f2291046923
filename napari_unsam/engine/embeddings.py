"""Embeddings of planes on disk, named by a hash of pixels and settings, so that no plane is analysed twice.

An entry is one file. It is written atomically and never changes, so several sessions can share a folder without locks:
two sessions that save the same entry write the same file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_unsam.engine.inference import ProgressCallback, part_of
from napari_unsam.model.label_boxes import LazyArray
from unsam_mm.errors import StoreError
from unsam_mm.files import remove_leftovers

_KIND = 'plane'
_SUFFIX = f'.{_KIND}.npz'
_TILE_NAME = re.compile('[0-9a-f]{32}')
_BLOCK_BYTES = 4_000_000  # read and hashed at a time

logger = logging.getLogger(__name__)


def plane_key(pixels: LazyArray, settings: str) -> str:
    """The key of an embedding: a hash of the values, shape and dtype of the plane, and of the settings.

    Args:
        pixels: The plane as it is passed to the engine; it is read a few megabytes at a time.
        settings: Everything else that the embedding depends on: the engine, its settings, the version.

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
    """Arrays in files, by key. Above a maximum size, the least recently used ones are deleted; other files are kept.

    Args:
        folder: Folder of the entries; created by the first `save`.
        max_bytes: Maximum size of all entries and tiles on disk.
        tiles: Folder of the tiles of large planes, which `unsam_mm.prompting.TiledEngine` writes and never removes.
    """

    def __init__(self, folder: Path, max_bytes: int, tiles: Path | None = None) -> None:
        self.folder, self.max_bytes, self.tiles = Path(folder), int(max_bytes), tiles
        self._tiles_used: set[Path] = set()

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    @property
    def size_bytes(self) -> int:
        """The size of all entries and tiles on disk, including those of other sessions."""
        return sum(size for _, size, _ in self._entries())

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays of an entry, which is marked as used now; None if there is none. A damaged entry is deleted."""
        from unsam_mm.prompting.embedding_file import load_arrays

        path = self._path(key)
        if not path.is_file():
            return None
        try:
            arrays = load_arrays(path, _KIND)
        except StoreError as error:
            logger.warning('dropped a damaged embedding: %s', error)
            _delete(path)
            return None
        _touch(path)
        return arrays

    def save(self, key: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Stores arrays under a key, unless the key exists.

        Args:
            key: See `plane_key`.
            arrays: Arrays of any shape and numeric dtype, by name; `load` returns scalars with shape (1,).

        Raises:
            StoreError: If the folder cannot be written or the disk is full.
        """
        from unsam_mm.prompting.embedding_file import save_arrays

        path = self._path(key)
        if path.is_file():
            _touch(path)
            return
        save_arrays(path, _KIND, dict(arrays))
        self.trim()

    def mark_used(self, tile: Path) -> None:
        """Marks a file in `tiles` as used now; the first use in this session also calls `trim`."""
        _touch(tile)
        if tile not in self._tiles_used:
            self._tiles_used.add(tile)
            self.trim()

    def trim(self) -> None:
        """Deletes the least recently used files until the rest fits, and temporary files of killed sessions."""
        entries = sorted(self._entries())
        excess = sum(size for _, size, _ in entries) - self.max_bytes
        for _, size, path in entries:
            if excess <= 0:
                break
            excess -= size
            _delete(path)
        for folder in (self.folder, self.tiles):
            if folder is not None:
                remove_leftovers(folder)

    def _path(self, key: str) -> Path:
        return self.folder / f'{key}{_SUFFIX}'

    def _entries(self) -> list[tuple[float, int, Path]]:
        """The time of the last use, the size in bytes and the file of each entry and tile."""
        tiles = [] if self.tiles is None else self.tiles.glob('*/*.npz')
        entries = []
        for path in [
            *self.folder.glob(f'*{_SUFFIX}'),
            *(path for path in tiles if _TILE_NAME.fullmatch(path.stem)),
        ]:
            with suppress(OSError):  # deleted by another session
                status = path.stat()
                entries.append((status.st_mtime, status.st_size, path))
        return entries


@dataclass(frozen=True)
class StackReport:
    """The result of `embed_stack`.

    Attributes:
        keys: Keys of the planes, in their order; equal planes have equal keys. If the store became full, the last ones
            are missing.
        analysed: Number of planes analysed now; the others were stored before.
        stored: Number of planes that are in the store now.
    """

    keys: tuple[str, ...]
    analysed: int
    stored: int


def embed_stack(
    reads: Sequence[Callable[[], np.ndarray]],
    embed: Callable[[np.ndarray, ProgressCallback], Mapping[str, np.ndarray]],
    settings: str,
    store: EmbeddingStore,
    progress: ProgressCallback = lambda fraction, text: None,
    on_stored: Callable[[int], None] = lambda number: None,
) -> StackReport:
    """Analyses and stores all planes of a stack that are not stored yet.

    Each plane is stored at once, so a run that was cancelled or killed continues where it stopped. If the store is too small
    for the stack, the run ends once the first plane has been deleted.

    Args:
        reads: Functions that return the pixels of one plane each; one plane is in memory at a time.
        embed: Analyses the pixels of one plane and returns its arrays.
        settings: See `plane_key`.
        store: The store.
        progress: Called with the progress; an exception raised inside stops the work.
        on_stored: Called with the index of each plane once it is stored.

    Raises:
        StoreError: If an embedding cannot be stored.
    """
    keys, n_analysed = [], 0
    for number, read in enumerate(reads):
        inner = part_of(progress, number, len(reads), f'slice {number + 1} of {len(reads)}: ')
        inner(0.0, 'reading')
        pixels = read()
        key = plane_key(pixels, settings)
        keys.append(key)
        # `load` also detects damage, and marks the entry as used, so that planes of this stack are deleted last.
        if store.load(key) is None:
            store.save(key, embed(pixels, inner))
            n_analysed += 1
        if keys[0] not in store:
            break
        on_stored(number)
    else:
        progress(1.0, 'all slices are analysed')
    return StackReport(tuple(keys), n_analysed, sum(key in store for key in keys))


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning('an embedding could not be removed: %s', error)


def _touch(path: Path) -> None:
    with suppress(OSError):  # deleted by another session, or in a read-only folder, which is not trimmed either
        os.utime(path)
