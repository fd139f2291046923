"""Index of the annotations of each image in a COCO file; annotations are read from disk on demand."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unsam_mm.coco_files.fields import duplicate_message, entry_id, image_size, other_type_hint
from unsam_mm.coco_files.stream import Entry, open_utf8, read_entries
from unsam_mm.errors import StoreError, UnSAMError

_NAMED_IN_MESSAGES = 3


class ListedImage(NamedTuple):
    """An entry of "images"; height and width are None where the file does not state them."""

    id: int | str
    name: str
    height: int | None
    width: int | None


class AnnotationIndex:
    """The images of a COCO file by number, in the order in which the file names them.

    An image takes some hundred bytes, an annotation at most 24, and none where annotations of one image stand together.

    Args:
        path: The file.

    Attributes:
        number_of: Number by image id.
        images: By number; None for an image that annotations name and "images" has not listed yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.number_of: dict[int | str, int] = {}
        self.images: list[ListedImage | None] = []
        # Image number, first byte and end (exclusive) of annotations that follow each other.
        self._spans = array('q')

    def add_image(self, image: Any, name_of: Callable[[Mapping[str, Any], Path], str]) -> None:
        """Adds an entry of "images".

        Raises:
            StoreError: If it is malformed, or its id is listed already.
        """
        number = self._number(image, 'id')
        name = name_of(image, self.path)
        if (other := self.images[number]) is not None:
            raise StoreError(f'{self.path}: {duplicate_message(image["id"], other.name, name)}')
        try:
            self.images[number] = ListedImage(entry_id(image['id']), name, *image_size(image))
        except UnSAMError as error:
            raise StoreError(f'{self.path}: {name}: {error}') from error

    def add_annotation(self, entry: Entry) -> None:
        """Adds the place of an annotation.

        Raises:
            StoreError: If it has no image id.
        """
        number = self._number(entry.value, 'image_id')
        if self._spans and self._spans[-3] == number:
            self._spans[-1] = entry.end
        else:
            self._spans.extend((number, entry.start, entry.end))

    def check_listed(self, listed: Collection[Any] | None = None, advice: str = '') -> None:
        """Raises `StoreError` if annotations name images that are not listed.

        Args:
            listed: Image ids that there are, for the message; by default those of "images".
            advice: Added to the message.
        """
        unlisted = [image_id for image_id, number in self.number_of.items() if self.images[number] is None]
        if unlisted:
            listed = self.number_of.keys() - set(unlisted) if listed is None else listed
            remedy = (
                other_type_hint(unlisted, listed) or f'expected a COCO file whose "images" hold all of them{advice}'
            )
            raise StoreError(
                f'{self.path}: annotations of {len(unlisted)} images that are not listed '
                f'({", ".join(map(str, unlisted[:_NAMED_IN_MESSAGES]))}); {remedy}'
            )

    def read_records(self, number: int) -> list[dict[str, Any]]:
        """The annotations of one image, in the order of the file.

        Raises:
            StoreError: If the file has changed since.
        """
        image, records = self.images[number], []
        first, end = np.searchsorted(self._sorted_spans[:, 0], [number, number + 1])
        try:
            with open_utf8(self.path) as file:
                for _, start, stop in self._sorted_spans[first:end].tolist():
                    records += read_entries(file, start, stop)
            if any(entry_id(record['image_id']) != image.id for record in records):
                raise ValueError('another image')
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f'{self.path}: the annotations of {image.name} are no longer where they were ({error}); the file has '
                'changed, start again'
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
