"""Standard output and error that take any name of a file."""

from __future__ import annotations

import io
import sys


def take_any_name() -> None:
    """Has characters that standard output or error cannot encode written as their escapes.

    A code page of Windows has no Japanese letters, and names on old disks need not be UTF-8; neither is a reason to lose
    the line, or the exit status of work that was done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # there is none below pythonw, and notebooks have their own
            stream.reconfigure(errors='backslashreplace')
