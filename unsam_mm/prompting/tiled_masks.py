"""All masks of a plane, from the masks of its windows, which come one by one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import Rle, decode_rles, encode_crop
from unsam_mm.prompting.windows import Window, WindowPyramid, lifted

_SAME_IOU = 0.8  # of masks of two windows that show the same
_INSIDE = 0.95  # share of a mask that its parent holds; outlines of different levels never agree to the pixel
_SLACK_PX = 4  # by which a mask must fit into a finer window to be left to it
_PARENTS_AT_ONCE = 8  # masks that are looked at for one that holds another, smallest first
_SPARE = 4  # times as many masks as are wanted are held before the worst are dropped


@dataclass(eq=False)
class _Found:
    """One mask, and what is known of it."""

    rle: Rle
    score: float
    stability: float
    area: int
    box_xyxy: tuple[int, int, int, int]
    window: Window


class PlaneMasks:
    """The best masks of the windows of a plane as run lengths of the plane.

    A mask is taken from the window whose middle is nearest to the mask's own, if it stays away from the inner sides of that
    window and no finer window would hold it. Of two masks that show the same, the one from the finer window or from the one
    that was looked at before stays, and of one window the better one.
    Windows know nothing of each other: a score compares the masks of one window, and of others as far as they are alike.

    Args:
        pyramid: The windows of the plane.
        max_masks: How many are wanted.
        max_iou: Of two masks with a larger IoU one is kept; for masks of different windows it is 0.8 at most.
    """

    def __init__(self, pyramid: WindowPyramid, max_masks: int, max_iou: float) -> None:
        self._pyramid, self._max_masks, self._max_iou = pyramid, max_masks, max_iou
        self._found: list[_Found] = []
        self._boxes = np.zeros((0, 4), np.int64)  # theirs

    def add(self, window: Window, masks: MaskSet, stability: np.ndarray, min_area_px: int) -> None:
        """The masks of one window; windows come from the finest level to the coarsest.

        Args:
            window: Where they were found.
            masks: In pixels of the window.
            stability: (N,) of each.
            min_area_px: What is smaller on the plane is dropped.
        """
        owned = np.flatnonzero([self._is_owned(window, box) for box in masks.boxes_xyxy])
        # Only what overlaps the window, and later what is added here, can be the same as a mask of it.
        before = _overlapping(self._boxes, window.to_plane(np.array([0, 0, window.width, window.height])))
        near = [self._found[i] for i in before]
        boxes = np.concatenate([self._boxes[before], np.zeros((len(owned), 4), np.int64)])
        areas = np.array([mask.area for mask in near] + [0] * len(owned), np.int64)
        for i in owned:
            crop = lifted(decode_rles([masks.rles[i]], masks.size_hw)[0], window, self._pyramid.size_hw)
            if (area := crop.area) < min_area_px:
                continue
            rle = encode_crop(crop.bitmap, crop.top, crop.left, self._pyramid.size_hw)
            score = float(masks.scores[i])
            mask = _Found(rle, score, float(stability[i]), area, crop.box_xyxy, window)
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

    def finished(self) -> tuple[MaskSet, np.ndarray]:
        """The masks, best first, and their (N,) float32 stability; a parent holds at least 95 percent of a mask."""
        best = self._best()
        masks = MaskSet(
            rles=[mask.rle for mask in best],
            scores=np.array([mask.score for mask in best], np.float32),
            parents=_parents(best),
            areas=np.array([mask.area for mask in best], np.int64),
            boxes_xyxy=np.array([mask.box_xyxy for mask in best], np.float32).reshape(-1, 4),
            size_hw=self._pyramid.size_hw,
        )
        return masks, np.array([mask.stability for mask in best], np.float32)

    def _same_as(self, mask: _Found, near: list[_Found]) -> _Found | None:
        """Which of some masks shows the same."""
        overlaps = _shares(mask.rle, [other.rle for other in near], of_first=False)
        limits = [self._max_iou if other.window == mask.window else min(self._max_iou, _SAME_IOU) for other in near]
        return near[int(overlaps.argmax())] if (overlaps > limits).any() else None

    def _best(self) -> list[_Found]:
        return sorted(self._found, key=lambda mask: -mask.score)[: self._max_masks]

    def _is_owned(self, window: Window, box_xyxy: np.ndarray) -> bool:
        """Whether the mask in a box of a window is for this window to give."""
        box = window.to_plane(box_xyxy.astype(float))
        centre = (box[:2] + box[2:]) / 2
        if self._pyramid.window_at(window.level, centre) != window or not window.holds(box, window.rim_px):
            return False
        if window.level == 0:
            return True
        finer = self._pyramid.window_at(window.level - 1, centre)
        return not finer.holds(box, finer.rim_px + _SLACK_PX)


def _parents(masks: list[_Found]) -> np.ndarray:
    """(N,) int64 the smallest mask that holds each, or -1."""
    parents = np.full(len(masks), -1, np.int64)
    order = np.argsort([mask.area for mask in masks], kind='stable')
    boxes, areas = _boxes_of([masks[i] for i in order]), np.array([masks[i].area for i in order])
    for i, mask in enumerate(masks):
        first = int(np.searchsorted(areas, mask.area, side='right'))
        larger = first + np.flatnonzero(_shared_by_boxes(boxes[first:], mask.box_xyxy) >= _INSIDE * mask.area)
        for some in np.split(larger, range(_PARENTS_AT_ONCE, len(larger), _PARENTS_AT_ONCE)):
            holding = order[some][_shares(mask.rle, [masks[j].rle for j in order[some]], of_first=True) >= _INSIDE]
            if len(holding):
                parents[i] = holding[0]
                break
    return parents


def _boxes_of(masks: list[_Found]) -> np.ndarray:
    """(N, 4) int64."""
    return np.array([mask.box_xyxy for mask in masks], np.int64).reshape(-1, 4)


def _may_overlap(boxes: np.ndarray, areas: np.ndarray, mask: _Found, min_iou: float) -> np.ndarray:
    """Which masks, of which (N, 4) boxes and (N,) areas are known, may have a larger IoU with a mask, in their order."""
    near = _overlapping(boxes, mask.box_xyxy)
    shared = np.minimum(_shared_by_boxes(boxes[near], mask.box_xyxy), np.minimum(areas[near], mask.area))
    return near[shared > min_iou * (areas[near] + mask.area - shared)]


def _shared_by_boxes(boxes: np.ndarray, box_xyxy: tuple[int, int, int, int]) -> np.ndarray:
    """(N,) pixels that (N, 4) boxes share with a box: no masks in them share more."""
    low, high = np.maximum(boxes[:, :2], box_xyxy[:2]), np.minimum(boxes[:, 2:], box_xyxy[2:])
    return np.maximum(high - low, 0).prod(axis=1)


def _overlapping(boxes: np.ndarray, box_xyxy: tuple[int, int, int, int]) -> np.ndarray:
    """Which of (N, 4) boxes overlap a box."""
    box = np.array(box_xyxy)
    return np.flatnonzero(((boxes[:, :2] < box[2:]) & (boxes[:, 2:] > box[:2])).all(axis=1))


def _shares(rle: Rle, others: list[Rle], of_first: bool) -> np.ndarray:
    """(N,) pixels that a mask shares with others, over the union, or over its own."""
    if not others:
        return np.zeros(0)
    return coco_mask.iou([rle], others, [of_first] * len(others))[0]
