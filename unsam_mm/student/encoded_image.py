"""Masks of the region model for clicks, boxes and earlier masks on one image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.granularity import area_granularity, granularity_area, nearest_area
from unsam_mm.masks.ops import box_iou
from unsam_mm.masks.partition import Partition
from unsam_mm.student.network import RegionNet
from unsam_mm.student.pairs import RegionInputs
from unsam_mm.student.prompts import RegionPrompts
from unsam_mm.student.proposals import decode_seeds, thinned
from unsam_mm.student.tokens import RegionTokens

_GRANULARITY_STEP = 0.03  # smallest difference of the granularities of one prompt: about a third more area
_BOX_FRACTIONS = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)  # areas of the object, relative to the area of the box
_PREVIOUS_POWER = 0.25  # power of the IoU with the earlier mask; low, since the clicks correct that mask
_MIN_SCORE = 1e-6
_VIOLATION_PENALTY = 0.5  # factor of the score for each region of a click that the predicted mask violates


@dataclass(frozen=True, eq=False)
class RegionPrompt:
    """One prompt, as sets of regions; `RegionPrompts` are several, as inputs of the network.

    Attributes:
        positive: (K,) int64 regions that belong to the object.
        negative: (K',) int64 regions that do not belong to it.
        box_xyxy: (4,) float box around the object in pixels, or None.
        previous: (L,) float32 fraction of each region that the earlier mask covers, or None.
    """

    positive: np.ndarray
    negative: np.ndarray
    box_xyxy: np.ndarray | None = None
    previous: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Predictions:
    """Masks over regions that the model predicts for a prompt.

    Attributes:
        masks: (Q, L) bool; each contains all positive regions and no negative one.
        scores: (Q,) float32 in [0, 1].
        granularity: (Q,) float32 granularity at which a mask was predicted; NaN for the mask without one, and for the
            masks for single regions.
    """

    masks: np.ndarray
    scores: np.ndarray
    granularity: np.ndarray


class EncodedImage:
    """An image that is encoded by the region model once and can be prompted many times.

    Args:
        net: The network, on the device to be used.
        tokens: Region tokens of the image.

    Raises:
        UnSAMError: If the tokens do not match the network.
    """

    @torch.no_grad()
    def __init__(self, net: RegionNet, tokens: RegionTokens) -> None:
        self.net, self.tokens = net, tokens
        self.inputs = RegionInputs.from_tokens(tokens).to(next(net.parameters()).device)
        self.encoded: Tensor = net.encode(self.inputs)
        self._areas_px = tokens.areas_px.astype(np.float64)

    def predict_at(self, prompt: RegionPrompt, granularity: float) -> tuple[np.ndarray, np.ndarray]:
        """The (1, L) bool mask at a granularity and its (1,) float32 score; (0, L) and (0,) if all masks are empty.

        Masks are predicted at the granularities of the nodes that contain at least one positive region, or at evenly
        spaced granularities for a box alone. The one of the nearest area is returned, so the area never falls as the
        granularity rises.

        Args:
            prompt: At least one positive region or a box.
            granularity: In [0, 1], see `unsam_mm.masks.granularity`.

        Raises:
            UnSAMError: If there is neither a positive region nor a box.
        """
        # By default, `predict` uses only granularities near that of the box if there is no positive region. The last of
        # these steps is 1.02.
        steps = None if len(prompt.positive) else np.arange(0, 1 + _GRANULARITY_STEP, _GRANULARITY_STEP, np.float32)
        predictions = self.predict(prompt, steps)
        known = np.flatnonzero(~np.isnan(predictions.granularity) & predictions.masks.any(axis=1))
        if len(known) == 0:
            return predictions.masks[:0], predictions.scores[:0]
        known = known[np.argsort(-predictions.scores[known], kind='stable')]  # of equal areas, the best mask is first
        wanted_px = granularity_area(granularity, self._areas_px.sum())
        chosen = known[[nearest_area(predictions.masks[known] @ self._areas_px, wanted_px)]]
        return predictions.masks[chosen], predictions.scores[chosen]

    @torch.no_grad()
    def predict(self, prompt: RegionPrompt, granularities: np.ndarray | None = None) -> Predictions:
        """Masks for a prompt: first one without a granularity, then one at each granularity.

        With several regions, masks for each positive region alone follow. A mask that lacks a positive region or has a
        negative one is corrected by adding or removing regions, and its score is halved for each such region. An empty
        mask becomes the region of the highest logit.

        Args:
            prompt: At least one positive region or a box.
            granularities: (G,) float32; by default those of the nodes that contain a positive region, or, if there is
                only a box, several near that of the box, in ascending order.

        Raises:
            UnSAMError: If there is neither a positive region nor a box.
        """
        if len(prompt.positive) == 0 and prompt.box_xyxy is None:
            raise UnSAMError('a prompt needs a positive point or a box')
        if granularities is None and len(prompt.positive):
            granularities = self._path_granularities(prompt.positive)
        elif granularities is None:
            granularities = self._box_granularities(prompt.box_xyxy)
        granularity = np.concatenate([np.array([np.nan], np.float32), granularities])
        masks, scores, logits = self._decode(self._prompts(prompt, torch.from_numpy(granularity)))
        several = len(prompt.positive) + len(prompt.negative) > 1
        if several:
            seeds, seed_granularity = self._path_prompts(np.concatenate([prompt.positive, prompt.negative]))
            single = self._decode(
                RegionPrompts.from_seeds(self.inputs, self._tensor(seeds), self._tensor(seed_granularity))
            )
            is_positive = np.isin(seeds, prompt.positive)
            masks, scores, logits = (
                np.concatenate([values, for_seeds[is_positive]])
                for values, for_seeds in zip((masks, scores, logits), single, strict=True)
            )
            granularity = np.concatenate([granularity, np.full(is_positive.sum(), np.nan, np.float32)])
        violations = (~masks[:, prompt.positive]).sum(axis=1) + masks[:, prompt.negative].sum(axis=1)
        scores = scores * _VIOLATION_PENALTY**violations
        if several:
            self._correct(masks, prompt, seeds, *single[:2])
        masks[:, prompt.negative] = False
        masks[:, prompt.positive] = True
        logits[:, prompt.negative] = -np.inf
        if len(prompt.negative) < len(self.tokens):  # if all regions are negative, all masks stay empty
            masks[np.arange(len(masks)), logits.argmax(axis=1)] |= ~masks.any(axis=1)
        if prompt.box_xyxy is not None:
            scores *= box_iou(self._regions.boxes_of(masks), prompt.box_xyxy)
        if prompt.previous is not None:
            scores *= self._soft_iou(masks, prompt.previous) ** _PREVIOUS_POWER
        return Predictions(masks, np.maximum(scores, _MIN_SCORE).astype(np.float32), granularity)

    def region_prompt(
        self,
        points_xy: np.ndarray,
        positive: np.ndarray,
        box_xyxy: np.ndarray | None = None,
        previous: np.ndarray | None = None,
    ) -> RegionPrompt:
        """A prompt as sets of regions; a region with positive and negative clicks counts as positive.

        Args:
            points_xy: (N, 2) int64 pixel coordinates inside the image.
            positive: (N,) bool.
            box_xyxy: (4,) float box in pixels, or None.
            previous: (H, W) bool earlier mask, or None.
        """
        regions = self.regions_at(points_xy)
        inside = np.unique(regions[positive])
        outside = np.setdiff1d(regions[~positive], inside)
        return RegionPrompt(inside, outside, box_xyxy, None if previous is None else self.coverage_of(previous))

    def mask_at(
        self, granularity: float, points_xy: np.ndarray, positive: np.ndarray, box_xyxy: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(1, H, W) bool mask at a granularity, and its (1,) float32 score; the mask agrees with every click.

        Both are empty, (0, H, W) and (0,), if all masks are empty.

        A region with positive and negative clicks is split: each of its pixels follows the nearest click. See
        `predict_at` for the granularity, and `region_prompt` for the other arguments.

        Raises:
            UnSAMError: If there is neither a positive click nor a box.
        """
        members, scores = self.predict_at(self.region_prompt(points_xy, positive, box_xyxy), granularity)
        masks, labels, regions = self.bitmaps(members), self.tokens.labels, self.regions_at(points_xy)
        for region in np.intersect1d(regions[positive], regions[~positive]):
            y, x = np.nonzero(labels == region)
            pixels = np.stack([x, y], axis=1)
            to_inside, to_outside = (
                np.linalg.norm(pixels[:, None] - points_xy[kind & (regions == region)], axis=2).min(axis=1)
                for kind in (positive, ~positive)
            )
            masks[:, y, x] = to_inside <= to_outside
        return masks, scores

    @torch.no_grad()
    def stability(self, masks: np.ndarray) -> np.ndarray:
        """(N,) float32 stability of (N, L) bool masks, none empty.

        It is the IoU of a mask with the prediction for its largest region at its granularity.
        """
        members = self._tensor(masks)
        pixels = members * self.inputs.areas_px
        granularity = area_granularity(pixels.sum(1), self.inputs.areas_px.sum())
        again, _ = decode_seeds(self.net, self.inputs, self.encoded, pixels.argmax(1), granularity)
        shared, either = members & again, members | again
        areas = self.inputs.areas_px
        return ((shared * areas).sum(1) / (either * areas).sum(1)).cpu().numpy()

    def regions_at(self, points_xy: np.ndarray) -> np.ndarray:
        """(N,) int64 region at each of (N, 2) pixel coordinates inside the image."""
        x, y = np.asarray(points_xy, np.int64).reshape(-1, 2).T
        return self.tokens.labels[y, x].astype(np.int64)

    def coverage_of(self, mask: np.ndarray) -> np.ndarray:
        """(L,) float32 fraction of each region that an (H, W) bool mask covers."""
        inside = np.bincount(self.tokens.labels[mask], minlength=len(self.tokens))
        return (inside / self._areas_px).astype(np.float32)

    def bitmaps(self, masks: np.ndarray) -> np.ndarray:
        """(N, H, W) bool bitmaps of (N, L) bool masks over regions."""
        bitmaps = np.empty((len(masks), *self.tokens.size_hw), bool)
        for members, bitmap in zip(masks, bitmaps, strict=True):
            np.take(members, self.tokens.labels, out=bitmap, mode='clip')  # the mode 'raise' would buffer the output
        return bitmaps

    def _decode(self, prompts: RegionPrompts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(Q, L) bool masks, (Q,) float32 scores for a click, and (Q, L) float32 logits."""
        logits, scores = self.net.decode(self.inputs, self.encoded, prompts)
        return (logits > 0).cpu().numpy(), scores[:, 1].sigmoid().float().cpu().numpy(), logits.float().cpu().numpy()

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.inputs.device)

    def _path_prompts(self, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(Q,) int64 seeds, grouped, and (Q,) float32 granularities of nodes that contain the seed, for (K,) regions."""
        paths = [self._path_granularities(regions[[i]]) for i in range(len(regions))]
        return np.repeat(regions, [len(path) for path in paths]), np.concatenate(paths)

    def _correct(
        self, masks: np.ndarray, prompt: RegionPrompt, seeds: np.ndarray, seed_masks: np.ndarray, scores: np.ndarray
    ) -> None:
        """For each region that a mask wrongly lacks or has, adds the mask of that region or subtracts it, in place.

        `seed_masks` are (Q, L) masks predicted for single regions, the (Q,) `seeds`. The mask of a region is the best
        of those that contain it and no region of the other kind.
        """
        for region in np.unique(seeds):
            opposite = prompt.negative if region in prompt.positive else prompt.positive
            fits = (seeds == region) & seed_masks[:, region] & ~seed_masks[:, opposite].any(axis=1)
            if not fits.any():
                continue
            part = seed_masks[np.where(fits, scores, -1).argmax()]
            if region in prompt.positive:
                masks[~masks[:, region]] |= part
            else:
                masks[masks[:, region]] &= ~part

    def _path_granularities(self, regions: np.ndarray) -> np.ndarray:
        """(Q,) float32 granularities of the nodes that contain at least one of (K,) regions, ascending.

        The smallest, the largest, and those between them that are at least `_GRANULARITY_STEP` apart.
        """
        paths = self.inputs.pairs[self._tensor(regions), :, : self.inputs.n_trees]
        values = np.unique(paths.amin(0).cpu().numpy())
        _, taken = thinned(values[None], -np.inf, _GRANULARITY_STEP)
        return taken if taken[-1] == values[-1] else np.append(taken, values[-1])

    def _box_granularities(self, box_xyxy: np.ndarray) -> np.ndarray:
        """(Q,) float32 granularities of objects that fill the fractions `_BOX_FRACTIONS` of a box, ascending."""
        x0, y0, x1, y1 = box_xyxy
        areas_px = torch.tensor(_BOX_FRACTIONS) * float((x1 - x0) * (y1 - y0))
        return area_granularity(areas_px, self._areas_px.sum()).numpy()

    def _prompts(self, prompt: RegionPrompt, granularity: Tensor) -> RegionPrompts:
        """The same prompt at each granularity."""
        device, count = self.inputs.device, len(granularity)

        def repeated(values: np.ndarray, dtype: torch.dtype) -> Tensor:
            return torch.as_tensor(values, dtype=dtype, device=device).expand(count, -1)

        return RegionPrompts.from_parts(
            self.inputs,
            repeated(prompt.positive, torch.long),
            repeated(prompt.negative, torch.long) if len(prompt.negative) else None,
            None if prompt.box_xyxy is None else repeated(prompt.box_xyxy, torch.float32),
            None if prompt.previous is None else repeated(prompt.previous, torch.float32),
            granularity.to(device),
        )

    @cached_property
    def _regions(self) -> Partition:
        return Partition(self.tokens.labels)

    def _soft_iou(self, masks: np.ndarray, coverage: np.ndarray) -> np.ndarray:
        """(Q,) IoU of (Q, L) masks with a mask that covers the given (L,) fractions of the regions."""
        overlap = masks @ (coverage * self._areas_px)
        return overlap / np.maximum(masks @ self._areas_px + coverage @ self._areas_px - overlap, 1)
