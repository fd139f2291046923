"""The file formats of objects, by name; label images and COCO files can also be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from napari_unsam.engine.inference import ProgressCallback
from napari_unsam.io.coco import SAVED_COLUMNS, is_saved, read_coco, write_coco
from napari_unsam.io.geojson import write_geojson
from napari_unsam.io.images import read_label_tiff, read_ome_zarr, write_label_tiff, write_ome_zarr
from napari_unsam.io.measurements import write_csv
from napari_unsam.io.objects import COUNTED, LabelledObjects, with_progress
from unsam_mm.errors import StoreError

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Format:
    """A format of objects.

    Attributes:
        title: Name of the format in menus.
        ending: End of the file names.
        write: Writes objects to a file; an existing one is replaced.
        columns: Columns of the features table that can be read back, besides `COUNTED`; None for all. See `is_saved`.
    """

    title: str
    ending: str
    write: Callable[[str | Path, LabelledObjects], None]
    columns: tuple[str, ...] | None = ()


FORMATS = {
    'tiff': Format('Label image (OME-TIFF)', '.tif', write_label_tiff),
    'coco': Format('COCO (run lengths)', '.coco.json', write_coco, (*SAVED_COLUMNS, 'parent_id', 'parent')),
    'geojson': Format('GeoJSON (QuPath)', '.geojson', write_geojson),
    'csv': Format('Table (CSV)', '.csv', lambda path, objects: write_csv(path, objects.features)),
    'zarr': Format('Label image (OME-Zarr)', '.ome.zarr', write_ome_zarr, None),
}
READABLE = ('.tif', '.tiff', '.json', '.zarr')


def export(path: str | Path, objects: LabelledObjects, name: str, progress: ProgressCallback) -> None:
    """Writes objects in a format; if `progress` raises, an existing file is not changed.

    Args:
        path: The file.
        objects: The objects.
        name: Name of the format in `FORMATS`.
        progress: Called with the fraction done before each part of the labels is read; may raise to stop.

    Raises:
        StoreError: If the file cannot be written.
        UnSAMError: If a label is negative or needs more than 32 bits.
    """
    text = f'Writing {Path(path).name}'
    FORMATS[name].write(path, replace(objects, labels=with_progress(objects.labels, progress, text)))


def is_lossless(name: str, features: pd.DataFrame) -> bool:
    """True if all values of a features table can be read back from a format; the columns `COUNTED` are ignored."""
    form = FORMATS[name]
    if form.columns is None or not form.ending.endswith(READABLE):
        return form.columns is None
    filled = {column: features[column].dropna() for column in features if column not in COUNTED}
    return all(column in form.columns and is_saved(column, value) for column in filled for value in filled[column])


def read_objects(path: str | Path) -> LabelledObjects:
    """Reads objects from a label TIFF, a COCO file or an OME-Zarr container.

    Args:
        path: The file; for a container, its folder, or the ``zarr.json`` in it, as file dialogs do not offer folders.

    Raises:
        StoreError: If the file is missing, damaged or in another format.
    """
    path = Path(path)
    if not path.exists():
        raise StoreError(f'{path}: no such file')
    if path.name == 'zarr.json':
        return read_ome_zarr(path.parent)
    match path.suffix.lower():
        case '.tif' | '.tiff':
            return read_label_tiff(path)
        case '.json':
            return read_coco(path)
        case '.zarr':
            return read_ome_zarr(path)
    raise StoreError(f'{path}: objects are read from {", ".join(READABLE)}; GeoJSON and CSV can be written only')
