"""Any bag of masks becomes a hierarchy that gives every one of them back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage import data, measure

from tests.trees import all_masks, cross, random_masks, seeds
from unsam_mm import MaskHierarchy
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.laminar import laminar_trees
from unsam_mm.masks.rle import encode_bitmaps


def scores_for(masks: np.ndarray, seed: int = 0) -> np.ndarray:
    """Different scores in (0, 1], in random order."""
    return np.random.default_rng(seed).permutation(np.arange(1, len(masks) + 1) / max(len(masks), 1))


def hierarchy_of(masks: np.ndarray, scores: np.ndarray) -> MaskHierarchy:
    return MaskHierarchy.from_masks(encode_bitmaps(masks), scores, masks.shape[1:])


def real_masks(tree: MaskHierarchy) -> np.ndarray:
    """(K, H, W) bool masks of the nodes that are masks of their own."""
    return all_masks(tree)[tree.score > 0]


@given(random_masks(), seeds)
def test_every_mask_comes_back_exactly_once_with_its_best_score(masks, seed):
    scores = scores_for(masks, seed)
    best = {}
    for mask, score in zip(masks, scores, strict=True):
        if mask.any():
            best[mask.tobytes()] = max(best.get(mask.tobytes(), 0), np.float32(score))
    found = hierarchy_of(masks, scores).select()
    assert len(found) == len(best)
    assert {mask.tobytes(): score for mask, score in zip(found.to_bitmaps(), found.scores, strict=True)} == best
    assert (np.diff(found.scores) <= 0).all()


@given(random_masks(), seeds)
def test_a_mask_is_in_an_alternative_only_if_it_crosses_a_better_one_in_each_tree_before(masks, seed):
    hierarchy = hierarchy_of(masks, scores_for(masks, seed))
    trees = (hierarchy, *hierarchy.alternatives)
    for later, tree in enumerate(trees):
        for node in np.flatnonzero(tree.score > 0):
            for earlier in trees[:later]:
                better = all_masks(earlier)[earlier.score > tree.score[node]]
                assert any(cross(tree.mask(node), mask) for mask in better)


@given(random_masks(), seeds)
def test_the_masks_of_one_tree_never_cross_and_its_leaves_tile_the_image(masks, seed):
    hierarchy = hierarchy_of(masks, scores_for(masks, seed))
    for tree in (hierarchy, *hierarchy.alternatives):
        kept = real_masks(tree)
        assert not any(cross(one, other) for one in kept for other in kept)
        assert all_masks(tree)[: tree.n_leaves].sum(axis=0).tolist() == np.ones(tree.size_hw, int).tolist()
        assert tree.mask(len(tree) - 1).all()


@given(random_masks(), seeds)
def test_granularity_and_parents_of_any_bag_are_consistent(masks, seed):
    found = hierarchy_of(masks, scores_for(masks, seed)).select()
    held = found.parents >= 0
    assert (found.granularity[held] <= found.granularity[found.parents[held]]).all()


def test_masks_that_cross_go_to_an_alternative_the_better_one_stays():
    masks = np.zeros((3, 6, 8), bool)
    masks[0, 1:4, 1:5] = True
    masks[1, 2:5, 3:7] = True
    masks[2, 2:3, 3:4] = True  # within both
    hierarchy = hierarchy_of(masks, np.array([0.5, 0.9, 0.7]))
    assert (real_masks(hierarchy) == masks[[2, 1]]).all()
    (alternative,) = hierarchy.alternatives
    assert (real_masks(alternative) == masks[[0]]).all()


def test_what_only_tiles_the_image_is_no_mask():
    square = np.zeros((1, 5, 7), bool)
    square[0, 1:3, 2:5] = True
    hierarchy = hierarchy_of(square, np.array([0.4]))
    assert sorted(hierarchy.score.tolist()) == pytest.approx([0, 0, 0.4])
    assert hierarchy.select().areas.tolist() == [6]
    assert hierarchy.area[hierarchy.path(0, 0)].tolist() == [29, 35]  # the ground can still be clicked on


def test_no_masks_give_the_whole_image_as_a_region_that_is_no_mask():
    for masks in (np.zeros((0, 4, 6), bool), np.zeros((2, 4, 6), bool)):
        hierarchy = hierarchy_of(masks, np.ones(len(masks)))
        assert (len(hierarchy), len(hierarchy.select()), hierarchy.alternatives) == (1, 0, ())
        assert hierarchy.mask(0).all()


def test_an_image_that_is_a_mask_itself_is_selected():
    hierarchy = hierarchy_of(np.ones((1, 4, 6), bool), np.array([0.8]))
    assert hierarchy.select().areas.tolist() == [24]


def test_masks_are_compared_by_their_pixels_not_by_how_they_are_encoded():
    """Run lengths may hold runs of no pixels."""
    encodings = [[2, 3, 1], [2, 1, 0, 2, 1], [2, 3, 1, 0], [6, 0]]
    rles = [{'size': [2, 3], 'counts': encode_counts(counts)} for counts in encodings]
    hierarchy = MaskHierarchy.from_masks(rles, np.array([0.1, 0.2, 0.3, 0.4]), (2, 3))
    assert hierarchy.select().areas.tolist() == [3]
    assert hierarchy.select().scores.tolist() == pytest.approx([0.3])


def encode_counts(counts: list[int]) -> bytes:
    """COCO's text of counts; one character each, since all are small."""
    relative = counts[:3] + [count - before for count, before in zip(counts[3:], counts[1:], strict=False)]
    return bytes(48 + (count & 31) for count in relative)


def test_outlines_at_many_thresholds_of_a_photograph_come_back():
    """Regions above and below several levels cross each other and hold thousands of runs."""
    image = data.coins()[:150, :200]
    masks = []
    for level in (90, 120, 150):
        for part in (image > level, image <= level + 7):
            labels = measure.label(part, connectivity=1)
            masks += [labels == region.label for region in measure.regionprops(labels) if region.area > 30]
    masks = np.unique(np.stack(masks), axis=0)
    hierarchy = hierarchy_of(masks, scores_for(masks))
    assert len(hierarchy.alternatives) > 0
    found = np.unique(hierarchy.select(len(masks) + 1).to_bitmaps(), axis=0)
    assert (found == masks).all()


@pytest.mark.parametrize(
    ('size_hw', 'scores', 'message'),
    [
        ((4, 7), [0.5, 0.6], r'size of the image, \(4, 7\); found one of \(4, 6\)'),
        ((4, 6), [0.5], 'got 2 masks and 1 scores'),
        ((4, 6), [0.5, 0.0], r'in \(0, 1\], got 0.0'),
        ((4, 6), [1.5, 0.5], r'in \(0, 1\], got 1.5'),
        ((4, 6), [0.5, np.nan], r'in \(0, 1\], got nan'),
    ],
)
def test_masks_of_another_size_and_scores_out_of_range_are_refused(size_hw, scores, message):
    with pytest.raises(UnSAMError, match=message):
        laminar_trees(encode_bitmaps(np.ones((2, 4, 6), bool)), np.array(scores), size_hw)


@given(st.integers(1, 30))
def test_a_chain_of_nested_masks_is_one_tree(length):
    strip = np.arange(length)[None]
    masks = np.stack([strip <= i for i in range(length)])
    hierarchy = hierarchy_of(masks, scores_for(masks))
    assert hierarchy.alternatives == ()
    assert hierarchy.area[hierarchy.path(0, 0)].tolist() == list(range(1, length + 1))
