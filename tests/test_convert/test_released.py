"""Released checkpoints are told apart by their names, renamed without loss, and refused in one line."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

import unsam_mm.models  # noqa: F401  (registers the models)
from tests import golden
from tests.test_published.test_cutler import official_shapes as cutler_shapes
from unsam_mm import weights
from unsam_mm.__main__ import main
from unsam_mm.convert.names import convert_whole_image
from unsam_mm.convert.released import convert_checkpoint
from unsam_mm.errors import StoreError, UnSAMError, WeightsError

CONFIG = Path(__file__).parents[2] / 'configs' / '_base_' / 'models' / 'unsam_r50.py'
CLASS_EMBED = 'sem_seg_head.predictor.class_embed.weight'


def build(config: dict) -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(config)


def tiny(names: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The names of a checkpoint, each with two numbers of its own: files of a few kB."""
    return {name: torch.tensor([[index], [-index]]) for index, name in enumerate(names)}


def torchvision_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a ResNet-50 in torchvision."""

    def norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for kind in ('weight', 'bias', 'running_mean', 'running_var'):
            yield f'{name}.{kind}', (channels,)
        yield f'{name}.num_batches_tracked', ()

    yield 'conv1.weight', (64, 3, 7, 7)
    yield from norm('bn1', 64)
    channels = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(blocks):
            name = f'layer{stage}.{block}'
            for number, shape in enumerate(
                ((width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)), start=1
            ):
                yield f'{name}.conv{number}.weight', shape
                yield from norm(f'{name}.bn{number}', shape[0])
            if block == 0:
                yield f'{name}.downsample.0.weight', (4 * width, channels, 1, 1)
                yield from norm(f'{name}.downsample.1', 4 * width)
            channels = 4 * width


def torchvision_levels(state: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """What torchvision's forward computes, written with its names."""

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.batch_norm(
            x, *(state[f'{name}.{kind}'] for kind in ('running_mean', 'running_var', 'weight', 'bias'))
        )

    x = norm('bn1', functional.conv2d(x, state['conv1.weight'], stride=2, padding=3)).relu()
    x = functional.max_pool2d(x, 3, stride=2, padding=1)
    levels = []
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name, stride = f'layer{stage}.{block}', 2 if block == 0 and stage > 1 else 1
            inner = norm(f'{name}.bn1', functional.conv2d(x, state[f'{name}.conv1.weight'])).relu()
            inner = functional.conv2d(inner, state[f'{name}.conv2.weight'], stride=stride, padding=1)
            inner = functional.conv2d(norm(f'{name}.bn2', inner).relu(), state[f'{name}.conv3.weight'])
            if block == 0:
                x = functional.conv2d(x, state[f'{name}.downsample.0.weight'], stride=stride)
                x = norm(f'{name}.downsample.1', x)
            x = (norm(f'{name}.bn3', inner) + x).relu()
        levels.append(x)
    return levels


def test_conversion_uses_every_tensor_once_and_fills_the_model():
    shapes = golden.official_shapes(num_queries=30)
    official = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    config = Config.fromfile(CONFIG).model
    config.mask_head.num_queries = 30
    converted = convert_whole_image(official, Path('released.pth'))
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: tensor.shape for name, tensor in build(config).state_dict().items()
    }
    counters = sum(name.endswith('num_batches_tracked') for name in converted)
    assert len(converted) == len(official) - 1 + counters  # the loss has no buffer here


def test_names_of_the_first_version_are_understood():
    official = tiny(golden.official_shapes())
    legacy = {
        name.replace('.pixel_decoder.', '.', 1).replace('query_feat', 'static_query'): tensor
        for name, tensor in official.items()
    }
    assert legacy.keys() != official.keys()
    new, old = (convert_whole_image(state, Path('released.pth')) for state in (official, legacy))
    assert new.keys() == old.keys()
    assert all(torch.equal(new[name], old[name]) for name in new)


def test_a_backbone_starts_from_dinos_resnet50_as_mmengine_does_it(tmp_path):
    official = {
        name: torch.zeros(shape, dtype=torch.long)
        if shape == ()
        else torch.from_numpy(golden.golden_tensor(name, shape))
        for name, shape in torchvision_shapes()
    }
    classifier = {'fc.weight': torch.ones(1000, 1), 'fc.bias': torch.ones(1000)}
    torch.save(official | classifier, tmp_path / 'dino_resnet50_pretrain.pth')
    convert_checkpoint(tmp_path / 'dino_resnet50_pretrain.pth', tmp_path / 'dino.pth')
    config = Config.fromfile(CONFIG).model.backbone
    config.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'dino.pth'))
    backbone = build(config)
    backbone.init_weights()
    backbone.eval()
    for path in tmp_path.glob('*.pth'):
        path.unlink()  # 90 MB each
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for found, expected in zip(backbone(x), torchvision_levels(official, x), strict=True):
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_cutlers_detector_becomes_safetensors(tmp_path):
    official = tiny(cutler_shapes())
    torch.save({'model': official}, tmp_path / 'cutler.pth')
    convert_checkpoint(tmp_path / 'cutler.pth', tmp_path / 'out.safetensors')
    found = load_file(tmp_path / 'out.safetensors')
    assert torch.equal(found['backbone.conv1.weight'], official['backbone.bottom_up.stem.conv1.weight'])
    assert torch.equal(found['rpn_head.rpn_cls.bias'], official['proposal_generator.rpn_head.objectness_logits.bias'])


