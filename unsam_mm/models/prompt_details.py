"""Details of a prompt beyond one click or box: further clicks, an earlier mask, and a granularity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from torch import Tensor, nn

from unsam_mm.models.mask_ops import boxes_of_masks
from unsam_mm.models.prompt_decoder import ExtraTokens, mlp

NEGATIVE, POSITIVE, ABSENT = 0, 1, -1
"""Kinds of clicks; the first two are rows of the kind embedding, whose third row is for earlier masks."""

BOX_TYPE, CLICK_TYPE = 0, 1
"""Rows of the type embedding."""

CLICK_PX = 6.0
"""Side, in pixels of the network's input, of the box of a click in training and evaluation."""

_MASK_KIND = 2
_FREQUENCIES = 64  # 128 channels, as in UnSAMv2 (arXiv 2511.13714)
_OCTAVES = (
    4  # half a period to eight over [0, 1]; with at most one, as in UnSAMv2, the effect was weaker after 200 steps
)


@dataclass(frozen=True)
class PromptDetails:
    """Details of P prompts on each of B images.

    Attributes:
        clicks: (B, P, K, 2) float, x, y relative to the padded image, in any order.
        kinds: (B, P, K) long, `POSITIVE`, `NEGATIVE`, or `ABSENT` for padding.
        masks: (B, P, H / 4, W / 4) bool, empty for prompts without an earlier mask; None if no prompt has one.
        granularity: (B, P) float in [0, 1], NaN if unknown; None if unknown for all.
    """

    clicks: Tensor
    kinds: Tensor
    masks: Tensor | None = None
    granularity: Tensor | None = None


class DetailEncoder(nn.Module):
    """Encodes details as additional tokens of a prompt, and the granularity as an embedding added to the mask tokens.

    There is a token for each click at its position, and one for the earlier mask at its box, with the mean mask feature
    inside and outside of the mask. Mask tokens attend to them in every layer. A prompt without details has no such
    token, so its predictions do not depend on this module. The embedding of the granularity is initialised to zero.

    Args:
        embed_dims: Width of the tokens.

    Attributes:
        trained: (,) bool, False until details were used in a loss.
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
        """(B, P, 1, C) embedding of (B, P) granularities; 0 for NaN."""
        known = ~granularity.isnan()
        frequencies = torch.logspace(0, _OCTAVES, _FREQUENCIES, base=2, device=granularity.device)
        angles = granularity.nan_to_num()[..., None] * math.pi * frequencies
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return (self.granularity_mlp(features) * known[..., None])[:, :, None]

    def forward(self, details: PromptDetails, prompt: Tensor, mask_feature: Tensor) -> ExtraTokens | None:
        """The tokens of details; None if there are none.

        Args:
            details: Details of the prompts.
            prompt: (C,) embedding shared by all tokens of prompts.
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
        """(B, P, C) encoding of the mean mask feature inside and outside of (B, P, h, w) masks."""
        with torch.autocast(mask_feature.device.type, enabled=False):  # sums over an image need float32
            feature, inside = mask_feature.float(), masks.float()
            within = torch.einsum('bphw,bchw->bpc', inside, feature)
            without = feature.sum(dim=(2, 3))[:, None] - within
            counts = inside.sum(dim=(2, 3))[..., None]
            others = math.prod(masks.shape[2:]) - counts
            means = torch.cat([within / counts.clamp(min=1), without / others.clamp(min=1)], dim=-1)
        return self.mask_mlp(means.to(mask_feature.dtype))


def boxes_of_clicks(clicks: Tensor, feature_hw: tuple[int, int]) -> Tensor:
    """(..., 4) boxes of (..., 2) clicks, given the size of the mask feature."""
    side = CLICK_PX / (4 * clicks.new_tensor([feature_hw[1], feature_hw[0]]))
    return torch.cat([clicks, side.expand_as(clicks)], dim=-1)


def boxes_around(masks: Tensor) -> Tensor:
    """(..., 4) boxes of (..., h, w) bool masks as centre x, y, width, height in [0, 1]; zeros for empty masks."""
    height, width = masks.shape[-2:]
    boxes = bbox_xyxy_to_cxcywh(boxes_of_masks(masks.flatten(0, -3)))
    return (boxes / boxes.new_tensor([width, height] * 2)).unflatten(0, masks.shape[:-2])


def settle(
    clicks: Tensor, kinds: Tensor, boxes: Tensor, sides: Tensor, masks: Tensor | None, granularity: Tensor | None
) -> tuple[Tensor, Tensor, PromptDetails | None]:
    """Initial boxes and types of the mask tokens of P prompts, and the remaining details.

    The initial box is the box of the prompt; without one, the bounding box of all positive clicks; without these, that
    of the earlier mask. The single click of a prompt without a box is no detail.

    Args:
        clicks: (P, K, 2) x, y relative to the padded image.
        kinds: (P, K) long, see `PromptDetails`.
        boxes: (P, 4) as centre x, y, width, height, relative to the padded image; NaN for prompts without a box.
        sides: (2,) width and height of the box of a click.
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
