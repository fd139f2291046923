"""Atomic writing of files and folders."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from unsam_mm.errors import StoreError, TargetError

_TEMPORARY_PREFIX, _TEMPORARY_SUFFIX = '.unsam-', '.part'
SYSTEM_FILES = ('.DS_Store', 'Thumbs.db', 'desktop.ini')  # file managers put these into any folder
_LEFTOVER_AGE_S = 3600.0  # no file takes longer to write
_LOCK_S = 600.0  # time to remove a large folder on a slow disk
_MAX_NAME_BYTES = 255  # limit of most file systems
_HASH_DIGITS = 16
GZIP, GZIP_MESSAGE = b'\x1f\x8b', 'is compressed with gzip; unpack it first (gunzip)'

_NOT_ALLOWED = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)  # names that a disk does not allow
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # file systems without fsync


@contextmanager
def atomic_writer(path: str | Path, binary: bool = False, sync: bool = True) -> Iterator[IO[Any]]:
    """Opens a temporary file, which replaces `path` when the block has ended without an error.

    A link is followed: the file that it points to is replaced. Devices and pipes, such as /dev/stdout, are written to
    directly. Errors that the block raises for other reasons than this file are not changed.

    Args:
        path: The file; folders are made as needed.
        binary: True to write bytes, False to write text in UTF-8; file names in the text may contain bytes that are not
            UTF-8.
        sync: True if the file has to survive a power failure, too; this takes some milliseconds.

    Raises:
        TargetError: If the name is not allowed on the disk or is that of a folder, or a file is where a folder is
            needed.
        StoreError: If the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    temporary = None
    try:
        with _write_errors(path):
            if path.is_dir():
                raise TargetError(f'{path}: is a folder, a file is needed; choose another output')
            if path.exists() and not path.is_file():
                descriptor = os.open(path, os.O_WRONLY)
            else:
                path = Path(os.path.realpath(path)) if path.is_symlink() else path
                temporary, descriptor = _create_temporary(path.parent)
        raw = _Target(descriptor, path)
        buffered = io.BufferedWriter(raw)
        file = buffered if binary else io.TextIOWrapper(buffered, encoding='utf-8', errors='surrogateescape')
        try:
            yield file
            file.flush()
            if sync:
                with _write_errors(path):  # without this, a power failure after the renaming would leave an empty file
                    flush_to_disk(descriptor)
        finally:
            with suppress(OSError, StoreError):  # after an error, flushing the buffers can fail again
                file.close()
            raw.close()
        if temporary:
            with _write_errors(path):
                temporary.replace(path)
    finally:
        if temporary:
            temporary.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Makes a folder if it is missing, and checks that files can be written into it.

    Raises:
        StoreError: If files cannot be written.
    """
    with _write_errors(folder):
        probe, descriptor = _create_temporary(folder)
        os.close(descriptor)
        probe.unlink(missing_ok=True)


def temporary_name(folder: Path) -> Path:
    """Unique name of a temporary file or folder; `remove_leftovers` removes it if the process was killed."""
    return folder / f'{_TEMPORARY_PREFIX}{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}'


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON atomically; see `atomic_writer`."""
    with atomic_writer(path) as file:
        json.dump(value, file, separators=(',', ':'))


def read_json(path: str | Path) -> Any:
    """Reads a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        StoreError: If the file is missing, cannot be read, or is not JSON.
    """
    with json_errors(path):
        content = Path(path).read_bytes()
        if content.startswith(GZIP):
            raise StoreError(f'{path}: {GZIP_MESSAGE}')
        return json.loads(content)


