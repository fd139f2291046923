"""All masks of an image: distinct, in order, and exact to the pixel."""

from __future__ import annotations

import numpy as np
import pytest

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import decode_rles
from unsam_mm.student import propose, to_mask_set
from unsam_mm.student.proposals import keep_distinct

AREAS = np.array([100.0, 10, 10, 50])
MASKS = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
SCORES = np.array([0.8, 0.9, 0.5, 0.99, 0.7], np.float32)


def test_of_masks_that_overlap_too_much_the_best_is_kept_and_empty_ones_are_not():
    masks, scores = keep_distinct(MASKS, SCORES, AREAS, max_iou=0.9, max_masks=10, repetition=0.0)
    assert np.array_equal(masks, MASKS[[1, 2]])
    assert scores.tolist() == pytest.approx([0.9, 0.5])


def test_of_equal_masks_the_best_is_kept_whatever_the_limit():
    masks, _ = keep_distinct(MASKS, SCORES, AREAS, max_iou=1.0, max_masks=10, repetition=0.0)
    assert np.array_equal(masks, MASKS[[1, 0, 2]])


def test_repetition_lowers_the_scores_of_similar_masks():
    masks, scores = keep_distinct(MASKS, SCORES, AREAS, max_iou=0.95, max_masks=10, repetition=0.9)
    assert np.array_equal(masks, MASKS[[1, 2, 0]])
    assert scores.tolist() == pytest.approx([0.9, 0.5, 0.8 * (1 - 0.9 * (100 / 110) ** 6)])


def test_no_more_masks_than_wanted_are_kept():
    masks, _ = keep_distinct(MASKS, SCORES, AREAS, max_iou=1.0, max_masks=2, repetition=0.0)
    assert np.array_equal(masks, MASKS[[1, 0]])


def test_empty_masks_are_left_out():
    masks, scores = keep_distinct(MASKS[[3]], SCORES[[3]], AREAS, max_iou=0.9, max_masks=10, repetition=0.0)
    assert masks.shape == (0, 4)
    assert scores.shape == (0,)


def test_proposals_are_distinct_best_first_and_deterministic(net, inputs):
    masks, scores = propose(net, inputs, n_seeds=40, granularity_step=0.1, duplicate_iou=0.8)
    assert masks.any(axis=1).all()
    assert (np.diff(scores) <= 0).all()
    weighted = masks * inputs.areas_px.numpy()
    shared = weighted @ masks.T
    areas = weighted.sum(axis=1)
    iou = shared / (areas[:, None] + areas - shared)
    assert np.triu(iou, 1).max(initial=0) <= 0.8
    again, again_scores = propose(net, inputs, n_seeds=40, granularity_step=0.1, duplicate_iou=0.8)
    assert (masks == again).all()
    assert (scores == again_scores).all()


def test_the_number_of_prompts_at_a_time_does_not_matter(net, inputs, monkeypatch):
    expected, _ = propose(net, inputs)
    monkeypatch.setattr('unsam_mm.student.proposals._PAIRS_AT_A_TIME', 80 * 7)
    assert (propose(net, inputs)[0] == expected).all()


def test_proposals_stop_at_the_number_wanted(net, inputs):
    masks, _ = propose(net, inputs, max_masks=3, duplicate_iou=1.0)
    assert len(masks) == 3


@pytest.mark.parametrize('wrong', [{'n_seeds': 0}, {'max_masks': 0}, {'granularity_step': 0.0}])
def test_numbers_out_of_range_are_refused(net, inputs, wrong):
    with pytest.raises(UnSAMError, match='must be positive'):
        propose(net, inputs, **wrong)


def test_run_lengths_hold_exactly_the_pixels_of_the_regions(cup):
    tokens, _ = cup
    rng = np.random.default_rng(0)
    members = np.concatenate([rng.random((20, 80)) < 0.3, np.ones((1, 80), bool), np.eye(80, dtype=bool)[:1]])
    masks = to_mask_set(tokens, members, np.linspace(1, 0, 22))
    bitmaps = members[:, tokens.labels]
    assert (decode_rles(masks.rles, tokens.size_hw) == bitmaps).all()
    assert (masks.areas == bitmaps.sum(axis=(1, 2))).all()
    for box, bitmap in zip(masks.boxes_xyxy, bitmaps, strict=True):
        ys, xs = np.nonzero(bitmap)
        assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


def test_parents_are_the_smallest_masks_that_hold_others(cup):
    tokens, _ = cup
    members = np.zeros((4, 80), bool)
    members[0, :40] = members[1, :10] = members[2, :5] = members[3, 50:60] = True
    masks = to_mask_set(tokens, members, np.ones(4))
    assert masks.parents.tolist() == [-1, 0, 1, -1]
    held = masks.parents >= 0
    assert (masks.granularity[held] < masks.granularity[masks.parents[held]]).all()


def test_the_whole_image_has_granularity_one_and_a_hundredth_of_it_one_half(cup):
    tokens, _ = cup
    small = tokens.areas_px.argmin()
    masks = to_mask_set(tokens, np.stack([np.ones(80, bool), np.arange(80) == small]), np.ones(2))
    assert masks.granularity[0] == 1
    share = tokens.areas_px[small] / tokens.labels.size
    assert masks.granularity[1] == pytest.approx(max(1 + np.log10(share) / 4, 0))


def test_no_masks_make_an_empty_set(cup):
    assert len(to_mask_set(cup[0], np.zeros((0, 80), bool), np.zeros(0))) == 0
