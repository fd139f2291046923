"""COCO's greedy matching of the detections of one image to its truths.

It looks only at the few truths that a detection can match and treats all area ranges and thresholds at once.
pycocotools computes the overlaps, of pairs whose areas allow one half at all.

Protocol: Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and its evaluation toolbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from unsam_mm.evaluation.records import Masks

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)

_AREA_STEP = 1.5
"""Detections of similar area are compared at once: from one area to so many times as much."""


@dataclass(frozen=True)
class MatchResult:
    """All that recall and precision need of one image: about 10 kB at 1000 detections.

    Attributes:
        scores: (D,) float64, falling.
        found: (A, K, T) int64 truths found in A area ranges, among the K numbers of best detections, at T thresholds.
        n_truths: (A,) int64 truths that can be found.
        right: (T, ceil(D / 8)) uint8, packed bits: detections with a truth of their own; all areas.
        wrong: The same form; detections without one, which are no crowd either.
    """

    scores: np.ndarray
    found: np.ndarray
    n_truths: np.ndarray
    right: np.ndarray
    wrong: np.ndarray


def match_image(detections: Masks, truths: Masks, ranges: np.ndarray, max_dets: Sequence[int]) -> MatchResult:
    """Matches the detections of one image to its truths.

    Args:
        detections: Best first.
        truths: In the order of the file.
        ranges: (A, 2) float64 smallest and largest area in pixels, both included; the first holds every area.
        max_dets: K numbers of best detections, rising.
    """
    outside_truths, outside = (
        (masks.areas < ranges[:, :1]) | (masks.areas > ranges[:, 1:]) for masks in (truths, detections)
    )  # (A, G), (A, D)
    passive = outside_truths | truths.is_crowd
    shape = (len(ranges), len(IOU_THRESHOLDS), len(detections.rles))
    if detections.rles and truths.rles:
        hit, ignored = _match(overlaps(detections, truths), truths.is_crowd, passive)
    else:
        hit, ignored = np.zeros(shape, bool), np.zeros(shape, bool)
    right = hit & ~ignored
    wrong = ~(hit | ignored | outside[:, None])
    found = np.stack([np.count_nonzero(right[..., :k], axis=2) for k in max_dets], axis=1)
    bits = (np.packbits(flags[0], axis=1) for flags in (right, wrong))
    return MatchResult(detections.scores, found, np.count_nonzero(~passive, axis=1), *bits)


def overlaps(detections: Masks, truths: Masks) -> np.ndarray:
    """(D, G) float64 intersection over union, or over the detection for a crowd; 0 where it is below one half anyway.

    Two masks of which one is more than twice as large as the other overlap by less than one half.
    """
    ious = np.zeros((len(detections.rles), len(truths.rles)))
    order = np.argsort(detections.drawn, kind='stable')
    rising = detections.drawn[order]
    first = 0
    while first < len(order):
        behind = max(np.searchsorted(rising, _AREA_STEP * rising[first], side='right'), first + 1)
        rows = order[first:behind]
        able = (2 * truths.drawn >= rising[first]) & (truths.drawn <= 2 * rising[behind - 1])
        columns = np.flatnonzero(able | truths.is_crowd)
        if len(columns):
            ious[np.ix_(rows, columns)] = coco_mask.iou(
                [detections.rles[i] for i in rows],
                [truths.rles[i] for i in columns],
                truths.is_crowd[columns].astype(np.uint8).tolist(),
            )
        first = behind
    return ious


def _match(ious: np.ndarray, is_crowd: np.ndarray, passive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Greedy matching: each detection in turn takes the free truth that it overlaps most.

    Args:
        ious: (D, G) float64.
        is_crowd: (G,) bool; a crowd can be matched any number of times.
        passive: (A, G) bool; truths that do not count in an area range. They are taken only if no other is free.

    Returns:
        (A, T, D) bool whether the detection is matched, and (A, T, D) bool whether with a passive truth.
    """
    limits = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    taken = np.zeros((len(passive), len(limits), ious.shape[1]), bool)
    hit = np.zeros((len(passive), len(limits), len(ious)), bool)
    ignored = np.zeros_like(hit)
    reachable = ious >= limits[0]
    for detection in np.flatnonzero(reachable.any(axis=1)):
        near = np.flatnonzero(reachable[detection])[::-1]  # the last of equal overlaps wins, argmax takes the first
        iou = ious[detection, near]
        able = (iou >= limits[:, None]) & (is_crowd[near] | ~taken[:, :, near])  # (A, T, K)
        # Active truths rank in [0.5, 1], passive ones in [-0.5, 0]; the subtraction is exact.
        rank = np.where(able, iou - passive[:, None, near], -1.0)
        area, threshold = np.nonzero(able.any(axis=2))
        truth = near[rank.argmax(axis=2)[area, threshold]]
        taken[area, threshold, truth] = True
        hit[area, threshold, detection] = True
        ignored[area, threshold, detection] = passive[area, truth]
    return hit, ignored
