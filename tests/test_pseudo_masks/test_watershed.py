"""Flooding gives scikit-image's watershed, and is fair where values are equal."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.segmentation import watershed

from unsam_mm.pseudo_masks.superpixels import ColourEdges
from unsam_mm.pseudo_masks.watershed import flood, ranks_of


@pytest.mark.parametrize('spacing_px', [3, 8, 150])
def test_labels_are_those_of_scikit_image(coffee, spacing_px):
    values = ColourEdges.from_image(coffee).fine
    seeds = np.zeros(values.shape, np.int32)
    grid = seeds[1::spacing_px, 1::spacing_px]
    grid[:] = np.arange(1, grid.size + 1).reshape(grid.shape)
    assert (flood(ranks_of(values), seeds) == watershed(values, seeds)).all()


def test_seeds_of_any_shape_keep_their_pixels(coffee):
    values = ColourEdges.from_image(coffee).fine
    seeds = np.where(values > np.percentile(values, 90), 1, 0).astype(np.int32)
    seeds[100:120, 200:210] = 7
    labels = flood(ranks_of(values), seeds)
    assert (labels[seeds > 0] == seeds[seeds > 0]).all()
    assert (labels == watershed(values, seeds)).all()


def test_a_plain_is_shared_by_distance():
    seeds = np.zeros((5, 41), np.int32)
    seeds[2, 10], seeds[2, 30] = 1, 2
    labels = flood(ranks_of(np.zeros(seeds.shape, np.float32)), seeds)
    assert (labels[:, :20] == 1).all()
    assert (labels[:, 21:] == 2).all()


def test_seeds_are_not_changed():
    seeds = np.zeros((4, 4), np.int32)
    seeds[0, 0] = 3
    assert (flood(np.zeros((4, 4), np.int32), seeds) == 3).all()
    assert seeds.sum() == 3


def test_equal_values_have_one_rank_and_ranks_have_no_gaps():
    values = np.array([[0.5, -1.0, 0.5], [2.0, 2.0, np.inf]], np.float32)
    assert ranks_of(values).tolist() == [[1, 0, 1], [2, 2, 3]]
