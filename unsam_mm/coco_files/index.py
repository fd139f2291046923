"""Streams the long lists of JSON files, one entry in memory at a time, and indexes the annotations of each image."""

from __future__ import annotations

import io
import json
import os
from array import array
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from unsam_mm.coco_files.fields import check_listed, duplicate_message, entry_id, image_size, listed_name
from unsam_mm.errors import StoreError, error_context
from unsam_mm.files import GZIP, GZIP_MESSAGE, json_errors

_CHUNK_BYTES = 1 << 20
_MAX_VALUE_BYTES = 1 << 28  # longer than any annotation, so a large file that is not JSON is not read to its end
_BLANKS = ' \t\n\r'
_MAY_CONTINUE = ('', '.', 'e', 'E')  # characters after the digits of a number that may be incomplete

TOP_LEVEL = ''
"""Name of the list in a file that is only a list, such as a file of COCO results."""


@dataclass(frozen=True)
class Entry:
    """One entry of a list.

    Attributes:
        key: Name of the list or value in the top-level dictionary, or `TOP_LEVEL`.
        value: The decoded entry.
        start: Position of its first byte in the file.
        end: Position after its last byte.
    """

    key: str
    value: Any
    start: int
    end: int


def stream_lists(
    path: str | Path, lists: Collection[str], whole: Collection[str] = (), found: set[str] | None = None
) -> Iterator[Entry]:
    """Yields the entries of some lists of a JSON file, in the order of the file.

    Args:
        path: The file, a dictionary or a list.
        lists: Names of the lists to read, or `TOP_LEVEL`. Other values are skipped.
        whole: Names of short values, each of which is yielded as one entry.
        found: Set to which the names in `lists` that are found in the file are added, including those of empty lists.

    Raises:
        StoreError: If the file is missing, not JSON or truncated, or a value under one of the names is not a list.
    """
    try:
        with json_errors(path), open_utf8(path) as file:
            yield from _entries(_Cursor(file), lists, whole, set() if found is None else found)
    except TypeError as error:
        raise StoreError(f'{path}: {error}') from error


