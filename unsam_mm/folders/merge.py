"""Joins pseudo-masks with other labels: human ones (UnSAM+) or the predictions of a trained model (self-training).

Both follow one rule: all added labels are taken, and a pseudo-mask stays if it overlaps none of them by more than a
given IoU.

Source: UnSAM, section 3.4 (UnSAM+: IoU 0.02) and section 3.3 (self-training: score 0.7, IoU 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from unsam_mm.coco_files.fields import is_crowd, stated_area, stated_box
from unsam_mm.coco_files.segmentations import read_rles
from unsam_mm.coco_files.writer import coco_writer
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.files import check_result_file
from unsam_mm.folders.annotation_sources import AnnotationSource, Record, open_ground_truth, open_predictions
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import Rle, areas_and_boxes

GROUND_TRUTH_IOU = 0.02
SELF_TRAINING_IOU, SELF_TRAINING_SCORE = 0.5, 0.7


@dataclass
class MergeReport:
    """What was joined.

    Attributes:
        matched: Images with pseudo-masks and an entry among the added labels.
        only_pseudo: Images with pseudo-masks alone.
        only_added: Images with added labels alone.
        added: Labels added.
        kept: Pseudo-masks kept.
        dropped: Pseudo-masks left out, since they overlap an added label.
        failed: Images left out, since their masks or labels cannot be read: an error message each.
    """

    matched: int = 0
    only_pseudo: int = 0
    only_added: int = 0
    added: int = 0
    kept: int = 0
    dropped: int = 0
    failed: list[str] = field(default_factory=list)


def merge_ground_truth(
    masks: str | Path, target: str | Path, ground_truth: str | Path, max_iou: float = GROUND_TRUTH_IOU
) -> MergeReport:
    """Writes the UnSAM+ set: all human labels, and the pseudo-masks that overlap none of them.

    Crowd regions count as any other mask. Images are matched by name (see `unsam_mm.evaluation.match_images`); those
    of one side alone are written too, with the labels that they have. An image whose masks or labels cannot be read is
    left out, and the report gives the reason.

    Args:
        masks: Folder of pseudo-masks.
        target: COCO file to write. Its annotations carry ``source``, "gt" or "pseudo", and ``parent``, the ``id`` of
            the smallest pseudo-mask that holds a pseudo-mask, or -1. All have category 1; its "info" says that it is
            supervised.
        ground_truth: COCO file of any size, or folder of SA-1B's annotation files.
        max_iou: A pseudo-mask with a larger IoU with any human label is left out.

    Raises:
        StoreError: If no image matches, the labels' file is broken or none of its images can be joined, or the target
            cannot be written.
        UnSAMError: If `max_iou` lies outside [0, 1].
    """
    check_result_file(target, masks, ground_truth, folders=[ground_truth])
    return _merge(PseudoMaskStore(masks), Path(target), open_ground_truth(ground_truth), 'gt', max_iou)


def merge_predictions(
    masks: str | Path,
    target: str | Path,
    predictions: str | Path,
    min_score: float = SELF_TRAINING_SCORE,
    max_iou: float = SELF_TRAINING_IOU,
    images: str | Path | None = None,
    supervised: bool = False,
) -> MergeReport:
    """Writes the labels of the next round of self-training: sure predictions, and the old labels that none of them
    covers.

    Args:
        masks: Folder of pseudo-masks, the old labels.
        target: COCO file to write; see `merge_ground_truth`. ``source`` is "prediction" or "pseudo".
        predictions: Folder of masks, COCO file with scores, or list of COCO results.
        min_score: Predictions with a larger score become labels.
        max_iou: An old label with a larger IoU with any of them is left out.
        images: COCO file that defines the image ids of a list of results. Without it they are those that
            `PseudoMaskStore.merge` gave: the n-th image by name has id n.
        supervised: Whether the predicting model was trained with human labels. A folder or a COCO file of
            predictions that says so itself is believed.

    Raises:
        StoreError: If no image matches, the labels' file is broken or none of its images can be joined, or the target
            cannot be written.
        UnSAMError: If a threshold lies outside [0, 1].
    """
    check_result_file(target, masks, predictions, images)
    PseudoMaskStore(predictions).check_result(target)
    _check_share('score', min_score)
    store = PseudoMaskStore(masks)
    source = open_predictions(predictions, min_score, store.names(), images)
    return _merge(store, Path(target), source, 'prediction', max_iou, supervised)


def _merge(
    store: PseudoMaskStore, target: Path, source: AnnotationSource, kind: str, max_iou: float, supervised: bool = False
) -> MergeReport:
    _check_share('iou', max_iou)
    store.check_result(target)
    names = store.finished_names()
    numbers = source.match(names)
    report = MergeReport()
    with coco_writer(target, _info(store, source, kind, supervised)) as writer:
        for name in names:
            try:
                masks = store.read(name)
                added, rles = _read_added(source, numbers[name], name, masks.size_hw) if name in numbers else ([], [])
            except StoreError as error:
                report.failed.append(str(error))
                continue
            apart = without_overlap(masks, rles, max_iou)
            writer.add(name, masks.size_hw, _joined(added, kind, apart))
            report.matched += name in numbers
            report.only_pseudo += name not in numbers
            report.added, report.kept = report.added + len(added), report.kept + len(apart)
            report.dropped += len(masks) - len(apart)
        taken = set(numbers.values())
        for number in (number for number in range(source.count) if number not in taken):
            try:
                name, size_hw, added = source.read(number)
                added, _ = _checked(added, size_hw, f'{source.path}, {name}')
            except StoreError as error:
                report.failed.append(str(error))
                continue
            writer.add(name, size_hw, _joined(added, kind))
            report.only_added += 1
            report.added += len(added)
        if report.failed and not report.matched + report.only_added:
            raise StoreError(f'no labels are left to be joined, {len(report.failed)} images failed: {report.failed[0]}')
        source.warn()
    return report


def _read_added(
    source: AnnotationSource, number: int, name: str, size_hw: tuple[int, int]
) -> tuple[list[Record], list[Rle]]:
    """The records that are added to the pseudo-masks of an image of this size, and their masks."""
    where = f'{source.path}, {name}'
    _, stated_hw, added = source.read(number)
    return _checked(added, _same_size(stated_hw, size_hw, where), where)


def without_overlap(masks: MaskSet, added: Sequence[Rle], max_iou: float) -> MaskSet:
    """The masks whose IoU with every added one is at most `max_iou`; parents skip the masks that are left out."""
    if not len(masks) or not added:
        return masks
    overlaps = coco_mask.iou(masks.rles, list(added), [0] * len(added))
    return masks[np.flatnonzero(np.max(overlaps, axis=1) <= max_iou)]


def _joined(added: list[Record], kind: str, masks: MaskSet | None = None) -> list[Record]:
    """Records with `source`; parents of the masks are counted behind the added ones."""
    records = [{**record, 'source': kind} for record in added]
    for record in masks.to_coco(image_id=0) if masks is not None else ():
        up = record['parent'] + len(added) if record['parent'] >= 0 else -1
        records.append({**record, 'parent': up, 'source': 'pseudo'})
    return records


def _checked(
    records: list[Record], size_hw: tuple[int | None, int | None], where: str
) -> tuple[list[Record], list[Rle]]:
    """The records with all fields, and their masks."""
    if any('segments_info' in record for record in records):
        raise StoreError(f'{where}: is of the panoptic form, whose masks are PNG files; expected instances')
    if not all('segmentation' in record for record in records):
        raise StoreError(f'{where}: an annotation has no "segmentation"; expected RLE or polygons')
    try:
        rles = read_rles(records, size_hw)
        return _completed(records, rles), rles
    except UnSAMError as error:
        raise StoreError(f'{where}: {error}') from error


def _completed(records: list[Record], rles: list[Rle]) -> list[Record]:
    """The records with `area` and `bbox`, which lists of results may lack, and with fields of one form."""
    areas, boxes = areas_and_boxes(rles)
    boxes[:, 2:] -= boxes[:, :2]
    return [
        {
            **record,
            'area': int(area) if math.isnan(stated := stated_area(record)) else stated,
            'bbox': stated_box(record) or box.tolist(),
            'iscrowd': int(is_crowd(record)),
        }
        for record, area, box in zip(records, areas, boxes, strict=True)
    ]


def _same_size(size_hw: tuple[int | None, int | None], expected: tuple[int, int], where: str) -> tuple[int, int]:
    if None not in size_hw and tuple(size_hw) != tuple(expected):
        raise StoreError(
            f'{where}: labels for {size_hw[0]} x {size_hw[1]} px (height x width), pseudo-masks for {expected[0]} x '
            f'{expected[1]} px; both must be those of the same image'
        )
    return expected


def _info(store: PseudoMaskStore, source: AnnotationSource, kind: str, supervised: bool) -> dict[str, Any]:
    added = 'human labels' if kind == 'gt' else 'model predictions'
    return {
        'description': f'UnSAM pseudo-masks with {added}',
        'supervised': bool(supervised or source.supervised or store.supervised),
        'label_sources': [added, *store.label_sources],
    }


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UnSAMError(f'{name} must lie in [0, 1], got {value}')
