"""Label images with the properties of their objects, read in parts."""

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
        labels: Integers of two to six axes, rows and columns last; 0 is background. Parts are read as uint32; a label that is
            negative or needs more than 32 bits raises UnSAMError then.
        features: One row for each object, with its label in the column `index`. Other columns may be granularity, score and
            parent_id.
        name: Name of the image; see `in_utf8`.
        scale: Size of a voxel along each axis, in `units`.
        units: A name in pint for each axis, such as 'micrometer'; 'pixel' if it is not known.
        axes: A letter for each axis; by default the last ones of 'tzyx', and 'ptczyx' for more axes.
        kind: Class of the objects; for linked layers the name of the layer.
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
                'open a part of the image'
            )
        dtype = np.dtype(self.labels.dtype)
        if dtype.kind not in 'ui':
            raise UnSAMError(f'{self.name}: labels must be integers, got {dtype}')
        if not np.can_cast(dtype, np.uint32):
            object.__setattr__(self, 'labels', _as_uint32(self.labels, self.name))
        for name, default in (('scale', (1.0,) * ndim), ('units', ('pixel',) * ndim), ('axes', default_axes(ndim))):
            value = getattr(self, name) or default
            if len(value) != ndim:
                raise UnSAMError(f'{self.name}: {name} needs one entry for each of {ndim} axes, got {value!r}')
            object.__setattr__(self, name, value)
        if 'index' not in self.features:
            raise UnSAMError(f'{self.name}: features lack the column "index", which holds the label of each row')

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the labels."""
        return tuple(int(side) for side in self.labels.shape)

    @property
    def is_calibrated(self) -> bool:
        """True if the size of a voxel is known."""
        return any(unit != 'pixel' for unit in self.units) or any(size != 1 for size in self.scale)

    def rows(self) -> dict[int, dict[str, Any]]:
        """The rows of the features table, by label."""
        return rows_by_label(self.features)


@dataclass(frozen=True, eq=False)
class LabelCrop:
    """The part of an object that lies in one plane.

    Attributes:
        label: Label of the object.
        top: Row of the plane at which the mask begins.
        left: Column of the plane at which the mask begins.
        mask: (H, W) bool, the bounding box of the object.
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
        return np.asarray(self[...], dtype)


def slice_at(array: LazyArray, axis: int, place: int) -> LazyView:
    """An array at one place along an axis. Its index is a tuple of numbers and slices, of all axes or the first ones."""
    axis %= len(array.shape)
    shape = [side for i, side in enumerate(array.shape) if i != axis]

    def read(index: tuple[int | slice, ...]) -> np.ndarray:
        whole = (*index, *[slice(None)] * (len(shape) - len(index)))
        return np.asarray(array[(*whole[:axis], place, *whole[axis:])])

    return LazyView(read, shape, array.dtype)


def with_progress(array: LazyArray, progress: ProgressCallback, text: str) -> LazyView:
    """An array that calls `progress` with the fraction read and a text before each part is read; it may raise to stop."""
    n_read, size = 0, max(int(np.prod(array.shape, dtype=np.int64)), 1)

    def read(index: Any) -> np.ndarray:
        nonlocal n_read
        progress(min(n_read / size, 1.0), text)
        part = np.asarray(array[index])
        n_read += part.size
        return part

    return LazyView(read, array.shape, array.dtype)


def _as_uint32(array: LazyArray, name: str) -> LazyView:
    """An array of labels as uint32; a part with a label that does not fit raises `UnSAMError`, which names the image."""

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
    """The objects in a layer of napari; of a pyramid, in its finest level.

    Args:
        labels: The layer.
        name: Name of the image; by default that of the layer.
        channel_axis: The axis of the image's channels, along which the layer has length 1; it is left out.
        kind: See `LabelledObjects`.
    """
    table = labels.features
    data = labels.data[0] if labels.multiscale else labels.data
    kept = [axis for axis in range(labels.ndim) if axis != channel_axis]
    return LabelledObjects(
        labels=data if channel_axis is None else slice_at(data, channel_axis, 0),
        # A copy: it is read in another thread, where the user may not edit it.
        features=table.copy() if 'index' in table else table.assign(index=np.arange(len(table))),
        name=name or labels.name,
        scale=tuple(float(labels.scale[axis]) for axis in kept),
        units=tuple(str(labels.units[axis]) for axis in kept),
        axes=_letters([labels.axis_labels[axis] for axis in kept]),
        kind=kind,
    )


def channels_of_layer(image: Image, channel_axis: int | None = None) -> dict[str, LazyArray]:
    """The channels of an image layer by name: red, green and blue, or numbers; '' for a single one."""
    data = image.data[0] if image.multiscale else image.data
    if image.rgb:
        return {name: slice_at(data, -1, i) for i, name in enumerate(('red', 'green', 'blue'))}
    if channel_axis is None:
        return {'': data}
    return {str(i): slice_at(data, channel_axis, i) for i in range(data.shape[channel_axis])}


def crops_by_plane(labels: LazyArray) -> Iterator[tuple[tuple[int, ...], list[LabelCrop]]]:
    """Yields the index of each plane along the axes before rows and columns, and its objects in ascending order of labels."""
    for plane in np.ndindex(*labels.shape[:-2]):
        pixels = np.asarray(labels[plane])
        boxes = list(boxes_in(pixels))
        yield plane, [LabelCrop(label, box[0].start, box[1].start, pixels[box] == label) for label, box in boxes]


def rows_by_label(features: pd.DataFrame) -> dict[int, dict[str, Any]]:
    """The rows of a features table by the label in the column `index`, without rows that have none."""
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
    """A NumPy scalar as a Python number, which JSON can hold; other values as they are."""
    return value.item() if isinstance(value, np.generic) else value


def parent_of(row: Mapping[str, Any]) -> tuple[str, int] | None:
    """The parent of the object in a row: the name of its layer, '' for the same one, and its label; None if it has none."""
    parent, layer = row.get('parent_id'), row.get('parent')
    if not isinstance(parent, Real) or not 0 < parent < np.inf:
        return None
    return (layer if isinstance(layer, str) else ''), int(parent)


def in_utf8(name: str) -> str:
    """A name as one line of UTF-8, as in the XML of a TIFF; other characters are escaped."""

    def escape(found: re.Match) -> str:
        code = ord(found[0])
        return f'\\x{code - 0xDC00:02x}' if 0xDC80 <= code <= 0xDCFF else f'\\u{code:04x}'  # a byte, as Python keeps it

    return one_line(re.sub(r'[\ud800-\udfff]', escape, name))


def default_axes(ndim: int) -> str:
    """A letter for each axis without a name: the last ones of 'tzyx', and 'ptczyx' for more axes."""
    return 'tzyx'[-ndim:] if ndim <= 4 else _AXES[-ndim:]


def _letters(axis_labels: Sequence[str]) -> str:
    """One letter for each axis; the default ones if its axes have no names, which are -2 and -1 in napari then."""
    letters = ''.join(label[:1].lower() for label in axis_labels)
    is_known = set(letters) <= set(_AXES) and len(set(letters)) == len(letters) == len(axis_labels)
    # Each position is an image of its own, so its axis is the first.
    is_usual = is_known and letters.endswith('yx') and 'p' not in letters[1:]
    return letters if is_usual else default_axes(len(axis_labels))
