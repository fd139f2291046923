"""Every family of ViTs gives the features that its authors' model computes; shown on tiny random weights."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from unsam_mm import _vit_conversion, weights
from unsam_mm.errors import WeightsError
from unsam_mm.pseudo_masks import vit as features
from unsam_mm.pseudo_masks.dinov2 import Dinov2, load_dinov2
from unsam_mm.pseudo_masks.vit import PatchFeatureExtractor, load_vit

CHANNELS, LAYERS, HEADS, GRID = 128, 3, 2, 4
PATCH_PX = {'dino': 8, 'dinov2': 14}
CONVERTERS = {
    'dino': _vit_conversion.convert_official_dino,
    'dinov2': _vit_conversion.convert_official_dinov2,
}


def official_checkpoint(family: str) -> dict[str, torch.Tensor]:
    """The authors' names and shapes, for fewer and narrower layers."""
    shapes = {
        'cls_token': (1, 1, CHANNELS),
        'pos_embed': (1, 1 + GRID**2, CHANNELS),
        'patch_embed.proj.weight': (CHANNELS, 3, PATCH_PX[family], PATCH_PX[family]),
        'patch_embed.proj.bias': (CHANNELS,),
        'norm.weight': (CHANNELS,),
        'norm.bias': (CHANNELS,),
    }
    linear = {'attn.qkv': (3, 1), 'attn.proj': (1, 1), 'mlp.fc1': (4, 1), 'mlp.fc2': (1, 4)}
    for layer in range(LAYERS):
        for name, (rows, columns) in linear.items():
            shapes[f'blocks.{layer}.{name}.weight'] = (rows * CHANNELS, columns * CHANNELS)
            shapes[f'blocks.{layer}.{name}.bias'] = (rows * CHANNELS,)
        for name, kind in itertools.product(('norm1', 'norm2'), ('weight', 'bias')):
            shapes[f'blocks.{layer}.{name}.{kind}'] = (CHANNELS,)
        if family == 'dinov2':
            shapes |= {f'blocks.{layer}.ls{number}.gamma': (CHANNELS,) for number in (1, 2)}
    if family == 'dinov2':
        shapes['mask_token'] = (1, CHANNELS)
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}


