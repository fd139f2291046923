"""Automatic masks of the region model: predictions for many seeds and granularities, with soft NMS."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.ops import parents_by_containment, soft_nms
from unsam_mm.masks.rle import LabelRuns
from unsam_mm.student.network import RegionNet
from unsam_mm.student.pairs import RegionInputs
from unsam_mm.student.prompts import RegionPrompts
from unsam_mm.student.tokens import RegionTokens

_MIN_GRANULARITY = 0.02  # nodes of smaller granularity cover about a ten-thousandth of the image or less
_PAIRS_AT_A_TIME = 100_000  # prompts times regions: 130 prompts on 768 regions take about 50 MB
_SHARPNESS = 6.0  # power of the IoU in soft NMS, as in the ranking of pseudo-masks


@torch.no_grad()
def propose(
    net: RegionNet,
    inputs: RegionInputs,
    n_seeds: int = 256,
    granularity_step: float = 0.05,
    max_masks: int = 1000,
    duplicate_iou: float = 0.95,
    repetition: float = 0.5,
) -> tuple[np.ndarray, np.ndarray]:
    """The masks of an image, best first.

    Args:
        net: The network, on the device of the inputs.
        inputs: Inputs for the image.
        n_seeds: Maximum number of seed regions. If there are more regions, larger ones are drawn more often; the draw
            is the same in every call.
        granularity_step: Smallest difference of the granularities of one seed.
        max_masks: Maximum number of masks.
        duplicate_iou: Masks with a larger IoU with a better mask are removed.
        repetition: Parameter of soft NMS, see `keep_distinct`.

    Returns:
        masks: (N, L) bool regions of each mask.
        scores: (N,) float32 in [0, 1], in descending order.

    Raises:
        UnSAMError: If a number is out of range.
    """
    if n_seeds < 1 or max_masks < 1 or not granularity_step > 0:
        raise UnSAMError(
            f'n_seeds={n_seeds}, max_masks={max_masks} and granularity_step={granularity_step} must be positive'
        )
    encoded = net.encode(inputs)
    seeds, granularity = _seed_prompts(inputs, n_seeds, granularity_step)
    masks, score_logits = decode_seeds(net, inputs, encoded, seeds, granularity)
    scores = score_logits[:, 0].sigmoid().float()
    areas = inputs.areas_px.cpu().numpy()
    return keep_distinct(masks.cpu().numpy(), scores.cpu().numpy(), areas, duplicate_iou, max_masks, repetition)


def decode_seeds(
    net: RegionNet, inputs: RegionInputs, encoded: Tensor, seeds: Tensor, granularity: Tensor
) -> tuple[Tensor, Tensor]:
    """(Q, L) bool masks and (Q, 2) score logits for (Q,) seed regions and (Q,) granularities, in parts, to save memory.

    See `RegionNet.decode` for the other arguments.
    """
    n_prompts = max(1, _PAIRS_AT_A_TIME // len(inputs))
    masks, scores = [], []
    for part in zip(seeds.split(n_prompts), granularity.split(n_prompts), strict=True):
        logits, score_logits = net.decode(inputs, encoded, RegionPrompts.from_seeds(inputs, *part))
        masks.append(logits > 0)
        scores.append(score_logits)
    return torch.cat(masks), torch.cat(scores)


def keep_distinct(
    masks: np.ndarray,
    scores: np.ndarray,
    areas_px: np.ndarray,
    max_iou: float,
    max_masks: int,
    repetition: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Non-maximum suppression of masks over regions: hard above `max_iou`, soft below it; empty masks are removed.

    Args:
        masks: (N, L) bool.
        scores: (N,) float32 in [0, 1]; of masks with equal scores, the first counts as better.
        areas_px: (L,) float area of each region.
        max_iou: Masks with a larger IoU with a better mask are removed.
        max_masks: Maximum number of masks.
        repetition: Fraction of its score that a mask loses to a better mask with an IoU of 1; see `soft_nms`.

    Returns:
        The (K, L) bool masks, best first, and their reduced (K,) float32 scores.
    """
    order = np.argsort(-scores, kind='stable')
    # Equal masks, of which there are many, are removed first: the comparison of all pairs takes quadratic time.
    _, firsts = np.unique(np.packbits(masks[order], axis=1), axis=0, return_index=True)
    distinct = order[np.sort(firsts)]
    distinct = distinct[masks[distinct].any(axis=1)]
    members = masks[distinct].astype(np.float32)
    weighted = members * areas_px.astype(np.float32)
    ious = (torch.from_numpy(weighted) @ torch.from_numpy(members).T).numpy()
    totals = weighted.sum(axis=1)
    for own, total in zip(ious, totals, strict=True):  # by row, to save memory
        own /= total + totals - own
    kept, left = soft_nms(
        scores[distinct].astype(np.float64), ious, repetition, _SHARPNESS, max_iou=max_iou, max_kept=max_masks
    )
    return masks[distinct[kept]], left.astype(np.float32)


def to_mask_set(tokens: RegionTokens, masks: np.ndarray, scores: np.ndarray) -> MaskSet:
    """Converts masks over regions to a `MaskSet`.

    Args:
        tokens: Region tokens of the image.
        masks: (N, L) bool, none empty.
        scores: (N,) float in [0, 1].

    Returns:
        The masks in the given order.
    """
    masks = np.asarray(masks, bool)
    runs = LabelRuns(tokens.labels, len(tokens))
    members = torch.from_numpy(masks.astype(np.float32))
    shared = (members @ members.T).numpy()
    parents = parents_by_containment(shared == np.diag(shared)[:, None], masks @ tokens.areas_px.astype(np.int64))
    return MaskSet.from_rles([runs.encode_set(mask) for mask in masks], scores, tokens.size_hw, parents)


def _seed_prompts(inputs: RegionInputs, n_seeds: int, step: float) -> tuple[Tensor, Tensor]:
    """(Q,) seeds and (Q,) granularities, grouped by seed."""
    if len(inputs) > n_seeds:
        lot = torch.rand(len(inputs), generator=torch.Generator().manual_seed(0)).to(inputs.device)
        seeds = torch.argsort(lot / inputs.areas_px.sqrt())[:n_seeds]
    else:
        seeds = torch.arange(len(inputs), device=inputs.device)
    on_paths = inputs.pairs[seeds, :, : inputs.n_trees].flatten(1).sort(dim=1).values.cpu().numpy()
    rows, granularity = thinned(on_paths, _MIN_GRANULARITY, step)
    return seeds[torch.from_numpy(rows).to(seeds.device)], torch.from_numpy(granularity).to(inputs.device)


@numba.njit(nogil=True, cache=True)
def thinned(values, least, step):
    """The values of each sorted row above `least`, at least a step apart, as row indices and values."""
    rows, found = np.empty(values.size, np.int64), np.empty(values.size, values.dtype)
    count = 0
    for row in range(values.shape[0]):
        last = -np.inf
        for value in values[row]:
            if value > least and value - last >= step:
                rows[count], found[count] = row, value
                last = value
                count += 1
    return rows[:count].copy(), found[:count].copy()
