"""Simulated corrections: adds clicks at the largest errors of the predictions to training prompts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from unsam_mm.models.point_targets import BitMasks
from unsam_mm.models.prompt_details import (
    ABSENT,
    CLICK_TYPE,
    NEGATIVE,
    POSITIVE,
    PromptDetails,
    boxes_of_clicks,
    settle,
)
from unsam_mm.models.prompt_targets import TrainingPrompts
from unsam_mm.next_click import next_click

Answer = Callable[[Tensor, Tensor, PromptDetails | None], Tensor]
"""Mask logits (P, T, h, w) for (P, 4) boxes, (P,) types, and details."""


@torch.no_grad()
def corrected(
    prompts: TrainingPrompts,
    rows: Tensor,
    rounds: int,
    earlier_mask_prob: float,
    feature_hw: tuple[int, int],
    answer: Answer,
) -> TrainingPrompts:
    """The prompts, some of them with further clicks; the only target of those is the mask that they were drawn from.

    In each round the predicted mask of the highest IoU with the true mask is compared with it at the size of the mask
    feature, and the next click is placed by the rule of interactive segmentation benchmarks.

    Args:
        prompts: Prompts without clicks in their details.
        rows: (n,) long, indices of the prompts that are corrected.
        rounds: Number of clicks added to each; fewer if there is no error left.
        earlier_mask_prob: Probability that a corrected prompt has the last predicted mask as its earlier mask.
        feature_hw: Size of the mask feature.
        answer: Predicts masks with the current model.
    """
    device, count = prompts.boxes.device, len(prompts.boxes)
    true_masks = _at_feature(prompts.masks[prompts.chosen[rows]], feature_hw)
    is_click = prompts.types == CLICK_TYPE
    clicks = torch.zeros(count, 1 + rounds, 2, device=device)
    kinds = torch.full((count, 1 + rounds), ABSENT, device=device)
    clicks[:, 0] = prompts.boxes[:, :2]
    kinds[:, 0] = torch.where(is_click, POSITIVE, ABSENT)
    boxes = prompts.boxes.masked_fill(is_click[:, None], math.nan)
    sides = boxes_of_clicks(clicks[0, 0], feature_hw)[2:]
    granularity = prompts.details.granularity[0] if prompts.details is not None else None
    masks = torch.zeros(count, *feature_hw, dtype=torch.bool, device=device)
    keeps = torch.rand(len(rows), device=device) < earlier_mask_prob
    clicked = np.zeros((len(rows), *feature_hw), bool)
    for turn in range(1, rounds + 1):
        own = None if granularity is None else granularity[rows]
        logits = answer(*settle(clicks[rows], kinds[rows], boxes[rows], sides, masks[rows], own))
        shown = _most_like(logits > 0, true_masks)
        masks[rows] = shown & keeps[:, None, None]
        for number, row in enumerate(rows.tolist()):
            click = next_click(shown[number].cpu().numpy(), true_masks[number].cpu().numpy(), clicked[number])
            if click is not None:
                (x, y), is_positive = click
                clicked[number, y, x] = True
                clicks[row, turn] = torch.tensor([(x + 0.5) / feature_hw[1], (y + 0.5) / feature_hw[0]])
                kinds[row, turn] = POSITIVE if is_positive else NEGATIVE
    starts, types, details = settle(clicks, kinds, boxes, sides, masks, granularity)
    targets = list(prompts.targets)
    for row in rows.tolist():
        targets[row] = prompts.chosen[row : row + 1]
    single_target = prompts.single_target.clone()
    single_target[rows] = True
    return replace(prompts, boxes=starts, types=types, details=details, targets=targets, single_target=single_target)


def _at_feature(masks: BitMasks, feature_hw: tuple[int, int]) -> Tensor:
    """(n, h, w) bool masks at the pixel centres of the mask feature."""
    height, width = feature_hw
    y, x = torch.meshgrid(
        (torch.arange(height, device=masks.bits.device) + 0.5) / height,
        (torch.arange(width, device=masks.bits.device) + 0.5) / width,
        indexing='ij',
    )
    return masks.sample(torch.stack([x, y], dim=-1).view(1, -1, 2)).view(-1, height, width) > 0.5


def _most_like(masks: Tensor, true_masks: Tensor) -> Tensor:
    """(n, h, w) masks with the largest IoU among (n, T, h, w) masks."""
    shared = (masks & true_masks[:, None]).sum(dim=(2, 3))
    joined = (masks | true_masks[:, None]).sum(dim=(2, 3))
    best = (shared / joined.clamp(min=1)).argmax(dim=1)
    return masks[torch.arange(len(masks), device=masks.device), best]
