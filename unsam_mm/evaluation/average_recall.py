"""Class-agnostic average recall and precision of masks, by COCO's rules.

The figures equal pycocotools' ``COCOeval`` with ``iouType='segm'`` and ``useCats=0``, read from its precision and
recall arrays; its printed summary mixes 100 with more detections an image. pycocotools still computes the overlaps.
The greedy matching is written anew: it looks only at the few truths that a detection can match and treats all area
ranges and thresholds at once.

Protocol: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and its evaluation toolbox.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from unsam_mm.coco_files.segmentations import read_rles
from unsam_mm.errors import UnSAMError
from unsam_mm.rle import Rle

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREA_RANGES = {'s': (0.0, 32.0**2), 'm': (32.0**2, 96.0**2), 'l': (96.0**2, 1e10)}
"""COCO's small, medium and large objects: area in pixels of the original image, both ends included."""

_ANY_AREA = (0.0, 1e10)
_NAMED_IN_MESSAGES = 3


@dataclass(frozen=True)
class _Masks:
    """Masks of one image. `areas` sorts into ranges; `is_crowd` is unused for detections, `scores` for truths."""

    rles: list[Rle]
    areas: np.ndarray
    scores: np.ndarray
    is_crowd: np.ndarray


@dataclass(frozen=True)
class _Matches:
    """The verdict on D ranked detections of one image, for A area ranges and T overlap thresholds.

    Attributes:
        scores: (D,) float64, falling.
        hit: (A, T, D) bool; the detection has a truth of its own.
        ignored: (A, T, D) bool; the detection counts neither as right nor as wrong.
        n_truths: (A,) number of truths that can be found.
    """

    scores: np.ndarray
    hit: np.ndarray
    ignored: np.ndarray
    n_truths: np.ndarray


def evaluate_masks(
    predictions: Sequence[Mapping[str, Any]],
    ground_truth: Mapping[str, Any],
    max_dets: Sequence[int] = (1, 10, 100, 1000),
    area_ranges: Mapping[str, tuple[float, float]] = AREA_RANGES,
) -> dict[str, float]:
    """Average recall and precision of masks; all categories count as one.

    Crowd truths are matched by containment and count neither as found nor as missed. Ground-truth images without
    any prediction count as missed, and a warning says how many there are.

    Args:
        predictions: COCO result records: ``image_id``, ``segmentation`` (RLE or polygons), ``score``.
        ground_truth: COCO dictionary with ``images`` and ``annotations``. ``iscrowd`` defaults to 0, ``area`` to the
            area of the mask.
        max_dets: How many of the best-scored predictions of an image are looked at.
        area_ranges: Name to (smallest, largest) area in pixels; by default COCO's small, medium and large.

    Returns:
        Values in [0, 1], or -1 where no truth falls into an area range (COCO's convention). With the default
        arguments ``AR@1``, ``AR@10``, ``AR@100``, ``AR@1000``, ``AR_s@1000``, ``AR_m@1000``, ``AR_l@1000``, ``AP``,
        ``AP50``, ``AP75``. AR is the mean of the largest recall over the overlaps 0.50, 0.55, ... 0.95. AP is the
        mean precision at 101 recalls and the same overlaps, at the largest of `max_dets` (not at 100).

    Raises:
        UnSAMError: If a record is incomplete, a mask does not fit its image, a prediction belongs to no image of the
            ground truth, or there is no truth to find.
    """
    max_dets = sorted(set(max_dets))
    if not max_dets or max_dets[0] < 1:
        raise UnSAMError(f'max_dets must be positive integers, got {max_dets}')
    sizes = {image['id']: (image.get('height'), image.get('width')) for image in ground_truth['images']}
    truths = _group(ground_truth['annotations'], sizes, 'ground-truth annotation')
    found = _group(predictions, sizes, 'prediction')
    _report_missing(sizes, found)

    ranges = np.array([_ANY_AREA, *area_ranges.values()], np.float64)
    # The order of the images decides between equal scores; sorted by id, as pycocotools has it.
    matches = [
        _match_image(_read_detections(found[i], sizes[i], max_dets[-1]), _read_truths(truths[i], sizes[i]), ranges, i)
        for i in sorted(sizes)
    ]
    if sum(int(match.n_truths[0]) for match in matches) == 0:
        raise UnSAMError(
            'the ground truth holds no mask to find (none at all, or crowds only); check the annotation file'
        )

    metrics = {f'AR@{k}': _recall(matches, 0, k) for k in max_dets}
    for index, name in enumerate(area_ranges, start=1):
        metrics[f'AR_{name}@{max_dets[-1]}'] = _recall(matches, index, max_dets[-1])
    precision = _average_precision(matches, max_dets[-1])
    return metrics | {'AP': float(precision.mean()), 'AP50': float(precision[0]), 'AP75': float(precision[5])}


