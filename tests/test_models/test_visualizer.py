"""Pictures of many nested masks."""

import mmcv
import numpy as np
import pytest
import skimage.data
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData

from unsam_mm.engine import UnSAMVisualizer
from unsam_mm.engine.visualizer import paint_masks
from unsam_mm.rle import encode_bitmaps, rle_to_json

IMAGE = skimage.data.chelsea()[:60, :80]


@pytest.fixture
def masks() -> np.ndarray:
    """A whole, a part of it, and a mask apart; (3, 60, 80) bool."""
    masks = np.zeros((3, 60, 80), bool)
    masks[0, 10:50, 5:45] = True
    masks[1, 20:30, 10:20] = True
    masks[2, 5:15, 60:75] = True
    return masks


def draw(instances: InstanceData, **options) -> np.ndarray:
    visualizer = UnSAMVisualizer(name=f'test{np.random.default_rng().integers(2**60)}', **options)
    return visualizer._draw_instances(IMAGE, instances, None, None)


def test_pixels_outside_all_masks_stay_as_they_are(masks):
    painted = paint_masks(IMAGE, masks, alpha=0.5)
    assert np.array_equal(painted[55:, 50:], IMAGE[55:, 50:])


def test_a_part_is_seen_on_top_of_its_whole_whichever_comes_first(masks):
    for order in ([0, 1], [1, 0]):
        painted = paint_masks(np.zeros_like(IMAGE), masks[order], alpha=1.0)
        assert tuple(painted[25, 15]) != tuple(painted[40, 30])
        assert (painted[20:29, 19] == 255).all()  # the outline of the part


def test_run_lengths_tensors_and_bitmap_masks_give_the_same_picture(masks):
    rles = encode_bitmaps(masks)
    forms = [
        rles,
        [rle_to_json(rle) for rle in rles],
        torch.from_numpy(masks),
        BitmapMasks(masks.astype(np.uint8), 60, 80),
    ]
    pictures = [draw(InstanceData(masks=form, scores=torch.tensor([0.9, 0.8, 0.7]))) for form in forms]
    assert (pictures[0] != IMAGE).any()
    assert all(np.array_equal(pictures[0], picture) for picture in pictures[1:])


def test_only_the_best_masks_are_drawn(masks):
    painted = draw(InstanceData(masks=encode_bitmaps(masks), scores=torch.tensor([0.1, 0.2, 0.9])), max_masks=1)
    assert (painted[6:14, 61:74] != IMAGE[6:14, 61:74]).any(axis=-1).all()
    assert np.array_equal(painted[20:], IMAGE[20:])


def test_an_image_without_masks_is_drawn_as_it_is():
    assert np.array_equal(draw(InstanceData(masks=[], scores=torch.zeros(0))), IMAGE)


def test_a_data_sample_is_written_with_truth_and_prediction_side_by_side(masks, tmp_path):
    sample = DetDataSample()
    sample.gt_instances = InstanceData(masks=BitmapMasks(masks.astype(np.uint8), 60, 80), labels=torch.zeros(3))
    sample.pred_instances = InstanceData(
        masks=encode_bitmaps(masks), scores=torch.tensor([0.9, 0.8, 0.1]), labels=torch.zeros(3)
    )
    visualizer = UnSAMVisualizer(name='side_by_side')
    visualizer.add_datasample('cat', IMAGE, sample, out_file=str(tmp_path / 'cat.png'), pred_score_thr=0.0)
    written = mmcv.imread(str(tmp_path / 'cat.png'), channel_order='rgb')
    assert written.shape == (60, 160, 3)
    assert np.array_equal(written[:, :80], written[:, 80:])
