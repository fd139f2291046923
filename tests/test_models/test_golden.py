"""The converted whole-image model computes what its authors' code computes.

Weights and picture are computed (`tests/golden.py`); the recorded numbers are float64 results of the authors' code.
Tolerances are a few times what the authors' code in float32 differs from itself in float64.
"""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.structures import InstanceData
from torch import nn

import unsam_mm.models  # noqa: F401  (registers the models)
from tests import golden
from unsam_mm.convert.released import convert_checkpoint
from unsam_mm.masks import rle

CONFIG = Path(__file__).parents[2] / 'configs' / '_base_' / 'models' / 'unsam_r50.py'
VIEWS = {'full': ((192, 256), (192, 256)), 'pad': ((170, 230), (255, 345))}
"""Part of the picture that is given, and the size at which masks are wanted. The second is padded inside the model."""


@pytest.fixture(scope='module')
def model_of_2000(tmp_path_factory) -> nn.Module:
    """The shipped config with a converted checkpoint, on the way that a user takes; each picture is encoded once."""
    folder = tmp_path_factory.mktemp('golden')
    torch.save({'model': golden.official_state(), 'iteration': 199999}, folder / 'released.pth')
    convert_checkpoint(folder / 'released.pth', folder / 'converted.pth')
    config = Config.fromfile(CONFIG)
    config.model.test_cfg.mask_format = 'bitmap'
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(config.model)
    load_checkpoint(model, str(folder / 'converted.pth'), map_location='cpu', strict=True)
    for path in folder.glob('*.pth'):
        path.unlink()  # 180 MB each, which pytest would keep
    golden.remember(model, 'extract_feat')
    golden.remember(model.mask_head.pixel_decoder, 'forward')
    return model.eval().requires_grad_(False)


@pytest.fixture(scope='module')
def model(model_of_2000) -> nn.Module:
    """The same with the first 64 queries alone; a golden table of 64 rows begins as one of 2000 does."""
    model = copy.deepcopy(model_of_2000)
    model.mask_head.num_queries = 64
    for name in ('query_feat', 'query_embed'):
        table = getattr(model.mask_head, name)
        table.weight = nn.Parameter(table.weight[:64], requires_grad=False)
    return model


def batch(view: str) -> dict:
    """One image as the test pipeline gives it."""
    (height, width), ori_shape = VIEWS[view]
    image = torch.from_numpy(golden.golden_image()[:height, :width, ::-1].copy()).permute(2, 0, 1)
    sample = DetDataSample(metainfo={'img_shape': (height, width), 'ori_shape': ori_shape})
    return {'inputs': [image], 'data_samples': [sample]}


def logits(model: nn.Module, view: str) -> tuple[np.ndarray, np.ndarray]:
    """(10, Q, 2) class and (10, Q, 48, 64) mask logits, before any layer and after each of the nine."""
    data = model.data_preprocessor(batch(view))
    classes, masks = model(**data, mode='tensor')
    return torch.cat(list(classes)).numpy(), torch.cat(list(masks)).numpy()


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float, name: str) -> None:
    assert found.shape == expected.shape, name
    assert np.abs(found - expected).max() < tolerance, name


def test_weights_and_picture_are_those_of_the_recorded_run():
    shapes = golden.official_shapes()
    for name, expected in json.loads((golden.FOLDER / 'checksums.json').read_text()).items():
        content = golden.golden_image() if name == 'image' else golden.golden_tensor(name, shapes[name])
        assert hashlib.sha256(content.tobytes()).hexdigest() == expected, name


@pytest.mark.parametrize('view', VIEWS)
def test_backbone_and_pixel_decoder_match(model, view):
    expected = golden.golden_arrays('whole_image_features')
    levels = model.extract_feat(model.data_preprocessor(batch(view))['inputs'])
    mask_features, memories = model.mask_head.pixel_decoder(levels)
    found = {f'res{stage}': level[0, ::64] for stage, level in enumerate(levels, start=2)}
    found |= {f'memory{number}': memory[0, ::32] for number, memory in enumerate(memories)}
    found['mask_features'] = mask_features[0, ::16]
    assert len(found) == 8
    for name, values in found.items():
        thinned = values[:, ::2, ::2] if values.shape[1] >= 24 else values
        assert_close(thinned.numpy(), expected[f'{view}.{name}'], 3e-5, name)


