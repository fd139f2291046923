"""Channels of prompts: the effect of each part, and none of absent parts."""

from __future__ import annotations

import pytest
import torch

from unsam_mm.student import RegionPrompts
from unsam_mm.student.prompts import FAR

SEEDS = torch.tensor([3, 40])
NONE = torch.full((2, 2), -1)


def test_a_seed_is_one_positive_click(inputs):
    seeds = RegionPrompts.from_seeds(inputs, SEEDS, torch.tensor([0.3, 0.5]))
    clicks = RegionPrompts.from_parts(inputs, SEEDS[:, None], granularity=torch.tensor([0.3, 0.5]))
    for name, values in vars(seeds).items():
        assert torch.equal(values, getattr(clicks, name))
    assert torch.equal(seeds.channels[..., :9], inputs.pairs[SEEDS])


def test_parts_that_are_absent_change_nothing(inputs):
    plain = RegionPrompts.from_parts(inputs, SEEDS[:, None])
    padded = RegionPrompts.from_parts(
        inputs,
        torch.cat([SEEDS[:, None], NONE], dim=1),
        negative=NONE,
        boxes_xyxy=torch.full((2, 4), torch.nan),
        previous=torch.full((2, 80), torch.nan),
        granularity=torch.full((2,), torch.nan),
    )
    assert torch.equal(plain.channels, padded.channels)
    assert torch.equal(plain.weights, padded.weights)
    assert plain.granularity.isnan().all()
    assert padded.granularity.isnan().all()


def test_of_several_clicks_the_nearest_counts(inputs):
    prompts = RegionPrompts.from_parts(inputs, torch.tensor([[3, 40, -1], [5, -1, -1]]))
    assert torch.equal(prompts.channels[0, :, :9], torch.minimum(inputs.pairs[3], inputs.pairs[40]))
    assert torch.equal(prompts.channels[1, :, :9], inputs.pairs[5])
    assert prompts.weights[0, [3, 40]].tolist() == [0.5, 0.5]
    assert prompts.weights.sum(1).tolist() == [1, 1]


def test_two_clicks_in_one_region_are_one(inputs):
    twice = RegionPrompts.from_parts(inputs, torch.tensor([[7, 7]]))
    once = RegionPrompts.from_parts(inputs, torch.tensor([[7]]))
    assert torch.equal(twice.weights, once.weights)
    assert torch.equal(twice.channels, once.channels)


def test_negative_clicks_have_their_own_distances_and_mark(inputs):
    prompts = RegionPrompts.from_parts(inputs, SEEDS[:, None], negative=torch.tensor([[8, 9], [-1, -1]]))
    assert torch.equal(prompts.channels[0, :, 9:18], torch.minimum(inputs.pairs[8], inputs.pairs[9]))
    assert (prompts.channels[1, :, 9:18] == FAR).all()
    assert prompts.channels[:, :, 18].unique(dim=1).tolist() == [[1], [0]]


def test_a_box_marks_the_regions_whose_centre_it_holds(inputs, cup, coffee):
    height, width = coffee.shape[:2]
    boxes = torch.tensor([[0, 0, width / 2, height], [torch.nan] * 4])
    prompts = RegionPrompts.from_parts(inputs, NONE[:, :0], boxes_xyxy=boxes)
    left = torch.from_numpy(cup[0].centres_yx[:, 1] <= width / 2)
    assert torch.equal(prompts.channels[0, :, 19] == 1, left)
    assert (prompts.channels[0, :, 20] == 1).all()
    assert (prompts.channels[1, :, 19:21] == 0).all()
    assert (prompts.channels[..., :9] == FAR).all()
    # Without a click the box is the place, each region by its area.
    assert prompts.weights[0].sum() == pytest.approx(1.0)
    assert torch.allclose(prompts.weights[0], left * inputs.areas_px / (left * inputs.areas_px).sum())


def test_with_a_click_in_a_box_the_weights_are_on_the_click(inputs):
    box = torch.tensor([[0.0, 0, 100, 100]])
    prompts = RegionPrompts.from_parts(inputs, torch.tensor([[7]]), boxes_xyxy=box)
    assert prompts.weights[0, 7] == 1
    assert prompts.channels[0, :, 19].sum() > 1


def test_a_box_smaller_than_a_region_marks_the_nearest_region(inputs, cup):
    y, x = cup[0].centres_yx[11]
    prompts = RegionPrompts.from_parts(
        inputs, NONE[:1, :0], boxes_xyxy=torch.tensor([[x + 0.1, y + 0.1, x + 0.2, y + 0.2]])
    )
    assert prompts.channels[0, :, 19].nonzero().tolist() == [[11]]
    assert prompts.weights[0, 11] == 1


def test_an_earlier_mask_has_its_own_channel(inputs):
    earlier = torch.rand(2, 80)
    earlier[1] = torch.nan
    prompts = RegionPrompts.from_parts(inputs, SEEDS[:, None], previous=earlier)
    assert torch.equal(prompts.channels[0, :, 21], earlier[0])
    assert (prompts.channels[1, :, 21] == 0).all()
    assert prompts.channels[:, :, 22].unique(dim=1).tolist() == [[1], [0]]
