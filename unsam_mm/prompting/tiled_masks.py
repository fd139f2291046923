"""All masks of a plane, from the masks of its windows, which come one by one."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from unsam_mm.mask_set import MaskSet
from unsam_mm.prompting.windows import Window, WindowPyramid, lifted
from unsam_mm.rle import Rle, decode_rles, encode_crop

_SAME_IOU = 0.8  # of masks of two windows that show the same
_INSIDE = 0.95  # share of a mask that its parent holds; outlines of different levels never agree to the pixel
_SLACK_PX = 4  # by which a mask must fit into a finer window to be left to it
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

    def add(self, window: Window, masks: MaskSet, stability: np.ndarray, min_area_px: int) -> None:
        """The masks of one window; windows come from the finest level to the coarsest.

        Args:
            window: Where they were found.
            masks: In pixels of the window.
            stability: (N,) of each.
            min_area_px: What is smaller on the plane is dropped.
        """
        for i in np.flatnonzero([self._is_owned(window, box) for box in masks.boxes_xyxy]):
            crop = lifted(decode_rles([masks.rles[i]], masks.size_hw)[0], window, self._pyramid.size_hw)
            if (area := crop.area) < min_area_px:
                continue
            rle = encode_crop(crop.bitmap, crop.top, crop.left, self._pyramid.size_hw)
            score = float(masks.scores[i])
            mask = _Found(rle, score, float(stability[i]), area, crop.box_xyxy, window)
            if (same := self._same_as(mask)) is None:
                self._found.append(mask)
            else:
                same.score = max(same.score, score)
        if len(self._found) > _SPARE * self._max_masks:
            self._found = self._best()

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

    def _same_as(self, mask: _Found) -> _Found | None:
        """What is there already of the same."""
        boxes = np.array([other.box_xyxy for other in self._found]).reshape(-1, 4)
        near = [self._found[i] for i in _overlapping(boxes, mask.box_xyxy)]
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
    boxes = np.array([mask.box_xyxy for mask in masks]).reshape(-1, 4)
    areas = np.array([mask.area for mask in masks])
    for i, mask in enumerate(masks):
        near = _overlapping(boxes, mask.box_xyxy)
        near = near[areas[near] > mask.area]
        near = near[np.argsort(areas[near], kind='stable')]
        holding = near[_shares(mask.rle, [masks[j].rle for j in near], of_first=True) >= _INSIDE]
        parents[i] = holding[0] if len(holding) else -1
    return parents


def _overlapping(boxes: np.ndarray, box_xyxy: tuple[int, int, int, int]) -> np.ndarray:
    """Which of (N, 4) boxes overlap a box."""
    box = np.array(box_xyxy)
    return np.flatnonzero(((boxes[:, :2] < box[2:]) & (boxes[:, 2:] > box[:2])).all(axis=1))


def _shares(rle: Rle, others: list[Rle], of_first: bool) -> np.ndarray:
    """(N,) pixels that a mask shares with others, over the union, or over its own."""
    if not others:
        return np.zeros(0)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # of NumPy 2, about pycocotools' own arrays
        return coco_mask.iou([rle], others, [of_first] * len(others))[0]
