"""Store of pseudo-masks: one JSON file per image, in the format of SA-1B's annotation files.

A file is there, and then it is whole, or it is not there: whatever has been written can be used, and work that was
interrupted goes on with the images that have no file yet.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unsam_mm.coco_files.fields import image_size
from unsam_mm.coco_files.writer import coco_writer
from unsam_mm.errors import StoreError, TargetError, UnSAMError, explained, located
from unsam_mm.files import fitting_name, is_fitted, lies_below, read_json, write_json
from unsam_mm.fingerprints import is_current
from unsam_mm.images import IMAGE_SUFFIXES
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import areas_and_boxes, rles_from_json
from unsam_mm.pseudo_masks.setting_names import current_settings

MANIFEST = 'unsam.json'
_SUPERVISED_REFINERS = {'cascadepsp': 'CascadePSP'}
_MARK = 'supervised'
_SUFFIX = '.json'
_STAMP = 'made_of'
_KEYS = ('segmentation', 'bbox', 'area', 'score', 'granularity', 'parent')  # of a mask

_HEAD = re.compile(
    rb'(?:\xef\xbb\xbf)?\s*\{\s*"image"\s*:\s*\{\s*"file_name"\s*:\s*("(?:[^"\\]|\\.)*+")\s*,\s*"height"\s*:\s*\d+\s*,'
    rb'\s*"width"\s*:\s*\d+\s*(?:,\s*"made_of"\s*:\s*(\{[^{}]*+\})\s*)?\}\s*,\s*"annotations"\s*:\s*\['
)
"""How each file begins: a file of this name that begins otherwise is not ours, and is neither finished nor removed."""
_HEAD_BYTES, _LONGEST_HEAD_BYTES = 512, 1 << 16
_TAIL_BYTES = 16
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_NOTHING = None, False, None
_NO_SUCH_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENXIO)


class PseudoMaskStore:
    """Masks by image name, where a name is the image's path below the image folder, such as ``'cats/1.jpg'``.

    Args:
        root: The folder; it is made when the first file is written.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path_of(self, name: str) -> Path:
        """Where the masks of an image are kept; see `fitting_name` for names that are too long."""
        return self.root / fitting_name(name, _SUFFIX)

    def has(self, name: str) -> bool:
        """Whether an image is done: whether there is a file of this store for it that was not cut short.

        A file that may not be read counts: `read` tells why.

        Raises:
            StoreError: If the disk cannot be asked.
        """
        try:
            head, is_whole, _ = _look_into(self.path_of(name))
        except TargetError:
            return True
        return head is not None and is_whole

    def holds(self, path: str | Path) -> bool:
        """Whether a file was written by the store: the masks of an image, or the metadata of the folder."""
        if os.path.realpath(path) == os.path.realpath(self.root / MANIFEST):
            return True
        return lies_below(path, self.root) and _look_into(path)[0] is not None

    def check_result(self, target: str | Path) -> None:
        """Checks that a result is written over no file of the store.

        Raises:
            StoreError: If it would be, or that cannot be told.
        """
        if self.holds(target):
            raise StoreError(f'{target}: is one of the files that are read; choose another file for the result')

    def is_current(self, name: str, image: Path) -> bool:
        """Whether an image is done, and was not exchanged for another since; see `unsam_mm.fingerprints.is_current`.

        A file that may not be read does not count: `write` tells why.

        Raises:
            StoreError: If the disk cannot be asked.
        """
        path = self.path_of(name)
        try:
            head, is_whole, stamp = _look_into(path)
        except TargetError:
            return False
        return head is not None and is_whole and is_current(path, image, stamp)

    def names(self) -> list[str]:
        """All images that there is a file of this store for, sorted. Only the ends of each file are read.

        Files that are damaged, or may not be read, count: `read` tells what is wrong.

        Raises:
            StoreError: If there is no such folder, or it cannot be read.
        """
        if not self.root.is_dir():
            raise StoreError(
                f'{self.root}: no such folder; make it with "python -m unsam_mm generate IMAGES {self.root}"'
            )
        return sorted(name for name, _ in self._files())

    def _files(self) -> Iterator[tuple[str, str]]:
        """Names of the images that are there, and the path of each one's file, both relative to the root."""

        def fail(error: OSError) -> None:
            if isinstance(error, FileNotFoundError) and error.filename != root:  # removed since, as "quarantine" is
                return
            raise StoreError(f'{error.filename}: cannot be read ({error.strerror}); check its permissions') from error

        root = str(self.root)
        for folder, _, files in os.walk(root, onerror=fail):
            prefix = Path(folder).relative_to(root).as_posix()
            prefix = '' if prefix == '.' else f'{prefix}/'
            for file in files:
                name = file.removesuffix(_SUFFIX)
                if file == name or not (name.lower().endswith(IMAGE_SUFFIXES) or is_fitted(file)):
                    continue
                try:
                    inside, *_ = _look_into(os.path.join(folder, file))  # noqa: PTH118 - a million of them
                    is_ours = inside is not None
                except TargetError:  # masks that are left out without a word would be missed
                    inside, is_ours = None, True
                if inside is not None and is_fitted(file) and not name.lower().endswith(IMAGE_SUFFIXES):
                    name = inside.rpartition('/')[2]
                with suppress(OSError):  # it was removed since
                    is_ours = is_ours or _is_cut_off(Path(folder, file), f'{prefix}{name}')
                if is_ours and fitting_name(name, _SUFFIX) == file:
                    yield f'{prefix}{name}', f'{prefix}{file}'

    def finished_names(self) -> list[str]:
        """As `names`, but at least one.

        Raises:
            StoreError: If there is none.
        """
        names = self.names()
        if not names:
            raise StoreError(
                f'{self.root}: holds no pseudo-masks; run "python -m unsam_mm generate IMAGES {self.root}" first'
            )
        return names

    def write(self, name: str, masks: MaskSet, stamp: dict[str, Any] | None = None) -> None:
        """Stores the masks of one image, replacing older ones.

        Args:
            name: Of the image.
            masks: To be stored; areas and boxes are written as those of the run lengths.
            stamp: What `unsam_mm.fingerprints.image_stamp` gave before the image was read.

        Raises:
            TargetError: If the disk takes no file of this name, or something that is not of this store, or may not be
                read, has its place.
            StoreError: If the folder cannot be written or the disk is full, or run lengths are malformed or of another
                size.
        """
        height, width = masks.size_hw
        image = {'file_name': name, 'height': int(height), 'width': int(width)}
        path = self.path_of(name)
        if _is_foreign(path, name):
            raise TargetError(
                f'{path}: exists and was not written by unsam_mm; it would be overwritten by the masks of {name}; move it, or '
                'choose another folder'
            )
        if stamp is not None:
            image[_STAMP] = stamp
        with located(f'{path}: cannot be written'):
            rles = rles_from_json(masks.rles, (height, width))
        areas, boxes = areas_and_boxes(rles)
        measured = replace(masks, rles=rles, areas=areas, boxes_xyxy=boxes.astype(np.float32))
        write_json(path, {'image': image, 'annotations': _annotations(measured)})

    def read(self, name: str, image: Path | None = None, by_age: bool = False) -> MaskSet:
        """The masks of one image.

        Args:
            name: Of the image.
            image: Its file. Masks of which is noted that they were made from another version of it are refused.
            by_age: Whether masks of which nothing is noted, as in files of other programs, are refused if the image is
                younger.

        Raises:
            StoreError: If there is no file for it, or the file is not one of this store, or is of another version.
        """
        path = self.path_of(name)
        try:
            content = read_json(path)
        except StoreError as error:
            if isinstance(error.__cause__, ValueError | RecursionError):
                raise StoreError(f'{error}, once it is removed: "generate" looks at the ends of files only') from error
            raise
        noted = content.get('image') if isinstance(content, dict) else None
        stamp = noted.get(_STAMP) if isinstance(noted, dict) else None
        if image is not None and (by_age or stamp is not None) and not is_current(path, image, stamp):
            raise StoreError(f'{path}: the masks were made from an earlier version of {image}; make them again')
        return _mask_set(content, path)

    def read_each(self, names: Iterable[str], failed: dict[str, str]) -> Iterator[tuple[str, MaskSet]]:
        """Each image with its masks; those whose file cannot be read are left out.

        Args:
            names: Of the images.
            failed: Gets the error message by name of each image that is left out.
        """
        for name in names:
            try:
                masks = self.read(name)
            except StoreError as error:
                failed[name] = str(error)
            else:
                yield name, masks

    def describe(self, settings: dict[str, Any]) -> None:
        """Notes what the masks were made with, or checks it against what is noted already.

        The metadata field "supervised" is true if human labels were used for the masks: CascadePSP was trained on them.

        Raises:
            StoreError: If the folder holds masks that were made otherwise.
        """
        self.check(settings)
        note = {**settings, _MARK: settings.get('refine') in _SUPERVISED_REFINERS}
        if note != self._noted():  # a finished folder may be one that cannot be written any more
            write_json(self.root / MANIFEST, note)

    def check(self, settings: dict[str, Any]) -> None:
        """Compares with what the masks were made with, if anything is noted; see `describe`.

        Raises:
            StoreError: If the folder holds masks that were made otherwise.
        """
        noted = self._noted() or settings
        differing = sorted(
            key for key in (noted.keys() | settings.keys()) - {_MARK} if noted.get(key) != settings.get(key)
        )
        if differing:
            raise StoreError(
                f'{self.root}: holds masks made with another {", ".join(differing)}; choose another folder or --overwrite'
            )

    @property
    def supervised(self) -> bool:
        """Whether human labels were used for the masks, according to the folder's metadata."""
        noted = self._noted()
        return bool(noted.get(_MARK)) or noted.get('refine') in _SUPERVISED_REFINERS

    @property
    def label_sources(self) -> list[str]:
        """What the masks come from, for the "info" of files made of them."""
        refiner = _SUPERVISED_REFINERS.get(self._noted().get('refine'))
        return ['pseudo-masks', refiner] if refiner else ['pseudo-masks']

    def _noted(self) -> dict[str, Any]:
        manifest = self.root / MANIFEST
        if not manifest.exists():
            return {}
        if was_cut_short(manifest):
            raise StoreError(
                f'{manifest}: is empty or was cut short, so nothing says how the masks were made; make them again with '
                '"generate" and --overwrite'
            )
        noted = read_json(manifest)
        if (
            not isinstance(noted, dict)
            or not noted.keys() & {_MARK, 'signature'}
            or not isinstance(noted.get('refine'), str | None)
        ):
            raise StoreError(f'{manifest}: not what "generate" wrote; choose another folder')
        return current_settings(noted)

    def clear(self) -> None:
        """Removes all masks and what is noted about them; other files stay.

        The metadata file is removed last, so that a partly cleared folder still describes the masks that are left.

        Raises:
            StoreError: If a file cannot be removed, or may not be read, or the note is not of this package.
        """
        if not was_cut_short(self.root / MANIFEST):
            self._noted()
        if not self.root.is_dir():
            return
        try:
            paths = [self.root / file for _, file in self._files()]
            for path in paths:
                _look_into(path)  # one that may not be read may be anything
            for path in paths:
                path.unlink(missing_ok=True)
            (self.root / MANIFEST).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f'{error.filename}: cannot be removed ({error.strerror}); choose another folder'
            ) from error

    def merge(self, target: str | Path) -> tuple[int, int, dict[str, str]]:
        """Writes all masks into one COCO file, image by image, so memory does not grow with the folder.

        Its "info" records whether human labels were used for the masks. Images whose file is damaged, or may not be
        read, are left out.

        Returns:
            The numbers of images and of masks, and the error message by name of each image that is left out.

        Raises:
            StoreError: If the folder holds no masks, no file of them can be read, or the target is one of them or
                cannot be written.
        """
        self.check_result(target)
        names, failed = self.finished_names(), {}
        info = {'description': 'UnSAM pseudo-masks', _MARK: self.supervised, 'label_sources': self.label_sources}
        with coco_writer(target, info) as writer:
            for name, masks in self.read_each(names, failed):
                writer.add(name, masks.size_hw, masks.to_coco(image_id=0))
            if not writer.n_images:
                raise StoreError(f'{self.root}: none of {len(names)} files can be read; the first: {failed[names[0]]}')
        return writer.n_images, writer.n_masks, failed


