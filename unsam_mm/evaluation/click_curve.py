"""The curve of IoU against clicks as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unsam_mm.errors import UnSAMError
from unsam_mm.files import atomic_writer

_SIZE_WH = (720, 460)
_LEFT, _TOP, _RIGHT, _BOTTOM = 62, 24, 24, 56  # margins in pixels
_SMOOTHING = 2  # drawn larger and shrunk, for lines without steps
_COLOURS = ('#1b6ca8', '#d1495b', '#2e8b57', '#8a5cb8', '#e08e0b', '#555555', '#17a2a2', '#a0522d')
_MOST_TICKS = 10


def draw_click_curves(curves: Mapping[str, Sequence[float]]) -> np.ndarray:
    """(460, 720, 3) uint8: mean IoU from 0 to 100 percent after 1, 2, ... clicks, one coloured line for each name.

    Args:
        curves: Name to the mean IoU in [0, 1] after each click; lengths may differ.

    Raises:
        UnSAMError: If there is no curve, one is empty, or a value lies outside [0, 1].
    """
    if not curves or any(len(curve) == 0 for curve in curves.values()):
        raise UnSAMError('a picture of curves needs at least one, with at least one click')
    if any(not 0 <= iou <= 1 for curve in curves.values() for iou in curve):
        raise UnSAMError('mean IoU must lie in [0, 1]')
    most = max(len(curve) for curve in curves.values())
    picture = Image.new('RGB', tuple(_SMOOTHING * side for side in _SIZE_WH), 'white')
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13 * _SMOOTHING)
    _draw_axes(draw, font, most)
    for number, curve in enumerate(curves.values()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [_place(k, iou, most) for k, iou in enumerate(curve, start=1)]
        draw.line(points, fill=colour, width=2 * _SMOOTHING, joint='curve')
        for x, y in points:
            draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour)
    _draw_legend(draw, font, list(curves))
    return np.asarray(picture.resize(_SIZE_WH, Image.Resampling.LANCZOS))


def save_click_curves(path: str | Path, curves: Mapping[str, Sequence[float]]) -> None:
    """Writes the picture of `draw_click_curves` as a PNG, whatever the name ends in.

    Raises:
        StoreError: If the file cannot be written.
    """
    picture = Image.fromarray(draw_click_curves(curves))
    with atomic_writer(path, binary=True) as file:
        picture.save(file, 'PNG', optimize=True)


def _draw_axes(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, most: int) -> None:
    for percent in range(0, 101, 20):
        left, right = _place(1, percent / 100, most), _place(max(most, 2), percent / 100, most)
        draw.line((left, right), fill='#dddddd' if percent else '#000000', width=_SMOOTHING)
        draw.text((left[0] - 16, left[1]), str(percent), fill='black', font=font, anchor='rm')
    step = -(-most // _MOST_TICKS)
    for k in range(1, most + 1, step):
        x, y = _place(k, 0, most)
        draw.line(((x, y), (x, y + 10)), fill='black', width=_SMOOTHING)
        draw.text((x, y + 16), str(k), fill='black', font=font, anchor='mt')
    width, height = (_SMOOTHING * side for side in _SIZE_WH)
    draw.text((width / 2, height - 14), 'clicks', fill='black', font=font, anchor='mb')
    draw.text((8, 8), 'mean IoU, percent', fill='black', font=font, anchor='lt')


def _draw_legend(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, names: Sequence[str]) -> None:
    right, bottom = (_SMOOTHING * (side - margin) for side, margin in zip(_SIZE_WH, (_RIGHT, _BOTTOM), strict=True))
    height = 18 * _SMOOTHING
    top = bottom - (len(names) + 0.5) * height
    for number, name in enumerate(names):
        y = top + (number + 0.5) * height
        draw.text((right - 50, y), name, fill='black', font=font, anchor='rm')
        draw.line(((right - 42, y), (right - 8, y)), fill=_COLOURS[number % len(_COLOURS)], width=3 * _SMOOTHING)


def _place(clicks: int, iou: float, most: int) -> tuple[float, float]:
    """x, y of a value in the enlarged picture."""
    width, height = _SIZE_WH
    x = _LEFT + (width - _LEFT - _RIGHT) * (clicks - 1) / max(most - 1, 1)
    y = _TOP + (height - _TOP - _BOTTOM) * (1 - iou)
    return _SMOOTHING * x, _SMOOTHING * y
