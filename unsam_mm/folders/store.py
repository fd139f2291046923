"""Store of pseudo-masks: one JSON file for each image, in the format of SA-1B's annotation files.

Files are written atomically, so an interrupted run is continued with the images that have no file yet.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from unsam_mm.coco_files.fields import image_size
from unsam_mm.coco_files.writer import coco_writer
from unsam_mm.errors import StoreError, TargetError, UnSAMError, describe_error, error_context
from unsam_mm.files import fitting_name, is_fitted, lies_below, read_json, write_json
from unsam_mm.fingerprints import is_current
from unsam_mm.images import IMAGE_SUFFIXES
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.pseudo_masks.setting_names import current_settings

MANIFEST = 'unsam.json'
_SUPERVISED_REFINERS = {'cascadepsp': 'CascadePSP'}
_SUPERVISED = 'supervised'
_SUFFIX = '.json'
_STAMP = 'made_of'
# Fields of `MaskSet.to_coco` that are written.
_KEYS = ('segmentation', 'bbox', 'area', 'score', 'granularity', 'parent')

_HEAD = re.compile(
    rb'(?:\xef\xbb\xbf)?\s*\{\s*"image"\s*:\s*\{\s*"file_name"\s*:\s*("(?:[^"\\]|\\.)*+")\s*,\s*"height"\s*:\s*\d+\s*,'
    rb'\s*"width"\s*:\s*\d+\s*(?:,\s*"made_of"\s*:\s*(\{[^{}]*+\})\s*)?\}\s*,\s*"annotations"\s*:\s*\['
)
"""The beginning of each file; files with another beginning are foreign, and are not listed, replaced or removed."""
_HEAD_BYTES, _MAX_HEAD_BYTES = 512, 1 << 16
_TAIL_BYTES = 16
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_INVALID_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENXIO)
_FOREIGN = None, False, None  # result of `_read_ends` for a missing or foreign file


class PseudoMaskStore:
    """Masks by image name, the path of the image below the image folder, such as ``'cats/1.jpg'``.

    Args:
        root: Folder of the store; created when the first file is written.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path_of(self, name: str) -> Path:
        """The file of an image; see `fitting_name` for long names."""
        return self.root / fitting_name(name, _SUFFIX)

    def has(self, name: str) -> bool:
        """True if an image has a complete file, or a file without read permission, for which `read` raises an error.

        Raises:
            StoreError: If the disk cannot be read.
        """
        try:
            head, is_complete, _ = _read_ends(self.path_of(name))
        except TargetError:
            return True
        return head is not None and is_complete

    def contains(self, path: str | Path) -> bool:
        """True if a file belongs to the store: the masks of an image, or the metadata.

        Raises:
            StoreError: If the file cannot be read.
        """
        if os.path.realpath(path) == os.path.realpath(self.root / MANIFEST):
            return True
        return lies_below(path, self.root) and _read_ends(path)[0] is not None

    def check_result(self, target: str | Path) -> None:
        """Checks that a result would not replace a file of the store.

        Raises:
            StoreError: If it would, or the file cannot be read.
        """
        if self.contains(target):
            raise StoreError(f'{target}: is one of the files that are read; choose another file for the result')

    def is_current(self, name: str, image: Path) -> bool:
        """Whether there is a complete file for an image, and the image has not changed; see `fingerprints.is_current`.

        False for a file without read permission, for which `write` raises an error.

        Raises:
            StoreError: If the disk cannot be read.
        """
        path = self.path_of(name)
        try:
            head, is_complete, stamp = _read_ends(path)
        except TargetError:
            return False
        return head is not None and is_complete and is_current(path, image, stamp)

    def names(self) -> list[str]:
        """Names of all images with a file, sorted. Only the beginning and the end of each file are read.

        Includes damaged files and files without read permission, for which `read` raises an error.

        Raises:
            StoreError: If the folder is missing or cannot be read.
        """
        if not self.root.is_dir():
            raise StoreError(
                f'{self.root}: no such folder; make it with "python -m unsam_mm generate IMAGES {self.root}"'
            )
        return sorted(name for name, _ in self._files())

    def _files(self) -> Iterator[tuple[str, str]]:
        """Names of images and paths of their files, both relative to the root."""

        def fail(error: OSError) -> None:
            if isinstance(error, FileNotFoundError) and error.filename != root:  # just removed, such as "quarantine"
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
                    inside, *_ = _read_ends(os.path.join(folder, file))  # noqa: PTH118 - faster than Path
                    is_ours = inside is not None
                except TargetError:  # without read permission
                    inside, is_ours = None, True
                if inside is not None and is_fitted(file) and not name.lower().endswith(IMAGE_SUFFIXES):
                    name = inside.rpartition('/')[2]
                with suppress(OSError):  # the file was just removed
                    is_ours = is_ours or _is_truncated(Path(folder, file), f'{prefix}{name}')
                if is_ours and fitting_name(name, _SUFFIX) == file:
                    yield f'{prefix}{name}', f'{prefix}{file}'

    def finished_names(self) -> list[str]:
        """The same as `names`, but never empty.

        Raises:
            StoreError: If there are no pseudo-masks.
        """
        names = self.names()
        if not names:
            raise StoreError(
                f'{self.root}: contains no pseudo-masks; run "python -m unsam_mm generate IMAGES {self.root}" first'
            )
        return names

    def write(self, name: str, masks: MaskSet, stamp: dict[str, Any] | None = None) -> None:
        """Writes the masks of one image, and replaces its file.

        Args:
            name: Name of the image.
            masks: The masks; areas and boxes in the file are computed from the RLEs.
            stamp: Result of `unsam_mm.fingerprints.image_stamp` before the image was read.

        Raises:
            TargetError: If the disk does not allow a file of this name, or the existing file is foreign or has no read
                permission.
            StoreError: If the folder cannot be written or the disk is full, or RLEs are malformed or have another size.
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
        with error_context(f'{path}: cannot be written'):
            checked = MaskSet.from_rles(masks.rles, masks.scores, (height, width), masks.parents)
        # SA-1B's keys; `predicted_iou` is the score, and `granularity` and `parent` are added.
        annotations = [
            {'id': index, **{'predicted_iou' if key == 'score' else key: record[key] for key in _KEYS}}
            for index, record in enumerate(checked.to_coco(image_id=0))
        ]
        write_json(path, {'image': image, 'annotations': annotations})

    def read(self, name: str, image: Path | None = None, by_age: bool = False) -> MaskSet:
        """Reads the masks of one image.

        Args:
            name: Name of the image.
            image: The image file. If it has changed since the masks were written with its stamp, an error is raised.
            by_age: True to raise an error also if there is no stamp and the image is newer than the masks.

        Raises:
            StoreError: If the file is missing, damaged or not a file of masks, or the image has changed.
        """
        path = self.path_of(name)
        try:
            content = read_json(path)
        except StoreError as error:
            if isinstance(error.__cause__, ValueError | RecursionError):
                raise StoreError(
                    f'{error}; remove it first, since "generate" only checks both ends of a file'
                ) from error
            raise
        noted = content.get('image') if isinstance(content, dict) else None
        stamp = noted.get(_STAMP) if isinstance(noted, dict) else None
        if image is not None and (by_age or stamp is not None) and not is_current(path, image, stamp):
            raise StoreError(f'{path}: the masks were made from an earlier version of {image}; make them again')
        return _mask_set(content, path)

    def read_each(self, names: Iterable[str], failed: dict[str, str]) -> Iterator[tuple[str, MaskSet]]:
        """Yields names of images with their masks.

        Args:
            names: Names of the images.
            failed: The error messages of files that cannot be read are added to this dictionary, by name.
        """
        for name in names:
            try:
                masks = self.read(name)
            except StoreError as error:
                failed[name] = str(error)
            else:
                yield name, masks

    def describe(self, settings: dict[str, Any]) -> None:
        """Writes `settings` as metadata, after a check against the metadata of existing masks.

        Its field "supervised" is true if human labels were used for the masks: CascadePSP was trained with them.

        Args:
            settings: The settings that the masks are made with.

        Raises:
            StoreError: If the folder has masks made with other settings.
        """
        self.check(settings)
        metadata = {**settings, _SUPERVISED: settings.get('refine') in _SUPERVISED_REFINERS}
        if metadata != self._metadata():  # a finished folder may be read-only
            write_json(self.root / MANIFEST, metadata)

    def check(self, settings: dict[str, Any]) -> None:
        """Compares settings with the metadata, if there is any.

        Raises:
            StoreError: If the folder has masks made with other settings.
        """
        metadata = self._metadata() or settings
        differing = sorted(
            key for key in (metadata.keys() | settings.keys()) - {_SUPERVISED} if metadata.get(key) != settings.get(key)
        )
        if differing:
            raise StoreError(
                f'{self.root}: contains masks made with another {", ".join(differing)}; choose another folder or '
                '--overwrite'
            )

    @property
    def supervised(self) -> bool:
        """Whether human labels were used for the masks, according to the metadata."""
        metadata = self._metadata()
        return bool(metadata.get(_SUPERVISED)) or metadata.get('refine') in _SUPERVISED_REFINERS

    @property
    def label_sources(self) -> list[str]:
        """Sources of the masks, for "info" of merged files."""
        refiner = _SUPERVISED_REFINERS.get(self._metadata().get('refine'))
        return ['pseudo-masks', refiner] if refiner else ['pseudo-masks']

    def _metadata(self) -> dict[str, Any]:
        manifest = self.root / MANIFEST
        if not manifest.exists():
            return {}
        if was_cut_short(manifest):
            raise StoreError(
                f'{manifest}: is empty or was cut short, so it is unknown how the masks were made; make them again with '
                '"generate" and --overwrite'
            )
        metadata = read_json(manifest)
        if (
            not isinstance(metadata, dict)
            or not metadata.keys() & {_SUPERVISED, 'signature'}
            or not isinstance(metadata.get('refine'), str | None)
        ):
            raise StoreError(f'{manifest}: was not written by "generate"; choose another folder')
        return current_settings(metadata)

    def clear(self) -> None:
        """Removes all masks and the metadata, but no foreign files.

        The metadata is removed last, so it still describes the masks in a partly cleared folder.

        Raises:
            StoreError: If a file cannot be read or removed, or the metadata is foreign.
        """
        if not was_cut_short(self.root / MANIFEST):
            self._metadata()
        if not self.root.is_dir():
            return
        try:
            paths = [self.root / file for _, file in self._files()]
            for path in paths:
                _read_ends(path)  # a file without read permission may be foreign
            for path in paths:
                path.unlink(missing_ok=True)
            (self.root / MANIFEST).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f'{error.filename}: cannot be removed ({error.strerror}); choose another folder'
            ) from error

    def merge(self, target: str | Path) -> tuple[int, int, dict[str, str]]:
        """Writes all masks into one COCO file, image by image, so memory does not grow with the folder.

        Its "info" states whether human labels were used for the masks. Images whose file cannot be read are left out.

        Returns:
            Number of images, number of masks, and error messages of the images that are left out, by name.

        Raises:
            StoreError: If there are no masks, no file can be read, or the target is one of the files or cannot be
                written.
        """
        self.check_result(target)
        names, failed = self.finished_names(), {}
        info = {'description': 'UnSAM pseudo-masks', _SUPERVISED: self.supervised, 'label_sources': self.label_sources}
        with coco_writer(target, info) as writer:
            for name, masks in self.read_each(names, failed):
                writer.add(name, masks.size_hw, masks.to_coco(image_id=0))
            if not writer.n_images:
                raise StoreError(f'{self.root}: none of {len(names)} files can be read; the first: {failed[names[0]]}')
        return writer.n_images, writer.n_masks, failed


def _read_ends(path: str | Path) -> tuple[str | None, bool, dict[str, Any] | None]:
    """The image name in a file, whether the file is complete, and the stamp of the image, if any.

    The name is None for a missing or foreign file. Only both ends are read, without waiting if the file is a pipe.

    Raises:
        TargetError: If there is no read permission.
        StoreError: If the disk cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
    except OSError as error:
        if error.errno in (*_ABSENT, *_INVALID_NAME) or os.path.isdir(path):  # noqa: PTH112 - Windows cannot open it
            return _FOREIGN
        if isinstance(error, PermissionError):
            raise TargetError(f'{path}: cannot be read ({error.strerror}); check its permissions') from error
        raise StoreError(f'{path}: cannot be read ({error.strerror}); check the disk') from error
    try:
        start = os.read(descriptor, _HEAD_BYTES)
        found = _HEAD.match(start)
        if found is None and len(start) == _HEAD_BYTES and b'"file_name"' in start:  # a long name
            found = _HEAD.match(start + os.read(descriptor, _MAX_HEAD_BYTES))
        if found is None:
            return _FOREIGN
        os.lseek(descriptor, max(0, os.lseek(descriptor, 0, os.SEEK_END) - _TAIL_BYTES), os.SEEK_SET)
        stamp = found[2] and json.loads(found[2])
        return json.loads(found[1]), os.read(descriptor, _TAIL_BYTES).rstrip().endswith(b'}'), stamp
    except ValueError:  # the name has escapes that are not valid in JSON
        return _FOREIGN
    except OSError as error:
        if error.errno in _ABSENT:
            return _FOREIGN
        raise StoreError(f'{path}: cannot be read ({error.strerror}); check the disk') from error
    finally:
        os.close(descriptor)


