"""The matching and the losses of Mask2Former, with mask logits for matched queries only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from mmdet.models.task_modules.assigners import BaseAssigner, CrossEntropyLossCost, HungarianAssigner
from mmdet.registry import TASK_UTILS
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.functional import softplus

from unsam_mm.models.mask_ops import BitMasks, PointSampling, logits_at, losses_at_points, sample_at_random

_WORST_COST = 1e5
"""Far above any actual cost (weighted sums of costs are below about 1e3); sums of several are still finite."""

_CHUNK_VALUES = 2**22
"""Values of predictions in each chunk of a cost: 16 MB, 334 predictions at the paper's 12544 points."""


class _FiniteCost:
    """A match cost in float32, computed in chunks, with NaN and infinity replaced by a large finite cost."""

    def __init__(self, cost: Any) -> None:
        self.cost = _cross_entropy(cost.weight) if type(cost) is CrossEntropyLossCost else cost

    def __call__(self, pred_instances: InstanceData, gt_instances: InstanceData, **others: Any) -> Tensor:
        values = max(field[0].numel() for field in pred_instances.values())
        step = max(1, _CHUNK_VALUES // values)
        chunks = [pred_instances[start : start + step] for start in range(0, len(pred_instances), step)]
        costs = [self.cost(pred_instances=chunk, gt_instances=gt_instances, **others).float() for chunk in chunks]
        return torch.nan_to_num(torch.cat(costs), nan=_WORST_COST, posinf=_WORST_COST, neginf=-_WORST_COST)


def _cross_entropy(weight: float) -> Callable[..., Tensor]:
    """`CrossEntropyLossCost` with one matrix product instead of two: entropy is softplus(logit) - logit * truth."""

    def cost(pred_instances: InstanceData, gt_instances: InstanceData, **unused: Any) -> Tensor:
        logits, truth = pred_instances.masks.flatten(1).float(), gt_instances.masks.flatten(1).float()
        return (softplus(logits).sum(1, keepdim=True) - logits @ truth.T) * (weight / logits.shape[1])

    return cost


@TASK_UTILS.register_module()
class UnSAMHungarianAssigner(HungarianAssigner):
    """`HungarianAssigner` with finite costs, in chunks.

    In half precision the mask costs of large images may overflow, and SciPy's solver then fails with "matrix contains
    invalid numeric entries". Here such a prediction is matched last.

    Args:
        match_costs: Configs of the costs, which are summed.
    """

    def __init__(self, match_costs: list[dict]) -> None:
        super().__init__(match_costs)
        self.match_costs = [_FiniteCost(cost) for cost in self.match_costs]


@dataclass(frozen=True)
class PointCriterion:
    """Matches queries and masks at random points, and computes mask losses at uncertain points.

    MMDetection computes (Q, h, w) logits after every decoder layer and stores them for the backward pass: 5 GB for 2000
    queries and an image of 1024 x 1024. Here logits are computed only at points, as the product of the embeddings with
    the mask feature at the point, and only for matched queries, since others have no mask losses. The losses equal
    MMDetection's up to rounding, except that the matching points of an image are the same in all layers, so its masks
    are sampled once.

    Attributes:
        assigner: Matches queries and masks.
        loss_cls: MMDetection's loss for (n, 2) class logits.
        loss_mask: MMDetection's loss for (n,) logits of points.
        loss_dice: MMDetection's loss for (n, P) logits of points.
        class_weight: Weights of (object, no object).
        sampling: How the points of the mask losses are drawn; the number of matching points is the same.
        drop_iou: Pairs with at most this IoU at the points have no mask losses (DropLoss); None disables DropLoss.
    """

    assigner: BaseAssigner
    loss_cls: Callable[..., Tensor]
    loss_mask: Callable[..., Tensor]
    loss_dice: Callable[..., Tensor]
    class_weight: Sequence[float]
    sampling: PointSampling
    drop_iou: float | None

    def __call__(
        self, predictions: list[tuple[Tensor, Tensor]], mask_feature: Tensor, targets: list[BitMasks]
    ) -> list[dict[str, Tensor]]:
        """The losses `loss_cls`, `loss_mask` and `loss_dice` of every layer.

        Args:
            predictions: (B, Q, 2) class logits and (B, Q, C) mask embeddings after each layer.
            mask_feature: (B, C, h, w).
            targets: Masks of each image of the batch.
        """
        num_points = self.sampling.num_points
        images = [sample_at_random(*pair, num_points) for pair in zip(mask_feature, targets, strict=True)]
        n_matched = sum(min(len(masks), predictions[0][0].shape[1]) for masks in targets)
        # All layers divide their mask losses by this mean over the processes.
        n_masks = reduce_mean(torch.tensor(float(n_matched), device=mask_feature.device)).clamp(min=1)
        return [self._layer(*prediction, mask_feature, targets, images, n_masks) for prediction in predictions]

    def _layer(
        self,
        cls_logits: Tensor,
        embeds: Tensor,
        mask_feature: Tensor,
        targets: list[BitMasks],
        images: list[tuple[Tensor, Tensor]],
        n_masks: Tensor,
    ) -> dict[str, Tensor]:
        pairs = [self._match(*image) for image in zip(cls_logits, embeds, images, strict=True)]
        labels = cls_logits.new_ones(cls_logits.shape[:2], dtype=torch.long)
        for image_labels, (queries, _) in zip(labels, pairs, strict=True):
            image_labels[queries] = 0
        flat = labels.flatten()
        weight_sum = torch.tensor(self.class_weight, device=flat.device)[flat].sum()
        loss_cls = self.loss_cls(cls_logits.flatten(0, 1), flat, torch.ones_like(flat), avg_factor=weight_sum)
        chunks = [
            losses
            for embed, feature, masks, (queries, objects) in zip(embeds, mask_feature, targets, pairs, strict=True)
            for losses in self._mask_losses(embed[queries], feature, masks[objects], n_masks)
        ]
        loss_mask, loss_dice = (torch.stack(parts).sum() for parts in zip(*chunks, strict=True))
        return {'loss_cls': loss_cls, 'loss_mask': loss_mask, 'loss_dice': loss_dice}

    @torch.no_grad()
    def _match(self, cls_logits: Tensor, embed: Tensor, at_points: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(n,) indices of the matched queries of an image, ascending, and of their masks; costs are in float32.

        Args:
            cls_logits: (Q, 2).
            embed: (Q, C) mask embeddings.
            at_points: (C, P) mask feature and (N, P) masks.
        """
        feature, masks = at_points
        labels = torch.zeros(len(masks), dtype=torch.long, device=masks.device)
        with torch.autocast(embed.device.type, enabled=False):
            predicted = InstanceData(scores=cls_logits.float(), masks=embed.float() @ feature)
            gt_inds = self.assigner.assign(predicted, InstanceData(labels=labels, masks=masks)).gt_inds
        queries = gt_inds.nonzero()[:, 0]
        return queries, gt_inds[queries] - 1

    def _mask_losses(
        self, embed: Tensor, feature: Tensor, masks: BitMasks, n_masks: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Mask and dice loss of (n, C) embeddings and their n masks, a few at a time."""
        if len(embed) == 0:
            zero = torch.einsum('nc,chw->nhw', embed, feature).sum()  # DDP needs a gradient for all weights
            return [(zero, zero)]
        return losses_at_points(partial(self._chunk_losses, n_masks), embed, feature, masks, self.sampling)

    def _chunk_losses(
        self, n_masks: Tensor, embed: Tensor, feature: Tensor, masks: BitMasks, points: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits, truth = logits_at(embed, feature, points), masks.sample(points)
        weight = None if self.drop_iou is None else (soft_iou(logits.detach(), truth) > self.drop_iou).float()
        point_weight = None if weight is None else weight[:, None].expand_as(logits).flatten()
        loss_dice = self.loss_dice(logits, truth, weight, avg_factor=n_masks)
        n_points = n_masks * self.sampling.num_points
        loss_mask = self.loss_mask(logits.flatten(), truth.flatten(), point_weight, avg_factor=n_points)
        return loss_mask, loss_dice


def soft_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """(N,) soft IoU of the probabilities of (N, P) logits and (N, P) masks, pair by pair."""
    probability = logits.sigmoid()
    shared = (probability * truth).sum(1)
    return shared / (probability.sum(1) + truth.sum(1) - shared)


def named_by_layer(layers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """All losses with MMDetection's names: the prefixes are 'd0.', 'd1.' and so on; the last layer has no prefix."""
    prefixes = [f'd{number}.' for number in range(len(layers) - 1)] + ['']
    return {
        f'{prefix}{name}': loss
        for prefix, losses in zip(prefixes, layers, strict=True)
        for name, loss in losses.items()
    }
