"""Run-length masks give what BitmapMasks gives, through every step of MMDetection's pipelines."""

import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from mmdet.datasets.transforms import (
    CopyPaste,
    FilterAnnotations,
    MixUp,
    Mosaic,
    PackDetInputs,
    RandomCrop,
    RandomErasing,
    RandomFlip,
    Resize,
)
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from skimage import data, draw

from unsam_mm.datasets import RleMasks, rle_masks
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import encode_bitmaps

bitmaps_of_all_sizes = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 1))
)
few = settings(max_examples=60, deadline=None)


def both(bitmaps):
    return RleMasks.from_bitmaps(bitmaps), BitmapMasks(bitmaps, *bitmaps.shape[1:])


def assert_same(ours, theirs):
    assert ours.size_hw == (theirs.height, theirs.width)
    np.testing.assert_array_equal(ours.to_ndarray(), theirs.masks)


@few
@given(bitmaps_of_all_sizes, st.sampled_from(['horizontal', 'vertical', 'diagonal']))
def test_flips_are_those_of_bitmaps(bitmaps, direction):
    ours, theirs = both(bitmaps)
    assert_same(ours.flip(direction), theirs.flip(direction))


@few
@given(bitmaps_of_all_sizes, st.data())
def test_crops_are_those_of_bitmaps(bitmaps, draws):
    height, width = bitmaps.shape[1:]
    x0, y0 = draws.draw(st.integers(0, width - 1)), draws.draw(st.integers(0, height - 1))
    box = np.array([x0, y0, draws.draw(st.integers(x0 + 1, width + 3)), draws.draw(st.integers(y0 + 1, height + 3))])
    ours, theirs = both(bitmaps)
    assert_same(ours.crop(box), theirs.crop(box))


@few
@given(bitmaps_of_all_sizes, st.integers(0, 4), st.integers(0, 4), st.sampled_from([0, 1]))
def test_pads_are_those_of_bitmaps(bitmaps, below, right, value):
    height, width = bitmaps.shape[1:]
    ours, theirs = both(bitmaps)
    assert_same(ours.pad((height + below, width + right), value), theirs.pad((height + below, width + right), value))


@few
@given(bitmaps_of_all_sizes, st.integers(1, 25), st.integers(1, 25))
def test_resizes_are_those_of_bitmaps(bitmaps, height, width):
    ours, theirs = both(bitmaps)
    assert_same(ours.resize((height, width)), theirs.resize((height, width)))


@few
@given(bitmaps_of_all_sizes)
def test_areas_and_boxes_are_those_of_bitmaps(bitmaps):
    ours, theirs = both(bitmaps)
    np.testing.assert_array_equal(ours.areas, theirs.areas)
    np.testing.assert_array_equal(ours.get_bboxes('hbox').tensor, theirs.get_bboxes('hbox').tensor)
    np.testing.assert_array_equal(ours.get_bboxes(HorizontalBoxes).tensor, theirs.get_bboxes('hbox').tensor)


@few
@given(bitmaps_of_all_sizes)
def test_every_way_out_gives_the_masks_that_came_in(bitmaps):
    ours, _ = both(bitmaps)
    np.testing.assert_array_equal(ours.masks, bitmaps)
    np.testing.assert_array_equal(np.asarray(ours), bitmaps)
    np.testing.assert_array_equal(list(ours), bitmaps)
    np.testing.assert_array_equal(ours.to_bitmap().masks, bitmaps)
    assert torch.equal(ours.to_tensor(torch.bool, 'cpu'), torch.from_numpy(bitmaps > 0))
    assert [rle['counts'] for rle in ours.flip().flip().rles] == [rle['counts'] for rle in encode_bitmaps(bitmaps > 0)]


@pytest.fixture
def discs():
    """Three overlapping discs, one of them cut by the edge, and an empty mask."""
    bitmaps = np.zeros((4, 96, 128), np.uint8)
    for bitmap, (y, x, radius) in zip(bitmaps, [(40, 50, 30), (60, 70, 20), (90, 120, 15)], strict=False):
        bitmap[draw.disk((y, x), radius, shape=bitmap.shape)] = 1
    return bitmaps


