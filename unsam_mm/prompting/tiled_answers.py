"""Combines the masks that tiles of several pyramid levels predict for a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from unsam_mm.masks.granularity import area_granularity, nearest_area
from unsam_mm.prompting.prompt import Prompt
from unsam_mm.prompting.tile_pyramid import MaskCrop, Tile, TilePyramid

_SAME_IOU = 0.8
_LEVEL_PENALTY = 0.5  # factor of scores for each level after the leading one
_DECADES_IN_TILE = 4  # the smallest mask tried in a tile has an area of 10^-4 of the tile
_STEPS_PER_DECADE = 8  # areas that are tried for each factor of ten


def combine_levels(
    levels: Iterable[tuple[list[MaskCrop | None], np.ndarray]], count: int
) -> tuple[list[MaskCrop], np.ndarray]:
    """Combines the masks for one prompt from tiles of increasing coarseness.

    The leading level is the first one whose best mask does not extend beyond its tile. The scores of every other level
    are scaled so that its best mask gets the score of the best mask of the leading level. They are halved for each level
    after the leading one, since coarser levels resolve less detail.

    Args:
        levels: At least one mask of each level, with None for masks that may extend beyond the tile, and their (C,)
            scores. Coarser levels are not read once there is a leading level and enough masks.
        count: Number of masks wanted.

    Returns:
        At most `count` masks, best first, and their float32 scores.
    """
    kept: list[MaskCrop] = []
    relative_scores: list[float] = []  # relative to the score of the best mask
    leading_score, best_score, n_after = None, 0.0, 0
    for crops, scores in levels:
        best = int(np.argmax(scores))
        best_score = float(scores[best])
        leads = leading_score is None and crops[best] is not None
        n_after += leading_score is not None
        weight = _LEVEL_PENALTY**n_after
        finer, largest = list(kept), max((crop.area for crop in kept), default=0)
        for number in np.argsort(-scores, kind='stable'):
            crop = crops[number]
            if crop is None:
                continue
            score = weight * float(scores[number]) / max(best_score, np.finfo(np.float32).tiny)
            same = [i for i, other in enumerate(finer) if crop.iou(other) > _SAME_IOU]
            if same:  # the mask of the finer tile is kept, which is more accurate
                relative_scores[same[0]] = max(relative_scores[same[0]], score)
            elif crop.area > largest or (leads and number == best):
                kept.append(crop)
                relative_scores.append(score)
        if leads:
            leading_score = best_score
        if leading_score is not None and len(kept) >= count:
            break
    relative = np.array(relative_scores)
    order = np.argsort(-relative, kind='stable')[:count]
    scale = best_score if leading_score is None else leading_score
    return [kept[i] for i in order], (relative[order] * scale).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _SizedMask:
    """The mask for one area.

    Attributes:
        number: Index of the tile at which the search for the next area begins.
        found: The tile of the mask, and the (h, w) bool mask; None if there is none.
        area: Area of the mask in pixels of the plane.
        score: Its score.
    """

    number: int = 0
    found: tuple[Tile, np.ndarray] | None = None
    area: int = 0
    score: float = 0.0


class MasksBySize:
    """Masks for one prompt by area; a larger wanted area never gives a smaller mask.

    Areas from a ten-thousandth of a tile of the finest level to the whole plane are tried in ascending order, eight
    for each factor of ten, up to the wanted area. If the mask may extend beyond the tile, the next coarser tile is
    used. A mask smaller than the previous one is not accepted.

    Args:
        masks_in: See `TiledEngine.masks_in`.
        crops_in: See `TiledEngine.crops_in`.
        pyramid: The tiles of the plane.
        tiles: The tiles that contain the prompt, finest first.
        prompt: The prompt.
    """

    def __init__(
        self,
        masks_in: Callable[[Tile, Prompt, float | None], tuple[np.ndarray, np.ndarray]],
        crops_in: Callable[[Tile, np.ndarray, Prompt], list[MaskCrop | None]],
        pyramid: TilePyramid,
        tiles: list[Tile],
        prompt: Prompt,
    ) -> None:
        self._masks_in, self._crops_in = masks_in, crops_in
        self._pyramid, self._tiles, self._prompt = pyramid, tiles, prompt
        self._masks: list[_SizedMask] = []
        height, width = pyramid.size_hw
        finest = min(height, pyramid.side_px) * min(width, pyramid.side_px)
        self._plane_px = height * width
        self._last = math.ceil(_STEPS_PER_DECADE * (_DECADES_IN_TILE + math.log10(self._plane_px / finest)))

    def answer(self, area_px: float) -> tuple[list[MaskCrop], np.ndarray]:
        """The mask of the nearest area and its (1,) score, or no mask if none agrees with the prompt.

        The area is in pixels of the plane; 0 gives the smallest mask.
        """
        step = 0
        if area_px > 0:
            step = round(self._last + _STEPS_PER_DECADE * math.log10(area_px / self._plane_px))
        step = min(max(step, 0), self._last)
        while len(self._masks) <= step:
            self._masks.append(self._next())
        masks = [mask for mask in self._masks[: step + 1] if mask.found is not None]
        if not masks:
            return [], np.zeros(0, np.float32)
        nearest = masks[nearest_area(np.array([mask.area for mask in masks]), area_px)]
        tile, mask = nearest.found
        return self._crops_in(tile, mask[None], self._prompt), np.array([nearest.score], np.float32)

    def _next(self) -> _SizedMask:
        previous = self._masks[-1] if self._masks else _SizedMask()
        wanted_px = self._plane_px * 10.0 ** ((len(self._masks) - self._last) / _STEPS_PER_DECADE)
        for number in range(previous.number, len(self._tiles)):
            tile = self._tiles[number]
            tile_area_px = self._pyramid.area_of(tile)
            if wanted_px > tile_area_px and number + 1 < len(self._tiles):
                continue
            masks, scores = self._masks_in(tile, self._prompt, float(area_granularity(wanted_px, tile_area_px)))
            if len(masks) and previous.found and previous.found[0] == tile and (masks[0] == previous.found[1]).all():
                return previous
            crops = self._crops_in(tile, masks, self._prompt)
            if crops and crops[0] is not None:
                if crops[0].area < previous.area:
                    return replace(previous, number=number)
                return _SizedMask(number, (tile, masks[0].copy()), crops[0].area, float(scores[0]))
        return replace(previous, number=max(len(self._tiles) - 1, 0))
