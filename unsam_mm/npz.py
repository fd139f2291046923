"""Reads .npz files that may be damaged or untrusted."""

from __future__ import annotations

import errno
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from unsam_mm.errors import DamagedError, StoreError, explained

UNREADABLE = (
    OSError,
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What NumPy and the modules below it raise over damaged files."""

_OF_DAMAGED_FILES = (None, errno.EINVAL, errno.ENOENT)  # places before the beginning of a file, parts that are missing
_ZIP = (b'PK\3\4', b'PK\5\6')  # how a .npz file begins, and one without arrays


def read_npz(path: str | Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of a file by name; nothing is unpickled.

    Args:
        path: The file.
        names: Arrays to read; those that the file lacks are left out. By default all.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedError: If it is no .npz file of numbers and text, or damaged.
        StoreError: If it cannot be read.
    """
    try:
        with Path(path).open('rb') as stream:
            if not stream.read(len(_ZIP[0])).startswith(_ZIP):  # NumPy would recommend to unpickle it
                raise DamagedError(f'{path}: not a .npz file; remove it and make it again')
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in file.files if names is None or name in names}
    except (FileNotFoundError, StoreError):
        raise
    except UNREADABLE as error:
        raise unreadable(path, 'not a whole .npz file', error) from error


def unreadable(path: str | Path, what: str, error: BaseException) -> StoreError:
    """The error to raise for one of `UNREADABLE`: `DamagedError`, unless the system refuses to read the file.

    Args:
        path: The file.
        what: What is wrong with it if it is damaged.
        error: The cause.
    """
    if isinstance(error, OSError) and error.errno not in _OF_DAMAGED_FILES:
        return StoreError(f'{path}: cannot be read ({error.strerror}); check the path and its permissions')
    return DamagedError(f'{path}: {what} ({explained(error)}); remove it and make it again')
