"""Class-agnostic mask recall and precision as an MMEngine metric; see `unsam_mm.evaluation.average_recall`."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from unsam_mm._mmcv_ops import ensure_mmcv_ops
from unsam_mm.coco_files.ground_truth import load_ground_truth
from unsam_mm.errors import UnSAMError
from unsam_mm.evaluation.average_recall import AREA_RANGES, ENGINES, MAX_DETS, Protocol, evaluate_masks, format_table
from unsam_mm.evaluation.matching import Record, group_by_image
from unsam_mm.files import atomic_writer
from unsam_mm.masks.rle import Rle, encode_bitmaps, rles_from_json

ensure_mmcv_ops()

from mmdet.registry import METRICS
from mmdet.structures.mask import BaseInstanceMasks


def to_rles(masks: Any) -> list[Rle]:
    """RLEs of N masks: a list of RLEs, an (N, H, W) tensor or array, or MMDetection's masks.

    Raises:
        UnSAMError: If the masks are of another type.
    """
    if isinstance(masks, BaseInstanceMasks):
        if hasattr(masks, 'rles'):
            return list(masks.rles)
        return encode_bitmaps(masks.to_ndarray())
    if isinstance(masks, (list, tuple)) and all(isinstance(mask, Mapping) and 'counts' in mask for mask in masks):
        return list(masks)
    bitmaps = to_numpy(masks)
    if getattr(bitmaps, 'ndim', 0) != 3:
        raise UnSAMError(
            f'masks must be a list of RLEs, an (N, H, W) tensor or BitmapMasks, got {type(masks).__name__}'
        )
    return encode_bitmaps(bitmaps)


def to_numpy(values: Any) -> Any:
    """Converts tensors to arrays; returns other values unchanged."""
    return values.detach().cpu().numpy() if hasattr(values, 'detach') else values


def result_records(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the COCO result records of one image.

    Args:
        result: ``image_id``, ``size_hw``, and the ``counts`` and ``scores`` of N masks.
    """
    for counts, score in zip(result['counts'], result['scores'].tolist(), strict=True):
        rle = {'size': list(result['size_hw']), 'counts': counts.decode('ascii')}
        yield {'image_id': result['image_id'], 'category_id': 1, 'segmentation': rle, 'score': score}


def write_results(path: str | Path, results: Sequence[Mapping[str, Any]]) -> int:
    """Writes a list of COCO result records atomically, one image at a time.

    Args:
        path: The file.
        results: See `result_records`.

    Returns:
        The number of records.

    Raises:
        StoreError: If the file cannot be written.
    """
    n_records = 0
    with atomic_writer(path) as file:
        file.write('[')
        for result in results:
            for record in result_records(result):
                file.write(',\n' if n_records else '\n')
                json.dump(record, file, separators=(',', ':'))
                n_records += 1
        file.write('\n]\n')
    return n_records


