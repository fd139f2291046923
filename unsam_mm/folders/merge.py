"""Merges pseudo-masks with other labels: human labels (UnSAM+), or predictions of a trained model (self-training).

All other labels are written, and the pseudo-masks whose IoU with each of them is at most a threshold.

Source: UnSAM, section 3.4 (UnSAM+: IoU 0.02) and section 3.3 (self-training: score 0.7, IoU 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from unsam_mm.coco_files.fields import image_size, is_crowd, number_in, stated_area, stated_box
from unsam_mm.coco_files.ground_truth import match_images, name_parts
from unsam_mm.coco_files.index import TOP_LEVEL, AnnotationIndex, ListedImage
from unsam_mm.coco_files.segmentations import PolygonFilter, describe_record, read_rles
from unsam_mm.coco_files.writer import coco_writer
from unsam_mm.errors import StoreError, UnSAMError, describe_error, error_context
from unsam_mm.files import check_result_file, read_json
from unsam_mm.folders.store import MANIFEST, PseudoMaskStore
from unsam_mm.images import IMAGE_SUFFIXES
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import Rle, areas_and_boxes

SizeHW = tuple[int | None, int | None]
Record = dict[str, Any]

_NAMELESS = 'has no "file_name", so labels cannot be matched by name'

GROUND_TRUTH_IOU = 0.02
SELF_TRAINING_IOU, SELF_TRAINING_SCORE = 0.5, 0.7


class AnnotationSource:
    """The labels that pseudo-masks are merged with; images are numbered from 0.

    Args:
        path: File or folder.

    Attributes:
        supervised: True if the labels are by humans, or by a model trained with human labels; None if unknown.
        names: Names of the images or of their label files, indexed by number.
    """

    supervised: bool | None = None
    names: Sequence[str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self._polygons = PolygonFilter(str(path))

    def match(self, names: list[str]) -> dict[str, int]:
        """Numbers of images by name; names without labels are left out.

        Raises:
            StoreError: If no name has labels, or the match is ambiguous.
        """
        return _match(names, self.names, self.path)

    def read(self, number: int) -> tuple[str, SizeHW, list[Record]]:
        """Name, size and annotations of one image; ``parent`` of an annotation is an index in this list, or -1.

        Raises:
            StoreError: If the labels of this image cannot be read.
            UnSAMError: If the labels of all images can no longer be read.
        """
        raise NotImplementedError

    def warn(self) -> None:
        """Gives a warning if polygons that enclose nothing were left out.

        Raises:
            StoreError: If all annotations were left out.
        """
        self._polygons.report(stacklevel=3)


class CocoFile(AnnotationSource):
    """A COCO file, or a list of COCO results, of any size.

    Args:
        path: The file.
        supervised: True if the labels are by humans; None to read the value from "info".
        min_score: Annotations with this score or less are left out; None to use all.
        names_by_id: Names of images by id, for a list of results.

    Raises:
        StoreError: If the file is damaged or not a COCO file, lists an image twice, or has annotations of images that
            are not listed.
    """

    def __init__(
        self,
        path: Path,
        supervised: bool | None = None,
        min_score: float | None = None,
        names_by_id: Mapping[Any, str] | None = None,
    ) -> None:
        super().__init__(path)
        self._min_score = min_score
        lists = {'images', 'annotations'} | (set() if names_by_id is None else {TOP_LEVEL})
        self._index = index = AnnotationIndex(path, _NAMELESS, lists)
        self.supervised = supervised
        if supervised is None and isinstance(index.info, dict):
            self.supervised = index.info.get('supervised')
        listed = None
        if TOP_LEVEL in index.found:
            listed = {image_id: ListedImage(image_id, name, None, None) for image_id, name in names_by_id.items()}
            index.images = [listed.get(image_id) for image_id in index.number_of]
        elif 'annotations' not in index.found:
            raise StoreError(f'{path}: no "annotations" in it; expected a COCO file with "images" and "annotations"')
        index.check_listed(listed, '; a list of results needs the file that it was predicted for (--images)')
        self.names = [image.name for image in index.images]

    def read(self, number: int) -> tuple[str, SizeHW, list[Record]]:
        _, name, height, width = self._index.images[number]
        try:
            records = self._index.read_records(number)
        except StoreError as error:  # the file has changed, which affects all images
            raise UnSAMError(str(error)) from error
        if self._min_score is not None:
            scored = [{**record, 'score': _score_of(record, self.path)} for record in records]
            records = [record for record in scored if record['score'] > self._min_score]
        return name, (height, width), [{**record, 'parent': -1} for record in self._polygons(records)]


class Sa1bFolder(AnnotationSource):
    """A folder of SA-1B's annotation files, one for each image, at any depth.

    A file has the name of its image with another suffix: ``sa_1.json`` belongs to ``sa_1.jpg``.

    Raises:
        StoreError: If there are no JSON files.
    """

    supervised = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        files = (file.relative_to(path).as_posix() for file in path.rglob('*.json'))
        self.names = sorted(file for file in files if PurePosixPath(file).name != MANIFEST)
        if not self.names:
            raise StoreError(f'{path}: no JSON files in it; expected a COCO file or a folder of SA-1B annotation files')

    def match(self, names: list[str]) -> dict[str, int]:
        stems = {_stem(name): name for name in names}
        if len(stems) < len(names):
            name = next(name for name in names if stems[_stem(name)] != name)
            raise StoreError(f'{name} and {stems[_stem(name)]}: both have the labels of {_stem(name)}.json')
        matched = _match(list(stems), map(_stem, self.names), self.path)
        return {stems[stem]: number for stem, number in matched.items()}

    def read(self, number: int) -> tuple[str, SizeHW, list[Record]]:
        file = self.path / self.names[number]
        content = read_json(file)
        try:
            image, records = content['image'], content['annotations']
            name = str(PurePosixPath(self.names[number]).with_name(PurePosixPath(image['file_name']).name))
            kept = self._polygons(records)
            return name, image_size(image), [{**record, 'parent': -1} for record in kept]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f'{file}: not an SA-1B annotation file ({describe_error(error)}); expected "image" with '
                '"file_name" and a list of "annotations"; remove it from the folder'
            ) from error


class PredictedFolder(AnnotationSource):
    """The masks of a `PseudoMaskStore` with scores above `min_score`."""

    def __init__(self, path: Path, min_score: float) -> None:
        super().__init__(path)
        self._store, self._min_score = PseudoMaskStore(path), min_score
        self.supervised = self._store.supervised
        self.names = self._store.names()

    def read(self, number: int) -> tuple[str, SizeHW, list[Record]]:
        masks = self._store.read(self.names[number])
        kept = masks[np.flatnonzero(masks.scores > self._min_score)]
        return self.names[number], kept.size_hw, kept.to_coco(image_id=0)


def _match(names: list[str], labelled: Iterable[str], path: Path) -> dict[str, int]:
    images = [{'file_name': name, 'id': number} for number, name in enumerate(labelled)]
    if not images:
        raise StoreError(f'{path}: contains no images; use labels of the same data set')
    ends = {name_parts(image['file_name'])[-1:] for image in images}
    if not any(name_parts(name)[-1:] in ends for name in names):
        raise StoreError(
            f'{path}: none of its {len(images)} images ({images[0]["file_name"]}, ...) has pseudo-masks ({names[0]}, ...); '
            'images are matched by file name: use labels of the same data set'
        )
    with error_context(path):
        return match_images(names, {'images': images}, skip_unmatched=True)


def _score_of(record: Mapping[str, Any], path: Path) -> float:
    for key in ('score', 'predicted_iou'):
        with error_context(f'{path}: {describe_record(record)}'):
            score = number_in(record, key)
        if math.isfinite(score):
            return score
    raise StoreError(f'{path}: a prediction of image {record.get("image_id")} has no finite "score"')


def _stem(name: str) -> str:
    name = name.removesuffix('.json')
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name


@dataclass
class MergeReport:
    """Numbers of images and masks in a merged file.

    Attributes:
        matched: Number of images with pseudo-masks and other labels.
        only_pseudo: Number of images with pseudo-masks only.
        only_added: Number of images with other labels only.
        added: Number of other labels in the file.
        kept: Number of pseudo-masks in the file.
        dropped: Number of pseudo-masks left out, since they overlap other labels.
        failed: Error messages of images left out, since their masks or labels cannot be read.
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
    """Writes the UnSAM+ labels: all human labels, and pseudo-masks whose IoU with each of them is at most `max_iou`.

    Crowds count like other masks. Images are matched by name (see `unsam_mm.evaluation.match_images`); images with
    labels of one kind only are written, too. Images whose masks or labels cannot be read are left out, and the report
    gives the reason.

    Args:
        masks: Folder of pseudo-masks.
        target: COCO file to write. Annotations have ``source``, "gt" or "pseudo", and ``parent``: the ``id`` of
            the smallest pseudo-mask that contains a pseudo-mask, or -1 if there is none; -1 for other labels. All have
            category 1; "info" has "supervised" true.
        ground_truth: COCO file of any size, or folder of SA-1B's annotation files.
        max_iou: Pseudo-masks with a larger IoU with any human label are left out.

    Raises:
        StoreError: If no image matches, `ground_truth` is damaged, none of its labels can be read, or `target` cannot
            be written.
        UnSAMError: If `max_iou` is outside [0, 1].
    """
    check_result_file(target, masks, ground_truth, folders=[ground_truth])
    path = Path(ground_truth)
    source = Sa1bFolder(path) if path.is_dir() else CocoFile(path, supervised=True)
    return _merge(PseudoMaskStore(masks), Path(target), source, 'gt', max_iou)


