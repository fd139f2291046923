"""How answers of windows of several levels become one list, and one scale of granularity."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from unsam_mm.prompting.prompt import Prompt
from unsam_mm.prompting.windows import MaskCrop, Window, WindowPyramid

_SAME_IOU = 0.8
_BEYOND = 0.5  # what an answer of the level after the leading one is worth
_DECADES = 4  # of area between the granularities 0 and 1 of a window
_RUNGS = 32  # granularities that are told apart


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
class _Rung:
    """The answer at one granularity, not drawn on the plane."""

    level: int = 0  # number in the list of windows: where to go on
    found: tuple[Window, np.ndarray] | None = None  # the mask in its window
    area: int = 0  # on the plane
    score: float = 0.0


class TiledGranularity:
    """The masks of one prompt by granularity; the area never falls as that rises.

    0 stands for a ten thousandth of a window of the finest level, 1 for the whole plane, and equal steps between them for
    equal factors of area. From the finest on, 32 steps are tried in turn. A window is left for the next coarser one where
    its answer may go on beyond it, and an answer smaller than the one before it is not taken.

    Args:
        asked: Answers about windows.
        pyramid: Of the plane.
        windows: Those that hold the prompt, finest first.
        prompt: What is asked.
    """

    def __init__(self, asked: WindowAnswers, pyramid: WindowPyramid, windows: list[Window], prompt: Prompt) -> None:
        self._asked, self._pyramid, self._windows, self._prompt = asked, pyramid, windows, prompt
        self._rungs: list[_Rung] = []

    def answer(self, granularity: float) -> tuple[list[MaskCrop], np.ndarray]:
        """The mask at a granularity in [0, 1] with its (1,) score; none if no mask agrees with the prompt."""
        number = int(granularity * _RUNGS)
        while len(self._rungs) <= number:
            self._rungs.append(self._next())
        rung = self._rungs[number]
        if rung.found is None:
            return [], np.zeros(0, np.float32)
        window, mask = rung.found
        return self._asked.fitting(window, mask[None], self._prompt), np.array([rung.score], np.float32)

    def _next(self) -> _Rung:
        before = self._rungs[-1] if self._rungs else _Rung()
        for level in range(before.level, len(self._windows)):
            window = self._windows[level]
            inside = self._in_window(window, len(self._rungs) / _RUNGS)
            if inside > 1 and level + 1 < len(self._windows):
                continue
            masks, scores = self._asked.ask(window, self._prompt, float(np.clip(inside, 0, 1)))
            if len(masks) and before.found and before.found[0] == window and (masks[0] == before.found[1]).all():
                return before
            crops = self._asked.fitting(window, masks, self._prompt)
            if crops and crops[0] is not None:
                if crops[0].area < before.area:
                    return replace(before, level=level)
                return _Rung(level, (window, masks[0].copy()), crops[0].area, float(scores[0]))
        return replace(before, level=max(len(self._windows) - 1, 0))

    def _in_window(self, window: Window, granularity: float) -> float:
        """What a granularity of the plane is in a window, which counts by area too, or nearly so."""
        return 1 + np.log10(area_at(self._pyramid, granularity) / self._pyramid.area_of(window)) / _DECADES


def area_at(pyramid: WindowPyramid, granularity: float) -> float:
    """The area in pixels that a granularity of a plane stands for."""
    least, whole = _least_and_whole(pyramid)
    return whole * (whole / least) ** (granularity - 1)


def granularity_of(pyramid: WindowPyramid, window: Window, granularity: np.ndarray) -> np.ndarray:
    """(N,) granularities of a plane of (N,) granularities of one of its windows, in [0, 1]."""
    least, whole = _least_and_whole(pyramid)
    areas = pyramid.area_of(window) * 10.0 ** (_DECADES * (granularity - 1))
    return np.clip(1 + np.log(areas / whole) / np.log(whole / least), 0, 1).astype(np.float32)


def _least_and_whole(pyramid: WindowPyramid) -> tuple[float, float]:
    height, width = pyramid.size_hw
    window = min(height, pyramid.side_px) * min(width, pyramid.side_px)
    return window / 10.0**_DECADES, float(height * width)
