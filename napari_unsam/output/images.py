"""Label images: OME-TIFF, and OME-Zarr with its pyramid; both with the size of a voxel, both written plane by plane."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import tifffile

from napari_unsam.output.objects import ArrayLike, LabelledObjects, blocks
from napari_unsam.output.palette import label_rgb
from unsam_mm.errors import StoreError
from unsam_mm.files import replace_folder, restore_folder, temporary_name

if TYPE_CHECKING:
    import zarr

ZARR_LABELS = 'objects'
"""Name of the label image in the group ``labels``."""

_NGFF = '0.5'
_CHUNK_PX = 512
_BIG_BYTES = 1 << 31
_SYMBOLS = {
    'micrometer': 'µm',
    'nanometer': 'nm',
    'millimeter': 'mm',
    'centimeter': 'cm',
    'meter': 'm',
    'second': 's',
    'pixel': 'pixel',
}
_NAMES = {symbol: name for name, symbol in _SYMBOLS.items()} | {
    'um': 'micrometer',
    'micron': 'micrometer',
    'sec': 'second',
}


def write_label_tiff(path: str | Path, objects: LabelledObjects) -> None:
    """Writes an OME-TIFF of labels, uint16 where they all fit, else uint32, atomically.

    Raises:
        StoreError: If the file cannot be written.
    """
    largest = max((int(np.asarray(objects.labels[block]).max()) for block in blocks(objects.shape)), default=0)
    dtype = np.dtype(np.uint16 if largest < 1 << 16 else np.uint32)
    pages = (np.asarray(objects.labels[plane]).astype(dtype) for plane in np.ndindex(*objects.shape[:-2]))
    with _whole(Path(path)) as temporary:
        tifffile.imwrite(
            temporary,
            pages,
            shape=objects.shape,
            dtype=dtype,
            ome=True,
            bigtiff=dtype.itemsize * int(np.prod(objects.shape, dtype=np.int64)) > _BIG_BYTES,
            compression='zlib',
            photometric='minisblack',
            metadata={'axes': objects.axes.upper(), 'Name': objects.name, **_ome_sizes(objects)},
        )


def read_label_tiff(path: str | Path) -> LabelledObjects:
    """Reads a TIFF of labels. Axes of length 1 before rows and columns are left out.

    Raises:
        StoreError: If the file is missing, no TIFF, or does not hold whole numbers.
    """
    path = Path(path)
    try:
        with tifffile.TiffFile(path) as file:
            pixels = file.asarray()
            place = voxel_size(file)
    except (OSError, tifffile.TiffFileError, ValueError) as error:
        raise StoreError(f'{path}: cannot be read as a TIFF ({error})') from error
    if pixels.dtype.kind not in 'ui' or not 2 <= pixels.ndim <= 4:
        raise StoreError(
            f'{path}: expected an image of labels, whole numbers of 2 to 4 axes, got {pixels.dtype} of shape {pixels.shape}'
        )
    values = np.unique(pixels)
    features = pd.DataFrame({'index': values[values > 0].astype(np.int64)})
    return LabelledObjects(pixels, features, name=path.stem, **place.get(pixels.ndim, {}))


def voxel_size(file: tifffile.TiffFile) -> dict[int, dict[str, tuple]]:
    """`scale` and `units` of the pixels in a TIFF, under the number of axes they are for; empty if it does not say.

    OME metadata are read, and those of ImageJ.
    """
    if file.is_ome:
        sizes = _sizes_in_ome(file.ome_metadata)
    elif file.is_imagej:
        sizes = _sizes_of_imagej(file)
    else:
        return {}
    axes = [axis for axis in file.series[0].axes.upper() if axis not in 'SC']
    if not sizes.keys() & set(axes):
        return {}
    known = [sizes.get(axis, (1.0, 'pixel')) for axis in axes]
    return {len(axes): {'scale': tuple(size for size, _ in known), 'units': tuple(unit for _, unit in known)}}


def write_ome_zarr(path: str | Path, objects: LabelledObjects) -> None:
    """Writes an OME-Zarr 0.5 container with the label image ``labels/objects``; there is the old one or the new, whole.

    The pyramid halves rows and columns until both fit into one chunk, and keeps every second pixel, so labels stay
    labels. The rows of the features table are the properties of the labels.

    Raises:
        StoreError: If the place cannot be written, or holds something else than such a container.
    """
    import zarr

    path = Path(path)
    if path.exists() and not _is_ours(path):
        raise StoreError(f'{path}: holds other data than objects written from here; choose another name')
    with _whole(path) as temporary:
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
    """Opens the label image of an OME-Zarr 0.5 container; pixels are read when they are asked for.

    Raises:
        StoreError: If there is no such label image.
    """
    import zarr

    restore_folder(Path(path))
    try:
        root = zarr.open_group(Path(path), mode='r')
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


def _ome_sizes(objects: LabelledObjects) -> dict[str, Any]:
    if not objects.is_calibrated:
        return {}
    sizes: dict[str, Any] = {}
    for axis, size, unit in zip(objects.axes, objects.scale, objects.units, strict=True):
        key = 'TimeIncrement' if axis == 't' else f'PhysicalSize{axis.upper()}'
        if unit in _SYMBOLS:  # units beyond these are none in OME
            sizes |= {key: size, f'{key}Unit': _SYMBOLS[unit]}
    return sizes


def _sizes_in_ome(xml: str) -> dict[str, tuple[float, str]]:
    found = next((part for part in ElementTree.fromstring(xml).iter() if part.tag.endswith('}Pixels')), None)
    given = {} if found is None else found.attrib
    keys = {'T': 'TimeIncrement'} | {axis: f'PhysicalSize{axis}' for axis in 'XYZ'}
    return {
        axis: (float(given[key]), _NAMES.get(given.get(f'{key}Unit', 's' if axis == 'T' else 'µm'), 'pixel'))
        for axis, key in keys.items()
        if key in given
    }


def _sizes_of_imagej(file: tifffile.TiffFile) -> dict[str, tuple[float, str]]:
    said = file.imagej_metadata or {}
    unit = _NAMES.get(str(said.get('unit', '')).replace('\\u00B5', 'µ').strip('\x00'))
    if unit in (None, 'pixel'):
        return {}
    sizes = {}
    for axis, tag in (('X', 'XResolution'), ('Y', 'YResolution')):
        steps, length = file.pages[0].tags[tag].value if tag in file.pages[0].tags else (0, 1)
        if steps:
            sizes[axis] = (length / steps, unit)
    if 'spacing' in said:
        sizes['Z'] = (float(said['spacing']), unit)
    if 'finterval' in said:
        sizes['T'] = (float(said['finterval']), 'second')
    return sizes


def _write_pyramid(image: zarr.Group, objects: LabelledObjects) -> int:
    """Writes the levels as arrays ``0``, ``1`` and so on; returns their number."""
    *front, height, width = objects.shape
    finer: ArrayLike = objects.labels
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
        {'name': axis, 'type': 'time' if axis == 't' else 'space'} | ({} if unit == 'pixel' else {'unit': unit})
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
    known = {name: value for name, value in row.items() if name != 'index' and not pd.isna(value)}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in known.items()}


def _features(image_label: Mapping[str, Any]) -> pd.DataFrame:
    table = pd.DataFrame(image_label.get('properties', []))
    if 'label-value' not in table:
        return pd.DataFrame({'index': np.zeros(0, np.int64)})
    return table.rename(columns={'label-value': 'index'})


def _is_ours(path: Path) -> bool:
    return (path / 'labels' / ZARR_LABELS / 'zarr.json').is_file() and {entry.name for entry in path.iterdir()} <= {
        'labels',
        'zarr.json',
    }


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Gives a name for a file or a folder, which gets the wanted name once the block has ended without an error."""
    temporary = temporary_name(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        replace_folder(temporary, path) if temporary.is_dir() else temporary.replace(path)
    except OSError as error:
        raise StoreError(f'{path}: cannot be written ({error.strerror or error}); choose another place') from error
    finally:
        temporary.unlink(missing_ok=True) if temporary.is_file() else shutil.rmtree(temporary, ignore_errors=True)
