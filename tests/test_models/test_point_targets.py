"""Masks and logits read at points."""

import numpy as np
import pytest
import torch
from mmcv.ops import point_sample
from mmdet.models.utils import get_uncertain_point_coords_with_randomness
from mmdet.structures.mask import BitmapMasks, PolygonMasks

from unsam_mm.models import mask_ops
from unsam_mm.models.mask_ops import BitMasks, PointSampling, logits_at, uncertain_points

CORNERS = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize('size_hw', [(1, 1), (5, 6), (7, 7), (9, 8), (3, 13), (14, 14), (20, 15)])
def test_bits_are_interpolated_as_mmcv_interpolates_floats(size_hw):
    bitmaps = np.random.default_rng(0).integers(0, 2, (4, *size_hw), np.uint8)
    points = torch.cat([CORNERS.expand(4, -1, -1), torch.rand(4, 300, 2)], dim=1)
    expected = point_sample(torch.from_numpy(bitmaps)[:, None].float(), points)[:, 0]
    packed = BitMasks.pack(BitmapMasks(bitmaps, *size_hw))
    torch.testing.assert_close(packed.sample(points), expected, rtol=0, atol=1e-5)


def test_the_same_points_can_be_read_from_all_masks():
    packed = BitMasks.pack(BitmapMasks(np.random.default_rng(1).integers(0, 2, (4, 9, 11), np.uint8), 9, 11))
    points = torch.rand(1, 50, 2)
    assert torch.equal(packed.sample(points), packed.sample(points.repeat(4, 1, 1)))


def test_polygons_are_packed_as_their_bitmaps():
    square = np.array([2.0, 1.0, 9.0, 1.0, 9.0, 6.0, 2.0, 6.0])
    polygons = PolygonMasks([[square], [square + 3]], 12, 14)
    assert torch.equal(BitMasks.pack(polygons).bits, BitMasks.pack(polygons.to_bitmap()).bits)


def test_packing_a_few_masks_at_a_time_gives_the_same_bits(monkeypatch):
    masks = BitmapMasks(np.random.default_rng(2).integers(0, 2, (5, 9, 11), np.uint8), 9, 11)
    together = BitMasks.pack(masks).bits
    monkeypatch.setattr(mask_ops, '_CHUNK_PIXELS', 2 * 9 * 11)
    assert torch.equal(BitMasks.pack(masks).bits, together)


def test_an_image_without_masks_has_no_values():
    packed = BitMasks.pack(BitmapMasks(np.zeros((0, 9, 11), np.uint8), 9, 11))
    assert len(packed) == 0
    assert packed.sample(torch.rand(1, 50, 2)).shape == (0, 50)


def test_masks_take_a_seventh_of_their_bools_and_a_margin():
    packed = BitMasks.pack(BitmapMasks(np.zeros((3, 512, 512), np.uint8), 512, 512))
    assert packed.bits.nbytes < 1.02 * 3 * 512 * 512 / 7


def test_logits_at_points_are_those_of_whole_masks():
    embed, feature, points = torch.randn(3, 8), torch.randn(8, 6, 7), torch.rand(3, 40, 2)
    masks = torch.einsum('nc,chw->nhw', embed, feature)
    torch.testing.assert_close(logits_at(embed, feature, points), point_sample(masks[:, None], points)[:, 0])


def test_uncertain_points_are_those_of_mmdet_with_the_same_seed():
    embed, feature = torch.randn(3, 8), torch.randn(8, 6, 7)
    torch.manual_seed(4)
    masks = torch.einsum('nc,chw->nhw', embed, feature)[:, None]
    expected = get_uncertain_point_coords_with_randomness(masks, None, 100, 3.0, 0.75)
    torch.manual_seed(4)
    ((where, points),) = uncertain_points(embed, feature, PointSampling(100, 3.0, 0.75))
    assert where == slice(0, 3)
    for ours, theirs in zip(points.tolist(), expected.tolist(), strict=True):
        assert sorted(ours) == sorted(theirs)


def test_every_mask_gets_its_points_whatever_is_held_at_once(monkeypatch):
    monkeypatch.setattr(mask_ops, '_CHUNK_POINTS', 600)
    chunks = list(uncertain_points(torch.randn(5, 8), torch.randn(8, 6, 7), PointSampling(100, 3.0, 0.75)))
    assert [where for where, _ in chunks] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert [points.shape for _, points in chunks] == [(2, 100, 2), (2, 100, 2), (1, 100, 2)]


def test_points_lie_where_masks_are_uncertain():
    feature = torch.linspace(-9, 9, 64)[None, None].expand(1, 64, 64)  # 0 in the middle column
    ((_, points),) = uncertain_points(torch.ones(1, 1), feature, PointSampling(400, 3.0, 1.0))
    # A third of the candidates is kept: the middle third, and some at the upper and lower edge, where logits fade out.
    assert ((points[..., 0] - 0.5).abs() < 0.17).float().mean() > 0.95
