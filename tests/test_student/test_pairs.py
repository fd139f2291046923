"""Inputs of the network."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unsam_mm.masks.granularity import area_granularity
from unsam_mm.student import RegionInputs


def test_the_distance_of_two_regions_in_a_tree_is_the_size_of_the_smallest_node_with_both(
    cup, inputs, coffee, colour_generator
):
    """The tokens are nodes of the first tree, so there the node can be looked up."""
    tree, tokens = colour_generator(coffee), cup[0]
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, coffee.shape[:2], (40, 2))
    for (y0, x0), (y1, x1) in zip(pixels[::2], pixels[1::2], strict=True):
        one, other = int(tokens.labels[y0, x0]), int(tokens.labels[y1, x1])
        meet = next(node for node in tree.path(y0, x0) if tree.mask(node)[y1, x1])
        area = tree.area[meet] if one != other else tokens.areas_px[one]
        expected = np.clip(1 + np.log10(area / tokens.labels.size) / 4, 0, 1)
        assert inputs.pairs[one, other, 0] == pytest.approx(expected, abs=1e-6)
        if one != other:
            assert inputs.pairs[one, other, -1] == pytest.approx(tree.level[meet], abs=1e-6)


def test_all_distances_are_symmetric_and_finite(inputs):
    assert inputs.pairs.shape == (80, 80, 9)
    assert inputs.pairs.isfinite().all()
    assert torch.allclose(inputs.pairs, inputs.pairs.transpose(0, 1), atol=1e-5)


def test_the_farthest_regions_meet_in_the_whole_image(inputs):
    assert (inputs.pairs[..., :4].amax((0, 1)) == 1).all()


def test_a_region_is_nearest_to_itself(inputs):
    own = inputs.pairs.diagonal().T
    assert (own[:, 4] == 0).all()
    assert (own[:, :4] <= inputs.pairs[..., :4].amin(1) + 1e-6).all()
    assert torch.allclose(own[:, :4], area_granularity(inputs.areas_px, inputs.areas_px.sum())[:, None].expand(-1, 4))


def test_flipping_changes_only_the_positions(inputs, cup, coffee):
    flipped = inputs.flipped()
    mirrored = np.bincount(cup[0].labels[:, ::-1].ravel(), np.indices(coffee.shape[:2])[1].ravel()) / cup[0].areas_px
    assert np.allclose(flipped.centres_yx[:, 1] * max(coffee.shape), mirrored, atol=1e-3)
    assert torch.allclose(flipped.flipped().centres_yx, inputs.centres_yx, atol=1e-6)
    assert flipped.pairs is inputs.pairs


def test_the_outline_of_the_image_is_shared_among_the_regions(inputs):
    assert inputs.border_share.sum() == pytest.approx(1.0)
    assert (inputs.border_share == 0).any()


@pytest.mark.parametrize('merge_weights', [((0.2, 0.6),), ((0.2, 0.6), (0.6, 0.4))])
def test_any_number_of_trees_gives_as_many_distances(colour_tokenizer, coffee, merge_weights):
    from unsam_mm.pseudo_masks.region_trees import GeneratorSettings

    found = RegionInputs.from_tokens(
        colour_tokenizer(20, GeneratorSettings(merge_weights=merge_weights)).with_masks(coffee)[0]
    )
    assert found.n_trees == len(merge_weights)
    assert found.pairs.shape == (20, 20, len(merge_weights) + 5)