def open_utf8(path: str | Path) -> IO[bytes]:
    """Opens a JSON file as UTF-8 bytes after the byte order mark; UTF-16 and UTF-32 are converted in memory.

    Raises:
        OSError: If it cannot be read.
        StoreError: If it is compressed.
        UnicodeDecodeError: If it is not in the encoding that its first bytes indicate.
    """
    file = Path(path).open('rb')  # noqa: SIM115  (the caller closes it)
    start = file.read(4)
    if start.startswith(GZIP):
        file.close()
        raise StoreError(f'{path}: {GZIP_MESSAGE}')
    encoding = json.detect_encoding(start)
    if encoding.startswith('utf-8'):
        file.seek(len(BOM_UTF8) if encoding == 'utf-8-sig' else 0)
        return file
    with file:
        status = os.fstat(file.fileno())
    return io.BytesIO(_converted(str(path), encoding, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=1)
def _converted(path: str, encoding: str, mtime_ns: int, n_bytes: int) -> bytes:
    """A whole file in UTF-8; cached until the file changes, since it is opened again for each image."""
    return Path(path).read_bytes().decode(encoding).removeprefix('\ufeff').encode()


def _entries(cursor: _Cursor, lists: Collection[str], whole: Collection[str], found: set[str]) -> Iterator[Entry]:
    if cursor.peek() == '[':
        if TOP_LEVEL not in lists:
            raise TypeError(f'a list; expected a dictionary with {", ".join(map(repr, sorted(lists)))}')
        found.add(TOP_LEVEL)
        yield from _list_entries(cursor, TOP_LEVEL)
    else:
        cursor.expect('{')
        while cursor.peek() != '}':
            key = cursor.value()[0]
            if not isinstance(key, str):
                cursor.fail('expected a name in quotes')
            cursor.expect(':')
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
                cursor.expect(',')
        cursor.expect('}')
    if cursor.peek():
        cursor.fail('more text after the end')


def _list_entries(cursor: _Cursor, key: str) -> Iterator[Entry]:
    cursor.expect('[')
    while cursor.peek() != ']':
        yield Entry(key, *cursor.value())
        if cursor.peek() != ']':
            cursor.expect(',')
    cursor.expect(']')


class _Cursor:
    """A position in a JSON file. Bytes are read as Latin-1, so one character is one byte."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._text, self._at = '', 0  # characters in memory, and the position of the next one
        self._start = file.tell()  # position of the first of them in the file
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next non-blank character; '' at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _BLANKS:
                self._at += 1
            if self._at < len(self._text) or not self._read(_CHUNK_BYTES):
                return self._text[self._at : self._at + 1]

    def expect(self, expected: str) -> None:
        """Skips one character, which must be the expected one."""
        if self.peek() != expected:
            self.fail(f'expected {expected!r}')
        self._at += 1

    def value(self) -> tuple[Any, int, int]:
        """The next value, and the positions of its first byte and after its last one."""
        self.peek()
        n_bytes = _CHUNK_BYTES
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError:
                if len(self._text) - self._at > _MAX_VALUE_BYTES or not self._read(n_bytes):
                    raise
            else:
                # The first characters of a number are a number, too: 1 of 12, and 0 of 0.5.
                if self._text[end : end + 1] not in _MAY_CONTINUE or not self._read(n_bytes):
                    break
            n_bytes *= 2  # so that a long value is decoded only a few times
        text = self._text[self._at : end]
        if not text.isascii():
            value = json.loads(text.encode('latin-1').decode('utf-8'))
        start, self._at = self._start + self._at, end
        return value, start, self._start + end

    def fail(self, message: str) -> None:
        """Raises `json.JSONDecodeError` with the message and the position in the file."""
        raise json.JSONDecodeError(f'{message}, byte {self._start + self._at}', self._text, self._at)

    def _read(self, n_bytes: int) -> bool:
        more = self._file.read(n_bytes).decode('latin-1')
        self._text, self._start, self._at = self._text[self._at :] + more, self._start + self._at, 0
        return bool(more)


class ListedImage(NamedTuple):
    """An entry of "images"; height and width are None if the file does not have them."""

    id: int | str
    name: str
    height: int | None
    width: int | None


class AnnotationIndex:
    """The images of a COCO file, and the positions of their annotations in the file.

    Memory: a few hundred bytes for each image, and 24 bytes for each run of consecutive annotations of one image.

    Args:
        path: The file; may be a list of annotations or results if `lists` contains `TOP_LEVEL`.
        nameless: Message for an image without a name, which follows its id.
        lists: Names of the lists to read.
        each: Called with each annotation.

    Attributes:
        number_of: Number of each image, by id, in the order in which the ids first appear in the file.
        images: The images, indexed by number; None for an image that has annotations but is not listed.
        found: Names in `lists` that are found in the file, including those of empty lists.
        info: The value of "info".

    Raises:
        StoreError: If the file is damaged or not a COCO file, an entry is malformed, or an image is listed twice.
    """

    def __init__(
        self,
        path: str | Path,
        nameless: str,
        lists: Collection[str] = ('images', 'annotations'),
        each: Callable[[Any], object] = lambda record: None,
    ) -> None:
        self.path, self._nameless = Path(path), nameless
        self.number_of: dict[int | str, int] = {}
        self.images: list[ListedImage | None] = []
        self.found: set[str] = set()
        self.info = None
        # Image number, first byte and end (exclusive) of consecutive annotations of an image.
        self._spans = array('q')
        for entry in stream_lists(path, lists, whole={'info'}, found=self.found):
            if entry.key == 'info':
                self.info = entry.value
            elif entry.key == 'images':
                self._add_image(entry.value)
            else:
                self._add_annotation(entry)
                each(entry.value)

    def _add_image(self, image: Any) -> None:
        number = self._number(image, 'id')
        name = listed_name(image)
        if not isinstance(name, str) or not name:
            raise StoreError(f'{self.path}: image {image["id"]} {self._nameless}')
        if (other := self.images[number]) is not None:
            raise StoreError(f'{self.path}: {duplicate_message(image["id"], other.name, name)}')
        with error_context(f'{self.path}: {name}'):
            self.images[number] = ListedImage(entry_id(image['id']), name, *image_size(image))

    def _add_annotation(self, entry: Entry) -> None:
        number = self._number(entry.value, 'image_id')
        if self._spans and self._spans[-3] == number:
            self._spans[-1] = entry.end
        else:
            self._spans.extend((number, entry.start, entry.end))

    def check_listed(self, listed: Collection[Any] | None = None, advice: str = '') -> None:
        """Raises `StoreError` if there are annotations of images that are not listed.

        Args:
            listed: Ids of images; by default those of "images".
            advice: Added to the message.
        """
        if listed is None:
            listed = {image.id for image in self.images if image is not None}
        check_listed(self.path, self.number_of, listed, advice)

    def read_records(self, number: int) -> list[dict[str, Any]]:
        """The annotations of the image with this number, in the order of the file.

        Raises:
            StoreError: If the file has changed since it was indexed.
        """
        image, records = self.images[number], []
        first, end = np.searchsorted(self._sorted_spans[:, 0], [number, number + 1])
        try:
            with open_utf8(self.path) as file:
                for _, start, stop in self._sorted_spans[first:end].tolist():
                    file.seek(start)
                    records += json.loads(b'[%b]' % file.read(stop - start))
            if any(entry_id(record['image_id']) != image.id for record in records):
                raise ValueError('another image')
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f'{self.path}: has changed while it was in use, so the annotations of {image.name} cannot be read '
                f'({error}); start again'
            ) from error
        return records

    @cached_property
    def _sorted_spans(self) -> np.ndarray:
        spans = np.frombuffer(self._spans, np.int64).reshape(-1, 3)
        return spans[np.argsort(spans[:, 0], kind='stable')]

    def _number(self, value: Any, key: str) -> int:
        image_id = entry_id(value.get(key)) if isinstance(value, dict) else None
        if image_id is None:
            raise StoreError(f'{self.path}: found {str(value)[:60]!r} where an entry with "{key}" was expected')
        number = self.number_of.setdefault(image_id, len(self.images))
        if number == len(self.images):
            self.images.append(None)
        return number
