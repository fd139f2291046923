"""GeoJSON for QuPath: one feature for each object in each plane, outlined along the edges of its pixels."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from napari_unsam.io.objects import LabelCrop, LabelledObjects, crops_by_plane, in_utf8, parent_of, plain
from napari_unsam.io.outlines import polygons
from napari_unsam.model.palette import label_rgb
from unsam_mm.files import atomic_writer

_NAMESPACE = uuid.UUID('6b1f6c2e-53d7-4d0e-9f0c-6d6a5b7f4a11')


def write_geojson(path: str | Path, objects: LabelledObjects) -> None:
    """Writes a FeatureCollection, atomically.

    Coordinates are x, y in pixels; (0, 0) is the upper left corner of the image. Each object in each plane is a
    Polygon, which may have holes, or a MultiPolygon if it has several parts. Its `id` depends only on the image name,
    the kind of object, the plane and the label. The `properties` are

    - `objectType` ("annotation"), `name`, `color`, and `classification`, the kind of object;
    - `measurements`: all finite numbers of the features table;
    - `label` and `parent`, both also as text in `metadata`, which QuPath preserves. `parent` is the id of the parent's
      feature in the same plane or in the file of a linked layer; null if there is none.

    In a stack, the geometry has a `plane`, as in QuPath, with c, z and t counted from 0; c is -1 if there is no channel
    axis. The index along the axis of positions, which QuPath does not have, is `position` in `metadata`.

    Raises:
        StoreError: If the file cannot be written.
        UnSAMError: If a label is negative or needs more than 32 bits.
    """
    rows = objects.rows()
    with atomic_writer(path) as file:
        file.write('{"type":"FeatureCollection","features":[')
        lead = '\n'
        for plane, crops in crops_by_plane(objects.labels):
            here = {crop.label for crop in crops}
            for crop in crops:
                feature = _feature(crop, rows.get(crop.label, {}), objects, plane, here)
                file.write(lead + json.dumps(feature, separators=(',', ':'), allow_nan=False))
                lead = ',\n'
        file.write('\n]}\n')


def _feature(
    crop: LabelCrop, row: Mapping[str, Any], objects: LabelledObjects, plane: tuple[int, ...], here: set[int]
) -> dict[str, Any]:
    parent, parts = _parent_id(row, objects, plane, here), polygons(crop.mask, crop.top, crop.left)
    is_one = len(parts) == 1
    geometry = {'type': 'Polygon' if is_one else 'MultiPolygon', 'coordinates': parts[0] if is_one else parts}
    metadata = {'label': str(crop.label)}
    if parent:
        metadata['parent'] = parent
    at = dict(zip(objects.axes, plane, strict=False))
    if at:
        geometry['plane'] = {'c': at.get('c', -1), 'z': at.get('z', 0), 't': at.get('t', 0)}  # c = -1: all channels
    if 'p' in at:
        metadata['position'] = str(at['p'])
    return {
        'type': 'Feature',
        'id': _feature_id(objects.name, objects.kind, plane, crop.label),
        'geometry': geometry,
        'properties': {
            'objectType': 'annotation',
            'name': f'{objects.kind} {crop.label}',
            'color': list(label_rgb(crop.label)),
            # All objects of a class have the same class colour.
            'classification': {'name': objects.kind, 'color': list(label_rgb(1))},
            'label': crop.label,
            'parent': parent,
            'measurements': _numbers(row),
            'metadata': metadata,
        },
    }


def _parent_id(row: Mapping[str, Any], objects: LabelledObjects, plane: tuple[int, ...], here: set[int]) -> str | None:
    match parent_of(row):
        case '', label if label in here:
            return _feature_id(objects.name, objects.kind, plane, label)
        case layer, label if layer:
            return _feature_id(objects.name, in_utf8(layer), plane, label)
    return None


def _feature_id(name: str, kind: str, plane: tuple[int, ...], label: int) -> str:
    return str(uuid.uuid5(_NAMESPACE, f'{name}/{kind}/{plane}/{label}'))


def _numbers(row: Mapping[str, Any]) -> dict[str, float | int]:
    """The columns that QuPath accepts as measurements: finite numbers, except the label and bools."""
    return {
        name: plain(value)
        for name, value in row.items()
        if name != 'index' and isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    }
