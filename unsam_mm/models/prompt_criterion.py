"""Losses of the promptable model: many-to-many matching of tokens and target masks, as in Semantic-SAM."""

from __future__ import annotations

from typing import NamedTuple

import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from unsam_mm.models.mask_ops import BitMasks, PointSampling, logits_at, losses_at_points, sample_at_random
from unsam_mm.models.prompt_targets import TrainingPrompts

_WEIGHTS = {'loss_mask': 5.0, 'loss_dice': 5.0, 'loss_bbox': 5.0, 'loss_giou': 2.0, 'loss_iou': 1.0}


class TokenPredictions(NamedTuple):
    """Predictions of the T tokens of P prompts after one layer.

    Attributes:
        embeds: (P, T, C) mask embeddings; their products with the mask feature are the mask logits.
        overlaps: (P, T) predicted overlaps (Dice coefficients) with the target masks.
        boxes: (P, T, 4) as centre x, y, width, height in [0, 1].
    """

    embeds: Tensor
    overlaps: Tensor
    boxes: Tensor


def prompt_losses(
    layers: list[TokenPredictions], feature: Tensor, prompts: TrainingPrompts, sampling: PointSampling, n_pairs: Tensor
) -> list[dict[str, Tensor]]:
    """Weighted losses of every layer, by name: those of Semantic-SAM without classification.

    The target masks of a prompt are matched one to one with its tokens, by costs with the weights of the losses;
    unmatched tokens have no loss. The target of the predicted overlap is 1 minus the dice loss. The unmatched tokens of
    prompts with `all_tokens_scored` also learn their overlap with the chosen mask, at uniformly random points; together
    the unmatched tokens of a prompt count as one pair.

    Args:
        layers: Predictions on one image after each layer.
        feature: (C, h, w) mask feature of the image.
        prompts: Prompts and masks of the image.
        sampling: How the points of the mask losses are drawn; the number of matching points is the same.
        n_pairs: Scalar, the number of pairs of a token and a target, by which the sums over the pairs are divided.
    """
    at_points = sample_at_random(feature, prompts.masks, sampling.num_points)
    return [_layer_losses(layer, feature, prompts, at_points, sampling, n_pairs) for layer in layers]


def _layer_losses(
    predicted: TokenPredictions,
    feature: Tensor,
    prompts: TrainingPrompts,
    at_points: tuple[Tensor, Tensor],
    sampling: PointSampling,
    n_pairs: Tensor,
) -> dict[str, Tensor]:
    rows, tokens, targets = match(predicted, prompts, *at_points)
    if len(targets) == 0:
        total = torch.einsum('ptc,chw->', predicted.embeds, feature) + predicted.overlaps.sum() + predicted.boxes.sum()
        return dict.fromkeys(_WEIGHTS, 0 * total)  # DDP needs a gradient for all weights
    boxes, target_boxes = predicted.boxes[rows, tokens], prompts.mask_boxes[targets]
    corners, target_corners = bbox_cxcywh_to_xyxy(boxes), bbox_cxcywh_to_xyxy(target_boxes)
    chunks = losses_at_points(_point_losses, predicted.embeds[rows, tokens], feature, prompts.masks[targets], sampling)
    loss_mask, loss_dice = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    sums = {
        'loss_mask': loss_mask.sum(),
        'loss_dice': loss_dice.sum(),
        'loss_bbox': (boxes - target_boxes).abs().sum(),
        'loss_giou': (1 - bbox_overlaps(corners, target_corners, mode='giou', is_aligned=True)).sum(),
        'loss_iou': (predicted.overlaps[rows, tokens] - 1 + loss_dice.detach()).square().sum(),
    }
    if prompts.all_tokens_scored is not None and prompts.all_tokens_scored.any():
        sums['loss_iou'] = sums['loss_iou'] + _unmatched_loss(predicted, prompts, at_points, (rows, tokens))
    return {name: _WEIGHTS[name] * total / n_pairs for name, total in sums.items()}


