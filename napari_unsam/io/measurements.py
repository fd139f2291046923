"""Size, position, shape and intensity of objects, one row each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial import ConvexHull
from skimage.measure import regionprops_table

from napari_unsam.engine.inference import ProgressCallback
from napari_unsam.io.objects import UNIT_SYMBOLS, LabelledObjects, with_progress
from napari_unsam.model.label_boxes import LazyArray, Slices, object_boxes
from napari_unsam.model.text import counted
from unsam_mm.errors import UnSAMError
from unsam_mm.files import atomic_writer

_SHAPES = ('eccentricity', 'solidity', 'perimeter', 'axis_major_length', 'axis_minor_length')
_SPATIAL = 'zyx'
_FLAT = 1e-9


def measure(
    objects: LabelledObjects,
    channels: Mapping[str, LazyArray] | None = None,
    progress: ProgressCallback = lambda fraction, text: None,
) -> pd.DataFrame:
    """Measures every object.

    The labels are read block by block, then labels and channels in the bounding box of each object, so neither labels
    nor image need to fit into memory.

    Args:
        objects: The objects.
        channels: Intensity images of the same shape, by channel name; values that are not finite are left out.
        progress: Called with the fraction done, in [0, 1]; may raise to stop.

    Returns:
        A row for each label, in ascending order, with the columns

        - index: the label; area_px: number of voxels;
        - bbox_y0, bbox_x0, bbox_y1, bbox_x1 and so on: bounding box in voxels; the ends are exclusive;
        - centroid_y, centroid_x and so on: in voxels; the centre of the first voxel is 0;
        - eccentricity, solidity (both without unit) and perimeter_px of an object in one plane. An object in several
          planes has only a solidity, from the convex hull of its voxels; an object at several times, channels or
          positions has none of these;
        - mean_intensity, min_intensity, max_intensity; followed by the name of the channel, such as mean_intensity_red,
          if it has one;
        - if the voxel size is known: area_um2 or volume_um3, centroid_y_um and so on; for an object in one plane with
          square pixels also axis_major_um, axis_minor_um and perimeter_um. The unit in these names is that of the
          image.

    Raises:
        UnSAMError: If a channel has another shape than the labels.
    """
    channels = channels or {}
    for name, pixels in channels.items():
        if tuple(pixels.shape) != objects.shape:
            raise UnSAMError(
                f'channel {name!r} has shape {tuple(pixels.shape)}, but the objects of {objects.name} have '
                f'{objects.shape}; measure on the image that they were drawn on'
            )
    boxes = object_boxes(with_progress(objects.labels, progress, 'Finding the objects'))
    rows = []
    for done, (label, box) in enumerate(boxes.items()):
        progress(done / len(boxes), f'Measuring {counted(len(boxes), "object")}')
        mask = np.asarray(objects.labels[box]) == label
        row = {'index': label, **_place(mask, box, objects), **_shape(mask, objects)}
        for name, pixels in channels.items():
            row |= _intensity(np.asarray(pixels[box])[mask], name)
        rows.append(row)
    return pd.DataFrame(rows) if rows else pd.DataFrame({'index': np.zeros(0, np.int64)})


def merged(features: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """A table with new measurements in place of old ones; other cells stay, and rows of new labels come last."""
    if 'index' not in features:
        features = features.assign(index=np.arange(len(features)))
    known, fresh = features.set_index('index'), measured.set_index('index')
    # Rows of removed objects keep their measurements.
    together = fresh.combine_first(known).reindex([*known.index, *fresh.index.difference(known.index, sort=False)])
    columns = [*known.columns, *(name for name in fresh.columns if name not in known.columns)]
    table = together[columns].reset_index()
    for name in columns:  # joining has converted integers to floats
        given = fresh[name] if name in fresh else known[name]
        if given.dtype.kind in 'iub' and table[name].notna().all():
            table[name] = table[name].astype(given.dtype)
    return table


def write_csv(path: str | Path, table: pd.DataFrame) -> None:
    """Writes a table as comma-separated values with a header, atomically.

    Raises:
        StoreError: If the file cannot be written.
    """
    with atomic_writer(path) as file:
        table.to_csv(file, index=False, lineterminator='\n')


def _place(mask: np.ndarray, box: Slices, objects: LabelledObjects) -> dict[str, Any]:
    area = int(np.count_nonzero(mask))
    axes = range(mask.ndim)
    # The counts along each axis need less memory than the coordinates of every voxel.
    profiles = [np.count_nonzero(mask, axis=tuple(other for other in axes if other != axis)) for axis in axes]
    centroid = [
        side.start + float(np.average(np.arange(len(profile)), weights=profile))
        for side, profile in zip(box, profiles, strict=True)
    ]
    row: dict[str, Any] = {'area_px': area}
    row |= {f'bbox_{axis}0': side.start for axis, side in zip(objects.axes, box, strict=True)}
    row |= {f'bbox_{axis}1': side.stop for axis, side in zip(objects.axes, box, strict=True)}
    row |= {f'centroid_{axis}': at for axis, at in zip(objects.axes, centroid, strict=True)}
    if objects.is_calibrated:
        spatial = [i for i, axis in enumerate(objects.axes) if axis in _SPATIAL]
        unit, power = _symbol(objects), len(spatial)
        size = float(np.prod([objects.scale[i] for i in spatial]))
        row[f'{"area" if power == 2 else "volume"}_{unit}{power}'] = area * size
        for axis, at, step, name in zip(objects.axes, centroid, objects.scale, objects.units, strict=True):
            row[f'centroid_{axis}_{_unit(name)}'] = at * step
    return row


def _shape(mask: np.ndarray, objects: LabelledObjects) -> dict[str, Any]:
    is_in_one_place = all(
        side == 1 for axis, side in zip(objects.axes, mask.shape, strict=True) if axis not in _SPATIAL
    )
    if not is_in_one_place:
        return {}
    mask = mask.reshape(-1, *mask.shape[-2:])
    if len(mask) > 1:
        return {'solidity': np.count_nonzero(mask) / _hull_volume(mask)}
    mask = mask[0]
    found = {
        name: float(values[0]) for name, values in regionprops_table(mask.astype(np.uint8), properties=_SHAPES).items()
    }
    row = {'eccentricity': found['eccentricity'], 'solidity': found['solidity'], 'perimeter_px': found['perimeter']}
    if objects.is_calibrated and objects.scale[-2] == objects.scale[-1]:
        lengths = ('axis_major_length', 'axis_minor_length', 'perimeter')
        row |= {
            f'{name.removesuffix("_length")}_{_symbol(objects)}': found[name] * objects.scale[-1] for name in lengths
        }
    return row


def _hull_volume(mask: np.ndarray) -> int:
    """The number of voxels whose centre lies in the convex hull of a (D, H, W) mask.

    As in scikit-image, the hull extends half a voxel beyond the centres along each axis. It is computed from the ends
    of the rows, and its voxels are counted row by row, which is faster than scikit-image's test of every voxel and
    needs less memory.
    """
    planes, rows = np.nonzero(mask.any(axis=2))
    filled = mask[planes, rows]
    ends = filled.argmax(axis=1), mask.shape[2] - 1 - filled[:, ::-1].argmax(axis=1)
    centres = np.concatenate([np.stack([planes, rows, x], axis=1) for x in ends]).astype(float)
    half = 0.5 * np.eye(3)
    hull = ConvexHull(np.concatenate([centres + sign * step for step in half for sign in (-1, 1)]))
    z, y = (axis.ravel().astype(float) for axis in np.indices(mask.shape[:2]))
    low, high = np.zeros(len(z)), np.full(len(z), mask.shape[2] - 1.0)
    for nz, ny, nx, offset in hull.equations:  # inside where the product with (z, y, x, 1) is not positive
        beyond = nz * z + ny * y + offset
        if nx > _FLAT:
            np.minimum(high, -beyond / nx, out=high)
        elif nx < -_FLAT:
            np.maximum(low, -beyond / nx, out=low)
        else:
            high[beyond > _FLAT] = -1.0
    return int(np.maximum(np.floor(high + _FLAT) - np.ceil(low - _FLAT) + 1, 0).sum())


def _intensity(values: np.ndarray, channel: str) -> dict[str, float]:
    values = values[np.isfinite(values)] if values.dtype.kind == 'f' else values
    ending = f'_{channel}' if channel else ''
    numbers = (values.mean(dtype=np.float64), values.min(), values.max()) if len(values) else (np.nan,) * 3
    return {f'{name}_intensity{ending}': float(n) for name, n in zip(('mean', 'min', 'max'), numbers, strict=True)}


def _symbol(objects: LabelledObjects) -> str:
    """Symbol of the unit of lengths, areas and volumes: that along x."""
    return _unit(objects.units[-1])


def _unit(name: str) -> str:
    return 'world' if name == 'pixel' else UNIT_SYMBOLS.get(name, name)
