"""Training prompts: random clicks and boxes, their target masks, and simulated corrections."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from mmdet.structures.mask.structures import BaseInstanceMasks
from torch import Tensor

from unsam_mm.masks.granularity import area_granularity
from unsam_mm.models.mask_ops import BitMasks, bitmap_chunks, boxes_of_masks, pixel_centres
from unsam_mm.models.prompt_details import (
    ABSENT,
    BOX_TYPE,
    CLICK_PX,
    CLICK_TYPE,
    NEGATIVE,
    POSITIVE,
    PromptDetails,
    boxes_of_clicks,
    split_prompts,
)
from unsam_mm.next_click import next_click

_BOX_NOISE = 0.1
"""Maximum shift of each side of a box prompt, relative to the size of the box."""

MaskPredictor = Callable[[Tensor, Tensor, PromptDetails | None], Tensor]
"""A function that returns (P, T, h, w) mask logits for (P, 4) boxes, (P,) types and details of P prompts."""


@dataclass(frozen=True)
class TrainingPrompts:
    """P prompts on an image of N masks.

    Attributes:
        boxes: (P, 4) as centre x, y, width, height, relative to the padded image.
        types: (P,) long, `BOX_TYPE` or `CLICK_TYPE`.
        targets: For each prompt, the indices of its target masks, long.
        masks: The N masks.
        mask_boxes: (N, 4) bounding boxes of the masks, in the format of `boxes`.
        chosen: (P,) long, the mask that each prompt was drawn from; None if the image has no mask.
        all_tokens_scored: (P,) bool, True for prompts whose tokens all learn their overlap with the chosen mask: those
            with a granularity or with simulated corrections. None if the image has no mask.
        details: Details of the prompts, for a batch of one image; None if there are none.
    """

    boxes: Tensor
    types: Tensor
    targets: list[Tensor]
    masks: BitMasks
    mask_boxes: Tensor
    chosen: Tensor | None = None
    all_tokens_scored: Tensor | None = None
    details: PromptDetails | None = None

    @property
    def num_pairs(self) -> int:
        """Number of pairs of a prompt and a target."""
        return sum(len(targets) for targets in self.targets)


def draw_prompts(
    masks: BaseInstanceMasks,
    num_prompts: int,
    max_targets: int,
    box_prob: float,
    random_targets: bool,
    device: torch.device | str = 'cpu',
    granularity_prob: float = 0.0,
    image_px: int | None = None,
) -> TrainingPrompts:
    """Draws clicks and boxes, each from a random mask.

    A click is a uniformly random pixel of its mask; its targets are all masks that contain the pixel. A box is the box
    of its mask with jittered sides; its target is this mask. If a prompt has the granularity of its mask, this mask is
    also its only target.

    Args:
        masks: Masks at the size of the padded batch; empty masks are ignored.
        num_prompts: Number of prompts.
        max_targets: Maximum number of targets of a click.
        box_prob: Probability of a box in place of a click.
        random_targets: How targets are chosen if a click has more than `max_targets`. True: at random, as in the
            release. False: at even steps in the order of area, from the smallest to the largest.
        device: Device of the result.
        granularity_prob: Probability that a prompt has a granularity.
        image_px: Area of the image in pixels, without padding; by default that of the masks.
    """
    packed, (areas, corners) = BitMasks.pack(masks, device), _areas_and_boxes(masks)
    size = torch.tensor([masks.width, masks.height] * 2, dtype=torch.float32)
    mask_boxes = bbox_xyxy_to_cxcywh(corners) / size
    filled = areas.nonzero()[:, 0]
    if len(filled) == 0:  # one prompt without a target, so that all weights have a gradient
        boxes = torch.tensor([[0.5, 0.5, CLICK_PX / masks.width, CLICK_PX / masks.height]], device=device)
        types = torch.tensor([CLICK_TYPE], device=device)
        return TrainingPrompts(boxes, types, [filled.to(device)], packed, mask_boxes.to(device))
    chosen = filled[torch.randint(len(filled), (num_prompts,))]
    is_box = torch.rand(num_prompts) < box_prob
    centres = torch.stack([_random_pixel(masks, index) for index in chosen.tolist()])
    contains = packed.sample((centres / size[:2])[None].to(device)).cpu() > 0.5  # (N, P)
    clicks = torch.cat([centres, torch.full_like(centres, CLICK_PX)], dim=1) / size
    boxes = torch.where(is_box[:, None], _jittered(mask_boxes[chosen]), clicks)
    types = torch.where(is_box, BOX_TYPE, CLICK_TYPE)
    granularity = area_granularity(areas[chosen], image_px or masks.height * masks.width)
    has_granularity = torch.rand(num_prompts) < granularity_prob
    targets = [
        own[None] if is_single else _limited(containing.nonzero()[:, 0], areas, max_targets, random_targets)
        for own, is_single, containing in zip(chosen, is_box | has_granularity, contains.T, strict=True)
    ]
    details = None
    if has_granularity.any():
        details = PromptDetails(
            clicks=torch.zeros(1, num_prompts, 0, 2, device=device),
            kinds=torch.zeros(1, num_prompts, 0, dtype=torch.long, device=device),
            granularity=granularity.masked_fill(~has_granularity, math.nan)[None].to(device),
        )
    return TrainingPrompts(
        boxes.to(device),
        types.to(device),
        [each.to(device) for each in targets],
        packed,
        mask_boxes.to(device),
        chosen.to(device),
        has_granularity.to(device),
        details,
    )


def _areas_and_boxes(masks: BaseInstanceMasks) -> tuple[Tensor, Tensor]:
    """(N,) areas in pixels, (N, 4) boxes x0, y0, x1, y1 in pixels."""
    areas, boxes = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, 4)]
    for bitmaps in bitmap_chunks(masks):
        areas.append(bitmaps.sum(dim=(1, 2)))
        boxes.append(boxes_of_masks(bitmaps))
    return torch.cat(areas), torch.cat(boxes)


def _random_pixel(masks: BaseInstanceMasks, index: int) -> Tensor:
    """(2,) x, y of the centre of a random pixel of a mask."""
    pixels = masks[index : index + 1].to_tensor(torch.bool, 'cpu')[0].nonzero()
    return pixels[torch.randint(len(pixels), ())].flip(0) + 0.5


def _jittered(boxes: Tensor) -> Tensor:
    """(P, 4) boxes with randomly shifted sides."""
    centres, sides = boxes.split(2, dim=1)
    corners = [centres + sign * sides / 2 + (2 * torch.rand_like(sides) - 1) * _BOX_NOISE * sides for sign in (-1, 1)]
    first, last = (corner.clamp(0, 1) for corner in corners)
    return torch.cat([(first + last) / 2, last - first], dim=1)


def _limited(targets: Tensor, areas: Tensor, max_targets: int, at_random: bool) -> Tensor:
    """At most `max_targets` of the targets."""
    if len(targets) <= max_targets:
        return targets
    if at_random:
        return targets[torch.randperm(len(targets))[:max_targets]]
    ranks = torch.linspace(0, len(targets) - 1, max_targets).round().long()
    return targets[areas[targets].argsort()[ranks]]


@torch.no_grad()
def corrected(
    prompts: TrainingPrompts,
    rows: Tensor,
    rounds: int,
    earlier_mask_prob: float,
    feature_hw: tuple[int, int],
    predict_masks: MaskPredictor,
) -> TrainingPrompts:
    """Adds simulated clicks to some prompts, whose only target is then the mask that they were drawn from.

    In each round, the predicted mask with the highest IoU with the true mask is compared with the true mask, at the
    size of the mask feature. The next click is placed by `next_click`.

    Args:
        prompts: Prompts without clicks in their details.
        rows: (n,) long, indices of the prompts that are corrected.
        rounds: Number of clicks added to each of these prompts; fewer if no error is left.
        earlier_mask_prob: Probability that a corrected prompt also has the last predicted mask as its earlier mask.
        feature_hw: Height and width of the mask feature.
        predict_masks: Predicts masks with the current model.
    """
    device, count = prompts.boxes.device, len(prompts.boxes)
    centres = pixel_centres(*feature_hw, device)
    true_masks = prompts.masks[prompts.chosen[rows]].sample(centres[None]).view(-1, *feature_hw) > 0.5
    is_click = prompts.types == CLICK_TYPE
    clicks = torch.zeros(count, 1 + rounds, 2, device=device)
    kinds = torch.full((count, 1 + rounds), ABSENT, device=device)
    clicks[:, 0] = prompts.boxes[:, :2]
    kinds[:, 0] = torch.where(is_click, POSITIVE, ABSENT)
    boxes = prompts.boxes.masked_fill(is_click[:, None], math.nan)
    sides = boxes_of_clicks(clicks[0, 0], feature_hw)[2:]
    granularity = None if prompts.details is None else prompts.details.granularity[0]
    masks = torch.zeros(count, *feature_hw, dtype=torch.bool, device=device)
    keeps = torch.rand(len(rows), device=device) < earlier_mask_prob
    clicked = np.zeros((len(rows), *feature_hw), bool)
    for turn in range(1, rounds + 1):
        own = None if granularity is None else granularity[rows]
        logits = predict_masks(*split_prompts(clicks[rows], kinds[rows], boxes[rows], sides, masks[rows], own))
        predicted = _most_similar(logits > 0, true_masks)
        masks[rows] = predicted & keeps[:, None, None]
        for number, row in enumerate(rows.tolist()):
            click = next_click(predicted[number].cpu().numpy(), true_masks[number].cpu().numpy(), clicked[number])
            if click is not None:
                (x, y), is_positive = click
                clicked[number, y, x] = True
                clicks[row, turn] = torch.tensor([(x + 0.5) / feature_hw[1], (y + 0.5) / feature_hw[0]])
                kinds[row, turn] = POSITIVE if is_positive else NEGATIVE
    starts, types, details = split_prompts(clicks, kinds, boxes, sides, masks, granularity)
    targets = list(prompts.targets)
    for row in rows.tolist():
        targets[row] = prompts.chosen[row : row + 1]
    all_tokens_scored = prompts.all_tokens_scored.clone()
    all_tokens_scored[rows] = True
    return replace(
        prompts, boxes=starts, types=types, details=details, targets=targets, all_tokens_scored=all_tokens_scored
    )


def _most_similar(masks: Tensor, true_masks: Tensor) -> Tensor:
    """(n, h, w) bool: for each of n true masks, the most similar of its T masks by IoU.

    Args:
        masks: (n, T, h, w) bool.
        true_masks: (n, h, w) bool.
    """
    shared = (masks & true_masks[:, None]).sum(dim=(2, 3))
    joined = (masks | true_masks[:, None]).sum(dim=(2, 3))
    best = (shared / joined.clamp(min=1)).argmax(dim=1)
    return masks[torch.arange(len(masks), device=masks.device), best]
