"""A COCO file of any size, read once to note its images and where their annotations lie."""

from __future__ import annotations

from array import array
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from unsam_mm.coco_files.fields import category_order, duplicate_message, entry_id, image_size, other_type_hint
from unsam_mm.coco_files.segmentations import PolygonFilter
from unsam_mm.coco_files.stream import open_utf8, read_entries, stream_lists
from unsam_mm.errors import StoreError, UnSAMError

_NAMED_IN_MESSAGES = 3


class CocoIndex:
    """The images of a COCO file by number, in the order of the file; annotations stay on disk until they are wanted.

    An image takes some hundred bytes, an annotation at most 24, and none where annotations of one image stand together.

    Args:
        path: The file.

    Raises:
        StoreError: If the file is missing, broken, or not in COCO form, lists an image twice, or has annotations of
            images that it does not list.

    Attributes:
        polygons: Which polygons enclose nothing and are left out; counted when the file is read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.polygons = PolygonFilter(str(path))
        self._numbers: dict[Any, int] = {}  # by image id
        self._images: list[tuple[Any, str, int | None, int | None] | None] = []
        runs = array('q')  # image number, first byte, byte behind the last, of annotations that follow each other
        found = set()
        for entry in stream_lists(self.path, {'images', 'annotations'}):
            found.add(entry.key)
            if entry.key == 'images':
                self._note_image(entry.value)
                continue
            number = self._number(entry.value, 'image_id')
            self.polygons([entry.value])
            if runs and runs[-3] == number:
                runs[-1] = entry.end
            else:
                runs.extend((number, entry.start, entry.end))
        if 'images' not in found:
            raise StoreError(f'{path}: no images in it; expected a COCO file with "images" and "annotations"')
        self._check_listed()
        self._runs = np.frombuffer(runs, np.int64).reshape(-1, 3)
        self._runs = self._runs[np.argsort(self._runs[:, 0], kind='stable')]

    def __len__(self) -> int:
        return len(self._images)

    def image(self, number: int) -> tuple[Any, str, int | None, int | None]:
        """Id, name, height and width (None if the file does not say); the name is a path below the image folder."""
        return self._images[number]

    def annotations(self, number: int) -> list[dict[str, Any]]:
        """The annotations of one image that have a mask.

        They are sorted by category, which is the order in which COCO's own code looks at them.

        Raises:
            StoreError: If the file has changed since.
        """
        first, end = np.searchsorted(self._runs[:, 0], [number, number + 1])
        image_id, found = self._images[number][0], []
        try:
            with open_utf8(self.path) as file:
                for _, start, stop in self._runs[first:end].tolist():
                    found += read_entries(file, start, stop)
            if any(entry_id(annotation['image_id']) != image_id for annotation in found):
                raise ValueError('another image')
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f'{self.path}: the annotations of image {image_id} are no longer where they were ({error}); '
                'the file has changed, start again'
            ) from error
        return sorted(PolygonFilter(str(self.path))(found), key=category_order)

    def _note_image(self, image: Any) -> None:
        number = self._number(image, 'id')
        name = _name_of(image, self.path)
        if (other := self._images[number]) is not None:
            raise StoreError(f'{self.path}: {duplicate_message(image["id"], other[1], name)}')
        try:
            self._images[number] = (entry_id(image['id']), name, *image_size(image))
        except UnSAMError as error:
            raise StoreError(f'{self.path}: {name}: {error}') from error

    def _number(self, value: Any, key: str) -> int:
        image_id = entry_id(value.get(key)) if isinstance(value, dict) else None
        if image_id is None:
            raise StoreError(f'{self.path}: found {str(value)[:60]!r} where an entry with "{key}" was expected')
        number = self._numbers.setdefault(image_id, len(self._images))
        if number == len(self._images):
            self._images.append(None)
        return number

    def _check_listed(self) -> None:
        lost = [image_id for image_id, number in self._numbers.items() if self._images[number] is None]
        if lost:
            named = ', '.join(map(str, lost[:_NAMED_IN_MESSAGES]))
            advice = 'expected a COCO file whose "images" hold all of them'
            hint = other_type_hint(lost, self._numbers.keys() - set(lost))
            raise StoreError(
                f'{self.path}: annotations of {len(lost)} images that are not listed ({named}); {hint or advice}'
            )


def _name_of(image: dict[str, Any], path: Path) -> str:
    """``file_name``; LVIS has none, there it is the end of the address: ``val2017/000000397133.jpg``."""
    name = image.get('file_name')
    if not name and isinstance(image.get('coco_url'), str):
        name = '/'.join(PurePosixPath(urlsplit(image['coco_url']).path).parts[-2:])
    if not isinstance(name, str) or not name:
        raise StoreError(f'{path}: image {image["id"]} has neither "file_name" nor "coco_url", so it cannot be found')
    return name.replace('\\', '/')
