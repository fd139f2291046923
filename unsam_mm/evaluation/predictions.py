"""Reads predictions from files and pairs their images with those of the ground truth by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unsam_mm.coco_files.fields import check_listed, image_size, listed_name, other_type_hint
from unsam_mm.coco_files.ground_truth import (
    describe,
    is_coco,
    match_images,
    read_image_entries,
    with_ids,
    with_masks,
)
from unsam_mm.errors import StoreError, first_names, located
from unsam_mm.files import read_json
from unsam_mm.folders.store import PseudoMaskStore


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
    elif is_coco(data):
        records = _rename_images(path, data, ground_truth, skip_unmatched)
    else:
        raise StoreError(
            f'{path}: expected a list of COCO results or a COCO file with "images" and "annotations", found {describe(data)}'
        )
    if not records:
        raise StoreError(f'{path}: no predictions in it; nothing can be measured')
    records = with_ids(path, records, 'record', 'image_id')
    known = {image['id'] for image in ground_truth['images']}
    if hint := other_type_hint((record['image_id'] for record in records), known):
        raise StoreError(f'{path}: {hint}')
    if skip_unmatched:
        records = [record for record in records if record['image_id'] in known]
        if not records:
            raise StoreError(
                f'{path}: no prediction is of an image that the ground truth lists; nothing can be measured'
            )
    lacking = next((index for index, record in enumerate(records) if 'segmentation' not in record), None)
    if lacking is not None:
        raise StoreError(f'{path}: record {lacking} has no "segmentation"; expected masks as run lengths or polygons')
    return with_masks(path, records)


def _load_folder(path: Path, ground_truth: Mapping[str, Any], skip_unmatched: bool) -> list[dict[str, Any]]:
    store = PseudoMaskStore(path)
    names = store.names()
    if not names:
        raise StoreError(f'{path}: holds no pseudo-masks; make them with "python -m unsam_mm generate IMAGES {path}"')
    with located(path):
        image_ids = match_images(names, ground_truth, skip_unmatched)
    failed: dict[str, str] = {}
    records = [
        record for name, masks in store.read_each(image_ids, failed) for record in masks.to_coco(image_ids[name])
    ]
    if failed:  # a figure over fewer images, or with some as missed, is that of no set of predictions
        files = ', '.join(store.path_of(name).relative_to(path).as_posix() for name in failed)
        raise StoreError(
            f'{path}: {len(failed)} of {len(image_ids)} files of masks are damaged or may not be read; allow it, or '
            f'remove these and make them again with "python -m unsam_mm generate IMAGES {path}": {files}'
        )
    return records


def _rename_images(
    path: Path, data: Mapping[str, Any], ground_truth: Mapping[str, Any], skip_unmatched: bool
) -> list[dict[str, Any]]:
    images = read_image_entries(path, data['images'])
    annotations = with_ids(path, data['annotations'], 'annotation', 'image_id')
    names = {image['id']: listed_name(image) for image in images}
    if '' in names.values():
        raise StoreError(f'{path}: some images have no "file_name", so they cannot be paired with the ground truth')
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise StoreError(
            f'{path}: several images have the name {first_names(twice)}, so they would be measured against the same ground truth; '
            'keep one entry for each name'
        )
    check_listed(path, (annotation['image_id'] for annotation in annotations), names)
    with located(path):
        image_ids = match_images(names.values(), ground_truth, skip_unmatched)
    _check_sizes(path, images, ground_truth, {image['id']: image_ids.get(names[image['id']]) for image in images})
    records = []
    for index, annotation in enumerate(annotations):
        name = names[annotation['image_id']]
        score = annotation.get('score', annotation.get('predicted_iou'))
        if score is None:
            raise StoreError(f'{path}: annotation {index} has no score')
        if name in image_ids:
            records.append({**annotation, 'image_id': image_ids[name], 'score': score})
    return records


def _check_sizes(
    path: Path, images: Iterable[Mapping[str, Any]], ground_truth: Mapping[str, Any], paired: Mapping[Any, Any]
) -> None:
    """Raises `StoreError` if an image and its pair are stated to have other sizes: polygons carry no image size."""
    truths = {image['id']: image_size(image) for image in ground_truth['images']}
    for image in images:
        found, expected = image_size(image), truths.get(paired[image['id']], (None, None))
        if None not in found + expected and found != expected:
            raise StoreError(
                f'{path}: {listed_name(image)} is {found[0]} x {found[1]} px (height x width), in the '
                f'ground truth {expected[0]} x {expected[1]}; masks must be given at the size of the original image'
            )
