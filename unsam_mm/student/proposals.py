"""Automatic masks of the region model: predictions for many seeds and granularities, with soft NMS."""

from __future__ import annotations

import numba
import numpy as np
import torch
from pycocotools import mask as coco_mask
from scipy import ndimage
from torch import Tensor

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import Rle
from unsam_mm.student.network import RegionNet
from unsam_mm.student.pairs import RegionInputs
from unsam_mm.student.prompts import RegionPrompts
from unsam_mm.student.tokens import RegionTokens

_MIN_GRANULARITY = 0.02  # smaller nodes take about a ten-thousandth of the image
_PAIRS_AT_A_TIME = 100_000  # prompts times regions: 130 prompts on 768 regions take about 50 MB
_SHARPNESS = 6.0  # as in the ranking of pseudo-masks


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
        n_seeds: Maximum number of seed regions, drawn with probabilities by area.
        granularity_step: Smallest difference of the granularities of one seed.
        max_masks: Maximum number of masks.
        duplicate_iou: Masks with a larger IoU with a better mask are removed.
        repetition: Parameter of soft NMS, see `keep_distinct`.

    Returns:
        masks: (N, L) bool regions of each mask.
        scores: (N,) float32 in [0, 1], not increasing.

    Raises:
        UnSAMError: If a number is out of range.
    """
    if n_seeds < 1 or max_masks < 1 or not granularity_step > 0:
        raise UnSAMError(
            f'n_seeds={n_seeds}, max_masks={max_masks} and granularity_step={granularity_step} must be positive'
        )
    encoded = net.encode(inputs)
    seeds, granularity = _seed_prompts(inputs, n_seeds, granularity_step)
    masks, scores = [], []
    chunk = max(1, _PAIRS_AT_A_TIME // len(inputs))
    for asked, wanted in zip(seeds.split(chunk), granularity.split(chunk), strict=True):
        logits, score_logits = net.decode(inputs, encoded, RegionPrompts.from_seeds(inputs, asked, wanted))
        masks.append((logits > 0).cpu())
        scores.append(score_logits[:, 0].sigmoid().float().cpu())
    areas = inputs.areas_px.cpu().numpy()
    return keep_distinct(
        torch.cat(masks).numpy(), torch.cat(scores).numpy(), areas, duplicate_iou, max_masks, repetition
    )[:2]


def keep_distinct(
    masks: np.ndarray,
    scores: np.ndarray,
    areas_px: np.ndarray,
    max_iou: float,
    max_masks: int,
    repetition: float = 0.0,
    sharpness: float = _SHARPNESS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Non-maximum suppression of masks over regions, hard above an IoU and soft below it; empty masks are left out.

    Args:
        masks: (N, L) bool.
        scores: (N,) float32 in [0, 1]; of equal scores the first is better.
        areas_px: (L,) float area of each region.
        max_iou: Masks with a larger IoU with a better mask are removed.
        max_masks: Maximum number of masks.
        repetition: Fraction of its score that a mask loses to a better mask with an IoU of 1.
        sharpness: Power of the IoU in that fraction.

    Returns:
        The (K, L) bool masks, best first, their reduced (K,) float32 scores, and their (K,) indices.
    """
    order = np.argsort(-scores, kind='stable')
    # Equal masks, of which there are many, are removed first: the comparison of all pairs takes quadratic time.
    _, firsts = np.unique(np.packbits(masks[order], axis=1), axis=0, return_index=True)
    distinct = order[np.sort(firsts)]
    distinct = distinct[masks[distinct].any(axis=1)]
    members = masks[distinct].astype(np.float32)
    weighted = members * areas_px.astype(np.float32)
    shared = (torch.from_numpy(weighted) @ torch.from_numpy(members).T).numpy()
    totals = weighted.sum(axis=1)
    kept, left = _take(shared, totals, scores[distinct].astype(np.float64), max_iou, max_masks, repetition, sharpness)
    return masks[distinct[kept]], left.astype(np.float32), distinct[kept]


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
    areas = masks @ tokens.areas_px.astype(np.int64)
    return MaskSet(
        rles=_encode(tokens.labels, masks),
        scores=np.asarray(scores, np.float32),
        parents=_parents(masks, areas),
        areas=areas,
        boxes_xyxy=_boxes(tokens, masks),
        size_hw=tokens.size_hw,
    )


