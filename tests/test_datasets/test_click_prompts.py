"""Test pipelines click at each object, where the head and the metric for prompts expect it."""

from __future__ import annotations

import numpy as np
import pytest
from mmdet.registry import TRANSFORMS
from mmengine.structures import InstanceData
from scipy.ndimage import distance_transform_edt
from skimage import data, measure

from unsam_mm.datasets import UnSAMClickPrompts
from unsam_mm.errors import UnSAMError
from unsam_mm.evaluation.prompt_metric import UnSAMPromptIoUMetric
from unsam_mm.masks.rle import encode_bitmaps, rle_to_json

COINS = data.coins()[:160, :200]
HEIGHT, WIDTH = COINS.shape


def run(bitmaps: np.ndarray, crowds: tuple[int, ...] = (), at_original_size: bool = True) -> dict:
    """The pipeline of the shipped configs on coins with masks (N, H, W), in half the size."""
    results = {
        'img': np.repeat(COINS[..., None], 3, axis=2),
        'img_path': 'coins.png',
        'img_id': 7,
        'ori_shape': (HEIGHT, WIDTH),
        'img_shape': (HEIGHT, WIDTH),
        'instances': [
            {'mask': rle_to_json(rle), 'bbox': [0, 0, 1, 1], 'bbox_label': 0, 'ignore_flag': int(number in crowds)}
            for number, rle in enumerate(encode_bitmaps(bitmaps))
        ],
    }
    steps = [
        {'type': 'UnSAMLoadMasks', 'at_original_size': at_original_size},
        {'type': 'Resize', 'scale': (WIDTH // 2, HEIGHT // 2)},
        {'type': 'PackDetInputs', 'meta_keys': ('img_id', 'img_path', 'ori_shape', 'img_shape')},
        {'type': 'UnSAMClickPrompts'},
    ]
    steps = [steps[1], steps[0], *steps[2:]] if at_original_size else steps
    for step in steps:
        results = TRANSFORMS.build(step)(results)
    return results


@pytest.fixture
def coins() -> np.ndarray:
    """(N, H, W) bool."""
    labels = measure.label(COINS > 120)
    areas = np.bincount(labels.ravel())
    return np.array([labels == number for number in range(1, len(areas)) if areas[number] > 150])


def test_each_object_is_clicked_at_the_pixel_farthest_from_its_outline(coins):
    sample = run(coins)['data_samples']
    assert len(coins) >= 3
    assert sample.prompts.targets.tolist() == list(range(len(coins)))
    for (x, y), mask in zip(sample.prompts.points.tolist(), coins, strict=True):
        depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        assert (x % 1, y % 1) == (0.5, 0.5)  # the middle of the pixel
        assert depth[int(y), int(x)] == depth.max() > 0


def test_a_crowd_is_not_clicked(coins):
    sample = run(coins, crowds=(1,))['data_samples']
    assert len(sample.prompts) == len(coins) - 1
    for (x, y), target in zip(sample.prompts.points.long().tolist(), sample.prompts.targets.tolist(), strict=True):
        assert sample.gt_instances.masks.to_ndarray()[target, y, x]


def test_an_image_without_objects_has_no_prompts():
    sample = run(np.zeros((0, HEIGHT, WIDTH), bool))['data_samples']
    assert sample.prompts.points.shape == (0, 2)
    assert len(sample.prompts) == 0


def test_answers_to_the_clicks_are_judged_by_their_objects(coins):
    """Each click is answered with its own mask and that of the next object; the better score is on the wrong one."""
    sample = run(coins)['data_samples']
    rles = encode_bitmaps(coins)
    sample.pred_prompts = InstanceData(
        masks=[[rles[number], rles[(number + 1) % len(rles)]] for number in range(len(rles))],
        scores=np.tile([0.2, 0.9], (len(rles), 1)),
        targets=sample.prompts.targets,
    )
    metric = UnSAMPromptIoUMetric()
    metric.process(None, [sample.to_dict()])
    figures = metric.evaluate(1)
    assert figures['prompt/oracle_iou'] == 1
    assert figures['prompt/max_iou'] < 0.1


def test_masks_of_the_resized_image_are_refused(coins):
    with pytest.raises(
        UnSAMError, match=r'masks are 80 x 100 px, the original image 160 x 200; .*at_original_size=True'
    ):
        run(coins, at_original_size=False)


@pytest.mark.parametrize('results', [{'img': COINS}, {'data_samples': InstanceData(gt_instances=InstanceData())}])
def test_a_step_in_the_wrong_place_is_named(results):
    with pytest.raises(UnSAMError, match='put PackDetInputs before this step'):
        UnSAMClickPrompts()(results)
