"""A memory-mapped index of file names, for folders with millions of files."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from unsam_mm.errors import StoreError
from unsam_mm.weights import cache_dir

_FORM = 'unsam name index 1'
_AT_ONCE = 1 << 16  # names in each chunk while a folder is listed
_UNSURE_NS = 2 * 10**9
"""A folder that changed less than this before it was listed may change again within the resolution of its clock."""


@dataclass(frozen=True)
class NameIndex:
    """Sorted names of the files below a folder with a suffix, without the suffix.

    Attributes:
        names: (N,) array of bytes, usually memory-mapped.
        path: The mapped file; None if the names are in memory.
    """

    names: np.ndarray
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> str:
        return os.fsdecode(bytes(self.names[position]))

    def __deepcopy__(self, memo: dict) -> NameIndex:
        """The index itself, which is immutable; data sets are copied for subsets."""
        return self

    def __reduce__(self) -> tuple[Any, tuple]:
        """Spawned processes map the file again instead of receiving all names."""
        return (_reopened, (self.path,)) if self.path else (NameIndex, (self.names,))


def open_index(
    root: Path, suffix: str, path: Path | None = None, renew: bool = False, leave_out: str = ''
) -> NameIndex:
    """The index of a folder; it is built if there is none, or the folder has changed.

    Changes are detected by the modification times of the folder and all its subfolders, which change when a file is
    added, removed or renamed.

    Args:
        root: The folder. Hidden files and folders are ignored, links to folders are followed.
        suffix: Suffix of the names.
        path: Path of the index; by default in the folder ``indexes`` of the cache ($UNSAM_CACHE). It is written
            atomically. If it cannot be written, a warning is logged, and the names stay in memory.
        renew: Whether to build it in any case, for file systems without reliable modification times.
        leave_out: Name of a file in the folder itself that is ignored.

    Raises:
        StoreError: If the folder is missing or cannot be read.
    """
    path = path or _default_path(root, suffix)
    if not renew and (index := _load(path, root, suffix)) is not None:
        return index
    started_ns = time.time_ns()
    times_ns: dict[str, int] = {}
    names = _sorted_names(name for name in _walk(root, suffix, times_ns) if name + suffix != leave_out)
    sure = {folder: noted if noted < started_ns - _UNSURE_NS else 0 for folder, noted in times_ns.items()}
    try:
        write_index(path, root, suffix, names, sure)
    except OSError as error:
        print_log(
            f'{path}: the index of {root} cannot be written ({error.strerror}); the folder will be listed again',
            logger='current',
            level=logging.WARNING,
        )
        return NameIndex(names)
    return _mapped(path)[1]


def write_index(path: Path, root: Path, suffix: str, names: np.ndarray, times_ns: dict[str, int]) -> None:
    """Writes an index atomically; processes that have an older one open are not affected.

    Args:
        path: Path of the index.
        root: The folder that the names are relative to.
        suffix: The suffix that was removed from the names.
        names: (N,) sorted bytes.
        times_ns: Modification time of each folder, the root as '' and the others as 'a/b/'; if one differs, the index
            is out of date.

    Raises:
        OSError: If it cannot be written.
    """
    header = {
        'form': _FORM,
        'root': os.path.realpath(root),
        'suffix': suffix,
        'count': len(names),
        'width': names.dtype.itemsize,
        'folders': list(times_ns),
        'times_ns': list(times_ns.values()),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix='.unsam-', suffix='.part')
    try:
        with os.fdopen(descriptor, 'wb') as file:
            file.write(json.dumps(header).encode() + b'\n')
            names.tofile(file)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _sorted_names(names: Iterator[str]) -> np.ndarray:
    """(N,) sorted bytes, collected in chunks."""
    parts = [np.zeros(0, 'S1')]
    while some := [os.fsencode(name) for name in islice(names, _AT_ONCE)]:
        parts.append(np.array(some))
    joined = np.concatenate(parts)
    joined.sort()
    return joined


def _walk(root: Path, suffix: str, times_ns: dict[str, int]) -> Iterator[str]:
    """Names of the files below a folder; fills `times_ns` with the modification times of the folders."""
    waiting, seen = [''], {os.path.realpath(root)}
    while waiting:
        folder = waiting.pop()
        try:
            times_ns[folder] = (root / folder).stat().st_mtime_ns
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith('.'):
                        continue
                    if entry.name.endswith(suffix):
                        yield f'{folder}{entry.name.removesuffix(suffix)}'
                    elif _is_new_folder(entry, seen):
                        waiting.append(f'{folder}{entry.name}/')
        except OSError as error:
            raise StoreError(
                f'{root / folder}: the folder cannot be read ({error.strerror}); check the path'
            ) from error


def _is_new_folder(entry: os.DirEntry[str], seen: set[str]) -> bool:
    try:
        if not entry.is_dir():
            return False
    except OSError:  # a link to itself
        return False
    if not entry.is_symlink():
        return True
    # Each link target once, since links may form cycles.
    place = os.path.realpath(entry.path)
    is_new = place not in seen
    seen.add(place)
    return is_new


def _load(path: Path, root: Path, suffix: str) -> NameIndex | None:
    """The index on disk; None if there is none, or it is damaged or out of date."""
    try:
        header, index = _mapped(path)
        if (header['root'], header['suffix']) != (os.path.realpath(root), suffix):
            return None
        for folder, noted in zip(header['folders'], header['times_ns'], strict=True):
            if (root / folder).stat().st_mtime_ns != noted:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index


def _mapped(path: Path) -> tuple[dict[str, Any], NameIndex]:
    with path.open('rb') as file:
        line = file.readline()
        n_bytes = os.fstat(file.fileno()).st_size - len(line)
    header = json.loads(line)
    count, width = header['count'], header['width']
    if header['form'] != _FORM or n_bytes != count * width:
        raise ValueError('not a whole index')
    names = np.memmap(path, f'S{width}', 'r', len(line), (count,)) if count else np.zeros(0, f'S{width}')
    return header, NameIndex(names, path)


def _reopened(path: Path) -> NameIndex:
    return _mapped(path)[1]


def _default_path(root: Path, suffix: str) -> Path:
    place = f'{os.path.realpath(root)}|{suffix}'
    digest = hashlib.blake2b(place.encode('utf-8', 'surrogateescape'), digest_size=6).hexdigest()
    return cache_dir() / 'indexes' / f'{root.resolve().name}-{digest}.index'
