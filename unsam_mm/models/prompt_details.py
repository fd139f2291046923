"""Inputs of `UnSAMPromptHead`: one click or box, and its details: further clicks, an earlier mask, a granularity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.functional import interpolate

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import decode_rles, rles_from_json
from unsam_mm.models.attention import mlp
from unsam_mm.models.mask_ops import ImageSizes, boxes_of_masks
from unsam_mm.models.prompt_decoder import ExtraTokens

NEGATIVE, POSITIVE, ABSENT = 0, 1, -1
"""Kinds of clicks; the first two are rows of the kind embedding, whose third row is for earlier masks."""

BOX_TYPE, CLICK_TYPE = 0, 1
"""Rows of the type embedding."""

CLICK_PX = 6.0
"""Side, in pixels of the network's input, of the box of a click in training and evaluation."""

_MASK_KIND = 2
_FREQUENCIES = 64  # 128 channels, as in UnSAMv2 (arXiv 2511.13714)
# From half a period over [0, 1] to eight periods. With at most one period, as in UnSAMv2, the effect was weaker after
# 200 steps.
_OCTAVES = 4

_DEMO_CLICK = 0.005
"""Side of the box of a click in the released demonstrations, relative to the image."""

_NO_PROMPTS = (
    'UnSAMPromptHead: a data sample has no prompts; set its `prompts` to InstanceData(points=...) with (P, 2) or '
    '(P, K, 2) x, y, InstanceData(bboxes=...) with (P, 4) x0, y0, x1, y1, or InstanceData(masks=...) with (P, H, W), in '
    'pixels of the original image'
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

    Each click has a token at its position. The earlier mask has a token at its bounding box, which encodes the means of
    the mask feature inside and outside of the mask. Mask tokens attend to these tokens in every layer. A prompt without
    details has none of them, so its predictions do not depend on this module. The embedding of the granularity is
    initialised to zero.

    Args:
        embed_dims: Width of the tokens.

    Attributes:
        trained: Scalar bool, False until the details of a prompt have been used in training.
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
        """The additional tokens of prompts; None if no prompt has a click or a mask among its details.

        Args:
            details: Details of the prompts.
            prompt: (C,) embedding that is added to all tokens of prompts.
            mask_feature: (B, C, H / 4, W / 4).
        """
        kinds = details.kinds
        tokens = [prompt + self.kind_embed(kinds.clamp(min=0))]
        boxes, absent = [boxes_of_clicks(details.clicks, mask_feature.shape[-2:])], [kinds == ABSENT]
        if details.masks is not None:
            means = self._mean_features(details.masks, mask_feature)
            tokens.append((prompt + self.kind_embed.weight[_MASK_KIND] + means)[:, :, None])
            boxes.append(boxes_around(details.masks)[:, :, None])
            absent.append(~details.masks.flatten(2).any(dim=2, keepdim=True))
        extra = ExtraTokens(torch.cat(tokens, dim=2), torch.cat(boxes, dim=2), torch.cat(absent, dim=2))
        return extra if extra.tokens.shape[2] else None

    def _mean_features(self, masks: Tensor, mask_feature: Tensor) -> Tensor:
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
    """(..., 4) boxes of (..., 2) clicks, as centre x, y, width, height relative to the padded image.

    Args:
        clicks: (..., 2) x, y relative to the padded image.
        feature_hw: Height and width of the mask feature, a quarter of those of the padded image.
    """
    side = CLICK_PX / (4 * clicks.new_tensor([feature_hw[1], feature_hw[0]]))
    return torch.cat([clicks, side.expand_as(clicks)], dim=-1)


def boxes_around(masks: Tensor) -> Tensor:
    """(..., 4) boxes of (..., h, w) bool masks as centre x, y, width, height in [0, 1]; zeros for empty masks."""
    height, width = masks.shape[-2:]
    boxes = bbox_xyxy_to_cxcywh(boxes_of_masks(masks.flatten(0, -3)))
    return (boxes / boxes.new_tensor([width, height] * 2)).unflatten(0, masks.shape[:-2])


def split_prompts(
    clicks: Tensor, kinds: Tensor, boxes: Tensor, sides: Tensor, masks: Tensor | None, granularity: Tensor | None
) -> tuple[Tensor, Tensor, PromptDetails | None]:
    """Splits P prompts into the initial boxes and types of the mask tokens, and the remaining details.

    The initial box is the box of the prompt; if there is none, the bounding box of all positive clicks; if there are
    none, that of the earlier mask. If a prompt has a single click and no box, this click is not among its details.

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


def prepare_prompts(
    prompts: InstanceData, sizes: ImageSizes, feature_hw: tuple[int, int], release: bool, device: torch.device
) -> tuple[Tensor, Tensor, PromptDetails | None]:
    """Validates the prompts of `UnSAMPromptHead.predict`, and converts them to inputs of `UnSAMPromptHead.answer`.

    Args:
        prompts: Prompts of one image.
        sizes: Sizes of that image.
        feature_hw: Height and width of the mask feature.
        release: True if clicks have the type and size of those in the released demonstrations.
        device: Device of the result.

    Returns:
        (P, 4) boxes as centre x, y, width, height, relative to the padded image; (P,) long types; and details for a
        batch of one image, None if there are none.

    Raises:
        UnSAMError: If the shape or range of a field is wrong, or a prompt has no positive click, no box and no mask.
    """
    if not any(name in prompts for name in ('points', 'bboxes', 'masks')):
        raise UnSAMError(_NO_PROMPTS)
    batch = torch.tensor(sizes.batch[::-1], dtype=torch.float32, device=device)
    image = torch.tensor(sizes.image[::-1], dtype=torch.float32, device=device)
    scale = image / torch.tensor(sizes.original[::-1], device=device) / batch
    clicks, kinds = _clicks(prompts, device)
    boxes = _boxes(prompts, clicks, scale)
    masks = _masks(prompts, sizes, feature_hw, device)
    granularity = _granularity(prompts, device)
    _check_each(kinds, boxes, masks)
    side = _DEMO_CLICK * image if release else torch.full_like(image, CLICK_PX)
    starts, types, details = split_prompts(clicks * scale, kinds, boxes, side / batch, masks, granularity)
    return starts, torch.full_like(types, BOX_TYPE) if release else types, details


def _clicks(prompts: InstanceData, device: torch.device) -> tuple[Tensor, Tensor]:
    """(P, K, 2) x, y in pixels of the original image and (P, K) kinds, K at least 1."""
    if 'points' not in prompts:
        if 'point_labels' in prompts:
            raise UnSAMError('UnSAMPromptHead: prompts.point_labels is given without prompts.points; give both')
        count = len(prompts)
        return torch.zeros(count, 1, 2, device=device), torch.full((count, 1), ABSENT, device=device)
    points = torch.as_tensor(prompts.points, dtype=torch.float32, device=device)
    if points.ndim not in (2, 3) or points.shape[-1] != 2 or 0 in points.shape[1:]:
        raise _shape_error('points', '(P, 2) or (P, K, 2)', points)
    kinds = torch.full(points.shape[:-1], POSITIVE, device=device)
    if 'point_labels' in prompts:
        labels = torch.as_tensor(prompts.point_labels, device=device)
        if labels.shape != kinds.shape:
            raise _shape_error('point_labels', f'{tuple(kinds.shape)}, one for each of points', labels)
        if not torch.isin(labels, torch.tensor([ABSENT, 0, POSITIVE], device=device)).all():
            raise UnSAMError(
                f'UnSAMPromptHead: prompts.point_labels must be 1 (positive), 0 (negative) or -1 (no click), got '
                f'{labels.unique().tolist()}'
            )
        kinds = labels.long()
    if not points[kinds != ABSENT].isfinite().all():
        raise UnSAMError('UnSAMPromptHead: prompts.points must be finite; mark clicks to be left out by the label -1')
    points = points.masked_fill((kinds == ABSENT)[..., None], 0.0)
    return (points[:, None], kinds[:, None]) if points.ndim == 2 else (points, kinds)


def _boxes(prompts: InstanceData, clicks: Tensor, scale: Tensor) -> Tensor:
    """(P, 4) as centre x, y, width, height, relative to the padded image; NaN for prompts without a box."""
    if 'bboxes' not in prompts:
        return clicks.new_full((len(clicks), 4), math.nan)
    corners = torch.as_tensor(prompts.bboxes, dtype=torch.float32, device=clicks.device)
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise _shape_error('bboxes', '(P, 4)', corners)
    return bbox_xyxy_to_cxcywh(corners) * scale.repeat(2)


def _masks(
    prompts: InstanceData, sizes: ImageSizes, feature_hw: tuple[int, int], device: torch.device
) -> Tensor | None:
    """(P, H / 4, W / 4) bool masks at the size of the mask feature; None if the prompts have no `masks`."""
    if 'masks' not in prompts:
        return None
    given: Any = prompts.masks
    if isinstance(given, Sequence) and len(given) and isinstance(given[0], dict):
        given = decode_rles(rles_from_json(given, sizes.original), sizes.original)
    masks = torch.as_tensor(np.asarray(given) if isinstance(given, Sequence) else given, device=device)
    if masks.ndim != 3 or (len(masks) and tuple(masks.shape[1:]) != sizes.original):
        height, width = sizes.original
        raise _shape_error('masks', f'(P, {height}, {width}), the size of the original image', masks)
    size_hw = tuple(
        min(max(round(image * feature / batch), 1), feature)
        for image, feature, batch in zip(sizes.image, feature_hw, sizes.batch, strict=True)
    )
    found = torch.zeros(len(masks), *feature_hw, dtype=torch.bool, device=device)
    for mask, out in zip(masks, found, strict=True):  # one at a time, to save memory
        covered = interpolate((mask > 0).float()[None, None], size=size_hw, mode='area')[0, 0]
        # A mask that covers less than half of each pixel is set at the pixel of which it covers most.
        out[: size_hw[0], : size_hw[1]] = (covered > 0) & (covered >= covered.max().clamp(max=0.5))
    return found


def _granularity(prompts: InstanceData, device: torch.device) -> Tensor | None:
    """(P,) granularities, NaN for prompts without one; None if the prompts have no `granularity`."""
    if 'granularity' not in prompts:
        return None
    values = torch.as_tensor(prompts.granularity, dtype=torch.float32, device=device)
    if values.ndim != 1:
        raise _shape_error('granularity', '(P,)', values)
    if not (values.isnan() | ((values >= 0) & (values <= 1))).all():
        raise UnSAMError(
            f'UnSAMPromptHead: prompts.granularity must lie in [0, 1], or be NaN if unknown, got {values.tolist()}'
        )
    return values


def _check_each(kinds: Tensor, boxes: Tensor, masks: Tensor | None) -> None:
    known = (kinds == POSITIVE).any(dim=1) | ~boxes.isnan().any(dim=1)
    if masks is not None:
        known = known | masks.flatten(1).any(dim=1)
    if not known.all():
        raise UnSAMError(
            f'UnSAMPromptHead: prompt {int((~known).nonzero()[0, 0])} has no positive click, no box and no mask; each '
            'needs one of them'
        )


def _shape_error(name: str, expected: str, found: Tensor) -> UnSAMError:
    return UnSAMError(f'UnSAMPromptHead: prompts.{name} must be {expected}, got {tuple(found.shape)}')
