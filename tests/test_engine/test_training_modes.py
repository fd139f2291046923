"""Ways to train a model that does not fit, or faster: mixed precision, gradient checkpointing, several processes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from tests.test_engine.runs import Training, equal, losses, weights
from unsam_mm.engine import join_cpu_processes, resolve_data_root
from unsam_mm.engine.train_loop import seed_generators
from unsam_mm.errors import UnSAMError


@pytest.fixture
def config(tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The config of `tiny_data`, which is the current folder."""
    monkeypatch.chdir(tiny_data)
    config = Config.fromfile('tiny.py')
    init_default_scope(config.default_scope)
    resolve_data_root(config)
    return config


def train_one_step(config: Config, changes: Callable[[torch.nn.Module], None] = lambda model: None) -> dict:
    """Gradients of the first step of a model that is built from seed 0, and its loss."""
    from mmdet.registry import DATASETS, MODELS
    from mmengine.dataset import pseudo_collate

    seed_generators(0)
    model = MODELS.build(config.model)
    model.init_weights()
    changes(model)
    model.train()
    wrapper = build_optim_wrapper(model, config.optim_wrapper)
    wrapper.zero_grad = lambda: None  # after the step, gradients would be gone
    dataset = DATASETS.build(config.train_dataloader.dataset)
    batch = pseudo_collate([dataset[0], dataset[1]])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    logged = model.train_step(batch, wrapper)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {'loss': logged['loss'].item(), 'gradients': gradients, 'moved': moved}


def trained_vit(config: Config, with_cp: bool) -> Config:
    config.model.backbone.update(frozen=False, with_cp=with_cp)
    return config


def resnet(config: Config, with_cp: bool) -> Config:
    channels = [64, 128, 256, 512]
    config.model.backbone = Config({'type': 'ResNet', 'depth': 18, 'with_cp': with_cp, 'init_cfg': None})._cfg_dict
    config.model.mask_head.in_channels = channels
    return config


class TestGradientCheckpointing:
    @pytest.mark.parametrize('build', [trained_vit, resnet])
    def test_gives_the_same_gradients(self, config: Config, build: Callable[[Config, bool], Config]):
        plain, checkpointed = (train_one_step(build(config.copy(), with_cp)) for with_cp in (False, True))
        assert checkpointed['loss'] == pytest.approx(plain['loss'], rel=1e-5)
        assert checkpointed['gradients'].keys() == plain['gradients'].keys() != set()
        for name, gradient in plain['gradients'].items():
            torch.testing.assert_close(checkpointed['gradients'][name], gradient, rtol=1e-3, atol=1e-5)

    def test_runs_the_layers_of_the_vit_twice(self, config: Config):
        def count(with_cp: bool) -> int:
            calls = []
            hook = lambda *_: calls.append(1)  # noqa: E731
            train_one_step(
                trained_vit(config.copy(), with_cp),
                lambda model: model.backbone.vit.encoder.layer[0].mlp.register_forward_hook(hook),
            )
            return len(calls)

        assert (count(False), count(True)) == (1, 2)

    def test_of_a_frozen_vit_is_refused(self, config: Config):
        config.model.backbone.with_cp = True
        with pytest.raises(UnSAMError, match='with_cp=True needs frozen=False'):
            train_one_step(config)


class TestMixedPrecision:
    def test_step_in_bfloat16_has_the_loss_of_a_step_in_float32_but_for_rounding(self, config: Config, monkeypatch):
        plain = train_one_step(config)
        # MMEngine offers the wrapper to accelerators only, though its casts work on CPUs.
        monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
        monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.GradScaler', NoScaler)
        config.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')
        mixed = train_one_step(config)
        assert mixed['loss'] != plain['loss']
        assert mixed['loss'] == pytest.approx(plain['loss'], rel=0.05)
        assert mixed['moved'] == plain['moved']
        assert all(gradient.isfinite().all() for gradient in mixed['gradients'].values())


class NoScaler(torch.amp.GradScaler):
    """bfloat16 has the range of float32, so gradients need no scale; and a CPU has no float16 to need one."""

    def __init__(self) -> None:
        super().__init__('cpu', enabled=False)