@pytest.mark.parametrize('scale', [0.37, 2.0, (50, 70), (1333, 800)])
def test_rescaling_keeps_the_aspect_ratio_as_bitmaps_do(discs, scale):
    ours, theirs = both(discs)
    assert_same(ours.rescale(scale), theirs.rescale(scale))


@pytest.mark.parametrize(
    ('step', 'arguments'),
    [
        ('expand', {'expanded_h': 120, 'expanded_w': 140, 'top': 7, 'left': 11}),
        ('translate', {'out_shape': (96, 128), 'offset': 9, 'direction': 'horizontal'}),
        ('rotate', {'out_shape': (96, 128), 'angle': 30.0}),
        ('shear', {'out_shape': (96, 128), 'magnitude': 0.2}),
        ('resize', {'out_shape': (48, 60), 'interpolation': 'bilinear'}),
    ],
)
def test_steps_that_mix_pixels_give_what_bitmaps_give(discs, step, arguments):
    ours, theirs = both(discs)
    np.testing.assert_array_equal(getattr(ours, step)(**arguments).masks, getattr(theirs, step)(**arguments).masks > 0)


@pytest.mark.parametrize(
    ('index', 'expected'),
    [
        pytest.param(1, [1], id='integer'),
        pytest.param(np.int64(-1), [3], id='NumPy integer'),
        pytest.param(slice(1, None), [1, 2, 3], id='slice'),
        pytest.param([2, 0], [2, 0], id='list'),
        pytest.param([], [], id='empty list'),
        pytest.param(np.array([2, 0, 0]), [2, 0, 0], id='indices'),
        pytest.param(np.array([True, False, False, True]), [0, 3], id='truth values'),
        pytest.param(torch.tensor([False, True, True, False]), [1, 2], id='tensor'),
    ],
)
def test_indexing_always_gives_a_set_of_masks(discs, index, expected):
    np.testing.assert_array_equal(RleMasks.from_bitmaps(discs)[index].masks, discs[expected])


def test_sets_are_joined_and_cut_inside_instance_data(discs):
    masks = RleMasks.from_bitmaps(discs)
    instances = InstanceData(masks=masks, labels=torch.zeros(4))
    np.testing.assert_array_equal(instances[torch.tensor([True, False, True, False])].masks.masks, discs[[0, 2]])
    np.testing.assert_array_equal(InstanceData.cat([instances, instances]).masks.masks, np.concatenate([discs, discs]))


def test_no_mask_at_all_is_a_set_too():
    masks = RleMasks([], 40, 60)
    assert masks.to_tensor(torch.uint8, 'cpu').shape == (0, 40, 60)
    assert masks.get_bboxes('hbox').tensor.shape == (0, 4)
    steps = (masks.flip(), masks.crop(np.array([0, 0, 20, 30])), masks.pad((64, 64)), masks.rescale((30, 30)))
    assert [step.shape for step in steps] == [(0, 40, 60), (0, 30, 20), (0, 64, 64), (0, 20, 30)]


@pytest.mark.parametrize('counts', [b'T3T3', [100, 0, 5, 95], '0T3T3', '4005o5'])
def test_runs_may_be_text_plain_or_of_no_pixels(counts):
    size = [10, 20]
    masks = RleMasks([{'size': size, 'counts': counts}], *size)
    assert masks.areas.tolist() == [masks.masks.sum()]
    np.testing.assert_array_equal(masks.get_bboxes().tensor, masks.to_bitmap().get_bboxes('hbox').tensor)


def test_masks_of_another_size_are_refused():
    with pytest.raises(UnSAMError, match='the mask is 10 x 20 px, the image 20 x 10'):
        RleMasks([{'size': [10, 20], 'counts': [200]}], 20, 10)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda masks: masks.flip('sideways'), "got 'sideways'"),
        (lambda masks: masks.pad((50, 200)), 'cannot pad 96 x 128 px to 50 x 200'),
    ],
)
def test_what_cannot_be_done_is_refused(discs, call, message):
    with pytest.raises(UnSAMError, match=message):
        call(RleMasks.from_bitmaps(discs))


