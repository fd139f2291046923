"""MoBY's Swin-T starts a backbone that computes what its authors' code computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import nn
from torch.nn import functional

from unsam_mm.__main__ import main
from unsam_mm.convert.released import convert_checkpoint
from unsam_mm.errors import WeightsError

CONFIG = Path(__file__).parents[2] / 'configs' / '_base_' / 'models' / 'unsam_swint_prompt.py'
BLOCKS, HEADS, WINDOW, SIDE = (2, 2, 6, 2), (3, 6, 12, 24), 7, 224

State = dict[str, torch.Tensor]


def encoder_shapes(prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Swin-T in its authors' code."""
    yield f'{prefix}.patch_embed.proj.weight', (96, 3, 4, 4)
    yield f'{prefix}.patch_embed.proj.bias', (96,)
    yield from ((f'{prefix}.patch_embed.norm.{kind}', (96,)) for kind in ('weight', 'bias'))
    for stage, blocks in enumerate(BLOCKS):
        width = 96 * 2**stage
        for block in range(blocks):
            name = f'{prefix}.layers.{stage}.blocks.{block}'
            yield f'{name}.attn.relative_position_bias_table', ((2 * WINDOW - 1) ** 2, HEADS[stage])
            for part, shape in {
                'attn.qkv': (3 * width, width),
                'attn.proj': (width, width),
                'mlp.fc1': (4 * width, width),
                'mlp.fc2': (width, 4 * width),
                'norm1': (width,),
                'norm2': (width,),
            }.items():
                yield f'{name}.{part}.weight', shape
                yield f'{name}.{part}.bias', shape[:1]
        if stage < 3:
            yield f'{prefix}.layers.{stage}.downsample.reduction.weight', (2 * width, 4 * width)
            yield from (
                (f'{prefix}.layers.{stage}.downsample.norm.{kind}', (4 * width,)) for kind in ('weight', 'bias')
            )
    yield from ((f'{prefix}.norm.{kind}', (768,)) for kind in ('weight', 'bias'))


def relative_positions() -> torch.Tensor:
    """(49, 49) row of the bias table for each pair of pixels of a window, as Swin defines it."""
    y, x = np.mgrid[:WINDOW, :WINDOW].reshape(2, -1)
    rows, columns = y[:, None] - y + WINDOW - 1, x[:, None] - x + WINDOW - 1
    return torch.from_numpy(rows * (2 * WINDOW - 1) + columns)


def official_state() -> State:
    """What the published file holds, with random weights: both encoders, heads, queues and buffers."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for prefix in ('encoder', 'encoder_k'):
        for name, shape in encoder_shapes(prefix):
            state[name] = torch.randn(shape, generator=generator) * (0.1 if len(shape) < 2 else shape[-1] ** -0.5)
            if 'norm' in name and name.endswith('weight'):
                state[name] += 1
            if name.endswith('bias_table'):
                state[name.replace('bias_table', 'index')] = relative_positions()
        for stage, windows in enumerate((64, 16, 4)):  # the last stage is one window, which is not shifted
            for block in range(1, BLOCKS[stage], 2):
                state[f'{prefix}.layers.{stage}.blocks.{block}.attn_mask'] = torch.zeros(windows, 49, 49)
    for head in ('projector', 'projector_k', 'predictor'):
        state[f'{head}.linear_hidden.0.weight'] = torch.zeros(4096, 1)
    return state | {'queue1': torch.zeros(256, 8), 'queue2': torch.zeros(256, 8), 'queue_ptr': torch.zeros(1).long()}


def norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, x.shape[-1:], state[f'{name}.weight'], state[f'{name}.bias'])


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, state[f'{name}.weight'], state.get(f'{name}.bias'))


def attention(state: State, name: str, x: torch.Tensor, heads: int, shift: int) -> torch.Tensor:
    """Attention of each pixel to those of its window, in an image that is rolled by `shift`.

    Written for pairs of pixels of the whole image: a pair counts if both lie in one window before and after rolling.
    """
    side = x.shape[1]
    rolled = torch.roll(x, (-shift, -shift), dims=(1, 2)).flatten(1, 2)
    place = torch.arange(side)
    # Rolling brings rows and columns of the other border into the last window; they do not see each other.
    group = place // WINDOW * 2 + (place >= side - shift) * (shift > 0)
    region = (group[:, None] * 1000 + group).flatten()
    y, x_ = torch.meshgrid(place, place, indexing='ij')
    in_window = (y % WINDOW * WINDOW + x_ % WINDOW).flatten()
    out = torch.zeros_like(rolled)
    query, key, value = linear(state, f'{name}.qkv', rolled).unflatten(-1, (3, heads, -1)).unbind(2)
    table, index = (state[f'{name}.relative_position_{part}'] for part in ('bias_table', 'index'))
    for each in region.unique():
        pixels = (region == each).nonzero()[:, 0]
        own = in_window[pixels]
        scores = torch.einsum('bqhd,bkhd->bhqk', query[:, pixels], key[:, pixels]) * query.shape[-1] ** -0.5
        weights = (scores + table[index[own][:, own]].permute(2, 0, 1)).softmax(-1)
        out[:, pixels] = torch.einsum('bhqk,bkhd->bqhd', weights, value[:, pixels]).flatten(2)
    out = linear(state, f'{name}.proj', out).unflatten(1, (side, side))
    return torch.roll(out, (shift, shift), dims=(1, 2))


def official_levels(state: State, image: torch.Tensor) -> list[torch.Tensor]:
    """What the authors' code computes, written with its names: each stage before patches are merged, (B, H, W, C)."""
    embedded = functional.conv2d(
        image, state['encoder.patch_embed.proj.weight'], state['encoder.patch_embed.proj.bias'], stride=4
    )
    x, levels = norm(state, 'encoder.patch_embed.norm', embedded.permute(0, 2, 3, 1)), []
    for stage, blocks in enumerate(BLOCKS):
        for block in range(blocks):
            name = f'encoder.layers.{stage}.blocks.{block}'
            shift = WINDOW // 2 if block % 2 else 0  # in their code for detection also where there is one window only
            x = x + attention(state, f'{name}.attn', norm(state, f'{name}.norm1', x), HEADS[stage], shift)
            hidden = functional.gelu(linear(state, f'{name}.mlp.fc1', norm(state, f'{name}.norm2', x)))
            x = x + linear(state, f'{name}.mlp.fc2', hidden)
        levels.append(x)
        if stage < 3:
            name = f'encoder.layers.{stage}.downsample'
            merged = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], dim=-1)
            x = linear(state, f'{name}.reduction', norm(state, f'{name}.norm', merged))
    return levels


