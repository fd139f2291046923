"""Parses fields of COCO entries: unambiguous variants are converted, others are rejected.

Tools write ids as whole floats (pandas), numbers as text, and null for missing values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from unsam_mm.errors import ImageError, UnSAMError
from unsam_mm.masks.rle import MAX_PIXELS

_SHOWN = 40  # characters of a wrong value in messages
_COLOURS = 256**3  # of the PNG files of the panoptic form
_FLAGS = {'0': False, '1': True, 'false': False, 'true': True, '0.0': False, '1.0': True, 'none': False, '': False}

_BYTE = 256


def entry_id(value: Any) -> int | str | None:
    """An id as a whole number or text; None for what is no id. A whole float is the number that it equals."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value


def whole_number(value: Any) -> int | None:
    """A whole number, also from a whole float or from text; None for what is none."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return entry_id(value)


def listed_name(image: Mapping[str, Any]) -> str:
    """``file_name`` of an entry of "images", else the end of ``coco_url`` (LVIS): ``val2017/000000397133.jpg``; else ''."""
    name, url = image.get('file_name'), image.get('coco_url')
    if not name and isinstance(url, str):
        name = '/'.join(PurePosixPath(urlsplit(url).path.lstrip('/')).parts[-2:])
    return name or ''


def image_size(image: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """``height`` and ``width`` in pixels; None for what is absent or null.

    Raises:
        UnSAMError: If one is no whole number above 0, or they have more pixels than run lengths can count.
    """
    sides = []
    for key in ('height', 'width'):
        value = image.get(key)
        side = whole_number(value)
        if value is not None and (side is None or side <= 0):
            raise UnSAMError(f'the "{key}" is {_shown(value)}; expected a number of pixels, a whole one above 0')
        sides.append(side)
    if None not in sides and sides[0] * sides[1] > MAX_PIXELS:
        raise UnSAMError(f'the image has {sides[0]} x {sides[1]} px; run lengths count no more than {MAX_PIXELS} px')
    return sides[0], sides[1]


def is_crowd(record: Mapping[str, Any], key: str = 'iscrowd') -> bool:
    """Whether an annotation marks a group of objects; without the field it marks one object.

    Raises:
        UnSAMError: If the field is neither 0 nor 1.
    """
    value = record.get(key)
    flag = _FLAGS.get(str(value).lower())
    if flag is None:
        raise UnSAMError(f'the "{key}" is {_shown(value)}; expected 0 or 1')
    return flag


def panoptic_segments(record: Mapping[str, Any]) -> tuple[str, list[int], list[bool]]:
    """The PNG file of a record in COCO's panoptic form, the number of each segment in it, and whether it is a crowd.

    Raises:
        UnSAMError: If the record has another form.
    """
    name, segments = record.get('file_name'), record.get('segments_info')
    if not isinstance(name, str) or not name or not isinstance(segments, list):
        raise UnSAMError('has no file_name or no segments_info; expected the panoptic form')
    numbers = [whole_number(segment.get('id')) if isinstance(segment, Mapping) else None for segment in segments]
    if not all(number is not None and 0 <= number < _COLOURS for number in numbers):
        raise UnSAMError(f'has segments_info without whole numbers below {_COLOURS} as "id": {_shown(segments)}')
    return name, numbers, [is_crowd(segment) for segment in segments]


def stated_area(record: Mapping[str, Any]) -> float:
    """``area`` in pixels as the file states it; NaN where it does not, or states what is none: below 0, or infinite.

    Tools write an area below 0 for outlines that run the other way round.

    Raises:
        UnSAMError: If it is no number.
    """
    area = number_in(record, 'area')
    return area if 0 <= area < math.inf else math.nan


def number_in(record: Mapping[str, Any], key: str) -> float:
    """A field as a float, also from text; NaN where it is absent or null.

    Raises:
        UnSAMError: If it is no number.
    """
    value = record.get(key)
    try:
        return math.nan if value is None else float(value)
    except (OverflowError, TypeError, ValueError) as error:
        raise UnSAMError(f'the "{key}" is not a number: {_shown(value)}') from error


def stated_box(record: Mapping[str, Any]) -> list[float] | None:
    """``bbox`` as the file states it; None where it does not, or states what is no box: four finite numbers."""
    box = record.get('bbox')
    if not isinstance(box, list) or len(box) != 4 or not set(map(type, box)) <= {int, float}:
        return None
    return box if all(abs(number) < math.inf for number in box) else None


def category_order(record: Mapping[str, Any]) -> tuple[bool, float, str]:
    """A key that sorts records by category, whatever type it has; all without one are equal, and first."""
    category = record.get('category_id')
    if isinstance(category, int | float) and abs(category) < 1e300:
        return False, category, ''
    return (False, 0, '') if category is None else (True, 0, str(category))


def other_type_hint(unknown: Iterable[Any], known: Iterable[Any]) -> str:
    """Message for ids that are not known only because they are text on one side and numbers on the other; else ''."""
    by_text = {str(value): value for value in known}
    for value in unknown:
        if (same := by_text.get(str(value))) is not None and isinstance(same, str) != isinstance(value, str):
            kinds = ('the text', 'the number') if isinstance(value, str) else ('the number', 'the text')
            return (
                f'the image_id {value!r} is {kinds[0]}, the id of the image {kinds[1]} {same!r}; write both in one form'
            )
    return ''


def repeated_id(images: Iterable[Mapping[str, Any]]) -> str:
    """Message for two entries of "images" with one id; '' if all differ."""
    names: dict[Any, str] = {}
    for image in images:
        name = str(listed_name(image) or 'without name')
        if image['id'] in names:
            return duplicate_message(image['id'], names[image['id']], name)
        names[image['id']] = name
    return ''


def duplicate_message(image_id: Any, *names: str) -> str:
    """Message for two images with one id."""
    return (
        f'image id {image_id} is listed twice ({", ".join(names)}), so annotations of one would count for the other; give '
        'each image an id of its own'
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'


def read_mask_picture(path: Path, colours_as_numbers: bool) -> np.ndarray:
    """(H, W) integers of a mask picture; colours as red + 256 green + 65536 blue, COCO's way, or as the largest.

    Raises:
        ImageError: If it cannot be read.
    """
    try:
        with Image.open(path) as file:
            values = np.asarray(file)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f'{path}: cannot be read as a mask picture ({error}); copy it again') from error
    if values.ndim == 2:
        return values.astype(np.int64)
    colours = values[..., : 1 if values.shape[-1] == 2 else 3].astype(np.int64)
    if not colours_as_numbers:
        return colours.max(axis=-1)
    return (colours * _BYTE ** np.arange(colours.shape[-1])).sum(axis=-1)
