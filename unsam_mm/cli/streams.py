"""Standard output and error that accept all file names, and may be closed or full."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

from unsam_mm.errors import UnSAMError, describe_error, one_line

_INTERRUPTED = 130  # what shells report for Ctrl-C


def escape_unencodable() -> None:
    """Makes standard output and error write characters that they cannot encode as escapes.

    Windows code pages lack, for example, Japanese letters, and file names on old disks need not be UTF-8. Without
    escapes, printing such text would raise an error, and change the exit status of finished work. Output to a closed
    stream is dropped.
    """
    for name in ('stdout', 'stderr'):
        stream = getattr(sys, name)
        if stream is None:  # closed, or run by pythonw
            setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))  # noqa: PTH123, SIM115  as long as the process
        elif isinstance(stream, io.TextIOWrapper):  # notebooks have their own
            stream.reconfigure(errors='backslashreplace')


def exit_status(run: Callable[[], int], advice: str) -> int:
    """Runs a command, and prints an error or interruption as one line on standard error.

    Args:
        run: Returns the exit status of the command.
        advice: Advice that is printed if the command is interrupted.

    Returns:
        The result of `run`; 1 after an error, 130 after Ctrl-C. If the reader of standard output or error, such as
        `head`, stops reading, the command continues.
    """
    with redirect_stdout(_Stream(sys.stdout)), redirect_stderr(_Stream(sys.stderr)):
        try:
            status = run()
            sys.stdout.flush()  # otherwise Python flushes at exit, and prints errors
        except UnSAMError as error:
            return _fail(one_line(error))
        except OSError as error:
            try:
                sys.stdout.flush()
            except OSError:
                _drop(sys.stdout)
            return _fail(one_line(describe_error(error)))
        except KeyboardInterrupt:
            _say(f'interrupted; {advice}')
            return _INTERRUPTED
        return status


class _Stream:
    """A text stream that drops all further output after its reader has closed the pipe."""

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
    with suppress(OSError):  # raised if the disk is full
        print(text, file=sys.stderr, flush=True)


def _drop(stream: TextIO) -> None:
    """Drops the buffered and all further output of a stream; Python would try to write the buffer again at exit."""
    with suppress(OSError, ValueError):  # raised if the stream is not a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
