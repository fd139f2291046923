"""Pictures of many nested masks."""

import runpy
import sys
from pathlib import Path

import mmcv
import mmdet
import numpy as np
import pytest
import skimage.data
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from PIL import Image

from unsam_mm.datasets import RleMasks
from unsam_mm.engine import UnSAMVisualizer
from unsam_mm.engine.visualizer import paint_masks
from unsam_mm.errors import UnSAMError
from unsam_mm.files import write_json
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import encode_bitmaps, rle_to_json

IMAGE = skimage.data.chelsea()[:60, :80]
SCORES = torch.tensor([0.9, 0.8, 0.7])


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


def test_run_lengths_arrays_tensors_and_bitmap_masks_give_the_same_picture(masks):
    rles = encode_bitmaps(masks)
    forms = [
        rles,
        [rle_to_json(rle) for rle in rles],
        torch.from_numpy(masks),
        masks,
        RleMasks.from_bitmaps(masks),
        BitmapMasks(masks.astype(np.uint8), 60, 80),
    ]
    pictures = [draw(InstanceData(masks=form, scores=SCORES)) for form in forms]
    assert (pictures[0] != IMAGE).any()
    assert all(np.array_equal(pictures[0], picture) for picture in pictures[1:])
    scored = [draw(InstanceData(masks=rles, scores=scores), max_masks=1) for scores in (SCORES, SCORES.numpy())]
    assert np.array_equal(*scored)


def test_run_lengths_of_another_image_are_refused(masks):
    with pytest.raises(UnSAMError, match='the mask is 30 x 40 px, the image 60 x 80'):
        draw(InstanceData(masks=encode_bitmaps(masks[:, ::2, ::2]), scores=SCORES))


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


BROWSE = Path(mmdet.__file__).with_name('.mim') / 'tools' / 'analysis_tools' / 'browse_dataset.py'


@pytest.mark.parametrize('visualizer', ['UnSAMVisualizer', 'DetLocalVisualizer'])
def test_mmdetections_tool_draws_our_data_sets_in_their_colours(masks, tmp_path, monkeypatch, visualizer):
    image = {'id': 1, 'file_name': 'cat.png', 'height': 60, 'width': 80}
    write_json(
        tmp_path / 'gt.json',
        {'images': [image], 'annotations': MaskSet.from_bitmaps(masks).to_coco(1), 'categories': [{'id': 1}]},
    )
    Image.fromarray(IMAGE).save(tmp_path / 'cat.png')
    steps = [{'type': name} for name in ('UnSAMLoadImage', 'UnSAMLoadMasks', 'PackDetInputs')]
    dataset = {'type': 'UnSAMCocoDataset', 'data_root': str(tmp_path), 'ann_file': 'gt.json', 'pipeline': steps}
    config = {
        'train_dataloader': {'dataset': dataset},
        'visualizer': {'type': visualizer, 'name': f'browse{visualizer}'},
    }
    (tmp_path / 'browse.py').write_text('\n'.join(f'{key} = {value!r}' for key, value in config.items()))
    options = [str(tmp_path / 'browse.py'), '--not-show', '--output-dir', str(tmp_path / 'drawn')]
    monkeypatch.setattr(sys, 'argv', [str(BROWSE), *options])
    runpy.run_path(str(BROWSE), run_name='__main__')
    drawn = mmcv.imread(str(tmp_path / 'drawn' / 'cat.png'), channel_order='rgb')
    assert np.array_equal(drawn[55:, 50:], IMAGE[55:, 50:])  # where no mask is
    assert (drawn[12:48, 8:42] != IMAGE[12:48, 8:42]).any(axis=-1).mean() > 0.9
