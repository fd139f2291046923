"""A folder of images as an MMDetection dataset, without annotation files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import BaseDetDataset
from mmdet.registry import DATASETS

from unsam_mm import sample_images
from unsam_mm.coco_files.fields import is_crowd, listed_name, number_in, stated_box
from unsam_mm.coco_files.ground_truth import load_ground_truth, match_images
from unsam_mm.errors import ImageError, StoreError, UnSAMError, error_context
from unsam_mm.images import IMAGE_SUFFIXES, walk_images
from unsam_mm.masks.rle import rle_from_json, rle_to_json
from unsam_mm.student.store import ImageLocation

SPLITS = ('all', 'train', 'held_out')


@DATASETS.register_module()
class UnSAMImageFolder(BaseDetDataset):
    """All images below a folder, at any depth, as one class; hidden files and folders are ignored.

    Images are not decoded at the start, so their sizes are unknown (`AspectRatioBatchSampler` cannot be used). Each
    entry has ``img_path``, ``img_name`` (path relative to the folder, with forward slashes), ``img_root``, ``img_id``
    and ``instances``, which is empty without `ann_file`.

    Args:
        ann_file: COCO file with ground truth for testing, relative to `data_root`. Only its images are used, with
            its image ids; instances have ``bbox``, ``mask``, ``bbox_label`` 0, and crowds ``ignore_flag`` 1, in the
            format of `LoadAnnotations(with_bbox=True, with_mask=True)`. Without it, ids are hashes of the names.
        data_root: The folder. By default eleven photographs and micrographs of scikit-image.
        data_prefix: Subfolder, under the key ``img`` or ``img_path``.
        split: 'all', 'train' or 'held_out'. The split is by a hash of the name, so an image usually stays in its part
            when others are added; the images of scikit-image have a fixed split. Both parts are non-empty if there are
            two images or more.
        held_out_fraction: Approximate fraction of images held out, in (0, 1).
        **kwargs: Passed to `BaseDetDataset`: pipeline, test_mode, indices, metainfo, ...

    Raises:
        ImageError: If the folder is missing or has no images, `ann_file` lists images that are not in the folder, or
            the split is empty.
        StoreError: If `ann_file` cannot be read, none of its images is in the folder, or names are ambiguous.
        UnSAMError: If `split` or `held_out_fraction` is out of range, or `data_root` is a list.
    """

    METAINFO = {'classes': ('object',), 'palette': [(220, 20, 60)]}

    def __init__(
        self,
        ann_file: str = '',
        data_root: str = '',
        data_prefix: dict[str, str] | None = None,
        split: str = 'all',
        held_out_fraction: float = 0.1,
        **kwargs: Any,
    ) -> None:
        if split not in SPLITS:
            raise UnSAMError(f'split must be one of {SPLITS}, got {split!r}')
        if isinstance(data_root, list | tuple):
            raise UnSAMError(
                f'data_root={list(data_root)}: UnSAMImageFolder accepts one folder; give their parent folder, or link '
                'them into one folder'
            )
        if not 0 < held_out_fraction < 1:
            raise UnSAMError(f'held_out_fraction must lie between 0 and 1, got {held_out_fraction}')
        self.split = split
        self.held_out_fraction = held_out_fraction
        super().__init__(
            ann_file=ann_file,
            data_root=str(data_root or ''),
            data_prefix={'img': ''} if data_prefix is None else data_prefix,
            **kwargs,
        )

    @property
    def image_root(self) -> Path:
        """The folder that image names are relative to."""
        prefix = self.data_prefix.get('img', self.data_prefix.get('img_path', ''))
        return Path(prefix) if prefix else sample_images.folder()

    def load_data_list(self) -> list[dict[str, Any]]:
        """One entry for each image, sorted by name."""
        root = self.image_root
        is_bundled = root == sample_images.folder()
        bundled = (name for name in sample_images.TRAIN + sample_images.HELD_OUT if (root / name).is_file())
        names = sorted(bundled if is_bundled else walk_images(root))
        if not names:
            raise ImageError(f'{root}: no images found; expected files ending in {" ".join(IMAGE_SUFFIXES)}')
        annotated = self._read_annotations(names) if self.ann_file else dict.fromkeys(names)
        kept = self._select(sorted(annotated), is_bundled)
        return [self._entry(root, name, annotated[name]) for name in kept]

    def _read_annotations(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The COCO image entry of each image name, with its annotations."""
        truth = load_ground_truth(self.ann_file)
        images = {image['id']: {**image, 'annotations': []} for image in truth['images']}
        for annotation in truth['annotations']:
            if annotation['image_id'] in images:
                images[annotation['image_id']]['annotations'].append(annotation)
        with error_context(self.ann_file):
            ids = match_images(names, truth, skip_unmatched=True)
        absent = sorted(listed_name(images[image_id]) for image_id in images.keys() - set(ids.values()))
        if absent:
            raise ImageError(
                f'{self.ann_file}: {len(absent)} of {len(images)} images are not in {self.image_root} '
                f'({", ".join(absent[:3])}); check data_root'
            )
        return {name: images[image_id] for name, image_id in ids.items()}

    def _select(self, names: list[str], is_bundled: bool) -> list[str]:
        if self.split == 'all':
            return names
        held_out = set(sample_images.HELD_OUT) if is_bundled else _held_out(names, self.held_out_fraction)
        kept = [name for name in names if (name in held_out) == (self.split == 'held_out')]
        if not kept:
            raise ImageError(
                f"{self.image_root}: split '{self.split}' of {len(names)} image(s) is empty; use split='all'"
            )
        return kept

    def _entry(self, root: Path, name: str, image: dict[str, Any] | None) -> dict[str, Any]:
        entry = {
            'img_path': str(root / name),
            'img_name': name,
            'img_root': str(root),
            'img_id': name_hash(name),
            'instances': [],
        }
        if image is not None:
            entry['img_id'] = image['id']
            with error_context(f'{self.ann_file}, {name}'):
                entry['instances'] = [as_instance(annotation) for annotation in image['annotations']]
        return entry


