"""What a prompt says beyond one click or one box: further clicks, an earlier mask, and how coarse the answer is to be."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from torch import Tensor, nn

from unsam_mm.models.mask_ops import boxes_of_masks
from unsam_mm.models.prompt_decoder import ExtraTokens, mlp

NEGATIVE, POSITIVE, ABSENT = 0, 1, -1
"""Kinds of clicks; the first two are rows of the embedding of kinds, whose third is that of an earlier mask."""

BOX_TYPE, CLICK_TYPE = 0, 1
"""Rows of the type embedding."""

CLICK_PX = 6.0
"""Side, in pixels of the network's input, of the box that stands for a click in training and in the evaluation."""

_MASK_KIND = 2
_FREQUENCIES = 64  # 128 numbers, as in UnSAMv2 (arXiv 2511.13714)
_OCTAVES = 4  # over [0, 1] half a period to eight; UnSAMv2's, of one period at most, steered far less after 200 steps


@dataclass(frozen=True)
class PromptDetails:
    """Details of P prompts on each of B images.

    Attributes:
        clicks: (B, P, K, 2) float, x, y as shares of the padded image. Their order is of no consequence.
        kinds: (B, P, K) long, `POSITIVE`, `NEGATIVE`, or `ABSENT` where a prompt has fewer clicks.
        masks: (B, P, H / 4, W / 4) bool, empty where a prompt has no earlier mask; None if none has one.
        granularity: (B, P) float in [0, 1], NaN where not known; None if it is for none.
    """

    clicks: Tensor
    kinds: Tensor
    masks: Tensor | None = None
    granularity: Tensor | None = None


class DetailEncoder(nn.Module):
    """Turns details into tokens beside the mask tokens of a prompt, and the granularity into a code added to these.

    A token for each click stands at its place, one for the earlier mask at the mask's box with what the mask feature is
    like inside and outside of it. Mask tokens read them by self-attention, in every layer. A prompt without details has
    no such token, so what it is answered does not depend on this module. The granularity's code is zero before training.

    Args:
        embed_dims: Width of the tokens.

    Attributes:
        trained: (,) bool, False until a loss has seen details.
    """

    def __init__(self, embed_dims: int) -> None:
        super().__init__()
        self.kind_embed = nn.Embedding(3, embed_dims)
        self.mask_mlp = mlp(2 * embed_dims, embed_dims, embed_dims, num_layers=2)
        self.granularity_mlp = mlp(2 * _FREQUENCIES, embed_dims, embed_dims, num_layers=3)
        nn.init.zeros_(self.granularity_mlp[-1].weight)
        nn.init.zeros_(self.granularity_mlp[-1].bias)
        self.register_buffer('trained', torch.tensor(False))

    def code(self, granularity: Tensor) -> Tensor:
        """(B, P, 1, C) code of (B, P) granularities; 0 where that is NaN."""
        known = ~granularity.isnan()
        frequencies = torch.logspace(0, _OCTAVES, _FREQUENCIES, base=2, device=granularity.device)
        angles = granularity.nan_to_num()[..., None] * math.pi * frequencies
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return (self.granularity_mlp(features) * known[..., None])[:, :, None]

    def forward(self, details: PromptDetails, prompt: Tensor, mask_feature: Tensor) -> ExtraTokens | None:
        """The tokens of details; None if there are none.

        Args:
            details: See there.
            prompt: (C,) what all tokens of prompts have in common.
            mask_feature: (B, C, H / 4, W / 4).
        """
        kinds = details.kinds
        tokens = [prompt + self.kind_embed(kinds.clamp(min=0))]
        boxes, absent = [boxes_of_clicks(details.clicks, mask_feature.shape[-2:])], [kinds == ABSENT]
        if details.masks is not None:
            tokens.append(
                (prompt + self.kind_embed.weight[_MASK_KIND] + self._seen(details.masks, mask_feature))[:, :, None]
            )
            boxes.append(boxes_around(details.masks)[:, :, None])
            absent.append(~details.masks.flatten(2).any(dim=2, keepdim=True))
        extra = ExtraTokens(torch.cat(tokens, dim=2), torch.cat(boxes, dim=2), torch.cat(absent, dim=2))
        return extra if extra.tokens.shape[2] else None

    def _seen(self, masks: Tensor, mask_feature: Tensor) -> Tensor:
        """(B, P, C) of the mean mask feature inside and outside of (B, P, h, w) masks."""
        with torch.autocast(mask_feature.device.type, enabled=False):  # sums over an image need float32
            feature, inside = mask_feature.float(), masks.float()
            within = torch.einsum('bphw,bchw->bpc', inside, feature)
            without = feature.sum(dim=(2, 3))[:, None] - within
            counts = inside.sum(dim=(2, 3))[..., None]
            others = math.prod(masks.shape[2:]) - counts
            means = torch.cat([within / counts.clamp(min=1), without / others.clamp(min=1)], dim=-1)
        return self.mask_mlp(means.to(mask_feature.dtype))


