"""Levels of a tree as drawings, what counts as an object, and the best set of regions."""

import numpy as np
import pytest
from hypothesis import given, settings
from skimage import data

from napari_unsam.levels.cuts import N_COLOURS, LevelCut, RegionFilter
from napari_unsam.levels.disjoint import LeafOverlaps, best_disjoint, best_of_trees, greedy_disjoint
from napari_unsam.levels.region_properties import Brightness, RegionProperties, Scene
from tests.test_napari.coin_tree import coin_tree
from tests.test_napari.stand_ins import PATCHES, patches_tree
from tests.trees import all_masks, random_trees, seeds, trees_of_one_image
from unsam_mm.errors import UnSAMError

LARGE = np.kron(PATCHES, np.ones((4, 4), int))


def large_tree():
    """The tree over `PATCHES`, each pixel of which is a square of 4 x 4 px."""
    tree = patches_tree()
    return type(tree).from_merges(LARGE, tree.parent, tree.height, tree.score)


@pytest.fixture(scope='module')
def coins():
    """A photo of coins on a darker ground: its tree, and what its regions look like."""
    image = data.coins()
    tree = coin_tree()
    scene = Scene.of(image)
    return tree, RegionProperties.of(tree, scene), scene


@given(random_trees())
@settings(max_examples=60, deadline=None)
def test_every_level_holds_the_regions_of_the_cut(made):
    _labels, tree, _parent = made
    cut = LevelCut(tree)
    for level in np.unique(np.r_[0, tree.level, 1]):
        assert sorted(cut.nodes(float(level))) == sorted(tree.cut_nodes(float(level)))


@given(random_trees())
@settings(max_examples=60, deadline=None)
def test_a_drawing_shows_the_pixels_of_its_regions_and_nothing_else(made):
    _labels, tree, _parent = made
    cut, drawn = LevelCut(tree), np.full(tree.size_hw, 255, np.uint8)
    nodes = cut.nodes(0.5)[::2]
    cut.draw(nodes, drawn)
    masks = all_masks(tree)
    assert np.array_equal(drawn > 0, masks[nodes].any(axis=0) if len(nodes) else np.zeros(tree.size_hw, bool))
    assert drawn.max() <= N_COLOURS
    for node in nodes:
        assert len(np.unique(drawn[masks[node]])) == 1


def test_a_region_keeps_its_colour_when_the_level_changes_around_it():
    tree = patches_tree()
    cut, fine, coarse = LevelCut(tree), np.zeros((4, 6), np.uint8), np.zeros((4, 6), np.uint8)
    cut.draw(np.array([0, 1, 5]), fine)
    cut.draw(np.array([4, 5]), coarse)
    assert np.array_equal(fine[2:], coarse[2:])


def test_a_level_outside_of_the_tree_is_refused():
    with pytest.raises(UnSAMError, match='must lie in'):
        LevelCut(patches_tree()).nodes(1.5)


@given(random_trees(), seeds)
@settings(max_examples=60, deadline=None)
def test_the_best_level_is_worth_as_much_as_any(made, seed):
    _labels, tree, _parent = made
    score, cut = np.random.default_rng(seed).random(len(tree)), LevelCut(tree)
    scores = [score[cut.nodes(float(level))].sum() for level in np.unique(cut.begins)]
    assert score[cut.nodes(cut.best_level(score))].sum() == pytest.approx(max(scores))


@given(random_trees(max_side=4), seeds)
@settings(max_examples=60, deadline=None)
def test_no_set_of_regions_is_worth_more_than_the_best_one(made, seed):
    _labels, tree, _parent = made
    score = np.random.default_rng(seed).normal(size=len(tree))
    chosen = best_disjoint(tree, score)
    masks = all_masks(tree)
    assert masks[chosen].sum(axis=0).max(initial=0) <= 1

    def most(node):
        children = tree.children(node)
        return max(score[node], sum(most(child) for child in children), 0.0)

    assert score[chosen].sum() == pytest.approx(most(len(tree) - 1))


@given(random_trees(max_side=5), seeds)
@settings(max_examples=60, deadline=None)
def test_winners_are_what_taking_the_best_again_and_again_leaves(made, seed):
    _labels, tree, _parent = made
    score = np.random.default_rng(seed).normal(size=len(tree))
    masks, taken = all_masks(tree), []
    for node in np.argsort(-score):
        if score[node] > 0 and not any((masks[node] & masks[other]).any() for other in taken):
            taken.append(node)
    assert sorted(taken) == greedy_disjoint(tree, score).tolist()


