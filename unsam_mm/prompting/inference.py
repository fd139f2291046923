"""What several clicks mean: regions, or earlier answers with a region added or taken away, weighed by where the clicks lie.

A click says two things. The mask that is meant holds it, or does not; and people click near the middle of what they
see wrong: of the object where nothing is shown yet, of what is missing or too much later. So every mask that could be
meant is weighed by how likely it is in itself and by how well each click lies in the middle of what was wrong when
it was made. The masks are the regions of nested chains under the first click, and the best earlier answers with
one region under the new click added or taken away.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from unsam_mm.prompting.chains import Chain, LabelMap, Shape, WorkingGrid, centredness, depth_share, nothing
from unsam_mm.prompting.prompt import MAX_MASKS_PER_PROMPT, Prompt, mask_of_logits

# Chosen on twelve training photographs of BSDS500 and twelve micrographs of DSB2018, 439 segments. A first power of 2
# would be better for clicks in the very middle of objects, and worse than no weight for clicks anywhere in them.
_FIRST_POWER, _LATER_POWER = 1.0, 2.0  # of the centredness of the first click, and of later ones
_DEPTH_POWER, _N_FATHOMED = 3.0, 20  # of the depth of later clicks, and for how many of the likeliest masks
_EDIT_POWER, _EDIT_LOG_PRIOR = 0.5, -0.5  # of the prior of the region in an edit, and of any edit
_DISC_LOG_PRIOR = -6.0  # of a disc where no region fits
_DISTINCT_IOU = 0.8
_SAME_IOU = 0.7  # of a mask that is given back with the answer that it was
_N_COMPARED = 100  # masks that are looked at for six that differ
_N_KEPT = 64  # answers


class Source(Protocol):
    """Where regions come from."""

    grid: WorkingGrid

    def starts(self, prompt: Prompt) -> list[Chain]:
        """Chains of regions that a prompt of one click, or a box, may mean."""

    def pieces(self, point_xy: np.ndarray) -> list[Chain]:
        """Chains of regions under one pixel, to add to a mask or to take from it."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The masks that clicks may mean.

    Attributes:
        shapes: At most six, best first.
        scores: (C,) float32 in (0, 1].
        shown: (P,) bool the best of them on the grid; nothing if there is none.
    """

    shapes: list[Shape]
    scores: np.ndarray
    shown: np.ndarray


class ClickInference:
    """Answers prompts on one image; what was found for the first clicks of a prompt is kept for the next prompt.

    Args:
        source: Of the image.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._kept: dict[tuple, Answer] = {}
        self._void = _only(LabelMap(np.ones(source.grid.size_hw, bool), source.grid), [0.0])

    def answer(self, prompt: Prompt) -> Answer:
        """The masks, all of which agree with every click.

        There is none only where one pixel has clicks of both kinds, or negative clicks leave nothing of a box.
        """
        points, positive = _in_order(prompt)
        answers: list[Answer] = []
        for count in range(0 if prompt.box_xyxy is not None else 1, len(points) + 1):
            mask_input = prompt.mask_input if count == len(points) else None
            so_far = Prompt(points[:count], positive[:count], prompt.box_xyxy, mask_input)
            parts = (so_far.points_xy, so_far.positive, so_far.box_xyxy, so_far.mask_input)
            key = tuple(None if part is None else part.tobytes() for part in parts)
            answer = self._kept.get(key)
            if answer is None:
                answer = _Step(self.source, so_far, answers, self._void).answer()
                if len(self._kept) >= _N_KEPT:
                    self._kept.clear()
                self._kept[key] = answer
            answers.append(answer)
        return answers[-1]


