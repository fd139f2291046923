"""Granularity: one number for the size of a mask, the same wherever the mask comes from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import skip_without_weights
from tests.trees import random_trees
from unsam_mm import MaskHierarchy, MaskSet, UnSAMAutomaticMaskGenerator, UnSAMPredictor
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.masks.granularity import area_granularity, granularity_area, nearest_area
from unsam_mm.prompting.enlarged import EnlargedEngine
from unsam_mm.prompting.model import RegionEngine
from unsam_mm.prompting.tile_pyramid import TilePyramid
from unsam_mm.prompting.tiled_masks import PlaneMasks
from unsam_mm.student.weights import packaged_weights

COIN_XY = (44, 55)  # of skimage.data.coins()
WANTED = np.linspace(0, 1, 17)
areas = st.lists(st.integers(1, 10_000), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ('share', 'expected'),
    [(1, 1), (0.1, 0.75), (0.01, 0.5), (1e-3, 0.25), (1e-4, 0), (1e-6, 0), (0, 0)],
)
def test_a_tenth_of_the_area_is_a_quarter_less(share, expected):
    image_px = 1_000_000
    assert area_granularity(np.array([share * image_px]), image_px) == pytest.approx([expected])
    assert area_granularity(torch.tensor([share * image_px]), image_px).tolist() == pytest.approx([expected], abs=1e-6)
    assert float(area_granularity(share * image_px, image_px)) == pytest.approx(expected)


@given(st.floats(0.01, 1), st.integers(1, 10**10))
def test_the_area_of_a_granularity_has_that_granularity(granularity, image_px):
    assert float(area_granularity(granularity_area(granularity, image_px), image_px)) == pytest.approx(granularity)


@given(areas, st.floats(0, 20_000), st.floats(0, 20_000))
def test_a_larger_wanted_area_never_gives_a_smaller_mask(areas, first, second):
    low, high = sorted([first, second])
    assert areas[nearest_area(np.array(areas), low)] <= areas[nearest_area(np.array(areas), high)]


def test_granularity_0_gives_the_smallest_mask_though_many_are_smaller_than_a_ten_thousandth():
    found = np.array([90, 3, 30, 5000])
    assert [nearest_area(found, granularity_area(g, 1_000_000)) for g in (0, 0.02, 0.4, 1)] == [1, 0, 3, 3]


def _from_bitmaps(bitmaps, tmp_path):
    return MaskSet.from_bitmaps(bitmaps)


def _from_hierarchy(bitmaps, tmp_path):
    rles = MaskSet.from_bitmaps(bitmaps).rles
    return MaskHierarchy.from_masks(rles, np.linspace(0.9, 0.5, len(rles)), bitmaps.shape[1:]).select()


def _from_store(bitmaps, tmp_path):
    store = PseudoMaskStore(tmp_path)
    store.write('1.jpg', MaskSet.from_bitmaps(bitmaps))
    return store.read('1.jpg')


def _from_tiles(bitmaps, tmp_path):
    pyramid = TilePyramid(bitmaps.shape[1:], 256)
    found = PlaneMasks(pyramid, max_masks=10, max_iou=0.9)
    (tile,) = pyramid.tiles(0)
    found.add(tile, MaskSet.from_bitmaps(bitmaps), np.ones(len(bitmaps)), 1)
    return found.result()[0]


@pytest.mark.parametrize('made', [_from_bitmaps, _from_hierarchy, _from_store, _from_tiles])
def test_a_mask_of_a_hundredth_of_the_image_has_one_half_wherever_it_comes_from(made, tmp_path):
    bitmaps = np.zeros((2, 100, 100), bool)
    bitmaps[0, 40:50, 40:50] = True
    bitmaps[1, 30:70, 30:55] = True
    masks = made(bitmaps, tmp_path)
    found = {int(area): float(value) for area, value in zip(masks.areas, masks.granularity, strict=True)}
    assert found[100] == pytest.approx(0.5)
    assert found[1000] == pytest.approx(0.75)


@given(random_trees())
def test_bitmaps_of_a_tree_have_the_granularity_of_its_nodes(case):
    _, tree, _ = case
    masks = tree.select()
    assert MaskSet.from_bitmaps(masks.to_bitmaps()).granularity.tolist() == masks.granularity.tolist()
    assert set(masks.granularity) <= set(tree.granularity)


def _tree(generator):
    return UnSAMPredictor(generator=generator)


def _model(generator):
    return UnSAMPredictor(RegionEngine.from_file(packaged_weights('unsam_s')))


def _enlarged(generator):
    return UnSAMPredictor(EnlargedEngine(RegionEngine.from_file(packaged_weights('unsam_s'))))


def _tiled(generator):
    return UnSAMPredictor(generator=generator, tile_px=256)


@pytest.fixture(scope='module', params=[_tree, _model, _enlarged, _tiled])
def answered(request, generator, coins):
    """A predictor that has looked at the coins, and the records of all masks."""
    skip_without_weights()
    predictor = request.param(generator)
    records = UnSAMAutomaticMaskGenerator(predictor, points_per_side=8, max_masks=300).generate(coins)
    return predictor, records


def test_records_have_the_granularity_of_their_own_area(answered, coins):
    _, records = answered
    assert len(records) > 20
    for record in records:
        assert record['area'] == record['segmentation'].sum()
        expected = float(np.clip(1 + np.log10(record['area'] / coins.size) / 4, 0, 1))
        assert record['granularity'] == pytest.approx(expected, abs=1e-6)
        if record['parent'] >= 0:
            assert record['granularity'] <= records[record['parent']]['granularity']


def test_the_mask_at_a_granularity_is_nearest_to_that_size(answered, coins):
    predictor, _ = answered
    found = np.array([predictor.predict([COIN_XY], granularity=g)[0].sum() for g in WANTED])
    assert (np.diff(found) >= 0).all()
    assert found[-1] > 100 * found[0]
    wanted = coins.size * 10 ** (4 * (WANTED[1:, None] - 1))
    factors = np.exp(np.abs(np.log(found / wanted)))
    # Planes in tiles tell sizes apart that differ by a third, and half an enlarged image by a pixel.
    assert (factors[np.arange(16), np.arange(1, 17)] <= 1.34 * factors.min(axis=1)).all()
