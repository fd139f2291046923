"""Loads and validates a COCO annotation file as ground truth, and matches file names to its images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from unsam_mm.coco_files.fields import entry_id, image_size, listed_name, other_type_hint, repeated_id
from unsam_mm.coco_files.segmentations import PolygonFilter
from unsam_mm.errors import StoreError, first_names, located
from unsam_mm.files import read_json


def match_images(names: Iterable[str], ground_truth: Mapping[str, Any], skip_unmatched: bool = False) -> dict[str, Any]:
    """Pairs image names with the images of a COCO file.

    A name matches the image with the same ``file_name``; else to the one that shares the longest end of its path
    (whole parts, at least the file name), so that ``101085.jpg`` finds ``val/101085.jpg``. Where ``file_name`` is
    missing, ``coco_url`` is used (LVIS).

    Args:
        names: Image names or paths, with their suffix.
        ground_truth: A COCO dictionary.
        skip_unmatched: Leave out names that no image has, instead of raising.

    Returns:
        Name to image id.

    Raises:
        StoreError: If a name fits no image, fits several equally well, or two names fit the same image.
    """
    by_file: dict[str, list[tuple[tuple[str, ...], Any]]] = defaultdict(list)
    for image in ground_truth['images']:
        parts = name_parts(listed_name(image))
        if not parts:
            raise StoreError(
                f'ground-truth image {image.get("id")} has no "file_name", so predictions cannot be paired with it'
            )
        by_file[parts[-1]].append((parts, image['id']))

    paired: dict[str, Any] = {}
    missing = []
    for name in names:
        parts = name_parts(name)
        named_alike = by_file.get(parts[-1], ()) if parts else ()  # '.' has no parts
        shared = [(_shared_end(parts, other), other, image_id) for other, image_id in named_alike]
        if not shared:
            missing.append(name)
            continue
        # An equal path beats one that merely ends with it.
        best = max((length, parts == other) for length, other, _ in shared)
        fits = [(other, image_id) for length, other, image_id in shared if (length, parts == other) == best]
        if len(fits) > 1:
            rivals = first_names(['/'.join(other) for other, _ in fits])
            raise StoreError(
                f'{name}: fits {len(fits)} images of the ground truth ({rivals}); keep their folders in the name'
            )
        paired[name] = fits[0][1]
    if missing and not (skip_unmatched and paired):
        raise StoreError(
            f'{len(missing)} of {len(missing) + len(paired)} images with predictions are not in the ground truth '
            f'({first_names(missing)}); '
            'use predictions and ground truth of the same data set, or skip the others with '
            'skip_unmatched=True (--skip-unmatched on the command line)'
        )
    _check_unique(paired)
    return paired


def name_parts(name: str) -> tuple[str, ...]:
    """Folders and file name of a path, whose folders may be divided as on Windows."""
    return PurePosixPath(name.replace('\\', '/')).parts


def _shared_end(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    pairs = zip(reversed(left), reversed(right), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _check_unique(paired: Mapping[str, Any]) -> None:
    owner: dict[Any, str] = {}
    for name, image_id in paired.items():
        if image_id in owner:
            raise StoreError(
                f'{owner[image_id]} and {name} fit the same ground-truth image {image_id}; keep one of them'
            )
        owner[image_id] = name


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
        with located(f'{path}: image {index}'):
            height, width = image_size(image)
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
