"""A folder of pseudo-masks: one JSON file an image, in the form of SA-1B's annotation files.

A file is there, and then it is whole, or it is not there: whatever has been written can be used, and work that was
interrupted goes on with the images that have no file yet.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unsam_mm.coco_files.writer import coco_writer
from unsam_mm.errors import StoreError
from unsam_mm.files import read_json, write_json
from unsam_mm.fingerprints import is_current
from unsam_mm.images import IMAGE_SUFFIXES
from unsam_mm.mask_set import MaskSet
from unsam_mm.rle import rle_from_json

MANIFEST = 'unsam.json'
_SUPERVISED_REFINERS = {'cascadepsp': 'CascadePSP'}
_MARK = 'supervised'
_STAMP = 'made_of'


class PseudoMaskStore:
    """Masks by image name, where a name is the image's path below the image folder, such as ``'cats/1.jpg'``.

    Args:
        root: The folder; it is made when the first file is written.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path_of(self, name: str) -> Path:
        """Where the masks of an image are kept."""
        return self.root / f'{name}.json'

    def has(self, name: str) -> bool:
        """Whether an image is done."""
        try:
            return self.path_of(name).is_file()
        except OSError as error:
            raise StoreError(f'{name}: no file can be named after this image ({error.strerror}); rename it') from error

    def is_current(self, name: str, image: Path) -> bool:
        """Whether an image is done, and was not exchanged for another since.

        An image file that is not younger than its masks counts as the one that they were made of.
        """
        if not self.has(name):
            return False
        path = self.path_of(name)
        if is_current(path, image, None):
            return True
        try:
            return is_current(path, image, _stamp(read_json(path)))
        except StoreError:
            return False

    def names(self) -> list[str]:
        """All finished images, sorted."""
        if not self.root.is_dir():
            raise StoreError(
                f'{self.root}: no such folder; make it with "python -m unsam_mm generate IMAGES {self.root}"'
            )
        names = (path.relative_to(self.root).as_posix().removesuffix('.json') for path in self.root.rglob('*.json'))
        return sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES))

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
            masks: To be stored.
            stamp: What `unsam_mm.fingerprints.image_stamp` gave before the image was read.

        Raises:
            StoreError: If the folder cannot be written or the disk is full.
        """
        height, width = masks.size_hw
        image = {'file_name': name, 'height': int(height), 'width': int(width)}
        if stamp is not None:
            image[_STAMP] = stamp
        write_json(self.path_of(name), {'image': image, 'annotations': _annotations(masks)})

    def read(self, name: str) -> MaskSet:
        """The masks of one image.

        Raises:
            StoreError: If there is no file for it, or the file is not one of this store.
        """
        path = self.path_of(name)
        return _mask_set(read_json(path), path)

    def read_current(self, name: str, image: Path) -> MaskSet:
        """The masks of one image, which was not exchanged for another since.

        Raises:
            StoreError: As for `read`, or if the masks were made of another image file.
        """
        path = self.path_of(name)
        content = read_json(path)
        if not is_current(path, image, _stamp(content)):
            raise StoreError(f'{path}: the masks are of another file than {image} is now; make them again')
        return _mask_set(content, path)

    def describe(self, settings: dict[str, Any]) -> None:
        """Notes what the masks were made with, or checks it against what is noted already.

        The note says under "supervised" whether human labels had a part in the masks: CascadePSP learned from them.

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
        write_json(self.root / MANIFEST, {**settings, _MARK: settings.get('refine') in _SUPERVISED_REFINERS})

    @property
    def supervised(self) -> bool:
        """Whether human labels had a part in the masks, as far as the folder's note says."""
        noted = self._noted()
        return bool(noted.get(_MARK)) or noted.get('refine') in _SUPERVISED_REFINERS

    @property
    def label_sources(self) -> list[str]:
        """What the masks come from, for the "info" of files made of them."""
        refiner = _SUPERVISED_REFINERS.get(self._noted().get('refine'))
        return ['pseudo-masks', refiner] if refiner else ['pseudo-masks']

    def _noted(self) -> dict[str, Any]:
        manifest = self.root / MANIFEST
        noted = read_json(manifest) if manifest.is_file() else {}
        if not isinstance(noted, dict):
            raise StoreError(f'{manifest}: not what "generate" wrote; choose another folder')
        return noted

    def clear(self) -> None:
        """Removes all masks and what is noted about them; other files stay."""
        if self.root.is_dir():
            (self.root / MANIFEST).unlink(missing_ok=True)
            for name in self.names():
                self.path_of(name).unlink()

    def merge(self, target: str | Path) -> tuple[int, int]:
        """Writes all masks into one COCO file, image by image, so memory does not grow with the folder.

        Its "info" says whether human labels had a part in the masks.

        Returns:
            The numbers of images and of masks.

        Raises:
            StoreError: If the folder holds no masks, a file is broken, or the target cannot be written.
        """
        names = self.finished_names()
        info = {'description': 'UnSAM pseudo-masks', _MARK: self.supervised, 'label_sources': self.label_sources}
        with coco_writer(target, info) as writer:
            for name in names:
                masks = self.read(name)
                writer.add(name, masks.size_hw, masks.to_coco(image_id=0))
        return len(names), writer.n_masks


def _annotations(masks: MaskSet) -> list[dict[str, Any]]:
    """SA-1B's keys; `predicted_iou` holds the score, and `granularity` and `parent` are added."""
    return [
        {
            'id': index,
            'segmentation': record['segmentation'],
            'bbox': record['bbox'],
            'area': record['area'],
            'predicted_iou': record['score'],
            'granularity': record['granularity'],
            'parent': record['parent'],
        }
        for index, record in enumerate(masks.to_coco(image_id=0))
    ]


def _stamp(content: Any) -> dict[str, Any] | None:
    image = content.get('image') if isinstance(content, dict) else None
    return image.get(_STAMP) if isinstance(image, dict) else None


def _mask_set(content: Any, path: Path) -> MaskSet:
    try:
        image, annotations = content['image'], content['annotations']
        size_hw = (int(image['height']), int(image['width']))
        boxes = np.array([record['bbox'] for record in annotations], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        parents = np.array([record.get('parent', -1) for record in annotations], np.int64)
        if (wrong := parents[(parents < -1) | (parents >= len(annotations))]).size:
            raise ValueError(f'parent {wrong[0]} among {len(annotations)} masks')
        return MaskSet(
            rles=[rle_from_json(record['segmentation']) for record in annotations],
            scores=np.array([record['predicted_iou'] for record in annotations], np.float32),
            granularity=np.array([record.get('granularity', 0.0) for record in annotations], np.float32),
            parents=parents,
            areas=np.array([record['area'] for record in annotations], np.int64),
            boxes_xyxy=boxes,
            size_hw=size_hw,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f'{path}: not a pseudo-mask file ({type(error).__name__}: {error}); remove it and generate it again'
        ) from error