def _unmatched_loss(
    predicted: TokenPredictions,
    prompts: TrainingPrompts,
    at_points: tuple[Tensor, Tensor],
    pairs: tuple[Tensor, Tensor],
) -> Tensor:
    """Loss of the predicted overlaps of unmatched tokens, for prompts with `all_tokens_scored`."""
    sampled, truth = at_points
    unmatched = torch.ones_like(predicted.overlaps, dtype=torch.bool)
    unmatched[pairs] = False
    rows = prompts.all_tokens_scored.nonzero()[:, 0]
    with torch.no_grad(), torch.autocast(sampled.device.type, enabled=False):
        probability = (predicted.embeds[rows].float() @ sampled).sigmoid()  # (n, T, Q)
        target = truth[prompts.chosen[rows]][:, None]
        overlap = (2 * (probability * target).sum(-1) + 1) / (probability.sum(-1) + target.sum(-1) + 1)
    errors = (predicted.overlaps[rows] - overlap).square() * unmatched[rows]
    return errors.sum() / max(predicted.overlaps.shape[1] - 1, 1)


def _point_losses(embed: Tensor, feature: Tensor, masks: BitMasks, points: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) mask losses and (n,) dice losses of (n, C) embeddings and their masks, at (n, P, 2) points."""
    logits, truth = logits_at(embed, feature, points), masks.sample(points)
    probability = logits.sigmoid()
    dice = (2 * (probability * truth).sum(1) + 1) / (probability.sum(1) + truth.sum(1) + 1)
    return binary_cross_entropy_with_logits(logits, truth, reduction='none').mean(1), 1 - dice


@torch.no_grad()
def match(
    predicted: TokenPredictions, prompts: TrainingPrompts, feature: Tensor, truth: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Hungarian matching of tokens and target masks, separately for each prompt.

    Args:
        predicted: Predictions on one image.
        prompts: Prompts of the image, none with more targets than tokens.
        feature: (C, Q) mask feature at Q points.
        truth: (N, Q) masks at the same points.

    Returns:
        Indices of the prompts, the tokens and the masks of K pairs, each (K,) long.
    """
    pairs = []
    with torch.autocast(feature.device.type, enabled=False):  # sums over many points need float32
        costs = _costs(predicted, prompts, feature, truth).cpu()
    for row, candidates in enumerate(prompts.targets):
        candidates = candidates.cpu()
        tokens, columns = linear_sum_assignment(costs[row][:, candidates])
        pairs += [(row, *pair) for pair in zip(tokens.tolist(), candidates[columns].tolist(), strict=True)]
    return torch.tensor(pairs, dtype=torch.long, device=predicted.embeds.device).view(-1, 3).unbind(dim=1)


def _costs(predicted: TokenPredictions, prompts: TrainingPrompts, feature: Tensor, truth: Tensor) -> Tensor:
    """(P, T, N) costs of all pairs."""
    logits = predicted.embeds.float() @ feature  # (P, T, Q)
    probability, boxes = logits.sigmoid(), predicted.boxes.float()
    foreground, background = softplus(-logits) @ truth.T, softplus(logits) @ (1 - truth).T
    sums = probability.sum(-1, keepdim=True) + truth.sum(1)
    dice = 1 - (2 * probability @ truth.T + 1) / (sums + 1)
    distance = torch.cdist(boxes.flatten(0, 1), prompts.mask_boxes, p=1).view_as(dice)
    overlap = bbox_overlaps(
        bbox_cxcywh_to_xyxy(boxes.flatten(0, 1)), bbox_cxcywh_to_xyxy(prompts.mask_boxes), mode='giou'
    ).view_as(dice)
    return (
        _WEIGHTS['loss_mask'] * (foreground + background) / truth.shape[1]
        + _WEIGHTS['loss_dice'] * dice
        + _WEIGHTS['loss_bbox'] * distance
        - _WEIGHTS['loss_giou'] * overlap
    )
