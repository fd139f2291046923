"""Upsampling, thresholding and encoding masks in chunks."""

import numpy as np
import pytest
import torch
from mmdet.structures.mask import mask2bbox
from torch.nn.functional import interpolate

from unsam_mm.masks.rle import areas_and_boxes, decode_rles
from unsam_mm.models import mask_ops
from unsam_mm.models.mask_ops import ImageSizes


@pytest.fixture
def masks() -> torch.Tensor:
    """(4, 7, 9) bool: an L, a full mask, a corner pixel, and an empty mask."""
    masks = torch.zeros(4, 7, 9, dtype=torch.bool)
    masks[0, 1:6, 2] = masks[0, 5, 2:8] = True
    masks[1] = True
    masks[2, 6, 8] = True
    return masks


def test_boxes_equal_those_of_mmdet_and_an_empty_mask_has_a_zero_box(masks):
    assert torch.equal(mask_ops.boxes_of_masks(masks), mask2bbox(masks))
    assert mask_ops.boxes_of_masks(masks)[3].tolist() == [0, 0, 0, 0]


def test_run_lengths_hold_the_same_pixels_as_the_masks(masks):
    assert np.array_equal(decode_rles(mask_ops.rles_of_masks(masks), (7, 9)), masks.numpy())


def test_areas_and_boxes_of_run_lengths_are_those_of_the_masks(masks):
    masks = masks.repeat(80, 1, 1)  # pycocotools fails on more than 255 areas
    areas, boxes = areas_and_boxes(mask_ops.rles_of_masks(masks))
    assert areas.tolist() == masks.sum(dim=(1, 2)).tolist()
    assert torch.equal(torch.from_numpy(boxes).float(), mask_ops.boxes_of_masks(masks))


def test_no_masks_have_no_run_lengths_and_no_boxes():
    rles = mask_ops.rles_of_masks(torch.zeros(0, 7, 9, dtype=torch.bool))
    areas, boxes = areas_and_boxes(rles)
    assert rles == []
    assert (areas.shape, boxes.shape) == ((0,), (0, 4))


def test_only_foreground_pixels_add_to_the_sum_of_probabilities():
    logits = torch.tensor([[[2.0, -1.0], [0.0, 1e-9]], [[-3.0, -1.0], [-0.5, -9.0]]])
    expected = [torch.tensor(2.0).sigmoid() + 0.5, 0.0]
    torch.testing.assert_close(mask_ops.foreground_sums_(logits), torch.tensor(expected))


def test_padding_is_cut_off_before_masks_are_scaled_to_the_original_image():
    # The image fills the left half of the batch; only the padding is positive.
    logits = torch.full((1, 8, 8), -5.0)
    logits[:, :, 4:] = 5.0
    full = mask_ops.full_size_logits(logits, ImageSizes(original=(64, 28), image=(32, 14), batch=(32, 32)))
    assert full.shape == (1, 64, 28)
    assert (full < 0).all()


def test_logits_are_resized_as_mmdet_resizes_them():
    logits = torch.randn(2, 8, 12)
    full = mask_ops.full_size_logits(logits, ImageSizes(original=(45, 60), image=(30, 40), batch=(32, 48)))
    padded = interpolate(logits[:, None], size=(32, 48), mode='bilinear', align_corners=False)
    expected = interpolate(padded[:, :, :30, :40], size=(45, 60), mode='bilinear', align_corners=False)
    torch.testing.assert_close(full, expected[:, 0])


def test_logits_lie_column_by_column_so_that_run_lengths_need_no_copy():
    masks = mask_ops.full_size_logits(torch.randn(3, 8, 8), ImageSizes((32, 32), (32, 32), (32, 32))) > 0
    assert masks.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize(('side', 'expected'), [(1024, 8), (512, 32), (4096, 1)])
def test_fewer_masks_are_upsampled_at_once_when_they_are_larger(side, expected):
    assert mask_ops.masks_at_once(ImageSizes((side, side), (side, side), (side, side))) == expected
