"""Converts segmentations of COCO records to RLEs, after a validation that the C code of pycocotools does not do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.masks.rle import MAX_PIXELS, Rle, RleError, rles_from_json

Record = Mapping[str, Any]

_MIN_NUMBERS = 6  # numbers of a polygon: three corners
_FLAT_PX = 1e-6  # a polygon encloses nothing if all corners are within this distance of a line
_MARGIN_PX = 10_000  # polygons are clipped at this distance from the image
_MAX_LENGTH_PX = 25_000_000  # of the outline of a mask; pycocotools needs 40 bytes for each pixel of an outline
_MAX_COORDINATE = 1e12  # larger coordinates are invalid
_MAX_SIDE_PX = 2**28  # pycocotools counts fifths of a pixel in 32 bits


class PolygonFilter:
    """Leaves out polygons that enclose nothing, and counts them for one warning.

    Annotation tools write such polygons after one or two clicks, or where an object is cut at a border. A valid polygon
    is a list of finite numbers x, y, x, y, ... with at least three corners that do not lie on one line. A segmentation
    that is a list of numbers is one polygon. RLEs are not changed, nor are other formats, for which `read_rles` raises
    an error.

    Args:
        source: Name of the file or list of the records, for the warning.

    Attributes:
        n_polygons: Number of polygons left out of annotations that also have valid polygons.
        n_records: Number of annotations left out, since they have no valid polygon.
        n_kept: Number of annotations that have a mask.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.n_polygons = self.n_records = self.n_kept = 0
        self._first = ''

    def __call__(self, records: Sequence[Record]) -> list[Record]:
        """Returns the records that have a mask; a record that must be changed is copied."""
        found = [kept for record in records if (kept := self._filtered(record)) is not None]
        self.n_kept += len(found)
        return found

    def message(self) -> str:
        """The warning, one line; '' if nothing was left out."""
        if not self._first:
            return ''
        counts = {
            f'{self.n_records} annotations that have no polygon': self.n_records,
            f'{self.n_polygons} polygons{" of others" if self.n_records else ""}': self.n_polygons,
        }
        return (
            f'{self.source}: left out {", and ".join(text for text, count in counts.items() if count)}, since they have '
            f'fewer than three corners, are not numbers, or enclose nothing; the first: {self._first}'
        )

    def report(self, stacklevel: int = 2) -> None:
        """Gives a warning if anything was left out.

        Raises:
            StoreError: If there were annotations, but none with a mask.
        """
        if self.n_records and not self.n_kept:
            raise StoreError(
                f'{self.source}: no annotation has a mask ("segmentation"), as in files of boxes or keypoints; expected RLEs '
                'or polygons'
            )
        self.warn(stacklevel + 1)

    def warn(self, stacklevel: int = 2) -> None:
        """Gives a warning if anything was left out."""
        if message := self.message():
            warnings.warn(message, stacklevel=stacklevel + 1)

    def _filtered(self, record: Record) -> Record | None:
        segmentation = record.get('segmentation')
        polygons = [] if segmentation is None else segmentation
        if not isinstance(polygons, list) or 'segments_info' in record or any(map(_is_nested, polygons)):
            return record  # an RLE, or another format
        if _is_polygon(polygons):
            return {**record, 'segmentation': [polygons]}
        kept = [polygon for polygon in polygons if _is_polygon(polygon)]
        if kept and len(kept) == len(polygons):
            return record
        self._first = self._first or describe_record(record)
        if not kept:
            self.n_records += 1
            return None
        self.n_polygons += len(polygons) - len(kept)
        return {**record, 'segmentation': kept}


def read_rles(records: Sequence[Record], size_hw: tuple[int | None, int | None]) -> list[Rle]:
    """The masks of the records of one image as compressed RLEs.

    Args:
        records: COCO annotations or results with ``segmentation``: RLE (compressed or uncompressed), or polygons, which
            are clipped to the image.
        size_hw: Height and width of the image in pixels; None if unknown.

    Raises:
        UnSAMError: If a mask is malformed, has another size than the image, or its run lengths do not sum to that size.
            For polygons also if the size is unknown or too large, or their outline is too long.
    """
    encoded = [i for i, record in enumerate(records) if isinstance(record['segmentation'], Mapping)]
    try:
        checked = rles_from_json([records[i]['segmentation'] for i in encoded], None if None in size_hw else size_hw)
    except RleError as error:
        raise UnSAMError(f'{describe_record(records[encoded[error.index]])}: {error.reason}') from error
    rles = dict(zip(encoded, checked, strict=True))
    return [rles[i] if i in rles else _draw_polygons(record, size_hw) for i, record in enumerate(records)]


