"""Level-set trees hold the connected regions above, or below, every level, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import label

from tests.trees import all_masks, seeds
from unsam_mm.pseudo_masks.level_sets import level_set_tree
from unsam_mm.pseudo_masks.superpixels import ColourEdges


def of_lightness(lightness: np.ndarray) -> ColourEdges:
    """Colours of a grey picture without noise, edges of none."""
    lab = np.zeros((*lightness.shape, 3), np.float32)
    lab[..., 0] = lightness
    return ColourEdges(lab, np.zeros(lightness.shape, np.float32), np.zeros(lightness.shape, np.float32))


def regions_of(entry) -> np.ndarray:
    """(K, H, W) bool: the nodes that are masks. `is_mask` is in the numbers that superpixels had before the tree."""
    is_mask = entry.is_mask.copy()
    is_mask[entry.tree.leaf_labels] = entry.is_mask[entry.superpixels.labels]
    return all_masks(entry.tree)[is_mask]


def is_component(mask: np.ndarray, lightness: np.ndarray, bright: bool) -> bool:
    """Whether a mask is a 4-connected component of what is at least as bright (or dark) as its darkest pixel."""
    beyond = lightness >= lightness[mask].min() if bright else lightness <= lightness[mask].max()
    components = label(beyond, connectivity=1)
    return bool((mask == (components == components[mask][0])).all())


def components_of_levels(level: np.ndarray, bright: bool, min_area_px: int) -> set[bytes]:
    """Pixels of all components of all levels, and of the whole image."""
    found = {np.ones(level.shape, bool).tobytes()}
    for threshold in np.unique(level):
        components = label(level >= threshold if bright else level <= threshold, connectivity=1)
        for number in range(1, components.max() + 1):
            if (components == number).sum() >= min_area_px:
                found.add((components == number).tobytes())
    return found


@st.composite
def grey_pictures(draw):
    """Integer levels from 0 to 7 in blocks, so that regions of several pixels are common."""
    rng = np.random.default_rng(draw(seeds))
    block = draw(st.integers(1, 3))
    cells = rng.integers(0, 8, (draw(st.integers(1, 6)), draw(st.integers(1, 6))))
    return np.kron(cells, np.ones((block, block), int))


@given(grey_pictures(), st.booleans(), st.integers(1, 10))
def test_masks_are_exactly_the_components_of_every_level_that_are_large_enough(picture, bright, min_area_px):
    entry = level_set_tree(of_lightness(picture), bright, n_levels=8, min_area_px=min_area_px, sigma_px=0)
    stretched = picture - picture.min()  # levels lie between the darkest and the brightest
    level = np.minimum(stretched * 8 // max(stretched.max(), 1), 7)
    regions = [mask.tobytes() for mask in regions_of(entry)]
    assert len(set(regions)) == len(regions)
    assert set(regions) == components_of_levels(level, bright, min_area_px)


@given(grey_pictures(), st.booleans(), st.integers(1, 10))
def test_leaves_tile_the_image_and_every_parent_is_larger_and_higher(picture, bright, min_area_px):
    tree = level_set_tree(of_lightness(picture), bright, n_levels=8, min_area_px=min_area_px, sigma_px=0).tree
    assert (all_masks(tree)[: tree.n_leaves].sum(axis=0) == 1).all()
    assert tree.mask(len(tree) - 1).all()
    assert (tree.area[tree.parent[:-1]] > tree.area[:-1]).all()
    assert (tree.height[tree.parent[:-1]] >= tree.height[:-1]).all()
    assert 0 <= tree.height.min() <= tree.height.max() <= 1


@pytest.mark.parametrize('bright', [True, False])
def test_masks_of_a_photograph_are_components_of_its_lightness(coins, bright):
    colour = ColourEdges.from_image(np.dstack([coins[:150, :190]] * 3))
    regions = regions_of(level_set_tree(colour, bright, n_levels=16, min_area_px=25, sigma_px=0))
    assert len(regions) > 20
    assert regions.sum(axis=(1, 2)).min() >= 25
    assert all(is_component(mask, colour.lab[..., 0], bright) for mask in regions)


def test_bright_regions_of_a_picture_are_the_dark_ones_of_its_negative(coins):
    lightness = coins[:150, :190].astype(np.float32)
    one = regions_of(level_set_tree(of_lightness(lightness), bright=True, n_levels=16))
    other = regions_of(level_set_tree(of_lightness(-lightness), bright=False, n_levels=16))
    agreeing = {mask.tobytes() for mask in one} & {mask.tobytes() for mask in other}
    assert len(agreeing) > 0.9 * max(len(one), len(other))  # a pixel that lies on a level may fall to either side


@pytest.mark.parametrize('bright', [True, False])
def test_each_outline_of_a_soft_blob_is_offered(bright):
    y, x = np.mgrid[:40, :50]
    blob = 80 * np.exp(-((y - 20) ** 2 + (x - 25) ** 2) / 100)
    entry = level_set_tree(of_lightness(blob if bright else -blob), bright, n_levels=10)
    areas = np.sort(regions_of(entry).sum(axis=(1, 2)))
    assert len(areas) == 10
    for level, area in zip(range(9, 0, -1), areas, strict=False):
        assert area == pytest.approx(np.pi * 100 * np.log(10 / level), rel=0.15, abs=15)


def test_more_levels_give_more_masks_and_a_larger_minimum_fewer(coins):
    colour = of_lightness(coins[:150, :190])
    count = {
        (n_levels, area): len(regions_of(level_set_tree(colour, True, n_levels, area)))
        for n_levels, area in [(8, 20), (32, 20), (32, 200)]
    }
    assert count[8, 20] < count[32, 20] > count[32, 200]


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (30, 40)])
@pytest.mark.parametrize('bright', [True, False])
def test_an_even_picture_is_one_region(shape, bright):
    entry = level_set_tree(of_lightness(np.full(shape, 50.0)), bright)
    assert len(entry.tree) == 1
    assert regions_of(entry).all()
