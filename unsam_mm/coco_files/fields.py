"""Parses fields of COCO entries: unambiguous variants are converted, others are rejected.

Tools write ids as floats (pandas), numbers as text, and null for missing values.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from unsam_mm.errors import ImageError, StoreError, UnSAMError, first_names
from unsam_mm.masks.rle import MAX_PIXELS

_MAX_SHOWN = 40  # characters of an invalid value in messages
_COLOURS = 256**3  # number of RGB colours, which encode segment ids in panoptic PNG files
_FLAGS = {'0': False, '1': True, 'false': False, 'true': True, '0.0': False, '1.0': True, 'none': False, '': False}


def entry_id(value: Any) -> int | str | None:
    """The id as an int or a str, None if the value is not a valid id. Floats without a fraction become ints."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value


def whole_number(value: Any) -> int | None:
    """The value, a number or text, as an int; None if it is not a whole number."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return entry_id(value)


def listed_name(image: Mapping[str, Any]) -> str:
    """The name of an image entry: ``file_name``, else the last two parts of ``coco_url`` (LVIS), else ''."""
    name, url = image.get('file_name'), image.get('coco_url')
    if not name and isinstance(url, str):
        name = '/'.join(PurePosixPath(urlsplit(url).path.lstrip('/')).parts[-2:])
    return name or ''


def image_size(image: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """``height`` and ``width`` in pixels; None if absent or null.

    Raises:
        UnSAMError: If one is not a positive whole number, or the image has more than `MAX_PIXELS` pixels.
    """
    sides = []
    for key in ('height', 'width'):
        value = image.get(key)
        side = whole_number(value)
        if value is not None and (side is None or side <= 0):
            raise UnSAMError(f'the "{key}" is {_shorten(value)}; expected a positive whole number of pixels')
        sides.append(side)
    if None not in sides and sides[0] * sides[1] > MAX_PIXELS:
        raise UnSAMError(f'the image has {sides[0]} x {sides[1]} px; RLE supports at most {MAX_PIXELS} px')
    return sides[0], sides[1]


def is_crowd(record: Mapping[str, Any]) -> bool:
    """True if an annotation is of a group of objects; False if ``iscrowd`` is absent, null or empty text.

    Raises:
        UnSAMError: If ``iscrowd`` is neither 0 nor 1.
    """
    value = record.get('iscrowd')
    flag = _FLAGS.get(str(value).lower())
    if flag is None:
        raise UnSAMError(f'the "iscrowd" is {_shorten(value)}; expected 0 or 1')
    return flag


def panoptic_segments(record: Mapping[str, Any]) -> tuple[str, list[int], list[bool]]:
    """The name of the PNG file, the segment ids and the crowd flags of an annotation in COCO's panoptic format.

    Raises:
        UnSAMError: If the annotation has another format.
    """
    name, segments = record.get('file_name'), record.get('segments_info')
    if not isinstance(name, str) or not name or not isinstance(segments, list):
        raise UnSAMError('has no file_name or no segments_info; expected the panoptic format')
    ids = [whole_number(segment.get('id')) if isinstance(segment, Mapping) else None for segment in segments]
    if not all(segment_id is not None and 0 <= segment_id < _COLOURS for segment_id in ids):
        raise UnSAMError(f'has segments_info without whole numbers below {_COLOURS} as "id": {_shorten(segments)}')
    return name, ids, [is_crowd(segment) for segment in segments]


def stated_area(record: Mapping[str, Any]) -> float:
    """``area`` in pixels; NaN if absent, null, negative or infinite.

    Some tools write negative areas for polygons with reversed orientation.

    Raises:
        UnSAMError: If it is not a number.
    """
    area = number_in(record, 'area')
    return area if 0 <= area < math.inf else math.nan


def number_in(record: Mapping[str, Any], key: str) -> float:
    """A field, a number or text, as a float; NaN if absent or null.

    Raises:
        UnSAMError: If it is not a number.
    """
    value = record.get(key)
    try:
        return math.nan if value is None else float(value)
    except (OverflowError, TypeError, ValueError) as error:
        raise UnSAMError(f'the "{key}" is not a number: {_shorten(value)}') from error


def stated_box(record: Mapping[str, Any]) -> list[float] | None:
    """``bbox``; None if it is not a list of four finite numbers."""
    box = record.get('bbox')
    if not isinstance(box, list) or len(box) != 4 or not set(map(type, box)) <= {int, float}:
        return None
    return box if all(abs(number) < math.inf for number in box) else None


def category_order(record: Mapping[str, Any]) -> tuple[bool, float, str]:
    """Sort key of a record by category id: numbers first, then other types as text; an absent category counts as 0."""
    category = record.get('category_id')
    if isinstance(category, int | float) and abs(category) < 1e300:
        return False, category, ''
    return (False, 0, '') if category is None else (True, 0, str(category))


def check_listed(path: object, image_ids: Iterable[Any], listed: Collection[Any], advice: str = '') -> None:
    """Checks that annotations refer to listed images.

    Args:
        path: The file, for messages.
        image_ids: Ids in annotations.
        listed: Ids of images.
        advice: Added to the message.

    Raises:
        StoreError: If an id is not listed.
    """
    unlisted = list({image_id: None for image_id in image_ids if image_id not in listed})
    if unlisted:
        expected = f'expected a COCO file whose "images" contain all of them{advice}'
        raise StoreError(
            f'{path}: annotations of {len(unlisted)} images that are not listed '
            f'({first_names(list(map(str, unlisted)))}); {other_type_hint(unlisted, listed) or expected}'
        )


def other_type_hint(unknown: Iterable[Any], known: Iterable[Any]) -> str:
    """Message for ids that are unknown only because they are text on one side and numbers on the other; else ''."""
    by_text = {str(value): value for value in known}
    for value in unknown:
        if (same := by_text.get(str(value))) is not None and isinstance(same, str) != isinstance(value, str):
            kinds = ('the text', 'the number') if isinstance(value, str) else ('the number', 'the text')
            return (
                f'the image_id {value!r} is {kinds[0]}, the id of the image {kinds[1]} {same!r}; write both in one form'
            )
    return ''


def repeated_id(images: Iterable[Mapping[str, Any]]) -> str:
    """Message for two image entries with the same id; '' if all ids are different."""
    names: dict[Any, str] = {}
    for image in images:
        name = str(listed_name(image) or 'without name')
        if image['id'] in names:
            return duplicate_message(image['id'], names[image['id']], name)
        names[image['id']] = name
    return ''


def duplicate_message(image_id: Any, *names: str) -> str:
    """Message for images with the same id."""
    return (
        f'image id {image_id} is listed twice ({", ".join(names)}), so annotations of one would count for the other; give '
        'each image its own id'
    )


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f'{text[:_MAX_SHOWN]}...'


def read_mask_picture(path: Path, colours_as_numbers: bool) -> np.ndarray:
    """Reads a label image.

    Args:
        path: Image file: greyscale, with a palette (labels are its indices), or with colours; an alpha channel is
            ignored.
        colours_as_numbers: True if the label of a colour is red + 256 green + 65536 blue, as in COCO's panoptic format.
            If False, it is the maximum of the channels.

    Returns:
        (H, W) int64 labels.

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
    return (colours * 256 ** np.arange(colours.shape[-1])).sum(axis=-1)