def format_table(metrics: Mapping[str, float]) -> str:
    """Two aligned lines, names above percentages with one decimal; ``-`` where no truth falls into an area range."""
    cells = [(name, '-' if value < 0 else f'{100 * value:.1f}') for name, value in metrics.items()]
    widths = [max(len(name), len(text)) for name, text in cells]
    return '\n'.join(
        '  '.join(cell[row].rjust(width) for cell, width in zip(cells, widths, strict=True)) for row in (0, 1)
    )


def _group(
    records: Sequence[Mapping[str, Any]], sizes: Mapping[Any, Any], what: str
) -> dict[Any, list[Mapping[str, Any]]]:
    """Records by image id; in one image sorted by category, which is how pycocotools orders equals."""
    groups: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for index, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise UnSAMError(f'{what} {index} is of type {type(record).__name__}; expected a dictionary')
        missing = [key for key in ('image_id', 'segmentation') if key not in record]
        if missing:
            raise UnSAMError(f'{what} {index} has no {" and no ".join(missing)}; it has {sorted(record)}')
        if not isinstance(record['image_id'], Hashable):
            raise UnSAMError(f'{what} {index} has the image_id {record["image_id"]}; expected a number or text')
        groups[record['image_id']].append(record)
    unknown = sorted(str(image_id) for image_id in groups.keys() - sizes.keys())
    if unknown:
        raise UnSAMError(
            f'{what}s name {len(unknown)} image ids that the ground truth does not list '
            f'({_some(unknown)}); use predictions and ground truth of the same data set'
        )
    for image_id, group in groups.items():
        try:
            group.sort(key=lambda record: record.get('category_id', 1))
        except TypeError as error:
            raise UnSAMError(f'image {image_id}: the {what}s have category_id of several types ({error})') from error
    return groups


def _report_missing(sizes: Mapping[Any, Any], found: Mapping[Any, Any]) -> None:
    missing = sorted(str(image_id) for image_id in sizes.keys() - found.keys())
    if missing:
        warnings.warn(
            f'{len(missing)} of {len(sizes)} ground-truth images have no prediction and count as missed '
            f'(image ids {_some(missing)})',
            stacklevel=3,
        )


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:_NAMED_IN_MESSAGES]) + (', ...' if len(names) > _NAMED_IN_MESSAGES else '')


def _read_detections(records: Sequence[Mapping[str, Any]], size_hw: tuple[int, int], max_det: int) -> _Masks:
    """The `max_det` best-scored predictions of one image, best first."""
    scores = _read_numbers(records, 'score')
    if not np.isfinite(scores).all():
        image_id = records[0]['image_id']
        raise UnSAMError(
            f'image {image_id}: {int((~np.isfinite(scores)).sum())} predictions have no finite score; every record needs one'
        )
    order = np.argsort(-scores, kind='stable')[:max_det]
    rles = read_rles([records[i] for i in order], size_hw)
    return _Masks(rles, _drawn_areas(rles), scores[order], np.zeros(len(order), bool))


def _read_truths(records: Sequence[Mapping[str, Any]], size_hw: tuple[int, int]) -> _Masks:
    rles = read_rles(records, size_hw)
    # A file may give the area of the object before it was cut or simplified; COCO sorts by that figure.
    areas = _read_numbers(records, 'area')
    areas = np.where(np.isnan(areas), _drawn_areas(rles), areas)
    is_crowd = np.array([bool(record.get('iscrowd', 0)) for record in records], bool)
    return _Masks(rles, areas, np.zeros(len(rles)), is_crowd)


