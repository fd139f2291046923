"""Label images with a table of their objects; the labels are read in parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from napari_unsam.engine.inference import ProgressCallback
from napari_unsam.model.label_boxes import MAX_AXES, LazyArray, boxes_in
from unsam_mm.errors import UnSAMError, one_line

if TYPE_CHECKING:
    from napari.layers import Image, Labels

_AXES = 'ptczyx'  # position, time, channel, then space, as in OME
COUNTED = ('index', 'area_px', 'granularity')
"""Columns of the features table that are always computed from the labels."""
_MAX_LABEL = np.iinfo(np.uint32).max
UNIT_SYMBOLS = {
    'micrometer': 'um',
    'nanometer': 'nm',
    'millimeter': 'mm',
    'centimeter': 'cm',
    'meter': 'm',
    'second': 's',
}
"""ASCII symbols of units."""


@dataclass(frozen=True, eq=False)
class LabelledObjects:
    """The objects of one image.

    Attributes:
        labels: Integer array of two to six axes, rows and columns last; 0 is background. Dtypes that do not fit in
            uint32 are converted when a part is read, which raises UnSAMError if a label is negative or needs more than
            32 bits.
        features: One row for each object, with its label in the column `index`. Other columns may be granularity, score
            and parent_id.
        name: Name of the image; see `in_utf8`.
        scale: Size of a voxel along each axis, in `units`.
        units: Name of each axis's unit in pint, such as 'micrometer'; 'pixel' if it is not known.
        axes: A letter for each axis; see `default_axes` for the default.
        kind: Class of the objects; for linked layers the name of the layer.

    Raises:
        UnSAMError: If the labels are not integers of two to six axes, `scale`, `units` or `axes` does not have one
            entry for each axis, or the features lack the column `index`.
    """

    labels: LazyArray
    features: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({'index': np.zeros(0, np.int64)}))
    name: str = 'image'
    scale: tuple[float, ...] = ()
    units: tuple[str, ...] = ()
    axes: str = ''
    kind: str = 'object'

    def __post_init__(self) -> None:
        for name in ('name', 'kind'):
            object.__setattr__(self, name, in_utf8(getattr(self, name)))
        ndim = len(self.labels.shape)
        if not 2 <= ndim <= MAX_AXES:
            raise UnSAMError(
                f'{self.name}: objects must have 2 to {MAX_AXES} axes, got shape {tuple(self.labels.shape)}; '
                'choose a part of it'
            )
        dtype = np.dtype(self.labels.dtype)
        if dtype.kind not in 'ui':
            raise UnSAMError(f'{self.name}: labels must be integers, got {dtype}; convert them, for example to uint32')
        if not np.can_cast(dtype, np.uint32):
            object.__setattr__(self, 'labels', _as_uint32(self.labels, self.name))
        for name, default in (('scale', (1.0,) * ndim), ('units', ('pixel',) * ndim), ('axes', default_axes(ndim))):
            value = getattr(self, name) or default
            if len(value) != ndim:
                raise UnSAMError(f'{self.name}: {name} needs one entry for each of {ndim} axes, got {value!r}')
            object.__setattr__(self, name, value)
        if 'index' not in self.features:
            raise UnSAMError(f'{self.name}: features lack the column "index"; add it, with the label of each object')

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the labels."""
        return tuple(int(side) for side in self.labels.shape)

    @property
    def is_calibrated(self) -> bool:
        """True if the voxel size is known."""
        return any(unit != 'pixel' for unit in self.units) or any(size != 1 for size in self.scale)

    def rows(self) -> dict[int, dict[str, Any]]:
        """The rows of the features table, by label."""
        return rows_by_label(self.features)


@dataclass(frozen=True, eq=False)
class LabelCrop:
    """The part of an object that lies in one plane.

    Attributes:
        label: Label of the object.
        top: First row of the mask in the plane.
        left: First column of the mask in the plane.
        mask: (H, W) bool: the pixels of the object in its bounding box.
    """

    label: int
    top: int
    left: int
    mask: np.ndarray


