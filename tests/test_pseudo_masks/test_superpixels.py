"""Superpixels tile the image, hang together, follow its edges, and know their neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import label

from unsam_mm.pseudo_masks.superpixels import ColourEdges, Superpixels, find_superpixels


@pytest.fixture(scope='module')
def superpixels(coffee):
    return find_superpixels(ColourEdges.from_image(coffee))


def test_every_leaf_is_one_connected_region(superpixels):
    assert np.unique(superpixels.labels).tolist() == list(range(len(superpixels)))
    assert label(superpixels.labels + 1, connectivity=1).max() == len(superpixels)


def test_few_leaves_are_slivers(superpixels):
    """Without the second watershed 73 % of the superpixels of this image are nowhere three pixels wide."""
    padded = np.pad(superpixels.labels, 1, mode='edge')
    shifted = [padded[1:-1, 2:], padded[1:-1, :-2], padded[2:, 1:-1], padded[:-2, 1:-1]]
    inside = np.all([superpixels.labels == neighbour for neighbour in shifted], axis=0)
    assert len(np.unique(superpixels.labels[inside])) > 0.75 * len(superpixels)


def test_a_finer_grid_gives_smaller_leaves(superpixels):
    counts = [len(find_superpixels(superpixels.colour, spacing_px=spacing_px)) for spacing_px in (12, 4)]
    assert counts[0] < len(superpixels) < counts[1]


def test_edges_are_exactly_the_pairs_of_labels_that_share_a_pixel_side(superpixels):
    labels = superpixels.labels
    sides = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    shared: dict[tuple[int, int], int] = {}
    for one, other in sides:
        for a, b in zip(one[one != other], other[one != other], strict=True):
            pair = (min(a, b), max(a, b))
            shared[pair] = shared.get(pair, 0) + 1
    assert [tuple(edge) for edge in superpixels.edges] == sorted(shared)
    assert superpixels.edge_lengths_px.tolist() == [shared[pair] for pair in sorted(shared)]


def test_a_sharp_edge_is_never_crossed():
    image = np.full((60, 80, 3), 40, np.uint8)
    image[:, 33:] = (200, 60, 60)  # between two columns of seeds
    labels = find_superpixels(ColourEdges.from_image(image)).labels
    assert not set(labels[:, :33].ravel()) & set(labels[:, 33:].ravel())


def test_the_strength_of_an_edge_is_the_mean_gradient_along_it():
    image = np.full((40, 60, 3), 40, np.uint8)
    image[:, 25:] = (90, 160, 90)  # midway between two columns of seeds
    superpixels = find_superpixels(ColourEdges.from_image(image))
    right = np.zeros(len(superpixels), bool)
    right[np.unique(superpixels.labels[:, 25:])] = True
    crossing = right[superpixels.edges[:, 0]] != right[superpixels.edges[:, 1]]
    assert (
        superpixels.edge_strength[crossing].min()
        > 10 * superpixels.edge_strength[~crossing & ~right[superpixels.edges[:, 0]]].min()
    )
    assert superpixels.edge_strength[crossing] == pytest.approx(superpixels.edge_strength[crossing].max(), rel=1e-3)


def test_large_images_get_larger_leaves_not_more(superpixels):
    assert len(find_superpixels(superpixels.colour, max_superpixels=100)) <= 100


def test_an_image_smaller_than_the_spacing_is_one_leaf():
    diagonal = np.eye(8, dtype=np.uint8)[..., None] * np.full(3, 255, np.uint8)
    only = find_superpixels(ColourEdges.from_image(diagonal), spacing_px=20)
    assert len(only) == 1
    assert only.edges.shape == (0, 2)


def test_an_edge_is_strong_at_every_scale_at_which_it_is_seen():
    """Between two plain halves the fine gradient is highest at the edge; wider scales add to it there."""
    image = np.full((40, 60, 3), 40, np.uint8)
    image[:, 25:] = (90, 160, 90)
    colour = ColourEdges.from_image(image)
    assert colour.fine[20].argmax() in (24, 25)
    assert (colour.strength >= colour.fine).all()
    assert colour.strength[20].argmax() in (24, 25)
    assert colour.strength[20, 45] < 0.01 * colour.strength[20, 25]


def test_leaves_can_be_any_partition_even_one_in_pieces(coffee):
    labels = (np.arange(coffee.shape[1]) // 50 % 2).astype(np.int32)[None].repeat(coffee.shape[0], axis=0)
    stripes = Superpixels(labels, ColourEdges.from_image(coffee))
    assert stripes.edges.tolist() == [[0, 1]]
    assert stripes.edge_lengths_px.tolist() == [5 * coffee.shape[0]]
    beside = stripes.colour.strength[:, [49, 50, 99, 100, 149, 150, 199, 200, 249, 250]]
    assert stripes.edge_strength[0] == pytest.approx(beside.mean(), rel=1e-4)
