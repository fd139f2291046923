"""Standard output and error that accept every file name."""

from __future__ import annotations

import io
import sys


def escape_unencodable() -> None:
    """Makes standard output and error write characters that they cannot encode as escapes.

    A code page of Windows has no Japanese letters, and names on old disks need not be UTF-8; neither is a reason to lose
    the line, or the exit status of work that was done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # there is none below pythonw, and notebooks have their own
            stream.reconfigure(errors='backslashreplace')
