"""Attention by fused kernels against the modules whose weights it takes."""

import copy

import pytest
import torch
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention
from mmdet.registry import MODELS
from torch import nn
from torch.nn.functional import interpolate

from unsam_mm.models.attention import LeanDeformableAttention, MaskedAttention
from unsam_mm.models.unsam_head import _blocked_keys

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 4, 7, 12, 32


def blocked_at_random(*shape) -> torch.Tensor:
    """Bool, True in half of the places, but in no whole row."""
    blocked = torch.rand(shape) > 0.5
    blocked[..., 0] = False
    return blocked


def masks():
    """Masks, each with the same mask as arguments of `nn.MultiheadAttention`."""
    shared = blocked_at_random(QUERIES, KEYS)
    broadcast = blocked_at_random(BATCH, 1, QUERIES, KEYS)
    repeated = broadcast.expand(-1, HEADS, -1, -1).flatten(0, 1)
    padding = blocked_at_random(BATCH, KEYS)
    return {
        'none': ({}, {}),
        'shared': ({'attn_mask': shared}, {'attn_mask': shared}),
        'broadcast over heads': ({'attn_mask': broadcast}, {'attn_mask': repeated}),
        'padding': ({'key_padding_mask': padding}, {'key_padding_mask': padding}),
        'padding and mask': (
            {'key_padding_mask': padding, 'attn_mask': shared},
            {'key_padding_mask': padding, 'attn_mask': shared},
        ),
    }


@pytest.fixture
def tokens():
    return [torch.randn(count, BATCH, WIDTH) for count in (QUERIES, KEYS, KEYS)]


@pytest.mark.parametrize('kind', list(masks()))
def test_attention_equals_that_of_torch_with_the_same_state_dict(tokens, kind):
    ours, stock = MaskedAttention(WIDTH, HEADS), nn.MultiheadAttention(WIDTH, HEADS)
    ours.load_state_dict(stock.state_dict(), strict=True)
    given, expected = masks()[kind]
    read, weights = ours(*tokens, **given)
    torch.testing.assert_close(read, stock(*tokens, **expected)[0], rtol=0, atol=1e-5)
    assert weights is None


def deformable_inputs() -> dict[str, torch.Tensor]:
    sizes = torch.tensor([[2, 3], [4, 5]])
    n_tokens = int(sizes.prod(1).sum())
    return {
        'query': torch.randn(BATCH, n_tokens, WIDTH),
        'query_pos': torch.randn(BATCH, n_tokens, WIDTH),
        'key_padding_mask': torch.zeros(BATCH, n_tokens, dtype=torch.bool),
        'reference_points': torch.rand(BATCH, n_tokens, 2, 2),
        'spatial_shapes': sizes,
        'level_start_index': torch.tensor([0, 6]),
    }


@pytest.fixture
def both_deformable():
    options = {'embed_dims': WIDTH, 'num_heads': HEADS, 'num_levels': 2, 'num_points': 3, 'dropout': 0.0}
    stock = MultiScaleDeformableAttention(**options, batch_first=True)
    for weight in stock.parameters():
        nn.init.normal_(weight, std=0.3)  # untouched, all offsets and weights are equal
    ours = LeanDeformableAttention(**options, batch_first=True)
    ours.load_state_dict(stock.state_dict(), strict=True)
    return ours, stock


def test_deformable_attention_equals_that_of_mmcv(both_deformable):
    ours, stock = both_deformable
    inputs = deformable_inputs()
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs), stock(**inputs), rtol=0, atol=1e-5)


def test_gradients_of_deformable_attention_equal_those_of_mmcv(both_deformable):
    inputs = deformable_inputs()
    gradients = []
    for module in both_deformable:
        own = copy.deepcopy(inputs)
        own['query'].requires_grad_()
        module(**own).square().sum().backward()
        gradients.append([own['query'].grad, *(weight.grad for weight in module.parameters())])
    for ours, stock in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-3)


def test_every_attention_of_the_head_is_replaced(model_config):
    modules = [type(module) for module in MODELS.build(model_config).mask_head.modules()]
    assert modules.count(MaskedAttention) == 6  # two in each of three layers
    assert modules.count(LeanDeformableAttention) == 2
    assert not {nn.MultiheadAttention, MultiScaleDeformableAttention} & set(modules)


def test_queries_are_blocked_where_resized_masks_are_background():
    embeds, feature = torch.randn(1, 50, WIDTH), torch.randn(1, WIDTH, 16, 24)
    resized = interpolate(feature, (8, 12), mode='bilinear', align_corners=False).flatten(2)
    logits = interpolate(torch.einsum('bqc,bchw->bqhw', embeds, feature), (8, 12), mode='bilinear', align_corners=False)
    assert torch.equal(_blocked_keys(embeds, resized)[:, 0], (logits.sigmoid() < 0.5).flatten(2))


def test_a_query_without_foreground_looks_everywhere():
    feature = torch.ones(1, WIDTH, KEYS)
    feature[:, :, 3] = -1
    embeds = torch.stack([torch.ones(WIDTH), -torch.ones(WIDTH), torch.zeros(WIDTH)])[None]
    nowhere = torch.cat([feature[:, :, :3], feature[:, :, 4:]], dim=2)
    assert _blocked_keys(embeds, feature)[0, 0].sum(dim=1).tolist() == [1, KEYS - 1, 0]
    assert _blocked_keys(embeds, nowhere)[0, 0].sum(dim=1).tolist() == [0, 0, 0]
