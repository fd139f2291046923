"""Prompts on a region tree: nested masks that agree with the prompt."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.measure import label

from tests.trees import random_trees
from unsam_mm import UnSAMAutomaticMaskGenerator, UnSAMPredictor
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import decode_rles, rle_from_json
from unsam_mm.prompting import candidate_nodes, click_scores, distinct_nodes
from unsam_mm.prompting.engine import Engine
from unsam_mm.prompting.prompt import low_resolution_logits

COIN_XY, NEXT_COIN_XY, GROUND_XY = (44, 55), (99, 55), (70, 25)  # of skimage.data.coins()


@pytest.fixture(scope='module')
def predictor(generator, coins_tree):
    predictor = UnSAMPredictor(engine='tree', generator=generator)
    predictor.set_hierarchy(coins_tree)
    return predictor


@given(random_trees(), st.data())
def test_candidates_hold_all_positive_points_and_no_negative_one(case, data):
    _, tree, _ = case
    height, width = tree.size_hw
    pixels = st.tuples(st.integers(0, width - 1), st.integers(0, height - 1))
    points = np.array(data.draw(st.lists(pixels, min_size=1, max_size=4)))
    labels = np.array([1, *data.draw(st.lists(st.integers(0, 1), min_size=len(points) - 1, max_size=len(points) - 1))])
    chain = candidate_nodes(tree, points, labels)
    holds = np.array([tree.mask(node)[points[:, 1], points[:, 0]] for node in chain]).reshape(-1, len(points))
    assert (holds == labels.astype(bool)).all()
    everything = [
        node for node in range(len(tree)) if (tree.mask(node)[points[:, 1], points[:, 0]] == labels.astype(bool)).all()
    ]
    assert sorted(chain) == everything  # all of them
    assert (np.diff(tree.area[chain]) > 0).all()


def test_a_click_on_a_coin_gives_the_coin(predictor):
    masks, scores, logits = predictor.predict(point_coords=np.array([COIN_XY]), point_labels=np.array([1]))
    assert masks.shape[1:] == (303, 384)
    assert logits.shape == (len(masks), 256, 256)
    best = masks[scores.argmax()]
    assert 1000 < best.sum() < 2500
    assert best[55, 44]
    assert not best[GROUND_XY[::-1]]


def test_masks_of_one_click_are_nested(predictor):
    masks, _, _ = predictor.predict(np.array([COIN_XY]), np.array([1]))
    assert 2 <= len(masks) <= 6
    assert all((inner <= outer).all() and (inner != outer).any() for inner, outer in itertools.pairwise(masks))


def test_a_negative_click_excludes_its_region(predictor):
    masks, _, _ = predictor.predict(np.array([COIN_XY, NEXT_COIN_XY]), np.array([1, 0]))
    assert len(masks) > 0
    assert masks[:, 55, 44].all()
    assert not masks[:, 55, 99].any()


def test_padding_points_are_left_out(predictor):
    alone, _, _ = predictor.predict(np.array([COIN_XY]), np.array([1]))
    padded, _, _ = predictor.predict(np.array([COIN_XY, (0, 0)]), np.array([1, -1]))
    assert (padded == alone).all()


def test_two_clicks_are_joined(predictor):
    masks, _, _ = predictor.predict(np.array([COIN_XY, NEXT_COIN_XY]), np.array([1, 1]))
    assert masks[:, 55, [99, 44]].all()


@pytest.mark.parametrize('granularity', [None, 0.5])
def test_prompts_that_contradict_each_other_give_one_empty_mask(predictor, granularity):
    """So that scripts that take the mask of the best score do not fail."""
    masks, scores, logits = predictor.predict(
        np.array([COIN_XY, COIN_XY]), np.array([1, 0]), granularity=granularity, return_logits=True
    )
    assert (masks.shape, scores.shape, logits.shape) == ((1, 303, 384), (1,), (1, 256, 256))
    assert scores.argmax() == 0
    assert scores[0] == 0
    assert masks.max() < 0
    assert logits.max() < 0


def test_a_box_around_a_coin_gives_the_coin(predictor):
    click, scores, _ = predictor.predict(np.array([COIN_XY]), np.array([1]))
    coin = click[scores.argmax()]
    ys, xs = np.nonzero(coin)
    box = np.array([xs.max() + 2, ys.min() - 1, xs.min() - 2, ys.max() + 2])  # corners in any order
    masks, _, _ = predictor.predict(box=box, multimask_output=False)
    assert (masks[0] & coin).sum() / (masks[0] | coin).sum() > 0.9


def test_a_box_is_cut_at_the_borders_of_the_image(predictor):
    inside, _, _ = predictor.predict(box=[0, 0, 120, 90])
    beyond, _, _ = predictor.predict(box=[-1e5, -30, 120, 90])
    assert np.array_equal(inside, beyond)


def test_an_earlier_mask_is_preferred(predictor):
    masks, _, logits = predictor.predict(np.array([COIN_XY]), np.array([1]))
    for mask, logit in zip(masks, logits, strict=True):
        again, _, _ = predictor.predict(np.array([COIN_XY]), np.array([1]), mask_input=logit, multimask_output=False)
        assert (again[0] & mask).sum() / (again[0] | mask).sum() > 0.8


def test_the_area_grows_with_granularity(predictor):
    areas = [
        predictor.predict(np.array([COIN_XY]), np.array([1]), granularity=granularity)[0].sum()
        for granularity in np.linspace(0, 1, 11)
    ]
    assert areas == sorted(areas)
    assert areas[-1] == 303 * 384


def test_logits_can_be_asked_for(predictor):
    logits, _, _ = predictor.predict(np.array([COIN_XY]), np.array([1]), return_logits=True)
    masks, _, _ = predictor.predict(np.array([COIN_XY]), np.array([1]))
    assert ((logits > 0) == masks).all()


def test_distinct_nodes_have_no_large_iou(coins_tree):
    chain = coins_tree.path(55, 44)
    nodes = distinct_nodes(coins_tree, chain, click_scores(coins_tree), max_iou=0.8)
    for node in nodes:
        assert coins_tree.iou(node, nodes[nodes != node]).max() <= 0.8


@pytest.mark.parametrize(
    ('prompt', 'message'),
    [
        pytest.param({}, 'needs a positive point or a box', id='nothing'),
        pytest.param({'point_coords': [[5, 5]], 'point_labels': [0]}, 'needs a positive point', id='only negative'),
        pytest.param({'point_coords': [[384, 5]]}, 'outside the image of width 384', id='outside'),
        pytest.param({'point_coords': [[5, 5]], 'point_labels': [1, 0]}, '1 points have labels of shape', id='labels'),
        pytest.param({'point_coords': [5, 5]}, r'shape \(N, 2\)', id='one point without its list'),
        pytest.param({'point_coords': [[5, 5]], 'point_labels': [2]}, 'must be 1, 0 or -1', id='corner labels'),
        pytest.param({'box': [400, 10, 450, 20]}, 'contains no pixel', id='box outside'),
        pytest.param({'box': [10, 10, 10, 20]}, 'contains no pixel', id='empty box'),
        pytest.param({'box': [[1, 2, 3, 4], [5, 6, 7, 8]]}, 'four numbers', id='two boxes'),
        pytest.param({'point_coords': [[5, 5]], 'granularity': 1.5}, r'in \[0, 1\]', id='granularity'),
        pytest.param({'point_coords': [[5, 5]], 'mask_input': np.zeros((8, 8))}, r'\(1, 256, 256\)', id='mask input'),
        pytest.param({'point_coords': [[5, 5]], 'mask_input': np.full((256, 256), np.nan)}, 'no NaN', id='NaN'),
        pytest.param({'point_coords': [[5, 5]], 'granularity': 'fine'}, 'real numbers', id='granularity in words'),
        pytest.param({'point_coords': [[5, 5]], 'granularity': [0.2, 0.4]}, r'in \[0, 1\]', id='granularities'),
        pytest.param({'point_coords': [['a', 'b']]}, 'points must be an array of real numbers', id='words'),
        pytest.param({'point_coords': [[1, 2], [3]]}, 'points must be an array of real numbers', id='ragged'),
        pytest.param({'box': 'abcd'}, 'a box must be an array of real numbers', id='box in words'),
    ],
)
def test_impossible_prompts_are_refused(predictor, prompt, message):
    with pytest.raises(UnSAMError, match=message):
        predictor.predict(**prompt)


def test_an_image_has_to_be_set_first(generator, coins_tree):
    predictor = UnSAMPredictor(generator=generator)
    assert not predictor.is_image_set
    with pytest.raises(UnSAMError, match='call set_image'):
        predictor.predict(np.array([[1, 1]]))
    predictor.set_hierarchy(coins_tree)
    predictor.reset_image()
    assert not predictor.is_image_set


def test_bgr_images_give_the_masks_of_their_rgb_form(generator, coffee):
    predictor = UnSAMPredictor(generator=generator)
    predictor.set_image(coffee)
    rgb = predictor.hierarchy
    predictor.set_image(coffee[..., ::-1], image_format='BGR')
    assert (predictor.hierarchy.leaf_labels == rgb.leaf_labels).all()


@pytest.mark.parametrize(
    'call',
    [
        lambda: UnSAMPredictor(engine='magic'),
        lambda: UnSAMPredictor(engine=None),
        lambda: UnSAMAutomaticMaskGenerator(None),
        lambda: UnSAMAutomaticMaskGenerator(None, output_mode='png'),
        lambda: UnSAMAutomaticMaskGenerator(None, max_masks=0),
        lambda: UnSAMAutomaticMaskGenerator(None, max_masks=1.5),
        lambda: UnSAMAutomaticMaskGenerator(None, pred_iou_thresh=float('nan')),
        lambda: UnSAMAutomaticMaskGenerator(None, stability_score_thresh=float('nan')),
        lambda: UnSAMAutomaticMaskGenerator(None, box_nms_thresh=float('nan')),
    ],
)
def test_unknown_choices_are_refused(call):
    with pytest.raises(UnSAMError, match='must be'):
        call()


@pytest.mark.parametrize('output_mode', ['binary_mask', 'uncompressed_rle', 'coco_rle'])
def test_records_have_the_keys_of_segment_anything(generator, coins, output_mode):
    mask_generator = UnSAMAutomaticMaskGenerator(
        UnSAMPredictor(generator=generator), max_masks=20, min_mask_region_area=50, output_mode=output_mode
    )
    records = mask_generator.generate(coins)
    assert len(records) == 20
    for record in records:
        mask = record['segmentation']
        if output_mode != 'binary_mask':
            mask = decode_rles([rle_from_json(mask)], (303, 384))[0]
        x, y, width, height = (int(value) for value in record['bbox'])
        assert record['area'] == mask.sum() == mask[y : y + height, x : x + width].sum() >= 50
        point_x, point_y = record['point_coords'][0]
        assert mask[int(point_y), int(point_x)]
        assert 0 <= record['stability_score'] <= 1
        assert record['crop_box'] == [0, 0, 384, 303]
        assert -1 <= record['parent'] < 20
    scores = [record['predicted_iou'] for record in records]
    assert scores == sorted(scores, reverse=True)


class Rectangles(Engine):
    """An engine with given masks."""

    name, device, size_hw = 'rectangles', 'cpu', (60, 80)

    def __init__(self, *masks):
        self.masks = MaskSet.from_bitmaps(np.array(masks), np.linspace(1, 0.5, len(masks)).astype(np.float32))

    def set_image(self, rgb):
        pass

    def answer(self, prompt, multimask_output, granularity):
        raise NotImplementedError

    def all_masks(self, max_masks, min_area_px, points_per_side, max_iou):
        return self.masks, np.ones(len(self.masks), np.float32)


def rectangle(*boxes, holes=()):
    mask = np.zeros((60, 80), bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    for x0, y0, x1, y1 in holes:
        mask[y0:y1, x0:x1] = False
    return mask


CLEANED = {
    'a small hole is filled, a large one is not': (
        rectangle((10, 10, 40, 40), holes=[(12, 12, 15, 15), (20, 20, 30, 30)]),
        rectangle((10, 10, 40, 40), holes=[(20, 20, 30, 30)]),
    ),
    'a small part is removed, a large one is not': (
        rectangle((10, 10, 40, 40), (50, 10, 60, 20), (70, 50, 73, 53)),
        rectangle((10, 10, 40, 40), (50, 10, 60, 20)),
    ),
    'parts that touch at a corner hang together': (rectangle((10, 10, 20, 20), (20, 20, 23, 23)),) * 2,
    'a corner of the image that is cut off counts as a hole': (
        rectangle((0, 0, 80, 60), holes=[(0, 0, 3, 3), (78, 0, 80, 60)]),
        rectangle((0, 0, 80, 60), holes=[(78, 0, 80, 60)]),
    ),
    'of small parts the largest stays': (rectangle((10, 10, 12, 12), (30, 30, 33, 33)), rectangle((30, 30, 33, 33))),
}


@pytest.mark.parametrize(('mask', 'expected'), CLEANED.values(), ids=CLEANED)
def test_small_holes_and_parts_of_masks_are_cleaned_as_by_segment_anything(mask, expected):
    [record] = UnSAMAutomaticMaskGenerator(Rectangles(mask), min_mask_region_area=20).generate(np.eye(60, 80))
    np.testing.assert_array_equal(record['segmentation'], expected)
    assert record['area'] == expected.sum()
    x, y, width, height = (int(side) for side in record['bbox'])
    assert expected[y : y + height, x : x + width].sum() == expected.sum()


def test_of_masks_that_become_equal_the_best_is_kept():
    whole, holed = rectangle((10, 10, 40, 40)), rectangle((10, 10, 40, 40), holes=[(12, 12, 15, 15)])
    inner = rectangle((20, 20, 28, 28))
    records = UnSAMAutomaticMaskGenerator(Rectangles(holed, inner, whole), min_mask_region_area=20).generate(
        np.eye(60, 80)
    )
    assert [record['predicted_iou'] for record in records] == [1.0, 0.75]
    assert [record['parent'] for record in records] == [-1, 0]


@pytest.mark.parametrize(
    'arguments', [{'crop_n_layers': 1}, {'stability_score_offset': 0.9}, {'min_mask_region_area': -1}]
)
def test_unsupported_arguments_of_segment_anything_are_refused(arguments):
    with pytest.raises(UnSAMError, match=f'^{next(iter(arguments))} must .*got '):
        UnSAMAutomaticMaskGenerator(Rectangles(rectangle((1, 1, 9, 9))), **arguments)


def test_the_region_tree_is_that_of_the_engine(generator, coins, coins_tree):
    predictor = UnSAMPredictor(generator=generator)
    with pytest.raises(UnSAMError, match='set_image'):
        _ = predictor.hierarchy
    predictor.set_hierarchy(coins_tree)
    assert predictor.hierarchy is coins_tree
    other = UnSAMPredictor(Rectangles(rectangle((1, 1, 9, 9))))
    with pytest.raises(UnSAMError, match='has no region tree of this image of'):
        _ = other.hierarchy


def test_contradictory_prompts_of_a_batch_are_padded_with_empty_masks(predictor):
    points = np.array([[COIN_XY, COIN_XY], [COIN_XY, NEXT_COIN_XY]])
    masks, scores, logits = predictor.predict_torch(points, np.array([[1, 0], [1, 0]]))
    assert masks.shape == (2, 6, 303, 384)
    assert logits.shape == (2, 6, 256, 256)
    assert not masks[0].any()
    assert not scores[0].any()
    assert masks[1, 0, 55, 44]
    assert not masks[1, :, 55, 99].any()


@pytest.mark.parametrize('form', [lambda x: x.requires_grad_(), lambda x: x.bfloat16()])
def test_tensors_of_any_kind_are_prompts(predictor, form):
    torch = pytest.importorskip('torch')
    points = form(torch.tensor([[[44.0, 56.0]]]))
    masks, _, _ = predictor.predict_torch(points, torch.ones(1, 1))
    assert masks[0, 0, 56, 44]


@pytest.mark.parametrize(
    'changed',
    [
        lambda arrays: arrays.popitem(),
        lambda arrays: arrays.update(leaf_labels_1=np.tile(arrays['leaf_labels_1'], (2, 1))),
        lambda arrays: arrays.update(leaf_labels_0=arrays['leaf_labels_0'] + 0.5),
    ],
)
def test_inconsistent_trees_are_refused(predictor, changed):
    arrays = predictor.engine.embedding()
    changed(arrays)
    with pytest.raises(UnSAMError, match='not region trees of one image'):
        MaskHierarchy.from_arrays(arrays)


def test_a_saved_tree_can_be_loaded_in_place_of_an_image(predictor, generator, tmp_path):
    predictor.save_embedding(tmp_path / 'coins.npz')
    other = UnSAMPredictor(generator=generator)
    other.load_embedding(tmp_path / 'coins.npz')
    tree, again = predictor.hierarchy, other.hierarchy
    assert len(again.alternatives) == len(tree.alternatives)
    for one, two in zip((tree, *tree.alternatives), (again, *again.alternatives), strict=True):
        assert all((getattr(one, name) == getattr(two, name)).all() for name in ('leaf_labels', 'parent', 'score'))


def test_the_embedding_is_available_as_arrays(predictor, generator):
    with pytest.raises(UnSAMError, match='no image is set'):
        UnSAMPredictor(generator=generator).get_image_embedding()
    again = MaskHierarchy.from_arrays(predictor.get_image_embedding())
    assert (again.leaf_labels == predictor.hierarchy.leaf_labels).all()


SCRIPT = """
import numpy as np
import torch
from segment_anything import sam_model_registry, SamPredictor
from segment_anything import SamAutomaticMaskGenerator

