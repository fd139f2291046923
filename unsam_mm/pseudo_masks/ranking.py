"""Scores the regions of several trees by objectness cues, and ranks them with soft non-maximum suppression.

A region scores high if it has edges along its whole boundary, a compact shape, and a similar region in trees that
were built with other weights. Soft NMS lowers the scores of near-duplicates without removing them: the true outline of
an object is often ambiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np

from unsam_mm import threads
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.hierarchy import MaskHierarchy, ious
from unsam_mm.masks.ops import soft_nms
from unsam_mm.masks.tree import sum_over_descendants
from unsam_mm.pseudo_masks.superpixels import Superpixels

_MIN_EDGE = 0.02  # lower bound of the edge strength, relative to its mean in the image
_RANGES = {'candidates': (1, np.inf), 'max_decay': (0, 1), 'iou_power': (0, np.inf)}  # powers of cues: any number


@dataclass(frozen=True)
class UnrankedTree:
    """A tree whose regions are not ranked yet.

    Attributes:
        tree: A tree over the superpixels; its scores are ignored.
        superpixels: The superpixels, or other leaves; their partition is that of the tree.
        is_mask: (N,) bool; False for nodes that only complete the partition. Leaves are in the order of `superpixels`,
            not depth-first.
    """

    tree: MaskHierarchy
    superpixels: Superpixels
    is_mask: np.ndarray


@dataclass(frozen=True)
class Cues:
    """Objectness cues of N regions, (N,) float64 each.

    The quality of a region is the product of its cues, each raised to its power.

    Attributes:
        edge: Harmonic mean of the edge strength along the boundary, divided by the mean edge strength of the image.
        roughness: Perimeter divided by the square root of the area.
        area: Area in pixels.
        fullness: Area divided by that of the ellipse with the same second moments: 1 for an ellipse, 0.95 for a
            rectangle, small for elongated chains and hollow shapes.
        persistence: Height of the parent minus that of the region, divided by the median of the positive differences in
            the tree, plus 0.01.
    """

    edge: np.ndarray
    roughness: np.ndarray
    area: np.ndarray
    fullness: np.ndarray
    persistence: np.ndarray


@dataclass(frozen=True)
class RankingSettings:
    """Powers of the objectness cues, and parameters of soft NMS.

    Attributes:
        edge: Power of `Cues.edge`.
        roughness: Power of `Cues.roughness`.
        area: Power of `Cues.area`.
        fullness: Power of `Cues.fullness`.
        persistence: Power of `Cues.persistence`.
        cross_tree_consensus: Power of the cross-tree consensus: the mean, over the trees, of the best IoU of a region
            with a candidate of that tree. Exact duplicates are not candidates.
        candidates: Number of regions with the highest quality that are compared by consensus and soft NMS.
        max_decay: Fraction of its score that a region loses to a better region with an IoU of 1, in [0, 1].
        iou_power: Power of the IoU in that fraction; a high power affects near-duplicates only.
    """

    edge: float = 0.75
    roughness: float = -2.0
    area: float = 0.4
    fullness: float = 1.5
    persistence: float = 0.2
    cross_tree_consensus: float = 0.75
    candidates: int = 2000
    max_decay: float = 0.5
    iou_power: float = 6.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            low, high = _RANGES.get(name, (-np.inf, np.inf))
            if not (low <= value <= high and np.isfinite(value)):
                raise UnSAMError(
                    f'{name}={value} is out of range; candidates must be at least 1, max_decay must be in [0, 1], '
                    'iou_power must not be negative, and all must be finite'
                )


def rank_regions(unranked: Sequence[UnrankedTree], settings: RankingSettings) -> MaskHierarchy:
    """Scores the regions of all trees of an image on one scale.

    Args:
        unranked: Trees of one image.
        settings: Powers of the cues, and parameters of soft NMS.

    Returns:
        The first tree with its scores, and with the other trees as its alternatives.
    """
    trees = [entry.tree for entry in unranked]
    qualities = threads.run_parallel([partial(_quality, entry, settings) for entry in unranked])
    quality = _without_duplicates(np.concatenate(qualities), np.concatenate([tree.hashes for tree in trees]))
    n_candidates = min(settings.candidates, int((quality > 0).sum()))
    candidates = np.sort(np.argsort(-quality, kind='stable')[:n_candidates])
    tree_index = np.repeat(np.arange(len(trees)), [len(tree) for tree in trees])
    starts = np.cumsum([0, *(len(tree) for tree in trees[:-1])])
    nodes = [candidates[tree_index[candidates] == number] - start for number, start in enumerate(starts)]
    overlap = ious(trees, nodes)
    consensus = _cross_tree_consensus(overlap, tree_index[candidates])
    # With the default `iou_power` the effect of IoUs up to one half is negligible.
    kept, score_when_kept = soft_nms(
        quality[candidates] * consensus**settings.cross_tree_consensus,
        overlap,
        settings.max_decay,
        settings.iou_power,
        min_iou=0.5,
    )
    best, lowest = (score_when_kept[0], score_when_kept.min()) if len(kept) else (1.0, 1.0)
    # The other regions come after the candidates; within each tree they are in the order of their quality.
    peaks = np.array([part.max() for part in np.split(quality, starts[1:])])
    score = quality * (0.99 * lowest / np.maximum(peaks, 1e-300))[tree_index]
    score[candidates] = 0
    score[candidates[kept]] = score_when_kept
    scores = np.split((score / best).astype(np.float32), starts[1:])
    first, *others = (replace(tree, score=values) for tree, values in zip(trees, scores, strict=True))
    return replace(first, alternatives=tuple(others))


def _quality(entry: UnrankedTree, settings: RankingSettings) -> np.ndarray:
    """(N,) product of the cues of each node; 0 where a node is not a mask."""
    cues = measure_cues(entry)
    quality = np.ones(len(entry.tree))
    for cue in fields(Cues):
        quality *= getattr(cues, cue.name) ** getattr(settings, cue.name)
    inner = quality[:-1]
    # The root has no boundary and no parent, so it gets the median quality.
    quality[-1] = np.median(inner) if len(inner) else 1.0
    return np.where(entry.tree.tree.renumbered(entry.is_mask), quality, 0.0)


def measure_cues(entry: UnrankedTree) -> Cues:
    """The cues of every node of a tree.

    The border of two adjacent superpixels is part of the boundary of each region that contains exactly one of them. Its
    length is added at both leaves and subtracted twice at their lowest common ancestor. The sum over the descendants of
    a node is then the length of its boundary.
    """
    tree, superpixels = entry.tree, entry.superpixels
    pairs = tree.tree.leaf_of_region[superpixels.edges]
    ancestors = tree.tree.common_ancestors(pairs)
    mean_strength = max(float(superpixels.colour.strength.mean()), 1e-6)
    min_strength = _MIN_EDGE * mean_strength
    lengths = superpixels.edge_lengths_px.astype(np.float64)

    def sum_along_boundaries(weights: np.ndarray) -> np.ndarray:
        at_leaves = np.bincount(pairs.ravel(), np.repeat(weights, 2), minlength=len(tree))
        at_ancestors = np.bincount(ancestors, 2 * weights, minlength=len(tree))
        return sum_over_descendants(at_leaves - at_ancestors, tree.parent)

    border_px = np.maximum(sum_along_boundaries(lengths), 0)
    # Rounding leaves a residue at the root, whose boundary has the length 0.
    resistance = np.maximum(sum_along_boundaries(lengths / (superpixels.edge_strength + min_strength)), 1e-9)
    height, width = tree.size_hw
    outline_px = tree.border_share * 2 * (height + width)
    persistence = tree.tree.persistence.astype(np.float64)
    positive = persistence[persistence > 0]
    return Cues(
        edge=np.where(border_px > 0.5, border_px / resistance, min_strength) / mean_strength,
        roughness=(border_px + outline_px) / np.sqrt(tree.area),
        area=tree.area.astype(np.float64),
        fullness=_fullness(tree),
        persistence=persistence / max(float(np.median(positive)) if len(positive) else 1.0, 1e-12) + 0.01,
    )


def _fullness(tree: MaskHierarchy) -> np.ndarray:
    y, x, yy, xx, xy = tree.moments / tree.area
    pixel = 1 / 12  # a pixel is a square, not a point
    var_y, var_x = yy - y**2 + pixel, xx - x**2 + pixel
    spread = np.maximum(var_y * var_x - (xy - x * y) ** 2, pixel**2)
    return tree.area / (4 * np.pi * np.sqrt(spread))


def _without_duplicates(quality: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """(N,) the quality of the regions of all trees, 0 for a region that equals a region of an earlier tree."""
    candidates = np.flatnonzero(quality > 0)
    _, firsts = np.unique(hashes[candidates], return_index=True)
    distinct = np.zeros(len(quality))
    distinct[candidates[firsts]] = quality[candidates[firsts]]
    return distinct


def _cross_tree_consensus(overlap: np.ndarray, tree_index: np.ndarray) -> np.ndarray:
    """(K,) in (0, 1]: mean, over the trees, of the best IoU of a region with a candidate of that tree.

    The IoU in its own tree is 1. Exact duplicates are not candidates, so in other trees only similar regions count.
    Regions much larger than a superpixel have similar regions in every tree; regions of two or three superpixels
    usually have none.
    """
    best = [overlap[:, tree_index == tree].max(axis=1) for tree in np.unique(tree_index)]
    return np.maximum(np.mean(best, axis=0), 1e-3) if best else np.ones(0)
