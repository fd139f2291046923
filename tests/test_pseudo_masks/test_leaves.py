"""Leaves tile the image, hang together, follow its edges, and know their neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import label

from unsam_mm.pseudo_masks.leaves import find_leaves


@pytest.fixture(scope='module')
def leaves(coffee):
    return find_leaves(coffee)


def test_every_leaf_is_one_connected_region(leaves):
    assert np.unique(leaves.labels).tolist() == list(range(leaves.count))
    assert label(leaves.labels + 1, connectivity=1).max() == leaves.count


def test_few_leaves_are_slivers(leaves):
    """Without the second watershed 73 % of the leaves of this image are nowhere three pixels wide."""
    padded = np.pad(leaves.labels, 1, mode='edge')
    shifted = [padded[1:-1, 2:], padded[1:-1, :-2], padded[2:, 1:-1], padded[:-2, 1:-1]]
    inside = np.all([leaves.labels == neighbour for neighbour in shifted], axis=0)
    assert len(np.unique(leaves.labels[inside])) > 0.75 * leaves.count


def test_a_finer_grid_gives_smaller_leaves(leaves, coffee):
    assert find_leaves(coffee, spacing_px=12).count < leaves.count < find_leaves(coffee, spacing_px=4).count


def test_edges_are_exactly_the_pairs_of_labels_that_share_a_pixel_side(leaves):
    labels = leaves.labels
    sides = [(labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])]
    shared: dict[tuple[int, int], int] = {}
    for one, other in sides:
        for a, b in zip(one[one != other], other[one != other], strict=True):
            pair = (min(a, b), max(a, b))
            shared[pair] = shared.get(pair, 0) + 1
    assert [tuple(edge) for edge in leaves.edges] == sorted(shared)
    assert leaves.edge_lengths_px.tolist() == [shared[pair] for pair in sorted(shared)]


def test_a_sharp_edge_is_never_crossed():
    image = np.full((60, 80, 3), 40, np.uint8)
    image[:, 33:] = (200, 60, 60)  # between two columns of seeds
    labels = find_leaves(image).labels
    assert not set(labels[:, :33].ravel()) & set(labels[:, 33:].ravel())


def test_the_strength_of_an_edge_is_the_mean_gradient_along_it():
    image = np.full((40, 60, 3), 40, np.uint8)
    image[:, 25:] = (90, 160, 90)  # midway between two columns of seeds
    leaves = find_leaves(image)
    right = np.zeros(leaves.count, bool)
    right[np.unique(leaves.labels[:, 25:])] = True
    crossing = right[leaves.edges[:, 0]] != right[leaves.edges[:, 1]]
    assert (
        leaves.edge_strength[crossing].min() > 10 * leaves.edge_strength[~crossing & ~right[leaves.edges[:, 0]]].min()
    )
    assert leaves.edge_strength[crossing] == pytest.approx(leaves.edge_strength[crossing].max(), rel=1e-3)


def test_large_images_get_larger_leaves_not_more(coffee):
    assert find_leaves(coffee, max_leaves=100).count <= 100


def test_an_image_smaller_than_the_spacing_is_one_leaf():
    assert find_leaves(np.eye(8, dtype=np.uint8)[..., None] * np.full(3, 255, np.uint8), spacing_px=20).count == 1
