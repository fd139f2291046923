"""COCO's greedy matching of the detections of one image to its ground truth.

In names and docstrings, truths are ground-truth masks.
"""

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
from unsam_mm.coco_files.segmentations import PolygonFilter, describe_record, read_rles
from unsam_mm.errors import UnSAMError, first_names
from unsam_mm.masks.rle import Rle, areas_and_boxes

Record = Mapping[str, Any]
SizeHW = tuple[int | None, int | None]
"""Height and width of an image in pixels; None if unknown."""

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_AREA_STEP = 1.5  # ratio of the largest to the smallest area of the detections in a batch


@dataclass(frozen=True)
class Masks:
    """N masks of one image.

    Attributes:
        rles: N RLEs.
        n_pixels: (N,) float64 number of pixels.
        areas: (N,) float64 areas in pixels for the area ranges: as stated in the file, or else `n_pixels`.
        scores: (N,) float64; zeros for truths.
        is_crowd: (N,) bool; all False for detections.
    """

    rles: list[Rle]
    n_pixels: np.ndarray
    areas: np.ndarray
    scores: np.ndarray
    is_crowd: np.ndarray


def group_by_image(records: Sequence[Record], image_ids: Mapping[Any, Any], what: str) -> dict[Any, list[Record]]:
    """Records by image id, sorted by category as in pycocotools; the order decides between equal scores or IoUs.

    Records without a mask and polygons that enclose nothing are left out, with a warning.

    Args:
        records: COCO annotations or results.
        image_ids: A mapping whose keys are the ids of the images.
        what: Name of a record in messages.

    Raises:
        UnSAMError: If a record is incomplete, or its image id is not among `image_ids`.
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
    """Yields image id, detections and truths of every image of a COCO dictionary, sorted by id as in pycocotools.

    The order of the images decides between equal scores.

    Raises:
        UnSAMError: If a record is incomplete, a mask has another size than its image, a prediction is of an unknown
            image, or two images have the same id.
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
    """The `max_det` predictions of one image with the largest scores, in descending order, and its truths.

    Raises:
        UnSAMError: If a mask is malformed or has another size than the image, or a score is missing.
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
    n_pixels = areas_and_boxes(rles)[0].astype(np.float64)
    return Masks(rles, n_pixels, n_pixels, scores[order], np.zeros(len(order), bool))


def _read_truths(records: Sequence[Record], size_hw: SizeHW) -> Masks:
    rles = read_rles(records, size_hw)
    n_pixels = areas_and_boxes(rles)[0].astype(np.float64)
    # A file may state the area of the object before it was clipped or simplified, and COCO uses that.
    areas = _read_fields(records, stated_area)
    areas = np.where(np.isnan(areas), n_pixels, areas)
    return Masks(rles, n_pixels, areas, np.zeros(len(rles)), _read_fields(records, is_crowd).astype(bool))


def _read_fields(records: Sequence[Record], read: Callable[[Record], float]) -> np.ndarray:
    """(N,) float64 values of a field of the records of one image."""
    values = np.empty(len(records))
    for index, record in enumerate(records):
        try:
            values[index] = read(record)
        except UnSAMError as error:
            raise UnSAMError(f'{describe_record(record)}: {error}') from error
    return values


@dataclass(frozen=True)
class MatchResult:
    """The matches of one image, from which recall and precision are computed: about 10 kB for 1000 detections.

    Attributes:
        scores: (D,) float64 scores of the detections, descending.
        found: (A, K, T) int64 number of matched truths in A area ranges, with K maximum numbers of detections, at T IoU
            thresholds.
        n_truths: (A,) int64 number of truths, without crowds.
        true_positives: (T, ceil(D / 8)) uint8, one packed bit for each detection, for all areas.
        false_positives: (T, ceil(D / 8)) uint8, one packed bit for each detection, for all areas.
    """

    scores: np.ndarray
    found: np.ndarray
    n_truths: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray


def match_image(detections: Masks, truths: Masks, ranges: np.ndarray, max_dets: Sequence[int]) -> MatchResult:
    """Matches the detections of one image to its truths.

    Args:
        detections: D detections, best first.
        truths: G truths in the order of the file.
        ranges: (A, 2) float64 smallest and largest area in pixels, inclusive; the first range contains every area.
        max_dets: K maximum numbers of detections, ascending.
    """
    outside_truths, outside = (
        (masks.areas < ranges[:, :1]) | (masks.areas > ranges[:, 1:]) for masks in (truths, detections)
    )  # (A, G), (A, D)
    ignored_truths = outside_truths | truths.is_crowd
    shape = (len(ranges), len(IOU_THRESHOLDS), len(detections.rles))
    if detections.rles and truths.rles:
        matched, ignored = _match(overlaps(detections, truths), truths.is_crowd, ignored_truths)
    else:
        matched, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    is_true = matched & ~ignored
    is_false = ~(matched | ignored | outside[:, None])
    found = np.stack([np.count_nonzero(is_true[..., :k], axis=2) for k in max_dets], axis=1)
    bits = (np.packbits(flags[0], axis=1) for flags in (is_true, is_false))
    return MatchResult(detections.scores, found, np.count_nonzero(~ignored_truths, axis=1), *bits)


def overlaps(detections: Masks, truths: Masks) -> np.ndarray:
    """(D, G) float64 IoU, for crowds the intersection over the area of the detection.

    Some values below 0.5 are 0: the IoU of two masks is not computed if one is more than twice as large as the other.
    """
    ious = np.zeros((len(detections.rles), len(truths.rles)))
    order = np.argsort(detections.n_pixels, kind='stable')
    areas = detections.n_pixels[order]
    first = 0
    while first < len(order):
        end = max(np.searchsorted(areas, _AREA_STEP * areas[first], side='right'), first + 1)
        rows = order[first:end]
        is_similar = (2 * truths.n_pixels >= areas[first]) & (truths.n_pixels <= 2 * areas[end - 1])
        columns = np.flatnonzero(is_similar | truths.is_crowd)
        if len(columns):
            ious[np.ix_(rows, columns)] = coco_mask.iou(
                [detections.rles[i] for i in rows],
                [truths.rles[i] for i in columns],
                truths.is_crowd[columns].astype(np.uint8).tolist(),
            )
        first = end
    return ious


def _match(ious: np.ndarray, is_crowd: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy matching: each detection in turn is matched to the unmatched truth with the largest IoU.

    Args:
        ious: (D, G) float64.
        is_crowd: (G,) bool; a crowd can be matched several times.
        ignored: (A, G) bool; truths to ignore in an area range, which are matched only if there is no other.

    Returns:
        (A, T, D) bool, True if the detection is matched, and (A, T, D) bool, True if it is matched to an ignored truth.
    """
    limits = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    is_taken = np.zeros((len(ignored), len(limits), ious.shape[1]), bool)
    is_matched = np.zeros((len(ignored), len(limits), len(ious)), bool)
    is_ignored = np.zeros_like(is_matched)
    reachable = ious >= limits[0]
    for detection in np.flatnonzero(reachable.any(axis=1)):
        near = np.flatnonzero(reachable[detection])[::-1]  # of equal IoUs the last is matched; argmax gives the first
        iou = ious[detection, near]
        is_free = (iou >= limits[:, None]) & (is_crowd[near] | ~is_taken[:, :, near])  # (A, T, near truths)
        # Ranks lie in [0.5, 1], those of ignored truths in [-0.5, 0]; the subtraction is exact.
        rank = np.where(is_free, iou - ignored[:, None, near], -1.0)
        area, threshold = np.nonzero(is_free.any(axis=2))
        truth = near[rank.argmax(axis=2)[area, threshold]]
        is_taken[area, threshold, truth] = True
        is_matched[area, threshold, detection] = True
        is_ignored[area, threshold, detection] = ignored[area, truth]
    return is_matched, is_ignored