@pytest.mark.parametrize('wrap', [lambda state: state, lambda state: {'model': state, 'optimizer': {'lr': [0.1]}}])
def test_the_state_of_a_training_is_passed_over(tmp_path, wrap):
    torch.save(wrap(tiny(golden.official_shapes())), tmp_path / 'released.pth')
    convert_checkpoint(tmp_path / 'released.pth', tmp_path / 'out.pth')
    content = torch.load(tmp_path / 'out.pth', weights_only=True)
    assert content.keys() == {'state_dict', 'meta'}
    assert 'mask_head.cls_embed.weight' in content['state_dict']


def without(name: str) -> dict[str, torch.Tensor]:
    state = tiny(golden.official_shapes())
    del state[name]
    return state


@pytest.mark.parametrize(
    ('state', 'message'),
    [
        (without('backbone.res3.0.shortcut.weight'), r"lacks 'backbone\.res3\.0\.shortcut\.weight' \(1 such keys\)"),
        ({'sem_seg_head.predictor.x': torch.ones(1)}, r"\(557 such keys\), so it is not UnSAM's whole-image"),
        (tiny(golden.official_shapes()) | {'backbone.layers.0.x': torch.ones(1)}, r"unknown 'backbone\.layers\.0\.x'"),
        (tiny(golden.official_shapes()) | {CLASS_EMBED: torch.ones(81, 1)}, 'of 80 classes; UnSAM has one'),
        ({'model.sem_seg_head.predictor.x': torch.ones(1)}, r"first name, 'model\.sem_seg.*known are UnSAM's whole"),
        ({'mask_head.cls_embed.weight': torch.ones(1)}, r"has MMDetection's names already; use it as it is"),
        ({}, 'contains no tensors by name'),
        ({'lr': 0.1}, 'contains no tensors by name'),
        ([torch.ones(1)], 'contains no tensors by name'),
    ],
)
def test_another_model_is_refused_and_nothing_is_written(tmp_path, state, message):
    torch.save(state, tmp_path / 'other.pth')
    with pytest.raises(WeightsError, match=rf'other\.pth: .*{message}'):
        convert_checkpoint(tmp_path / 'other.pth', tmp_path / 'out.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['other.pth']


class _RunsCode:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('name', ['DINO_RN50_d2_format.pkl', 'released.pth'])
def test_a_pickle_is_refused_without_running_what_it_holds(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps({'model': _RunsCode(tmp_path / 'harm')}, protocol=2))
    remedy = 'dino_resnet50_pretrain.pth' if name.endswith('.pkl') else "save only its entry 'model'"
    with pytest.raises(WeightsError, match=remedy):
        convert_checkpoint(tmp_path / name, tmp_path / 'out.pth')
    assert not (tmp_path / 'harm').exists()


@pytest.mark.parametrize('content', [b'', b'<html>', b'PK\x03\x04', b'PK\x03\x04' + bytes(5000)])
@pytest.mark.parametrize('name', ['broken.pth', 'broken.safetensors'])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf'{name}: cannot be read as a checkpoint of tensors; download it again'):
        convert_checkpoint(tmp_path / name, tmp_path / 'out.pth')


@pytest.fixture
def released(tmp_path):
    torch.save(tiny(golden.official_shapes()), tmp_path / 'released.pth')
    return tmp_path / 'released.pth'


def test_a_file_that_was_cut_short_is_named(released):
    released.write_bytes(released.read_bytes()[:-2000])
    with pytest.raises(WeightsError, match=r'released\.pth: cannot be read'):
        convert_checkpoint(released, released.with_name('out.pth'))


def test_safetensors_are_read_too(released):
    save_file(tiny(golden.official_shapes()), released.with_suffix('.safetensors'))
    for name in ('released.pth', 'released.safetensors'):
        convert_checkpoint(released.with_name(name), released.with_name(f'{name}.pth'))
    first, second = (torch.load(released.with_name(f'released{s}.pth'))['state_dict'] for s in ('.pth', '.safetensors'))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_target_that_cannot_be_used_is_named(released):
    with pytest.raises(UnSAMError, match=r"out\.safetensors: a file of UnSAM's whole-image .* must end in \.pth"):
        convert_checkpoint(released, released.with_name('out.safetensors'))
    with pytest.raises(UnSAMError, match=r'released\.pth: is the checkpoint itself'):
        convert_checkpoint(released, released)
    with pytest.raises(StoreError, match='a file is where a folder is needed'):
        convert_checkpoint(released, released / 'out.pth')
    assert [path.name for path in released.parent.iterdir()] == ['released.pth']


def test_the_command_says_what_to_do_next(released, capsys):
    assert main(['convert', str(released), str(released.with_name('out.pth'))]) == 0
    assert f'--checkpoint {released.with_name("out.pth")}' in capsys.readouterr().out


def test_the_command_takes_a_name_whose_file_lies_in_the_cache(released, monkeypatch):
    monkeypatch.setenv('UNSAM_CACHE', str(released.parent))
    released.rename(released.with_name(weights.TABLE['unsam_r50_released'].sources[0].file_name))
    assert main(['convert', 'unsam_r50_released', str(released.with_name('out.pth'))]) == 0
    assert released.with_name('out.pth').is_file()


@pytest.mark.parametrize(
    ('checkpoint', 'message'),
    [
        ('none.pth', 'none.pth: no such file'),
        ('.', 'a folder, not a checkpoint'),
        ('unsam_plus_r50_released', 'has to be downloaded in a browser'),
    ],
)
def test_errors_of_the_command_are_one_line(tmp_path, monkeypatch, capsys, checkpoint, message):
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path))
    assert main(['convert', checkpoint, str(tmp_path / 'out.pth')]) == 1
    printed = capsys.readouterr().err.strip()
    assert printed.startswith('error: ')
    assert message in printed
    assert '\n' not in printed
