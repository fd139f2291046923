"""Class-agnostic average recall and precision of masks, as in COCO, by this package or by a toolbox.

The figures equal those of pycocotools' ``COCOeval`` with ``iouType='segm'`` and ``useCats=0``, computed from its arrays
of precision and recall; its printed summary mixes figures of 100 and of more detections.

Protocol: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and its evaluation toolbox.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unsam_mm.errors import UnSAMError, first_names
from unsam_mm.evaluation.matching import (
    IOU_THRESHOLDS,
    Masks,
    MatchResult,
    Record,
    SizeHW,
    match_image,
    read_image,
    read_images,
)
from unsam_mm.masks.rle import rle_to_json

RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREA_RANGES = {'s': (0.0, 32.0**2), 'm': (32.0**2, 96.0**2), 'l': (96.0**2, 1e10)}
"""COCO's small, medium and large objects: smallest and largest area in pixels of the original image, inclusive."""

MAX_DETS = (1, 10, 100, 1000)
"""Maximum numbers of masks of an image, best scores first."""

ENGINES = ('unsam', 'pycocotools', 'faster_coco_eval')
_ANY_AREA = (0.0, 1e10)


def evaluate_with_toolbox(
    engine: str, images: Sequence[tuple[Masks, Masks]], ranges: np.ndarray, max_dets: Sequence[int]
) -> tuple[list[float], list[float], np.ndarray]:
    """Evaluates masks with another toolbox.

    Args:
        engine: 'pycocotools' or 'faster_coco_eval'.
        images: Detections, best first and at most the largest of `max_dets`, and ground truth of each image.
        ranges: (A, 2) float64 area ranges in pixels; the first contains every area.
        max_dets: K maximum numbers of detections, ascending.

    Returns:
        K recalls for all areas, one for each of `max_dets`; A - 1 recalls for the other area ranges, and (T,) precision
        at T IoU thresholds, both with the largest of `max_dets`.

    Raises:
        UnSAMError: If the toolbox is not installed.
    """
    dataset_class, evaluation_class = _load_toolbox(engine)
    truth = dataset_class()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = _coco(images)
        truth.createIndex()
        evaluator = evaluation_class(truth, _load_results(truth, images), 'segm')
        evaluator.params.useCats = 0
        evaluator.params.maxDets = list(max_dets)
        evaluator.params.areaRng = ranges.tolist()
        evaluator.params.areaRngLbl = [str(index) for index in range(len(ranges))]
        evaluator.evaluate()
        evaluator.accumulate()
    # The axes of recall are T, category, A, K; those of precision are T, recall, category, A, K.
    recall, precision = (np.asarray(evaluator.eval[name]) for name in ('recall', 'precision'))
    return (
        [float(recall[:, 0, 0, k].mean()) for k in range(len(max_dets))],
        [float(recall[:, 0, a, -1].mean()) for a in range(1, len(ranges))],
        precision[:, :, 0, 0, -1].mean(axis=1),
    )


def _load_toolbox(engine: str) -> tuple[Any, Any]:
    """The dataset class and the evaluation class of a toolbox."""
    try:
        if engine == 'faster_coco_eval':
            from faster_coco_eval import COCO, COCOeval_faster

            return COCO, COCOeval_faster
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        return COCO, COCOeval
    except ModuleNotFoundError as error:
        raise UnSAMError(
            f"the engine {engine!r} is not installed; run: pip install 'unsam_mm[eval]', or use the engine 'unsam', "
            'which gives the same figures'
        ) from error


def _coco(images: Sequence[tuple[Masks, Masks]]) -> dict[str, Any]:
    """A dataset with all fields that the toolboxes require; ids start at 1, since 0 means no match in the toolboxes."""
    annotations = [
        _record(image_id, rle, area=float(area), iscrowd=int(is_crowd))
        for image_id, (_, truths) in enumerate(images, start=1)
        for rle, area, is_crowd in zip(truths.rles, truths.areas, truths.is_crowd, strict=True)
    ]
    for number, annotation in enumerate(annotations, start=1):
        annotation['id'] = number
    sizes = [next((rle['size'] for masks in image for rle in masks.rles), (1, 1)) for image in images]
    entries = [{'id': i, 'height': size[0], 'width': size[1]} for i, size in enumerate(sizes, start=1)]
    return {'info': {}, 'images': entries, 'annotations': annotations, 'categories': [{'id': 1, 'name': 'object'}]}