def _is_foreign(path: Path, name: str) -> bool:
    """Whether there is a foreign file, or a folder, in place of the file of an image.

    Raises:
        TargetError: If there is no read permission.
    """
    if not os.path.exists(path):  # noqa: PTH110 - False also for an inaccessible path; writing then raises the error
        return False
    try:
        return _read_ends(path)[0] is None and not _is_truncated(path, name)
    except OSError:  # it cannot be read, so it may be foreign
        return True


def _is_truncated(path: Path, name: str) -> bool:
    """True if a file is empty or contains only the beginning of the masks of an image."""
    if not path.is_file() or path.stat().st_size > _MAX_HEAD_BYTES:
        return False
    start, found = f'{{"image":{{"file_name":{json.dumps(name)},"height":'.encode(), path.read_bytes()
    return start.startswith(found) or (found.startswith(start) and not _is_json(found))


def was_cut_short(manifest: Path) -> bool:
    """Whether the metadata of a store is empty or truncated, as after a power failure."""
    try:
        content = manifest.read_bytes().strip(b'\0')
    except OSError:
        return False
    return not content or (content.startswith(b'{') and b'\n' not in content and not _is_json(content))


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def _mask_set(content: Any, path: Path) -> MaskSet:
    try:
        image, annotations = content['image'], content['annotations']
        height, width = image_size(image)
        if height is None or width is None:
            raise UnSAMError('"image" has no height or no width')
        masks = MaskSet.from_rles(
            [record['segmentation'] for record in annotations],
            _numbers(annotations, 'predicted_iou'),
            (height, width),
            np.array(_numbers(annotations, 'parent', (int,), -1), np.int64),
        )
        _check_areas_and_boxes(annotations, masks)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise StoreError(
            f'{path}: not a pseudo-mask file ({describe_error(error)}); remove it and generate it again'
        ) from error
    return masks


def _check_areas_and_boxes(annotations: list[dict[str, Any]], masks: MaskSet) -> None:
    """Raises `UnSAMError` if areas or boxes in a file differ from those of its RLEs, which means that it was edited."""
    boxes_xywh = masks.boxes_xyxy.copy()
    boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
    for index, (record, area, box) in enumerate(
        zip(annotations, masks.areas.tolist(), boxes_xywh.tolist(), strict=True)
    ):
        if record.get('area', area) != area:
            raise UnSAMError(f'mask {index} has {area} px, its "area" is {str(record["area"])[:60]}')
        if record.get('bbox') not in (None, box):
            raise UnSAMError(f'mask {index} has the box {box}, its "bbox" is {str(record["bbox"])[:60]}')


def _numbers(
    annotations: list[dict[str, Any]], key: str, types: tuple[type, ...] = (int, float), default: int | None = None
) -> list[int | float]:
    """Values of a field, which may be absent if there is a default; raises `UnSAMError` for values of other types."""
    values = [record[key] if default is None else record.get(key, default) for record in annotations]
    for value in values:
        if type(value) not in types:  # bool is a subclass of int
            raise UnSAMError(f'"{key}" is {str(value)[:40]!r}; expected a number')
    return values