def results_with(masks):
    """What a pipeline has loaded."""
    image = np.ascontiguousarray(data.astronaut()[:96, :128])
    return {
        'img': image,
        'img_shape': image.shape[:2],
        'ori_shape': image.shape[:2],
        'gt_masks': masks,
        'gt_bboxes': masks.get_bboxes('hbox'),
        'gt_bboxes_labels': np.arange(len(masks)),
        'gt_ignore_flags': np.array([False, False, True, False]),
    }


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize(
    'step',
    [
        pytest.param(RandomErasing(n_patches=(3, 6), ratio=(0.1, 0.4)), id='erase'),
        pytest.param(RandomErasing(n_patches=2, ratio=0.3, mask_border_value=1), id='fill'),
        pytest.param(CopyPaste(max_num_pasted=3), id='paste'),
        pytest.param(Mosaic(img_scale=(100, 90), prob=1.0), id='mosaic'),
        pytest.param(MixUp(img_scale=(110, 100)), id='mix'),
    ],
)
def test_steps_that_write_into_masks_do_to_run_lengths_what_they_do_to_bitmaps(discs, step, seed):
    found = []
    for kind in (RleMasks.from_bitmaps, lambda bitmaps: BitmapMasks(bitmaps, *bitmaps.shape[1:])):
        np.random.seed(seed)  # noqa: NPY002  (MMDetection's transforms draw from this generator)
        others = [results_with(kind(np.ascontiguousarray(discs[:, ::-1]))) for _ in range(3)]
        results = results_with(kind(discs.copy()))
        results['mix_results'] = others if isinstance(step, Mosaic) else others[:1]
        results = step.transform(results)
        found.append(results)
    ours, theirs = found
    np.testing.assert_array_equal(ours['img'], theirs['img'])
    np.testing.assert_array_equal(ours['gt_masks'].masks > 0, theirs['gt_masks'].masks > 0)
    np.testing.assert_array_equal(ours['gt_bboxes_labels'], theirs['gt_bboxes_labels'])
    np.testing.assert_array_equal(ours['gt_masks'].areas, (theirs['gt_masks'].masks > 0).sum(axis=(1, 2)))


WRITES = {
    'item': lambda masks: masks.masks.__setitem__((slice(None), slice(5, 40), slice(30, 70)), 0),
    'view': lambda masks: masks.masks[1].fill(1),
    'in place': lambda masks: np.logical_not(masks.masks, out=masks.masks),
    'new array': lambda masks: setattr(masks, 'masks', np.where(np.eye(96, 128), 0, masks.masks)),
}


@pytest.mark.parametrize('write', WRITES.values(), ids=WRITES)
@pytest.mark.parametrize(
    'then',
    [
        lambda masks: masks.to_ndarray(),
        lambda masks: masks.flip().flip().to_ndarray(),
        lambda masks: masks[[0, 1, 2, 3]].to_ndarray(),
        lambda masks: masks.to_tensor(torch.uint8, 'cpu').numpy(),
        lambda masks: np.array(list(masks)),
        lambda masks: pickle.loads(pickle.dumps(masks)).to_ndarray(),
        lambda masks: type(masks).cat([masks]).to_ndarray(),
    ],
    ids=['array', 'flips', 'index', 'tensor', 'iteration', 'another process', 'join'],
)
def test_what_is_written_into_the_pixels_is_seen_by_all_that_follows(discs, write, then):
    ours, theirs = both(discs.copy())
    write(ours)
    write(theirs)
    np.testing.assert_array_equal(then(ours), theirs.masks)
    np.testing.assert_array_equal(ours.areas, theirs.areas)


def test_pixels_of_another_shape_are_refused(discs):
    masks = RleMasks.from_bitmaps(discs)
    with pytest.raises(UnSAMError, match=r'masks must be \(4, 96, 128\) .*, got \(3, 96, 128\)'):
        masks.masks = discs[:3]


def test_tools_that_draw_bitmap_masks_take_run_lengths(discs):
    from mmdet.models.utils import mask2ndarray  # importable once the package has put its ops in place

    np.testing.assert_array_equal(mask2ndarray(RleMasks.from_bitmaps(discs)), discs)


