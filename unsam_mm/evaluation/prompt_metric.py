"""IoU of prompted masks as an MMEngine metric; see `unsam_mm.evaluation.prompt_iou`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.logging import MMLogger

from unsam_mm._mmcv_ops import ensure_mmcv_ops
from unsam_mm.errors import UnSAMError
from unsam_mm.evaluation.coco_metric import ImageMetric, to_numpy, to_rles
from unsam_mm.evaluation.prompt_iou import (
    NOC_IOUS,
    SegmentIoUs,
    format_prompt_table,
    mask_ious,
    max_and_oracle,
    summarize,
)
from unsam_mm.masks.rle import decode_rles, rle_from_json, rles_from_json

ensure_mmcv_ops()

from mmdet.registry import METRICS


@METRICS.register_module()
class UnSAMPromptIoUMetric(ImageMetric):
    """Max and Oracle IoU of prompted masks: the results of `summarize` with the prefix ``prompt/``.

    Each data sample has ``gt_instances`` with T ``masks``, without crowds, and ``pred_prompts`` with the predictions of
    P prompts:

    - ``masks``: P entries, each a list of RLEs, or a boolean tensor or array (C, H, W).
    - ``scores``: P entries of C numbers.
    - ``targets``: (P,) index of the ground-truth mask of each prompt; by default 0, 1, ...
    - ``clicks``: (P,) number of clicks of each prompt, from 1; by default 1.

    Ground-truth masks without a prompt do not count. If there are fewer than `n_clicks` clicks for a mask, because
    it has no error left, its last IoU is repeated.

    Only the IoUs stay in memory. Each process measures its own images; an image that was processed several times counts
    once.

    Args:
        n_clicks: Maximum number of clicks; prompts with more clicks are ignored.
        noc_ious: IoU thresholds of the number of clicks, used if `n_clicks` is above 1.
        collect_device: Device to collect the results of several processes: 'cpu' or 'gpu'.
        prefix: Prefix of the names, by default 'prompt'.
        collect_dir: Folder shared by the processes, for `collect_device` 'cpu'.

    Raises:
        UnSAMError: If `n_clicks` is not positive.
    """

    default_prefix = 'prompt'

    def __init__(
        self,
        n_clicks: int = 1,
        noc_ious: Sequence[float] = NOC_IOUS,
        collect_device: str = 'cpu',
        prefix: str | None = None,
        collect_dir: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix, collect_dir=collect_dir)
        if n_clicks < 1:
            raise UnSAMError(f'n_clicks must be at least 1, got {n_clicks}')
        self.n_clicks = n_clicks
        self.noc_ious = tuple(noc_ious)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Computes the IoUs of a batch.

        Args:
            data_batch: Not used.
            data_samples: Dictionaries of `DetDataSample`; see the class.

        Raises:
            UnSAMError: If a field is missing, or fields do not match in number or size.
        """
        for sample in data_samples:
            self.results.append({'image_id': sample['img_id'], 'ious': self._measure(sample)})

    def compute_metrics(self, results: list[dict[str, Any]]) -> dict[str, float]:
        """Means over all segments.

        Raises:
            UnSAMError: If no segment was prompted.
        """
        ious = SegmentIoUs.join([tuple(result['ious']) for result in self.unique(results)], self.n_clicks)
        figures = summarize(ious, self.noc_ious)
        MMLogger.get_current_instance().info(
            'prompted masks, IoU in percent:\n%s', format_prompt_table({self.prefix or '': figures})
        )
        return figures

    def _measure(self, sample: Mapping[str, Any]) -> np.ndarray:
        """(2, S, K) Max and Oracle IoU of the S ground-truth masks that have prompts."""
        name = f'image {sample["img_id"]}'
        if 'pred_prompts' not in sample or 'masks' not in sample.get('gt_instances', {}):
            raise UnSAMError(f'{name}: the data sample needs pred_prompts, and gt_instances with masks')
        predicted = sample['pred_prompts']
        truths = to_rles(sample['gt_instances']['masks'])
        n_prompts = len(predicted['masks'])
        targets = np.asarray(to_numpy(predicted.get('targets', np.arange(n_prompts))), np.int64)
        clicks = np.asarray(to_numpy(predicted.get('clicks', np.ones(n_prompts))), np.int64)
        lengths = {'scores': len(predicted['scores']), 'targets': len(targets), 'clicks': len(clicks)}
        if set(lengths.values()) != {n_prompts}:
            raise UnSAMError(f'{name}: {n_prompts} prompts have masks, but there are {lengths}; expected one of each')
        if n_prompts and not (targets.min() >= 0 and targets.max() < len(truths) and clicks.min() >= 1):
            raise UnSAMError(
                f'{name}: targets must be indices of the {len(truths)} ground-truth masks and clicks start at 1, got '
                f'targets up to {targets.max()} and clicks from {clicks.min()}'
            )
        ious = np.full((2, len(truths), self.n_clicks), np.nan)
        for masks, scores, target, click in zip(predicted['masks'], predicted['scores'], targets, clicks, strict=True):
            if click <= self.n_clicks:
                mask_set_ious = _ious_with(masks, truths[target], name)
                ious[:, target, click - 1] = max_and_oracle(mask_set_ious, to_numpy(scores))
        return _filled(ious, name)


def _ious_with(masks: Any, truth: Mapping[str, Any], name: str) -> np.ndarray:
    """(C,) IoU of the masks of one prompt with the ground truth."""
    rles = rles_from_json(to_rles(masks))
    truth = rle_from_json(truth)
    size_hw = tuple(truth['size'])
    if wrong := {tuple(rle['size']) for rle in rles} - {size_hw}:
        raise UnSAMError(
            f'{name}: predicted masks are {sorted(wrong)} px, ground-truth masks {size_hw} px; both need the same size'
        )
    return mask_ious(decode_rles(rles, size_hw), decode_rles([truth], size_hw)[0])


def _filled(ious: np.ndarray, name: str) -> np.ndarray:
    """The IoUs of ground-truth masks that have prompts; the IoU after the last click is repeated."""
    prompted = ious[:, ~np.isnan(ious[0]).all(axis=1)]
    if np.isnan(prompted[..., 0]).any():
        raise UnSAMError(
            f'{name}: a ground-truth mask has a prompt with several clicks but none with one; '
            'give the prompts from the first click on'
        )
    for k in range(1, prompted.shape[-1]):
        absent = np.isnan(prompted[..., k])
        prompted[..., k][absent] = prompted[..., k - 1][absent]
    return prompted