@given(trees_of_one_image(max_side=6), seeds)
@settings(max_examples=60, deadline=None)
def test_regions_of_several_trees_hardly_overlap_and_are_worth_no_less_than_those_of_the_first(trees, seed):
    rng = np.random.default_rng(seed)
    scores = [rng.random(len(tree)) for tree in trees]
    chosen = best_of_trees(trees, scores)
    masks = [trees[source].mask(node) for source, node in zip(chosen.source, chosen.nodes, strict=True)]
    for i, mask in enumerate(masks):
        for other in masks[:i]:
            assert (mask & other).sum() <= 0.1 * min(mask.sum(), other.sum())
    total = sum(scores[source][node] for source, node in zip(chosen.source, chosen.nodes, strict=True))
    assert total >= scores[0][best_disjoint(trees[0], scores[0])].sum() - 1e-9


@given(trees_of_one_image(max_side=6), seeds)
@settings(max_examples=30, deadline=None)
def test_the_pixels_that_regions_of_two_trees_share_are_known_from_their_leaves(trees, seed):
    rng, overlaps = np.random.default_rng(seed), LeafOverlaps(trees)
    for other in range(len(trees)):
        for one in range(other):
            nodes = [rng.permutation(len(trees[tree]))[: rng.integers(0, 5)] for tree in (one, other)]
            masks = [all_masks(trees[tree])[chosen] for tree, chosen in zip((one, other), nodes, strict=True)]
            expected = np.einsum('ahw,bhw->ab', *(mask.astype(int) for mask in masks))
            assert (overlaps.pixels(one, nodes[0], other, nodes[1]) == expected).all()


def test_the_surround_of_a_region_is_the_colour_of_what_touches_it():
    grey = np.array([10, 60, 120, 250], np.uint8)[LARGE]
    tree, scene = large_tree(), Scene.of(grey)
    properties = RegionProperties.of(tree, scene)
    lightness = [scene.lab[patch == LARGE][0, 0] for patch in range(4)]
    assert properties.colour[:4, 0] == pytest.approx(lightness)
    # In squares: patch 0 touches patches 1 and 2 along two sides each, the upper half touches 2 along four and 3 along two.
    assert properties.surround[0, 0] == pytest.approx((lightness[1] + lightness[2]) / 2)
    assert properties.surround[4, 0] == pytest.approx((4 * lightness[2] + 2 * lightness[3]) / 6)
    assert properties.contrast[-1] == pytest.approx(0)


def test_a_disc_is_rounder_and_a_bar_is_longer_and_a_ring_is_emptier():
    rows, columns = np.indices((60, 60))
    radius = np.hypot(rows - 30, columns - 30)
    for shape, is_round, is_full in (
        (radius < 20, True, True),
        ((abs(rows - 30) < 3) & (abs(columns - 30) < 25), False, True),
        ((radius < 25) & (radius > 20), True, False),
    ):
        tree = type(patches_tree()).from_merges(shape.astype(int), np.array([2, 2, -1]), np.array([0.0, 0, 1]))
        node = tree.leaf_labels[shape][0]
        properties = RegionProperties.of(tree, Scene.of(shape.astype(np.uint8) * 255))
        assert (properties.eccentricity[node] < 0.2) == is_round
        assert (properties.fullness[node] > 0.9) == is_full


def test_the_ground_that_coins_lie_on_is_no_object(coins):
    tree, properties, scene = coins
    assert scene.objects_are_bright
    kept = RegionFilter().is_object(tree, properties, scene)
    assert not kept[tree.path(298, 190)].any()
    assert kept[tree.path(124, 225)].any()  # a coin
    dark = RegionFilter(brightness=Brightness.DARK).is_object(tree, properties, scene)
    assert not (kept & dark).any()


def test_limits_of_size_outline_and_score_leave_regions_out(coins):
    tree, properties, scene = coins
    limits = RegionFilter(500, 0.02, 0.02, 1e-3, Brightness.ANY)
    kept = limits.is_object(tree, properties, scene)
    assert kept.any()
    assert tree.area[kept].min() >= 500
    assert tree.area[kept].max() <= 0.02 * tree.area[-1]
    assert tree.border_share[kept].max() <= 0.02
    assert tree.score[kept].min() >= 1e-3


def test_an_image_of_one_colour_is_refused_by_name():
    with pytest.raises(UnSAMError, match='nothing to segment'):
        Scene.of(np.full((16, 24), 7, np.uint8))
