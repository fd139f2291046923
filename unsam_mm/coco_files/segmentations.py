"""Masks of COCO records as run lengths, checked before pycocotools sees them: its C code trusts what it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from unsam_mm.errors import UnSAMError
from unsam_mm.rle import Rle, rle_from_json

# COCO writes a run in groups of 5 bits, least first; character 48 + 32 means that another group follows.
_FIRST_CODE, _MORE, _SIGN = 48, 32, 16
_ALPHABET = bytes(range(_FIRST_CODE, _FIRST_CODE + 2 * _MORE))
_AT_ONCE = 200  # masks; larger temporary arrays are slower
_MAX_COORDINATE_PX = 100_000
_MAX_GROUPS = 7
"""Runs are 32-bit numbers; no difference of two of them takes more groups."""


def read_rles(records: Sequence[Mapping[str, Any]], size_hw: tuple[int | None, int | None]) -> list[Rle]:
    """The masks of the records of one image as compressed RLEs.

    Args:
        records: COCO annotations or results with ``segmentation``: RLE (compressed or plain) or polygons.
        size_hw: Height and width of the image in pixels; None where they are not known.

    Raises:
        UnSAMError: If a mask is malformed, of another size than the image, or its runs do not add up to that size.
    """
    rles = [_read_rle(record, size_hw) for record in records]
    counts = [rle['counts'] for rle in rles]
    totals = [total for i in range(0, len(counts), _AT_ONCE) for total in _run_totals(counts[i : i + _AT_ONCE])]
    for record, rle, total in zip(records, rles, totals, strict=True):
        height, width = rle['size']
        if total != height * width:
            raise UnSAMError(
                f'{_place(record)}: the counts of the RLE add up to {total} px, but {height} x {width} px are '
                f'{height * width}; the file is damaged or of another form: make it again'
            )
    return rles


def _read_rle(record: Mapping[str, Any], size_hw: tuple[int | None, int | None]) -> Rle:
    segmentation = record['segmentation']
    if None in size_hw and isinstance(segmentation, list):
        raise UnSAMError(
            f'{_place(record)}: polygons need the size of the image; add "height" and "width" to its entry in "images"'
        )
    try:
        if isinstance(segmentation, Mapping):
            rle = _checked_rle(segmentation)
        else:
            rle = coco_mask.merge(coco_mask.frPyObjects(_checked_polygons(segmentation), *size_hw))
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise UnSAMError(f'{_place(record)}: segmentation is neither RLE nor polygons ({error!r})') from error
    if None not in size_hw and tuple(rle['size']) != tuple(size_hw):
        raise UnSAMError(
            f'{_place(record)}: the mask is {rle["size"][0]} x {rle["size"][1]} px, the image {size_hw[0]} x {size_hw[1]}; '
            'masks must be given at the size of the original image'
        )
    return rle


def _checked_rle(segmentation: Mapping[str, Any]) -> Rle:
    height, width = map(int, segmentation['size'])
    rle = rle_from_json({'size': [height, width], 'counts': segmentation['counts']})
    counts = rle['counts']
    if not isinstance(counts, bytes):
        raise TypeError(f'counts is of type {type(counts).__name__}')
    # Where the last run has no end, pycocotools would read on behind the text.
    if not counts or counts.translate(None, _ALPHABET) or counts[-1] - _FIRST_CODE >= _MORE:
        raise ValueError(f'counts are not COCO run lengths: {counts[:20]!r}')
    return rle


def _checked_polygons(segmentation: Any) -> list[list[float]]:
    # pycocotools would take four numbers for a box, and raises a bare Exception for other things.
    if not (isinstance(segmentation, list) and segmentation):
        raise TypeError(f'found {type(segmentation).__name__}')
    if not all(isinstance(polygon, list) and len(polygon) >= 6 for polygon in segmentation):
        raise TypeError('a polygon needs at least three x, y pairs')
    # It draws every pixel of an outline into memory before it cuts off what lies outside the image.
    if not all(-_MAX_COORDINATE_PX < value < _MAX_COORDINATE_PX for polygon in segmentation for value in polygon):
        raise ValueError(f'coordinates must be finite and below {_MAX_COORDINATE_PX} px')
    return segmentation


def _run_totals(counts: Sequence[bytes]) -> np.ndarray:
    """The sum of the runs of each of N >= 1 masks, (N,) int64; -1 where a number is too long for a run.

    COCO stores the runs 0 to 2 as they are and each later one as the difference to the last but one. So number k >= 1
    of m counts in the runs k, k + 2, ... below m, and the sum is a weighted one of the numbers as they are stored.
    """
    codes = np.frombuffer(b''.join(counts), np.uint8) - np.uint8(_FIRST_CODE)
    ends = np.flatnonzero(codes < _MORE)
    n_groups = np.diff(ends, prepend=-1)
    values = (codes[ends] ^ _SIGN).astype(np.int64) - _SIGN  # the last group has the sign
    for group in range(1, min(n_groups.max(), _MAX_GROUPS)):
        longer = np.flatnonzero(n_groups > group)
        values[longer] = values[longer] * _MORE + codes[ends[longer] - group] % _MORE

    first = np.searchsorted(ends, np.cumsum([0, *map(len, counts)]))  # of the numbers of each mask
    behind = np.repeat(first[1:], np.diff(first)) - np.arange(len(ends))  # m - k
    weights = (behind + 1) // 2
    weights[first[:-1]] = 1
    totals = np.add.reduceat(values * weights, first[:-1])
    too_long = np.maximum.reduceat(n_groups, first[:-1]) > _MAX_GROUPS
    return np.where(too_long, -1, totals)


def _place(record: Mapping[str, Any]) -> str:
    return f'image {record["image_id"]}, record {record.get("id", "without id")}'
