"""Pipeline steps that load, merge and sample the masks of an image, as RLEs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmengine.logging import print_log

from unsam_mm.coco_files.segmentations import PolygonFilter, read_rles
from unsam_mm.datasets.image_folder import image_name
from unsam_mm.datasets.rle_masks import RleMasks
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.folders.merge import GROUND_TRUTH_IOU, without_overlap
from unsam_mm.folders.store import PseudoMaskStore

_LABELS = ('gt_masks', 'gt_bboxes', 'gt_bboxes_labels', 'gt_ignore_flags')
SAMPLINGS = ('score', 'uniform')


@TRANSFORMS.register_module()
class UnSAMLoadMasks(BaseTransform):
    """Loads the ground truth of an image from its ``instances``, without decoding masks.

    Replaces `LoadAnnotations(with_bbox=True, with_mask=True)`, which decodes all masks of the image. Sets ``gt_masks``
    (`RleMasks`, with the scores in the file, or 1), ``gt_bboxes`` (`HorizontalBoxes` of the masks),
    ``gt_bboxes_labels`` (N,) zeros, ``gt_ignore_flags`` (N,) bool, and with `at_original_size` also ``gt_areas``, a
    list of the areas in pixels of the masks that are not ignored, as stated in the file or counted. Degenerate
    polygons, empty masks, and instances without a mask are left out.

    Args:
        at_original_size: Whether masks have the size of the original image even if the image was resized before. For
            test pipelines, whose metrics use the original size. Otherwise this step must come before any geometric
            step.
    """

    def __init__(self, at_original_size: bool = False) -> None:
        self.at_original_size = at_original_size

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds the masks to `results`.

        Raises:
            UnSAMError: If the image was flipped, cropped or resized before.
            StoreError: If a mask is malformed or of another size than the image.
        """
        if not self.at_original_size:
            check_untouched(results, type(self).__name__)
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

    def __repr__(self) -> str:
        return f'{type(self).__name__}(at_original_size={self.at_original_size})'


@TRANSFORMS.register_module()
class UnSAMPlusMasks(BaseTransform):
    """Adds pseudo-masks that overlap no human mask of an image: UnSAM+, during training.

    Must come after `UnSAMLoadMasks` and before geometric steps. Crowds count like other masks. An image without
    pseudo-masks, or with damaged ones, keeps its human masks and is logged.

    Args:
        max_iou: Pseudo-masks with a larger IoU with any human mask are left out. Source: UnSAM, section 3.4.
        pseudo_masks_root: Folder written by ``python -m unsam_mm generate``; by default that of the data set.

    Raises:
        UnSAMError: If `max_iou` is outside [0, 1].
    """

    def __init__(self, max_iou: float = GROUND_TRUTH_IOU, pseudo_masks_root: str = '') -> None:
        if not 0 <= max_iou <= 1:
            raise UnSAMError(f'max_iou must lie in [0, 1], got {max_iou}')
        self.max_iou = max_iou
        self.pseudo_masks_root = str(pseudo_masks_root)
        self._reported: set[str] = set()

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds the pseudo-masks to `results`.

        Raises:
            UnSAMError: If no folder is given, or the image was flipped, cropped or resized before.
            StoreError: If the pseudo-masks have another size than the image.
        """
        check_untouched(results, type(self).__name__)
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
        if tuple(pseudo.size_hw) != human.size_hw:
            raise StoreError(
                f'{name}: pseudo-masks in {root} are {pseudo.size_hw[0]} x {pseudo.size_hw[1]} px, '
                f'the image is {human.size_hw[0]} x {human.size_hw[1]}; generate them again with --overwrite'
            )
        apart = without_overlap(pseudo, human.rles, self.max_iou)
        added = RleMasks(apart.rles, *human.size_hw, apart.scores)
        ignored = np.append(results['gt_ignore_flags'], np.zeros(len(added), bool))
        set_masks(results, RleMasks.cat([human, added]), ignored)
        return results

    def _report(self, name: str, message: str) -> None:
        if name not in self._reported:
            self._reported.add(name)
            print_log(message, 'current', logging.WARNING)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(max_iou={self.max_iou}, pseudo_masks_root={self.pseudo_masks_root!r})'


@TRANSFORMS.register_module()
class UnSAMCapMasks(BaseTransform):
    """Samples at most `max_masks` masks at random; crowds do not count and are kept.

    Should come after cropping, so that masks outside of the crop do not count. Uses NumPy's global generator, as
    MMDetection's transforms, which the runner's ``randomness`` seeds in each process.

    Args:
        max_masks: Maximum number of masks; 200 in UnSAM's paper, 500 in its released code.
        sampling: 'score': without replacement, with probabilities proportional to the scores of `RleMasks`. 'uniform':
            with equal probabilities, as in the paper and its released code.

    Raises:
        UnSAMError: If `max_masks` is not positive, or `sampling` is unknown.
    """

    def __init__(self, max_masks: int = 200, sampling: str = 'score') -> None:
        if max_masks < 1:
            raise UnSAMError(f'max_masks must be positive, got {max_masks}')
        if sampling not in SAMPLINGS:
            raise UnSAMError(f'sampling must be one of {SAMPLINGS}, got {sampling!r}')
        self.max_masks = max_masks
        self.sampling = sampling

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

    def __repr__(self) -> str:
        return f'{type(self).__name__}(max_masks={self.max_masks}, sampling={self.sampling!r})'


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


def check_untouched(results: dict[str, Any], step: str) -> None:
    """Raises `UnSAMError` if the image was flipped or resized, so that masks of the original image do not fit."""
    if results.get('flip') or tuple(results['img_shape']) != tuple(results['ori_shape']):
        raise UnSAMError(
            f'{results["img_path"]}: flipped or resized before {step}, so masks would not fit; move it before the geometric '
            'transforms, or set at_original_size=True in a test pipeline'
        )