def _look_into(path: str | Path) -> tuple[str | None, bool, dict[str, Any] | None]:
    """The image that a file of the store is about, whether the file is whole, and the stamp of the image file, if any.

    The image is None where there is no such file. Only its ends are read. A pipe of that name does not hold the run up.

    Raises:
        TargetError: If it may not be read.
        StoreError: If the disk cannot be asked.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
    except OSError as error:
        if error.errno in (*_ABSENT, *_NO_SUCH_NAME) or os.path.isdir(path):  # noqa: PTH112 - Windows opens no folder
            return _NOTHING
        if isinstance(error, PermissionError):
            raise TargetError(f'{path}: cannot be read ({error.strerror}); check its permissions') from error
        raise StoreError(f'{path}: cannot be read ({error.strerror}); check the disk') from error
    try:
        start = os.read(descriptor, _HEAD_BYTES)
        found = _HEAD.match(start)
        if found is None and len(start) == _HEAD_BYTES and b'"file_name"' in start:  # a long name
            found = _HEAD.match(start + os.read(descriptor, _LONGEST_HEAD_BYTES))
        if found is None:
            return _NOTHING
        os.lseek(descriptor, max(0, os.lseek(descriptor, 0, os.SEEK_END) - _TAIL_BYTES), os.SEEK_SET)
        stamp = found[2] and json.loads(found[2])
        return json.loads(found[1]), os.read(descriptor, _TAIL_BYTES).rstrip().endswith(b'}'), stamp
    except ValueError:  # a name with escapes that are not valid in JSON
        return _NOTHING
    except OSError as error:
        if error.errno in _ABSENT:
            return _NOTHING
        raise StoreError(f'{path}: cannot be read ({error.strerror}); check the disk') from error
    finally:
        os.close(descriptor)


def _is_foreign(path: Path, name: str) -> bool:
    """Whether something has the place of an image's masks that is not a file of the store.

    Raises:
        TargetError: If it may not be read.
    """
    if not os.path.exists(path):  # noqa: PTH110 - false where it cannot be asked too: writing tells why
        return False
    try:
        return _look_into(path)[0] is None and not _is_cut_off(path, name)
    except OSError:  # it cannot be read, so it may be anything
        return True


def _is_cut_off(path: Path, name: str) -> bool:
    """Whether a file is the beginning of one with the masks of an image; an empty one is."""
    if not path.is_file() or path.stat().st_size > _LONGEST_HEAD_BYTES:
        return False
    start, found = f'{{"image":{{"file_name":{json.dumps(name)},"height":'.encode(), path.read_bytes()
    return start.startswith(found) or (found.startswith(start) and not _is_json(found))


def was_cut_short(note: Path) -> bool:
    """Whether the note of a folder is empty, or the beginning of one, as after a power failure; others are not ours."""
    try:
        content = note.read_bytes().strip(b'\0')
    except OSError:
        return False
    return not content or (content.startswith(b'{') and b'\n' not in content and not _is_json(content))


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _annotations(masks: MaskSet) -> list[dict[str, Any]]:
    """SA-1B's keys; `predicted_iou` holds the score, and `granularity` and `parent` are added."""
    return [
        {'id': index, **{'predicted_iou' if key == 'score' else key: record[key] for key in _KEYS}}
        for index, record in enumerate(masks.to_coco(image_id=0))
    ]