@contextmanager
def json_errors(path: str | Path) -> Iterator[None]:
    """Turns errors of reading a JSON file into `StoreError`, with the file in the message."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:
        raise StoreError(f'{path}: no such file') from error
    except UnicodeDecodeError as error:
        raise StoreError(f'{path}: not a JSON file in UTF-8 ({error}); save it as UTF-8, or make it again') from error
    except ValueError as error:  # of json, or of Python for a number with thousands of digits
        raise StoreError(f'{path}: not a JSON file ({error}); it may have been cut short: make it again') from error
    except RecursionError as error:
        raise StoreError(f'{path}: JSON nested too deeply; make it again') from error
    except OSError as error:
        raise StoreError(f'{path}: cannot be read ({error.strerror}); check the path and its permissions') from error


def check_result_file(
    path: str | Path,
    *inputs: str | Path | None,
    folders: Iterable[str | Path | None] = (),
    starts: tuple[bytes, ...] = (b'{', b'['),
    kind: str = 'JSON',
) -> None:
    """Checks, before any work, that a file may be written or replaced.

    Args:
        path: The output file.
        inputs: Files that the command reads.
        folders: Folders whose files the command reads. No file below them may be replaced, and no JSON file may be
            added, since the next run would read it.
        starts: The first bytes that files of the output's format can have.
        kind: Name of the format, for messages.

    Raises:
        StoreError: If the output is one of the inputs or lies below `folders`, is a folder, or is a file of another
            format.
    """
    path = Path(path)
    if any(read is not None and os.path.realpath(path) == os.path.realpath(read) for read in inputs):
        raise StoreError(f'{path}: would overwrite an input; choose another file for the result')
    if path.is_dir():
        raise TargetError(f'{path}: is a folder, a file is needed; choose another output')
    for folder in folders if path.suffix == '.json' or path.is_file() else ():
        if folder is not None and lies_below(path, folder):
            raise StoreError(f'{path}: lies in {folder}, whose files are read; choose another place for the result')
    if not path.is_file():
        return
    with _write_errors(path), path.open('rb') as file:
        start = file.read(64).lstrip(b'\xef\xbb\xbf\xff\xfe\0 \t\r\n')
    if start and not start.startswith(starts):
        raise StoreError(f'{path}: exists and is not a {kind} file; choose another file for the result')


def lies_below(path: str | Path, folder: str | Path) -> bool:
    """True if a file is below a folder; for a link, if the link or its target is."""
    path, root = Path(path), os.path.realpath(folder)
    real_paths = os.path.realpath(path), os.path.realpath(path.parent)
    return any(Path(real).is_relative_to(root) for real in real_paths)


def fitting_name(name: str, suffix: str) -> str:
    """`name` with `suffix` appended; a name that is too long for the disk is cut, and a hash of it is added.

    Args:
        name: A path with forward slashes, for example of an image.
        suffix: ASCII text to append.
    """
    folder, slash, last = name.rpartition('/')
    encoded = os.fsencode(last)
    if len(encoded) + len(suffix) <= _MAX_NAME_BYTES:
        return f'{name}{suffix}'
    digest = hashlib.sha256(encoded).hexdigest()[:_HASH_DIGITS]
    kept = encoded[: _MAX_NAME_BYTES - len(suffix) - 1 - _HASH_DIGITS].decode('utf-8', 'ignore')
    return f'{folder}{slash}{kept}~{digest}{suffix}'


def is_fitted(file_name: str) -> bool:
    """True if `fitting_name` may have cut this file name."""
    _, tilde, digest = Path(file_name).stem.rpartition('~')
    return bool(tilde) and len(digest) == _HASH_DIGITS and set(digest) <= set('0123456789abcdef')


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of killed processes below a folder.

    Files of the last hour are not removed, since they may belong to a running process.
    """
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            if not name.startswith(_TEMPORARY_PREFIX) or not name.endswith(_TEMPORARY_SUFFIX):
                continue
            path = Path(parent, name)
            with suppress(OSError):  # removed or opened by another process, or owned by another user
                if time.time() - path.lstat().st_mtime > _LEFTOVER_AGE_S:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def replace_folder(finished: Path, path: Path) -> None:
    """Renames a finished folder to its final name and removes the folder that had this name.

    No file system swaps folders in one step. A process that is killed in between leaves both folders under temporary
    names, where `readable_folder` and `restore_folder` find the old one. A lock lets one process at a time do this:
    other processes would mistake its temporary folders for those of a killed process.

    Args:
        finished: The new folder, on the same disk.
        path: Its final name; a folder with this name is replaced.

    Raises:
        OSError: If the folder cannot be renamed; the old one is kept.
    """
    digest = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:_HASH_DIGITS]
    # In the temporary folder, since lock files are not removed; all users may write it, since they share the lock.
    with FileLock(Path(tempfile.gettempdir(), f'unsam-{digest}.lock'), _LOCK_S, mode=0o666):
        restore_folder(path)
        old, new = _swap_paths(path)
        finished.rename(new)
        try:
            if path.exists():
                path.rename(old)
            new.rename(path)
        except OSError:
            restore_folder(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def readable_folder(path: Path) -> Path:
    """The path at which a folder can be read: its temporary name while `replace_folder` swaps folders, else `path`.

    The same holds after `replace_folder` was killed. Nothing is renamed, so readers do not disturb a writer.
    """
    old, new = _swap_paths(path)
    return old if not os.path.lexists(path) and old.is_dir() and new.is_dir() else path


def restore_folder(path: Path) -> None:
    """Restores the folder that a killed `replace_folder` had renamed, and removes its temporary folders.

    Only the writing process may call this; readers call `readable_folder`.

    Raises:
        OSError: If the folder cannot be renamed.
    """
    old, new = _swap_paths(path)
    if readable_folder(path) == old:
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)  # before the new one: `readable_folder` returns `old` only if both are there
    shutil.rmtree(new, ignore_errors=True)


def _swap_paths(path: Path) -> tuple[Path, Path]:
    """Temporary paths of the old and the new folder, beside `path`."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:_HASH_DIGITS]
    return path.with_name(f'{_TEMPORARY_PREFIX}{digest}.old'), path.with_name(f'{_TEMPORARY_PREFIX}{digest}.new')


def flush_to_disk(descriptor: int) -> None:
    """Waits until a file that is open for writing is on the disk, if the file system supports that."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


class _Target(io.FileIO):
    """The open temporary file; messages of its errors name `path` instead."""

    def __init__(self, descriptor: int, path: Path) -> None:
        super().__init__(descriptor, 'wb')
        self._path = path

    def write(self, data: Any) -> int:
        with _write_errors(self._path):
            return super().write(data)

    def fileno(self) -> int:
        """Raises an error, so that libraries call `write`, whose errors are explained."""
        raise io.UnsupportedOperation('written by write() alone')


def _create_temporary(folder: Path, retries: int = 1) -> tuple[Path, int]:
    """A new file with a temporary name, and its descriptor; the folder is made as needed, and the umask applies."""
    path = temporary_name(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, 'O_BINARY', 0), 0o666)
    except (FileNotFoundError, FileExistsError):  # another process may remove the folder while it is empty
        if not retries:
            raise
        return _create_temporary(folder, retries - 1)


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f'cannot be written ({error.strerror})'
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason = 'the disk is full; free some space and run again, finished files are kept'
        elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            reason = f'the folder cannot be written ({error.strerror}); choose another one'
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            reason = 'a file is where a folder is needed; choose another output'
        elif error.errno in _NOT_ALLOWED:
            reason = f'the disk allows no file of that name ({error.strerror}); rename it, or choose another disk'
        kind = TargetError if error.errno in (*_NOT_ALLOWED, errno.ENOTDIR, errno.EEXIST, errno.EISDIR) else StoreError
        raise kind(f'{path}: {reason}') from error