def merge_predictions(
    masks: str | Path,
    target: str | Path,
    predictions: str | Path,
    min_score: float = SELF_TRAINING_SCORE,
    max_iou: float = SELF_TRAINING_IOU,
    images: str | Path | None = None,
    supervised: bool = False,
) -> MergeReport:
    """Writes the labels of the next round of self-training: predictions with large scores, and pseudo-masks that do not
    overlap them.

    Args:
        masks: Folder of pseudo-masks.
        target: COCO file to write; see `merge_ground_truth`. ``source`` is "prediction" or "pseudo". Predictions from a
            folder have a ``parent``, too. "supervised" is true if human labels were used for any of the labels.
        predictions: Folder of masks, COCO file with scores, or list of COCO results.
        min_score: Predictions with a larger score become labels.
        max_iou: Pseudo-masks with a larger IoU with any of these are left out.
        images: COCO file that defines the image ids of a list of results. By default they are those that
            `PseudoMaskStore.merge` writes: the n-th image by name has id n.
        supervised: True if the model was trained with human labels. The metadata of a folder and "info" of a file of
            predictions can also state this.

    Raises:
        StoreError: If no image matches, `predictions` is damaged, none of its labels can be read, or `target` cannot be
            written.
        UnSAMError: If a threshold is outside [0, 1].
    """
    check_result_file(target, masks, predictions, images)
    path, store = Path(predictions), PseudoMaskStore(masks)
    PseudoMaskStore(path).check_result(target)
    _check_threshold('score', min_score)
    if path.is_dir():
        source = PredictedFolder(path, min_score)
    else:
        if images is None:
            names_by_id = dict(enumerate(store.names(), start=1))
        else:
            listed = AnnotationIndex(images, _NAMELESS).images
            names_by_id = {image.id: image.name for image in listed if image is not None}
        source = CocoFile(path, min_score=min_score, names_by_id=names_by_id)
    return _merge(store, Path(target), source, 'prediction', max_iou, supervised)