def _mask_set(content: Any, path: Path) -> MaskSet:
    try:
        image, annotations = content['image'], content['annotations']
        height, width = image_size(image)
        if height is None or width is None:
            raise UnSAMError('"image" has no height or no width')
        rles = rles_from_json([record['segmentation'] for record in annotations], (height, width))
        areas, boxes = areas_and_boxes(rles)
        _check_stated(annotations, areas, boxes)
        return MaskSet(
            rles=rles,
            scores=_scores(annotations),
            parents=_parents(annotations),
            areas=areas,
            boxes_xyxy=boxes.astype(np.float32),
            size_hw=(height, width),
        )
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise StoreError(
            f'{path}: not a pseudo-mask file ({explained(error)}); remove it and generate it again'
        ) from error


def _check_stated(annotations: list[dict[str, Any]], areas: np.ndarray, boxes: np.ndarray) -> None:
    """Run lengths that were changed may still be those of another mask; its area and box tell."""
    stated = _numbers(annotations, 'area', np.nan)
    if (wrong := ~np.isnan(stated) & (stated != areas)).any():
        at = int(wrong.argmax())
        raise UnSAMError(f'mask {at} has {areas[at]} px, its "area" is {stated[at]:.12g}')
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    for at, record in enumerate(annotations):
        if record.get('bbox') is not None and record['bbox'] != sides[at].tolist():
            raise UnSAMError(f'mask {at} has the box {sides[at].tolist()}, its "bbox" is {str(record["bbox"])[:60]}')


