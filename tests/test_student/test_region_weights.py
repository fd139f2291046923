"""Weights on disk: half precision, with the settings of the tokens."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from unsam_mm.errors import StoreError, WeightsError
from unsam_mm.fingerprints import file_sha256
from unsam_mm.pseudo_masks.region_trees import GeneratorSettings
from unsam_mm.student import RegionNet, RegionPrompts
from unsam_mm.student.weights import load_weights, net_of_checkpoint, packaged_weights, save_weights

TOOLS = Path(__file__).parents[2] / 'tools'


def test_a_loaded_network_predicts_the_same_up_to_half_precision(net, inputs, tmp_path):
    settings = GeneratorSettings(superpixel_spacing_px=6.0)
    save_weights(tmp_path / 'a.safetensors', net, settings, n_tokens=80, notes={'seed': '0'})
    trained = load_weights(tmp_path / 'a.safetensors')
    assert (trained.settings, trained.n_tokens, trained.notes) == (settings, 80, {'seed': '0'})
    prompts = RegionPrompts.from_seeds(inputs, torch.arange(80))
    with torch.no_grad():
        logits, _ = net.decode(inputs, net.encode(inputs), prompts)
        again, _ = trained.net.decode(inputs, trained.net.encode(inputs), prompts)
    assert (logits - again).abs().max() < 0.02  # half precision


def test_the_weights_in_the_package_are_those_of_earlier_versions_and_load_with_the_default_settings():
    """The file has earlier names of the settings."""
    path = packaged_weights('unsam_s')
    assert file_sha256(path) == 'b26f4a932e5d372f908d1c4472932c2957536f45eec2f956cb9c845f3247f322'
    assert load_weights(path).settings == GeneratorSettings()


def test_a_file_takes_two_bytes_a_weight(net, tmp_path):
    save_weights(tmp_path / 'a.safetensors', net)
    n_weights = sum(values.numel() for values in net.state_dict().values())
    assert (tmp_path / 'a.safetensors').stat().st_size < 2 * n_weights + 10_000


def test_weights_that_half_precision_cannot_hold_are_refused(net, tmp_path):
    net.pair.weight.data[0, 0] = 1e6
    with pytest.raises(WeightsError, match=r'pair\.weight is not finite'):
        save_weights(tmp_path / 'a.safetensors', net)
    assert list(tmp_path.iterdir()) == []


def test_another_suffix_is_refused(net, tmp_path):
    with pytest.raises(StoreError, match='choose such a name'):
        save_weights(tmp_path / 'a.pth', net)


@pytest.mark.parametrize(
    ('content', 'message'),
    [(None, 'no such file'), (b'', 'not a whole safetensors file'), (b'x' * 100, 'not a whole safetensors file')],
)
def test_missing_and_broken_files_are_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / 'a.safetensors').write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        load_weights(tmp_path / 'a.safetensors')


def test_weights_of_another_model_are_refused(tmp_path):
    save_file({'a': torch.zeros(2)}, tmp_path / 'a.safetensors')
    with pytest.raises(WeightsError, match='has the format None'):
        load_weights(tmp_path / 'a.safetensors')


def lost(tensors, name):
    del tensors[name]


@pytest.mark.parametrize(
    ('tensors', 'texts', 'reason'),
    [
        (lambda t: t['pair.weight'].fill_(float('nan')), {}, 'pair.weight is not finite'),
        (lambda t: lost(t, 'pair.weight'), {}, 'pair.weight'),
        (lambda t: lost(t, 'region.0.bias'), {}, 'region.0.bias has the shape None'),
        (lambda t: t.update({'region.0.bias': t['region.0.bias'][:-1].clone()}), {}, 'region.0.bias has the shape'),
        (lambda t: t.update({'other': torch.zeros(2)}), {}, 'other has the shape .2,., expected None'),
        (lambda t: None, {'net': '{"width": 1000000000}'}, 'the tensors belong to a network with'),
        (lambda t: None, {'n_tokens': '-4'}, 'n_tokens is -4, expected 1..4096'),
        (lambda t: None, {'n_tokens': 'many'}, 'invalid literal'),
        (lambda t: None, {'settings': '[]'}, 'parts do not belong together'),
        (lambda t: None, {'settings': '{"growths": 3}'}, 'parts do not belong together'),
        (lambda t: None, {'notes': '[1]'}, 'the notes are no dictionary'),
    ],
)
def test_an_inconsistent_file_is_refused_on_one_line(net, tmp_path, tensors, texts, reason):
    path = tmp_path / 'a.safetensors'
    save_weights(path, net)
    with safe_open(path, framework='pt') as file:
        described, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors(state)
    save_file(state, path, described | texts)
    with pytest.raises(WeightsError, match=reason) as caught:
        load_weights(path)
    assert str(caught.value).startswith(f'{path}: the parts do not belong together')
    assert '\n' not in str(caught.value)


def test_a_model_that_the_package_lacks_is_named():
    with pytest.raises(WeightsError, match="'unsam_xxl' is not among the models of this installation"):
        packaged_weights('unsam_xxl')


def test_a_training_checkpoint_is_exported(net, tmp_path, capsys):
    state = {f'net.{name}': values for name, values in net.state_dict().items()}
    torch.save({'state_dict': state}, tmp_path / 'latest.pth')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TOOLS))
        tool = runpy.run_path(str(TOOLS / 'export_regions.py'))
    arguments = [str(tmp_path / 'latest.pth'), str(tmp_path / 'b.safetensors'), '--n-tokens', '80', '--note', 'seed=1']
    tool['export'](tool['parse_args'](arguments))
    assert 'b.safetensors' in capsys.readouterr().out
    trained = load_weights(tmp_path / 'b.safetensors')
    assert (trained.n_tokens, trained.notes) == (80, {'seed': '1'})
    assert torch.equal(trained.net.pair.weight, net.pair.weight.half().float())


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({'state_dict': {'backbone.weight': torch.zeros(1)}}, 'contains no region model'),
        ({'state_dict': {'net.pair.weight': torch.zeros(3, 27)}}, 'another version'),
    ],
)
def test_checkpoints_of_other_models_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(WeightsError, match=message):
        net_of_checkpoint(tmp_path / 'a.pth')


def test_unreadable_checkpoints_are_refused(tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'nothing')
    with pytest.raises(WeightsError, match='cannot be read'):
        net_of_checkpoint(tmp_path / 'a.pth')
    with pytest.raises(WeightsError, match='no such checkpoint'):
        net_of_checkpoint(tmp_path / 'b.pth')


def test_the_arguments_are_derived_from_the_weights(tmp_path):
    net = RegionNet(
        width=24, heads=3, encoder_layers=2, decoder_layers=1, prompt_channels=5, feature_channels=7, trees=2
    )
    save_weights(tmp_path / 'a.safetensors', net)
    loaded = load_weights(tmp_path / 'a.safetensors').net
    assert [layer.heads for layer in loaded.encoder] == [3, 3]
    assert (loaded.trees, loaded.feature_channels) == (2, 7)
