"""Prompt tensors of the region model: distances of each region to the prompted regions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from unsam_mm.student.pairs import RegionInputs

FAR = 1.5
"""Distance to the nearest positive or negative region if a prompt has none; larger than most distances that occur."""

EXTRA_CHANNELS = 5
"""Number of channels after the distances: has negatives, in the box, has a box, earlier mask, has an earlier mask."""

_HAS_NEGATIVE, _IN_BOX, _HAS_BOX, _EARLIER, _HAS_EARLIER = range(-EXTRA_CHANNELS, 0)


@dataclass(frozen=True, eq=False)
class RegionPrompts:
    """Q prompts on an image of L regions with P distances for each pair.

    Attributes:
        channels: (Q, L, 2 P + 5) float32; distances to the nearest positive region and to the nearest negative region,
            then those of `EXTRA_CHANNELS`.
        weights: (Q, L) float32 attention weights of the prompted regions, with a sum of 1.
        granularity: (Q,) float32 in [0, 1]; NaN if unknown.
    """

    channels: Tensor
    weights: Tensor
    granularity: Tensor

    @classmethod
    def from_seeds(cls, inputs: RegionInputs, seeds: Tensor, granularity: Tensor | None = None) -> RegionPrompts:
        """Prompts of one positive region each.

        Args:
            inputs: Inputs for the image.
            seeds: (Q,) int64 regions.
            granularity: (Q,), NaN where unknown; by default all unknown.
        """
        n_distances = inputs.pairs.shape[-1]
        channels = inputs.pairs.new_zeros(len(seeds), len(inputs), 2 * n_distances + EXTRA_CHANNELS)
        channels[..., :n_distances] = inputs.pairs[seeds]
        channels[..., n_distances : 2 * n_distances] = FAR
        weights = channels.new_zeros(len(seeds), len(inputs))
        weights[torch.arange(len(seeds), device=weights.device), seeds] = 1
        return cls(channels, weights, _granularity(granularity, weights))

    @classmethod
    def from_parts(
        cls,
        inputs: RegionInputs,
        positive: Tensor,
        negative: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
        previous: Tensor | None = None,
        granularity: Tensor | None = None,
    ) -> RegionPrompts:
        """Prompts of clicks, boxes and earlier masks; each part may be missing in any prompt.

        Args:
            inputs: Inputs for the image.
            positive: (Q, K) int64 regions, -1 for none; K may be 0.
            negative: (Q, K') int64 regions, -1 for none.
            boxes_xyxy: (Q, 4) float in pixels; a row of NaN for no box.
            previous: (Q, L) float in [0, 1], fraction of each region that the earlier mask covers; a row of NaN for
                none.
            granularity: (Q,) float, NaN where unknown; by default all unknown.
        """
        n_distances, n_prompts = inputs.pairs.shape[-1], len(positive)
        channels = inputs.pairs.new_zeros(n_prompts, len(inputs), 2 * n_distances + EXTRA_CHANNELS)
        channels[..., :n_distances] = _nearest(inputs.pairs, positive)
        weights = _evenly(positive, len(inputs)).to(channels)
        channels[..., n_distances : 2 * n_distances] = FAR
        if negative is not None:
            channels[..., n_distances : 2 * n_distances] = _nearest(inputs.pairs, negative)
            channels[..., _HAS_NEGATIVE] = (negative >= 0).any(1, keepdim=True).to(channels)
        if boxes_xyxy is not None:
            has_box = ~boxes_xyxy.isnan().any(1, keepdim=True)
            inside = _inside(inputs, boxes_xyxy) * has_box
            channels[..., _IN_BOX], channels[..., _HAS_BOX] = inside, has_box.to(channels)
            pixels = inside * inputs.areas_px
            in_box = pixels / pixels.sum(1, keepdim=True).clamp(min=1)
            weights = torch.where((positive >= 0).any(1, keepdim=True), weights, in_box)
        if previous is not None:
            has_previous = ~previous.isnan().any(1, keepdim=True)
            channels[..., _EARLIER] = torch.where(has_previous, previous, 0.0)
            channels[..., _HAS_EARLIER] = has_previous.to(channels)
        return cls(channels, weights, _granularity(granularity, weights))


def _granularity(given: Tensor | None, weights: Tensor) -> Tensor:
    return weights.new_full(weights.shape[:1], torch.nan) if given is None else given.to(weights)


def _nearest(pairs: Tensor, regions: Tensor) -> Tensor:
    """(Q, L, P) distance of each kind to the nearest of the (Q, K) regions; `FAR` for prompts without regions."""
    nearest = pairs.new_full((len(regions), *pairs.shape[1:]), torch.inf)
    for column in regions.unbind(1):  # one click after another, to save memory
        distances = pairs[column.clamp(min=0)]
        distances[column < 0] = torch.inf
        nearest = torch.minimum(nearest, distances)
    nearest[(regions < 0).all(1)] = FAR
    return nearest


def _evenly(regions: Tensor, n_tokens: int) -> Tensor:
    """(Q, L) equal weights on the distinct regions of each prompt."""
    weights = torch.zeros(len(regions), n_tokens + 1, device=regions.device)
    weights.scatter_(1, torch.where(regions < 0, n_tokens, regions), 1.0)
    weights = weights[:, :n_tokens]
    return weights / weights.sum(1, keepdim=True).clamp(min=1)


def _inside(inputs: RegionInputs, boxes_xyxy: Tensor) -> Tensor:
    """(Q, L) 1 for regions whose centre is in the box, else for the region nearest to the centre of the box."""
    x0, y0, x1, y1 = (boxes_xyxy / max(inputs.size_hw)).to(inputs.areas_px)[:, :, None].unbind(1)
    y, x = inputs.centres_yx.unbind(1)
    inside = (x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)
    distance = ((x0 + x1) / 2 - x) ** 2 + ((y0 + y1) / 2 - y) ** 2
    nearest = distance <= distance.amin(1, keepdim=True)
    return torch.where(inside.any(1, keepdim=True), inside, nearest).to(inputs.areas_px)
