"""Class-agnostic mask recall and precision as an MMEngine metric; see `unsam_mm.evaluation.average_recall`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from unsam_mm._mmcv_ops import ensure_mmcv_ops
from unsam_mm.errors import UnSAMError
from unsam_mm.evaluation.annotations import load_ground_truth
from unsam_mm.evaluation.average_recall import AREA_RANGES, evaluate_masks, format_table
from unsam_mm.files import write_json
from unsam_mm.rle import Rle, encode_bitmaps, rle_to_json

ensure_mmcv_ops()

from mmdet.registry import METRICS  # noqa: E402  (mmdet imports only once the ops are there)
from mmdet.structures.mask import BitmapMasks, PolygonMasks  # noqa: E402


@METRICS.register_module()
class UnSAMCocoMetric(BaseMetric):
    """AR@k, AR by size, and AP of masks, all categories as one; values in [0, 1] under the prefix ``unsam/``.

    The ground truth is `ann_file` where given, else the ``gt_instances`` and ``ignored_instances`` (taken as crowds)
    of each data sample. Load those after the resizing of the test pipeline, so that they keep the size of the
    original image, at which areas are measured.

    Only images that were run count; with `ann_file`, a log line says how many others it lists.

    Args:
        ann_file: COCO file whose image ids are the ``img_id`` of the data samples.
        max_dets: How many of the best-scored predictions of an image are looked at; AP uses the largest.
        area_ranges: Name to (smallest, largest) area in pixels.
        outfile_prefix: Where to write the predictions: ``<outfile_prefix>.segm.json``, a list of COCO results.
        collect_device: Device on which the results of several processes are joined: 'cpu' or 'gpu'.
        prefix: Put before each name, by default 'unsam'.
        collect_dir: Folder shared by the processes, for `collect_device` 'cpu'.
    """

    default_prefix = 'unsam'

    def __init__(
        self,
        ann_file: str | None = None,
        max_dets: Sequence[int] = (1, 10, 100, 1000),
        area_ranges: Mapping[str, tuple[float, float]] = AREA_RANGES,
        outfile_prefix: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        self.max_dets = tuple(max_dets)
        self.area_ranges = dict(area_ranges)
        self.outfile_prefix = outfile_prefix
        # Read now: a wrong path should fail before hours of training, not after.
        self.ground_truth = load_ground_truth(ann_file) if ann_file else None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Keeps one entry an image, as run lengths.

        Args:
            data_batch: Not used.
            data_samples: Dictionaries of `DetDataSample`. ``pred_instances`` holds ``scores`` (N,) and ``masks``: N
                RLEs, a boolean tensor or array (N, H, W), or `BitmapMasks`, all at the size of the original image.

        Raises:
            UnSAMError: If masks have another form, or ground truth is missing.
        """
        for sample in data_samples:
            predicted = sample['pred_instances']
            scores = np.asarray(_to_numpy(predicted['scores']), np.float64)
            rles = _to_rles(predicted['masks'])
            if len(scores) != len(rles):
                raise UnSAMError(f'image {sample["img_id"]}: {len(rles)} masks but {len(scores)} scores')
            self.results.append(
                {
                    'image_id': sample['img_id'],
                    'size_hw': tuple(int(side) for side in sample['ori_shape'][:2]),
                    'masks': [rle_to_json(rle) for rle in rles],
                    'scores': scores.tolist(),
                    'truths': None if self.ground_truth else _truths_of(sample),
                }
            )

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Writes the predictions if asked to, and evaluates them.

        Raises:
            UnSAMError: If there is no ground truth for the images, or the masks do not fit it.
            StoreError: If the predictions cannot be written.
        """
        logger = MMLogger.get_current_instance()
        predictions = [
            {'image_id': result['image_id'], 'category_id': 1, 'segmentation': rle, 'score': score}
            for result in results
            for rle, score in zip(result['masks'], result['scores'], strict=True)
        ]
        if self.outfile_prefix:
            path = f'{self.outfile_prefix}.segm.json'
            write_json(path, predictions)
            logger.info('%d predictions written to %s', len(predictions), path)
        metrics = evaluate_masks(predictions, self._ground_truth_of(results, logger), self.max_dets, self.area_ranges)
        logger.info('class-agnostic masks, %d images, percent:\n%s', len(results), format_table(metrics))
        return metrics

    def _ground_truth_of(self, results: list[dict[str, Any]], logger: MMLogger) -> dict[str, Any]:
        if self.ground_truth is None:
            images = [{'id': r['image_id'], 'height': r['size_hw'][0], 'width': r['size_hw'][1]} for r in results]
            return {'images': images, 'annotations': [truth for result in results for truth in result['truths']]}
        seen = {result['image_id'] for result in results}
        images = [image for image in self.ground_truth['images'] if image['id'] in seen]
        if len(images) < len(self.ground_truth['images']):
            listed = len(self.ground_truth['images'])
            logger.warning('%d of the %d images of ann_file were run; the others do not count', len(images), listed)
        return {'images': images, 'annotations': [a for a in self.ground_truth['annotations'] if a['image_id'] in seen]}


def _truths_of(sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ground truth of one data sample as COCO annotations; ignored instances become crowds."""
    if 'masks' not in sample.get('gt_instances', {}):
        raise UnSAMError(
            f'image {sample["img_id"]}: the data sample has no ground-truth masks; set ann_file in UnSAMCocoMetric, '
            'or load masks in the test pipeline'
        )
    return [
        {'image_id': sample['img_id'], 'segmentation': rle_to_json(rle), 'iscrowd': is_crowd}
        for key, is_crowd in (('gt_instances', 0), ('ignored_instances', 1))
        for rle in _to_rles(sample.get(key, {}).get('masks', []))
    ]


def _to_rles(masks: Any) -> list[Rle]:
    """Run lengths of N masks given as RLEs, (N, H, W) tensor or array, `BitmapMasks` or `PolygonMasks`."""
    if isinstance(masks, (BitmapMasks, PolygonMasks)):
        return encode_bitmaps(masks.to_ndarray())
    if isinstance(masks, (list, tuple)) and all(isinstance(mask, Mapping) and 'counts' in mask for mask in masks):
        return list(masks)
    bitmaps = _to_numpy(masks)
    if getattr(bitmaps, 'ndim', 0) != 3:
        raise UnSAMError(
            f'masks must be a list of RLEs, an (N, H, W) tensor or BitmapMasks, got {type(masks).__name__}'
        )
    return encode_bitmaps(bitmaps)


def _to_numpy(values: Any) -> Any:
    return values.detach().cpu().numpy() if hasattr(values, 'detach') else values
