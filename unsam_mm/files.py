"""Files that are either whole or absent, however the process ends."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from unsam_mm.errors import StoreError

_TEMPORARY_PREFIX, _TEMPORARY_SUFFIX = '.unsam-', '.part'
_LEFTOVER_AGE_S = 3600.0  # no file takes longer to write


@contextmanager
def atomic_writer(path: str | Path, binary: bool = False) -> Iterator[IO[Any]]:
    """Opens a file that appears under its name only once the block has ended without an error.

    Args:
        path: Its name; folders are made as needed.
        binary: For bytes instead of text in UTF-8.

    Raises:
        StoreError: If the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY_PREFIX, suffix=_TEMPORARY_SUFFIX)
        temporary = Path(name)
        with os.fdopen(descriptor, 'wb') if binary else os.fdopen(descriptor, 'w', encoding='utf-8') as file:
            yield file
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files can be read by their owner only
        temporary.replace(path)
    except OSError as error:
        raise StoreError(_explain(path, error)) from error
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON atomically; see `atomic_writer`."""
    with atomic_writer(path) as file:
        json.dump(value, file, separators=(',', ':'))


def read_json(path: str | Path) -> Any:
    """Reads a JSON file.

    Raises:
        StoreError: If the file is missing, cannot be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError as error:
        raise StoreError(f'{path}: no such file') from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f'{path}: not a JSON file ({error}); it may have been cut short: make it again') from error
    except OSError as error:
        raise StoreError(f'{path}: cannot be read ({error.strerror}); check the path and its permissions') from error


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left below a folder; recent files may belong to one that lives."""
    for path in folder.rglob(f'{_TEMPORARY_PREFIX}*{_TEMPORARY_SUFFIX}'):
        if path.is_file() and time.time() - path.stat().st_mtime > _LEFTOVER_AGE_S:
            path.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _explain(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f'{path}: the disk is full; free some space and run again, finished files are kept'
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f'{path}: the folder cannot be written ({error.strerror}); choose another one'
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f'{path}: a file stands where a folder is needed; choose another output'
    return f'{path}: cannot be written ({error.strerror})'