def test_every_parameter_gets_a_gradient_also_from_images_without_masks(config: Config):
    """Otherwise distributed training would wait for it, or need find_unused_parameters."""
    config.train_dataloader.dataset.pipeline[1].min_area_px = 10**6
    from mmdet.registry import MODELS

    for frozen in (True, False):
        config.model.backbone.frozen = frozen
        trained = train_one_step(config)
        wanted = {name for name, parameter in MODELS.build(config.model).named_parameters() if parameter.requires_grad}
        assert trained['gradients'].keys() == wanted


# It forks for each of its processes, instead of starting Python, which would import all packages again.
TORCHRUN = (
    *('-m', 'torch.distributed.run', '--nproc_per_node=2', '--master_port=29617'),
    *('--run-path', '--start-method=fork'),
)
SCONTROL = '#!/bin/sh\n[ "$1 $2 $3" = "show hostnames localhost" ] && echo localhost\n'
ROUND = """
_base_ = './tiny.py'
train_cfg = dict(max_iters=4)
custom_hooks = [*_base_.custom_hooks, dict(type='UnSAMSelfTrainingHook', at_iters=[2], min_score=0.2)]
"""


@pytest.fixture(scope='module')
def together(tiny_data: Path, training: Training) -> Path:
    """Work dir of a training with a round of self-training that torchrun started twice."""
    (tiny_data / 'round.py').write_text(ROUND, encoding='utf-8')
    options = ('--launcher', 'pytorch')
    training.run(tiny_data / 'together', *options, config='round.py', launcher=TORCHRUN)
    return tiny_data / 'together'


@pytest.mark.slow
class TestTwoProcesses:
    def test_one_writes_the_log_and_the_checkpoints(self, together: Path):
        assert list(losses(together)) == [1, 2, 3, 4]
        assert len(list(together.glob('*/vis_data/scalars.json'))) == 1
        assert {path.name for path in together.glob('*.pth')} >= {'iter_2.pth', 'iter_4.pth', 'latest.pth'}

    def test_share_the_images_of_a_round_of_self_training(self, together: Path, tiny_data: Path):
        labels = {path.name for path in (tiny_data / 'labels').glob('*.png.json')}
        assert {path.name for path in (together / 'self_training' / 'round_1').glob('*.png.json')} == labels

    def test_started_by_slurm_end_with_the_same_weights(self, together: Path, tiny_data: Path, training: Training):
        """Two processes with the variables that srun sets, and a scontrol that knows one host."""
        scontrol = tiny_data / 'bin' / 'scontrol'
        scontrol.parent.mkdir()
        scontrol.write_text(SCONTROL)
        scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
        slurm = {'SLURM_NTASKS': '2', 'SLURM_NODELIST': 'localhost', 'MASTER_PORT': '29618'}
        slurm['PATH'] = f'{scontrol.parent}{os.pathsep}{os.environ["PATH"]}'
        work_dir, options = tiny_data / 'slurm', ('--launcher', 'slurm')
        processes = [
            training.start(
                work_dir, *options, config='round.py', SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), **slurm
            )
            for rank in (0, 1)
        ]
        printed = work_dir.parent / 'slurm.log'
        assert [process.wait(timeout=400) for process in processes] == [0, 0], printed.read_text()[-4000:]
        assert equal(weights(work_dir / 'iter_4.pth'), weights(together / 'iter_4.pth'))
        assert losses(work_dir) == losses(together)


class TestLaunchers:
    @pytest.mark.parametrize(
        ('launcher', 'message'),
        [
            ('pytorch', 'RANK, WORLD_SIZE, .* is not set; start the processes with torchrun'),
            ('slurm', 'SLURM_PROCID, .* is not set; start the processes with srun'),
            ('mpi', 'needs a CUDA device; on CPUs use one of pytorch, slurm'),
        ],
    )
    def test_that_did_not_start_this_process_is_one_line(self, launcher: str, message: str, monkeypatch):
        for name in ('RANK', 'WORLD_SIZE', 'SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(UnSAMError, match=message):
            join_cpu_processes(Config({'launcher': launcher}))
