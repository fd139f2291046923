"""A training of the shipped small model on real images, cut down until an iteration takes a tenth of a second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data, segmentation

pytest.importorskip('mmdet')

from tests.test_engine.runs import ROOT, Training
from unsam_mm.mask_set import MaskSet
from unsam_mm.pseudo_masks.store import PseudoMaskStore

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


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images`, five crops of photographs, `labels`, regions of even colour, and the config tiny.py."""
    folder = tmp_path_factory.mktemp('tiny')
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


@pytest.fixture(scope='session')
def training(tiny_data: Path) -> Training:
    """Starts trainings in `tiny_data`."""
    return Training(tiny_data)
