"""Imports OpenCV without its changes to the Qt plugin paths.

On import, the GUI build of OpenCV, which includes Qt 5, sets two environment variables to its own folder. Another Qt
that starts later in the same process then loads plugins of the wrong version and aborts. Other packages decide which
build of OpenCV is installed, so the variables are restored instead.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

_QT_VARIABLES = ('QT_QPA_PLATFORM_PLUGIN_PATH', 'QT_QPA_FONTDIR')


def import_opencv() -> ModuleType:
    """Imports cv2 and restores the Qt variables that the user had set.

    If cv2 was imported before, variables that point into its folder are removed.
    """
    before = {name: os.environ.get(name) for name in _QT_VARIABLES}
    import cv2

    folder = Path(cv2.__file__).resolve().parent
    for name, value in before.items():
        if _is_inside(os.environ.get(name), folder):
            del os.environ[name]
            if value is not None and not _is_inside(value, folder):
                os.environ[name] = value
    return cv2


def _is_inside(path: str | None, folder: Path) -> bool:
    return path is not None and Path(path).resolve().is_relative_to(folder)
