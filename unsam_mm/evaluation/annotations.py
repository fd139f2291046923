"""Reads ground truth and predictions from files and pairs their images by name."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from unsam_mm.errors import StoreError
from unsam_mm.files import read_json
from unsam_mm.pseudo_masks.store import PseudoMaskStore

_NAMED_IN_MESSAGES = 3
_IMAGE_FIELDS = {
    'file_name': (str, 'text'),
    'coco_url': (str, 'text'),
    'height': ((int, float), 'a number'),
    'width': ((int, float), 'a number'),
}


def load_ground_truth(path: str | Path) -> dict[str, Any]:
    """A COCO annotation file as a dictionary with non-empty ``images`` and ``annotations``.

    Raises:
        StoreError: If the file is missing, broken, empty, or not in COCO form.
    """
    data = read_json(path)
    if not _is_coco(data):
        raise StoreError(f'{path}: expected a COCO file with "images" and "annotations", found {_describe(data)}')
    for key in ('images', 'annotations'):
        if not data[key]:
            raise StoreError(f'{path}: the list "{key}" is empty; nothing can be measured')
    _check_images(path, data['images'])
    _check_keys(path, data['annotations'], 'annotation', 'image_id')
    return data


def load_predictions(
    path: str | Path, ground_truth: Mapping[str, Any], skip_unmatched: bool = False
) -> list[dict[str, Any]]:
    """Predictions as COCO result records whose ``image_id`` is that of the ground truth.

    Args:
        path: A folder written by `PseudoMaskStore`, a merged COCO file (``images`` and ``annotations`` with
            ``score`` or ``predicted_iou``), or a list of COCO result records. Images of the first two are paired by
            name (see `match_images`); a list of records must already use the ids of the ground truth.
        ground_truth: A COCO dictionary.
        skip_unmatched: Leave out images that the ground truth does not list, instead of raising.

    Raises:
        StoreError: If the path is missing, broken, empty, of another structure, or its images cannot be paired.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, ground_truth, skip_unmatched)
    data = read_json(path)
    if isinstance(data, list):
        records = data
    elif _is_coco(data):
        records = _rename_images(path, data, ground_truth, skip_unmatched)
    else:
        raise StoreError(
            f'{path}: expected a list of COCO results or a COCO file with "images" and "annotations", found {_describe(data)}'
        )
    if not records:
        raise StoreError(f'{path}: no predictions in it; nothing can be measured')
    _check_keys(path, records, 'record', 'image_id')
    if skip_unmatched:
        known = {image['id'] for image in ground_truth['images']}
        records = [record for record in records if record['image_id'] in known]
    return records


