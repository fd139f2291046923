"""The same figures by COCO's own toolbox and by faster-coco-eval, to check ours against."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.evaluation.records import Masks
from unsam_mm.masks.rle import rle_to_json

TOOLBOXES = {
    'pycocotools': ('pycocotools.coco', 'COCO', 'pycocotools.cocoeval', 'COCOeval'),
    'faster_coco_eval': ('faster_coco_eval', 'COCO', 'faster_coco_eval', 'COCOeval_faster'),
}
"""Engine to the modules and names of its data set and of its evaluation."""


def evaluate_with_toolbox(
    engine: str, images: Sequence[tuple[Masks, Masks]], ranges: np.ndarray, max_dets: Sequence[int]
) -> tuple[list[float], list[float], np.ndarray]:
    """Recall for each of K numbers of detections, recall for each further area, (T,) precision.

    Args:
        engine: A key of `TOOLBOXES`.
        images: Detections, best first and cut to the largest of `max_dets`, and truths of each image.
        ranges: (A, 2) float64 area ranges in pixels; the first holds every area.
        max_dets: K numbers of best detections, rising.

    Raises:
        UnSAMError: If the toolbox is not installed.
    """
    data_set, evaluation = _load(engine)
    truth = data_set()
    with contextlib.redirect_stdout(io.StringIO()):
        truth.dataset = _coco(images)
        truth.createIndex()
        evaluator = evaluation(truth, _load_results(truth, images), 'segm')
        evaluator.params.useCats = 0
        evaluator.params.maxDets = list(max_dets)
        evaluator.params.areaRng = ranges.tolist()
        evaluator.params.areaRngLbl = [str(index) for index in range(len(ranges))]
        evaluator.evaluate()
        evaluator.accumulate()
    # The axes of recall are T, category, A, K; those of precision have the recalls behind T.
    recall, precision = (np.asarray(evaluator.eval[name]) for name in ('recall', 'precision'))
    return (
        [float(recall[:, 0, 0, k].mean()) for k in range(len(max_dets))],
        [float(recall[:, 0, a, -1].mean()) for a in range(1, len(ranges))],
        precision[:, :, 0, 0, -1].mean(axis=1),
    )


def _load(engine: str) -> tuple[Any, Any]:
    modules = TOOLBOXES[engine]
    try:
        return tuple(getattr(importlib.import_module(m), name) for m, name in (modules[:2], modules[2:]))
    except ModuleNotFoundError as error:
        raise UnSAMError(
            f"the engine {engine!r} is not installed; run: pip install 'unsam_mm[eval]', or take the engine 'unsam', "
            'which gives the same figures'
        ) from error


def _coco(images: Sequence[tuple[Masks, Masks]]) -> dict[str, Any]:
    """A data set with all fields that the toolboxes insist on; numbers from 1, since they take id 0 for no match."""
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
    # Without a box: the toolboxes would take its area for that of the mask.
    return {'image_id': image_id, 'category_id': 1, 'segmentation': rle_to_json(rle), **fields}
