"""Reads predictions from files, and matches their images with those of the ground truth by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
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
from unsam_mm.errors import StoreError, error_context, first_names
from unsam_mm.files import read_json
from unsam_mm.folders.store import PseudoMaskStore


def load_predictions(
    path: str | Path, ground_truth: Mapping[str, Any], skip_unmatched: bool = False
) -> list[dict[str, Any]]:
    """Predictions as COCO result records whose ``image_id`` is that of the ground truth.

    Args:
        path: A folder of a `PseudoMaskStore`, a COCO file (``images``, and ``annotations`` with ``score`` or
            ``predicted_iou``), or a list of COCO result records. Images of the first two are matched by name (see
            `match_images`); a list of records must use the ids of the ground truth.
        ground_truth: A COCO dictionary.
        skip_unmatched: True to leave out images that are not in the ground truth. An error is still raised if none
            is in it.

    Raises:
        StoreError: If the path is missing, damaged, empty or in another format, or images cannot be matched.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, ground_truth, skip_unmatched)
    data = read_json(path)
    if isinstance(data, list):
        records = data
    elif is_coco(data):
        records = _match_annotations(path, data, ground_truth, skip_unmatched)
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
    names = store.finished_names()
    with error_context(path):
        image_ids = match_images(names, ground_truth, skip_unmatched)
    failed: dict[str, str] = {}
    records = [
        record for name, masks in store.read_each(image_ids, failed) for record in masks.to_coco(image_ids[name])
    ]
    if failed:  # recall without these images, or with all of their objects as missed, would be misleading
        files = ', '.join(store.path_of(name).relative_to(path).as_posix() for name in failed)
        raise StoreError(
            f'{path}: {len(failed)} of {len(image_ids)} files of masks are damaged or cannot be read; change their '
            f'permissions, or remove them and run "python -m unsam_mm generate IMAGES {path}" again: {files}'
        )
    return records


def _match_annotations(
    path: Path, data: Mapping[str, Any], ground_truth: Mapping[str, Any], skip_unmatched: bool
) -> list[dict[str, Any]]:
    images = read_image_entries(path, data['images'])
    annotations = with_ids(path, data['annotations'], 'annotation', 'image_id')
    names = {image['id']: listed_name(image) for image in images}
    if '' in names.values():
        raise StoreError(f'{path}: some images have no "file_name", so they cannot be matched with the ground truth')
    if twice := [name for name, count in Counter(names.values()).items() if count > 1]:
        raise StoreError(
            f'{path}: several images have the name {first_names(twice)}, so they would have the same ground truth; '
            'keep one entry for each name'
        )
    check_listed(path, (annotation['image_id'] for annotation in annotations), names)
    with error_context(path):
        image_ids = match_images(names.values(), ground_truth, skip_unmatched)
    sizes = {image['id']: image_size(image) for image in ground_truth['images']}
    for image in images:  # sizes are compared here, since polygons do not contain the size of their image
        size_hw, expected_hw = image_size(image), sizes.get(image_ids.get(names[image['id']]), (None, None))
        if None not in size_hw + expected_hw and size_hw != expected_hw:
            raise StoreError(
                f'{path}: {listed_name(image)} is {size_hw[0]} x {size_hw[1]} px (height x width), in the '
                f'ground truth {expected_hw[0]} x {expected_hw[1]}; masks must be given at the size of the original image'
            )
    records = []
    for index, annotation in enumerate(annotations):
        name = names[annotation['image_id']]
        score = annotation.get('score', annotation.get('predicted_iou'))
        if score is None:
            raise StoreError(f'{path}: annotation {index} has no score')
        if name in image_ids:
            records.append({**annotation, 'image_id': image_ids[name], 'score': score})
    return records
