"""Pipeline steps that load an image, load, merge and sample its masks as RLEs, and add clicks on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmdet.structures.mask import BaseInstanceMasks
from mmengine.structures import InstanceData

from unsam_mm.coco_files.segmentations import PolygonFilter, read_rles
from unsam_mm.datasets.image_folder import image_name
from unsam_mm.datasets.messages import LogOnce
from unsam_mm.datasets.rle_masks import RleMasks
from unsam_mm.errors import ImageError, StoreError, UnSAMError, image_errors
from unsam_mm.folders.merge import GROUND_TRUTH_IOU, suppress_overlapping
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.images import read_image
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.next_click import centre_of

_LABELS = ('gt_masks', 'gt_bboxes', 'gt_bboxes_labels', 'gt_ignore_flags')
SAMPLINGS = ('score', 'uniform')


@TRANSFORMS.register_module()
@dataclass(eq=False)
class UnSAMLoadImage(BaseTransform):
    """Reads ``img_path`` into ``img`` (H, W, 3) uint8, and sets ``img_shape``, ``ori_shape``, ``height``, ``width``.

    Greyscale, RGBA, 16-bit and float files are accepted; see `unsam_mm.images.as_rgb_uint8`.

    Args:
        channel_order: 'bgr', the convention of MMDetection's steps and tools, with ``bgr_to_rgb=True`` in
            `DetDataPreprocessor`; or 'rgb', for a model without that.
        skip_broken: True to log unreadable files and return None, so that the dataset draws another image. Set it to
            False in test pipelines, where the error must be raised.

    Raises:
        UnSAMError: If `channel_order` is unknown.
    """

    channel_order: str = 'bgr'
    skip_broken: bool = True
    _report: LogOnce = field(default_factory=LogOnce, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.channel_order not in ('rgb', 'bgr'):
            raise UnSAMError(f"channel_order must be 'rgb' or 'bgr', got {self.channel_order!r}")

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Adds the image to `results`; None if the file cannot be read and `skip_broken` is set.

        Raises:
            ImageError: If the file cannot be read and `skip_broken` is not set.
        """
        path = results['img_path']
        try:
            with image_errors(path):
                image = read_image(path, max_pixels=None)  # large images are cropped later
        except ImageError as error:
            if not self.skip_broken:
                raise
            self._report(path, f'image skipped: {error}')
            return None
        # Decoders may return read-only arrays, but later steps write into the image.
        results['img'] = np.require(image if self.channel_order == 'rgb' else image[..., ::-1], requirements=['C', 'W'])
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        results['height'], results['width'] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
@dataclass(eq=False)
class UnSAMLoadMasks(BaseTransform):
    """Loads the ground truth of an image from its ``instances``, without decoding masks.

    Replaces `LoadAnnotations(with_bbox=True, with_mask=True)`, which decodes all masks of the image. Sets ``gt_masks``
    (`RleMasks`, with the scores in the file or 1), ``gt_bboxes`` (`HorizontalBoxes` of the masks),
    ``gt_bboxes_labels`` (N,) zeros, ``gt_ignore_flags`` (N,) bool, and with `at_original_size` also ``gt_areas``, a
    list of the areas in pixels of the masks that are not ignored, as stated in the file or counted. Degenerate
    polygons, empty masks, and instances without a mask are left out.

    Args:
        at_original_size: True if masks have the size of the original image even if the image was resized before, for
            test pipelines, whose metrics use the original size. If False, this step must come before any geometric
            step.
    """

    at_original_size: bool = False

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds the masks to `results`.

        Raises:
            UnSAMError: If the image was flipped, cropped or resized before, and `at_original_size` is False.
            StoreError: If a mask is malformed or of another size than the image.
        """
        if not self.at_original_size:
            check_not_transformed(results, type(self).__name__)
        height, width = results['ori_shape']
        name = results.get('img_name', results['img_path'])
        records = PolygonFilter(name)(
            [
                {'image_id': name, 'id': number, 'segmentation': one.get('mask')}
                for number, one in enumerate(results['instances'])
            ]
        )
        drawable = [results['instances'][record['id']] for record in records]
        try:
            masks = RleMasks(read_rles(records, (height, width)), height, width)
        except StoreError:
            raise
        except UnSAMError as error:
            raise StoreError(str(error)) from error
        drawn = masks.areas
        filled = np.flatnonzero(drawn)
        ignored = np.array([bool(drawable[i]['ignore_flag']) for i in filled], bool)
        masks.scores = np.array([one.get('score', 1.0) for one in drawable], np.float32)
        set_masks(results, masks[filled], ignored)
        if self.at_original_size:
            stated = np.array([drawable[i].get('area', np.nan) for i in filled], np.float64)
            results['gt_areas'] = np.where(np.isnan(stated), drawn[filled], stated)[~ignored].tolist()
        return results


@TRANSFORMS.register_module()
@dataclass(eq=False)
class UnSAMPlusMasks(BaseTransform):
    """Adds the pseudo-masks that do not overlap human masks: UnSAM+ during training.

    Must come after `UnSAMLoadMasks` and before geometric steps. Crowds count like other masks. If an image
    has no pseudo-masks, or they are damaged, only its human masks are used, and this is logged.

    Args:
        max_iou: Pseudo-masks with a larger IoU with any human mask are left out. Source: UnSAM, section 3.4.
        pseudo_masks_root: Folder written by ``python -m unsam_mm generate``; by default the value in the entry of the
            image, which `UnSAMSA1B` sets.

    Raises:
        UnSAMError: If `max_iou` is outside [0, 1].
    """

    max_iou: float = GROUND_TRUTH_IOU
    pseudo_masks_root: str = ''
    _report: LogOnce = field(default_factory=LogOnce, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.max_iou <= 1:
            raise UnSAMError(f'max_iou must lie in [0, 1], got {self.max_iou}')
        self.pseudo_masks_root = str(self.pseudo_masks_root)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds the pseudo-masks to `results`.

        Raises:
            UnSAMError: If no folder is given, the name of the image is unknown, or the image was flipped, cropped or
                resized before.
            StoreError: If the pseudo-masks have another size than the image.
        """
        check_not_transformed(results, type(self).__name__)
        root = self.pseudo_masks_root or results.get('pseudo_masks_root')
        if not root:
            raise UnSAMError('UnSAMPlusMasks needs a pseudo_masks_root; set it here or in the data set')
        store, name, human = PseudoMaskStore(root), image_name(results), results['gt_masks']
        if not store.has(name):
            self._report(name, f'{root}: no pseudo-masks for {name}; only human masks are used')
            return results
        try:
            pseudo = store.read(name, Path(results['img_path']))
        except StoreError as error:
            self._report(name, f'{error}; only human masks are used')
            return results
        check_size(pseudo, human.size_hw, name, root)
        kept = suppress_overlapping(pseudo, human.rles, self.max_iou)
        added = RleMasks(kept.rles, *human.size_hw, kept.scores)
        ignored = np.append(results['gt_ignore_flags'], np.zeros(len(added), bool))
        set_masks(results, RleMasks.cat([human, added]), ignored)
        return results


