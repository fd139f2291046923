"""Loads and validates a COCO annotation file as ground truth, and matches file names to its images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

from unsam_mm.coco_files.fields import check_listed, entry_id, image_size, listed_name, repeated_id
from unsam_mm.coco_files.segmentations import PolygonFilter
from unsam_mm.errors import StoreError, error_context, first_names
from unsam_mm.files import read_json


def match_images(names: Iterable[str], ground_truth: Mapping[str, Any], skip_unmatched: bool = False) -> dict[str, Any]:
    """Matches image names with the images of a COCO file.

    A name matches the image with the same ``file_name``; else the image whose path has the most trailing parts in
    common with it, at least the file name: ``101085.jpg`` matches ``val/101085.jpg``. If ``file_name`` is missing,
    ``coco_url`` is used (LVIS).

    Args:
        names: Image names or paths, with suffix.
        ground_truth: A COCO dictionary.
        skip_unmatched: True to leave out names that match no image. An error is still raised if no name matches.

    Returns:
        Image id by name.

    Raises:
        StoreError: If a name matches no image or several equally well, two names match the same image, or an image of
            the file has no name.
    """
    by_file_name: dict[str, list[tuple[tuple[str, ...], Any]]] = defaultdict(list)
    for image in ground_truth['images']:
        parts = name_parts(listed_name(image))
        if not parts:
            raise StoreError(
                f'ground-truth image {image.get("id")} has no "file_name", so it cannot be matched with predictions'
            )
        by_file_name[parts[-1]].append((parts, image['id']))

    matched: dict[str, Any] = {}
    name_of: dict[Any, str] = {}
    missing = []
    for name in names:
        parts = name_parts(name)
        candidates = by_file_name.get(parts[-1], ()) if parts else ()  # '.' has no parts
        if not candidates:
            missing.append(name)
            continue
        # An equal path is a better match than a longer path that ends with it.
        ranked = [((_n_shared(parts, other), parts == other), other, image_id) for other, image_id in candidates]
        best_rank = max(rank for rank, _, _ in ranked)
        best = [(other, image_id) for rank, other, image_id in ranked if rank == best_rank]
        if len(best) > 1:
            paths = first_names(['/'.join(other) for other, _ in best])
            raise StoreError(
                f'{name}: fits {len(best)} images of the ground truth ({paths}); keep their folders in the name'
            )
        matched[name] = image_id = best[0][1]
        if (other := name_of.setdefault(image_id, name)) != name:
            raise StoreError(f'{other} and {name} fit the same ground-truth image {image_id}; keep one of them')
    if missing and not (skip_unmatched and matched):
        raise StoreError(
            f'{len(missing)} of {len(missing) + len(matched)} images with predictions are not in the ground truth '
            f'({first_names(missing)}); '
            'use predictions and ground truth of the same data set, or skip the others with '
            'skip_unmatched=True (--skip-unmatched on the command line)'
        )
    return matched


def name_parts(name: str) -> tuple[str, ...]:
    """The parts of a path, whose separators are slashes or backslashes."""
    return PurePosixPath(name.replace('\\', '/')).parts


def _n_shared(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    """Number of trailing parts that two paths have in common."""
    pairs = zip(reversed(left), reversed(right), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def load_ground_truth(path: str | Path) -> dict[str, Any]:
    """A COCO annotation file as a dictionary with non-empty ``images`` and ``annotations``.

    Float ids without a fraction become ints. Polygons that enclose nothing and annotations without a mask are left out;
    one warning gives the number of both.

    Raises:
        StoreError: If the file is missing, damaged, empty or not a COCO file, lists an image twice, or has annotations
            of images that it does not list, or none with a mask.
    """
    data = read_json(path)
    if not is_coco(data):
        raise StoreError(f'{path}: expected a COCO file with "images" and "annotations", found {describe(data)}')
    for key in ('images', 'annotations'):
        if not data[key]:
            raise StoreError(f'{path}: the list "{key}" is empty; nothing can be measured')
    images = read_image_entries(path, data['images'])
    annotations = with_ids(path, data['annotations'], 'annotation', 'image_id')
    check_listed(path, (annotation['image_id'] for annotation in annotations), {image['id'] for image in images})
    if not any('segments_info' in annotation for annotation in annotations):  # panoptic masks are in PNG files
        annotations = with_masks(path, annotations)
    return {**data, 'images': images, 'annotations': annotations}


def is_coco(data: Any) -> bool:
    """Whether parsed JSON is a dictionary with the lists "images" and "annotations"."""
    return isinstance(data, dict) and all(isinstance(data.get(key), list) for key in ('images', 'annotations'))


def read_image_entries(path: Path | str, entries: list[Any]) -> list[dict[str, Any]]:
    """The entries of "images", with valid ids and sizes.

    Raises:
        StoreError: If an entry is malformed, or two have the same id.
    """
    images = with_ids(path, entries, 'image', 'id')
    for index, image in enumerate(images):
        for key in ('file_name', 'coco_url'):
            value = image.get(key)
            if value is not None and not isinstance(value, str):
                raise StoreError(f'{path}: the "{key}" of image {index} is {value!r}; expected text')
        with error_context(f'{path}: image {index}'):
            height, width = image_size(image)
        images[index] = {**image, 'height': height, 'width': width}
    if len({isinstance(image['id'], str) for image in images}) == 2:
        raise StoreError(f'{path}: the "id" of some images is a number, of others text; use one of the two')
    if twice := repeated_id(images):
        raise StoreError(f'{path}: {twice}')
    return images


def with_ids(path: Path | str, entries: list[Any], what: str, key: str) -> list[dict[str, Any]]:
    """The entries, with the id under `key` as an int or a str.

    Args:
        path: The file, for messages.
        entries: Entries of a list of the file.
        what: Name of an entry in messages.
        key: Field with the id.

    Raises:
        StoreError: If an entry is not a dictionary or has no valid id.
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


def with_masks(path: Path | str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records that have a mask; one warning gives the number of the others."""
    polygons = PolygonFilter(str(path))
    kept = polygons(records)
    polygons.report()
    return kept


def describe(data: Any) -> str:
    """Description of parsed JSON, for messages."""
    return f'a dictionary with {sorted(data)[:5]}' if isinstance(data, dict) else f'a {type(data).__name__}'
