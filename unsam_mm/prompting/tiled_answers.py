"""Combines the masks that tiles of several pyramid levels predict for a prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from unsam_mm.masks.granularity import area_granularity, nearest_area
from unsam_mm.prompting.prompt import Prompt
from unsam_mm.prompting.windows import MaskCrop, Window, WindowPyramid

_SAME_IOU = 0.8
_LEVEL_PENALTY = 0.5  # factor of scores for each level after the leading one
_DECADES_IN_WINDOW = 4  # range of areas between the smallest mask of a window and the whole window
_STEPS_PER_DECADE = 8  # areas that are tried for each factor of ten


class Gathered:
    """Collects the masks for one prompt from windows of increasing coarseness.

    The leading level is the first whose best mask is kept. The scores of every other level are scaled so that its best
    mask gets the score of the leading level, and halved for each level after the leading one, which resolves less
    detail.

    Args:
        count: Number of masks wanted.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._crops: list[MaskCrop] = []
        self._relative_scores: list[float] = []  # relative to the score of the best mask
        self._best_score: float | None = None
        self._last_score = 0.0
        self._n_after = 0  # levels after the leading one

    @property
    def is_enough(self) -> bool:
        """Whether coarser levels are not needed."""
        return self._best_score is not None and len(self._crops) >= self._count

    def add(self, crops: list[MaskCrop | None], scores: np.ndarray) -> None:
        """Adds the C masks of one level.

        Args:
            crops: The masks; None for those that may extend beyond the window.
            scores: (C,) scores of all masks.
        """
        best = int(np.argmax(scores))
        leads = self._best_score is None and crops[best] is not None
        self._last_score = float(scores[best])
        self._n_after += self._best_score is not None
        weight = _LEVEL_PENALTY**self._n_after
        finer, largest = list(self._crops), max((crop.area for crop in self._crops), default=0)
        for number in np.argsort(-scores, kind='stable'):
            crop = crops[number]
            score = weight * float(scores[number]) / max(self._last_score, np.finfo(np.float32).tiny)
            if crop is None:
                continue
            same = [i for i, other in enumerate(finer) if crop.iou(other) > _SAME_IOU]
            if same:  # the mask of the finer window is kept, which is more accurate
                self._relative_scores[same[0]] = max(self._relative_scores[same[0]], score)
            elif crop.area > largest or (leads and number == best):
                self._crops.append(crop)
                self._relative_scores.append(score)
        if leads:
            self._best_score = self._last_score

    def best(self) -> tuple[list[MaskCrop], np.ndarray]:
        """At most the wanted number of masks, best first, and their (C,) float32 scores."""
        relative = np.array(self._relative_scores)
        order = np.argsort(-relative, kind='stable')[: self._count]
        scale = self._last_score if self._best_score is None else self._best_score
        return [self._crops[i] for i in order], (relative[order] * scale).astype(np.float32)


class WindowAnswers(Protocol):
    """The methods of `TiledEngine` that `MasksBySize` uses."""

    def ask(self, window: Window, prompt: Prompt, granularity: float | None) -> tuple[np.ndarray, np.ndarray]:
        """(C, h, w) bool masks of a window, and their (C,) scores, for a prompt."""

    def fitting(self, window: Window, masks: np.ndarray, prompt: Prompt) -> list[MaskCrop | None]:
        """Masks of a window at the resolution of the plane; None for masks that may extend beyond the window."""


@dataclass(frozen=True, eq=False)
class _Step:
    """The mask for one area, in its window."""

    level: int = 0  # index of the window from which the search continues
    found: tuple[Window, np.ndarray] | None = None  # the mask and its window
    area: int = 0  # in pixels of the plane
    score: float = 0.0


class MasksBySize:
    """Masks for one prompt by area; the area of the result is monotone in the wanted area.

    Areas from a ten-thousandth of a window of the finest level to the whole plane are tried in ascending order, eight
    for each factor of ten, up to the wanted area. If the mask may extend beyond the window, the next coarser window is
    used. A mask smaller than the previous one is not accepted.

    Args:
        asked: Predicts masks for windows.
        pyramid: The windows of the plane.
        windows: The windows that contain the prompt, finest first.
        prompt: The prompt.
    """

    def __init__(self, asked: WindowAnswers, pyramid: WindowPyramid, windows: list[Window], prompt: Prompt) -> None:
        self._asked, self._pyramid, self._windows, self._prompt = asked, pyramid, windows, prompt
        self._steps: list[_Step] = []
        height, width = pyramid.size_hw
        finest = min(height, pyramid.side_px) * min(width, pyramid.side_px)
        self._plane_px = height * width
        self._last = math.ceil(_STEPS_PER_DECADE * (_DECADES_IN_WINDOW + math.log10(self._plane_px / finest)))

    def answer(self, area_px: float) -> tuple[list[MaskCrop], np.ndarray]:
        """The mask of the nearest area and its (1,) score; none if none agrees with the prompt. 0 gives the finest."""
        number = 0
        if area_px > 0:
            number = round(self._last + _STEPS_PER_DECADE * math.log10(area_px / self._plane_px))
        number = min(max(number, 0), self._last)
        while len(self._steps) <= number:
            self._steps.append(self._next())
        steps = [step for step in self._steps[: number + 1] if step.found is not None]
        if not steps:
            return [], np.zeros(0, np.float32)
        step = steps[nearest_area(np.array([step.area for step in steps]), area_px)]
        window, mask = step.found
        return self._asked.fitting(window, mask[None], self._prompt), np.array([step.score], np.float32)

    def _next(self) -> _Step:
        before = self._steps[-1] if self._steps else _Step()
        wanted_px = self._plane_px * 10.0 ** ((len(self._steps) - self._last) / _STEPS_PER_DECADE)
        for level in range(before.level, len(self._windows)):
            window = self._windows[level]
            window_px = self._pyramid.area_of(window)
            if wanted_px > window_px and level + 1 < len(self._windows):
                continue
            masks, scores = self._asked.ask(window, self._prompt, float(area_granularity(wanted_px, window_px)))
            if len(masks) and before.found and before.found[0] == window and (masks[0] == before.found[1]).all():
                return before
            crops = self._asked.fitting(window, masks, self._prompt)
            if crops and crops[0] is not None:
                if crops[0].area < before.area:
                    return replace(before, level=level)
                return _Step(level, (window, masks[0].copy()), crops[0].area, float(scores[0]))
        return replace(before, level=max(len(self._windows) - 1, 0))
