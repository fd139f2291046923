"""Loads and validates a COCO annotation file as ground truth for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unsam_mm.coco_files.fields import entry_id, image_size, other_type_hint, repeated_id
from unsam_mm.coco_files.segmentations import PolygonFilter
from unsam_mm.errors import StoreError, UnSAMError, first_names
from unsam_mm.files import read_json


def load_ground_truth(path: str | Path) -> dict[str, Any]:
    """A COCO annotation file as a dictionary with non-empty ``images`` and ``annotations``.

    Ids that are whole floats become whole numbers. Polygons that enclose nothing are left out, and so are annotations
    without a mask; one warning gives their number.

    Raises:
        StoreError: If the file is missing, broken, empty, or not in COCO form, lists an image twice, or has annotations
            of images that it does not list.
    """
    data = read_json(path)
    if not is_coco(data):
        raise StoreError(f'{path}: expected a COCO file with "images" and "annotations", found {describe(data)}')
    for key in ('images', 'annotations'):
        if not data[key]:
            raise StoreError(f'{path}: the list "{key}" is empty; nothing can be measured')
    images = read_image_entries(path, data['images'])
    annotations = with_ids(path, data['annotations'], 'annotation', 'image_id')
    check_listed(path, annotations, images)
    if not any('segments_info' in annotation for annotation in annotations):  # whose masks are PNG files
        annotations = with_masks(path, annotations)
    return {**data, 'images': images, 'annotations': annotations}


def is_coco(data: Any) -> bool:
    """Whether parsed JSON is a dictionary with the lists "images" and "annotations"."""
    return isinstance(data, dict) and all(isinstance(data.get(key), list) for key in ('images', 'annotations'))


def read_image_entries(path: Path | str, entries: list[Any]) -> list[dict[str, Any]]:
    """The entries of "images", with ids and sizes as whole numbers.

    Raises:
        StoreError: If an entry is malformed, or two have the same id.
    """
    images = with_ids(path, entries, 'image', 'id')
    for index, image in enumerate(images):
        for key in ('file_name', 'coco_url'):
            value = image.get(key)
            if value is not None and not isinstance(value, str):
                raise StoreError(f'{path}: the "{key}" of image {index} is {value!r}; expected text')
        try:
            height, width = image_size(image)
        except UnSAMError as error:
            raise StoreError(f'{path}: image {index}: {error}') from error
        images[index] = {**image, 'height': height, 'width': width}
    if len({isinstance(image['id'], str) for image in images}) == 2:
        raise StoreError(f'{path}: the "id" of some images is a number, of others text; use one of the two')
    if twice := repeated_id(images):
        raise StoreError(f'{path}: {twice}')
    return images


def with_ids(path: Path | str, entries: list[Any], what: str, key: str) -> list[dict[str, Any]]:
    """The entries, with what is under `key` as a whole number or text.

    Raises:
        StoreError: If an entry is no dictionary, or has no such id.
    """
    found = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise StoreError(f'{path}: {what} {index} is {describe(entry)}; expected a dictionary with "{key}"')
        if key not in entry:
            raise StoreError(f'{path}: {what} {index} has no "{key}"; it has {sorted(entry)[:5]}')
        number = entry_id(entry[key])
        if number is None:
            raise StoreError(
                f'{path}: the "{key}" of {what} {index} is {entry[key]!r}; expected a whole number or text'
            )
        found.append(entry if number is entry[key] else {**entry, key: number})
    return found


def check_listed(path: Path | str, annotations: list[dict[str, Any]], images: list[dict[str, Any]]) -> None:
    """Raises `StoreError` if annotations refer to images that are not in the list."""
    listed = {image['id'] for image in images}
    unknown = {annotation['image_id']: None for annotation in annotations if annotation['image_id'] not in listed}
    if unknown:
        hint = other_type_hint(unknown, listed)
        raise StoreError(
            f'{path}: annotations of {len(unknown)} images that are not listed ({first_names(list(map(str, unknown)))}); '
            f'{hint or "expected a COCO file whose images hold all of them"}'
        )


def with_masks(path: Path | str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records that have a mask; one warning tells of the others."""
    polygons = PolygonFilter(str(path))
    kept = polygons(records)
    polygons.report()
    return kept


def describe(data: Any) -> str:
    """What parsed JSON is, for messages."""
    return f'a dictionary with {sorted(data)[:5]}' if isinstance(data, dict) else f'a {type(data).__name__}'
