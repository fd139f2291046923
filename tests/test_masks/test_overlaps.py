"""Overlaps of nodes of different trees, counted without drawing, equal those of the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given

from tests.trees import all_masks, seeds, trees_of_one_image
from unsam_mm.masks.hierarchy import intersections, ious


def chosen_nodes(trees, seed):
    """Some nodes of each tree, in any order, sometimes none."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(len(tree))[: rng.integers(0, len(tree) + 1)] for tree in trees]


@given(trees_of_one_image(), seeds)
def test_intersections_are_the_pixels_that_two_masks_share(trees, seed):
    nodes = chosen_nodes(trees, seed)
    masks = np.concatenate([all_masks(tree)[chosen] for tree, chosen in zip(trees, nodes, strict=True)])
    flat = masks.reshape(len(masks), trees[0].leaf_labels.size).astype(int)
    assert intersections(trees, nodes).tolist() == (flat @ flat.T).tolist()


@given(trees_of_one_image(), seeds)
def test_ious_are_those_of_the_pixels(trees, seed):
    nodes = chosen_nodes(trees, seed)
    masks = np.concatenate([all_masks(tree)[chosen] for tree, chosen in zip(trees, nodes, strict=True)])
    expected = [[(one & other).sum() / (one | other).sum() for other in masks] for one in masks]
    assert ious(trees, nodes) == pytest.approx(np.array(expected).reshape(len(masks), len(masks)))


@given(trees_of_one_image(max_trees=1))
def test_within_one_tree_they_agree_with_its_own_overlaps(trees):
    (tree,) = trees
    everything = np.arange(len(tree))
    expected = [tree.iou(node, everything) for node in everything]
    assert ious(trees, [everything]) == pytest.approx(np.stack(expected))
