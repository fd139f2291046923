"""Targets, prompts and losses of the training."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.test_models.descent import fall_in_proportion
from unsam_mm.errors import UnSAMError
from unsam_mm.student import RegionInputs, RegionNet, TokenMasks, region_losses
from unsam_mm.student.training import TeacherMasks, draw_prompts, draw_targets


@pytest.fixture
def targets(inputs, cup):
    """200 targets: for each of 50 seeds two masks and two nodes."""
    teacher = TeacherMasks.from_token_masks(cup[1], inputs)
    return draw_targets(inputs, teacher, torch.Generator().manual_seed(0), 50, 4)


def _seeded():
    return torch.Generator().manual_seed(0)


def _total(losses):
    return sum(loss for name, loss in losses.items() if name.startswith('loss_'))


def test_every_target_holds_its_seed(targets):
    assert (targets.shares[torch.arange(len(targets.seeds)), targets.seeds] > 0.5).all()


def test_granularity_is_that_of_the_area_of_the_target(targets, inputs):
    area = (targets.shares * inputs.areas_px).sum(1)
    expected = (1 + torch.log10(area / inputs.areas_px.sum()) / 4).clamp(0, 1)
    masks = targets.is_mask
    assert 0 < masks.sum() < len(masks)
    assert torch.allclose(targets.granularity[masks], expected[masks], atol=0.02)
    nodes = (targets.granularity - expected)[~masks].abs()
    assert nodes.median() < 0.02  # regions of the first tree are nodes; the others cut through some of them


def test_masks_weigh_more_than_nodes(targets):
    assert targets.weights.sum() == pytest.approx(1.0)
    assert targets.weights[targets.is_mask].min() > 3 * targets.weights[~targets.is_mask].max()


def test_prompts_of_every_kind_match_their_targets(inputs, targets):
    prompts = draw_prompts(inputs, targets, _seeded())
    has_negative, has_box, has_earlier = (prompts.channels[:, 0, mark] == 1 for mark in (18, 20, 22))
    assert has_negative.any()
    assert has_box.any()
    assert has_earlier.any()
    assert not (has_negative & has_box).any()
    assert torch.allclose(prompts.weights.sum(1), torch.ones(len(prompts.weights)), atol=1e-5)
    clicked = ~has_box
    assert ((prompts.weights * (targets.shares <= 0.5)).sum(1)[clicked] == 0).all()
    # The prompt of a node is its seed and its granularity alone.
    nodes = ~targets.is_mask
    assert torch.equal(prompts.granularity[nodes], targets.granularity[nodes])
    assert not (has_negative | has_box | has_earlier)[nodes].any()
    assert prompts.granularity[has_box].isnan().all()
    in_box = (prompts.channels[..., 19] * (targets.shares > 0.5)).sum(1) / (targets.shares > 0.5).sum(1)
    assert in_box[has_box].mean() > 0.8


def test_random_numbers_come_from_the_generator_alone(net, inputs, cup):
    torch.manual_seed(1)
    first = region_losses(net, inputs, cup[1], _seeded())
    torch.manual_seed(2)
    again = region_losses(net, inputs, cup[1], _seeded())
    other = region_losses(net, inputs, cup[1], torch.Generator().manual_seed(3))
    assert {name: float(loss.detach()) for name, loss in first.items()} == {
        name: float(loss.detach()) for name, loss in again.items()
    }
    assert float(first['loss_mask'].detach()) != float(other['loss_mask'].detach())


def test_the_loss_falls_as_its_gradient_says(net, inputs, cup):
    """A step against the gradient; chance is the same before and after it."""
    assert 0.4 < fall_in_proportion(lambda: _total(region_losses(net, inputs, cup[1], _seeded())), net.parameters()) < 2


def test_the_iou_has_no_gradient(net, inputs, cup):
    losses = region_losses(net, inputs, cup[1], _seeded())
    assert not losses['iou'].requires_grad
    assert all(losses[name].requires_grad for name in ('loss_mask', 'loss_dice', 'loss_score'))


def test_an_image_without_masks_has_finite_losses(net, inputs):
    none = TokenMasks(np.zeros((0, 80), np.uint8), np.zeros(0, np.float32), np.zeros(0, np.int64))
    losses = region_losses(net, inputs, none, _seeded())
    assert all(loss.isfinite() for loss in losses.values())
    assert losses['iou'] == 0


def test_an_image_of_one_region_gives_finite_losses(colour_tokenizer, coffee, net):
    tokens, masks = colour_tokenizer(1).with_masks(coffee)
    losses = region_losses(net, RegionInputs.from_tokens(tokens), masks, _seeded())
    _total(losses).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in net.parameters())


def test_masks_of_another_image_are_refused(inputs, cup):
    fewer = TokenMasks(cup[1].shares[:, :70], cup[1].scores, cup[1].areas_px)
    with pytest.raises(UnSAMError, match='the masks have 70 regions, the inputs 80; load both from one file'):
        region_losses(RegionNet(feature_channels=3), inputs, fewer)