def _merge(
    store: PseudoMaskStore, target: Path, source: AnnotationSource, kind: str, max_iou: float, supervised: bool = False
) -> MergeReport:
    _check_threshold('iou', max_iou)
    store.check_result(target)
    names = store.finished_names()
    numbers = source.match(names)
    report = MergeReport()
    with coco_writer(target, _info(store, source, kind, supervised)) as writer:
        for name in names:
            added, rles = [], []
            try:
                masks = store.read(name)
                if name in numbers:
                    _, _, added, rles = _read_labels(source, numbers[name], masks.size_hw)
            except StoreError as error:
                report.failed.append(str(error))
                continue
            kept = suppress_overlapping(masks, rles, max_iou)
            writer.add(
                name, masks.size_hw, _with_source(added, kind) + _with_source(kept.to_coco(0), 'pseudo', len(added))
            )
            report.matched += name in numbers
            report.only_pseudo += name not in numbers
            report.added += len(added)
            report.kept += len(kept)
            report.dropped += len(masks) - len(kept)
        matched = set(numbers.values())
        for number in range(len(source.names)):
            if number in matched:
                continue
            try:
                name, size_hw, added, _ = _read_labels(source, number)
            except StoreError as error:
                report.failed.append(str(error))
                continue
            writer.add(name, size_hw, _with_source(added, kind))
            report.only_added += 1
            report.added += len(added)
        if report.failed and not report.matched + report.only_added:
            raise StoreError(f'no labels can be merged, {len(report.failed)} images failed: {report.failed[0]}')
        source.warn()
    return report


