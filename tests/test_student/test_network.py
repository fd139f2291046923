"""The network: any number of regions in any order, and independent prompts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unsam_mm.errors import UnSAMError
from unsam_mm.student import RegionInputs, RegionNet, RegionPrompts
from unsam_mm.student.network import _gaps


@torch.no_grad()
def _answer(net, inputs, seeds, granularity=None):
    return net.decode(inputs, net.encode(inputs), RegionPrompts.from_seeds(inputs, seeds, granularity))


@pytest.mark.parametrize('n_tokens', [1, 2, 30, 200])
def test_any_number_of_regions_is_answered(net, colour_tokenizer, coffee, n_tokens):
    inputs = RegionInputs.from_tokens(colour_tokenizer(n_tokens).with_masks(coffee)[0])
    logits, scores = _answer(net, inputs, torch.arange(n_tokens))
    assert logits.shape == (n_tokens, n_tokens)
    assert scores.shape == (n_tokens, 2)
    assert logits.isfinite().all()
    assert scores.isfinite().all()


def test_a_tiny_image_is_answered(net, colour_tokenizer, coffee):
    inputs = RegionInputs.from_tokens(colour_tokenizer(768).with_masks(coffee[:8, :8])[0])
    logits, scores = _answer(net, inputs, torch.zeros(3, dtype=torch.long), torch.tensor([0.0, 1.0, torch.nan]))
    assert logits.isfinite().all()
    assert scores.isfinite().all()


def test_prompts_are_independent(net, inputs):
    seeds, granularity = torch.arange(80), torch.linspace(0, 1, 80)
    logits, scores = _answer(net, inputs, seeds, granularity)
    some, some_scores = _answer(net, inputs, seeds[20:23], granularity[20:23])
    assert torch.allclose(logits[20:23], some, atol=1e-5)
    assert torch.allclose(scores[20:23], some_scores, atol=1e-5)


def test_the_numbering_of_the_regions_does_not_matter(net, inputs):
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    place = order.argsort()
    per_region = ('areas_px', 'features', 'appearance', 'centres_yx', 'border_share')
    shuffled = replace(
        inputs,
        **{name: getattr(inputs, name)[order] for name in per_region},
        pairs=inputs.pairs[order][:, order],
        edges=place[inputs.edges],
    )
    seeds = torch.arange(10)
    logits, scores = _answer(net, inputs, seeds)
    moved, moved_scores = _answer(net, shuffled, place[seeds])
    assert torch.allclose(logits[:, order], moved, atol=1e-4)
    assert torch.allclose(scores, moved_scores, atol=1e-4)


def test_granularity_and_place_matter(net, inputs):
    seeds = torch.zeros(3, dtype=torch.long)
    logits, _ = _answer(net, inputs, seeds, torch.tensor([0.2, 0.8, torch.nan]))
    assert not torch.allclose(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])
    mirrored, _ = _answer(net, inputs.flipped(), seeds, torch.tensor([0.2, 0.8, torch.nan]))
    assert not torch.allclose(logits, mirrored)


def test_gradients_reach_every_weight(net, inputs):
    prompts = RegionPrompts.from_seeds(inputs, torch.arange(4), torch.full((4,), 0.5))
    logits, scores = net.decode(inputs, net.encode(inputs), prompts)
    (logits.square().mean() + scores.square().mean()).backward()
    assert [name for name, weight in net.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_tokens_of_other_settings_are_refused_with_the_numbers(inputs):
    net = RegionNet(width=16, heads=2, feature_channels=384, trees=2)
    with pytest.raises(UnSAMError, match='the tokens have 4 trees and 3 feature channels, the network 2 and 384'):
        net.encode(inputs)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(UnSAMError, match='width must be a multiple of heads, got 30 and 4'):
        RegionNet(width=30)


def test_the_default_network_fits_in_two_and_a_half_megabytes_of_half_precision():
    assert 2 * sum(weight.numel() for weight in RegionNet().parameters()) < 2.5e6


def test_gaps_lead_to_the_next_nodes_above_and_below_on_the_path_of_each_tree():
    paths = torch.tensor([[0.1, 0.2], [0.4, 0.2], [0.7, 0.6]])[None]  # three regions, two trees
    gaps = _gaps(paths, torch.tensor([0.4]))
    assert gaps[0].tolist() == pytest.approx([0.3, 0.2, 0.0, 0.2], abs=1e-6)