def test_scores_go_with_their_masks_through_every_step(discs):
    scores = np.array([0.9, 0.2, 0.5, 0.1], np.float32)
    masks = RleMasks(encode_bitmaps(discs), 96, 128, scores)
    for step in (
        masks.flip(),
        masks.crop(np.array([0, 0, 90, 80])),
        masks.pad((100, 200)),
        masks.resize((50, 60)),
        masks.rotate((96, 128), 20.0),
        pickle.loads(pickle.dumps(masks)),
    ):
        np.testing.assert_array_equal(step.scores, scores)
    np.testing.assert_array_equal(masks[[3, 0]].scores, scores[[3, 0]])
    np.testing.assert_array_equal(RleMasks.cat([masks, both(discs)[1]]).scores, [*scores, 1, 1, 1, 1])
    with pytest.raises(UnSAMError, match=r'scores must be \(4,\), one for each mask, got \(3,\)'):
        RleMasks(encode_bitmaps(discs), 96, 128, scores[:3])


def run_pipeline(masks, seed):
    """Stock steps of a training pipeline, then the padding of a batch."""
    results = results_with(masks)
    np.random.seed(seed)  # noqa: NPY002  (MMDetection's transforms draw from this generator)
    for step in (
        Resize(scale=(200, 150), keep_ratio=True),
        RandomCrop((110, 90), recompute_bbox=True, allow_negative_crop=True),
        RandomFlip(0.5, direction=['horizontal', 'vertical']),
        FilterAnnotations(by_box=False, by_mask=True, min_gt_mask_area=1, keep_empty=False),
        PackDetInputs(),
    ):
        results = step(results)
    from mmdet.models import DetDataPreprocessor  # importable once the package has put its ops in place

    preprocessor = DetDataPreprocessor(mean=[0, 0, 0], std=[1, 1, 1], pad_size_divisor=32, pad_mask=True)
    batch = {'inputs': [results['inputs']], 'data_samples': [results['data_samples']]}
    return preprocessor(batch, training=True)['data_samples'][0]


@pytest.mark.parametrize('seed', range(5))
def test_the_stock_pipeline_gives_the_same_targets_as_with_bitmaps(discs, seed):
    ours, theirs = (run_pipeline(masks, seed) for masks in both(discs))
    for part in ('gt_instances', 'ignored_instances'):
        left, right = getattr(ours, part), getattr(theirs, part)
        np.testing.assert_array_equal(left.masks.masks, right.masks.masks)
        assert torch.equal(left.bboxes, right.bboxes)
    assert isinstance(ours.gt_instances.masks, RleMasks)
    assert ours.gt_instances.masks.size_hw == (96, 128)


def test_workers_send_run_lengths_not_bitmaps(discs):
    masks = RleMasks.from_bitmaps(np.repeat(discs, 50, axis=0))
    sent = pickle.dumps(masks)
    assert len(sent) < 0.02 * masks.to_ndarray().nbytes
    np.testing.assert_array_equal(pickle.loads(sent).masks, masks.masks)


def test_a_crop_of_five_hundred_large_masks_takes_a_small_part_of_their_bitmaps():
    height, width = 2250, 1500
    disc = np.zeros((1, height, width), np.uint8)
    disc[0][draw.disk((1000, 700), 300)] = 1
    masks = RleMasks(encode_bitmaps(disc) * 500, height, width)
    tracemalloc.start()
    cropped = masks.crop(np.array([300, 500, 1324, 1524])).flip()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert cropped.areas.tolist() == [int(disc[0, 500:1524, 300:1324].sum())] * 500
    assert peak < 0.05 * 500 * height * width


def test_a_step_that_mixes_pixels_encodes_pixels_that_were_written_into_once(discs, monkeypatch):
    masks = RleMasks.from_bitmaps(discs)
    masks.masks[0, 0, 0] = 1
    encoded = []

    def encode(bitmaps):
        encoded.append(len(bitmaps))
        return encode_bitmaps(bitmaps)

    monkeypatch.setattr(rle_masks, '_CHUNK_PIXELS', 1)  # one mask at a time
    monkeypatch.setattr(rle_masks, 'encode_bitmaps', encode)
    masks.rotate(masks.size_hw, 10)
    assert sum(encoded) == 2 * len(masks)
