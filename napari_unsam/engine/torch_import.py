"""Imports torch without blocking the window."""

from __future__ import annotations

import ctypes
import os
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

_LARGEST = ('libtorch_cpu.so', 'libtorch_cpu.dylib')


def import_torch() -> ModuleType:
    """Imports torch; other threads go on while its largest library is loaded.

    An import holds Python's lock while the system links a library of 400 MB, half a second or so. A call of the system's
    own loader does not, and the import finds the library loaded. Where there is no such file this is a plain import.
    """
    spec = find_spec('torch')
    for name in _LARGEST if spec is not None and os.name == 'posix' else ():
        path = Path(spec.submodule_search_locations[0], 'lib', name)
        if path.is_file():
            load = ctypes.CDLL(None).dlopen
            load.argtypes, load.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
            load(os.fsencode(path), os.RTLD_NOW)
    import torch

    return torch
