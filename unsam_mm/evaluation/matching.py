"""COCO's greedy matching of the detections of one image to its truths."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from unsam_mm.coco_files.fields import (
    category_order,
    entry_id,
    image_size,
    is_crowd,
    number_in,
    other_type_hint,
    repeated_id,
    stated_area,
)
from unsam_mm.coco_files.segmentations import PolygonFilter, place_of, read_rles
from unsam_mm.errors import UnSAMError, first_names
from unsam_mm.masks.rle import Rle, areas_and_boxes

Record = Mapping[str, Any]
SizeHW = tuple[int | None, int | None]
"""Height and width of an image in pixels; None where they are not known."""

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_AREA_STEP = 1.5
"""Detections of similar area are compared at once: from one area to so many times as much."""


@dataclass(frozen=True)
class Masks:
    """N masks of one image.

    Attributes:
        rles: Run lengths.
        drawn: (N,) float64 pixels of each mask.
        areas: (N,) float64 pixels by which masks are sorted into small, medium and large.
        scores: (N,) float64; zeros for truths.
        is_crowd: (N,) bool; all False for detections.
    """

    rles: list[Rle]
    drawn: np.ndarray  # (N,) float64 pixels of each mask
    areas: np.ndarray  # (N,) float64 pixels by which masks are sorted into small, medium and large
    scores: np.ndarray  # (N,) float64; zeros for truths
    is_crowd: np.ndarray  # (N,) bool; all False for detections


def group_by_image(records: Sequence[Record], image_ids: Mapping[Any, Any], what: str) -> dict[Any, list[Record]]:
    """Records by image id; in one image sorted by category, which is how pycocotools orders equals.

    Args:
        records: COCO annotations or results.
        image_ids: The ids that may occur, as keys.
        what: Name of a record for messages.

    Raises:
        UnSAMError: If a record is incomplete, or of no image of these.
    """
    groups: dict[Any, list[Record]] = defaultdict(list)
    for index, record in enumerate(records):
        if not isinstance(record, Mapping):
            raise UnSAMError(f'{what} {index} is of type {type(record).__name__}; expected a dictionary')
        if 'segments_info' in record:
            raise UnSAMError(f'{what} {index} is in the panoptic format, whose masks are PNG files; expected instances')
        missing = [key for key in ('image_id', 'segmentation') if key not in record]
        if missing:
            raise UnSAMError(f'{what} {index} has no {" and no ".join(missing)}; it has {sorted(record)}')
        image_id = entry_id(record['image_id'])
        if image_id is None:
            raise UnSAMError(f'{what} {index} has the image_id {record["image_id"]}; expected a number or text')
        groups[image_id].append(record)
    unknown = groups.keys() - image_ids.keys()
    if unknown:
        advice = 'use predictions and ground truth of the same data set'
        raise UnSAMError(
            f'{what}s name {len(unknown)} image ids that the ground truth does not list '
            f'({first_names(sorted(map(str, unknown)))}); {other_type_hint(unknown, image_ids) or advice}'
        )
    polygons = PolygonFilter(f'{what}s')
    kept = {image_id: sorted(polygons(group), key=category_order) for image_id, group in groups.items()}
    polygons.warn(stacklevel=3)
    return kept


def read_images(
    predictions: Sequence[Record], ground_truth: Mapping[str, Any], max_det: int
) -> Iterator[tuple[Any, Masks, Masks]]:
    """Image id, detections and truths of every image of a COCO dictionary, sorted by id as pycocotools has it.

    The order of the images decides between equal scores.

    Raises:
        UnSAMError: If a record is incomplete, a mask does not fit its image, a prediction belongs to no image, or two
            images have one id.
    """
    if twice := repeated_id(ground_truth['images']):
        raise UnSAMError(f'the ground truth: {twice}')
    sizes = {image['id']: image_size(image) for image in ground_truth['images']}
    truths = group_by_image(ground_truth['annotations'], sizes, 'ground-truth annotation')
    found = group_by_image(predictions, sizes, 'prediction')
    for image_id in sorted(sizes):
        yield image_id, *read_image(found.get(image_id, []), truths.get(image_id, []), sizes[image_id], max_det)


def read_image(
    predictions: Sequence[Record], truths: Sequence[Record], size_hw: SizeHW, max_det: int
) -> tuple[Masks, Masks]:
    """The `max_det` best-scored predictions of one image, best first, and its truths in their order.

    Raises:
        UnSAMError: If a mask is malformed or of another size than the image, or a score is missing.
    """
    try:
        what = 'prediction'
        detections = _read_detections(predictions, size_hw, max_det)
        what = 'ground truth'
        references = _read_truths(truths, size_hw)
    except UnSAMError as error:
        raise UnSAMError(f'{what} of {error}') from error
    sizes = {tuple(rle['size']) for masks in (detections, references) for rle in masks.rles}
    if len(sizes) > 1:
        image_id = truths[0]['image_id'] if truths else predictions[0]['image_id']
        raise UnSAMError(f'image {image_id}: predictions and ground truth differ in height or width ({sorted(sizes)})')
    return detections, references


def _read_detections(records: Sequence[Record], size_hw: SizeHW, max_det: int) -> Masks:
    scores = _read_fields(records, partial(number_in, key='score'))
    if not np.isfinite(scores).all():
        image_id = records[0]['image_id']
        raise UnSAMError(
            f'image {image_id}: {int((~np.isfinite(scores)).sum())} predictions have no finite score; every record needs one'
        )
    order = np.argsort(-scores, kind='stable')[:max_det]
    rles = read_rles([records[i] for i in order], size_hw)
    drawn = areas_and_boxes(rles)[0].astype(np.float64)
    return Masks(rles, drawn, drawn, scores[order], np.zeros(len(order), bool))


def _read_truths(records: Sequence[Record], size_hw: SizeHW) -> Masks:
    rles = read_rles(records, size_hw)
    drawn = areas_and_boxes(rles)[0].astype(np.float64)
    # A file may give the area of the object before it was cut or simplified; COCO sorts by that figure.
    areas = _read_fields(records, stated_area)
    areas = np.where(np.isnan(areas), drawn, areas)
    return Masks(rles, drawn, areas, np.zeros(len(rles)), _read_fields(records, is_crowd).astype(bool))


def _read_fields(records: Sequence[Record], read: Callable[[Record], float]) -> np.ndarray:
    """(N,) float64: a field of the records of one image."""
    values = np.empty(len(records))
    for index, record in enumerate(records):
        try:
            values[index] = read(record)
        except UnSAMError as error:
            raise UnSAMError(f'{place_of(record)}: {error}') from error
    return values


@dataclass(frozen=True)
class MatchResult:
    """All that recall and precision need of one image: about 10 kB at 1000 detections.

    Attributes:
        scores: (D,) float64, falling.
        found: (A, K, T) int64 truths found in A area ranges, among the K numbers of best detections, at T thresholds.
        n_truths: (A,) int64 truths that can be found.
        right: (T, ceil(D / 8)) uint8, packed bits: detections with a truth of their own; all areas.
        wrong: The same form; detections without one, which are no crowd either.
    """

    scores: np.ndarray  # (D,) float64, falling
    found: np.ndarray
    n_truths: np.ndarray  # (A,) int64 truths that can be found
    right: np.ndarray  # (T, ceil(D / 8)) uint8, packed bits: detections with a truth of their own; all areas
    wrong: np.ndarray


def match_image(detections: Masks, truths: Masks, ranges: np.ndarray, max_dets: Sequence[int]) -> MatchResult:
    """Matches the detections of one image to its truths.

    Args:
        detections: Best first.
        truths: In the order of the file.
        ranges: (A, 2) float64 smallest and largest area in pixels, both included; the first holds every area.
        max_dets: K numbers of best detections, rising.
    """
    outside_truths, outside = (
        (masks.areas < ranges[:, :1]) | (masks.areas > ranges[:, 1:]) for masks in (truths, detections)
    )  # (A, G), (A, D)
    passive = outside_truths | truths.is_crowd
    shape = (len(ranges), len(IOU_THRESHOLDS), len(detections.rles))
    if detections.rles and truths.rles:
        hit, ignored = _match(overlaps(detections, truths), truths.is_crowd, passive)
    else:
        hit, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    right = hit & ~ignored
    wrong = ~(hit | ignored | outside[:, None])
    found = np.stack([np.count_nonzero(right[..., :k], axis=2) for k in max_dets], axis=1)
    bits = (np.packbits(flags[0], axis=1) for flags in (right, wrong))
    return MatchResult(detections.scores, found, np.count_nonzero(~passive, axis=1), *bits)


def overlaps(detections: Masks, truths: Masks) -> np.ndarray:
    """(D, G) float64 intersection over union, or over the detection for a crowd; 0 where it is below one half anyway.

    Two masks of which one is more than twice as large as the other overlap by less than one half.
    """
    ious = np.zeros((len(detections.rles), len(truths.rles)))
    order = np.argsort(detections.drawn, kind='stable')
    rising = detections.drawn[order]
    first = 0
    while first < len(order):
        behind = max(np.searchsorted(rising, _AREA_STEP * rising[first], side='right'), first + 1)
        rows = order[first:behind]
        able = (2 * truths.drawn >= rising[first]) & (truths.drawn <= 2 * rising[behind - 1])
        columns = np.flatnonzero(able | truths.is_crowd)
        if len(columns):
            ious[np.ix_(rows, columns)] = coco_mask.iou(
                [detections.rles[i] for i in rows],
                [truths.rles[i] for i in columns],
                truths.is_crowd[columns].astype(np.uint8).tolist(),
            )
        first = behind
    return ious


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