def _parents(annotations: list[dict[str, Any]]) -> np.ndarray:
    parents = _numbers(annotations, 'parent', -1.0)
    if (wrong := parents[~((parents >= -1) & (parents < len(annotations)) & (parents == np.floor(parents)))]).size:
        raise UnSAMError(f'parent {wrong[0]:.12g} among {len(annotations)} masks')
    return parents.astype(np.int64)


def _scores(annotations: list[dict[str, Any]]) -> np.ndarray:
    scores = _numbers(annotations, 'predicted_iou')
    if (wrong := scores[~((scores >= 0) & (scores <= 1))]).size:
        raise UnSAMError(f'"predicted_iou" is {wrong[0]:.12g}; expected a number in [0, 1]')
    return scores.astype(np.float32)


def _numbers(annotations: list[dict[str, Any]], key: str, default: float | None = None) -> np.ndarray:
    """(N,) float64 values of a field, which JSON has as numbers; some may be absent where there is a default."""
    values = [record[key] if default is None else record.get(key, default) for record in annotations]
    if not set(map(type, values)) <= {int, float}:
        wrong = next(value for value in values if type(value) not in (int, float))
        raise UnSAMError(f'"{key}" is {str(wrong)[:40]!r}; expected a number')
    return np.array(values, np.float64)
