"""Masks of many tiles are merged: only neighbours are compared, with the same result as for all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import decode_rles
from unsam_mm.prompting import tiled_masks
from unsam_mm.prompting.tile_pyramid import TilePyramid
from unsam_mm.prompting.tiled_masks import PlaneMasks


def rectangles(rng, tile, count, side_px, with_large):
    """Random masks of a tile; every third with holes, every fifth as large as the tile allows."""
    bitmaps = np.zeros((count, tile.height, tile.width), bool)
    for number, bitmap in enumerate(bitmaps):
        high, wide = rng.integers(3, side_px, 2)
        if with_large and number % 5 == 0:
            high, wide = tile.height - 30, tile.width - 30
        y, x = rng.integers(0, tile.height - high + 1), rng.integers(0, tile.width - wide + 1)
        bitmap[y : y + high, x : x + wide] = rng.random((high, wide)) < (0.97 if number % 3 == 0 else 1)
    return MaskSet.from_bitmaps(bitmaps, rng.random(count).astype(np.float32))


def joined(size_hw, count, side_px, max_masks=10_000, max_iou=0.95, with_large=True):
    pyramid, rng = TilePyramid(size_hw, 128), np.random.default_rng(0)
    found = PlaneMasks(pyramid, max_masks, max_iou)
    for level in range(pyramid.n_levels if with_large else 1):
        for tile in pyramid.tiles(level):
            masks = rectangles(rng, tile, count, side_px, with_large)
            found.add(tile, masks, np.ones(count, np.float32), min_area_px=4)
    return found.result()[0]


@pytest.mark.parametrize('max_masks', [30, 10_000], ids=['few are kept', 'all are kept'])
@pytest.mark.parametrize('max_iou', [0.95, 0.3, 0.0])
def test_masks_are_those_of_a_comparison_with_all(monkeypatch, max_iou, max_masks):
    quick = joined((300, 400), 20, 60, max_masks, max_iou)
    monkeypatch.setattr(tiled_masks, '_may_overlap', lambda boxes, areas, mask, min_iou: np.arange(len(boxes)))
    monkeypatch.setattr(tiled_masks, '_overlapping', lambda boxes, box: np.arange(len(boxes)))
    plain = joined((300, 400), 20, 60, max_masks, max_iou)
    assert len(quick) > 20
    assert [rle['counts'] for rle in quick.rles] == [rle['counts'] for rle in plain.rles]
    np.testing.assert_array_equal(quick.scores, plain.scores)


def test_a_parent_is_the_smallest_of_all_masks_that_hold_a_mask():
    masks = joined((300, 400), 20, 60)
    flat = decode_rles(masks.rles, masks.size_hw).reshape(len(masks), -1).astype(np.float32)
    shared, areas = flat @ flat.T, flat.sum(axis=1)
    holds = (shared / areas[:, None] >= 0.95) & (areas[None] > areas[:, None])
    by_area = np.argsort(areas, kind='stable')
    expected = [next((j for j in by_area if holds[i, j]), -1) for i in range(len(masks))]
    assert masks.parents.tolist() == expected
    assert max(expected) > 0


def test_a_mask_is_compared_with_its_neighbours_and_not_with_all(monkeypatch):
    """Small masks all over a plane: each has few neighbours, whatever the size of the plane."""
    n_compared, overlapping, shares = [0, 0], tiled_masks._overlapping, tiled_masks._overlap_ratios

    def counted_boxes(boxes, box_xyxy):
        n_compared[0] += len(boxes)
        return overlapping(boxes, box_xyxy)

    def counted_shares(rle, others, of_first):
        n_compared[1] += len(others)
        return shares(rle, others, of_first)

    monkeypatch.setattr(tiled_masks, '_overlapping', counted_boxes)
    monkeypatch.setattr(tiled_masks, '_overlap_ratios', counted_shares)
    masks = joined((128, 128 * 60), 12, 15, with_large=False)
    assert len(masks) > 600
    assert n_compared[0] < len(masks) ** 2 / 5
    assert n_compared[1] < 20 * len(masks)
