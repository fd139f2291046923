"""Prompts for training, drawn from the masks of an image, and the masks that each of them may mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from mmdet.structures.mask.structures import BaseInstanceMasks
from torch import Tensor

from unsam_mm.masks.granularity import area_granularity
from unsam_mm.models.mask_ops import boxes_of_masks
from unsam_mm.models.point_targets import BitMasks
from unsam_mm.models.prompt_details import ABSENT, BOX_TYPE, CLICK_PX, CLICK_TYPE, PromptDetails

_BOX_NOISE = 0.1
"""How far a side of a box that is a prompt may lie beside the truth, as a share of the box's size."""

_CHUNK_PIXELS = 2**24
"""Pixels of masks held unpacked at once, a byte each."""


@dataclass(frozen=True)
class TrainingPrompts:
    """P prompts on an image of N masks.

    Attributes:
        boxes: (P, 4) as centre x, y, width, height, shares of the padded image.
        types: (P,) long, `BOX_TYPE` or `CLICK_TYPE`.
        targets: For each prompt the numbers of the masks that it may mean.
        masks: The N masks.
        mask_boxes: (N, 4) tight boxes of the masks, in the form of `boxes`.
        chosen: (P,) long, the mask that each prompt was drawn from.
        sole: (P,) bool, prompts that say enough to mean one mask only, so that each of their tokens learns its overlap
            with that one; None if none does.
        details: What prompts say beyond their boxes, of a batch of one image; None if nothing.
    """

    boxes: Tensor
    types: Tensor
    targets: list[Tensor]
    masks: BitMasks
    mask_boxes: Tensor
    chosen: Tensor | None = None
    sole: Tensor | None = None
    details: PromptDetails | None = None

    @property
    def num_pairs(self) -> int:
        """How many tokens will have a target."""
        return sum(len(targets) for targets in self.targets)


def draw_prompts(
    masks: BaseInstanceMasks,
    num_prompts: int,
    max_targets: int,
    box_share: float,
    random_targets: bool,
    device: torch.device | str = 'cpu',
    granularity_share: float = 0.0,
    image_px: int | None = None,
) -> TrainingPrompts:
    """Draws clicks and boxes, each from a random mask.

    A click is a uniformly random pixel of its mask and may mean every mask that holds this pixel. A box is that of its
    mask, each side moved a little, and means this mask alone. So does a prompt that has the granularity of its mask:
    1 + log10(share of the image) / 4, which is 1 for all of the image and 0 for a ten-thousandth.

    Args:
        masks: In the frame of the padded batch; empty ones are passed over.
        num_prompts: How many prompts.
        max_targets: How many masks a click may mean at most.
        box_share: Probability of a box in place of a click.
        random_targets: If more masks hold the pixel: whether random ones are taken, as in the release, or those at even
            distances in the order of area, from the smallest to the largest.
        device: Of the result.
        granularity_share: Probability that a prompt has a granularity.
        image_px: Pixels of the image without padding; by default those of the frame.
    """
    packed, (areas, corners) = BitMasks.pack(masks, device), _areas_and_boxes(masks)
    frame = torch.tensor([masks.width, masks.height] * 2, dtype=torch.float32)
    mask_boxes = bbox_xyxy_to_cxcywh(corners) / frame
    filled = areas.nonzero()[:, 0]
    if len(filled) == 0:  # one prompt without a target, so that all weights take part
        boxes = torch.tensor([[0.5, 0.5, CLICK_PX / masks.width, CLICK_PX / masks.height]], device=device)
        types = torch.tensor([CLICK_TYPE], device=device)
        return TrainingPrompts(boxes, types, [filled.to(device)], packed, mask_boxes.to(device))
    chosen = filled[torch.randint(len(filled), (num_prompts,))]
    is_box = torch.rand(num_prompts) < box_share
    centres = torch.stack([_random_pixel(masks, index) for index in chosen.tolist()])
    held = packed.sample((centres / frame[:2])[None].to(device)).cpu() > 0.5  # (N, P)
    clicks = torch.cat([centres, torch.full_like(centres, CLICK_PX)], dim=1) / frame
    boxes = torch.where(is_box[:, None], _beside(mask_boxes[chosen]), clicks)
    types = torch.where(is_box, BOX_TYPE, CLICK_TYPE)
    granularity = area_granularity(areas[chosen], image_px or masks.height * masks.width)
    is_told = torch.rand(num_prompts) < granularity_share
    targets = [
        own[None] if alone else _thinned(holding.nonzero()[:, 0], areas, max_targets, random_targets)
        for own, alone, holding in zip(chosen, is_box | is_told, held.T, strict=True)
    ]
    return TrainingPrompts(
        boxes.to(device),
        types.to(device),
        [each.to(device) for each in targets],
        packed,
        mask_boxes.to(device),
        chosen.to(device),
        is_told.to(device),
        _only_granularity(granularity.masked_fill(~is_told, math.nan).to(device)) if is_told.any() else None,
    )


def _only_granularity(granularity: Tensor) -> PromptDetails:
    """Details of prompts that have no others."""
    kinds = torch.full((1, len(granularity), 0), ABSENT, device=granularity.device)
    return PromptDetails(granularity.new_zeros(*kinds.shape, 2), kinds, granularity=granularity[None])


def _areas_and_boxes(masks: BaseInstanceMasks) -> tuple[Tensor, Tensor]:
    """(N,) areas in pixels, (N, 4) boxes x0, y0, x1, y1 in pixels."""
    step = max(1, _CHUNK_PIXELS // max(1, masks.height * masks.width))
    areas, boxes = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, 4)]
    for start in range(0, len(masks), step):
        bitmaps = masks[start : start + step].to_tensor(torch.bool, 'cpu')
        areas.append(bitmaps.sum(dim=(1, 2)))
        boxes.append(boxes_of_masks(bitmaps))
    return torch.cat(areas), torch.cat(boxes)


def _random_pixel(masks: BaseInstanceMasks, index: int) -> Tensor:
    """(2,) x, y of the centre of a pixel of a mask."""
    pixels = masks[index : index + 1].to_tensor(torch.bool, 'cpu')[0].nonzero()
    return pixels[torch.randint(len(pixels), ())].flip(0) + 0.5


def _beside(boxes: Tensor) -> Tensor:
    """(P, 4) boxes each of whose sides is moved at random."""
    centres, sides = boxes.split(2, dim=1)
    first, last = (centres + sign * sides / 2 + _noise(sides) for sign in (-1, 1))
    first, last = first.clamp(0, 1), last.clamp(0, 1)
    return torch.cat([(first + last) / 2, last - first], dim=1)


def _noise(sides: Tensor) -> Tensor:
    return (2 * torch.rand_like(sides) - 1) * _BOX_NOISE * sides


def _thinned(targets: Tensor, areas: Tensor, max_targets: int, at_random: bool) -> Tensor:
    """At most `max_targets` of the targets."""
    if len(targets) <= max_targets:
        return targets
    if at_random:
        return targets[torch.randperm(len(targets))[:max_targets]]
    ranks = torch.linspace(0, len(targets) - 1, max_targets).round().long()
    return targets[areas[targets].argsort()[ranks]]