def describe_record(record: Record) -> str:
    """Image id and annotation id, for messages."""
    return f'image {record.get("image_id", "without id")}, record {record.get("id", "without id")}'


def _draw_polygons(record: Record, size_hw: tuple[int | None, int | None]) -> Rle:
    polygons = record['segmentation']
    if not (isinstance(polygons, list) and polygons and all(map(_is_polygon, polygons))):
        raise UnSAMError(
            f'{describe_record(record)}: segmentation is neither RLE nor polygons: {str(polygons)[:40]!r}; expected '
            '"size" and "counts", or lists of numbers x, y, x, y, ...'
        )
    if None in size_hw:
        raise UnSAMError(
            f'{describe_record(record)}: polygons need the size of the image; add "height" and "width" to its entry in "images"'
        )
    height, width = size_hw
    if max(height, width) > _MAX_SIDE_PX or height * width > MAX_PIXELS:
        raise UnSAMError(
            f'{describe_record(record)}: an image of {height} x {width} px is too large to draw polygons in'
        )
    clipped = [inside for polygon in polygons if len(inside := _clip(polygon, height, width)) >= _MIN_NUMBERS]
    # At most the edges of all pixels of the image, and some outline outside of the image.
    length, max_length = sum(map(_length, clipped)), min(2 * height * width + 64 * _MARGIN_PX, _MAX_LENGTH_PX)
    if length > max_length:
        raise UnSAMError(
            f'{describe_record(record)}: its polygons have an outline of {length:.0f} px, but no mask of {height} x {width} px needs '
            f'more than {max_length} px; remove the record or draw it again'
        )
    if not clipped:  # all polygons are outside of the image
        return coco_mask.frPyObjects({'size': [height, width], 'counts': [height * width]}, height, width)
    return coco_mask.merge(coco_mask.frPyObjects(clipped, height, width))


def _is_nested(part: Any) -> bool:
    """True if a part of a segmentation is an RLE or a list of corners that are pairs or dictionaries."""
    return isinstance(part, Mapping) or (
        isinstance(part, list) and any(isinstance(one, list | Mapping) for one in part)
    )


def _is_polygon(value: Any) -> bool:
    """Whether a value is a valid polygon; see `PolygonFilter`."""
    if not isinstance(value, list) or len(value) < _MIN_NUMBERS or len(value) % 2:
        return False
    if not set(map(type, value)) <= {int, float}:
        return False
    if not (min(value) > -_MAX_COORDINATE and max(value) < _MAX_COORDINATE and all(map(math.isfinite, value))):
        return False
    x0, y0, x1, y1, x2, y2 = value[:_MIN_NUMBERS]
    return abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)) > 1 or not _is_flat(np.array(value, np.float64))


def _is_flat(numbers: np.ndarray) -> bool:
    """Whether the corners x, y, x, y, ... lie on one line."""
    offsets = numbers.reshape(-1, 2) - numbers[:2]
    scale = np.abs(offsets).max()
    if scale == 0:
        return True
    farthest = offsets[np.abs(offsets).max(axis=1).argmax()] / scale
    distances = offsets / scale @ (-farthest[1], farthest[0])
    return bool(np.abs(distances).max() * scale <= _FLAT_PX)


def _length(polygon: list[float]) -> float:
    """Number of pixels that pycocotools draws for the outline of a polygon x, y, x, y, ..."""
    corners = np.array(polygon).reshape(-1, 2)
    return np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()


def _clip(polygon: list[float], height: int, width: int) -> list[float]:
    """Clips a polygon at a distance of `_MARGIN_PX` around the image, by Sutherland and Hodgman's algorithm.

    pycocotools draws the whole outline of a polygon, however far it is from the image. The edges that clipping adds are
    outside of the image, so they do not change the mask.
    """
    corners = np.array(polygon, np.float64).reshape(-1, 2)
    for axis, sign, limit in (
        (0, 1, -_MARGIN_PX),
        (1, 1, -_MARGIN_PX),
        (0, -1, width + _MARGIN_PX),
        (1, -1, height + _MARGIN_PX),
    ):
        depths = sign * (corners[:, axis] - limit)
        if (depths >= 0).all():
            continue
        kept = []
        for corner, next_corner, depth, next_depth in zip(
            corners, np.roll(corners, -1, axis=0), depths, np.roll(depths, -1), strict=True
        ):
            if depth >= 0:
                kept.append(corner)
            if (depth >= 0) != (next_depth >= 0):
                crossing = corner + (next_corner - corner) * (depth / (depth - next_depth))
                crossing[axis] = limit
                kept.append(crossing)
        corners = np.array(kept).reshape(-1, 2)
    return corners.ravel().tolist()
