"""Trainings in processes of their own, killed or not, and what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from skimage import data, segmentation

from tests import warm_python
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.masks.mask_set import MaskSet

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / 'tools' / 'train.py'

CONFIG = f"""
_base_ = {str(ROOT / 'configs' / 'unsam.py')!r}
data_root = 'images'
train_pipeline = _base_.train_pipeline
train_pipeline[1].update(precomputed='labels', min_area_px=16, max_masks=10)
for step in train_pipeline[3:5]:
    step.update({{key: (64, 64) for key in ('scale', 'crop_size') if key in step}})
test_pipeline = _base_.test_pipeline
test_pipeline[1].update(scale=(64, 64))
del test_pipeline[2]
train_dataloader = dict(num_workers=2, persistent_workers=True, dataset=dict(split='all', pipeline=train_pipeline))
test_dataloader = dict(dataset=dict(split='all', pipeline=test_pipeline))
val_dataloader = val_cfg = val_evaluator = None
model = dict(
    backbone=dict(pretrained=False),
    mask_head=dict(num_queries=10, transformer_decoder=dict(num_layers=1), pixel_decoder=dict(encoder=dict(num_layers=1))),
    train_cfg=dict(num_points=64),
    test_cfg=dict(max_per_image=10),
)
train_cfg = dict(max_iters=6)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
log_processor = dict(window_size=1)
custom_hooks = [dict(type='UnSAMDataRootHook')]
"""

_LIMIT_S = 400.0


def write_tiny_data(folder: Path) -> Path:
    """Fills a folder with `images`, five crops of photographs, `labels`, regions of even colour, and the config tiny.py."""
    (folder / 'images').mkdir()
    store = PseudoMaskStore(folder / 'labels')
    photographs = {'astronaut': data.astronaut(), 'coffee': data.coffee(), 'chelsea': data.chelsea()}
    crops = {name: image[20:116, 60:156] for name, image in photographs.items()}
    crops |= {'rocket': data.rocket()[100:180, 280:376], 'cat': data.chelsea()[100:196, 200:280]}
    for name, image in crops.items():
        Image.fromarray(image).save(folder / 'images' / f'{name}.png')
        regions = segmentation.felzenszwalb(image, scale=200, min_size=100)
        masks = regions == np.unique(regions)[:, None, None]
        store.write(f'{name}.png', MaskSet.from_bitmaps(masks, np.linspace(0.9, 0.5, len(masks))))
    (folder / 'tiny.py').write_text(CONFIG, encoding='utf-8')
    return folder


class Training:
    """Runs tools/train.py in processes of its own, as users and schedulers do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(
        self, work_dir: Path, *options: str, config: str = 'tiny.py', launcher: tuple[str, ...] = (), **variables: str
    ) -> warm_python.Process | subprocess.Popen:
        """A training that goes on after this returns, with environment variables of its own."""
        command = [*launcher, str(TRAIN), config, '--work-dir', str(work_dir), *options]
        environment = os.environ | {'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'} | variables
        with (work_dir.parent / f'{work_dir.name}.log').open('a') as log:
            return warm_python.start(*command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def run(self, work_dir: Path, *options: str, **how: str | tuple[str, ...]) -> str:
        """A training that has to succeed; all that was printed in this work dir."""
        status = self.start(work_dir, *options, **how).wait(timeout=_LIMIT_S)
        printed = (work_dir.parent / f'{work_dir.name}.log').read_text()
        assert status == 0, printed[-4000:]
        return printed

    def run_until(self, condition: Callable[[], bool], work_dir: Path, *options: str, **how: str) -> None:
        """A training that is killed, without notice, as soon as the condition holds."""
        process = self.start(work_dir, *options, **how)
        deadline = time.monotonic() + _LIMIT_S
        while not condition():
            assert process.poll() is None, (work_dir.parent / f'{work_dir.name}.log').read_text()[-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.wait()


def losses(work_dir: Path) -> dict[int, float]:
    """Loss by iteration, from the logs of all runs in a work dir; later runs win."""
    rows = [
        json.loads(line)
        for log in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in log.read_text().splitlines()
    ]
    return {row['step']: row['loss'] for row in rows if 'loss' in row}


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights in a checkpoint."""
    return torch.load(path, weights_only=False)['state_dict']


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two models are the same to the last bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