def _load_results(truth: Any, images: Sequence[tuple[Masks, Masks]]) -> Any:
    records = [
        _record(image_id, rle, score=float(score))
        for image_id, (detections, _) in enumerate(images, start=1)
        for rle, score in zip(detections.rles, detections.scores, strict=True)
    ]
    if records:
        return truth.loadRes(records)
    empty = type(truth)()
    empty.dataset = {**truth.dataset, 'annotations': []}
    empty.createIndex()
    return empty


def _record(image_id: int, rle: dict[str, Any], **fields: Any) -> dict[str, Any]:
    # There is no box, since the toolboxes would use its area instead of the area of the mask.
    return {'image_id': image_id, 'category_id': 1, 'segmentation': rle_to_json(rle), **fields}


@dataclass(frozen=True)
class Protocol:
    """Settings of the evaluation.

    Attributes:
        max_dets: Maximum numbers of predictions of an image, best scores first; ascending.
        area_ranges: Smallest and largest area in pixels, by name.

    Raises:
        UnSAMError: If one of `max_dets` is not positive.
    """

    max_dets: Sequence[int] = MAX_DETS
    area_ranges: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(AREA_RANGES))

    def __post_init__(self) -> None:
        max_dets = tuple(sorted(set(self.max_dets)))
        if not max_dets or max_dets[0] < 1:
            raise UnSAMError(f'max_dets must be positive integers, got {list(max_dets)}')
        object.__setattr__(self, 'max_dets', max_dets)

    @property
    def ranges(self) -> np.ndarray:
        """(A, 2) float64: the range of all areas, then `area_ranges`."""
        return np.array([_ANY_AREA, *self.area_ranges.values()], np.float64)

    def match_image(self, predictions: Sequence[Record], truths: Sequence[Record], size_hw: SizeHW) -> MatchResult:
        """Matches the predictions of one image; see `unsam_mm.evaluation.matching.read_image`."""
        return match_image(*read_image(predictions, truths, size_hw, self.max_dets[-1]), self.ranges, self.max_dets)

    def summarize(self, matches: Sequence[MatchResult]) -> dict[str, float]:
        """The figures of `evaluate_masks`, from the matches of all images in the order of their ids.

        Raises:
            UnSAMError: If there is no ground truth.
        """
        n_truths = sum((match.n_truths for match in matches), np.zeros(len(self.area_ranges) + 1, np.int64))
        check_any_truth(n_truths[0])
        found = sum(match.found for match in matches)  # (A, K, T)
        precision = _average_precision(matches, int(n_truths[0]))
        return self.by_name(
            [(found[0, k] / n_truths[0]).mean() for k in range(len(self.max_dets))],
            [(found[a, -1] / n).mean() if n else -1.0 for a, n in enumerate(n_truths)][1:],
            precision,
        )

    def by_name(
        self, recalls: Iterable[float], recalls_by_area: Iterable[float], precision: np.ndarray
    ) -> dict[str, float]:
        """Figures by name.

        Args:
            recalls: Recall for each of `max_dets`.
            recalls_by_area: Recall for each of `area_ranges`, with the largest of `max_dets`.
            precision: (T,) precision with the largest of `max_dets`.
        """
        most = self.max_dets[-1]
        metrics = {f'AR@{k}': float(value) for k, value in zip(self.max_dets, recalls, strict=True)}
        for name, value in zip(self.area_ranges, recalls_by_area, strict=True):
            metrics[f'AR_{name}@{most}'] = float(value)
        averages = {'AP': precision.mean(), 'AP50': precision[0], 'AP75': precision[5]}
        return metrics | {f'{name}@{most}': float(value) for name, value in averages.items()}


