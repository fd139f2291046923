"""Converts segmentations of COCO records to run lengths; validates them, which the C code of pycocotools does not."""

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

_MIN_NUMBERS = 6  # of a polygon: three corners
_FLAT = 1e-6  # px; corners that lie so near to one line enclose nothing
_FAR_PX = 10_000  # beyond the image, up to which outlines are drawn
_LONGEST_PX = 25_000_000  # outline of a mask: pycocotools takes 40 bytes a pixel of it
_MAX_COORDINATE = 1e12  # larger ones are no places
_MAX_SIDE_PX = 2**28  # pycocotools counts fifths of a pixel in 32 bits


class PolygonFilter:
    """Leaves out polygons that enclose nothing, and counts them for one warning.

    Annotation tools write them after one or two clicks, or where an object is cut at a border. Lists of three or more
    corners stay, as x, y pairs of finite numbers that do not lie on one line. A flat list of numbers is one polygon.
    Run lengths are not changed, nor is what has another form, such as corners as pairs: `read_rles` refuses that.

    Args:
        source: File, or other place that records come from, for the warning.

    Attributes:
        n_polygons: Polygons left out of annotations that have others.
        n_records: Annotations left out, since none of their polygons is one, or they have none.
        n_kept: Annotations that have a mask.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.n_polygons = self.n_records = self.n_kept = 0
        self._first = ''

    def __call__(self, records: Sequence[Record]) -> list[Record]:
        """The records that have a mask; those with polygons left out are copies."""
        found = [kept for record in records if (kept := self._filtered(record)) is not None]
        self.n_kept += len(found)
        return found

    def message(self) -> str:
        """What was left out, on one line; '' if nothing was."""
        if not self._first:
            return ''
        counts = {
            f'{self.n_records} annotations that have no polygon': self.n_records,
            f'{self.n_polygons} polygons{" of others" if self.n_records else ""}': self.n_polygons,
        }
        return (
            f'{self.source}: left out {", and ".join(text for text, count in counts.items() if count)}, since they have '
            f'fewer than three corners, are no numbers, or enclose nothing; the first: {self._first}'
        )

    def report(self, stacklevel: int = 2) -> None:
        """Warns of what was left out, if anything was.

        Raises:
            StoreError: If there were annotations, and none of them has a mask.
        """
        if self.n_records and not self.n_kept:
            raise StoreError(
                f'{self.source}: no annotation has a mask ("segmentation"), as in files of boxes or keypoints; expected run '
                'lengths or polygons'
            )
        self.warn(stacklevel + 1)

    def warn(self, stacklevel: int = 2) -> None:
        """Warns of what was left out, if anything was."""
        if message := self.message():
            warnings.warn(message, stacklevel=stacklevel + 1)

    def _filtered(self, record: Record) -> Record | None:
        segmentation = record.get('segmentation')
        polygons = [] if segmentation is None else segmentation
        if not isinstance(polygons, list) or 'segments_info' in record or any(map(_is_nested, polygons)):
            return record  # run lengths, or what is refused where masks are read
        if _is_polygon(polygons):
            return {**record, 'segmentation': [polygons]}
        kept = [polygon for polygon in polygons if _is_polygon(polygon)]
        if kept and len(kept) == len(polygons):
            return record
        self._first = self._first or place_of(record)
        if not kept:
            self.n_records += 1
            return None
        self.n_polygons += len(polygons) - len(kept)
        return {**record, 'segmentation': kept}


def read_rles(records: Sequence[Record], size_hw: tuple[int | None, int | None]) -> list[Rle]:
    """The masks of the records of one image as compressed RLEs.

    Args:
        records: COCO annotations or results with ``segmentation``: RLE (compressed or plain), or polygons, which are
            cut at the borders of the image.
        size_hw: Height and width of the image in pixels; None where they are not known.

    Raises:
        UnSAMError: If a mask is malformed, of another size than the image, or its runs do not add up to that size.
    """
    plain = [i for i, record in enumerate(records) if isinstance(record['segmentation'], Mapping)]
    try:
        checked = rles_from_json([records[i]['segmentation'] for i in plain], None if None in size_hw else size_hw)
    except RleError as error:
        raise UnSAMError(f'{place_of(records[plain[error.index]])}: {error.reason}') from error
    if len(plain) == len(records):
        return checked
    rles = dict(zip(plain, checked, strict=True))
    return [rles[i] if i in rles else _draw_polygons(record, size_hw) for i, record in enumerate(records)]


def place_of(record: Record) -> str:
    """Image and annotation, for messages."""
    return f'image {record.get("image_id", "without id")}, record {record.get("id", "without id")}'


def _draw_polygons(record: Record, size_hw: tuple[int | None, int | None]) -> Rle:
    polygons = record['segmentation']
    if not (isinstance(polygons, list) and polygons and all(map(_is_polygon, polygons))):
        raise UnSAMError(
            f'{place_of(record)}: segmentation is neither RLE nor polygons: {str(polygons)[:40]!r}; expected '
            '"size" and "counts", or lists of numbers x, y, x, y, ...'
        )
    if None in size_hw:
        raise UnSAMError(
            f'{place_of(record)}: polygons need the size of the image; add "height" and "width" to its entry in "images"'
        )
    height, width = size_hw
    if max(height, width) > _MAX_SIDE_PX or height * width > MAX_PIXELS:
        raise UnSAMError(f'{place_of(record)}: an image of {height} x {width} px is too large to draw polygons in')
    cut = [inside for polygon in polygons if len(inside := _cut(polygon, height, width)) >= _MIN_NUMBERS]
    length, longest = sum(map(_length, cut)), _longest_outline(height, width)
    if length > longest:
        raise UnSAMError(
            f'{place_of(record)}: its polygons have an outline of {length:.0f} px, but no mask of {height} x {width} px needs '
            f'more than {longest} px; remove the record or draw it again'
        )
    if not cut:  # all lie outside
        return coco_mask.frPyObjects({'size': [height, width], 'counts': [height * width]}, height, width)
    return coco_mask.merge(coco_mask.frPyObjects(cut, height, width))


def _is_nested(part: Any) -> bool:
    """Whether a part of a segmentation is no flat list: run lengths, or corners as pairs or dictionaries."""
    return isinstance(part, Mapping) or (
        isinstance(part, list) and any(isinstance(one, list | Mapping) for one in part)
    )


def _is_polygon(value: Any) -> bool:
    """Whether a value is a list of x, y pairs of numbers that enclose something."""
    if not isinstance(value, list) or len(value) < _MIN_NUMBERS or len(value) % 2:
        return False
    if not set(map(type, value)) <= {int, float}:
        return False
    if not (min(value) > -_MAX_COORDINATE and max(value) < _MAX_COORDINATE and all(map(math.isfinite, value))):
        return False
    x0, y0, x1, y1, x2, y2 = value[:_MIN_NUMBERS]
    return abs((x1 - x0) * (y2 - y0) - (x2 - x0) * (y1 - y0)) > 1 or not _is_flat(np.array(value, np.float64))


def _is_flat(numbers: np.ndarray) -> bool:
    """Whether corners, as x, y, x, y, ..., lie on one line."""
    offsets = numbers.reshape(-1, 2) - numbers[:2]
    scale = np.abs(offsets).max()
    if scale == 0:
        return True
    farthest = offsets[np.abs(offsets).max(axis=1).argmax()] / scale
    distances = offsets / scale @ (-farthest[1], farthest[0])
    return bool(np.abs(distances).max() * scale <= _FLAT)


def _longest_outline(height: int, width: int) -> int:
    """Edges of all pixels of an image, and some excursions out of it; in pixels."""
    return min(2 * height * width + 64 * _FAR_PX, _LONGEST_PX)


def _length(polygon: list[float]) -> float:
    """Pixels that pycocotools draws for an outline, x, y, x, y, ..."""
    corners = np.array(polygon).reshape(-1, 2)
    return np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()


def _cut(polygon: list[float], height: int, width: int) -> list[float]:
    """A polygon without what lies far outside the image: pycocotools draws an outline before it cuts off the rest.

    Sutherland and Hodgman's algorithm. The edges that it adds lie outside the image, where they enclose nothing.
    """
    corners = np.array(polygon, np.float64).reshape(-1, 2)
    for axis, sign, limit in (
        (0, 1, -_FAR_PX),
        (1, 1, -_FAR_PX),
        (0, -1, width + _FAR_PX),
        (1, -1, height + _FAR_PX),
    ):
        inside = sign * (corners[:, axis] - limit)
        if (inside >= 0).all():
            continue
        kept = []
        for corner, following, here, there in zip(
            corners, np.roll(corners, -1, axis=0), inside, np.roll(inside, -1), strict=True
        ):
            if here >= 0:
                kept.append(corner)
            if (here >= 0) != (there >= 0):
                crossing = corner + (following - corner) * (here / (here - there))
                crossing[axis] = limit
                kept.append(crossing)
        corners = np.array(kept).reshape(-1, 2)
    return corners.ravel().tolist()
