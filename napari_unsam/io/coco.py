"""COCO files: each plane is an image, each object in it an annotation with a run-length encoded mask."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from napari_unsam.io.objects import LabelCrop, LabelledObjects, crops_by_plane, parent_of, plain
from napari_unsam.model.label_boxes import MAX_AXES
from unsam_mm.coco_files.fields import entry_id, image_size, number_in, repeated_id
from unsam_mm.coco_files.segmentations import PolygonFilter, describe_record, read_rles
from unsam_mm.coco_files.writer import coco_writer
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.files import read_json
from unsam_mm.masks.granularity import area_granularity
from unsam_mm.masks.rle import areas_and_boxes, decode_crop, encode_crop, rle_to_json

SAVED_COLUMNS = ('score', 'stability', 'level')
"""Columns of the features table that are saved, if they are numbers."""
_ARRAY_KEY = 'labels'  # key in `info`; its value contains shape, axes, scale, units and name of the array


def write_coco(path: str | Path, objects: LabelledObjects) -> None:
    """Writes objects as a COCO annotation file, atomically.

    Each plane of a stack is an image with a name such as ``stack.tif[3]``. Besides COCO's own fields, an annotation has

    - `object_id`: the label of the object, which is the same in all planes;
    - `parent`: the id of the parent's annotation in the same plane, -1 if there is none;
    - `parent_id`: the label of the parent, if there is one;
    - `parent_layer`: the name of the parent's layer, if it is another layer;
    - `granularity`: computed from the area in the plane;
    - `score`, `stability`, `level`: if the features table has them.

    Raises:
        StoreError: If the file cannot be written.
        UnSAMError: If a label is negative or needs more than 32 bits.
    """
    rows = objects.rows()
    array_info = {
        'shape': list(objects.shape),
        'axes': objects.axes,
        'scale': list(objects.scale),
        'units': list(objects.units),
        'name': objects.name,
    }
    with coco_writer(path, {_ARRAY_KEY: array_info}) as writer:
        for plane, crops in crops_by_plane(objects.labels):
            name = objects.name + ''.join(f'[{i}]' for i in plane)
            writer.add(name, objects.shape[-2:], _records(crops, rows, objects.shape[-2:]))


def read_coco(path: str | Path) -> LabelledObjects:
    """Reads a file written by `write_coco`, or any COCO file with one image; masks may be RLEs or polygons.

    If masks overlap, the smaller one is on top. Polygons that enclose nothing are left out, with one warning. The label
    of an annotation without `object_id` is its position among the annotations that have a mask, counted from 1.

    Raises:
        StoreError: If the file is not COCO, is damaged, or contains several images that are not planes of one array.
    """
    content = read_json(path)
    polygons = PolygonFilter(str(path))
    try:
        images, annotations = content['images'], polygons(content['annotations'])
        array_info = (content.get('info') or {}).get(_ARRAY_KEY)
        if array_info is None and len(images) != 1:
            raise StoreError(f'{path}: contains {len(images)} images; expected one, or the planes of one stack')
        labels = np.zeros(_shape_of(images, array_info), np.uint32)
        planes = _planes_of(images, labels)
        labels_of_annotations = [
            _checked_label(annotation.get('object_id', i)) for i, annotation in enumerate(annotations, start=1)
        ]
        areas = np.zeros(len(annotations), np.int64)
        for image_id, indices in _by_image(annotations, planes).items():
            own_labels = [labels_of_annotations[i] for i in indices]
            areas[indices] = _draw(planes[image_id], [annotations[i] for i in indices], own_labels)
        features = _features(
            annotations, labels_of_annotations, area_granularity(areas, labels.shape[-2] * labels.shape[-1])
        )
        array_info = array_info or {'name': images[0].get('file_name') or Path(path).stem}
        calibration = {key: tuple(array_info[key]) for key in ('scale', 'units') if key in array_info}
        if not all(isinstance(size, int | float) and 0 < size < np.inf for size in calibration.get('scale', ())):
            raise UnSAMError(f'the scale is {calibration["scale"]}; expected positive numbers')
        objects = LabelledObjects(
            labels, features, name=str(array_info['name']), axes=str(array_info.get('axes', '')), **calibration
        )
    except (AttributeError, LookupError, MemoryError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        reason = str(error) if isinstance(error, UnSAMError) else repr(error)
        raise StoreError(f'{path}: not a COCO file of one image or one stack ({reason}); export it again') from error
    polygons.warn()
    return objects


def _shape_of(images: list[dict], array_info: Mapping[str, Any] | None) -> tuple[int, ...]:
    """Shape of the array: that in `array_info` if the file has it, otherwise height and width of the only image."""
    shape = tuple(array_info['shape']) if array_info else image_size(images[0])
    if not 2 <= len(shape) <= MAX_AXES or not all(type(side) is int and side > 0 for side in shape):
        raise UnSAMError(f'the shape is {shape}; expected 2 to {MAX_AXES} positive integers')
    return shape


def _planes_of(images: list[dict], labels: np.ndarray) -> dict[Any, np.ndarray]:
    """The plane of each image as a view of `labels`, by image id."""
    for image in images:
        if (size := image_size(image)) not in ((None, None), labels.shape[-2:]):
            raise UnSAMError(f'an image has the size {size}, the planes have {labels.shape[-2:]}')
    if message := repeated_id([{**image, 'id': entry_id(image['id'])} for image in images]):
        raise UnSAMError(message)
    return {
        entry_id(image['id']): labels[index]
        for image, index in zip(images, np.ndindex(*labels.shape[:-2]), strict=True)
    }


def _by_image(annotations: list[Mapping[str, Any]], planes: Mapping[Any, np.ndarray]) -> dict[Any, list[int]]:
    """Indices of the annotations, by image id."""
    groups: dict[Any, list[int]] = {}
    for index, annotation in enumerate(annotations):
        image_id = entry_id(annotation['image_id'])
        if image_id not in planes:
            raise UnSAMError(f'{describe_record(annotation)}: its image_id is not in "images"')
        groups.setdefault(image_id, []).append(index)
    return groups


def _checked_label(value: Any) -> int:
    label = entry_id(value)
    if not isinstance(label, int) or not 0 < label < 2**32:
        raise UnSAMError(f'an object_id is {value!r}; expected an integer from 1 to 2**32 - 1')
    return label


def _records(crops: list[LabelCrop], rows: Mapping[int, Mapping[str, Any]], size_hw: tuple[int, ...]) -> list[dict]:
    position = {crop.label: i for i, crop in enumerate(crops)}
    records = []
    for crop in crops:
        row = rows.get(crop.label, {})
        height, width = crop.mask.shape
        record = {
            'segmentation': rle_to_json(encode_crop(crop.mask, crop.top, crop.left, (size_hw[0], size_hw[1]))),
            'area': int(np.count_nonzero(crop.mask)),
            'bbox': [crop.left, crop.top, width, height],
            'granularity': float(area_granularity(np.count_nonzero(crop.mask), size_hw[0] * size_hw[1])),
            'object_id': crop.label,
            'parent': -1,
        }
        match parent_of(row):
            case '', label:
                record |= {'parent': position.get(label, -1), 'parent_id': label}
            case layer, label:
                record |= {'parent_layer': layer, 'parent_id': label}
        records.append(record | {name: plain(row[name]) for name in SAVED_COLUMNS if is_saved(name, row.get(name))})
    return records


def is_saved(column: str, value: Any) -> bool:
    """True if a value of the features table can be saved: a string in the column `parent`, else a finite number."""
    return isinstance(value, str) if column == 'parent' else isinstance(value, Real) and abs(value) < np.inf


def _draw(plane: np.ndarray, annotations: list[Mapping[str, Any]], labels: list[int]) -> np.ndarray:
    """Draws the masks of one plane, large ones first; returns their (K,) areas in pixels."""
    rles = read_rles(annotations, plane.shape)
    areas, boxes = areas_and_boxes(rles)
    for i in np.argsort(-areas, kind='stable'):
        x0, y0, x1, y1 = boxes[i].tolist()
        plane[y0:y1, x0:x1][decode_crop(rles[i], (x0, y0, x1, y1))] = labels[i]
    return areas


def _features(
    annotations: list[Mapping[str, Any]], labels_of_annotations: list[int], granularity: np.ndarray
) -> pd.DataFrame:
    by_id: dict[Any, int] = {}
    for annotation, label in zip(annotations, labels_of_annotations, strict=True):
        by_id.setdefault(entry_id(annotation.get('id')), label)
    labels, objects = np.unique(labels_of_annotations, return_inverse=True)
    means = np.bincount(objects, granularity) / np.bincount(objects)  # over the planes of an object
    rows = {
        label: {'index': label, 'granularity': mean}
        for label, mean in zip(labels.tolist(), means.tolist(), strict=True)
    }
    for annotation, label in zip(annotations, labels_of_annotations, strict=True):
        row = rows[label]
        row |= {name: number_in(annotation, name) for name in SAVED_COLUMNS if annotation.get(name) is not None}
        parent = entry_id(annotation.get('parent_id', by_id.get(entry_id(annotation.get('parent', -1)))))
        if isinstance(parent, int) and 0 <= parent < 2**32:
            row['parent_id'] = parent
        if isinstance(annotation.get('parent_layer'), str):
            row['parent'] = annotation['parent_layer']
    table = pd.DataFrame(list(rows.values())) if rows else pd.DataFrame({'index': []}, dtype=int)
    return table.assign(parent_id=table['parent_id'].fillna(0).astype(int)) if 'parent_id' in table else table
