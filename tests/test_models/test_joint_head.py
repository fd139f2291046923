"""One head for whole-image masks and prompts does what the two heads do, and computes what they share once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.runner.checkpoint import load_state_dict
from mmengine.structures import InstanceData
from torch import nn

from tests.test_models.descent import fall_in_proportion
from unsam_mm.errors import UnSAMError, WeightsError
from unsam_mm.models.joint_head import UnSAMJointHead

CONFIG = Path(__file__).parents[2] / 'configs' / '_base_' / 'models' / 'unsam_swint_joint.py'
HEIGHT, WIDTH, CHANNELS = 96, 128, 128
TASKS = ('whole_image', 'prompts')


@pytest.fixture
def configs(model_config) -> dict[str, ConfigDict]:
    """Configs of `UnSAMHead`, of `UnSAMPromptHead`, and of both on the pixel decoder of the former."""
    common = {'train_cfg': {**model_config.train_cfg, 'prompts_per_image': 12}, 'test_cfg': model_config.test_cfg}
    whole_image = model_config.mask_head
    widths = {'in_channels': whole_image.in_channels, 'feat_channels': CHANNELS, 'out_channels': CHANNELS}
    pixel_decoder = dict(whole_image.pixel_decoder, **widths)
    prompts = {
        'type': 'UnSAMPromptHead',
        'feat_channels': CHANNELS,
        'decoder': {'num_layers': 2, 'num_levels': 3, 'feedforward_channels': 64},
    }
    both = {
        'type': 'UnSAMJointHead',
        'pixel_decoder': pixel_decoder,
        'whole_image': {name: value for name, value in whole_image.items() if name != 'pixel_decoder'},
        'prompts': prompts,
    }
    return {
        'whole_image': ConfigDict(whole_image, **common),
        'prompts': ConfigDict(prompts, pixel_decoder=pixel_decoder, **common),
        'both': ConfigDict(both, **common),
    }


@pytest.fixture
def joint(configs) -> UnSAMJointHead:
    return built(configs['both'])


@pytest.fixture
def levels() -> list[torch.Tensor]:
    """What a backbone makes of two images."""
    return [torch.randn(2, CHANNELS, HEIGHT // stride, WIDTH // stride) for stride in (4, 8, 16, 32)]


@pytest.fixture
def samples(make_sample) -> list[DetDataSample]:
    """Two images with two objects each; the second has two clicks."""
    masks = np.zeros((2, HEIGHT, WIDTH), bool)
    masks[0, 10:86, 8:60] = masks[1, 20:70, 75:120] = True
    samples = [make_sample(masks) for _ in range(2)]
    for sample in samples:
        sample.set_metainfo({'batch_input_shape': (HEIGHT, WIDTH)})
    samples[1].prompts = InstanceData(points=np.array([[20.5, 40.5], [90.5, 50.5]]))
    return samples


def built(config: ConfigDict) -> nn.Module:
    head = MODELS.build(config)
    head.init_weights()
    return head


def calls_of(module: nn.Module) -> list:
    """Gets an entry with each call of the module."""
    calls = []
    module.register_forward_hook(lambda *unused: calls.append(unused))
    return calls


def test_training_and_prediction_run_the_pixel_decoder_once(joint, levels, samples):
    calls = calls_of(joint.pixel_decoder)
    joint.loss(levels, samples)
    assert len(calls) == 1
    with torch.no_grad():
        joint.eval().predict(levels, samples)
    assert len(calls) == 2


def test_the_losses_are_those_of_both_heads_under_their_names(configs, joint, levels, samples):
    expected = {f'{task}.{name}' for task in TASKS for name in built(configs[task]).loss(levels, samples)}
    losses = joint.loss(levels, samples)
    assert losses.keys() == expected
    assert all(loss > 0 for loss in losses.values())


def test_each_task_has_a_weight(configs, joint, levels, samples):
    weighted = built(ConfigDict(configs['both'], whole_image_weight=0.5, prompts_weight=3.0))
    weighted.load_state_dict(joint.state_dict())
    found = []
    for head in (joint.eval(), weighted.eval()):  # no dropout
        torch.manual_seed(1)  # of the points
        found.append(head.loss(levels, samples))
    for name, loss in found[0].items():
        factor = 0.5 if name.startswith('whole_image.') else 3.0
        torch.testing.assert_close(found[1][name], factor * loss)


def test_both_tasks_teach_the_pixel_decoder_and_their_own_weights(joint, levels, samples):
    losses = joint.loss(levels, samples)
    for task, other in (TASKS, TASKS[::-1]):
        joint.zero_grad()
        sum(loss for name, loss in losses.items() if name.startswith(f'{task}.')).backward(retain_graph=True)
        learning = {name.partition('.')[0] for name, weight in joint.named_parameters() if weight.grad is not None}
        assert learning == {'pixel_decoder', task}, f'{other} has none'


def test_every_weight_has_a_gradient_even_if_an_image_has_no_masks(joint, levels, make_sample):
    nothing = make_sample(np.zeros((0, HEIGHT, WIDTH)))
    sum(joint.loss(levels, [nothing, nothing]).values()).backward()
    assert not [name for name, weight in joint.named_parameters() if weight.grad is None]


@pytest.mark.parametrize('task', TASKS)
def test_a_checkpoint_of_one_head_fills_its_part_and_gives_the_same_answers(configs, joint, levels, samples, task):
    """On MMEngine's way, with everything else left as it was."""
    alone = built(configs[task]).eval()
    before = {name: value.clone() for name, value in joint.state_dict().items()}
    load_state_dict(joint, alone.state_dict(), strict=False)
    other = TASKS[1 - TASKS.index(task)]
    after = joint.state_dict()
    changed = {name.partition('.')[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {'pixel_decoder', task}, f'{other} stays'
    with torch.no_grad():
        if task == 'whole_image':
            expected, found = alone.predict(levels, samples), joint.eval().predict(levels, samples)
        else:
            expected = alone.predict([level[1:] for level in levels], samples[1:])
            joint.eval().predict(levels, samples)
            found = [samples[1].pred_prompts]
    assert len(expected) == len(found)
    for one, same in zip(expected, found, strict=True):
        torch.testing.assert_close(same.scores, one.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(same.bboxes, one.bboxes, rtol=1e-3, atol=1e-2)
        assert len(same.masks) == len(one.masks)


def test_only_images_with_prompts_have_answers(joint, levels, samples):
    with torch.no_grad():
        found = joint.eval().predict(levels, samples)
    assert len(found) == 2
    assert all(len(instances) > 0 for instances in found)
    assert 'pred_prompts' not in samples[0]
    assert samples[1].pred_prompts.scores.shape == (2, 6)


def test_queries_read_the_finest_levels_and_tokens_all_of_them(configs, levels, samples):
    config = configs['both']
    config.pixel_decoder = {
        'type': 'UnSAMPixelDecoder',  # four levels
        'in_channels': [CHANNELS] * 4,
        'feat_channels': CHANNELS,
        'positional_encoding': {'num_feats': CHANNELS // 2, 'normalize': True},
        'encoder': {
            'num_layers': 1,
            'layer_cfg': {
                'self_attn_cfg': {'embed_dims': CHANNELS, 'num_levels': 4, 'batch_first': True},
                'ffn_cfg': {'embed_dims': CHANNELS, 'feedforward_channels': 64},
            },
        },
    }
    config.prompts.decoder.num_levels = 4
    head = built(config).eval()
    read = []
    head.whole_image.pixel_decoder.register_forward_hook(lambda module, given, pixels: read.append(pixels))
    with torch.no_grad():
        head.predict(levels, samples)
        sizes_hw = head.prompts.embed(head.pixel_decoder(levels)).sizes_hw
    assert [tuple(memory.shape[2:]) for memory in read[0][1]] == [(3, 4), (6, 8), (12, 16)]
    assert sizes_hw == [(2, 2), (3, 4), (6, 8), (12, 16)]


def test_a_negative_weight_is_refused(configs):
    with pytest.raises(UnSAMError, match=r'prompts_weight must not be negative, got -1'):
        MODELS.build(ConfigDict(configs['both'], prompts_weight=-1))


def test_a_detector_takes_a_part_of_its_weights_only_where_that_is_said(configs, model_config):
    def detector(mask_head: ConfigDict, **settings: bool) -> nn.Module:
        own = {name: value for name, value in mask_head.items() if name not in ('train_cfg', 'test_cfg')}
        torch.manual_seed(0)  # the same frozen ViT
        config = ConfigDict(model_config, mask_head=own, train_cfg=mask_head.train_cfg, **settings)
        return MODELS.build(config)

    alone = detector(configs['prompts']).state_dict()
    with pytest.raises(WeightsError, match=r'set model\.partial_checkpoint=True to initialise the rest at random'):
        load_state_dict(detector(configs['both']), dict(alone))
    joint = detector(configs['both'], partial_checkpoint=True)
    load_state_dict(joint, dict(alone))
    name = 'mask_tokens.weight'
    assert torch.equal(joint.state_dict()[f'mask_head.prompts.{name}'], alone[f'mask_head.{name}'])


@pytest.fixture
def small_detector() -> nn.Module:
    """The shipped config with a Swin of four narrow blocks, two layers of each decoder, and 20 queries."""
    config = Config.fromfile(CONFIG)
    attention = {'embed_dims': 64}
    narrow = {
        'feat_channels': 64,
        'positional_encoding.num_feats': 32,
        'encoder.num_layers': 1,
        'encoder.layer_cfg.self_attn_cfg': attention,
        'encoder.layer_cfg.ffn_cfg': {'embed_dims': 64, 'feedforward_channels': 64},
        'in_channels': [24, 48, 96, 192],
    }
    queries = {
        'feat_channels': 64,
        'out_channels': 64,
        'in_channels': [24, 48, 96, 192],
        'num_queries': 20,
        'positional_encoding.num_feats': 32,
        'transformer_decoder.num_layers': 3,
        'transformer_decoder.layer_cfg': {'self_attn_cfg': attention, 'cross_attn_cfg': attention},
        'transformer_decoder.layer_cfg.ffn_cfg': {'embed_dims': 64, 'feedforward_channels': 64},
    }
    tokens = {'feat_channels': 64, 'decoder.num_layers': 2, 'decoder.feedforward_channels': 64}
    swin = {'embed_dims': 24, 'depths': (1, 1, 1, 1), 'num_heads': (1, 2, 4, 8)}
    parts = {'pixel_decoder': narrow, 'whole_image': queries, 'prompts': tokens}
    for part, settings in parts.items():
        config.merge_from_dict({f'model.mask_head.{part}.{name}': value for name, value in settings.items()})
    # Points are drawn alike whatever the logits are, and no answer is corrected: a step changes the weights alone.
    sampling = {'num_points': 256, 'oversample_ratio': 1.0, 'importance_sample_ratio': 0.0}
    drawn = {'prompts_per_image': 12, 'correction_prob': 0.0}
    config.merge_from_dict({'model.backbone': swin, 'model.train_cfg': sampling | drawn})
    config.merge_from_dict({'model.test_cfg': {'max_per_image': 20, 'mask_format': 'bitmap'}})
    model = MODELS.build(config.model)
    model.init_weights()
    return model


def test_the_loss_falls_as_its_gradient_says(small_detector, photo, make_sample):
    masks = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    masks[0, 10:86, 8:60] = masks[1, 20:70, 75:120] = 1
    small_detector.eval()

    def loss() -> torch.Tensor:
        torch.manual_seed(1)  # of prompts and points
        batch = {'inputs': [photo], 'data_samples': [make_sample(masks)]}
        return sum(small_detector(**small_detector.data_preprocessor(batch, training=True), mode='loss').values())

    assert 0.4 < fall_in_proportion(loss, small_detector.parameters()) < 2


@torch.no_grad()
def test_one_image_is_answered_as_a_whole_and_by_clicks(small_detector, photo, make_sample):
    small_detector.eval()
    sample = make_sample(np.zeros((0, HEIGHT, WIDTH), np.uint8))
    sample.prompts = InstanceData(points=np.array([[12.0, 15], [100, 40]]))
    found = small_detector.test_step({'inputs': [photo], 'data_samples': [sample]})[0]
    assert found.pred_instances.masks.shape[1:] == (HEIGHT, WIDTH)
    assert len(found.pred_instances) > 0
    assert found.pred_prompts.masks.shape == (2, 6, HEIGHT, WIDTH)


def test_losses_in_bfloat16_are_near_those_in_float32(joint, levels, samples):
    joint.eval()  # no dropout
    found = []
    for precise in (True, False):
        torch.manual_seed(1)  # of the points
        with torch.autocast('cpu', torch.bfloat16, enabled=not precise):
            found.append(sum(joint.loss(levels, samples).values()).item())
    assert found[1] == pytest.approx(found[0], rel=0.02)
