"""Finds the mask of an object in the next slice.

Every pixel near the mask before gets odds of being the object's: from how deep it lies inside that mask, or how far
outside, and from its grey value or colour, which the object and its surroundings were seen to have in the slice where
the user marked it. The regions of the trees are then weighed as wholes, so that outlines are those of the image:
each tree gives its best region and its best set of few regions, and of all these the one with the largest expected IoU
is taken. The answers of the engine to a click and a box can join them, but added nothing on the stack this was tried on.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy import ndimage

from napari_unsam.engine.planes import EmbeddedPlane
from napari_unsam.levels.disjoint import best_disjoint, node_totals
from napari_unsam.model.mask import Box, BoxMask, box_slices
from unsam_mm.masks.granularity import area_granularity
from unsam_mm.masks.hierarchy import MaskHierarchy

_BLUR_PX = 1.5  # noise of single pixels says nothing about an object
_GREY_BINS, _COLOUR_BINS = 16, 6  # of a grey image, and of each channel of a colour image
_MIN_SHARE = 0.01  # of a grey value that an object was not seen to have
_MAX_LOG_SHARE = 3.0
_MAX_LOG_ODDS = 4.0


@dataclass(frozen=True)
class MatchSettings:
    """How a mask is found again; the numbers were chosen on the 31 objects of one stack of micrographs.

    Attributes:
        reach: How far an outline moves from one slice to the next, as a share of the object's radius.
        appearance: The weight of grey values or colours against place.
        region_cost: What each region of a set costs, in log odds for an object of 100 px; it grows as the radius does.
        ask_engine: Whether the engine is asked too, which takes most of the time.
    """

    reach: float = 0.15
    appearance: float = 1.0
    region_cost: float = 40.0
    ask_engine: bool = False


class SliceState(Enum):
    """How a slice came to its mask."""

    CORRECTED = 'corrected'
    PROPAGATED = 'propagated'
    STOPPED = 'stopped'


@dataclass(frozen=True, eq=False)
class SliceMask:
    """An object in one slice.

    Attributes:
        crop: The mask; empty where the object ended.
        iou: With the mask in the slice that it came from; 1 where the mask was known.
        score: Expected IoU with the object, in [0, 1].
        granularity: In [0, 1] by its share of the slice.
        state: How the slice came to the mask.
    """

    crop: BoxMask
    iou: float
    score: float
    granularity: float
    state: SliceState = SliceState.PROPAGATED


def colour_bins(pixels: np.ndarray) -> np.ndarray:
    """(H, W) int64 numbers of the grey values or colours of an image, (H, W) or (H, W, 3) uint8."""
    pixels = np.asarray(pixels)
    channels = [pixels] if pixels.ndim == 2 else [pixels[..., i] for i in range(pixels.shape[2])]
    n_bins = _GREY_BINS if len(channels) == 1 else _COLOUR_BINS
    bins = np.zeros(pixels.shape[:2], np.int64)
    for channel in channels:
        smooth = ndimage.gaussian_filter(channel.astype(np.float32), _BLUR_PX)
        bins = bins * n_bins + np.clip(smooth * (n_bins / 256), 0, n_bins - 1).astype(np.int64)
    return bins


def appearance_of(crop: BoxMask, bins: np.ndarray) -> np.ndarray:
    """(B,) log odds that a pixel of each grey value or colour belongs to an object rather than to a ring around it.

    Args:
        crop: The object.
        bins: (H, W) of its slice, from `colour_bins`.
    """
    radius = _radius(crop)
    box = _grown(crop.box_xyxy, int(radius) + 1, bins.shape)
    inside, seen = crop.within(box), bins[box_slices(box)]
    ring = ~inside & (ndimage.distance_transform_edt(~inside) <= radius)
    own, around = (_shares(seen[part]) for part in (inside, ring))
    return np.clip(np.log((own + _MIN_SHARE) / (around + _MIN_SHARE)), -_MAX_LOG_SHARE, _MAX_LOG_SHARE)


def _shares(bins: np.ndarray) -> np.ndarray:
    counts = np.bincount(bins, minlength=_COLOUR_BINS**3) / max(len(bins), 1)
    return ndimage.convolve1d(counts, [0.25, 0.5, 0.25], mode='constant')


def match_mask(
    embedded: EmbeddedPlane,
    previous: BoxMask,
    appearance: np.ndarray,
    bins: np.ndarray,
    settings: MatchSettings = MatchSettings(),
) -> SliceMask | None:
    """The mask of an object in a slice, given its mask in the slice before.

    Args:
        embedded: The slice; one without a hierarchy, which is analysed in windows, has only its engine's answers.
        previous: The mask before; not empty.
        appearance: (B,) from `appearance_of`.
        bins: (H, W) of this slice, from `colour_bins`.
        settings: How it is found.

    Returns:
        The mask; None if nothing here speaks for the object.
    """
    probs = _pixel_probs(previous, appearance, bins, settings)
    tree, crops = embedded.hierarchy, []
    for one in (tree, *tree.alternatives) if tree is not None else ():
        crops += _from_tree(one, probs, previous.area_px, settings)
    if settings.ask_engine or tree is None:
        # A click at the deepest point of the mask before, and its box.
        crops += embedded.answer(deepest_point(previous)[None], np.ones(1, np.int64))
        crops += embedded.answer(None, None, box_xyxy=np.array(previous.box_xyxy, float))
    here = previous.within(probs.box_xyxy)
    best, best_score = None, 0.0
    for crop in crops:
        part = _main_part(crop.within(probs.box_xyxy), here)
        if part is None:
            continue
        score = probs.expected_iou(part)
        if score > best_score:
            best, best_score = part, score
    if best is None:
        return None
    crop = BoxMask.of(best, probs.box_xyxy[1], probs.box_xyxy[0])
    return SliceMask(crop, crop.iou(previous), best_score, float(area_granularity(crop.area_px, bins.size)))


def appearance_score(crop: BoxMask, appearance: np.ndarray, bins: np.ndarray, settings: MatchSettings) -> float:
    """The expected IoU of a known mask in its own slice: what matches of the object can reach at best."""
    probs = _pixel_probs(crop, appearance, bins, settings)
    return probs.expected_iou(crop.within(probs.box_xyxy))


@dataclass(frozen=True, eq=False)
class _PixelProbs:
    """Probability of each pixel near an object to belong to it.

    Attributes:
        box_xyxy: What was analysed.
        log_odds: (h, w) float; elsewhere they are as low as they can be.
        prob: (h, w) float, the same in [0, 1].
    """

    box_xyxy: tuple[int, int, int, int]
    log_odds: np.ndarray
    prob: np.ndarray

    def expected_iou(self, part: np.ndarray) -> float:
        """The IoU of an (h, w) bool mask with the object, as far as the probabilities of pixels tell."""
        shared = self.prob[part].sum()
        return float(shared / (np.count_nonzero(part) + self.prob.sum() - shared))


def _pixel_probs(previous: BoxMask, appearance: np.ndarray, bins: np.ndarray, settings: MatchSettings) -> _PixelProbs:
    blur_px = settings.reach * _radius(previous) + 1
    box = _grown(previous.box_xyxy, int(_MAX_LOG_ODDS * blur_px) + 3, bins.shape)
    inside = previous.within(box)
    depth_px = np.where(
        inside, ndimage.distance_transform_edt(inside) - 0.5, 0.5 - ndimage.distance_transform_edt(~inside)
    )
    place = np.clip(depth_px / blur_px, -_MAX_LOG_ODDS, _MAX_LOG_ODDS)
    log_odds = place + settings.appearance * appearance[bins[box_slices(box)]]
    return _PixelProbs(box, log_odds, 1 / (1 + np.exp(-log_odds)))


def _from_tree(tree: MaskHierarchy, probs: _PixelProbs, area_px: int, settings: MatchSettings) -> list[BoxMask]:
    """The best region of a tree and the best set of its regions."""
    box = probs.box_xyxy
    leaves = tree.leaf_labels[box_slices(box)]
    flat, n_leaves = leaves.ravel(), tree.n_leaves
    outside = tree.area[:n_leaves] - np.bincount(flat, minlength=n_leaves)
    log_odds = np.bincount(flat, probs.log_odds.ravel(), minlength=n_leaves) - 2 * _MAX_LOG_ODDS * outside
    cost = settings.region_cost * np.sqrt(area_px) / 10
    in_set = _holds(tree, best_disjoint(tree, node_totals(tree, log_odds) - cost))

    shared = node_totals(tree, np.bincount(flat, probs.prob.ravel(), minlength=n_leaves))
    node = int(np.argmax(shared / (tree.area + probs.prob.sum() - shared)))
    in_node = (leaves >= tree.first_leaf[node]) & (leaves < tree.end_leaf[node])
    return [BoxMask.of(part, box[1], box[0]) for part in (in_set[leaves], in_node)]


def deepest_point(crop: BoxMask) -> np.ndarray:
    """(2,) x and y of the pixel of a mask that is farthest from its outline."""
    depth = ndimage.distance_transform_edt(np.pad(crop.mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return np.array([column + crop.box_xyxy[0], row + crop.box_xyxy[1]], float)


def _main_part(mask: np.ndarray, previous: np.ndarray) -> np.ndarray | None:
    """The connected part that shares most with the mask before, its holes filled; None if none shares anything."""
    parts, count = ndimage.label(mask)
    shared = np.bincount(parts[previous], minlength=count + 1)
    shared[0] = 0
    largest = int(shared.argmax())
    return ndimage.binary_fill_holes(parts == largest) if shared[largest] else None


def _holds(tree: MaskHierarchy, nodes: np.ndarray) -> np.ndarray:
    """(L,) bool: which leaves lie in disjoint nodes."""
    steps = np.zeros(tree.n_leaves + 1, np.int64)
    steps[tree.first_leaf[nodes]] += 1
    steps[tree.end_leaf[nodes]] -= 1
    return np.cumsum(steps[:-1]) > 0


def _radius(crop: BoxMask) -> float:
    return float(np.sqrt(crop.area_px / np.pi))


def _grown(box_xyxy: Box, margin: int, size_hw: tuple[int, int]) -> Box:
    x0, y0, x1, y1 = box_xyxy
    return max(x0 - margin, 0), max(y0 - margin, 0), min(x1 + margin, size_hw[1]), min(y1 + margin, size_hw[0])