def _seed_prompts(inputs: RegionInputs, n_seeds: int, step: float) -> tuple[Tensor, Tensor]:
    """(Q,) seeds and (Q,) granularities, grouped by seed."""
    if len(inputs) > n_seeds:
        lot = torch.rand(len(inputs), generator=torch.Generator().manual_seed(0)).to(inputs.device)
        seeds = torch.argsort(lot / inputs.areas_px.sqrt())[:n_seeds]
    else:
        seeds = torch.arange(len(inputs), device=inputs.device)
    on_paths = inputs.pairs[seeds, :, : inputs.n_trees].flatten(1).sort(dim=1).values.cpu().numpy()
    rows, granularity = _thinned(on_paths, _MIN_GRANULARITY, step)
    return seeds[torch.from_numpy(rows).to(seeds.device)], torch.from_numpy(granularity).to(inputs.device)


@numba.njit(nogil=True, cache=True)
def _thinned(values, least, step):
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


@numba.njit(nogil=True, cache=True)
def _take(shared, areas, scores, max_iou, max_kept, repetition, sharpness):
    """The greedy loop of `keep_distinct`: indices of the selected masks, and their scores at the time of selection."""
    n_masks = len(scores)
    left = scores.copy()
    kept, values = np.empty(min(n_masks, max_kept), np.int64), np.empty(min(n_masks, max_kept))
    for count in range(len(kept)):
        best = left.argmax()
        if left[best] <= 0:
            return kept[:count].copy(), values[:count].copy()
        kept[count], values[count] = best, left[best]
        left[best] = 0
        for other in range(n_masks):
            if left[other] > 0 and shared[best, other] > 0:
                iou = shared[best, other] / (areas[best] + areas[other] - shared[best, other])
                left[other] = 0.0 if iou > max_iou else left[other] * (1 - repetition * iou**sharpness)
    return kept, values


def _encode(labels: np.ndarray, masks: np.ndarray) -> list[Rle]:
    """RLEs of masks over regions, from the column-major runs of the label map."""
    height, width = labels.shape
    flat = labels.T.ravel()
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    runs = flat[starts]
    encoded = []
    for mask in masks:
        inside = mask[runs]
        changes = starts[np.flatnonzero(np.diff(inside, prepend=False))]
        counts = np.diff(changes, prepend=0, append=flat.size)
        encoded.append({'size': [height, width], 'counts': counts.tolist()})
    return coco_mask.frPyObjects(encoded, height, width) if encoded else []


def _parents(masks: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """(N,) index of the smallest larger mask that contains each mask, or -1."""
    members = torch.from_numpy(masks.astype(np.float32))
    shared = (members @ members.T).numpy()
    order = np.argsort(areas, kind='stable')
    holds = (shared == np.diag(shared)[:, None]) & (areas[None] > areas[:, None])
    holds = holds[:, order]
    return np.where(holds.any(axis=1), order[holds.argmax(axis=1)], -1) if len(masks) else np.zeros(0, np.int64)


def _boxes(tokens: RegionTokens, masks: np.ndarray) -> np.ndarray:
    """(N, 4) float32 bounding boxes x0, y0, x1, y1 in pixels; right and bottom edges exclusive."""
    slices = ndimage.find_objects(tokens.labels.astype(np.int32) + 1, len(tokens))
    low = np.array([(columns.start, rows.start) for rows, columns in slices], np.float32)
    high = np.array([(columns.stop, rows.stop) for rows, columns in slices], np.float32)
    sides = [np.where(masks, low[:, axis], np.inf).min(axis=1) for axis in range(2)]
    sides += [np.where(masks, high[:, axis], 0).max(axis=1) for axis in range(2)]
    return np.stack(sides, axis=1).astype(np.float32)