def boxes_of_clicks(clicks: Tensor, feature_hw: tuple[int, int]) -> Tensor:
    """(..., 4) boxes that stand for (..., 2) clicks, given the size of the mask feature."""
    side = CLICK_PX / (4 * clicks.new_tensor([feature_hw[1], feature_hw[0]]))
    return torch.cat([clicks, side.expand_as(clicks)], dim=-1)


def boxes_around(masks: Tensor) -> Tensor:
    """(..., 4) boxes of (..., h, w) bool masks as centre x, y, width, height, shares of the frame; zeros if empty."""
    height, width = masks.shape[-2:]
    boxes = bbox_xyxy_to_cxcywh(boxes_of_masks(masks.flatten(0, -3)))
    return (boxes / boxes.new_tensor([width, height] * 2)).unflatten(0, masks.shape[:-2])


def settle(
    clicks: Tensor, kinds: Tensor, boxes: Tensor, sides: Tensor, masks: Tensor | None, granularity: Tensor | None
) -> tuple[Tensor, Tensor, PromptDetails | None]:
    """Where the mask tokens of P prompts start, of which type they are, and what is left as details.

    They start at the box; without one, at the smallest box around all positive clicks; without these, at that of the
    earlier mask. The single click of a prompt without a box is no detail.

    Args:
        clicks: (P, K, 2) x, y, shares of the padded image.
        kinds: (P, K) long, see `PromptDetails`.
        boxes: (P, 4) as centre x, y, width, height, shares of the padded image; NaN where a prompt has none.
        sides: (2,) width and height of the box that stands for one click.
        masks: (P, H / 4, W / 4) bool, see `PromptDetails`.
        granularity: (P,), see `PromptDetails`.

    Returns:
        (P, 4) boxes, (P,) long types, and details for a batch of one image, None if there are none.
    """
    positive, has_box = kinds == POSITIVE, ~boxes.isnan().any(dim=1)
    first = clicks.masked_fill(~positive[..., None], math.inf).amin(dim=1)
    last = clicks.masked_fill(~positive[..., None], -math.inf).amax(dim=1)
    starts = torch.cat([(first + last) / 2, last - first + sides], dim=1)
    by_click = positive.any(dim=1) & ~has_box
    others = boxes if masks is None else torch.where(has_box[:, None], boxes, boxes_around(masks))
    starts = torch.where(by_click[:, None], starts, others)
    types = torch.where(by_click, CLICK_TYPE, BOX_TYPE)
    is_start = by_click & ((kinds != ABSENT).sum(dim=1) == 1)
    kinds = kinds.masked_fill(is_start[:, None], ABSENT)
    used = (kinds != ABSENT).any(dim=0)
    if masks is not None and not masks.any():
        masks = None
    if granularity is not None and granularity.isnan().all():
        granularity = None
    if not used.any() and masks is None and granularity is None:
        return starts, types, None
    batch = (None if part is None else part[None] for part in (clicks[:, used], kinds[:, used], masks, granularity))
    return starts, types, PromptDetails(*batch)
