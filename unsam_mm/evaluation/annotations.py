"""Reads ground truth and predictions from files and pairs their images by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unsam_mm.coco_files.matching import match_images
from unsam_mm.errors import StoreError
from unsam_mm.files import read_json
from unsam_mm.pseudo_masks.store import PseudoMaskStore

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