@TRANSFORMS.register_module()
@dataclass(eq=False)
class UnSAMCapMasks(BaseTransform):
    """Samples at most `max_masks` masks at random; crowds are neither counted nor removed.

    Should come after cropping, so that masks outside of the crop do not count. Uses NumPy's global random
    generator, as MMDetection's transforms do; the runner's ``randomness`` seeds it in each process.

    Args:
        max_masks: Maximum number of masks; 200 in UnSAM's paper, 500 in its released code.
        sampling: 'score': without replacement, with probabilities proportional to the scores of `RleMasks`. 'uniform':
            with equal probabilities, as in the paper and its released code.

    Raises:
        UnSAMError: If `max_masks` is not positive, or `sampling` is unknown.
    """

    max_masks: int = 200
    sampling: str = 'score'

    def __post_init__(self) -> None:
        if self.max_masks < 1:
            raise UnSAMError(f'max_masks must be positive, got {self.max_masks}')
        if self.sampling not in SAMPLINGS:
            raise UnSAMError(f'sampling must be one of {SAMPLINGS}, got {self.sampling!r}')

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Removes masks, boxes, labels and flags from `results`; the others keep their order."""
        ignored = results['gt_ignore_flags']
        counted = np.flatnonzero(~ignored)
        if len(counted) > self.max_masks:
            scores = getattr(results['gt_masks'], 'scores', None) if self.sampling == 'score' else None
            weights = np.ones(len(counted)) if scores is None else scores[counted]
            times = np.random.standard_exponential(len(counted))  # noqa: NPY002  (the generator that the runner seeds)
            drawn = counted[draw_without_replacement(weights, times, self.max_masks)]
            kept = np.sort(np.append(drawn, np.flatnonzero(ignored)))
            for key in _LABELS:
                results[key] = results[key][kept]
        return results


def draw_without_replacement(weights: np.ndarray, times: np.ndarray, count: int) -> np.ndarray:
    """Weighted sampling without replacement.

    Entries are sorted by exponential times divided by weights: the smallest of several independent exponential times
    belongs to an entry with a probability proportional to its rate. Source: Efraimidis and Spirakis, Weighted random
    sampling with a reservoir, 2006.

    Args:
        weights: (N,) non-negative; entries of weight 0 are drawn last.
        times: (N,) independent, exponentially distributed with mean 1.
        count: Number of entries to draw.

    Returns:
        (min(count, N),) indices, in the order of drawing.
    """
    with np.errstate(divide='ignore'):
        waits = times / np.maximum(weights, 0)
    return np.lexsort((times, waits))[:count]


def set_masks(results: dict[str, Any], masks: RleMasks, ignored: np.ndarray | None = None) -> None:
    """Sets masks, their boxes, labels 0 and the flags `ignored`, (N,) bool; by default none is ignored."""
    results['gt_masks'] = masks
    results['gt_bboxes'] = masks.get_bboxes('hbox')
    results['gt_bboxes_labels'] = np.zeros(len(masks), np.int64)
    results['gt_ignore_flags'] = np.zeros(len(masks), bool) if ignored is None else ignored


def check_size(masks: MaskSet, size_hw: Sequence[int], name: str, folder: str) -> None:
    """Raises `StoreError` if the pseudo-masks of an image in a folder have another size than the image."""
    if tuple(masks.size_hw) != tuple(size_hw):
        raise StoreError(
            f'{name}: pseudo-masks in {folder} are {masks.size_hw[0]} x {masks.size_hw[1]} px, '
            f'the image is {size_hw[0]} x {size_hw[1]}; generate them again with --overwrite'
        )


def check_not_transformed(results: dict[str, Any], step: str) -> None:
    """Raises `UnSAMError` if the image was flipped or resized, so that masks of the original image do not fit."""
    if results.get('flip') or tuple(results['img_shape']) != tuple(results['ori_shape']):
        raise UnSAMError(
            f'{results["img_path"]}: flipped or resized before {step}, so masks would not match; move this step before the geometric '
            'transforms, or set at_original_size=True in a test pipeline'
        )


@TRANSFORMS.register_module()
@dataclass(eq=False)
class UnSAMClickPrompts(BaseTransform):
    """Adds one click for each object of an image, at the pixel farthest from its boundary; see `centre_of`.

    Must be the last step of a test pipeline, after `PackDetInputs`, with masks at the original size, as from
    `UnSAMLoadMasks(at_original_size=True)`. Sets `prompts` of the data sample for `UnSAMPromptHead` and
    `UnSAMPromptIoUMetric`: `points` (P, 2) float32, x, y of the pixel centre in the original image, and `targets` (P,)
    int64, index of the object in `gt_instances`. Crowds and empty objects have no prompt.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds the prompts to the data sample in `results`.

        Raises:
            UnSAMError: If there is no data sample with masks, or they are not of the original image's size.
        """
        sample = results.get('data_samples')
        masks = sample.gt_instances.get('masks') if sample is not None and 'gt_instances' in sample else None
        if not isinstance(masks, BaseInstanceMasks):
            raise UnSAMError(
                'UnSAMClickPrompts found no data sample with masks; load them with UnSAMLoadMasks(at_original_size=True) '
                'and put PackDetInputs before this step'
            )
        size_hw = tuple(sample.metainfo['ori_shape'][:2])
        if (masks.height, masks.width) != size_hw:
            raise UnSAMError(
                f'{sample.metainfo.get("img_path")}: masks are {masks.height} x {masks.width} px, the original image '
                f'{size_hw[0]} x {size_hw[1]}; load them with UnSAMLoadMasks(at_original_size=True)'
            )
        centres = [centre_of(mask.astype(bool)) for mask in masks]  # decoded one at a time
        targets = [number for number, centre in enumerate(centres) if centre is not None]
        points = np.array([centres[number] for number in targets], np.float32).reshape(-1, 2) + 0.5
        sample.prompts = InstanceData(points=torch.from_numpy(points), targets=torch.tensor(targets, dtype=torch.long))
        return results