@pytest.mark.parametrize('view', VIEWS)
def test_classes_and_masks_of_every_layer_match(model, view):
    """Nine masked attentions, some of whose masks are all blocked and are opened again."""
    expected = golden.golden_arrays('whole_image_64_queries')
    classes, masks = logits(model, view)
    assert_close(classes, expected[f'{view}.logits'], 1e-5, 'classes')
    found = masks[-1, ::4, ::2, ::2]
    assert_close(found, expected[f'{view}.masks'], 2e-4, 'masks')
    assert np.median(np.abs(found - expected[f'{view}.masks'])) < 1e-5


@pytest.fixture(scope='module')
def instances(model) -> dict[str, InstanceData]:
    """What is found in each part of the picture."""
    return {view: model.test_step(batch(view))[0].pred_instances for view in VIEWS}


@pytest.mark.parametrize('view', VIEWS)
def test_instances_match(instances, view):
    """All masks that are not empty, best first, in pixels of the original image."""
    recorded = golden.golden_arrays('whole_image_64_queries')
    expected = {name: recorded[f'{view}.inst_{name}'] for name in ('scores', 'area', 'boxes', 'masks')}
    found = instances[view]
    # A logit that is nearly 0 may fall on the other side: two pixels of a mask, each with a probability of a half. The
    # score is the mean probability of the mask's pixels, so it moves by at most a half of their share.
    assert found.scores.shape == expected['scores'].shape
    assert (np.abs(found.scores.numpy() - expected['scores']) < 1e-5 + 1 / np.maximum(expected['area'], 1)).all()
    assert_close(found.masks.sum((1, 2)).numpy(), expected['area'], 2.5, 'areas')
    assert (found.bboxes.numpy() == expected['boxes']).all(axis=1).mean() > 0.95  # one pixel can move a corner
    masks = np.unpackbits(expected['masks'], axis=-1, count=VIEWS[view][1][1]).astype(bool)
    differing = (found.masks[: len(masks)].numpy() != masks).sum(axis=(1, 2))
    assert differing.max() <= 2


def test_run_lengths_are_those_of_the_bitmaps(model, instances, monkeypatch):
    """The format that is the default gives the same pixels."""
    bitmaps = instances['pad']
    monkeypatch.setattr(model.mask_head, 'mask_format', 'rle')
    runs = model.test_step(batch('pad'))[0].pred_instances
    assert torch.equal(runs.scores, bitmaps.scores)
    decoded = rle.decode_rles(runs.masks, VIEWS['pad'][1])
    assert np.array_equal(decoded, bitmaps.masks.numpy())


@pytest.mark.slow
@pytest.mark.parametrize('view', VIEWS)
def test_most_of_2000_queries_match(model_of_2000, view):
    """Where a resized mask logit is nearly 0, rounding decides what a query attends to; such queries may differ."""
    expected = golden.golden_arrays('whole_image_2000_queries')
    classes, masks = logits(model_of_2000, view)
    assert_close(classes[0], expected[f'{view}.logits_layer0'], 1e-5, 'classes before any layer')
    assert_close(masks[0, ::200, ::2, ::2], expected[f'{view}.masks_layer0'], 1e-4, 'masks before any layer')
    differences = np.abs(classes[-1] - expected[f'{view}.logits']).max(axis=1)
    assert np.median(differences) < 5e-5
    assert np.quantile(differences, 0.99) < 1e-3
    differences = np.abs(masks[-1, ::100, ::2, ::2] - expected[f'{view}.masks'])
    assert np.median(differences) < 2e-4  # of logits of 6 in the mean
    assert np.quantile(differences.max(axis=(1, 2)), 0.95) < 1e-2  # of 20 queries


@pytest.mark.slow
@pytest.mark.parametrize('view', VIEWS)
def test_the_best_of_2000_instances_match(model_of_2000, view):
    recorded = golden.golden_arrays('whole_image_2000_queries')
    scores, areas = recorded[f'{view}.inst_scores'], recorded[f'{view}.inst_area']
    found = model_of_2000.test_step(batch(view))[0].pred_instances
    assert_close(found.scores[:20].numpy(), scores, 1e-3, 'scores')
    # Neighbours in the order may have changed places, so each is looked for among all.
    near = (np.abs(found.scores.numpy()[None] - scores[:, None]) < 1e-3) & (
        np.abs(found.masks.sum((1, 2)).numpy()[None] - areas[:, None]) <= 0.005 * areas[:, None] + 2
    )
    assert near.any(axis=1).all()