def match_images(names: Iterable[str], ground_truth: Mapping[str, Any], skip_unmatched: bool = False) -> dict[str, Any]:
    """Pairs image names with the images of a COCO file.

    A name belongs to the image with the same ``file_name``; else to the one that shares the longest end of its path
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
        parts = _parts(image.get('file_name') or image.get('coco_url') or '')
        if not parts:
            raise StoreError(
                f'ground-truth image {image.get("id")} has no "file_name", so predictions cannot be paired with it'
            )
        by_file[parts[-1]].append((parts, image['id']))

    paired: dict[str, Any] = {}
    missing = []
    for name in names:
        parts = _parts(name)
        shared = [(_shared_end(parts, other), other, image_id) for other, image_id in by_file.get(parts[-1], ())]
        if not shared:
            missing.append(name)
            continue
        # An equal path beats one that merely ends with it.
        best = max((length, parts == other) for length, other, _ in shared)
        fits = [(other, image_id) for length, other, image_id in shared if (length, parts == other) == best]
        if len(fits) > 1:
            rivals = ', '.join('/'.join(other) for other, _ in fits[:_NAMED_IN_MESSAGES])
            raise StoreError(
                f'{name}: fits {len(fits)} images of the ground truth ({rivals}); keep their folders in the name'
            )
        paired[name] = fits[0][1]
    if missing and not (skip_unmatched and paired):
        raise StoreError(
            f'{len(missing)} of {len(missing) + len(paired)} images with predictions are not in the ground truth '
            f'({", ".join(missing[:_NAMED_IN_MESSAGES])}{", ..." if len(missing) > _NAMED_IN_MESSAGES else ""}); '
            'use predictions and ground truth of the same data set, or skip the others with '
            'skip_unmatched=True (--skip-unmatched on the command line)'
        )
    _check_unique(paired)
    return paired


def _load_folder(path: Path, ground_truth: Mapping[str, Any], skip_unmatched: bool) -> list[dict[str, Any]]:
    store = PseudoMaskStore(path)
    names = store.names()
    if not names:
        raise StoreError(f'{path}: holds no pseudo-masks; make them with "python -m unsam_mm generate IMAGES {path}"')
    image_ids = match_images(names, ground_truth, skip_unmatched)
    return [record for name, image_id in image_ids.items() for record in store.read(name).to_coco(image_id)]


def _rename_images(
    path: Path, data: Mapping[str, Any], ground_truth: Mapping[str, Any], skip_unmatched: bool
) -> list[dict[str, Any]]:
    _check_images(path, data['images'])
    _check_keys(path, data['annotations'], 'annotation', 'image_id')
    names = {image['id']: image.get('file_name') or image.get('coco_url') or '' for image in data['images']}
    if '' in names.values():
        raise StoreError(f'{path}: some images have no "file_name", so they cannot be paired with the ground truth')
    image_ids = match_images(names.values(), ground_truth, skip_unmatched)
    records = []
    for index, annotation in enumerate(data['annotations']):
        name = names.get(annotation['image_id'])
        score = annotation.get('score', annotation.get('predicted_iou'))
        if name is None or score is None:
            raise StoreError(f'{path}: annotation {index} has {"no score" if score is None else "an unknown image_id"}')
        if name in image_ids:
            records.append({**annotation, 'image_id': image_ids[name], 'score': score})
    return records


def _is_coco(data: Any) -> bool:
    return isinstance(data, dict) and all(isinstance(data.get(key), list) for key in ('images', 'annotations'))


def _check_images(path: Path | str, images: list[Any]) -> None:
    _check_keys(path, images, 'image', 'id')
    for index, image in enumerate(images):
        for key, (kind, expected) in _IMAGE_FIELDS.items():
            value = image.get(key)
            if value is not None and not isinstance(value, kind):
                raise StoreError(f'{path}: the "{key}" of image {index} is {value!r}; expected {expected}')
    if len({isinstance(image['id'], str) for image in images}) == 2:
        raise StoreError(f'{path}: the "id" of some images is a number, of others text; use one of the two')


def _check_keys(path: Path | str, entries: list[Any], what: str, key: str) -> None:
    """Raises `StoreError` unless every entry is a dictionary with a number or text under `key`."""
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise StoreError(f'{path}: {what} {index} is {_describe(entry)}; expected a dictionary with "{key}"')
        if key not in entry:
            raise StoreError(f'{path}: {what} {index} has no "{key}"; it has {sorted(entry)[:5]}')
        if not isinstance(entry[key], (int, float, str)):
            raise StoreError(f'{path}: the "{key}" of {what} {index} is {entry[key]!r}; expected a number or text')


def _describe(data: Any) -> str:
    return f'a dictionary with {sorted(data)[:5]}' if isinstance(data, dict) else f'a {type(data).__name__}'


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name.replace('\\', '/')).parts


def _shared_end(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    length = 0
    for a, b in zip(reversed(left), reversed(right), strict=False):
        if a != b:
            break
        length += 1
    return length


def _check_unique(paired: Mapping[str, Any]) -> None:
    owner: dict[Any, str] = {}
    for name, image_id in paired.items():
        if image_id in owner:
            raise StoreError(
                f'{owner[image_id]} and {name} fit the same ground-truth image {image_id}; keep one of them'
            )
        owner[image_id] = name