class LazyView:
    """An array whose parts are computed when they are read.

    Args:
        read: Computes the part at an index.
        shape: Shape of the array.
        dtype: Data type of the parts.
    """

    def __init__(self, read: Callable[[Any], np.ndarray], shape: Sequence[int], dtype: Any) -> None:
        self._read, self.shape, self.dtype = read, tuple(shape), np.dtype(dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Part of the array."""
        return self._read(index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole array."""
        return np.asarray(self[(slice(None),) * len(self.shape)], dtype)


def slice_at(array: LazyArray, axis: int, place: int) -> LazyView:
    """An array at one index along an axis. Index it by a tuple of integers and slices, of all or the first axes."""
    axis %= len(array.shape)
    shape = [side for i, side in enumerate(array.shape) if i != axis]

    def read(index: tuple[int | slice, ...]) -> np.ndarray:
        whole = (*index, *[slice(None)] * (len(shape) - len(index)))
        return np.asarray(array[(*whole[:axis], place, *whole[axis:])])

    return LazyView(read, shape, array.dtype)


def with_progress(array: LazyArray, progress: ProgressCallback, text: str) -> LazyView:
    """An array that calls `progress`, with the fraction read and a text, before each part is read."""
    n_read, size = 0, max(int(np.prod(array.shape, dtype=np.int64)), 1)

    def read(index: Any) -> np.ndarray:
        nonlocal n_read
        progress(min(n_read / size, 1.0), text)
        part = np.asarray(array[index])
        n_read += part.size
        return part

    return LazyView(read, array.shape, array.dtype)


def _as_uint32(array: LazyArray, name: str) -> LazyView:
    """An array of labels as uint32; reading a part with a label that does not fit raises `UnSAMError`."""

    def read(index: Any) -> np.ndarray:
        part = np.asarray(array[index])
        if part.size and not (part.min() >= 0 and part.max() <= _MAX_LABEL):
            wrong = int(part.min() if part.min() < 0 else part.max())
            raise UnSAMError(
                f'{name}: label {wrong} lies outside of 0 to {_MAX_LABEL}; give such objects other labels, as '
                'skimage.segmentation.relabel_sequential does'
            )
        return part.astype(np.uint32)

    return LazyView(read, array.shape, np.uint32)


def objects_of_layer(
    labels: Labels, name: str | None = None, channel_axis: int | None = None, kind: str = 'object'
) -> LabelledObjects:
    """The objects in a layer of napari; in a multiscale layer, those of the finest level.

    Args:
        labels: The layer.
        name: Name of the image; by default that of the layer.
        channel_axis: The axis of the image's channels, along which the layer has length 1; the result does not have
            this axis. None if there is no such axis.
        kind: See `LabelledObjects`.
    """
    table = labels.features
    data = labels.data[0] if labels.multiscale else labels.data
    kept = [axis for axis in range(labels.ndim) if axis != channel_axis]
    return LabelledObjects(
        labels=data if channel_axis is None else slice_at(data, channel_axis, 0),
        # A copy, since the table is read in another thread while the user may edit the original.
        features=table.copy() if 'index' in table else table.assign(index=np.arange(len(table))),
        name=name or labels.name,
        scale=tuple(float(labels.scale[axis]) for axis in kept),
        units=tuple(str(labels.units[axis]) for axis in kept),
        axes=_letters([labels.axis_labels[axis] for axis in kept]),
        kind=kind,
    )


def channels_of_layer(image: Image, channel_axis: int | None = None) -> dict[str, LazyArray]:
    """The channels of an image layer by name: red, green and blue, or numbers from 0; '' for a single one."""
    data = image.data[0] if image.multiscale else image.data
    if image.rgb:
        return {name: slice_at(data, -1, i) for i, name in enumerate(('red', 'green', 'blue'))}
    if channel_axis is None:
        return {'': data}
    return {str(i): slice_at(data, channel_axis, i) for i in range(data.shape[channel_axis])}


def crops_by_plane(labels: LazyArray) -> Iterator[tuple[tuple[int, ...], list[LabelCrop]]]:
    """Yields the index of each plane along the axes before rows and columns, and its objects, sorted by label."""
    for plane in np.ndindex(*labels.shape[:-2]):
        pixels = np.asarray(labels[plane])
        boxes = list(boxes_in(pixels))
        yield plane, [LabelCrop(label, box[0].start, box[1].start, pixels[box] == label) for label, box in boxes]


def rows_by_label(features: pd.DataFrame) -> dict[int, dict[str, Any]]:
    """The rows of a features table by the label in the column `index`; rows without a finite label are left out."""
    if 'index' not in features:
        return {}
    labels = pd.to_numeric(features['index'], errors='coerce')
    known = labels.abs() < np.inf
    return {int(label): row for label, row in zip(labels[known], features[known].to_dict('records'), strict=True)}


def known_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a features table without empty cells and the columns `COUNTED`."""
    return {name: value for name, value in row.items() if name not in COUNTED and not is_missing(value)}


def is_missing(value: Any) -> bool:
    """True if a cell of a table is empty."""
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def plain(value: Any) -> Any:
    """A NumPy scalar as a Python number, which can be written as JSON; other values unchanged."""
    return value.item() if isinstance(value, np.generic) else value


def parent_of(row: Mapping[str, Any]) -> tuple[str, int] | None:
    """Layer name and label of the parent of the object in a row, or None; the name is '' for the same layer."""
    parent, layer = row.get('parent_id'), row.get('parent')
    if not isinstance(parent, Real) or not 0 < parent < np.inf:
        return None
    return (layer if isinstance(layer, str) else ''), int(parent)


def in_utf8(name: str) -> str:
    """A name as one line that can be encoded in UTF-8, as the XML of a TIFF requires; other characters are escaped."""

    def escape(found: re.Match) -> str:
        code = ord(found[0])
        return f'\\x{code - 0xDC00:02x}' if 0xDC80 <= code <= 0xDCFF else f'\\u{code:04x}'  # a byte that is not UTF-8

    return one_line(re.sub(r'[\ud800-\udfff]', escape, name))


def default_axes(ndim: int) -> str:
    """One letter for each axis: the last ones of 'tzyx', or of 'ptczyx' if there are more than four axes."""
    return 'tzyx'[-ndim:] if ndim <= 4 else _AXES[-ndim:]


def _letters(axis_labels: Sequence[str]) -> str:
    """The first letter of each axis name; if these are unusual, such as the '-2' of unnamed axes, the defaults."""
    letters = ''.join(label[:1].lower() for label in axis_labels)
    is_known = set(letters) <= set(_AXES) and len(set(letters)) == len(letters) == len(axis_labels)
    # In a file, each position is an image of its own, so the axis of positions must be the first.
    is_usual = is_known and letters.endswith('yx') and 'p' not in letters[1:]
    return letters if is_usual else default_axes(len(axis_labels))
