"""Figures of promptable segmentation: IoU after a click, over several clicks, and the number of clicks to an IoU.

One click asks for several masks of which one is meant: Max IoU is that of the mask with the best score, Oracle IoU that
of the best mask. The paper's protocol takes every segment of every image (COCO's panoptic ones, things and stuff),
clicks at the maximum of its distance transform, and gives all segments the same weight. The released code does so at
the size that its network sees, with an approximate transform; here masks keep the size of the original image, and
distances are exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unsam_mm.errors import UnSAMError

NOC_IOUS = (0.80, 0.85, 0.90)
"""Thresholds of the number of clicks, as GrabCut, Berkeley, SBD and DAVIS are reported."""

NOC_LIMIT = 20
"""The most clicks that one object is given in those benchmarks."""

_ROUNDING = 1e-9  # an IoU of 0.8 is a ratio of two whole numbers and must reach 0.80


def mask_ious(masks: np.ndarray, truth: np.ndarray, ignored: np.ndarray | None = None) -> np.ndarray:
    """(C,) float64 IoU of masks with a segment, 0 where both are empty.

    Args:
        masks: (C, H, W) bool.
        truth: (H, W) bool.
        ignored: (H, W) bool, pixels that count for neither, such as the grey band along GrabCut's outlines.
    """
    if ignored is not None:
        masks, truth = masks & ~ignored, truth & ~ignored
    overlap = np.count_nonzero(masks & truth, axis=(1, 2))
    union = np.count_nonzero(masks, axis=(1, 2)) + np.count_nonzero(truth) - overlap
    return overlap / np.maximum(union, 1)


def max_and_oracle(ious: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """IoU of the mask with the best score (of equal ones, the first), and the best IoU; 0 and 0 without masks.

    Args:
        ious: (C,) IoU of each mask with the segment.
        scores: (C,) its score.

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
    """Clicks until each segment has an IoU.

    Args:
        ious: (S, K) after 1 to K clicks.
        iou: That which is to be reached.

    Returns:
        clicks: (S,) int64 in 1..K; K, the limit, for those that never reach it.
        failed: (S,) bool, those that never do. One that gets there with the last click has not failed.
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
        images: (S,) int64, equal for segments of the same image.
    """

    best_scored: np.ndarray
    oracle: np.ndarray
    images: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[tuple[np.ndarray, np.ndarray]], n_clicks: int) -> SegmentIoUs:
        """One from the (S_i, K) arrays `best_scored` and `oracle` of each image."""
        empty = np.zeros((0, n_clicks))
        best_scored, oracle = (np.concatenate([empty, *(part[i] for part in parts)]) for i in range(2))
        return cls(best_scored, oracle, np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts]))


def summarize(ious: SegmentIoUs, noc_ious: Sequence[float] = NOC_IOUS) -> dict[str, float]:
    """The figures of a data set.

    Args:
        ious: Of all its segments.
        noc_ious: Thresholds of the number of clicks.

    Returns:
        ``max_iou`` and ``oracle_iou`` after one click, as means over all segments; ``image_max_iou`` and
        ``image_oracle_iou``, as means over images of the means over their segments. Where there are several clicks:
        ``IoU@k`` and ``oracle@k`` after k of them, and for each threshold ``NoC<K>@<percent>``, the mean number of
        clicks of at most K, and ``failures<K>@<percent>``, how many segments did not get there. ``segments`` and
        ``images`` are counts.

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
    """Mean IoU after 1, 2, ... clicks out of the figures of `summarize`; `name` is 'IoU' or 'oracle'."""
    first = figures['max_iou' if name == 'IoU' else 'oracle_iou']
    curve = [first]
    while (key := f'{name}@{len(curve) + 1}') in figures:
        curve.append(figures[key])
    return curve


def format_prompt_table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """A Markdown table with a column for each name and a line for each figure: IoU in percent, clicks, counts."""
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