def suppress_overlapping(masks: MaskSet, others: Sequence[Rle], max_iou: float) -> MaskSet:
    """Removes masks whose IoU with any of the others is above `max_iou`.

    The parent of a mask becomes its nearest ancestor that is not removed.
    """
    if not len(masks) or not others:
        return masks
    ious = coco_mask.iou(masks.rles, list(others), [0] * len(others))
    return masks[np.flatnonzero(np.max(ious, axis=1) <= max_iou)]


def _with_source(records: Sequence[Record], source: str, n_before: int = 0) -> list[Record]:
    """The records with ``source``, and with ``parent`` as an index in a list with `n_before` other records in front."""
    parents = [record['parent'] + n_before if record['parent'] >= 0 else -1 for record in records]
    return [{**record, 'parent': parent, 'source': source} for record, parent in zip(records, parents, strict=True)]


def _read_labels(
    source: AnnotationSource, number: int, expected_hw: tuple[int, int] | None = None
) -> tuple[str, SizeHW, list[Record], list[Rle]]:
    """Name, size, annotations and masks of one image of a source; annotations get ``area``, ``bbox`` and ``iscrowd``.

    Args:
        source: The labels.
        number: Number of the image.
        expected_hw: Height and width of the pseudo-masks of the image, if it has any.

    Raises:
        StoreError: If the labels cannot be read, or have another size.
    """
    name, size_hw, records = source.read(number)
    where = f'{source.path}, {name}'
    if expected_hw is not None and None not in size_hw and tuple(size_hw) != tuple(expected_hw):
        raise StoreError(
            f'{where}: labels for {size_hw[0]} x {size_hw[1]} px (height x width), pseudo-masks for {expected_hw[0]} x '
            f'{expected_hw[1]} px; both must be of the same image'
        )
    if any('segments_info' in record for record in records):
        raise StoreError(f'{where}: is in the panoptic format, whose masks are PNG files; expected instances')
    if not all('segmentation' in record for record in records):
        raise StoreError(f'{where}: an annotation has no "segmentation"; expected RLE or polygons')
    with error_context(where):
        rles = read_rles(records, expected_hw or size_hw)
        areas, boxes = areas_and_boxes(rles)
        boxes[:, 2:] -= boxes[:, :2]
        completed = [
            {
                **record,
                'area': int(area) if math.isnan(stated := stated_area(record)) else stated,
                'bbox': stated_box(record) or box.tolist(),
                'iscrowd': int(is_crowd(record)),
            }
            for record, area, box in zip(records, areas, boxes, strict=True)
        ]
    return name, size_hw, completed, rles


def _info(store: PseudoMaskStore, source: AnnotationSource, kind: str, supervised: bool) -> dict[str, Any]:
    added = 'human labels' if kind == 'gt' else 'model predictions'
    return {
        'description': f'UnSAM pseudo-masks with {added}',
        'supervised': bool(supervised or source.supervised or store.supervised),
        'label_sources': [added, *store.label_sources],
    }


def _check_threshold(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise UnSAMError(f'{name} must lie in [0, 1], got {value}')
