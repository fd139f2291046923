"""Reads .npz files that may be damaged or come from elsewhere."""

from __future__ import annotations

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
"""What NumPy, zarr and the modules below them raise over damaged files."""


def read_npz(path: str | Path, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of a file by name; nothing is unpickled.

    Args:
        path: The file.
        names: Arrays to read; those that the file lacks are left out. By default all.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedError: If it is no .npz file of numbers and text, or damaged.
    """
    try:
        with Path(path).open('rb') as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if names is None or name in names}
    except (FileNotFoundError, StoreError):
        raise
    except UNREADABLE as error:
        raise DamagedError(
            f'{path}: not a whole .npz file ({explained(error)}); remove it and make it again'
        ) from error
