"""Merges the automatic masks of the tiles of a plane into one mask set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.ops import box_intersections
from unsam_mm.masks.rle import Rle, decode_rles, encode_crop
from unsam_mm.prompting.tile_pyramid import Tile, TilePyramid, upsample_mask

_SAME_IOU = 0.8  # masks of two tiles with a larger IoU are duplicates
_INSIDE = 0.95  # fraction of a mask that its parent contains; boundaries of different levels differ by pixels
_SLACK_PX = 4  # additional margin for a mask to be assigned to a finer tile
_PARENTS_AT_ONCE = 8  # candidates for a parent that are compared at once, smallest first
_SPARE = 4  # the worst masks are removed once there are more than this many times the wanted number


@dataclass(eq=False)
class _PlaneMask:
    """One mask with its attributes."""

    rle: Rle
    score: float
    stability: float
    area: int
    box_xyxy: tuple[int, int, int, int]
    tile: Tile


class PlaneMasks:
    """Collects the best masks of all tiles of a plane as RLEs of the plane.

    A mask is accepted only from the tile whose centre is nearest to the centre of the mask, if it has a margin to the
    sides of that tile inside the plane, and if no finer tile contains it. Of duplicates in different tiles, the
    mask of the finer or earlier tile is kept; of duplicates in one tile, the better mask. Scores are normalised in
    each tile, so scores of different tiles are comparable only for tiles of similar content.

    Args:
        pyramid: The tiles of the plane.
        max_masks: Maximum number of masks.
        max_iou: Of two masks with a larger IoU one is kept; at most 0.8 for masks of different tiles.
    """

    def __init__(self, pyramid: TilePyramid, max_masks: int, max_iou: float) -> None:
        self._pyramid, self._max_masks, self._max_iou = pyramid, max_masks, max_iou
        self._found: list[_PlaneMask] = []
        self._boxes = np.zeros((0, 4), np.int64)  # boxes of `_found`

    def add(self, tile: Tile, masks: MaskSet, stability: np.ndarray, min_area_px: int) -> None:
        """Adds the masks of one tile; tiles must be added from the finest level to the coarsest.

        Args:
            tile: The tile.
            masks: Masks in pixels of the tile.
            stability: (N,) stability of the masks.
            min_area_px: Masks with a smaller area on the plane are removed.
        """
        owned = np.flatnonzero([self._is_owned(tile, box) for box in masks.boxes_xyxy])
        # Only masks that overlap the tile, and those added here, can be duplicates.
        before = _overlapping(self._boxes, tile.to_plane(np.array([0, 0, tile.width, tile.height])))
        near = [self._found[i] for i in before]
        boxes = np.concatenate([self._boxes[before], np.zeros((len(owned), 4), np.int64)])
        areas = np.array([mask.area for mask in near] + [0] * len(owned), np.int64)
        for i in owned:
            crop = upsample_mask(decode_rles([masks.rles[i]], masks.size_hw)[0], tile, self._pyramid.size_hw)
            if (area := crop.area) < min_area_px:
                continue
            rle = encode_crop(crop.bitmap, crop.top, crop.left, self._pyramid.size_hw)
            score = float(masks.scores[i])
            mask = _PlaneMask(rle, score, float(stability[i]), area, crop.box_xyxy, tile)
            alike = _may_overlap(boxes[: len(near)], areas[: len(near)], mask, min(self._max_iou, _SAME_IOU))
            if (same := self._same_as(mask, [near[j] for j in alike])) is None:
                boxes[len(near)], areas[len(near)] = mask.box_xyxy, area
                near.append(mask)
            else:
                same.score = max(same.score, score)
        self._found += near[len(before) :]
        self._boxes = np.concatenate([self._boxes, boxes[len(before) : len(near)]])
        if len(self._found) > _SPARE * self._max_masks:
            self._found = self._best()
            self._boxes = _boxes_of(self._found)

    def result(self) -> tuple[MaskSet, np.ndarray]:
        """The masks, best first, and their (N,) float32 stability; a parent contains at least 95 % of a mask."""
        best = self._best()
        rles, scores = [mask.rle for mask in best], [mask.score for mask in best]
        masks = MaskSet.from_rles(rles, scores, self._pyramid.size_hw, _parents(best))
        return masks, np.array([mask.stability for mask in best], np.float32)

    def _same_as(self, mask: _PlaneMask, near: list[_PlaneMask]) -> _PlaneMask | None:
        """The duplicate of a mask among others, if any."""
        overlaps = _overlap_ratios(mask.rle, [other.rle for other in near], of_first=False)
        limits = [self._max_iou if other.tile == mask.tile else min(self._max_iou, _SAME_IOU) for other in near]
        return near[int(overlaps.argmax())] if (overlaps > limits).any() else None

    def _best(self) -> list[_PlaneMask]:
        return sorted(self._found, key=lambda mask: -mask.score)[: self._max_masks]

    def _is_owned(self, tile: Tile, box_xyxy: np.ndarray) -> bool:
        """True if a mask with this box is assigned to this tile."""
        box = tile.to_plane(box_xyxy.astype(float))
        centre = (box[:2] + box[2:]) / 2
        if self._pyramid.tile_at(tile.level, centre) != tile or not tile.contains(box, tile.rim_px):
            return False
        if tile.level == 0:
            return True
        finer = self._pyramid.tile_at(tile.level - 1, centre)
        return not finer.contains(box, finer.rim_px + _SLACK_PX)


def _parents(masks: list[_PlaneMask]) -> np.ndarray:
    """(N,) int64 index of the smallest larger mask that contains at least 95 % of each mask, or -1."""
    parents = np.full(len(masks), -1, np.int64)
    order = np.argsort([mask.area for mask in masks], kind='stable')
    boxes, areas = _boxes_of([masks[i] for i in order]), np.array([masks[i].area for i in order])
    for i, mask in enumerate(masks):
        first = int(np.searchsorted(areas, mask.area, side='right'))
        larger = first + np.flatnonzero(
            box_intersections(boxes[first:], np.array(mask.box_xyxy)) >= _INSIDE * mask.area
        )
        for some in np.split(larger, range(_PARENTS_AT_ONCE, len(larger), _PARENTS_AT_ONCE)):
            containing = order[some][
                _overlap_ratios(mask.rle, [masks[j].rle for j in order[some]], of_first=True) >= _INSIDE
            ]
            if len(containing):
                parents[i] = containing[0]
                break
    return parents


def _boxes_of(masks: list[_PlaneMask]) -> np.ndarray:
    """(N, 4) int64 bounding boxes of masks, x0, y0, x1, y1."""
    return np.array([mask.box_xyxy for mask in masks], np.int64).reshape(-1, 4)


def _may_overlap(boxes: np.ndarray, areas: np.ndarray, mask: _PlaneMask, min_iou: float) -> np.ndarray:
    """Indices of masks, given by (N, 4) boxes and (N,) areas, whose IoU with a mask may exceed a minimum; ascending."""
    shared = np.minimum(box_intersections(boxes, np.array(mask.box_xyxy)), np.minimum(areas, mask.area))
    return np.flatnonzero(shared > min_iou * (areas + mask.area - shared))


def _overlapping(boxes: np.ndarray, box_xyxy: tuple[int, int, int, int]) -> np.ndarray:
    """Indices of (N, 4) boxes that overlap a box."""
    box = np.array(box_xyxy)
    return np.flatnonzero(((boxes[:, :2] < box[2:]) & (boxes[:, 2:] > box[:2])).all(axis=1))


def _overlap_ratios(rle: Rle, others: list[Rle], of_first: bool) -> np.ndarray:
    """(N,) intersections of a mask with others, divided by the area of the mask if `of_first`, else by the unions."""
    if not others:
        return np.zeros(0)
    return coco_mask.iou([rle], others, [of_first] * len(others))[0]
