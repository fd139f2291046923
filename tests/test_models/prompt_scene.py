"""The promptable model small enough for a test, and photographs with nested masks for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.structures import InstanceData
from skimage import data, segmentation

import unsam_mm.models  # noqa: F401  (registers the models)

CONFIG = Path(__file__).parents[2] / 'configs' / '_base_' / 'models' / 'unsam_swint_prompt.py'
HEIGHT, WIDTH = 96, 128


def small_model() -> ConfigDict:
    """The shipped config with a Swin of four narrow blocks and a decoder of two layers."""
    config = Config.fromfile(CONFIG)
    config.merge_from_dict(
        {
            'model.backbone.embed_dims': 24,
            'model.backbone.depths': (1, 1, 1, 1),
            'model.backbone.num_heads': (1, 2, 4, 8),
            'model.mask_head.feat_channels': 64,
            'model.mask_head.pixel_decoder.in_channels': [24, 48, 96, 192],
            'model.mask_head.pixel_decoder.feat_channels': 64,
            'model.mask_head.pixel_decoder.positional_encoding.num_feats': 32,
            'model.mask_head.pixel_decoder.encoder.num_layers': 1,
            'model.mask_head.pixel_decoder.encoder.layer_cfg.self_attn_cfg.embed_dims': 64,
            'model.mask_head.pixel_decoder.encoder.layer_cfg.ffn_cfg.embed_dims': 64,
            'model.mask_head.pixel_decoder.encoder.layer_cfg.ffn_cfg.feedforward_channels': 64,
            'model.mask_head.decoder.num_layers': 2,
            'model.mask_head.decoder.feedforward_channels': 64,
            'model.train_cfg.num_points': 256,
            'model.train_cfg.prompts_per_image': 12,
        }
    )
    return config.model


def photographs() -> list[np.ndarray]:
    """Two (96, 128, 3) uint8 photographs."""
    return [data.coffee()[::4, ::4][2:98, 10:138], data.astronaut()[:192:2, 100:356:2]]


def nested_regions(photograph: np.ndarray) -> np.ndarray:
    """(N, 96, 128) bool: the regions of a coarse segmentation, and their parts in a finer one."""
    fine = segmentation.felzenszwalb(photograph, scale=30, min_size=80)
    coarse = segmentation.felzenszwalb(photograph, scale=400, min_size=900)
    joined = fine + (fine.max() + 1) * coarse
    masks = [labels == label for labels in (coarse, joined) for label in np.unique(labels)]
    return np.array([mask for mask in masks if mask.sum() >= 80])


def sample_of(learnt: np.ndarray | None = None, **prompts: object) -> DetDataSample:
    """A data sample with masks that are learnt, or with prompts to answer."""
    sample = DetDataSample(metainfo={'img_shape': (HEIGHT, WIDTH), 'ori_shape': (HEIGHT, WIDTH)})
    if learnt is not None:
        sample.gt_instances = InstanceData(masks=BitmapMasks(learnt.astype(np.uint8), HEIGHT, WIDTH))
    if prompts:
        sample.prompts = InstanceData(**prompts)
    return sample


def batch_of(photograph: np.ndarray, sample: DetDataSample) -> dict[str, list]:
    """A batch of one RGB photograph, which becomes BGR as pipelines load it."""
    bgr = photograph[..., ::-1].copy()
    return {'inputs': [torch.from_numpy(bgr).permute(2, 0, 1)], 'data_samples': [sample]}
