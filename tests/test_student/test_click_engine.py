"""The predictor with the region model as its engine."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from tests.conftest import skip_without_weights
from unsam_mm import UnSAMAutomaticMaskGenerator, UnSAMPredictor
from unsam_mm.errors import StoreError, UnSAMError, WeightsError
from unsam_mm.masks.rle import decode_rles, rle_from_json
from unsam_mm.prompting.model import RegionEngine
from unsam_mm.student import RegionNet

CLICK = {'point_coords': np.array([[150, 100]]), 'point_labels': np.array([1])}


@pytest.fixture(scope='module')
def predictor(colour_tokenizer, coffee):
    torch.manual_seed(0)
    net = RegionNet(width=32, heads=2, encoder_layers=1, decoder_layers=1, prompt_channels=8, feature_channels=3)
    predictor = UnSAMPredictor(RegionEngine(net, lambda device: colour_tokenizer(80)))
    predictor.set_image(coffee)
    return predictor


def test_masks_have_the_shapes_of_segment_anything_and_come_best_first(predictor):
    masks, scores, logits = predictor.predict(**CLICK)
    assert 1 <= len(masks) <= 6
    assert (masks.shape[1:], masks.dtype, logits.shape[1:]) == ((200, 300), bool, (256, 256))
    assert len(masks) == len(scores) == len(logits)
    assert (np.diff(scores) <= 0).all()
    assert masks[:, 100, 150].all()
    best, _, _ = predictor.predict(**CLICK, multimask_output=False)
    assert (best == masks[:1]).all()


def test_low_resolution_logits_describe_the_mask(predictor):
    masks, _, logits = predictor.predict(**CLICK, multimask_output=False)
    shown = logits[0, :171] > 0  # 200 of 300 rows
    assert shown.mean() == pytest.approx(masks[0].mean(), abs=0.02)
    assert (logits[0, 171:] < 0).all()


def test_the_area_never_falls_as_granularity_rises(predictor):
    areas = [predictor.predict(**CLICK, granularity=g)[0].sum() for g in np.linspace(0, 1, 11)]
    assert all(finer <= coarser for finer, coarser in itertools.pairwise(areas))


@pytest.mark.slow
def test_granularity_has_an_effect_after_a_prediction_without_it(coffee):
    """With the packaged model; that of the fixture is not trained."""
    skip_without_weights()
    trained = UnSAMPredictor.from_pretrained()
    trained.set_image(coffee)
    click = {'point_coords': np.array([[150, 100]]), 'point_labels': np.array([1])}
    clicks = {'point_coords': np.array([[150, 100], [5, 5]]), 'point_labels': np.array([1, 0])}
    for prompt in (click, clicks, {'box': np.array([75, 50, 225, 150])}):
        trained.predict(**prompt)
        areas = [int(trained.predict(**prompt, granularity=g)[0].sum()) for g in (0.1, 0.65, 1.0)]
        assert areas == sorted(areas)
        assert areas[0] < areas[-1] / 3


def test_an_earlier_mask_can_be_given(predictor):
    _, _, logits = predictor.predict(**CLICK)
    masks, _, _ = predictor.predict(**CLICK, mask_input=logits[:1], multimask_output=False)
    assert masks[0, 100, 150]


def test_many_prompts_are_predicted_in_one_call(predictor):
    points = torch.tensor([[[150, 100], [5, 5]], [[20, 30], [0, 0]]])
    masks, scores, logits = predictor.predict_torch(points, torch.tensor([[1, 0], [1, -1]]))
    assert (masks.shape, scores.shape, logits.shape) == ((2, 6, 200, 300), (2, 6), (2, 6, 256, 256))
    for i, (prompt, labels) in enumerate([(points[0], [1, 0]), (points[1, :1], [1])]):
        alone, alone_scores, _ = predictor.predict(prompt.numpy(), np.array(labels))
        assert (masks[i, : len(alone)].numpy() == alone).all()
        assert (scores[i, : len(alone)].numpy() == alone_scores).all()
        assert not masks[i, len(alone) :].any()
        assert not scores[i, len(alone) :].any()


@pytest.mark.parametrize(
    ('points', 'labels', 'boxes'),
    [(None, None, None), (torch.zeros(0, 1, 2), torch.zeros(0, 1), None), (None, None, torch.zeros(0, 4))],
)
def test_calls_without_prompts_are_refused(predictor, points, labels, boxes):
    with pytest.raises(UnSAMError, match='the same number of objects'):
        predictor.predict_torch(points, labels, boxes)


def test_an_embedding_can_be_loaded_in_place_of_an_image(predictor, tmp_path):
    path = tmp_path / 'cup.npz'
    for _ in range(2):  # the second replaces the first
        predictor.save_embedding(path)

    def no_tokenizer(device):
        raise AssertionError('needs no image')

    other = UnSAMPredictor(RegionEngine(predictor.engine._net, no_tokenizer))
    assert not other.is_image_set
    other.load_embedding(path)
    for found, expected in zip(other.predict(**CLICK), predictor.predict(**CLICK), strict=True):
        assert (found == expected).all()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_embeddings_that_cannot_be_read_are_named(predictor, tmp_path, coins_tree, generator):
    tree = UnSAMPredictor(generator=generator)
    tree.set_hierarchy(coins_tree)
    tree.save_embedding(tmp_path / 'tree.npz')
    (tmp_path / 'broken.npz').write_bytes(b'nothing')
    for name, message in (
        ('tree.npz', "is for the engine 'tree'"),
        ('broken.npz', 'not a .npz file'),
        ('absent.npz', 'no such embedding'),
        ('picture.png', 'choose such a name'),
    ):
        with pytest.raises(StoreError, match=message):
            predictor.load_embedding(tmp_path / name)


def test_inconsistent_tokens_are_refused(predictor):
    arrays = predictor.engine.embedding()
    with pytest.raises(UnSAMError, match='no region tokens'):
        predictor.engine.set_embedding({**arrays, 'features': arrays['features'][:-1]})
    with pytest.raises(UnSAMError, match='feature channels'):
        predictor.engine.set_embedding({**arrays, 'features': np.tile(arrays['features'], 2)})
    assert predictor.is_image_set


def test_the_model_has_no_region_tree(predictor, coins_tree):
    assert predictor.hierarchy.size_hw == predictor.engine.size_hw
    with pytest.raises(UnSAMError, match='accepts no region tree'):
        predictor.set_hierarchy(coins_tree)


def test_an_image_has_to_be_set_first(predictor):
    empty = UnSAMPredictor(RegionEngine(predictor.engine._net, None))
    for call in (lambda: empty.predict(**CLICK), lambda: empty.save_embedding('a.npz')):
        with pytest.raises(UnSAMError, match='call set_image'):
            call()


def test_unknown_models_and_arguments_of_the_other_engine_are_refused(tmp_path):
    with pytest.raises(WeightsError, match='is not among the models of this installation'):
        UnSAMPredictor.from_pretrained('unsam_xxl')
    with pytest.raises(WeightsError, match='no such file'):
        UnSAMPredictor('model', weights=tmp_path / 'a.safetensors')
    with pytest.raises(UnSAMError, match="for the engine 'model'"):
        UnSAMPredictor('tree', weights='a.safetensors')
    with pytest.raises(UnSAMError, match="for the engine 'tree'"):
        UnSAMPredictor('model', generator=object())


@pytest.mark.parametrize('output_mode', ['binary_mask', 'coco_rle'])
def test_all_masks_of_an_image_are_records_of_segment_anything(predictor, coffee, output_mode):
    masks = UnSAMAutomaticMaskGenerator(
        predictor.engine, points_per_side=5, min_mask_region_area=40, output_mode=output_mode, max_masks=30
    ).generate(coffee)
    assert 1 <= len(masks) <= 30
    for record in masks:
        mask = record['segmentation']
        mask = decode_rles([rle_from_json(mask)], (200, 300))[0] if output_mode == 'coco_rle' else mask
        assert record['area'] == mask.sum() >= 40
        x, y = record['point_coords'][0]
        assert mask[int(y), int(x)]
        assert 0 <= record['stability_score'] <= 1
    scores = [record['predicted_iou'] for record in masks]
    assert scores == sorted(scores, reverse=True)
