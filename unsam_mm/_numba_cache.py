"""Gives numba a temporary cache folder if neither this package's folder nor the user's cache is writable."""

from __future__ import annotations

import os
import sys

_VARIABLE = 'NUMBA_CACHE_DIR'


def ensure_cache_folder() -> None:
    """Sets NUMBA_CACHE_DIR to a temporary folder if numba would find no folder, as in a read-only container.

    Without a folder, numba cannot define functions with ``cache=True``. Call this before the first is defined.
    """
    package = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib would slow down the import
    if os.access(package, os.W_OK | os.X_OK):
        return
    if any(folder and _can_be_written(folder) for folder in (os.environ.get(_VARIABLE), _user_folder())):
        return
    os.environ[_VARIABLE] = _temporary_folder()
    if numba := sys.modules.get('numba'):  # numba has read the variable already
        numba.config.reload_config()


def _user_folder() -> str:
    """The user's cache folder, which numba uses if the source folder is not writable; see numba.misc.appdirs."""
    if sys.platform == 'win32':
        base = os.environ.get('LOCALAPPDATA', '')
    elif sys.platform == 'darwin':
        base = '~/Library/Caches'
    else:
        base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return os.path.expanduser(os.path.join(base, 'numba'))  # noqa: PTH111, PTH118


def _can_be_written(folder: str) -> bool:
    """True if files can be written into a folder; a missing folder is made, as numba would do."""
    import tempfile

    try:
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _temporary_folder() -> str:
    """A folder that only this user can write to, since numba executes its content."""
    import atexit
    import shutil
    import tempfile
    from contextlib import suppress
    from pathlib import Path

    user = os.getuid() if hasattr(os, 'getuid') else os.environ.get('USERNAME', '')
    folder = Path(tempfile.gettempdir(), f'unsam-numba-{user}')
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        is_mine = not hasattr(os, 'getuid') or (status.st_uid == os.getuid() and not status.st_mode & 0o077)
        if is_mine and folder.is_dir() and not folder.is_symlink() and os.access(folder, os.W_OK | os.X_OK):
            return str(folder)
    own = tempfile.mkdtemp(prefix='unsam-numba-')
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return own