def plain_forward(state: dict[str, torch.Tensor], pixels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Facets of every layer, (1, 1 + patches, C) each, computed with nothing but the authors' tensors."""

    def linear(name, x):
        return functional.linear(x, state[f'{name}.weight'], state[f'{name}.bias'])

    def norm(name, x):
        return functional.layer_norm(x, (CHANNELS,), state[f'{name}.weight'], state[f'{name}.bias'], eps=1e-6)

    kernel = state['patch_embed.proj.weight']
    patches = functional.conv2d(pixels, kernel, state['patch_embed.proj.bias'], stride=kernel.shape[-1])
    positions = state['pos_embed'][:, 1:].transpose(1, 2).unflatten(2, (GRID, GRID))
    positions = functional.interpolate(positions, size=patches.shape[-2:], mode='bicubic', align_corners=False)
    class_token = state['cls_token'] + state['pos_embed'][:, :1]
    x = torch.cat([class_token, (patches + positions).flatten(2).transpose(1, 2)], dim=1)
    found = []
    for layer in range(LAYERS):
        block = f'blocks.{layer}'
        query, key, value = linear(f'{block}.attn.qkv', norm(f'{block}.norm1', x)).chunk(3, dim=-1)
        heads = [part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (query, key, value)]
        attended = (heads[0] @ heads[1].mT / (CHANNELS // HEADS) ** 0.5).softmax(-1) @ heads[2]
        attended = linear(f'{block}.attn.proj', attended.transpose(1, 2).flatten(2))
        x = x + attended * state.get(f'{block}.ls1.gamma', 1.0)
        hidden = linear(f'{block}.mlp.fc2', functional.gelu(linear(f'{block}.mlp.fc1', norm(f'{block}.norm2', x))))
        x = x + hidden * state.get(f'{block}.ls2.gamma', 1.0)
        found.append({'query': query, 'key': key, 'value': value, 'token': norm('norm', x)})
    return found


@pytest.fixture(scope='module', params=['dino', 'dinov2'])
def converted(request, tmp_path_factory):
    """A converted folder, and the official tensors it was made of."""
    state = official_checkpoint(request.param)
    raw = tmp_path_factory.mktemp('raw') / 'official.pth'
    torch.save(state, raw)
    folder = tmp_path_factory.mktemp('vit') / request.param
    _vit_conversion.save(CONVERTERS[request.param](raw), folder, {})
    return folder, state


@pytest.mark.parametrize('facet', features.FACETS)
def test_features_are_those_of_the_authors_tensors_on_a_grid_that_is_not_square(converted, coffee, facet):
    folder, state = converted
    extract = PatchFeatureExtractor(str(folder), facet, long_side_px=112)
    found = extract(coffee)
    expected = plain_forward(state, extract._prepare(coffee))[-1][facet][:, 1:]
    assert found.shape == (round(200 / 300 * 112 / extract._patch_px), 112 // extract._patch_px, CHANNELS)
    assert np.allclose(found.reshape(1, -1, CHANNELS), expected.numpy(), atol=1e-4)


@pytest.fixture
def plain_dinov2(tmp_path):
    """A folder as the package converts it."""
    torch.save(official_checkpoint('dinov2'), tmp_path / 'official.pth')
    _vit_conversion.save(_vit_conversion.convert_official_dinov2(tmp_path / 'official.pth'), tmp_path / 'vit', {})
    return tmp_path / 'vit'


def test_the_plain_dinov2_computes_what_that_of_transformers_computes(plain_dinov2):
    pixels = torch.rand(2, 3, 5 * 14, 8 * 14, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = load_vit(str(plain_dinov2))(pixel_values=pixels).last_hidden_state
        assert torch.allclose(load_dinov2(plain_dinov2)(pixels), expected, atol=1e-5)


def test_a_dinov2_folder_that_says_more_is_left_to_transformers(plain_dinov2):
    import transformers

    assert isinstance(PatchFeatureExtractor(str(plain_dinov2))._vit, Dinov2)
    config = json.loads((plain_dinov2 / 'config.json').read_text())
    (plain_dinov2 / 'config.json').write_text(json.dumps({**config, 'hidden_act': 'relu'}))
    assert isinstance(PatchFeatureExtractor(str(plain_dinov2))._vit, transformers.Dinov2Model)


@pytest.mark.slow
def test_features_of_the_plain_dinov2_need_no_transformers(plain_dinov2):
    code = (
        'import sys, numpy as np; from unsam_mm.pseudo_masks.vit import PatchFeatureExtractor; '
        f'PatchFeatureExtractor({str(plain_dinov2)!r}, long_side_px=56)(np.zeros((40, 40, 3), np.uint8)); '
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ['True', 'False']


@pytest.mark.parametrize('damage', ['cut short', 'a tensor less'])
def test_damaged_weights_of_the_plain_dinov2_are_named(plain_dinov2, damage):
    path = plain_dinov2 / 'model.safetensors'
    if damage == 'cut short':
        path.write_bytes(path.read_bytes()[:1000])
    else:
        save_file({name: value for name, value in load_file(path).items() if name != 'layernorm.bias'}, path)
    with pytest.raises(WeightsError, match='damaged.*remove the folder'):
        PatchFeatureExtractor(str(plain_dinov2))


@pytest.mark.parametrize(
    ('class_name', 'patch_px', 'registers'),
    [('DINOv3ViTModel', 16, 4), ('Dinov2WithRegistersModel', 14, 4)],
)
def test_a_folder_of_transformers_is_taken_and_its_registers_are_left_out(
    tmp_path, coffee, class_name, patch_px, registers
):
    import transformers

    model_class = getattr(transformers, class_name)
    torch.manual_seed(0)
    model = model_class(
        model_class.config_class(
            hidden_size=CHANNELS,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            patch_size=patch_px,
            image_size=GRID * patch_px,
            num_register_tokens=registers,
        )
    ).eval()
    model.save_pretrained(tmp_path / 'vit')
    extract = PatchFeatureExtractor(str(tmp_path / 'vit'), 'token', long_side_px=112)
    grid = extract(coffee)
    with torch.inference_mode():
        expected = model(pixel_values=extract._prepare(coffee)).last_hidden_state[0, 1 + registers :]
    assert grid.shape[:2] == (round(200 / 300 * 112 / patch_px), 112 // patch_px)
    assert np.allclose(grid.reshape(-1, CHANNELS), expected.numpy(), atol=1e-5)
    for facet in ('key', 'query', 'value'):
        assert PatchFeatureExtractor(str(tmp_path / 'vit'), facet, 112)(coffee).shape == grid.shape


def test_keys_of_dinov3_are_read_before_the_rotary_embedding(tmp_path, coffee):
    """Its positions enter in no other way, so on a plain image all patches of an only layer have one key."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    config = DINOv3ViTConfig(hidden_size=CHANNELS, num_hidden_layers=1, num_attention_heads=HEADS)
    DINOv3ViTModel(config).save_pretrained(tmp_path / 'vit')
    grid = PatchFeatureExtractor(str(tmp_path / 'vit'), long_side_px=112)(np.full_like(coffee, 90))
    assert np.abs(grid).max() > 1e-3
    assert np.abs(grid - grid[0, 0]).max() < 1e-5


def test_every_official_checkpoint_of_dino_has_a_converter_and_dinov3_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path))
    for name in features.VITS:
        source = weights.TABLE[name].sources[0]
        if name.startswith('dinov3'):
            (tmp_path / source.file_name).mkdir()
            assert weights.fetch(name) == tmp_path / name
        else:
            module, function = source.converter.split(':')
            assert module == 'unsam_mm._vit_conversion'
            assert hasattr(_vit_conversion, function)


def test_a_gated_vit_says_which_folder_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path))
    with pytest.raises(WeightsError, match=r'dinov3_vitb16.*in a browser.*put it, as dinov3_vitb16, into'):
        load_vit('dinov3_vitb16')


def test_a_checkpoint_in_the_cache_is_converted_by_its_first_use(monkeypatch, tmp_path, coffee):
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path))
    torch.save(official_checkpoint('dino'), tmp_path / 'dino_vitbase8_pretrain.pth')
    assert PatchFeatureExtractor('dino_vitb8', long_side_px=64)(coffee).shape == (5, 8, CHANNELS)
    assert weights.cached_path('dino_vitb8').name == 'dino_vitb8.dino_vitbase8_pretrain'


@pytest.mark.parametrize(
    ('content', 'message'),
    [(b'<html>not found</html>', 'cannot be read as a checkpoint'), (b'', 'cannot be read as a checkpoint')],
)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, content, message):
    (tmp_path / 'dino.pth').write_bytes(content)
    with pytest.raises(WeightsError, match=rf'dino\.pth: {message}'):
        _vit_conversion.convert_official_dino(tmp_path / 'dino.pth')


def test_a_model_of_another_type_is_refused(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'resnet'}))
    with pytest.raises(WeightsError, match="type 'resnet' give no patch features"):
        load_vit(str(tmp_path))