sam = sam_model_registry['default'](checkpoint=checkpoint)
sam.to(device='cpu')
predictor = SamPredictor(sam)
predictor.set_image(image)
input_point = np.array([[150, 100]])
input_label = np.array([1])
masks, scores, logits = predictor.predict(point_coords=input_point, point_labels=input_label, multimask_output=True)
mask_input = logits[np.argmax(scores), :, :]
refined, _, _ = predictor.predict(
    point_coords=np.array([[150, 100], [10, 10]]),
    point_labels=np.array([1, 0]),
    mask_input=mask_input[None, :, :],
    multimask_output=False,
)
input_box = np.array([60, 40, 240, 160])
boxed, _, _ = predictor.predict(point_coords=None, point_labels=None, box=input_box[None, :], multimask_output=False)
input_boxes = torch.tensor([[60, 40, 240, 160], [5, 5, 80, 60]], device=predictor.device)
transformed_boxes = predictor.transform.apply_boxes_torch(input_boxes, image.shape[:2])
batch, _, _ = predictor.predict_torch(
    point_coords=None, point_labels=None, boxes=transformed_boxes, multimask_output=False
)
mask_generator = SamAutomaticMaskGenerator(model=sam, points_per_side=4, min_mask_region_area=100)
records = mask_generator.generate(image)
"""
IMPORTS = {
    'from segment_anything import sam_model_registry, SamPredictor': (
        'from unsam_mm import unsam_model_registry as sam_model_registry, UnSAMPredictor as SamPredictor'
    ),
    'from segment_anything import SamAutomaticMaskGenerator': (
        'from unsam_mm import UnSAMAutomaticMaskGenerator as SamAutomaticMaskGenerator'
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['default', 'tree'])
def test_a_script_for_segment_anything_runs_once_its_two_imports_are_changed(coffee, generator, tmp_path, name):
    from unsam_mm.student import RegionNet
    from unsam_mm.student.weights import save_weights

    script = SCRIPT.replace("['default']", f'[{name!r}]')
    for before, after in IMPORTS.items():
        script = script.replace(before, after)
    checkpoint = None
    if name == 'default':
        checkpoint = tmp_path / 'small.safetensors'
        net = RegionNet(width=32, heads=2)
        net.mask.pair_out.bias.data.fill_(2.0)  # untrained, it might find every mask empty
        save_weights(checkpoint, net, n_tokens=100)
    names = {'image': coffee, 'checkpoint': checkpoint}
    exec(compile(script, 'script.py', 'exec'), names)
    assert names['masks'].shape[1:] == (200, 300)
    assert names['masks'][:, 100, 150].all()
    assert names['logits'].shape[1:] == (256, 256)
    assert len(names['refined']) == len(names['boxed']) == 1
    assert names['refined'][0, 100, 150]
    assert not names['refined'][0, 10, 10]
    assert names['batch'].shape == (2, 1, 200, 300)
    assert len(names['records']) >= 1
    for record in names['records']:  # `min_mask_region_area=100`
        areas = np.bincount(label(record['segmentation']).ravel())[1:]
        assert (np.sort(areas)[:-1] >= 100).all()


@pytest.mark.parametrize('size_hw', [(300, 511), (1024, 1024), (700, 20)])
@pytest.mark.parametrize('window', [np.s_[:, :], np.s_[100:137, 3:17], np.s_[0:0, 0:0]])
def test_low_resolution_logits_are_the_shares_of_cells(size_hw, window):
    mask = np.zeros(size_hw, bool)
    mask[window] = np.random.default_rng(0).random(mask[window].shape) < 0.5
    rows, columns = (max(1, round(side * 256 / max(size_hw))) for side in size_hw)
    starts = [-(-np.arange(count) * side // count) for count, side in zip((rows, columns), size_hw, strict=True)]
    cells = [np.add.reduceat(np.add.reduceat(x.astype(int), starts[0], 0), starts[1], 1) for x in (mask, mask | True)]
    logits = low_resolution_logits(mask[None])[0]
    assert np.allclose(logits[:rows, :columns], 8 * (cells[0] / cells[1] - 0.5), atol=1e-5)
    assert (logits[rows:] == -4).all()
    assert (logits[:, columns:] == -4).all()
