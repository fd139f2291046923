"""From superpixels and patch features to trees."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from unsam_mm.pseudo_masks.conquer import SuperpixelMeans, _superpixel_means, grow_trees
from unsam_mm.pseudo_masks.ranking import RankingSettings, UnrankedTree, rank_regions
from unsam_mm.pseudo_masks.superpixels import ColourEdges, Superpixels, find_superpixels

USUAL = (0.2, 0.6)


def conquer(superpixels, features, merge_weights):
    return grow_trees(superpixels, SuperpixelMeans.from_features(superpixels, features), merge_weights)


@pytest.fixture(scope='module')
def two_squares():
    """A dark ground with a red and a blue square, and features that tell the three apart."""
    image = np.full((80, 120, 3), 30, np.uint8)
    image[20:60, 10:50], image[20:60, 70:110] = (200, 40, 40), (40, 40, 200)
    grid = np.zeros((8, 12, 4), np.float32)
    grid[..., 0] = 1
    grid[2:6, 1:5], grid[2:6, 7:11] = (0, 1, 0, 0), (0, 0, 1, 0)
    return image, grid


@pytest.mark.parametrize('growth', [USUAL, (0.6, 0.7), (0.2, 0.0), (0, 0)])
def test_each_object_is_a_node_and_both_rank_at_the_top(two_squares, growth):
    image, features = two_squares
    superpixels = find_superpixels(ColourEdges.from_image(image))
    (tree,) = conquer(superpixels, features, [growth])
    ranked = rank_regions([UnrankedTree(tree, superpixels, np.ones(len(tree), bool))], RankingSettings())
    masks = ranked.select(max_masks=6).to_bitmaps()
    for channel in (0, 2):
        target = image[..., channel] == 200
        overlaps = [(mask & target).sum() / (mask | target).sum() for mask in masks]
        assert max(overlaps) > 0.95


def test_each_growth_makes_a_tree_of_its_own_over_the_same_leaves(coffee):
    superpixels = find_superpixels(ColourEdges.from_image(coffee))
    grid = np.random.default_rng(0).standard_normal((15, 22, 8)).astype(np.float32)
    merge_weights = [USUAL, (0.2, 0.3), (2.0, 0.6), USUAL]
    trees = conquer(superpixels, grid, merge_weights)
    parents = [tuple(conquer(superpixels, grid, [weights])[0].parent) for weights in merge_weights]
    assert [tuple(tree.parent) for tree in trees] == parents
    assert len(set(parents)) == 3
    assert {tree.n_leaves for tree in trees} == {len(superpixels)}


def chain_of_bands(heights_of_edges: list[float]) -> tuple:
    """Bands of a slow colour ramp side by side, with the given edge strengths between neighbours."""
    n_bands = len(heights_of_edges) + 1
    labels = np.repeat(np.arange(n_bands, dtype=np.int32), 6)[None].repeat(12, axis=0)
    strength = np.zeros(labels.shape, np.float32)
    for band, value in enumerate(heights_of_edges, start=1):
        strength[:, 6 * band - 1 : 6 * band + 1] = value
    lab = np.zeros((*labels.shape, 3), np.float32)
    lab[..., 0] = labels
    return Superpixels(labels, ColourEdges(lab, strength, strength)), np.ones((2, 2, 3), np.float32)


def test_where_colours_do_not_decide_the_strongest_edge_parts_last():
    superpixels, features = chain_of_bands([1, 1, 9, 1])
    (with_borders,) = conquer(superpixels, features, [(1.0, 0.9)])
    halves = [np.unique(superpixels.labels[with_borders.mask(node)]).tolist() for node in with_borders.children(8)]
    assert sorted(halves) == [[0, 1, 2], [3, 4]]


def test_without_features_colours_decide():
    """The upper and lower half differ in lightness alone; features are the same everywhere."""
    image = np.full((60, 60, 3), 90, np.uint8)
    image[30:] = 150
    superpixels = find_superpixels(ColourEdges.from_image(image))
    features = np.ones((6, 6, 4), np.float32)
    (tree,) = conquer(superpixels, features, [(1.0, 0.0)])
    halves = tree.children(len(tree) - 1)
    assert sorted(tree.boxes_xyxy[halves].tolist()) == [[0, 0, 60, 30], [0, 30, 60, 60]]


def test_leaf_features_are_the_means_of_the_upsampled_grid(coffee):
    superpixels = find_superpixels(ColourEdges.from_image(coffee))
    grid = np.random.default_rng(0).standard_normal((15, 22, 3)).astype(np.float32)
    zoom = [side / cells for side, cells in zip(coffee.shape[:2], grid.shape[:2], strict=True)]
    upsampled = np.stack([ndimage.zoom(grid[..., c], zoom, order=1, mode='nearest', grid_mode=True) for c in range(3)])
    expected = [ndimage.mean(channel, superpixels.labels, np.arange(len(superpixels))) for channel in upsampled]
    means = _superpixel_means(superpixels, grid)
    assert means == pytest.approx(np.stack(expected, axis=1), abs=1e-4)


def test_a_leaf_spacing_larger_than_the_image_gives_the_whole_image_as_only_region(two_squares):
    image, features = two_squares
    (tree,) = conquer(find_superpixels(ColourEdges.from_image(image), spacing_px=500), features, [USUAL])
    assert len(tree) == 1
    assert tree.select().areas.tolist() == [80 * 120]
    assert (tree.cut(0.3) == 1).all()
