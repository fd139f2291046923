"""The region model learns and predicts in MMEngine's runner, from tokens alone."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from tests.grid_tokens import GridTokenizer
from unsam_mm.datasets import UnSAMPackRegions
from unsam_mm.engine import resolve_data_root
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import decode_rles
from unsam_mm.student.store import RegionStore

pytestmark = pytest.mark.usefixtures('_unformatted_configs')

CONFIG = Path(__file__).parents[2] / 'configs' / 'unsam_s.py'


@pytest.fixture
def model():
    """A narrow net that proposes few masks."""
    config = Config.fromfile(CONFIG).model
    config.net.update(width=32, encoder_layers=1, decoder_layers=1)
    config.train_cfg.update(n_seeds=8)
    config.test_cfg.update(n_seeds=10, granularity_step=0.2, max_masks=12)
    return MODELS.build(config)


@pytest.fixture
def batch():
    """Two images of different size, packed for training and for testing."""

    def pack(test_mode):
        packed = []
        for number, image in enumerate((skimage.data.astronaut()[:96, :128], skimage.data.coffee()[:80, :60])):
            tokens, masks = GridTokenizer(side=5 + number).with_masks(image)
            results = {'region_tokens': tokens, 'token_masks': masks, 'img_id': number, 'ori_shape': tokens.size_hw}
            packed.append(UnSAMPackRegions(test_mode=test_mode)(results))
        return {name: [one[name] for one in packed] for name in ('inputs', 'data_samples')}

    return pack


def test_losses_are_finite_and_reach_every_weight(model, batch):
    losses = model(**model.data_preprocessor(batch(test_mode=False)), mode='loss')
    assert {'loss_mask', 'loss_dice', 'loss_score', 'iou'} <= losses.keys()
    total, log = model.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    assert 0 <= log['iou'] <= 1
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_the_overlap_with_the_targets_is_logged_and_is_no_loss(model, batch):
    _, log = model.parse_losses(model(**batch(test_mode=False), mode='loss'))
    assert log['loss'].item() == pytest.approx(sum(log[f'loss_{part}'].item() for part in ('mask', 'dice', 'score')))
    assert not log['iou'].requires_grad


def test_one_random_state_gives_one_loss(model, batch):
    losses = []
    for _ in range(2):
        torch.manual_seed(3)
        losses.append(model(**batch(test_mode=False), mode='loss')['loss_mask'].item())
    assert losses[0] == losses[1]


def test_predictions_are_distinct_masks_of_whole_tokens_at_the_size_of_each_image(model, batch):
    samples = model.test_step(batch(test_mode=True))
    assert [sample.ori_shape for sample in samples] == [(96, 128), (80, 60)]
    for sample in samples:
        found, labels = sample.pred_instances, sample.region_tokens.labels
        masks = decode_rles(found.masks, sample.ori_shape)
        assert 0 < len(found) <= 12
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        assert len(np.unique(masks.reshape(len(masks), -1), axis=0)) == len(masks)
        for mask, box in zip(masks, found.bboxes, strict=True):
            assert not np.intersect1d(labels[mask], labels[~mask]).size
            rows, columns = np.nonzero(mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_tokens_are_encoded_image_by_image(model, batch):
    encoded = model(batch(test_mode=True)['inputs'])
    assert [tuple(one.shape) for one in encoded] == [(25, 32), (36, 32)]


def test_an_unknown_mode_is_refused(model, batch):
    with pytest.raises(UnSAMError, match="mode must be one of .* got 'train'"):
        model(**batch(test_mode=True), mode='train')


def test_images_in_the_place_of_tokens_are_refused_with_the_remedy(model):
    with pytest.raises(UnSAMError, match='needs region tokens, got Tensor'):
        model.test_step({'inputs': [torch.zeros(3, 32, 32)], 'data_samples': []})


def test_a_checkpoint_holds_the_net_and_nothing_else(model):
    weights = model.state_dict()
    assert all(name.startswith('net.') for name in weights)
    assert sum(weight.numel() for weight in model.parameters()) == sum(weight.numel() for weight in weights.values())


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The shipped config on two folders of photographs, with tokens that need no ViT and a narrow net."""
    monkeypatch.setattr(RegionStore, 'tokenizer', lambda store: GridTokenizer())
    monkeypatch.setattr('unsam_mm.student.store.settings_signature', repr)
    roots = [tmp_path / 'a', tmp_path / 'b']
    for root, image in zip(roots, (skimage.data.astronaut(), skimage.data.chelsea()), strict=True):
        root.mkdir()
        for number in range(3):
            Image.fromarray(image[number * 40 : number * 40 + 90, 100:220]).save(root / f'{number}.png')
    config = Config.fromfile(CONFIG)
    config.merge_from_dict({'data_root': [str(root) for root in roots], 'train_cfg.max_iters': 4})
    config.merge_from_dict({'model.net.width': 32, 'model.test_cfg.n_seeds': 8, 'work_dir': str(tmp_path / 'out')})
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        loader.num_workers = 0
        loader.dataset.prepare_workers = 1
        loader.dataset.pipeline[0].store = str(tmp_path / 'store')
    config.experiment_name = tmp_path.name
    resolve_data_root(config)
    return config


@pytest.mark.slow
def test_the_shipped_config_trains_on_several_folders_and_is_tested(config):
    runner = Runner.from_cfg(config)
    before = {name: weight.detach().clone() for name, weight in runner.model.named_parameters()}
    runner.train()
    assert [name for name, weight in runner.model.named_parameters() if weight.equal(before[name])] == []
    assert 0 <= runner.test()['unsam/AR@1000'] <= 1
    assert {sample['img_root'] for sample in map(runner.train_loop.dataset.get_data_info, range(4))} == set(
        config.data_root
    )


@pytest.mark.slow
def test_the_learning_rate_decays_over_the_iterations_whatever_their_number(config):
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.param_scheduler = [schedule for schedule in config.param_scheduler if schedule.type != 'LinearLR']
    runner = Runner.from_cfg(config)
    runner.train()
    in_the_last_iteration = config.optim_wrapper.optimizer.lr * (1 + np.cos(np.pi * 3 / 4)) / 2
    assert runner.optim_wrapper.get_lr()['lr'][0] == pytest.approx(in_the_last_iteration)


@pytest.mark.slow
def test_a_resumed_training_ends_with_the_weights_of_one_that_was_never_stopped(config, tmp_path):
    config.val_dataloader = config.val_cfg = config.val_evaluator = None
    config.default_hooks.checkpoint.interval = 2
    whole = Runner.from_cfg(config)
    whole.train()
    config.merge_from_dict(
        {'load_from': f'{config.work_dir}/iter_2.pth', 'resume': True, 'work_dir': str(tmp_path / 'resumed')}
    )
    config.experiment_name += '_resumed'
    resumed = Runner.from_cfg(config)
    resumed.train()
    for name, weight in whole.model.state_dict().items():
        assert weight.equal(resumed.model.state_dict()[name]), name
