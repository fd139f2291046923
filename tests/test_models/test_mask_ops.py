"""Upsampling, thresholding and encoding masks in chunks."""

import numpy as np
import pytest
import torch
from mmdet.structures.mask import mask2bbox

from unsam_mm.models import mask_ops
from unsam_mm.rle import decode_rles


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


def test_the_confidence_of_an_empty_mask_is_zero_and_of_others_the_mean_probability_inside():
    logits = torch.tensor([[[2.0, -1.0]], [[-3.0, -1.0]]])
    confidence = mask_ops.foreground_confidence(logits, logits > 0)
    torch.testing.assert_close(confidence, torch.tensor([torch.tensor(2.0).sigmoid(), 0.0]))


def test_padding_is_cut_off_before_masks_are_scaled_to_the_original_image():
    # The image fills the left half of the batch; only the padding is positive.
    logits = torch.full((1, 8, 8), -5.0)
    logits[:, :, 4:] = 5.0
    (full,) = mask_ops.full_size_logits(logits, batch_hw=(32, 32), image_hw=(32, 14), output_hw=(64, 28))
    assert full.shape == (1, 64, 28)
    assert (full < 0).all()


def test_chunks_give_what_one_piece_gives(monkeypatch):
    logits = torch.randn(5, 8, 12)
    sizes = {'batch_hw': (32, 48), 'image_hw': (30, 40), 'output_hw': (45, 60)}
    (whole,) = mask_ops.full_size_logits(logits, **sizes)
    monkeypatch.setattr(mask_ops, '_CHUNK_VALUES', 2 * 45 * 60)
    chunks = list(mask_ops.full_size_logits(logits, **sizes))
    assert [len(chunk) for chunk in chunks] == [2, 2, 1]
    assert torch.equal(torch.cat(chunks), whole)
