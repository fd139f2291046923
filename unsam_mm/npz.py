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

from unsam_mm.errors import DamagedError, StoreError, describe_error

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
"""Exceptions that NumPy, and the modules that it calls, raise for damaged files."""

_DAMAGE_ERRNOS = (None, errno.EINVAL, errno.ENOENT)  # for wrong offsets, and for missing parts of a zarr store
_ZIP = (b'PK\3\4', b'PK\5\6')  # first bytes of a .npz file, and of one without arrays


def read_npz(path: str | Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, by name; nothing is unpickled.

    Args:
        path: The file.
        names: Arrays to read; names that are not in the file are ignored. None: all arrays.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedError: If the file is damaged, or is not a .npz file of numbers and text.
        StoreError: If the file cannot be read.
    """
    try:
        with Path(path).open('rb') as stream:
            if not stream.read(len(_ZIP[0])).startswith(_ZIP):  # NumPy's message would recommend unpickling it
                raise DamagedError(f'{path}: not a .npz file; remove it and make it again')
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in file.files if names is None or name in names}
    except (FileNotFoundError, StoreError):
        raise
    except UNREADABLE as error:
        raise unreadable(path, 'not a whole .npz file', error) from error


def unreadable(path: str | Path, what: str, error: BaseException) -> StoreError:
    """The error to raise for one of `UNREADABLE`: `DamagedError`, or `StoreError` if the system cannot read the file.

    Args:
        path: The file.
        what: Message for a damaged file.
        error: The cause.
    """
    if isinstance(error, OSError) and error.errno not in _DAMAGE_ERRNOS:
        return StoreError(f'{path}: cannot be read ({error.strerror}); check the path and its permissions')
    return DamagedError(f'{path}: {what} ({describe_error(error)}); remove it and make it again')
