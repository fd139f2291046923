"""An index of a COCO file of any size: images by number, and their annotations on demand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unsam_mm.coco_files.fields import category_order, listed_name
from unsam_mm.coco_files.index import AnnotationIndex, ListedImage
from unsam_mm.coco_files.segmentations import PolygonFilter
from unsam_mm.coco_files.stream import stream_lists
from unsam_mm.errors import StoreError


class CocoIndex:
    """The images of a COCO file by number, in the order of the file; see `AnnotationIndex`.

    Args:
        path: The file.

    Raises:
        StoreError: If the file is missing, damaged or not in COCO format, lists an image twice, or has annotations of
            images that it does not list.

    Attributes:
        polygons: Filter for degenerate polygons, with their number in the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.polygons = PolygonFilter(str(path))
        self._index = AnnotationIndex(path)
        found = set()
        for entry in stream_lists(self.path, {'images', 'annotations'}):
            found.add(entry.key)
            if entry.key == 'images':
                self._index.add_image(entry.value, _name_of)
            else:
                self._index.add_annotation(entry)
                self.polygons([entry.value])
        if 'images' not in found:
            raise StoreError(f'{path}: no images in it; expected a COCO file with "images" and "annotations"')
        self._index.check_listed()

    def __len__(self) -> int:
        return len(self._index.images)

    def image(self, number: int) -> ListedImage:
        """An image; its name is a path relative to the image folder."""
        return self._index.images[number]

    def annotations(self, number: int) -> list[dict[str, Any]]:
        """The annotations of one image that have a mask, in COCO's order, by category.

        Raises:
            StoreError: If the file has changed since.
        """
        return sorted(PolygonFilter(str(self.path))(self._index.read_records(number)), key=category_order)


def _name_of(image: Mapping[str, Any], path: Path) -> str:
    name = listed_name(image)
    if not isinstance(name, str) or not name:
        raise StoreError(f'{path}: image {image["id"]} has neither "file_name" nor "coco_url", so it cannot be found')
    return name.replace('\\', '/')
