"""Writes a COCO annotation file image by image."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from unsam_mm.files import atomic_writer

_MAX_SPOOLED_BYTES = 1 << 24  # image entries beyond this size go to a temporary file


class CocoWriter:
    """Writes a COCO file image by image; see `coco_writer`.

    Attributes:
        n_images: Number of images written.
        n_masks: Number of masks written.
    """

    def __init__(self, annotations: IO[str], images: IO[str]) -> None:
        self._annotations, self._images = annotations, images
        self.n_images = self.n_masks = 0

    def add(self, name: str, size_hw: Sequence[int | None], records: Sequence[Mapping[str, Any]]) -> None:
        """Writes one image and its annotations; the ids of both are counted from 1.

        Args:
            name: Value of ``file_name``.
            size_hw: Height and width in pixels; an unknown side (None) is left out.
            records: Annotations without ids; ``parent`` is the position of the parent in this list, or -1.
        """
        self.n_images += 1
        size = {key: int(side) for key, side in zip(('height', 'width'), size_hw, strict=True) if side is not None}
        self._images.write(',' if self.n_images > 1 else '')
        self._images.write(_compact({'id': self.n_images, 'file_name': name, **size}))
        offset = self.n_masks + 1
        for record in records:
            self._annotations.write(',' if self.n_masks else '')
            self.n_masks += 1
            ids = {'id': self.n_masks, 'image_id': self.n_images, 'category_id': 1}
            parent = record.get('parent', -1)
            ids['parent'] = offset + parent if parent >= 0 else -1
            self._annotations.write(_compact({'iscrowd': 0, **record, **ids}))


@contextmanager
def coco_writer(path: str | Path, info: Mapping[str, Any]) -> Iterator[CocoWriter]:
    """Writes a COCO file with the category "object"; the file is created only if the block ends without an error.

    Memory use does not grow with the number of images: image entries are collected in a temporary file and appended.

    Args:
        path: The file.
        info: The value of "info".

    Raises:
        StoreError: If the file cannot be written.
    """
    with (
        atomic_writer(path) as file,
        tempfile.SpooledTemporaryFile(_MAX_SPOOLED_BYTES, 'w+', encoding='utf-8') as images,
    ):
        categories = [{'id': 1, 'name': 'object'}]
        file.write(f'{{"info":{_compact(info)},"categories":{_compact(categories)},"annotations":[')
        yield CocoWriter(file, images)
        file.write('],"images":[')
        images.seek(0)
        shutil.copyfileobj(images, file)
        file.write(']}')


def _compact(value: Any) -> str:
    try:
        return json.dumps(value, separators=(',', ':'), allow_nan=False)
    except ValueError:  # JSON has no NaN or infinity, but records may contain them
        return json.dumps(_without_nan(value), separators=(',', ':'), allow_nan=False)


def _without_nan(value: Any) -> Any:
    """A value with None in place of NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