class _Step:
    """One more click, or the first one, or a box.

    Args:
        source: Of the image.
        prompt: Up to this click.
        before: The answers to the clicks, or the box, before it.
        void: A chain whose only piece is empty.
    """

    def __init__(self, source: Source, prompt: Prompt, before: list[Answer], void: Chain) -> None:
        self._source, self._prompt, self._grid, self._void = source, prompt, source.grid, void
        self._bases = list(before[-1].shapes) if before else []
        shown = [answer.shown for answer in before]
        earlier = None
        if prompt.mask_input is not None:
            earlier = LabelMap(~mask_of_logits(prompt.mask_input, self._grid.size_hw), self._grid)
            if before:
                self._bases = _led_by(self._bases, earlier)
                shown[-1] = self._bases[0].sampled
        if prompt.box_xyxy is None:
            shown.insert(0, np.zeros(len(self._grid), bool))
        self._clicks = [
            (seen, self._grid.click(point, is_positive))
            for seen, point, is_positive in zip(shown, prompt.points_xy, prompt.positive, strict=False)
        ]
        self._starts = source.starts(prompt)
        if not before and earlier is not None:
            self._starts = [_like(chain, earlier) for chain in self._starts] + [_only(earlier, [0.0])]

    def answer(self) -> Answer:
        """The masks that everything so far may mean."""
        empty = nothing(self._grid)
        found = [self._weighed(empty, chain, True, chain.log_prior) for chain in self._starts]
        for base in self._bases:
            found += self._edits(base)
        likely = sorted(itertools.chain.from_iterable(found), key=lambda candidate: -candidate.log_score)
        shapes, log_scores = _distinct(self._fathomed(likely))
        # The geometric mean, so that more clicks do not mean less.
        scores = np.exp(np.minimum(log_scores, 0) / (1 + len(self._clicks))).astype(np.float32)
        return Answer(shapes, scores, shapes[0].sampled if shapes else empty.sampled)

    def _fathomed(self, candidates: list[_Candidate]) -> Iterator[tuple[Shape, float]]:
        """Masks and their scores, best first: with clicks after the first, of the likeliest few by how deep these lie."""
        later = self._clicks[0 if self._prompt.box_xyxy is not None else 1 :]
        if not later:
            yield from itertools.islice(self._shapes(candidates), _N_COMPARED)
            return
        grid_shape = self._grid.shape
        shapes, log_scores = [], []
        for shape, log_score in itertools.islice(self._shapes(candidates), _N_FATHOMED):
            mask = shape.sampled.reshape(grid_shape)
            shares = [depth_share(mask, shown.reshape(grid_shape), click) for shown, click in later]
            shapes.append(shape)
            log_scores.append(log_score + _DEPTH_POWER * float(np.log(shares).sum()))
        yield from ((shapes[i], log_scores[i]) for i in np.argsort(-np.array(log_scores), kind='stable'))

    def _shapes(self, candidates: list[_Candidate]) -> Iterator[tuple[Shape, float]]:
        """Masks and their scores so far; where only a box says what is meant, clicks may take all of it away."""
        may_be_empty = not self._prompt.positive.any()
        for candidate in candidates:
            shape = candidate.shape()
            if shape.n_points or not may_be_empty:
                yield shape, candidate.log_score

    def _edits(self, base: Shape) -> list[list[_Candidate]]:
        """An earlier answer if it agrees with the new click, else what the new click may make of it."""
        point, adds = self._prompt.points_xy[-1], bool(self._prompt.positive[-1])
        if base.at(point[None])[0] == adds:
            return [self._weighed(base, self._void, True, self._void.log_prior + base.log_prior)]
        chains = [*self._source.pieces(point), self._discs(base, point, adds)]
        priors = [base.log_prior + _EDIT_LOG_PRIOR + _EDIT_POWER * chain.log_prior for chain in chains]
        return [self._weighed(base, chain, adds, prior) for chain, prior in zip(chains, priors, strict=True)]

    def _discs(self, base: Shape, point: np.ndarray, adds: bool) -> Chain:
        """The pixel of a click, and the disc around it that reaches to where the mask is right."""
        right = self._clicks[-1][1].squared_distances_px[base.sampled == adds]
        reach_px = max(float(np.sqrt(right.min(initial=np.inf))), 1.0)
        reach_px = reach_px if np.isfinite(reach_px) else 1.0
        labels = np.full(self._grid.size_hw, 2, np.uint8)
        (x, y), reach = point, int(reach_px)
        rows, columns = slice(max(0, y - reach), y + reach + 1), slice(max(0, x - reach), x + reach + 1)
        row, column = np.ogrid[rows.start : rows.start + reach * 2 + 1, columns.start : columns.start + reach * 2 + 1]
        part = labels[rows, columns]
        part[np.hypot(row - y, column - x)[: part.shape[0], : part.shape[1]] <= reach_px] = 1
        labels[y, x] = 0
        return _only(LabelMap(labels, self._grid), [2 * _DISC_LOG_PRIOR, _DISC_LOG_PRIOR])

    def _weighed(self, base: Shape, chain: Chain, adds: bool, log_prior: np.ndarray) -> list[_Candidate]:
        """The masks that the pieces of a chain make of a base, as far as they agree with all clicks."""
        points, positive = self._prompt.points_xy, self._prompt.positive
        held = chain.rings_at(points) <= np.arange(len(chain))[:, None]
        inside = base.at(points)
        inside = inside | held if adds else inside & ~held
        agrees = (inside == positive).all(axis=1)
        if not agrees.any():
            return []
        total = log_prior.copy()
        for number, (shown, click) in enumerate(self._clicks):
            power = _LATER_POWER if number or self._prompt.box_xyxy is not None else _FIRST_POWER
            total += power * np.log(centredness(base, chain, adds, shown, click))
        if chain is self._void:
            return [_Candidate(total[0], base)]
        return [_Candidate(total[i], base, log_prior[i], chain, int(i), adds) for i in np.flatnonzero(agrees)]


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A mask that has not been made yet: a base, with a piece of a chain added or taken away if there is one."""

    log_score: float
    base: Shape
    log_prior: float = 0.0
    chain: Chain | None = None
    number: int = 0
    adds: bool = True

    def shape(self) -> Shape:
        if self.chain is None:
            return self.base
        return self.base.edited(self.chain, self.number, self.adds, float(self.log_prior))


def _distinct(ranked: Iterator[tuple[Shape, float]]) -> tuple[list[Shape], np.ndarray]:
    """The first few of ranked masks that differ, and their (C,) scores."""
    shapes: list[Shape] = []
    log_scores: list[float] = []
    for shape, log_score in ranked:
        if not any(_is_alike(shape, other) for other in shapes):
            shapes.append(shape)
            log_scores.append(log_score)
            if len(shapes) == MAX_MASKS_PER_PROMPT:
                break
    return shapes, np.array(log_scores)


def _is_alike(shape: Shape, other: Shape) -> bool:
    smaller, larger = sorted((shape.n_points, other.n_points))
    return smaller > _DISTINCT_IOU * larger and _iou(shape.sampled, other.sampled) > _DISTINCT_IOU


def _in_order(prompt: Prompt) -> tuple[np.ndarray, np.ndarray]:
    """Points and kinds as they were given, but a positive one first where there is no box."""
    points, positive = prompt.points_xy, prompt.positive
    if prompt.box_xyxy is not None:
        return points, positive
    first = int(positive.argmax())
    order = np.r_[first, np.delete(np.arange(len(points)), first)]
    return points[order], positive[order]


def _led_by(shapes: list[Shape], earlier: LabelMap) -> list[Shape]:
    """The answer that was given back as a mask, then the others; the mask itself if it is none of them."""
    mask = earlier.sampled == 0
    alike = [_iou(shape.sampled, mask) for shape in shapes]
    if alike and max(alike) >= _SAME_IOU:
        chosen = shapes[int(np.argmax(alike))]
        return [chosen, *(shape for shape in shapes if shape is not chosen)]
    return [Shape((), np.zeros_like(mask), 0.0).edited(_only(earlier, [0.0]), 0, True, 0.0), *shapes]


def _like(chain: Chain, earlier: LabelMap) -> Chain:
    """The chain with a prior that prefers what is like a mask."""
    mask, count = earlier.sampled == 0, len(chain) + 1
    areas = np.bincount(chain.rings, minlength=count).cumsum()[:-1]
    shared = np.bincount(chain.rings[mask], minlength=count).cumsum()[:-1]
    iou = shared / np.maximum(areas + mask.sum() - shared, 1)
    return replace(chain, log_prior=chain.log_prior + np.log(np.maximum(iou, 1e-6)))


def _only(label_map: LabelMap, log_prior: list[float]) -> Chain:
    """A chain whose piece i holds the labels up to i."""
    count = len(log_prior)
    return Chain(label_map, np.minimum(np.arange(256), count), np.array(log_prior))


def _iou(mask: np.ndarray, other: np.ndarray) -> float:
    return np.count_nonzero(mask & other) / max(np.count_nonzero(mask | other), 1)


def masks_of(shapes: list[Shape], size_hw: tuple[int, int]) -> np.ndarray:
    """(C, H, W) bool pixels of shapes."""
    masks = np.zeros((len(shapes), *size_hw), bool)
    of_chain: dict[int, list[int]] = {}
    for number, shape in enumerate(shapes):
        of_chain.setdefault(id(shape.edits[0].chain), []).append(number)
    for numbers in of_chain.values():
        first_edits = [shapes[number].edits[0] for number in numbers]
        first_edits[0].chain.draw([edit.number for edit in first_edits], [masks[number] for number in numbers])
    for shape, mask in zip(shapes, masks, strict=True):
        for edit in shape.edits[1:]:
            piece = np.zeros_like(mask)
            edit.chain.draw([edit.number], [piece])
            mask[:] = edit.apply(mask, piece)
    return masks
