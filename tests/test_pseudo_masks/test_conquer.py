"""From leaves and patch features to a ranked tree."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from unsam_mm.pseudo_masks.conquer import _leaf_means, conquer
from unsam_mm.pseudo_masks.features import PatchFeatures
from unsam_mm.pseudo_masks.leaves import find_leaves
from unsam_mm.pseudo_masks.ranking import _boundary_strength


@pytest.fixture(scope='module')
def two_squares():
    """A dark ground with a red and a blue square, and features that tell the three apart."""
    image = np.full((80, 120, 3), 30, np.uint8)
    image[20:60, 10:50], image[20:60, 70:110] = (200, 40, 40), (40, 40, 200)
    grid = np.zeros((8, 12, 4), np.float32)
    grid[..., 0] = 1
    grid[2:6, 1:5], grid[2:6, 7:11] = (0, 1, 0, 0), (0, 0, 1, 0)
    return image, PatchFeatures(grid, image.shape[:2])


def test_each_object_is_a_node_and_both_rank_at_the_top(two_squares):
    image, features = two_squares
    masks = conquer(find_leaves(image), features).select(max_masks=6).to_bitmaps()
    for channel in (0, 2):
        target = image[..., channel] == 200
        overlaps = [(mask & target).sum() / (mask | target).sum() for mask in masks]
        assert max(overlaps) > 0.95


def test_leaf_features_are_the_means_of_the_upsampled_grid(coffee):
    leaves = find_leaves(coffee)
    grid = np.random.default_rng(0).standard_normal((15, 22, 3)).astype(np.float32)
    zoom = [side / cells for side, cells in zip(coffee.shape[:2], grid.shape[:2], strict=True)]
    upsampled = np.stack([ndimage.zoom(grid[..., c], zoom, order=1, mode='nearest', grid_mode=True) for c in range(3)])
    areas = np.bincount(leaves.labels.ravel())
    expected = [ndimage.mean(channel, leaves.labels, np.arange(leaves.count)) for channel in upsampled]
    means = _leaf_means(leaves, areas, PatchFeatures(grid, coffee.shape[:2]))
    assert means == pytest.approx(np.stack(expected, axis=1), abs=1e-4)


def test_boundary_strength_is_the_mean_gradient_between_a_region_and_the_rest(two_squares):
    image, features = two_squares
    leaves = find_leaves(image)
    tree = conquer(leaves, features)
    strength = _boundary_strength(tree, leaves)
    for node in range(tree.n_leaves, len(tree) - 1, 7):
        inside = np.zeros(leaves.count, bool)
        inside[np.unique(leaves.labels[tree.mask(node)])] = True
        crossing = inside[leaves.edges[:, 0]] != inside[leaves.edges[:, 1]]
        expected = np.average(leaves.edge_strength[crossing], weights=leaves.edge_lengths_px[crossing])
        assert strength[node] == pytest.approx(expected, rel=1e-4)
    assert strength[-1] == 0


def test_a_leaf_spacing_larger_than_the_image_gives_the_whole_image_as_only_region(two_squares):
    image, features = two_squares
    tree = conquer(find_leaves(image, spacing_px=500), features)
    assert len(tree) == 1
    assert tree.select().areas.tolist() == [80 * 120]
    assert (tree.cut(0.3) == 1).all()
