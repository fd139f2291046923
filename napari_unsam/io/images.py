"""Label images with voxel sizes: OME-TIFF, and OME-Zarr with a pyramid. Both are written plane by plane."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import tifffile

from napari_unsam.io.objects import UNIT_SYMBOLS, LabelledObjects, default_axes, is_missing, plain, slice_at
from napari_unsam.model.label_boxes import MAX_AXES, LazyArray, blocks
from napari_unsam.model.palette import label_rgb
from unsam_mm.errors import StoreError
from unsam_mm.files import SYSTEM_FILES, readable_folder, replace_folder, temporary_name
from unsam_mm.image_io.tiff_metadata import pixel_sizes, scale_and_units

if TYPE_CHECKING:
    import zarr

ZARR_LABELS = 'objects'
"""Name of the label image in the group ``labels``."""

_NGFF = '0.5'
_CHUNK_PX = 512
_BIG_BYTES = 1 << 31
_AXIS_TYPES = {'t': 'time', 'c': 'channel', 'p': 'position'}
_OME_SYMBOLS = {**UNIT_SYMBOLS, 'micrometer': 'µm', 'pixel': 'pixel'}


def write_label_tiff(path: str | Path, objects: LabelledObjects) -> None:
    """Writes an OME-TIFF atomically, with one image per position. The labels are uint16 if all fit, else uint32.

    Raises:
        StoreError: If the file cannot be written.
        UnSAMError: If a label needs more than 32 bits, or is negative.
    """
    largest = max((int(np.asarray(objects.labels[block]).max()) for block in blocks(objects.shape)), default=0)
    dtype = np.dtype(np.uint16 if largest < 1 << 16 else np.uint32)
    is_big = dtype.itemsize * int(np.prod(objects.shape, dtype=np.int64)) > _BIG_BYTES
    with _temporary_path(Path(path)) as temporary, tifffile.TiffWriter(temporary, ome=True, bigtiff=is_big) as file:
        for name, labels in _positions(objects):
            file.write(
                (np.asarray(labels[plane]).astype(dtype) for plane in np.ndindex(*labels.shape[:-2])),
                shape=labels.shape,
                dtype=dtype,
                compression='zlib',
                photometric='minisblack',
                metadata={'axes': objects.axes.upper().removeprefix('P'), 'Name': name, **_ome_sizes(objects)},
            )


def read_label_tiff(path: str | Path) -> LabelledObjects:
    """Reads a TIFF of labels; axes of length 1 before rows and columns are dropped.

    The voxel size is that in OME or ImageJ metadata; see `unsam_mm.image_io.tiff_metadata.pixel_sizes`.

    Raises:
        StoreError: If the file is missing, is not a TIFF, or is not an array of two to six axes with integers from 0 to
            2**32 - 1.
    """
    path = Path(path)
    try:
        with tifffile.TiffFile(path) as file:
            first, sizes = file.series[0], pixel_sizes(file)
            axes = first.axes.lower()
            n_positions = _count_positions(file.series)
            pixels = np.stack([one.asarray() for one in file.series]) if n_positions > 1 else first.asarray()
            axes = f'p{axes}' if n_positions > 1 else axes
    except (OSError, tifffile.TiffFileError, ValueError) as error:
        raise StoreError(f'{path}: cannot be read as a TIFF ({error})') from error
    if pixels.dtype.kind not in 'ui' or not 2 <= pixels.ndim <= MAX_AXES:
        raise StoreError(
            f'{path}: expected an image of labels, whole numbers of 2 to {MAX_AXES} axes, got {pixels.dtype} of shape '
            f'{pixels.shape}'
        )
    values = np.unique(pixels)
    if len(values) and not (values[0] >= 0 and values[-1] <= np.iinfo(np.uint32).max):
        raise StoreError(
            f'{path}: labels go from {values[0]} to {values[-1]}, but must lie in 0 to {np.iinfo(np.uint32).max}; relabel '
            'the objects, as skimage.segmentation.relabel_sequential does'
        )
    features = pd.DataFrame({'index': values[values > 0].astype(np.int64)})
    is_known = len(axes) == pixels.ndim and set(axes) <= set('ptczyx') and axes.endswith('yx')
    axes = axes if is_known else default_axes(pixels.ndim)
    return LabelledObjects(pixels, features, path.stem, *scale_and_units(sizes, axes), axes)


def write_ome_zarr(path: str | Path, objects: LabelledObjects) -> None:
    """Writes an OME-Zarr 0.5 container with the label image ``labels/objects``, atomically.

    Each level of the pyramid has every second row and column of the previous level; the last level fits into one chunk.
    The rows of the features table are written as the `properties` of the labels.

    Raises:
        StoreError: If the axes are not in the order of OME-Zarr, the folder contains other data than such a container,
            or it cannot be written.
        UnSAMError: If a label is negative or needs more than 32 bits.
    """
    import zarr

    path = Path(path)
    if not re.fullmatch('t?[cp]?z?yx', objects.axes):
        raise StoreError(
            f'{path}: OME-Zarr {_NGFF} holds up to five axes in the order t, c, z, y, x, but these objects have '
            f'{", ".join(objects.axes)}; export an OME-TIFF, or name the axes of the image'
        )
    if path.exists() and not _is_ours(path):
        raise StoreError(f'{path}: contains other data than objects of this plugin; choose another name')
    with _temporary_path(path, is_folder=True) as temporary:
        root = zarr.create_group(temporary, zarr_format=3, attributes={'ome': {'version': _NGFF}})
        group = root.create_group('labels', attributes={'ome': {'version': _NGFF, 'labels': [ZARR_LABELS]}})
        image = group.create_group(ZARR_LABELS)
        n_levels = _write_pyramid(image, objects)
        image.attrs['ome'] = {
            'version': _NGFF,
            'multiscales': [_multiscales(objects, n_levels)],
            'image-label': _image_label(objects),
        }


def read_ome_zarr(path: str | Path) -> LabelledObjects:
    """Opens the first label image of an OME-Zarr 0.5 container; its labels are read lazily.

    Raises:
        StoreError: If there is no such label image.
    """
    import zarr

    try:
        root = zarr.open_group(readable_folder(Path(path)), mode='r')
        name = root['labels'].attrs['ome']['labels'][0]
        image = root['labels'][name]
        scales = image.attrs['ome']['multiscales'][0]
        level = scales['datasets'][0]
        scale = next(step['scale'] for step in level['coordinateTransformations'] if step['type'] == 'scale')
        return LabelledObjects(
            image[level['path']],
            _features(image.attrs['ome'].get('image-label', {})),
            name=scales.get('name', Path(path).stem),
            scale=tuple(float(size) for size in scale),
            units=tuple(axis.get('unit', 'pixel') for axis in scales['axes']),
            axes=''.join(axis['name'] for axis in scales['axes']),
        )
    except (OSError, KeyError, IndexError, StopIteration, TypeError) as error:
        raise StoreError(f'{path}: holds no label image of OME-Zarr {_NGFF} ({error!r})') from error


def _positions(objects: LabelledObjects) -> Iterator[tuple[str, LazyArray]]:
    """Yields the name and the labels of each position; of the whole array if there is no axis of positions."""
    if not objects.axes.startswith('p'):
        yield objects.name, objects.labels
        return
    for i in range(objects.shape[0]):
        yield f'{objects.name}[{i}]', slice_at(objects.labels, 0, i)


def _count_positions(series: Sequence[tifffile.TiffPageSeries]) -> int:
    """Number of positions in a TIFF: all images if they have one shape and dtype and numbered names, else 1."""
    are_numbered = all(one.name.endswith(f'[{i}]') for i, one in enumerate(series))
    are_alike = len({(one.shape, one.dtype) for one in series}) == 1
    return len(series) if are_numbered and are_alike else 1


def _ome_sizes(objects: LabelledObjects) -> dict[str, Any]:
    if not objects.is_calibrated:
        return {}
    sizes: dict[str, Any] = {}
    for axis, size, unit in zip(objects.axes, objects.scale, objects.units, strict=True):
        key = 'TimeIncrement' if axis == 't' else f'PhysicalSize{axis.upper()}'
        if axis in 'tzyx' and unit in _OME_SYMBOLS:
            sizes |= {key: size, f'{key}Unit': _OME_SYMBOLS[unit]}
    return sizes


def _write_pyramid(image: zarr.Group, objects: LabelledObjects) -> int:
    """Writes the levels of the pyramid as arrays ``0``, ``1`` and so on; returns their number."""
    *front, height, width = objects.shape
    finer: LazyArray = objects.labels
    level = 0
    while True:
        step = 2 if level else 1
        array = image.create_array(
            str(level),
            shape=(*front, height, width),
            chunks=(*[1] * len(front), min(height, _CHUNK_PX), min(width, _CHUNK_PX)),
            dtype=np.uint32,
            dimension_names=list(objects.axes),
        )
        for plane in np.ndindex(*front):
            for top in range(0, height, _CHUNK_PX):
                rows = slice(step * top, step * (top + _CHUNK_PX))
                array[(*plane, slice(top, top + _CHUNK_PX))] = np.asarray(finer[(*plane, rows)])[::step, ::step]
        if max(height, width) <= _CHUNK_PX:
            return level + 1
        finer, level, height, width = array, level + 1, -(-height // 2), -(-width // 2)


def _multiscales(objects: LabelledObjects, n_levels: int) -> dict[str, Any]:
    axes = [
        {'name': axis, 'type': _AXIS_TYPES.get(axis, 'space')} | ({} if unit == 'pixel' else {'unit': unit})
        for axis, unit in zip(objects.axes, objects.units, strict=True)
    ]
    front, last = list(objects.scale[:-2]), objects.scale[-2:]
    datasets = [
        {
            'path': str(level),
            'coordinateTransformations': [{'type': 'scale', 'scale': [*front, *(size * 2**level for size in last)]}],
        }
        for level in range(n_levels)
    ]
    return {'name': objects.name, 'axes': axes, 'datasets': datasets, 'type': 'nearest'}


def _image_label(objects: LabelledObjects) -> dict[str, Any]:
    rows = objects.rows()
    return {
        'colors': [{'label-value': label, 'rgba': [*label_rgb(label), 255]} for label in rows if label > 0],
        'properties': [{'label-value': label, **_known(row)} for label, row in rows.items() if label > 0],
    }


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    known = {str(name): plain(value) for name, value in row.items() if name != 'index' and not is_missing(value)}
    return json.loads(json.dumps(known, default=str))  # values of types that JSON lacks are converted to text


def _features(image_label: Mapping[str, Any]) -> pd.DataFrame:
    table = pd.DataFrame(image_label.get('properties', []))
    if 'label-value' not in table:
        return pd.DataFrame({'index': np.zeros(0, np.int64)})
    return table.rename(columns={'label-value': 'index'})


def _is_ours(path: Path) -> bool:
    """True if a folder contains the label image `ZARR_LABELS` and nothing else."""
    labels = path / 'labels'
    return (
        (labels / ZARR_LABELS / 'zarr.json').is_file()
        and {entry.name for entry in path.iterdir()} <= {'labels', 'zarr.json', *SYSTEM_FILES}
        and {entry.name for entry in labels.iterdir()} <= {ZARR_LABELS, 'zarr.json', *SYSTEM_FILES}
    )


@contextmanager
def _temporary_path(path: Path, is_folder: bool = False) -> Iterator[Path]:
    """Yields a temporary path for a file or folder, which is renamed after the block has ended without an error.

    For libraries that open files themselves, which `atomic_writer` does not support.
    """
    if path.is_dir() and not is_folder:
        raise StoreError(f'{path}: is a folder; choose another name')
    temporary = temporary_name(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        replace_folder(temporary, path) if is_folder else temporary.replace(path)
    except OSError as error:
        raise StoreError(f'{path}: cannot be written ({error.strerror or error}); choose another place') from error
    finally:
        temporary.unlink(missing_ok=True) if temporary.is_file() else shutil.rmtree(temporary, ignore_errors=True)
