"""Streaming parser for the long lists of JSON files: one entry in memory at a time."""

from __future__ import annotations

import io
import json
import os
from codecs import BOM_UTF8
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from unsam_mm.errors import StoreError
from unsam_mm.files import GZIP, PACKED, explaining_json

_CHUNK_BYTES = 1 << 20
_MAX_VALUE_BYTES = 1 << 28  # no annotation is longer; a file that is not JSON is not read to its end
_BLANKS = ' \t\n\r'
_MAY_GO_ON = ('', '.', 'e', 'E')


@dataclass(frozen=True)
class Entry:
    """One entry of a list.

    Attributes:
        key: Name of the list (or value) in the top-level dictionary; '' where the file itself is a list.
        value: The decoded entry.
        start: Byte at which it starts in the file.
        end: Byte behind its last one.
    """

    key: str
    value: Any
    start: int
    end: int


def stream_lists(
    path: str | Path, lists: Collection[str], whole: Collection[str] = (), found: set[str] | None = None
) -> Iterator[Entry]:
    """The entries of some lists of a file, in the order in which they stand there.

    Args:
        path: JSON file: a dictionary of which some values are lists, or a list.
        lists: Names of the lists; '' stands for a list at the top. Other values are skipped.
        whole: Names of values that are short and come as one entry.
        found: Gets the names of the lists that are there, empty ones too.

    Raises:
        StoreError: If the file is missing, is not JSON, ends early, or a wanted value is not a list.
    """
    try:
        with explaining_json(path), open_utf8(path) as file:
            yield from _entries(_Cursor(file), lists, whole, set() if found is None else found)
    except TypeError as error:
        raise StoreError(f'{path}: {error}') from error


def open_utf8(path: str | Path) -> IO[bytes]:
    """Opens a JSON file as UTF-8, behind its byte order mark; one in UTF-16 or UTF-32 is converted in memory.

    Raises:
        OSError: If it cannot be read.
        StoreError: If it is compressed.
        UnicodeDecodeError: If its encoding is not the one that its first bytes indicate.
    """
    file = Path(path).open('rb')  # noqa: SIM115  (the caller closes it)
    start = file.read(4)
    if start.startswith(GZIP):
        file.close()
        raise StoreError(f'{path}: {PACKED}')
    encoding = json.detect_encoding(start)
    if encoding.startswith('utf-8'):
        file.seek(len(BOM_UTF8) if encoding == 'utf-8-sig' else 0)
        return file
    with file:
        status = os.fstat(file.fileno())
    return io.BytesIO(_converted(str(path), encoding, status.st_mtime_ns, status.st_size))


def read_entries(file: IO[bytes], start: int, end: int) -> list[Any]:
    """The entries of a list between two places of a file that `open_utf8` opened.

    Raises:
        ValueError: If what stands there is not JSON.
    """
    file.seek(start)
    return json.loads(b'[%b]' % file.read(end - start))


@lru_cache(maxsize=1)
def _converted(path: str, encoding: str, mtime_ns: int, n_bytes: int) -> bytes:
    """A whole file in UTF-8; kept while the file has not changed, since it is asked for once an image."""
    return Path(path).read_bytes().decode(encoding).removeprefix('\ufeff').encode()


def _entries(cursor: _Cursor, lists: Collection[str], whole: Collection[str], found: set[str]) -> Iterator[Entry]:
    if cursor.peek() == '[':
        if '' in lists:
            found.add('')
            yield from _list_entries(cursor, '')
        else:
            raise TypeError(f'a list; expected a dictionary with {", ".join(map(repr, sorted(lists)))}')
    else:
        cursor.take('{')
        while cursor.peek() != '}':
            key = cursor.value()[0]
            if not isinstance(key, str):
                cursor.fail('expected a name in quotes')
            cursor.take(':')
            if key in whole:
                yield Entry(key, *cursor.value())
            elif key not in lists:
                cursor.value()
            elif cursor.peek() == '[':
                found.add(key)
                yield from _list_entries(cursor, key)
            else:
                raise TypeError(f'"{key}" is not a list')
            if cursor.peek() != '}':
                cursor.take(',')
        cursor.take('}')
    if cursor.peek():
        cursor.fail('more text behind the end')


def _list_entries(cursor: _Cursor, key: str) -> Iterator[Entry]:
    cursor.take('[')
    while cursor.peek() != ']':
        yield Entry(key, *cursor.value())
        if cursor.peek() != ']':
            cursor.take(',')
    cursor.take(']')


class _Cursor:
    """A place in a JSON file. Bytes are read as Latin-1, where one character is one byte, so places can be noted."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._text, self._at = '', 0  # decoded characters, and the place in them
        self._start = file.tell()  # byte of the first of them
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not blank; '' at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANKS:
                self._at += 1
            if self._at < len(self._text) or not self._read(_CHUNK_BYTES):
                return self._text[self._at : self._at + 1]

    def take(self, expected: str) -> None:
        """Steps over one character."""
        if self.peek() != expected:
            self.fail(f'expected {expected!r}')
        self._at += 1

    def value(self) -> tuple[Any, int, int]:
        """The next value, and where it starts and ends."""
        self.peek()
        n_bytes = _CHUNK_BYTES
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError:
                if len(self._text) - self._at > _MAX_VALUE_BYTES or not self._read(n_bytes):
                    raise
            else:
                # A number that was cut is a number too: 1 of 12, and 0 of 0.5 if it was cut behind the point.
                if self._text[end : end + 1] not in _MAY_GO_ON or not self._read(n_bytes):
                    break
            n_bytes *= 2  # so that a long value is not decoded again and again
        text = self._text[self._at : end]
        if not text.isascii():
            value = json.loads(text.encode('latin-1').decode('utf-8'))
        start, self._at = self._start + self._at, end
        return value, start, self._start + end

    def fail(self, message: str) -> None:
        """Raises the error that `json` itself would raise."""
        raise json.JSONDecodeError(f'{message}, byte {self._start + self._at}', self._text, self._at)

    def _read(self, n_bytes: int) -> bool:
        more = self._file.read(n_bytes).decode('latin-1')
        self._text, self._start, self._at = self._text[self._at :] + more, self._start + self._at, 0
        return bool(more)
