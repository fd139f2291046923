"""Reads .npz files that may be damaged, or made by somebody else."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

import numpy as np

from unsam_mm.errors import DamagedError, StoreError

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
        names: Which arrays, as far as the file has them; all by default.

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
            f'{path}: not a whole .npz file ({first_line(error)}); remove it and make it again'
        ) from error


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
