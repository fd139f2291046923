"""Metrics of promptable segmentation: IoU after one or several clicks, and the number of clicks to reach an IoU.

A predictor returns several masks for one click. Max IoU is the IoU of the mask with the best score, Oracle IoU the best
IoU. In the paper, all segments of an image count equally (COCO's panoptic ones, things and stuff), and the click is at
the maximum of the distance transform. The released code uses the size of the network's input and an approximate
distance transform; here masks have the size of the original image, and distances are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unsam_mm.errors import UnSAMError
from unsam_mm.files import atomic_writer

NOC_IOUS = (0.80, 0.85, 0.90)
"""IoU thresholds of the number of clicks, as reported for GrabCut, Berkeley, SBD and DAVIS."""

NOC_LIMIT = 20
"""Maximum number of clicks at one object in these benchmarks."""

_ROUNDING = 1e-9  # an IoU of 4/5 reaches 0.80

_SIZE_WH = (720, 460)
_LEFT, _TOP, _RIGHT, _BOTTOM = 62, 24, 24, 56  # margins in pixels
_SCALE = 2  # figures are drawn larger by this factor and then reduced, for smooth lines
_COLOURS = ('#1b6ca8', '#d1495b', '#2e8b57', '#8a5cb8', '#e08e0b', '#555555', '#17a2a2', '#a0522d')
_MAX_TICKS = 10


def mask_ious(masks: np.ndarray, truth: np.ndarray, ignored: np.ndarray | None = None) -> np.ndarray:
    """(C,) float64 IoU of masks with a segment, 0 if both are empty.

    Args:
        masks: (C, H, W) bool.
        truth: (H, W) bool, the segment.
        ignored: (H, W) bool, pixels that do not count, such as the boundaries in GrabCut's masks.
    """
    if ignored is not None:
        masks, truth = masks & ~ignored, truth & ~ignored
    overlap = np.count_nonzero(masks & truth, axis=(1, 2))
    union = np.count_nonzero(masks, axis=(1, 2)) + np.count_nonzero(truth) - overlap
    return overlap / np.maximum(union, 1)


def max_and_oracle(ious: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """IoU of the mask with the best score, the first of equal ones, and the best IoU; 0 and 0 without masks.

    Args:
        ious: (C,) IoU of each mask with the segment.
        scores: (C,) score of each mask.

    Raises:
        UnSAMError: If there is not one finite score for each mask.
    """
    ious, scores = np.asarray(ious, np.float64), np.asarray(scores, np.float64)
    if scores.shape != ious.shape or not np.isfinite(scores).all():
        raise UnSAMError(
            f'{len(ious)} masks of a prompt have scores {scores.tolist()}; expected one finite number for each'
        )
    return (float(ious[scores.argmax()]), float(ious.max())) if len(ious) else (0.0, 0.0)


def number_of_clicks(ious: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Number of clicks until a segment reaches an IoU.

    Args:
        ious: (S, K) IoU of each segment after 1 to K clicks.
        iou: The threshold.

    Returns:
        clicks: (S,) int64 in 1..K; K for segments that do not reach the threshold.
        failed: (S,) bool, segments that do not reach the threshold.
    """
    reached = np.asarray(ious) >= iou - _ROUNDING
    failed = ~reached.any(axis=1)
    return np.where(failed, reached.shape[1], reached.argmax(axis=1) + 1), failed


@dataclass(frozen=True)
class SegmentIoUs:
    """IoU of S segments after 1 to K clicks.

    Attributes:
        best_scored: (S, K) float64 IoU of the mask with the best score.
        oracle: (S, K) float64 IoU of the best mask.
        images: (S,) int64 index of the image of each segment.
    """

    best_scored: np.ndarray
    oracle: np.ndarray
    images: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[tuple[np.ndarray, np.ndarray]], n_clicks: int) -> SegmentIoUs:
        """Joins the (S_i, K) arrays `best_scored` and `oracle` of images."""
        empty = np.zeros((0, n_clicks))
        best_scored, oracle = (np.concatenate([empty, *(part[i] for part in parts)]) for i in range(2))
        return cls(best_scored, oracle, np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts]))


def summarize(ious: SegmentIoUs, noc_ious: Sequence[float] = NOC_IOUS) -> dict[str, float]:
    """The metrics of a dataset.

    Args:
        ious: IoU of all segments.
        noc_ious: IoU thresholds of the number of clicks.

    Returns:
        ``max_iou`` and ``oracle_iou`` after one click, means over all segments; ``image_max_iou`` and
        ``image_oracle_iou``, means over images of the means over their segments. With several clicks also ``IoU@k`` and
        ``oracle@k`` after k clicks, and for each threshold ``NoC<K>@<percent>``, the mean number of clicks with a limit
        of K, and ``failures<K>@<percent>``, the number of segments that do not reach it. ``segments`` and ``images``
        are counts.

    Raises:
        UnSAMError: If there is no segment.
    """
    n_segments, n_clicks = ious.best_scored.shape
    if not n_segments:
        raise UnSAMError('no segment was prompted; nothing can be measured')
    figures: dict[str, float] = {
        'max_iou': float(ious.best_scored[:, 0].mean()),
        'oracle_iou': float(ious.oracle[:, 0].mean()),
        'image_max_iou': _mean_of_means(ious.best_scored[:, 0], ious.images),
        'image_oracle_iou': _mean_of_means(ious.oracle[:, 0], ious.images),
    }
    if n_clicks > 1:
        for name, values in (('IoU', ious.best_scored), ('oracle', ious.oracle)):
            figures |= {f'{name}@{k}': float(mean) for k, mean in enumerate(values.mean(axis=0), start=1)}
        for iou in noc_ious:
            clicks, failed = number_of_clicks(ious.best_scored, iou)
            figures[f'NoC{n_clicks}@{100 * iou:.0f}'] = float(clicks.mean())
            figures[f'failures{n_clicks}@{100 * iou:.0f}'] = int(failed.sum())
    return figures | {'segments': n_segments, 'images': len(np.unique(ious.images))}


