"""A model small enough for a test: the shipped config with a random two-layer ViT and fewer, narrower queries."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

import unsam_mm.models  # noqa: F401  (registers the models)

MODEL_CONFIG = Path(__file__).parents[2] / 'configs' / '_base_' / 'models' / 'unsam_dinov2s.py'


@pytest.fixture(autouse=True)
def _mmdet_scope_and_seed():
    init_default_scope('mmdet')
    torch.manual_seed(0)


@pytest.fixture
def model_config() -> ConfigDict:
    """The `model` part of the shipped config, 20 queries, no downloaded weights."""
    config = Config.fromfile(MODEL_CONFIG)
    config.merge_from_dict(
        {
            'model.backbone.pretrained': False,
            'model.mask_head.num_queries': 20,
            'model.train_cfg.num_points': 256,
            'model.test_cfg.max_per_image': 20,
        }
    )
    return config.model


@pytest.fixture
def photo() -> torch.Tensor:
    """(3, 96, 128) uint8 BGR, as pipelines load it: not square, and not symmetric."""
    return torch.from_numpy(skimage.data.astronaut()[:192:2, 100:356:2, ::-1].copy()).permute(2, 0, 1)


@pytest.fixture
def make_sample():
    """Wraps (N, H, W) masks of an image as the data sample that the pipelines give."""

    def make(masks: np.ndarray, ori_shape: tuple[int, int] | None = None) -> DetDataSample:
        height, width = masks.shape[1:]
        sample = DetDataSample(metainfo={'img_shape': (height, width), 'ori_shape': ori_shape or (height, width)})
        sample.gt_instances = InstanceData(
            masks=BitmapMasks(masks.astype(np.uint8), height, width),
            labels=torch.zeros(len(masks), dtype=torch.long),
            bboxes=torch.zeros(len(masks), 4),
        )
        return sample

    return make
