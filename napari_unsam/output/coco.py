"""COCO files: run lengths of every object, one image entry a plane."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from napari_unsam.output.objects import LabelCrop, LabelledObjects, crops_by_plane, parent_of
from unsam_mm.coco_files.writer import coco_writer
from unsam_mm.errors import StoreError
from unsam_mm.files import read_json
from unsam_mm.granularity import area_granularity
from unsam_mm.rle import decode_crop, encode_crop, rle_from_json, rle_to_json

_KEPT = ('score', 'stability', 'level')
_NOTE = 'labels'  # where `info` says how planes make up the array


def write_coco(path: str | Path, objects: LabelledObjects) -> None:
    """Writes objects as a COCO annotation file, atomically.

    Planes of a stack are images of their own, called ``stack.tif[3]``. Besides COCO's own fields an annotation has
    `object_id`, the label, which is one for all planes; `parent`, the id of the annotation of the object's parent in the
    same plane, or -1; `parent_id`, the label of the parent, where there is one, and `parent_layer` where it is one of another
    layer; `granularity`, by its area; and what the features table has of score, stability and level.

    Raises:
        StoreError: If the file cannot be written.
    """
    rows = objects.rows()
    note = {
        'shape': list(objects.shape),
        'axes': objects.axes,
        'scale': list(objects.scale),
        'units': list(objects.units),
        'name': objects.name,
    }
    with coco_writer(path, {_NOTE: note}) as writer:
        for plane, crops in crops_by_plane(objects.labels):
            name = objects.name + ''.join(f'[{i}]' for i in plane)
            writer.add(name, objects.shape[-2:], _records(crops, rows, objects.shape[-2:]))


def read_coco(path: str | Path) -> LabelledObjects:
    """Reads back what `write_coco` wrote, or a COCO file of one image from elsewhere.

    Where masks overlap, the smaller one is on top. Annotations without `object_id` are numbered from 1.

    Raises:
        StoreError: If the file is not COCO, holds several images that are no planes of one array, or its segmentations
            are polygons.
    """
    content = read_json(path)
    try:
        images, annotations = content['images'], content['annotations']
        note = content.get('info', {}).get(_NOTE)
        if note is None and len(images) != 1:
            raise StoreError(f'{path}: holds {len(images)} images; expected one, or the planes of one stack')
        shape = tuple(note['shape']) if note else (images[0]['height'], images[0]['width'])
        labels = np.zeros(shape, np.uint32)
        places = dict(zip((image['id'] for image in images), np.ndindex(*shape[:-2]), strict=True))
        numbered = {a['id']: _label(a.get('object_id', i)) for i, a in enumerate(annotations, start=1)}
        for annotation in sorted(annotations, key=lambda a: -a['area']):
            _draw(labels[places[annotation['image_id']]], annotation, numbered[annotation['id']])
    except (KeyError, TypeError, IndexError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f'{path}: not a COCO file with run-length masks ({error!r}); export it again') from error
    note = note or {'name': images[0].get('file_name', Path(path).stem)}
    place = {key: tuple(note[key]) for key in ('scale', 'units') if key in note}
    return LabelledObjects(
        labels,
        _features(annotations, numbered, shape[-2] * shape[-1]),
        name=note['name'],
        axes=note.get('axes', ''),
        **place,
    )


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
        records.append(record | {name: plain(row[name]) for name in _KEPT if name in row and not pd.isna(row[name])})
    return records


def plain(value: Any) -> Any:
    """A number of NumPy as one of Python, which JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value


def _label(value: Any) -> int:
    if not 0 < int(value) <= np.iinfo(np.uint32).max:
        raise ValueError(f'object_id {value} lies outside of 1 to {np.iinfo(np.uint32).max}')
    return int(value)


def _draw(plane: np.ndarray, annotation: Mapping[str, Any], label: int) -> None:
    left, top, width, height = (int(side) for side in annotation['bbox'])
    box = (left, top, left + width, top + height)
    plane[top : top + height, left : left + width][decode_crop(rle_from_json(annotation['segmentation']), box)] = label


def _features(annotations: list[dict], numbered: dict[int, int], plane_px: int) -> pd.DataFrame:
    rows: dict[int, dict[str, Any]] = {}
    areas: dict[int, list[float]] = {}
    for annotation in annotations:
        label, parent = numbered[annotation['id']], annotation.get('parent', -1)
        row = rows.setdefault(label, {'index': label})
        row |= {name: annotation[name] for name in _KEPT if name in annotation}
        areas.setdefault(label, []).append(annotation['area'])
        row['granularity'] = float(area_granularity(np.array(areas[label]), plane_px).mean())
        if parent in numbered or 'parent_id' in annotation:
            row['parent_id'] = annotation.get('parent_id', numbered.get(parent))
        if 'parent_layer' in annotation:
            row['parent'] = annotation['parent_layer']
    table = pd.DataFrame([rows[label] for label in sorted(rows)]) if rows else pd.DataFrame({'index': []}, dtype=int)
    return table.assign(parent_id=table['parent_id'].fillna(0).astype(int)) if 'parent_id' in table else table