class ImageMetric(BaseMetric):
    """A metric whose results have an ``image_id``; an image that was processed several times counts once."""

    def evaluate(self, size: int) -> dict[str, float]:
        """The figures of the images of all processes.

        Args:
            size: Number of images; not used. MMEngine would drop the results beyond this number as padding, but here
                image ids show which results are repeated.
        """
        return super().evaluate(sys.maxsize)

    @staticmethod
    def unique(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """One result for each image, sorted by id."""
        by_id = {result['image_id']: result for result in results}
        return [by_id[image_id] for image_id in sorted(by_id)]


@METRICS.register_module()
class UnSAMCocoMetric(ImageMetric):
    """AR@k, AR by size, and AP of masks, with all categories as one; values in [0, 1] with the prefix ``unsam/``.

    The ground truth is `ann_file` if given, else ``gt_instances`` and ``ignored_instances`` (as crowds) of each data
    sample. Load these after resizing in the test pipeline, so that they have the size of the original image. If a
    sample has ``gt_areas``, (N,) areas of its ``gt_instances`` in pixels as stated in their file, these decide about
    small, medium and large objects, as in COCO.

    Each image is matched as soon as it is predicted, and only its matches stay in memory: 10 kB for 1000 masks. The
    predictions stay in memory as RLEs if they are to be written or evaluated by a toolbox. Each process matches
    its own images; an image that was processed several times counts once.

    Only processed images count; with `ann_file`, the log has the number of the others.

    Args:
        ann_file: COCO file whose image ids are the ``img_id`` of the data samples.
        max_dets: Maximum numbers of predictions of an image, best scores first; AP uses the largest.
        area_ranges: Smallest and largest area in pixels, by name.
        engine: 'unsam', or a toolbox, which computes the same figures at the end of the run; see `evaluate_masks`.
        outfile_prefix: Predictions are written to ``<outfile_prefix>.segm.json``, a list of COCO results.
        collect_device: Device to collect the results of several processes: 'cpu' or 'gpu'.
        prefix: Prefix of the names, by default 'unsam'.
        collect_dir: Folder shared by the processes, for `collect_device` 'cpu'.

    Raises:
        UnSAMError: If the engine is unknown, or one of `max_dets` is not positive.
        StoreError: If `ann_file` cannot be read.
    """

    default_prefix = 'unsam'

    def __init__(
        self,
        ann_file: str | None = None,
        max_dets: Sequence[int] = MAX_DETS,
        area_ranges: Mapping[str, tuple[float, float]] = AREA_RANGES,
        engine: str = 'unsam',
        outfile_prefix: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        if engine not in ENGINES:
            raise UnSAMError(f'engine must be one of {", ".join(ENGINES)}, got {engine!r}')
        self.protocol = Protocol(max_dets, area_ranges)
        self.engine = engine
        self.outfile_prefix = outfile_prefix
        # Read now, since a wrong path should fail before hours of training.
        truth = load_ground_truth(ann_file) if ann_file else None
        self.images = {image['id']: image for image in truth['images']} if truth else None
        self.truths = group_by_image(truth['annotations'], self.images, 'ground-truth annotation') if truth else {}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Matches the images of a batch.

        Args:
            data_batch: Not used.
            data_samples: Dictionaries of `DetDataSample`. ``pred_instances`` has ``scores`` (N,) and ``masks``: N RLEs,
                a boolean tensor or array (N, H, W), or `BitmapMasks`, at the size of the original image.

        Raises:
            UnSAMError: If masks are of another type or size, or ground truth is missing.
        """
        for sample in data_samples:
            predictions, truths, size_hw = self._read_sample(sample)
            result = {'image_id': sample['img_id'], 'size_hw': size_hw}
            if self.engine == 'unsam':
                result['match'] = self.protocol.match_image(predictions, truths, size_hw)
            elif self.images is None:
                result['truths'] = truths
            if self.engine != 'unsam' or self.outfile_prefix:
                # Not the dictionaries of RLEs and records, which need several times the memory.
                rles = rles_from_json([record['segmentation'] for record in predictions])
                result['counts'] = [rle['counts'] for rle in rles]
                result['scores'] = np.array([record['score'] for record in predictions], np.float64)
            self.results.append(result)

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Evaluates the predictions, and writes them if `outfile_prefix` is set.

        Raises:
            UnSAMError: If there is no ground truth.
            StoreError: If the predictions cannot be written.
        """
        logger = MMLogger.get_current_instance()
        results = self.unique(results)
        if self.images is not None and len(results) < len(self.images):
            listed = len(self.images)
            logger.warning('%d of the %d images of ann_file were tested; the others do not count', len(results), listed)
        if self.outfile_prefix:
            n_masks = write_results(f'{self.outfile_prefix}.segm.json', results)
            logger.info('%d predictions written to %s.segm.json', n_masks, self.outfile_prefix)
        metrics = self._summarize(results)
        logger.info('class-agnostic masks, %d images, percent:\n%s', len(results), format_table(metrics))
        return metrics

    def _read_sample(self, sample: Mapping[str, Any]) -> tuple[list[Record], list[Record], tuple[int, int]]:
        """Predictions and truths as COCO records, and the height and width of the image."""
        image_id, predicted = sample['img_id'], sample['pred_instances']
        scores = np.asarray(to_numpy(predicted['scores']), np.float64)
        rles = to_rles(predicted['masks'])
        if len(scores) != len(rles):
            raise UnSAMError(f'image {image_id}: {len(rles)} masks but {len(scores)} scores')
        predictions = [
            {'image_id': image_id, 'segmentation': rle, 'score': score}
            for rle, score in zip(rles, scores.tolist(), strict=True)
        ]
        size_hw = tuple(int(side) for side in sample['ori_shape'][:2])
        if self.images is None:
            return predictions, _truths_of(sample), size_hw
        if image_id not in self.images:
            raise UnSAMError(
                f'image {image_id} is not among the {len(self.images)} of ann_file; give the data set the same file'
            )
        return predictions, self.truths.get(image_id, []), size_hw

    def _summarize(self, results: Sequence[dict[str, Any]]) -> dict[str, float]:
        if self.engine == 'unsam':
            return self.protocol.summarize([result['match'] for result in results])
        images = [{'id': r['image_id'], 'height': r['size_hw'][0], 'width': r['size_hw'][1]} for r in results]
        truths = (r['truths'] if self.images is None else self.truths.get(r['image_id'], []) for r in results)
        ground_truth = {'images': images, 'annotations': list(chain.from_iterable(truths))}
        predictions = list(chain.from_iterable(map(result_records, results)))
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='.*have no prediction')  # of images in which nothing was found
            return evaluate_masks(
                predictions, ground_truth, self.protocol.max_dets, self.protocol.area_ranges, self.engine
            )


def _truths_of(sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ground truth of a data sample as COCO annotations; ignored instances become crowds."""
    if 'masks' not in sample.get('gt_instances', {}):
        raise UnSAMError(
            f'image {sample["img_id"]}: the data sample has no ground-truth masks; set ann_file in UnSAMCocoMetric, '
            'or load masks in the test pipeline'
        )
    image_id = sample['img_id']
    truths, crowds = (
        [{'image_id': image_id, 'segmentation': rle, 'iscrowd': is_crowd} for rle in to_rles(masks)]
        for is_crowd, masks in (
            (0, sample['gt_instances']['masks']),
            (1, sample.get('ignored_instances', {}).get('masks', [])),
        )
    )
    areas = sample.get('gt_areas')
    if areas is not None:
        if len(areas) != len(truths):
            raise UnSAMError(
                f'image {image_id}: {len(areas)} gt_areas but {len(truths)} ground-truth masks; load the masks after '
                'all steps that change or remove masks'
            )
        for truth, area in zip(truths, areas, strict=True):
            truth['area'] = area
    return truths + crowds