def evaluate_masks(
    predictions: Sequence[Record],
    ground_truth: Mapping[str, Any],
    max_dets: Sequence[int] = MAX_DETS,
    area_ranges: Mapping[str, tuple[float, float]] = AREA_RANGES,
    engine: str = 'unsam',
) -> dict[str, float]:
    """Average recall and precision of masks, with all categories as one.

    A prediction is matched to a crowd by the share of its area inside; crowds count neither as found nor as missed. The
    objects of images without predictions count as missed, and a warning gives the number of these images.

    Args:
        predictions: COCO result records: ``image_id``, ``segmentation`` (RLE or polygons), ``score``.
        ground_truth: COCO dictionary with ``images`` and ``annotations``. ``iscrowd`` defaults to 0, ``area`` to the
            area of the mask.
        max_dets: Maximum numbers of predictions of an image, best scores first.
        area_ranges: Smallest and largest area in pixels, by name; by default COCO's small, medium and large.
        engine: 'unsam', the code of this package, or a toolbox with the same figures: 'faster_coco_eval' (extra
            ``eval``) or 'pycocotools', which takes more than ten times as long.

    Returns:
        Values in [0, 1], or -1 if no object is in an area range (COCO's convention). With the default arguments
        ``AR@1``, ``AR@10``, ``AR@100``, ``AR@1000``, ``AR_s@1000``, ``AR_m@1000``, ``AR_l@1000``, ``AP@1000``,
        ``AP50@1000``, ``AP75@1000``. AR is the mean of the maximum recall over the IoU thresholds 0.50, 0.55, ... 0.95.
        AP is the mean precision at 101 recalls and the same thresholds.

    Raises:
        UnSAMError: If a record is incomplete, a mask has another size than its image, a prediction is of an image that
            is not in the ground truth, there is no ground truth, or the engine is unknown or not installed.
    """
    if engine not in ENGINES:
        raise UnSAMError(f'engine must be one of {", ".join(ENGINES)}, got {engine!r}')
    protocol = Protocol(max_dets, area_ranges)
    images = read_images(predictions, ground_truth, protocol.max_dets[-1])
    if engine == 'unsam':
        ids, matches = [], []
        for image_id, detections, truths in images:
            ids.append(image_id)
            matches.append(match_image(detections, truths, protocol.ranges, protocol.max_dets))
        without = [str(i) for i, match in zip(ids, matches, strict=True) if not len(match.scores)]
        metrics = protocol.summarize(matches)
    else:
        images = list(images)
        without = [str(image_id) for image_id, detections, _ in images if not detections.rles]
        check_any_truth(sum(int((~truths.is_crowd).sum()) for _, _, truths in images))
        figures = evaluate_with_toolbox(engine, [image[1:] for image in images], protocol.ranges, protocol.max_dets)
        metrics = protocol.by_name(*figures)
    if without:
        warnings.warn(
            f'{len(without)} of {len(ground_truth["images"])} ground-truth images have no prediction and count as '
            f'missed (image ids {first_names(without)})',
            stacklevel=2,
        )
    return metrics


def check_any_truth(n_truths: int) -> None:
    """Raises `UnSAMError` if there is no ground truth."""
    if n_truths == 0:
        raise UnSAMError(
            'the ground truth has no mask to find (none at all, or crowds only); check the annotation file'
        )


def format_table(metrics: Mapping[str, float]) -> str:
    """Two aligned lines, names above percentages with one decimal; ``-`` if no object is in an area range."""
    cells = [(name, '-' if value < 0 else f'{100 * value:.1f}') for name, value in metrics.items()]
    widths = [max(len(name), len(text)) for name, text in cells]
    return '\n'.join(
        '  '.join(cell[row].rjust(width) for cell, width in zip(cells, widths, strict=True)) for row in (0, 1)
    )


def _average_precision(matches: Sequence[MatchResult], n_truths: int) -> np.ndarray:
    """(T,) interpolated precision, averaged over the recall thresholds, for all areas."""
    order = np.argsort(-np.concatenate([match.scores for match in matches]), kind='stable')
    averages = []
    # One threshold at a time, to save memory: 20,000 images with 1000 masks are 20 million numbers each.
    for t in range(len(IOU_THRESHOLDS)):
        is_true, is_false = (
            np.concatenate([np.unpackbits(getattr(m, name)[t], count=len(m.scores)) for m in matches])[order]
            for name in ('true_positives', 'false_positives')
        )
        true_positives = np.cumsum(is_true, dtype=np.float64)
        false_positives = np.cumsum(is_false, dtype=np.float64)
        precision = true_positives / (true_positives + false_positives + np.spacing(1))
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        # Recalls that are never reached have precision 0.
        at = np.searchsorted(true_positives / n_truths, RECALL_THRESHOLDS, side='left')
        averages.append(np.append(envelope, 0.0)[at].mean())
    return np.array(averages)
