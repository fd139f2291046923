"""Joins pseudo-masks with other labels: human ones (UnSAM+) or the predictions of a trained model (self-training).

Both follow one rule: all added labels are taken, and a pseudo-mask stays if it overlaps none of them by more than a
given IoU.

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
from unsam_mm.coco_files.index import AnnotationIndex, ListedImage
from unsam_mm.coco_files.segmentations import PolygonFilter, place_of, read_rles
from unsam_mm.coco_files.writer import coco_writer
from unsam_mm.errors import StoreError, UnSAMError, explained, located
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
    """Labels by image number.

    Args:
        path: File or folder.

    Attributes:
        supervised: Whether the labels are human, or made by a model trained on human labels; None if unknown.
        names: Names of the images, by number.
    """

    supervised: bool | None = None
    names: Sequence[str]

    def __init__(self, path: Path) -> None:
        self.path = path
        self._polygons = PolygonFilter(str(path))

    def match(self, names: list[str]) -> dict[str, int]:
        """Number of the image of each name; names without labels are left out."""
        return _match(names, self.names, self.path)

    def read(self, number: int) -> tuple[str, SizeHW, list[Record]]:
        """Name, size and records of one image; a ``parent`` is an index in the list of records.

        Raises:
            StoreError: If the labels of this image cannot be read.
            UnSAMError: If no labels can be read any more.
        """
        raise NotImplementedError

    def warn(self) -> None:
        """Warns of polygons that enclose nothing, which were left out of the records that were read.

        Raises:
            StoreError: If every record was left out.
        """
        self._polygons.report(stacklevel=3)


def open_ground_truth(path: str | Path) -> AnnotationSource:
    """A COCO file, or a folder of SA-1B's files.

    Raises:
        StoreError: If there is no such file, or it is of another form.
    """
    path = Path(path)
    return Sa1bFolder(path) if path.is_dir() else CocoFile(path, supervised=True)


def open_predictions(
    path: str | Path, min_score: float, numbered: list[str], images: str | Path | None = None
) -> AnnotationSource:
    """Predictions above a score: a folder of masks, a COCO file with scores, or a list of COCO results.

    Args:
        path: File or folder.
        min_score: Records with this score or less are left out.
        numbered: Names of the images 1, 2, ... of a list of results, as `PseudoMaskStore.merge` numbers them.
        images: COCO file whose ``images`` say what the ids of a list of results mean, if they were numbered otherwise.

    Raises:
        StoreError: If there is no such file, or it is of another form.
    """
    path = Path(path)
    if path.is_dir():
        return PredictedFolder(path, min_score)
    names = dict(enumerate(numbered, start=1))
    if images is not None:
        lists = {'images', 'annotations'}
        names = {image.id: image.name for image in AnnotationIndex(images, _NAMELESS, lists, each=None).images}
    return CocoFile(path, min_score=min_score, names_by_id=names)


class CocoFile(AnnotationSource):
    """A COCO file of any size, read once to note where the annotations of each image lie.

    Args:
        path: The file.
        supervised: Whether people made the labels; None to read it from the file's "info".
        min_score: Records with this score or less are left out; None to take all.
        names_by_id: Image id to name, for a file that is only a list of results.

    Raises:
        StoreError: If the file is broken, is not in COCO form, lists an image twice, or has annotations of images that
            it does not list.
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
        lists = {'images', 'annotations'} | (set() if names_by_id is None else {''})
        self._index = index = AnnotationIndex(path, _NAMELESS, lists)
        self.supervised = supervised
        if supervised is None and isinstance(index.info, dict):
            self.supervised = index.info.get('supervised')
        listed = None
        if '' in index.found:
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
        except StoreError as error:  # the file has changed, which concerns all images
            raise UnSAMError(str(error)) from error
        if self._min_score is not None:
            scored = [{**record, 'score': _score_of(record, self.path)} for record in records]
            records = [record for record in scored if record['score'] > self._min_score]
        return name, (height, width), [{**record, 'parent': -1} for record in self._polygons(records)]


class Sa1bFolder(AnnotationSource):
    """A folder of SA-1B's annotation files, one an image, at any depth; see `AnnotationSource`.

    A file matches the image with the same name up to the suffix: ``sa_1.json`` to ``sa_1.jpg``.

    Raises:
        StoreError: If the folder holds no JSON file.
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
            twin = next(name for name in names if stems[_stem(name)] != name)
            raise StoreError(f'{twin} and {stems[_stem(twin)]}: both would take the labels of {_stem(twin)}.json')
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
                f'{file}: not an SA-1B annotation file ({explained(error)}); expected "image" with '
                '"file_name" and a list of "annotations"; remove it from the folder'
            ) from error


class PredictedFolder(AnnotationSource):
    """A folder of masks as `PseudoMaskStore` writes it, of which those above a score are read."""

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
        raise StoreError(f'{path}: holds no images, so there is nothing to join; take labels of the same data set')
    ends = {name_parts(image['file_name'])[-1:] for image in images}
    if not any(name_parts(name)[-1:] in ends for name in names):
        raise StoreError(
            f'{path}: none of its {len(images)} images ({images[0]["file_name"]}, ...) has pseudo-masks ({names[0]}, ...); '
            'images are matched by file name: take labels of the same data set'
        )
    with located(path):
        return match_images(names, {'images': images}, skip_unmatched=True)


def _score_of(record: Mapping[str, Any], path: Path) -> float:
    for key in ('score', 'predicted_iou'):
        with located(f'{path}: {place_of(record)}'):
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
    """Writes the UnSAM+ set: all human labels, and the pseudo-masks whose IoU with each of them is at most `max_iou`.

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
        for number in (number for number in range(len(source.names)) if number not in taken):
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
    with located(where):
        rles = read_rles(records, size_hw)
        return _completed(records, rles), rles


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