@pytest.fixture(scope='module')
def official() -> State:
    return official_state()


@pytest.fixture
def published(tmp_path, official) -> Path:
    path = tmp_path / 'moby_swin_t_300ep_pretrained.pth'
    torch.save({'model': official, 'epoch': 299}, path)
    yield path
    for file in tmp_path.glob('*.pth'):
        file.unlink()  # 100 MB each, which pytest would keep


def backbone_from(path: Path) -> nn.Module:
    """As the shipped recipes start it."""
    config = Config.fromfile(CONFIG).model.backbone
    config.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    backbone = MODELS.build(config)
    backbone.init_weights()
    backbone.eval()  # which returns nothing
    return backbone


def test_a_backbone_starts_from_it_and_computes_what_its_authors_code_computes(published, official):
    convert_checkpoint(published, published.with_name('moby.pth'))
    backbone = backbone_from(published.with_name('moby.pth'))
    image = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = backbone(image), official_levels(official, image)
    for level, wanted in zip(found, expected, strict=True):
        normed = functional.layer_norm(wanted, wanted.shape[-1:])  # norms of levels start as none
        torch.testing.assert_close(level, normed.permute(0, 3, 1, 2), rtol=1e-3, atol=1e-3)


def test_every_weight_of_the_backbone_but_the_norms_of_its_levels_is_in_the_file(published, official):
    convert_checkpoint(published, published.with_name('moby.pth'))
    converted = torch.load(published.with_name('moby.pth'), weights_only=True)['state_dict']
    backbone = MODELS.build(Config.fromfile(CONFIG).model.backbone)
    shapes = {f'backbone.{name}': tensor.shape for name, tensor in backbone.state_dict().items()}
    levels = {f'backbone.norm{stage}.{kind}' for stage in range(4) for kind in ('weight', 'bias')}
    assert shapes.keys() - converted.keys() == levels
    assert {name: tensor.shape for name, tensor in converted.items()}.items() <= shapes.items()


def tiny(official: State) -> State:
    """The names of the checkpoint with four numbers each."""
    return {name: torch.zeros(1, 4) for name in official}


def test_the_command_says_how_to_start_from_it(tmp_path, official, capsys):
    torch.save({'model': tiny(official)}, tmp_path / 'moby.pth')
    assert main(['convert', str(tmp_path / 'moby.pth'), str(tmp_path / 'out.pth')]) == 0
    printed = capsys.readouterr().out
    assert "tensors of MoBY's self-supervised Swin-T" in printed
    assert "model.backbone.init_cfg = dict(type='Pretrained'" in printed


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda name: name.replace('layers.3', 'layers.4'), r"lacks 'encoder\.layers\.3\.blocks\.0\.attn\.proj\.bias'"),
        (lambda name: name.removeprefix('encoder.'), 'belongs to no known checkpoint; .* MoBY'),  # trained with labels
        (lambda name: f'{name}.x' if 'norm2' in name else name, r"so it is not MoBY's .*_300ep_pretrained\.pth is"),
    ],
    ids=['another size', 'no online encoder', 'another module'],
)
def test_another_swin_is_refused_and_nothing_is_written(tmp_path, official, change, message):
    torch.save({change(name): tensor for name, tensor in tiny(official).items()}, tmp_path / 'other.pth')
    with pytest.raises(WeightsError, match=rf'other\.pth: .*{message}'):
        convert_checkpoint(tmp_path / 'other.pth', tmp_path / 'out.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['other.pth']


def test_a_converted_file_is_not_converted_again(tmp_path, official):
    torch.save({'model': tiny(official)}, tmp_path / 'moby.pth')
    convert_checkpoint(tmp_path / 'moby.pth', tmp_path / 'once.pth')
    with pytest.raises(WeightsError, match=r"once\.pth: has MMDetection's names already; use it as it is"):
        convert_checkpoint(tmp_path / 'once.pth', tmp_path / 'twice.pth')
