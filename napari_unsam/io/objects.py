"""Labelled pixels with all that is known of them, and ways to walk them without holding them at once."""

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

_AXES = 'ptczyx'  # positions, time, channels as in OME
COUNTED = ('index', 'area_px', 'granularity')
"""Columns of the features table that are counted from the labels, whatever a file says."""
_MAX_LABEL = np.iinfo(np.uint32).max
UNIT_SYMBOLS = {
    'micrometer': 'um',
    'nanometer': 'nm',
    'millimeter': 'mm',
    'centimeter': 'cm',
    'meter': 'm',
    'second': 's',
}
"""Short names of units, in plain letters."""


@dataclass(frozen=True, eq=False)
class LabelledObjects:
    """The objects of one image.

    Attributes:
        labels: Integers of two to six axes, rows and columns last; 0 is background. What is read of them is uint32, and
            raises UnSAMError where a label is negative or needs more than 32 bits.
        features: One row an object; the column `index` holds its label. Others may be granularity, score, parent_id.
        name: What the image is called; see `in_utf8`.
        scale: Size of a voxel along each axis, in `units`.
        units: For each axis a name as pint has it, such as 'micrometer'; 'pixel' where nothing is known.
        axes: A letter for each axis; by default the last ones of 'tzyx', and 'ptczyx' for more axes.
        kind: What the objects are; of linked layers the name of the layer.
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
        """Whether the size of a voxel is known."""
        return any(unit != 'pixel' for unit in self.units) or any(size != 1 for size in self.scale)

    def rows(self) -> dict[int, dict[str, Any]]:
        """What is known of each object, by its label."""
        return rows_by_label(self.features)


@dataclass(frozen=True, eq=False)
class LabelCrop:
    """The part of an object that lies in one plane.

    Attributes:
        label: Of the object.
        top: Row at which the mask begins.
        left: Column at which the mask begins.
        mask: (H, W) bool, no larger than the object.
    """

    label: int
    top: int
    left: int
    mask: np.ndarray


class LazyView:
    """An array whose parts are made when they are asked for.

    Args:
        read: Makes the part at an index.
        shape: Of the whole array.
        dtype: Of the parts.
    """

    def __init__(self, read: Callable[[Any], np.ndarray], shape: Sequence[int], dtype: Any) -> None:
        self._read, self.shape, self.dtype = read, tuple(shape), np.dtype(dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Part of the array; raises what `read` raises."""
        return self._read(index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it."""
        return np.asarray(self[...], dtype)


def slice_at(array: LazyArray, axis: int, place: int) -> LazyView:
    """An array at one place along an axis; an index is a tuple of numbers and slices, those of the last axes may be left out."""
    axis %= len(array.shape)
    shape = [side for i, side in enumerate(array.shape) if i != axis]

    def read(index: tuple[int | slice, ...]) -> np.ndarray:
        whole = (*index, *[slice(None)] * (len(shape) - len(index)))
        return np.asarray(array[(*whole[:axis], place, *whole[axis:])])

    return LazyView(read, shape, array.dtype)


def with_progress(array: LazyArray, progress: ProgressCallback, text: str) -> LazyView:
    """An array that tells, before each part that is read, the share that was read and a text; telling may raise to stop."""
    n_read, size = 0, max(int(np.prod(array.shape, dtype=np.int64)), 1)

    def read(index: Any) -> np.ndarray:
        nonlocal n_read
        progress(min(n_read / size, 1.0), text)
        part = np.asarray(array[index])
        n_read += part.size
        return part

    return LazyView(read, array.shape, array.dtype)


def _as_uint32(array: LazyArray, name: str) -> LazyView:
    """Labels of a wider or signed type; a part with one that does not fit raises `UnSAMError`, which names the image."""

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
        name: What the image is called; by default as the layer.
        channel_axis: The axis of the image's channels, along which the layer is one thick; it is left out.
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
    """The pixels of an image layer by the name of the channel: red, green and blue, or numbers; '' for one alone."""
    data = image.data[0] if image.multiscale else image.data
    if image.rgb:
        return {name: slice_at(data, -1, i) for i, name in enumerate(('red', 'green', 'blue'))}
    if channel_axis is None:
        return {'': data}
    return {str(i): slice_at(data, channel_axis, i) for i in range(data.shape[channel_axis])}


def crops_by_plane(labels: LazyArray) -> Iterator[tuple[tuple[int, ...], list[LabelCrop]]]:
    """Each plane of rows and columns, in the order of the array, with what lies in it, in rising order of labels.

    A plane is named by its place along the axes before rows and columns.
    """
    for plane in np.ndindex(*labels.shape[:-2]):
        pixels = np.asarray(labels[plane])
        boxes = list(boxes_in(pixels))
        yield plane, [LabelCrop(label, box[0].start, box[1].start, pixels[box] == label) for label, box in boxes]


def rows_by_label(features: pd.DataFrame) -> dict[int, dict[str, Any]]:
    """The rows of a features table by the label in the column `index`; those without one are left out."""
    if 'index' not in features:
        return {}
    labels = pd.to_numeric(features['index'], errors='coerce')
    known = labels.abs() < np.inf
    return {int(label): row for label, row in zip(labels[known], features[known].to_dict('records'), strict=True)}


def known_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a features table without what is missing, and without what is counted again from the labels."""
    return {name: value for name, value in row.items() if name not in COUNTED and not is_missing(value)}


def is_missing(value: Any) -> bool:
    """Whether a cell of a table is empty."""
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def plain(value: Any) -> Any:
    """A number of NumPy as one of Python, which JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value


def parent_of(row: Mapping[str, Any]) -> tuple[str, int] | None:
    """What the object of a row of the features table is a part of: the name of a layer, '' for its own, and a label there."""
    parent, layer = row.get('parent_id'), row.get('parent')
    if not isinstance(parent, Real) or not 0 < parent < np.inf:
        return None
    return (layer if isinstance(layer, str) else ''), int(parent)


def in_utf8(name: str) -> str:
    """A name for files that hold one line of UTF-8, such as the XML in a TIFF: all else in it is escaped."""

    def escape(found: re.Match) -> str:
        code = ord(found[0])
        return f'\\x{code - 0xDC00:02x}' if 0xDC80 <= code <= 0xDCFF else f'\\u{code:04x}'  # a byte, as Python keeps it

    return one_line(re.sub(r'[\ud800-\udfff]', escape, name))


def default_axes(ndim: int) -> str:
    """A letter for each axis where nothing is known of them: the last ones of 'tzyx', and 'ptczyx' for more axes."""
    return 'tzyx'[-ndim:] if ndim <= 4 else _AXES[-ndim:]


def _letters(axis_labels: Sequence[str]) -> str:
    """One letter an axis; the usual ones where a layer has no names, which napari then calls -2, -1."""
    letters = ''.join(label[:1].lower() for label in axis_labels)
    is_known = set(letters) <= set(_AXES) and len(set(letters)) == len(letters) == len(axis_labels)
    # Positions are no part of an image, so they come before all else.
    is_usual = is_known and letters.endswith('yx') and 'p' not in letters[1:]
    return letters if is_usual else default_axes(len(axis_labels))
