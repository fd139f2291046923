"""Embeddings of planes on disk, by a hash of pixels and settings, so that no plane is analysed twice.

An entry is one file, named by its content; it appears as a whole and never changes. So any number of sessions may share a
folder without locks: two that save the same entry save the same thing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_unsam.engine.inference import ProgressCallback, part_of
from napari_unsam.model.label_boxes import LazyArray
from unsam_mm.errors import StoreError
from unsam_mm.files import remove_leftovers

ReadPlane = Callable[[], np.ndarray]
EmbedPlane = Callable[[np.ndarray, ProgressCallback], Mapping[str, np.ndarray]]

_KIND = 'plane'
_SUFFIX = f'.{_KIND}.npz'
_KEY = re.compile('[0-9a-f]{32}')  # of `plane_key`, and of windows
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
    """Arrays by key, in files; the least recently used are deleted when space is short. Other files in its folders stay.

    Args:
        folder: Made at the first `save`.
        max_bytes: The most that all entries take together on disk, and the windows with them.
        windows: Folder of what `unsam_mm.prompting.TiledEngine` keeps of large planes, as files that it never removes.
    """

    def __init__(self, folder: Path, max_bytes: int, windows: Path | None = None) -> None:
        self.folder, self.max_bytes, self.windows = Path(folder), int(max_bytes), windows
        self._windows_used: set[Path] = set()

    def __contains__(self, key: str) -> bool:
        return self._path(key).is_file()

    @property
    def size_bytes(self) -> int:
        """What all entries and windows take on disk, those of other sessions included."""
        return sum(size for _, size, _ in self._entries())

    def load(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays of an entry, marked as used now; None if there is none. A damaged entry is deleted."""
        from unsam_mm.prompting.embedding_file import load_arrays

        path = self._path(key)
        if not path.is_file():
            return None
        try:
            arrays = load_arrays(path, _KIND)
        except StoreError as error:
            logger.warning('dropped a damaged embedding: %s', error)
            _drop(path)
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
        if path.is_file():
            _touch(path)
            return
        save_arrays(path, _KIND, dict(arrays))
        self.trim()

    def used(self, window: Path) -> None:
        """Notes that a file of `windows` was read or written now."""
        _touch(window)
        if window not in self._windows_used:
            self._windows_used.add(window)
            self.trim()

    def clear(self) -> None:
        """Removes all entries and windows."""
        for _, _, path in self._entries():
            _drop(path)

    def trim(self) -> None:
        """Deletes entries, the least recently used first, until the others fit; also leftovers of killed sessions."""
        entries = sorted(self._entries())
        excess = sum(size for _, size, _ in entries) - self.max_bytes
        for _, size, path in entries:
            if excess <= 0:
                break
            excess -= size
            _drop(path)
        for folder in (self.folder, self.windows):
            if folder is not None:
                remove_leftovers(folder)
        for folder in self.folder.glob('*.zarr/'):  # entries of earlier versions, which are not read any more
            if _KEY.fullmatch(folder.stem):
                shutil.rmtree(folder, ignore_errors=True)

    def _path(self, key: str) -> Path:
        return self.folder / f'{key}{_SUFFIX}'

    def _entries(self) -> list[tuple[float, int, Path]]:
        """When each entry and each window was used last, its bytes, and its file."""
        windows = [] if self.windows is None else self.windows.glob('*/*.npz')
        paths = [*self.folder.glob(f'*{_SUFFIX}'), *(path for path in windows if self._is_window(path))]
        entries = []
        for path in paths:
            with suppress(OSError):  # dropped by another session meanwhile
                known = path.stat()
                entries.append((known.st_mtime, known.st_size, path))
        return entries

    def _is_window(self, path: Path) -> bool:
        return path in self._windows_used or _KEY.fullmatch(path.stem) is not None


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


def _drop(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning('an embedding could not be removed: %s', error)


def _touch(path: Path) -> None:
    with suppress(OSError):  # gone meanwhile, or a folder that nobody may write: then it is not trimmed either
        os.utime(path)