def as_instance(annotation: dict[str, Any]) -> dict[str, Any]:
    """Converts a COCO annotation to the format of `LoadAnnotations`.

    The result has a box x0, y0, x1, y1, and as mask an RLE whose ``counts`` are text, or polygons. ``score`` or SA-1B's
    ``predicted_iou`` becomes its ``score``. Invalid boxes become zeros.

    Raises:
        StoreError: If it has no mask, or an invalid field.
    """
    try:
        mask = annotation.get('segmentation')
        if mask is None:
            raise UnSAMError('has no segmentation; complete the COCO file')
        x, y, width, height = stated_box(annotation) or (0.0,) * 4  # UnSAMLoadMasks computes boxes from masks
        key = 'score' if 'score' in annotation else 'predicted_iou'
        score = math.inf if isinstance(annotation.get(key), bool) else number_in(annotation, key)
        if math.isinf(score):
            raise UnSAMError(f'the "{key}" is not a number: {annotation[key]}')
        instance = {
            'bbox': [x, y, x + width, y + height],
            'bbox_label': 0,
            'ignore_flag': int(is_crowd(annotation)),
            'mask': rle_to_json(rle_from_json(mask)) if isinstance(mask, dict) else mask,
        }
    except UnSAMError as error:
        raise StoreError(f'annotation {annotation.get("id")}: {getattr(error, "reason", error)}') from error
    return instance if math.isnan(score) else instance | {'score': score}


def name_hash(name: str) -> int:
    """A hash of a name, below 2**52, so JSON and float64 represent it exactly."""
    return int.from_bytes(hashlib.blake2b(name.encode('utf-8', 'surrogateescape'), digest_size=8).digest()) >> 12


def image_location(results: dict[str, Any]) -> ImageLocation:
    """The location of the image of an entry; entries of other packages' datasets have ``img_path`` only."""
    if 'img_root' in results and 'img_name' in results:
        return ImageLocation(results['img_root'], results['img_name'])
    path = Path(results['img_path'])
    return ImageLocation(str(path.parent), path.name)


def image_name(entry: dict[str, Any], image_root: str = '') -> str:
    """The name of an image in a store of labels: its path relative to a folder, with forward slashes.

    Args:
        entry: Entry of the image in a data set. Data sets of this package have ``img_root`` and ``img_name``; others
            have ``img_path`` only.
        image_root: The folder, if the entry does not state it.

    Raises:
        UnSAMError: If the folder is unknown, or the image is not below it. File names alone would not distinguish
            images of several folders.
    """
    if 'img_root' in entry and 'img_name' in entry:
        return entry['img_name']
    path = entry['img_path']
    if not image_root:
        raise UnSAMError(
            f'{path}: its data set does not state the folder that names of labels are relative to; use a data set of '
            'unsam_mm, or UnSAMPseudoMasks with image_root, the folder of the images that was given to "generate"'
        )
    for absolute in (Path.absolute, Path.resolve):  # first without following links, whose targets may be elsewhere
        if absolute(Path(path)).is_relative_to(absolute(Path(image_root))):
            return absolute(Path(path)).relative_to(absolute(Path(image_root))).as_posix()
    raise UnSAMError(
        f'{path}: is not below {image_root}, which names of labels are relative to; set image_root to a folder that contains '
        'all images'
    )


def _held_out(names: Sequence[str], fraction: float) -> set[str]:
    ranked = sorted(names, key=name_hash)
    limit = fraction * 2**52
    held_out = {name for name in ranked if name_hash(name) < limit}
    # Both parts are non-empty if there are two images or more.
    held_out |= set(ranked[:1])
    return held_out - set(ranked[-1:]) if len(ranked) > 1 else set()
