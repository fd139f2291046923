"""Standard output and error that accept every file name, and may be closed or full."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from unsam_mm.errors import UnSAMError, explained, one_line

_INTERRUPTED = 130  # what shells report for Ctrl-C


def escape_unencodable() -> None:
    """Makes standard output and error write characters that they cannot encode as escapes.

    A code page of Windows has no Japanese letters, and names on old disks need not be UTF-8; neither is a reason to lose
    the line, or the exit status of work that was done. Where a stream is closed, what is written to it is dropped.
    """
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if stream is None:  # closed, or below pythonw
            setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))  # noqa: PTH123, SIM115  as long as the process
        elif isinstance(stream, io.TextIOWrapper):  # notebooks have their own
            stream.reconfigure(errors='backslashreplace')


def exit_status(run: Callable[[], int], how_to_go_on: str) -> int:
    """Runs a command; what ends it early is one line on standard error.

    Args:
        run: Gives the exit status of the command.
        how_to_go_on: Said of a command that is interrupted.

    Returns:
        What `run` gives; 1 after an error, 130 after Ctrl-C. A reader of standard output or error that has had enough,
        `head` for one, is no error, and the command goes on.
    """
    with redirect_stdout(_Stream(sys.stdout)), redirect_stderr(_Stream(sys.stderr)):
        try:
            status = run()
            sys.stdout.flush()  # Python itself would do so at its end, and print what goes wrong
        except UnSAMError as error:
            return _fail(one_line(error))
        except OSError as error:
            try:
                sys.stdout.flush()
            except OSError:
                _drop(sys.stdout)
            return _fail(one_line(explained(error)))
        except KeyboardInterrupt:
            _say(f'interrupted; {how_to_go_on}')
            return _INTERRUPTED
        return status


class _Stream:
    """A text stream that drops what is written to it once its reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            _drop(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _fail(message: str) -> int:
    _say(f'error: {message}')
    return 1


def _say(text: str) -> None:
    with suppress(OSError):  # a full disk
        print(text, file=sys.stderr, flush=True)


def _drop(stream: TextIO) -> None:
    """Lets go of what a stream could not take, and of all that follows: Python would try again at its end."""
    with suppress(OSError, ValueError):  # one that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
