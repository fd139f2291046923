"""Sources of annotations to merge with pseudo-masks: COCO files, folders of SA-1B files, predictions.

A source knows its images by number. Memory holds their names and where their labels lie, never the labels of more
than one image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from unsam_mm.coco_files.fields import image_size, listed_name, number_in
from unsam_mm.coco_files.index import AnnotationIndex, ListedImage
from unsam_mm.coco_files.matching import match_images, name_parts
from unsam_mm.coco_files.segmentations import PolygonFilter, place_of
from unsam_mm.coco_files.stream import stream_lists
from unsam_mm.errors import StoreError, UnSAMError, explained
from unsam_mm.files import read_json
from unsam_mm.folders.store import MANIFEST, PseudoMaskStore
from unsam_mm.images import IMAGE_SUFFIXES

SizeHW = tuple[int | None, int | None]
Record = dict[str, Any]


class AnnotationSource(Protocol):
    """Labels by image number; numbers run from 0 in the order of the source.

    Attributes:
        path: File or folder, for messages.
        supervised: Whether the labels are human, or made by a model trained on human labels; None if unknown.
        count: Number of images.
    """

    path: Path
    supervised: bool | None
    count: int

    def match(self, names: list[str]) -> dict[str, int]:
        """Number of the image of each name; names without labels are left out."""

    def read(self, number: int) -> tuple[str, SizeHW, list[Record]]:
        """Name, size and records of one image; a ``parent`` is an index in the list of records.

        Raises:
            StoreError: If the labels of this image cannot be read.
            UnSAMError: If no labels can be read any more.
        """

    def warn(self) -> None:
        """Warns of what was left out of the records that were read: polygons that enclose nothing.

        Raises:
            StoreError: If nothing else was there.
        """


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
    names = dict(enumerate(numbered, start=1)) if images is None else _names_by_id(images)
    return CocoFile(path, supervised=None, min_score=min_score, names=names)


class CocoFile:
    """A COCO file of any size, read once to note where the annotations of each image lie; see `AnnotationSource`.

    Args:
        path: The file.
        supervised: Whether people made the labels; None to read it from the file's "info".
        min_score: Records with this score or less are left out; None to take all.
        names: Image id to name, for a file that is only a list of results.

    Raises:
        StoreError: If the file is broken, is not in COCO form, lists an image twice, or has annotations of images that
            it does not list.
    """

    def __init__(
        self,
        path: Path,
        supervised: bool | None = None,
        min_score: float | None = None,
        names: Mapping[Any, str] | None = None,
    ) -> None:
        self.path, self.supervised, self._min_score = path, supervised, min_score
        self._index = AnnotationIndex(path)
        self._polygons = PolygonFilter(str(path))
        found = set()
        lists = {'images', 'annotations'} if names is None else {'images', 'annotations', ''}
        for entry in stream_lists(path, lists, whole={'info'}, found=found):
            if entry.key == 'info':
                self._read_info(entry.value)
            elif entry.key == 'images':
                self._index.add_image(entry.value, _named)
            else:
                self._index.add_annotation(entry)
        listed = None
        if '' in found:
            listed = {image_id: ListedImage(image_id, name, None, None) for image_id, name in names.items()}
            self._index.images = [listed.get(image_id) for image_id in self._index.number_of]
        elif 'annotations' not in found:
            raise StoreError(f'{path}: no "annotations" in it; expected a COCO file with "images" and "annotations"')
        advice = '; a list of results needs the file that it was predicted for (--images)'
        self._index.check_listed(listed, advice)
        self.count = len(self._index.images)

    def match(self, names: list[str]) -> dict[str, int]:
        """See `AnnotationSource`."""
        return _match(names, (image.name for image in self._index.images), self.path)

    def read(self, number: int) -> tuple[str, SizeHW, list[Record]]:
        """See `AnnotationSource`."""
        _, name, height, width = self._index.images[number]
        try:
            records = self._index.read_records(number)
        except StoreError as error:  # the file has changed, which concerns all images
            raise UnSAMError(str(error)) from error
        if self._min_score is not None:
            scored = [{**record, 'score': _score_of(record, self.path)} for record in records]
            records = [record for record in scored if record['score'] > self._min_score]
        return name, (height, width), [{**record, 'parent': -1} for record in self._polygons(records)]

    def warn(self) -> None:
        """See `AnnotationSource`."""
        self._polygons.report(stacklevel=3)

    def _read_info(self, info: Any) -> None:
        if self.supervised is None and isinstance(info, dict):
            self.supervised = info.get('supervised')


class Sa1bFolder:
    """A folder of SA-1B's annotation files, one an image, at any depth; see `AnnotationSource`.

    A file matches the image with the same name up to the suffix: ``sa_1.json`` to ``sa_1.jpg``.

    Raises:
        StoreError: If the folder holds no JSON file.
    """

    supervised = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._polygons = PolygonFilter(str(path))
        files = (file.relative_to(path).as_posix() for file in path.rglob('*.json'))
        self._files = sorted(file for file in files if PurePosixPath(file).name != MANIFEST)
        self.count = len(self._files)
        if not self._files:
            raise StoreError(f'{path}: no JSON files in it; expected a COCO file or a folder of SA-1B annotation files')

    def match(self, names: list[str]) -> dict[str, int]:
        """See `AnnotationSource`."""
        stems = {_stem(name): name for name in names}
        if len(stems) < len(names):
            twin = next(name for name in names if stems[_stem(name)] != name)
            raise StoreError(f'{twin} and {stems[_stem(twin)]}: both would take the labels of {_stem(twin)}.json')
        matched = _match(list(stems), map(_stem, self._files), self.path)
        return {stems[stem]: number for stem, number in matched.items()}

    def read(self, number: int) -> tuple[str, SizeHW, list[Record]]:
        """See `AnnotationSource`."""
        file = self.path / self._files[number]
        content = read_json(file)
        try:
            image, records = content['image'], content['annotations']
            name = str(PurePosixPath(self._files[number]).with_name(PurePosixPath(image['file_name']).name))
            kept = self._polygons(records)
            return name, image_size(image), [{**record, 'parent': -1} for record in kept]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f'{file}: not an SA-1B annotation file ({explained(error)}); expected "image" with '
                '"file_name" and a list of "annotations"; remove it from the folder'
            ) from error

    def warn(self) -> None:
        """See `AnnotationSource`."""
        self._polygons.report(stacklevel=3)


class PredictedFolder:
    """A folder of masks as `PseudoMaskStore` writes it, of which those above a score are read; see `AnnotationSource`."""

    def __init__(self, path: Path, min_score: float) -> None:
        self.path, self._store, self._min_score = path, PseudoMaskStore(path), min_score
        self.supervised = self._store.supervised
        self._names = self._store.names()
        self.count = len(self._names)

    def match(self, names: list[str]) -> dict[str, int]:
        """See `AnnotationSource`."""
        return _match(names, self._names, self.path)

    def read(self, number: int) -> tuple[str, SizeHW, list[Record]]:
        """See `AnnotationSource`."""
        masks = self._store.read(self._names[number])
        kept = masks[np.flatnonzero(masks.scores > self._min_score)]
        return self._names[number], kept.size_hw, kept.to_coco(image_id=0)

    def warn(self) -> None:
        """See `AnnotationSource`; a store has no polygons."""


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
    try:
        return match_images(names, {'images': images}, skip_unmatched=True)
    except StoreError as error:
        raise StoreError(f'{path}: {error}') from error


def _names_by_id(path: str | Path) -> dict[Any, str]:
    """The ``file_name`` of each image of a COCO file.

    Raises:
        StoreError: If an entry of "images" is malformed, or two have one id.
    """
    index = AnnotationIndex(path)
    for entry in stream_lists(path, {'images', 'annotations'}):
        if entry.key == 'images':
            index.add_image(entry.value, _named)
    return {image.id: image.name for image in index.images}


def _named(image: Mapping[str, Any], path: str | Path) -> str:
    name = listed_name(image)
    if not isinstance(name, str) or not name:
        raise StoreError(f'{path}: image {image.get("id")} has no "file_name", so labels cannot be matched by name')
    return name


def _score_of(record: Mapping[str, Any], path: Path) -> float:
    for key in ('score', 'predicted_iou'):
        try:
            score = number_in(record, key)
        except UnSAMError as error:
            raise StoreError(f'{path}: {place_of(record)}: {error}') from error
        if math.isfinite(score):
            return score
    raise StoreError(f'{path}: a prediction of image {record.get("image_id")} has no finite "score"')


def _stem(name: str) -> str:
    name = name.removesuffix('.json')
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name