def iou_curve(figures: Mapping[str, float], name: str = 'IoU') -> list[float]:
    """Mean IoU after 1, 2, ... clicks, from the result of `summarize`; `name` is 'IoU' or 'oracle'."""
    first = figures['max_iou' if name == 'IoU' else 'oracle_iou']
    curve = [first]
    while (key := f'{name}@{len(curve) + 1}') in figures:
        curve.append(figures[key])
    return curve


def format_prompt_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table with a column for each name and a row for each metric: IoU in percent, clicks, counts."""
    keys = list(dict.fromkeys(key for figures in columns.values() for key in figures))
    table = [['', *columns]]
    table += [[key, *(_cell(key, figures.get(key)) for figures in columns.values())] for key in keys]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns) + 1)]
    table.insert(1, ['-' * width for width in widths])
    return '\n'.join(
        f'| {" | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])} |' for line in table
    )


def _mean_of_means(values: np.ndarray, groups: np.ndarray) -> float:
    counts = np.bincount(groups)
    return float((np.bincount(groups, values)[counts > 0] / counts[counts > 0]).mean())


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return '-'
    if isinstance(value, int):
        return str(value)
    return f'{value:.2f}' if key.startswith('NoC') else f'{100 * value:.1f}'


def draw_click_curves(curves: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Plots mean IoU, from 0 to 100 percent, against the number of clicks.

    Args:
        curves: Mean IoU in [0, 1] after 1, 2, ... clicks, by name; lengths may differ.

    Returns:
        (460, 720, 3) uint8 RGB image.

    Raises:
        UnSAMError: If there is no curve, one is empty, or a value is outside [0, 1].
    """
    if not curves or any(len(curve) == 0 for curve in curves.values()):
        raise UnSAMError('a plot needs at least one curve, and each curve at least one click')
    if any(not 0 <= iou <= 1 for curve in curves.values() for iou in curve):
        raise UnSAMError('mean IoU must lie in [0, 1]')
    n_clicks = max(len(curve) for curve in curves.values())
    picture = Image.new('RGB', tuple(_SCALE * side for side in _SIZE_WH), 'white')
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(13 * _SCALE)
    _draw_axes(draw, font, n_clicks)
    for number, curve in enumerate(curves.values()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [_position(k, iou, n_clicks) for k, iou in enumerate(curve, start=1)]
        draw.line(points, fill=colour, width=2 * _SCALE, joint='curve')
        for x, y in points:
            draw.ellipse((x - 6, y - 6, x + 6, y + 6), fill=colour)
    _draw_legend(draw, font, list(curves))
    return np.asarray(picture.resize(_SIZE_WH, Image.Resampling.LANCZOS))


def save_click_curves(path: str | Path, curves: Mapping[str, Sequence[float]]) -> None:
    """Writes the plot of `draw_click_curves` as a PNG file, whatever the suffix of `path`.

    Raises:
        StoreError: If the file cannot be written.
    """
    picture = Image.fromarray(draw_click_curves(curves))
    with atomic_writer(path, binary=True) as file:
        picture.save(file, 'PNG', optimize=True)


def _draw_axes(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, n_clicks: int) -> None:
    for percent in range(0, 101, 20):
        left = _position(1, percent / 100, n_clicks)
        right = _position(max(n_clicks, 2), percent / 100, n_clicks)
        draw.line((left, right), fill='#dddddd' if percent else '#000000', width=_SCALE)
        draw.text((left[0] - 16, left[1]), str(percent), fill='black', font=font, anchor='rm')
    step = -(-n_clicks // _MAX_TICKS)
    for k in range(1, n_clicks + 1, step):
        x, y = _position(k, 0, n_clicks)
        draw.line(((x, y), (x, y + 10)), fill='black', width=_SCALE)
        draw.text((x, y + 16), str(k), fill='black', font=font, anchor='mt')
    width, height = (_SCALE * side for side in _SIZE_WH)
    draw.text((width / 2, height - 14), 'clicks', fill='black', font=font, anchor='mb')
    draw.text((8, 8), 'mean IoU, percent', fill='black', font=font, anchor='lt')


def _draw_legend(draw: ImageDraw.ImageDraw, font: ImageFont.ImageFont, names: Sequence[str]) -> None:
    right, bottom = (_SCALE * (side - margin) for side, margin in zip(_SIZE_WH, (_RIGHT, _BOTTOM), strict=True))
    height = 18 * _SCALE
    top = bottom - (len(names) + 0.5) * height
    for number, name in enumerate(names):
        y = top + (number + 0.5) * height
        draw.text((right - 50, y), name, fill='black', font=font, anchor='rm')
        draw.line(((right - 42, y), (right - 8, y)), fill=_COLOURS[number % len(_COLOURS)], width=3 * _SCALE)


def _position(click: int, iou: float, n_clicks: int) -> tuple[float, float]:
    """x, y of a value in the enlarged figure."""
    width, height = _SIZE_WH
    x = _LEFT + (width - _LEFT - _RIGHT) * (click - 1) / max(n_clicks - 1, 1)
    y = _TOP + (height - _TOP - _BOTTOM) * (1 - iou)
    return _SCALE * x, _SCALE * y
