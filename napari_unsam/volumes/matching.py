"""Finds the mask of an object in the next slice.

Each pixel near the previous mask has log odds of belonging to the object. They are the sum of two terms: one for its
distance to the outline of that mask, and one for its grey value or colour, from the histograms of the object and its
surroundings in the slice where the mask is known. Candidates are regions of the trees, so that outlines follow the
image: the best region of each tree and its best set of regions. The candidate with the largest expected IoU is chosen.
The answers of the engine to a click and a box can be candidates too, but did not improve the results on the one stack
of micrographs that was tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from scipy import ndimage

from napari_unsam.engine.planes import EmbeddedPlane
from napari_unsam.levels.disjoint import best_disjoint, leaf_values
from napari_unsam.model.mask import Box, BoxMask, box_slices
from unsam_mm.masks.granularity import area_granularity
from unsam_mm.masks.hierarchy import MaskHierarchy

_BLUR_PX = 1.5  # suppresses the noise of single pixels
_GREY_BINS, _COLOUR_BINS = 16, 6  # for a grey image, and for each channel of a colour image
_MIN_SHARE = 0.01  # added to all shares of a histogram, so that none is 0
_MAX_LOG_SHARE = 3.0
_MAX_LOG_ODDS = 4.0
# The next two were chosen on the 31 objects of one stack of micrographs.
_MOTION = 0.15  # typical shift of an outline from one slice to the next, as a share of the object's radius
_REGION_COST = 40.0  # of each region of a set, in log odds for an object of 100 px; proportional to the radius


class SliceState(Enum):
    """How the mask of a slice was obtained: known, found by propagation, or empty because the object has ended."""

    CORRECTED = 'corrected'
    PROPAGATED = 'propagated'
    STOPPED = 'stopped'


@dataclass(frozen=True, eq=False)
class SliceMask:
    """The mask of an object in one slice.

    Attributes:
        mask: The mask; empty where the object has ended.
        iou: IoU with the mask of the previous slice in the direction of propagation; 1 for known masks.
        score: Expected IoU with the object, in [0, 1].
        granularity: Granularity of the mask, in [0, 1].
        state: How the mask was obtained.
        step: Direction of propagation: 1 from slice z - 1 to z, -1 from slice z + 1; 0 for known masks.
    """

    mask: BoxMask
    iou: float
    score: float
    granularity: float
    state: SliceState = SliceState.PROPAGATED
    step: int = 0


def colour_bins(pixels: np.ndarray) -> np.ndarray:
    """(H, W) int64: histogram bin of the smoothed grey value or colour of each pixel of a uint8 image.

    Args:
        pixels: (H, W) or (H, W, 3) uint8 image.
    """
    pixels = np.asarray(pixels)
    channels = [pixels] if pixels.ndim == 2 else [pixels[..., i] for i in range(pixels.shape[2])]
    n_bins = _GREY_BINS if len(channels) == 1 else _COLOUR_BINS
    bins = np.zeros(pixels.shape[:2], np.int64)
    for channel in channels:
        smooth = ndimage.gaussian_filter(channel.astype(np.float32), _BLUR_PX)
        bins = bins * n_bins + np.clip(smooth * (n_bins / 256), 0, n_bins - 1).astype(np.int64)
    return bins


def appearance_of(mask: BoxMask, bins: np.ndarray) -> np.ndarray:
    """(B,) log odds that a pixel of each histogram bin belongs to an object rather than to a ring around it.

    Args:
        mask: Mask of the object.
        bins: (H, W) bins of its slice, from `colour_bins`.
    """
    radius = _radius(mask)
    box = _grown(mask.box_xyxy, int(radius) + 1, bins.shape)
    inside, seen = mask.within(box), bins[box_slices(box)]
    ring = ~inside & (ndimage.distance_transform_edt(~inside) <= radius)
    own, around = (_shares(seen[part]) for part in (inside, ring))
    return np.clip(np.log((own + _MIN_SHARE) / (around + _MIN_SHARE)), -_MAX_LOG_SHARE, _MAX_LOG_SHARE)


def _shares(bins: np.ndarray) -> np.ndarray:
    """(B,) smoothed histogram, as shares of the number of pixels."""
    counts = np.bincount(bins, minlength=_COLOUR_BINS**3) / max(len(bins), 1)
    return ndimage.convolve1d(counts, [0.25, 0.5, 0.25], mode='constant')


def match_mask(
    embedded: EmbeddedPlane,
    previous: BoxMask,
    appearance: np.ndarray,
    bins: np.ndarray,
    ask_engine: bool = False,
) -> SliceMask:
    """Finds the mask of an object in a slice from its mask in the previous slice.

    Args:
        embedded: The slice; without a hierarchy (if analysed in tiles), only the engine's answers are candidates.
        previous: The previous mask; not empty.
        appearance: (B,) log odds from `appearance_of`.
        bins: (H, W) bins of this slice, from `colour_bins`.
        ask_engine: True if answers of the engine are candidates too; they take most of the time.

    Returns:
        The mask; empty, with score 0, if no candidate overlaps the previous mask.
    """
    probs = _pixel_probs(previous, appearance, bins)
    tree, masks = embedded.hierarchy, []
    for one in tree.trees if tree is not None else ():
        masks += _from_tree(one, probs, previous.area_px)
    if ask_engine or tree is None:
        # A click at the deepest point of the previous mask, and its box.
        masks += embedded.answer(deepest_point(previous)[None], np.ones(1, np.int64))
        masks += embedded.answer(None, None, box_xyxy=np.array(previous.box_xyxy, float))
    here = previous.within(probs.box_xyxy)
    best, best_score = np.zeros_like(here), 0.0
    for mask in masks:
        part = _main_part(mask.within(probs.box_xyxy), here)
        if part is None:
            continue
        score = probs.expected_iou(part)
        if score > best_score:
            best, best_score = part, score
    mask = BoxMask.of(best, probs.box_xyxy[1], probs.box_xyxy[0])
    return SliceMask(mask, mask.iou(previous), best_score, float(area_granularity(mask.area_px, bins.size)))


def appearance_score(mask: BoxMask, appearance: np.ndarray, bins: np.ndarray) -> float:
    """The expected IoU of a known mask in its own slice; the scores of matches in other slices are compared with it."""
    probs = _pixel_probs(mask, appearance, bins)
    return probs.expected_iou(mask.within(probs.box_xyxy))


@dataclass(frozen=True, eq=False)
class _PixelProbs:
    """Probability that pixels near an object belong to it.

    Attributes:
        box_xyxy: Box of these pixels.
        log_odds: (h, w) float log odds; a pixel outside the box counts as -2 * `_MAX_LOG_ODDS`.
        prob: (h, w) float probabilities in [0, 1].
    """

    box_xyxy: tuple[int, int, int, int]
    log_odds: np.ndarray
    prob: np.ndarray

    def expected_iou(self, part: np.ndarray) -> float:
        """The expected IoU of an (h, w) bool mask with the object."""
        shared = self.prob[part].sum()
        return float(shared / (np.count_nonzero(part) + self.prob.sum() - shared))


def _pixel_probs(previous: BoxMask, appearance: np.ndarray, bins: np.ndarray) -> _PixelProbs:
    blur_px = _MOTION * _radius(previous) + 1
    box = _grown(previous.box_xyxy, int(_MAX_LOG_ODDS * blur_px) + 3, bins.shape)
    inside = previous.within(box)
    depth_px = np.where(
        inside, ndimage.distance_transform_edt(inside) - 0.5, 0.5 - ndimage.distance_transform_edt(~inside)
    )
    position = np.clip(depth_px / blur_px, -_MAX_LOG_ODDS, _MAX_LOG_ODDS)
    log_odds = position + appearance[bins[box_slices(box)]]
    return _PixelProbs(box, log_odds, 1 / (1 + np.exp(-log_odds)))


def _from_tree(tree: MaskHierarchy, probs: _PixelProbs, area_px: int) -> list[BoxMask]:
    """The best region of a tree and the best set of its regions."""
    box = probs.box_xyxy
    leaves = tree.leaf_labels[box_slices(box)]
    flat, n_leaves = leaves.ravel(), tree.n_leaves
    outside = tree.area[:n_leaves] - np.bincount(flat, minlength=n_leaves)
    log_odds = np.bincount(flat, probs.log_odds.ravel(), minlength=n_leaves) - 2 * _MAX_LOG_ODDS * outside
    cost = _REGION_COST * np.sqrt(area_px) / 10
    chosen = best_disjoint(tree, tree.tree.sums_of_leaves(log_odds) - cost)
    in_set = leaf_values(tree, chosen, np.ones(len(chosen), int)) > 0

    shared = tree.tree.sums_of_leaves(np.bincount(flat, probs.prob.ravel(), minlength=n_leaves))
    node = int(np.argmax(shared / (tree.area + probs.prob.sum() - shared)))
    in_node = (leaves >= tree.first_leaf[node]) & (leaves < tree.end_leaf[node])
    return [BoxMask.of(part, box[1], box[0]) for part in (in_set[leaves], in_node)]


def deepest_point(mask: BoxMask) -> np.ndarray:
    """(2,) float x and y of the pixel of a mask that is farthest from its outline."""
    depth = ndimage.distance_transform_edt(np.pad(mask.mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return np.array([column + mask.box_xyxy[0], row + mask.box_xyxy[1]], float)


def _main_part(mask: np.ndarray, previous: np.ndarray) -> np.ndarray | None:
    """The component with the largest overlap with the previous mask, its holes filled; None if none overlaps."""
    parts, count = ndimage.label(mask)
    shared = np.bincount(parts[previous], minlength=count + 1)
    shared[0] = 0
    largest = int(shared.argmax())
    return ndimage.binary_fill_holes(parts == largest) if shared[largest] else None


def _radius(mask: BoxMask) -> float:
    return float(np.sqrt(mask.area_px / np.pi))


def _grown(box_xyxy: Box, margin: int, size_hw: tuple[int, int]) -> Box:
    x0, y0, x1, y1 = box_xyxy
    return max(x0 - margin, 0), max(y0 - margin, 0), min(x1 + margin, size_hw[1]), min(y1 + margin, size_hw[0])
