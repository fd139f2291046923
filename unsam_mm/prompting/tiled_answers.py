"""How answers of windows of several levels become one list, and one scale of sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from unsam_mm.masks.granularity import area_granularity, nearest_area
from unsam_mm.prompting.prompt import Prompt
from unsam_mm.prompting.windows import MaskCrop, Window, WindowPyramid

_SAME_IOU = 0.8
_BEYOND = 0.5  # what an answer of the level after the leading one is worth
_DECADES_IN_WINDOW = 4  # of area, between the smallest mask of a window that is asked for and all of it
_STEPS_PER_DECADE = 8  # distinct sizes in a factor of ten


class Gathered:
    """Masks of one prompt from windows of rising coarseness.

    The first level whose best answer is kept leads. The best answers of all levels answer the same question, so the scores
    of each are scaled to give its best answer, be it kept or not, the score of the leading one. They are halved for every
    level beyond the leading one, which no longer sees what is small.

    Args:
        count: How many masks are wanted.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._crops: list[MaskCrop] = []
        self._shares: list[float] = []  # of the score of the best answer
        self._best_score: float | None = None
        self._last_score = 0.0
        self._n_beyond = 0  # levels after the leading one

    @property
    def is_enough(self) -> bool:
        """Whether coarser levels need not be asked."""
        return self._best_score is not None and len(self._crops) >= self._count

    def add(self, crops: list[MaskCrop | None], scores: np.ndarray) -> None:
        """The C answers of one level.

        Args:
            crops: None for those that may go on beyond the window.
            scores: (C,) of all of them.
        """
        best = int(np.argmax(scores))
        leads = self._best_score is None and crops[best] is not None
        self._last_score = float(scores[best])
        self._n_beyond += self._best_score is not None
        weight = _BEYOND**self._n_beyond
        finer, largest = list(self._crops), max((crop.area for crop in self._crops), default=0)
        for number in np.argsort(-scores, kind='stable'):
            crop = crops[number]
            share = weight * float(scores[number]) / max(self._last_score, np.finfo(np.float32).tiny)
            if crop is None:
                continue
            alike = [i for i, other in enumerate(finer) if crop.iou(other) > _SAME_IOU]
            if alike:  # the finer window draws it better
                self._shares[alike[0]] = max(self._shares[alike[0]], share)
            elif crop.area > largest or (leads and number == best):
                self._crops.append(crop)
                self._shares.append(share)
        if leads:
            self._best_score = self._last_score

    def best(self) -> tuple[list[MaskCrop], np.ndarray]:
        """At most as many masks as are wanted, best first, and their (C,) float32 scores."""
        shares = np.array(self._shares)
        order = np.argsort(-shares, kind='stable')[: self._count]
        scale = self._last_score if self._best_score is None else self._best_score
        return [self._crops[i] for i in order], (shares[order] * scale).astype(np.float32)


class WindowAnswers(Protocol):
    """Who asks about windows; see `TiledEngine` for both."""

    def ask(self, window: Window, prompt: Prompt, granularity: float | None) -> tuple[np.ndarray, np.ndarray]:
        """(C, h, w) bool masks of a window, and their (C,) scores."""

    def fitting(self, window: Window, masks: np.ndarray, prompt: Prompt) -> list[MaskCrop | None]:
        """Masks of a window on the plane; None for what may go on beyond the window."""


@dataclass(frozen=True, eq=False)
class _Step:
    """The answer at one size, not drawn on the plane."""

    level: int = 0  # number in the list of windows: where to go on
    found: tuple[Window, np.ndarray] | None = None  # the mask in its window
    area: int = 0  # on the plane
    score: float = 0.0


class MasksBySize:
    """The masks of one prompt by size; the area never falls as the wanted one rises.

    Sizes from a ten-thousandth of a window of the finest level to the whole plane are tried in turn, eight for each factor of
    ten, as far as the wanted one. A window is left for the next coarser one where its answer may go on beyond it, and an
    answer smaller than the one before it is not taken.

    Args:
        asked: Answers about windows.
        pyramid: Of the plane.
        windows: Those that hold the prompt, finest first.
        prompt: What is asked.
    """

    def __init__(self, asked: WindowAnswers, pyramid: WindowPyramid, windows: list[Window], prompt: Prompt) -> None:
        self._asked, self._pyramid, self._windows, self._prompt = asked, pyramid, windows, prompt
        self._steps: list[_Step] = []
        height, width = pyramid.size_hw
        finest = min(height, pyramid.side_px) * min(width, pyramid.side_px)
        self._plane_px = height * width
        self._last = math.ceil(_STEPS_PER_DECADE * (_DECADES_IN_WINDOW + math.log10(self._plane_px / finest)))

    def answer(self, area_px: float) -> tuple[list[MaskCrop], np.ndarray]:
        """The mask nearest to an area with its (1,) score; none if no mask agrees with the prompt. 0 gives the finest."""
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