def _read_numbers(records: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """A field of the records of one image, (N,) float64; NaN where it is absent or null."""
    values = (record.get(key) for record in records)
    try:
        return np.array([math.nan if value is None else float(value) for value in values], np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise UnSAMError(
            f'image {records[0]["image_id"]}: a {key} is not a number ({error}); correct the file'
        ) from error


def _drawn_areas(rles: Sequence[Rle]) -> np.ndarray:
    # One by one: pycocotools fails on lists of more than 255 masks with NumPy 2.
    return np.array([coco_mask.area(rle) for rle in rles], np.float64)


def _match_image(detections: _Masks, truths: _Masks, ranges: np.ndarray, image_id: Any) -> _Matches:
    """Matches the detections of one image to its truths.

    Args:
        detections: Best first.
        truths: In the order of the file.
        ranges: (A, 2) smallest and largest area in pixels.
        image_id: For messages.
    """
    outside_truths, outside = (
        (masks.areas < ranges[:, :1]) | (masks.areas > ranges[:, 1:]) for masks in (truths, detections)
    )  # (A, G), (A, D)
    passive = outside_truths | truths.is_crowd
    shape = (len(ranges), len(IOU_THRESHOLDS), len(detections.rles))
    if detections.rles and truths.rles:
        ious = coco_mask.iou(detections.rles, truths.rles, truths.is_crowd.astype(np.uint8).tolist())
        if (ious < 0).any():
            raise UnSAMError(f'image {image_id}: predictions and ground truth differ in height or width')
        hit, ignored = _match(ious, truths.is_crowd, passive)
    else:
        hit, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    ignored |= ~hit & outside[:, None]
    return _Matches(detections.scores, hit, ignored, (~passive).sum(axis=1))


def _match(ious: np.ndarray, is_crowd: np.ndarray, passive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy matching: each detection in turn takes the free truth that it overlaps most.

    Args:
        ious: (D, G) float64.
        is_crowd: (G,) bool; a crowd can be matched any number of times.
        passive: (A, G) bool; truths that do not count in an area range. They are taken only if no other is free.

    Returns:
        (A, T, D) bool whether the detection is matched, and (A, T, D) bool whether with a passive truth.
    """
    limits = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    taken = np.zeros((len(passive), len(limits), ious.shape[1]), bool)
    hit = np.zeros((len(passive), len(limits), len(ious)), bool)
    ignored = np.zeros_like(hit)
    reachable = ious >= limits[0]
    for detection in np.flatnonzero(reachable.any(axis=1)):
        near = np.flatnonzero(reachable[detection])[::-1]  # the last of equal overlaps wins, argmax takes the first
        iou = ious[detection, near]
        able = (iou >= limits[:, None]) & (is_crowd[near] | ~taken[:, :, near])  # (A, T, K)
        # Active truths rank in [0.5, 1], passive ones in [-0.5, 0]; the subtraction is exact.
        rank = np.where(able, iou - passive[:, None, near], -1.0)
        area, threshold = np.nonzero(able.any(axis=2))
        truth = near[rank.argmax(axis=2)[area, threshold]]
        taken[area, threshold, truth] = True
        hit[area, threshold, detection] = True
        ignored[area, threshold, detection] = passive[area, truth]
    return hit, ignored


def _recall(matches: Sequence[_Matches], area: int, max_det: int) -> float:
    """Share of the truths found among the `max_det` best of each image, averaged over the thresholds; -1 without truths."""
    n_truths = sum(int(match.n_truths[area]) for match in matches)
    if n_truths == 0:
        return -1.0
    n_found = sum((match.hit[area, :, :max_det] & ~match.ignored[area, :, :max_det]).sum(axis=1) for match in matches)
    return float((n_found / n_truths).mean())


def _average_precision(matches: Sequence[_Matches], max_det: int) -> np.ndarray:
    """(T,) interpolated precision averaged over the recall thresholds, all areas."""
    order = np.argsort(-np.concatenate([match.scores[:max_det] for match in matches]), kind='stable')
    hit, ignored = (
        np.concatenate([getattr(match, name)[0, :, :max_det] for match in matches], axis=1)[:, order]
        for name in ('hit', 'ignored')
    )
    true_positives = np.cumsum(hit & ~ignored, axis=1, dtype=np.float64)
    false_positives = np.cumsum(~hit & ~ignored, axis=1, dtype=np.float64)
    recall = true_positives / sum(int(match.n_truths[0]) for match in matches)
    precision = true_positives / (true_positives + false_positives + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(envelope, ((0, 0), (0, 1)))  # recalls that are never reached have precision 0
    return np.array(
        [padded[t, np.searchsorted(recall[t], RECALL_THRESHOLDS, side='left')].mean() for t in range(len(recall))]
    )
