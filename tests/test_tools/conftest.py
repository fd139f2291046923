"""A config with a model small enough to train in a second, and the scripts of `tools` to run it with."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests import warm_python

TOOLS = Path(__file__).resolve().parents[2] / 'tools'

# A linear layer on three numbers stands in for a detector, which would take a minute to build.
CONFIG = """
custom_imports = dict(imports=['tiny_model'])
default_scope = 'mmengine'
data_root = 'images'
loader = dict(batch_size=2, num_workers=0, dataset=dict(type='TinyImages'))
model = dict(type='TinyModel')
train_dataloader = dict(sampler=dict(type='InfiniteSampler'), **loader)
test_dataloader = dict(sampler=dict(type='DefaultSampler', shuffle=False), **loader)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4)
test_cfg = dict()
test_evaluator = dict(type='TinyError')
default_hooks = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2))
"""

MODULE = """
from pathlib import Path

import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from unsam_mm.errors import StoreError


@DATASETS.register_module()
class TinyImages(torch.utils.data.Dataset):
    metainfo = dict(classes=('object',))

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.full((3,), float(index)))


@MODELS.register_module()
class TinyModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 1)

    def forward(self, inputs, mode='tensor'):
        outputs = self.linear(torch.stack(list(inputs)))
        return dict(loss=outputs.square().mean()) if mode == 'loss' else list(outputs)


@METRICS.register_module()
class TinyError(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [float(sample.abs()) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(error=sum(results) / len(results))


@DATASETS.register_module()
class TinyFolder(TinyImages):
    def __init__(self, data_root):
        if not Path(data_root).is_dir():
            raise StoreError(f'{data_root}: no such folder')
        self.metainfo = dict(classes=('object',), recall=float(Path(data_root, 'recall.txt').read_text()))


@DATASETS.register_module()
class TinyFolderOfAnotherName(TinyFolder):
    pass


@DATASETS.register_module()
class TinyBrokenImages(TinyImages):
    def __getitem__(self, index):
        raise StoreError(f'{index}.png: broken; mend it')


@METRICS.register_module()
class TinyRecall(TinyError):
    def compute_metrics(self, results):
        return {'unsam/AR@1000': self.dataset_meta.get('recall', 0.8)}
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config tiny.py."""
    folder = tmp_path_factory.mktemp('tools')
    (folder / 'tiny.py').write_text(CONFIG, encoding='utf-8')
    (folder / 'tiny_model.py').write_text(MODULE, encoding='utf-8')
    return folder


@pytest.fixture(scope='module')
def trained(folder: Path) -> Path:
    """The work dir of a training that `folder` was the current folder of."""
    succeed('train.py', 'tiny.py', cwd=folder)
    return folder / 'work_dirs' / 'tiny'


@pytest.fixture
def scripts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """The two scripts as modules, with `folder` as the current folder."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.delitem(sys.modules, 'test', raising=False)  # Python's own test suite has that name
    monkeypatch.setenv('LOCAL_RANK', '0')
    modules = importlib.import_module('train'), importlib.import_module('test')
    for name in ('train', 'test'):
        monkeypatch.delitem(sys.modules, name)
    return modules


def start(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command of this Python in another folder than the checkout, as `mim` does."""
    return warm_python.run(*command, cwd=cwd, env=environment(cwd))


def environment(*folders: Path) -> dict[str, str]:
    """Variables of a command that finds the modules in these folders, and the checkout's."""
    return os.environ | {'PYTHONPATH': os.pathsep.join(map(str, [TOOLS.parent, *folders]))}


def succeed(script: str, *arguments: object, cwd: Path) -> str:
    """All that the script prints."""
    result = start(TOOLS / script, *arguments, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr
