"""Masks for prompts of several clicks: candidates are scored by a prior and by how central the clicks are.

A mask must contain the pixels of positive clicks and not those of negative ones. Besides, users click near the middle of
the error region. That is the object if no mask is shown yet, and later a region of false negatives or false positives.
So each candidate is scored by its prior and by how central every click is in the error region at the time of the click.
Candidates for the first click are the nested regions under it. Candidates for a later click are the best masks for the
previous clicks: unchanged if they agree with the new click, else with one region under it added or subtracted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import numpy as np

from unsam_mm.masks.ops import mask_iou
from unsam_mm.prompting.nested_masks import (
    CandidateMask,
    LabelMap,
    NestedMasks,
    SamplingGrid,
    click_centrality,
    empty_mask,
    relative_depth,
)
from unsam_mm.prompting.prompt import MAX_MASKS_PER_PROMPT, Prompt, mask_of_logits

# Chosen on twelve training photographs of BSDS500 and twelve micrographs of DSB2018, 439 segments. A power of 2 for the
# first click is better for clicks in the exact middle of objects, but for clicks at random places in objects it is worse
# than a power of 0.
_FIRST_POWER, _LATER_POWER = 1.0, 2.0  # power of the centrality of the first click, and of later ones
_DEPTH_POWER, _N_RERANKED = 3.0, 20  # power of the depth of later clicks; number of candidates reranked by it
_EDIT_POWER, _EDIT_LOG_PRIOR = 0.5, -0.5  # power of the prior of a region in an edit; log prior of every edit
_DISC_LOG_PRIOR = -6.0  # so low that a disc is chosen only where no region fits
_DISTINCT_IOU = 0.8
_SAME_IOU = 0.7  # a mask input with at least this IoU with an earlier mask stands for that mask
_N_COMPARED = 100  # number of candidates in which six distinct masks are searched
_N_CACHED = 64  # largest number of cached predictions

_ScoredCandidate = tuple[float, Callable[[], CandidateMask]]
"""Log score of a candidate, and a function that computes its mask."""


class CandidateSource(Protocol):
    """A source of candidate masks for one image."""

    grid: SamplingGrid

    def for_prompt(self, prompt: Prompt) -> list[NestedMasks]:
        """Sets of nested candidates for a prompt."""

    def at_point(self, point_xy: np.ndarray) -> list[NestedMasks]:
        """Sets of nested regions that contain a pixel, to be added to a mask or subtracted from it."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The masks predicted for a prompt.

    Attributes:
        candidates: At most six, best first.
        scores: (C,) float32 in (0, 1].
        shown: (P,) bool, the best mask at the grid points; all False if there is no mask.
    """

    candidates: list[CandidateMask]
    scores: np.ndarray
    shown: np.ndarray


class ClickInference:
    """Predicts masks for prompts on one image, and caches the predictions for each prefix of the clicks.

    Args:
        source: Candidates for this image.
    """

    def __init__(self, source: CandidateSource) -> None:
        self.source = source
        self._cache: dict[tuple, Answer] = {}
        self._empty = _by_label(LabelMap(np.ones(source.grid.size_hw, bool), source.grid), [0.0])

    def masks(
        self, prompt: Prompt, multimask_output: bool, smallest_first: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """(C, H, W) bool masks for a prompt, and their (C,) float32 scores; see `answer`.

        Args:
            prompt: The prompt.
            multimask_output: True to return up to six masks, False to return only the best.
            smallest_first: True to order the masks by size, False to order them by score.
        """
        answer = self.answer(prompt)
        candidates = answer.candidates if multimask_output else answer.candidates[:1]
        order = list(range(len(candidates)))
        if smallest_first:
            order.sort(key=lambda i: candidates[i].n_points)
        return masks_of([candidates[i] for i in order], self.source.grid.size_hw), answer.scores[order]

    def answer(self, prompt: Prompt) -> Answer:
        """The masks for a prompt; every mask agrees with every click.

        There is no mask if one pixel has a positive and a negative click, or if negative clicks rule out every mask in
        a box.
        """
        points, positive = _in_order(prompt)
        answers: list[Answer] = []
        for count in range(0 if prompt.box_xyxy is not None else 1, len(points) + 1):
            mask_input = prompt.mask_input if count == len(points) else None
            so_far = Prompt(points[:count], positive[:count], prompt.box_xyxy, mask_input)
            answer = self._cache.get(so_far.key)
            if answer is None:
                answer = _Step(self.source, so_far, answers, self._empty).answer()
                if len(self._cache) >= _N_CACHED:
                    self._cache.clear()
                self._cache[so_far.key] = answer
            answers.append(answer)  # not read from the cache again: another thread may have cleared it
        return answers[-1]


class _Step:
    """The prediction for one click or for a box, given the answers to the previous ones.

    Args:
        source: Candidates for the image.
        prompt: The prompt up to this click.
        before: The answers to the box, if there is one, and to each previous click.
        empty: A set of nested masks with a single, empty mask.
    """

    def __init__(self, source: CandidateSource, prompt: Prompt, before: list[Answer], empty: NestedMasks) -> None:
        self._source, self._prompt, self._grid, self._empty = source, prompt, source.grid, empty
        self._bases = list(before[-1].candidates) if before else []
        shown = [answer.shown for answer in before]
        earlier = None
        if prompt.mask_input is not None:
            # The label 0 is inside the mask, as `_by_label` expects.
            earlier = LabelMap(~mask_of_logits(prompt.mask_input, self._grid.size_hw), self._grid)
            if before:
                self._bases = _with_first(self._bases, earlier)
                shown[-1] = self._bases[0].sampled
        if prompt.box_xyxy is None:
            shown.insert(0, np.zeros(len(self._grid), bool))
        self._clicks = [
            (seen, self._grid.click(point, is_positive))
            for seen, point, is_positive in zip(shown, prompt.points_xy, prompt.positive, strict=False)
        ]
        self._starts = source.for_prompt(prompt)
        if not before and earlier is not None:
            self._starts = [_with_iou_prior(nested, earlier) for nested in self._starts] + [_by_label(earlier, [0.0])]

    def answer(self) -> Answer:
        """The distinct masks of the highest scores."""
        nothing = empty_mask(self._grid)
        scored = [self._score(nothing, nested, True, nested.log_prior) for nested in self._starts]
        for base in self._bases:
            scored += self._edits(base)
        ranked = sorted(itertools.chain.from_iterable(scored), key=lambda pair: -pair[0])
        candidates, log_scores = _distinct(self._rerank_by_depth(ranked))
        # The geometric mean, so that scores do not fall with the number of clicks.
        scores = np.exp(np.minimum(log_scores, 0) / (1 + len(self._clicks))).astype(np.float32)
        return Answer(candidates, scores, candidates[0].sampled if candidates else nothing.sampled)

    def _rerank_by_depth(self, ranked: list[_ScoredCandidate]) -> Iterator[tuple[CandidateMask, float]]:
        """Candidates and log scores, best first; after the first click the best few are reranked by depth."""
        later = self._clicks[0 if self._prompt.box_xyxy is not None else 1 :]
        if not later:
            yield from itertools.islice(self._candidate_masks(ranked), _N_COMPARED)
            return
        grid_shape = self._grid.shape
        candidates, log_scores = [], []
        for candidate, log_score in itertools.islice(self._candidate_masks(ranked), _N_RERANKED):
            mask = candidate.sampled.reshape(grid_shape)
            depths = [relative_depth(mask, shown.reshape(grid_shape), click) for shown, click in later]
            candidates.append(candidate)
            log_scores.append(log_score + _DEPTH_POWER * float(np.log(depths).sum()))
        yield from ((candidates[i], log_scores[i]) for i in np.argsort(-np.array(log_scores), kind='stable'))

    def _candidate_masks(self, ranked: list[_ScoredCandidate]) -> Iterator[tuple[CandidateMask, float]]:
        """Candidates and log scores; without a positive click, empty masks are left out."""
        may_be_empty = not self._prompt.positive.any()
        for log_score, compute in ranked:
            candidate = compute()
            if candidate.n_points or not may_be_empty:
                yield candidate, log_score

    def _edits(self, base: CandidateMask) -> list[list[_ScoredCandidate]]:
        """A mask of the previous answer, unchanged if it agrees with the new click, else with each edit at that click."""
        point, adds = self._prompt.points_xy[-1], bool(self._prompt.positive[-1])
        if base.at(point[None])[0] == adds:
            return [self._score(base, self._empty, True, self._empty.log_prior + base.log_prior)]
        nested_sets = [*self._source.at_point(point), self._discs(base, point, adds)]
        priors = [base.log_prior + _EDIT_LOG_PRIOR + _EDIT_POWER * nested.log_prior for nested in nested_sets]
        return [self._score(base, nested, adds, prior) for nested, prior in zip(nested_sets, priors, strict=True)]

    def _discs(self, base: CandidateMask, point: np.ndarray, adds: bool) -> NestedMasks:
        """The pixel of a click, and the disc around it up to the nearest grid point that the edit would not change."""
        right = self._clicks[-1][1].squared_distances_px[base.sampled == adds]
        reach_px = max(float(np.sqrt(right.min(initial=np.inf))), 1.0)
        reach_px = reach_px if np.isfinite(reach_px) else 1.0
        labels = np.full(self._grid.size_hw, 2, np.uint8)
        (x, y), reach = point, int(reach_px)
        rows, columns = slice(max(0, y - reach), y + reach + 1), slice(max(0, x - reach), x + reach + 1)
        part = labels[rows, columns]
        row, column = np.indices(part.shape, sparse=True)
        part[np.hypot(row + rows.start - y, column + columns.start - x) <= reach_px] = 1
        labels[y, x] = 0
        return _by_label(LabelMap(labels, self._grid), [2 * _DISC_LOG_PRIOR, _DISC_LOG_PRIOR])

    def _score(
        self, base: CandidateMask, nested: NestedMasks, adds: bool, log_prior: np.ndarray
    ) -> list[_ScoredCandidate]:
        """The base plus or minus each of the nested masks, where the result agrees with all clicks."""
        points, positive = self._prompt.points_xy, self._prompt.positive
        contains = nested.first_indices_at(points) <= np.arange(len(nested))[:, None]
        inside = base.at(points)
        inside = inside | contains if adds else inside & ~contains
        agrees = (inside == positive).all(axis=1)
        if not agrees.any():
            return []
        total = log_prior.copy()
        for number, (shown, click) in enumerate(self._clicks):
            power = _LATER_POWER if number or self._prompt.box_xyxy is not None else _FIRST_POWER
            total += power * np.log(click_centrality(base, nested, adds, shown, click))
        if nested is self._empty:
            return [(total[0], lambda: base)]
        return [
            (total[i], partial(base.edited, nested, int(i), adds, float(log_prior[i]))) for i in np.flatnonzero(agrees)
        ]


def _distinct(ranked: Iterator[tuple[CandidateMask, float]]) -> tuple[list[CandidateMask], np.ndarray]:
    """The best distinct masks of a ranking, at most `MAX_MASKS_PER_PROMPT`, and their (C,) log scores."""
    candidates: list[CandidateMask] = []
    log_scores: list[float] = []
    for candidate, log_score in ranked:
        if not any(_is_alike(candidate, other) for other in candidates):
            candidates.append(candidate)
            log_scores.append(log_score)
            if len(candidates) == MAX_MASKS_PER_PROMPT:
                break
    return candidates, np.array(log_scores)


def _is_alike(candidate: CandidateMask, other: CandidateMask) -> bool:
    smaller, larger = sorted((candidate.n_points, other.n_points))
    return smaller > _DISTINCT_IOU * larger and mask_iou(candidate.sampled, other.sampled) > _DISTINCT_IOU


def _in_order(prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
    """Points and whether they are positive, in the given order; without a box, the first positive one comes first."""
    points, positive = prompt.points_xy, prompt.positive
    if prompt.box_xyxy is not None:
        return points, positive
    first = int(positive.argmax())
    order = np.r_[first, np.delete(np.arange(len(points)), first)]
    return points[order], positive[order]


def _with_first(candidates: list[CandidateMask], earlier: LabelMap) -> list[CandidateMask]:
    """The candidates, with the one most similar to the mask input first; if none is similar, the mask input is first."""
    mask = earlier.sampled == 0
    ious = [mask_iou(candidate.sampled, mask) for candidate in candidates]
    if ious and max(ious) >= _SAME_IOU:
        chosen = candidates[int(np.argmax(ious))]
        return [chosen, *(candidate for candidate in candidates if candidate is not chosen)]
    return [CandidateMask((), np.zeros_like(mask), 0.0).edited(_by_label(earlier, [0.0]), 0, True, 0.0), *candidates]


def _with_iou_prior(nested: NestedMasks, earlier: LabelMap) -> NestedMasks:
    """The nested masks with the logarithm of their IoU with the mask input added to their prior."""
    mask, count = earlier.sampled == 0, len(nested) + 1
    areas = np.bincount(nested.first_indices, minlength=count).cumsum()[:-1]
    shared = np.bincount(nested.first_indices[mask], minlength=count).cumsum()[:-1]
    iou = shared / np.maximum(areas + mask.sum() - shared, 1)
    return replace(nested, log_prior=nested.log_prior + np.log(np.maximum(iou, 1e-6)))


def _by_label(label_map: LabelMap, log_prior: list[float]) -> NestedMasks:
    """Nested masks, of which mask i consists of the labels 0..i."""
    count = len(log_prior)
    return NestedMasks(label_map, np.minimum(np.arange(256), count), np.array(log_prior))


def masks_of(candidates: list[CandidateMask], size_hw: tuple[int, int]) -> np.ndarray:
    """(C, H, W) bool masks of candidates at full resolution."""
    masks = np.zeros((len(candidates), *size_hw), bool)
    numbers_by_nested: dict[int, list[int]] = {}
    for number, candidate in enumerate(candidates):
        numbers_by_nested.setdefault(id(candidate.edits[0].nested), []).append(number)
    for numbers in numbers_by_nested.values():
        first_edits = [candidates[number].edits[0] for number in numbers]
        first_edits[0].nested.draw([edit.index for edit in first_edits], [masks[number] for number in numbers])
    for candidate, mask in zip(candidates, masks, strict=True):
        for edit in candidate.edits[1:]:
            other = np.zeros_like(mask)
            edit.nested.draw([edit.index], [other])
            mask[:] = edit.apply(mask, other)
    return masks
