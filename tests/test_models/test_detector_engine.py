"""The predictor with a promptable detector behind it."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

pytest.importorskip('mmdet')

from mmdet.registry import MODELS

from tests.test_models.prompt_scene import CONFIG, HEIGHT, WIDTH, batch_of, photographs, sample_of, small_model
from unsam_mm import UnSAMAutomaticMaskGenerator, UnSAMPredictor
from unsam_mm.errors import UnSAMError, WeightsError
from unsam_mm.models.detector_engine import DetectorEngine


@pytest.fixture
def detector():
    init_default_scope('mmdet')
    torch.manual_seed(0)
    return MODELS.build(small_model()).eval()


@pytest.fixture
def predictor(detector):
    predictor = UnSAMPredictor(engine=DetectorEngine(detector, scale=(WIDTH, HEIGHT)))
    predictor.set_image(photographs()[1])
    return predictor


def clicked(predictor, *clicks, **more):
    """Clicks as x, y, label."""
    clicks = np.array(clicks)
    return predictor.predict(clicks[:, :2], clicks[:, 2], **more)


def test_one_click_has_the_masks_of_the_detector(detector, predictor):
    masks, scores, _ = clicked(predictor, (40, 50, 1))
    detector.mask_head.mask_format = 'bitmap'
    with torch.no_grad():
        data = batch_of(photographs()[1], sample_of(points=np.array([[40.5, 50.5]])))
        expected = detector.test_step(data)[0].pred_instances
    # Weights drawn at random do not always put the click into the mask; those masks come last.
    holds = expected.masks[0][:, 50, 40]
    order = np.lexsort((-expected.scores[0], ~holds))
    assert np.array_equal(masks, expected.masks[0][order].numpy())
    assert np.allclose(scores, expected.scores[0][order].clamp(0, 1).numpy(), atol=1e-4)


def test_the_detector_sees_the_channels_that_its_preprocessor_asks_for():
    """Both preprocessors give the network the same pixels, one from BGR, the other from RGB."""
    answers = []
    for bgr_to_rgb in (True, False):
        config = small_model()
        config.data_preprocessor.bgr_to_rgb = bgr_to_rgb
        init_default_scope('mmdet')
        torch.manual_seed(0)
        predictor = UnSAMPredictor(engine=DetectorEngine(MODELS.build(config), scale=(WIDTH, HEIGHT)))
        predictor.set_image(photographs()[1])
        answers.append(clicked(predictor, (40, 50, 1))[2])
    assert np.array_equal(*answers)


@pytest.fixture
def given_by(detector, tmp_path):
    """Reads an orange image of 64 x 96 px by a config: what the preprocessor is given, (3, H, W)."""

    def read(steps, swaps=None):
        config = small_model()
        config.data_preprocessor.update(swaps or {})
        torch.save({'state_dict': detector.state_dict()}, tmp_path / 'small.pth')
        dataset = {'type': 'RepeatDataset', 'dataset': {'pipeline': steps}}
        tested = {} if steps is None else {'test_dataloader': {'dataset': dataset}}
        Config({'model': config, **tested}).dump(tmp_path / 'small.py')
        engine = DetectorEngine.from_config(tmp_path / 'small.py', tmp_path / 'small.pth')
        given = []
        engine._model.data_preprocessor.register_forward_pre_hook(lambda _, data: given.append(data[0]['inputs'][0]))
        engine.set_image(np.full((64, 96, 3), (200, 100, 50), np.uint8))
        return given[0]

    return read


@pytest.mark.parametrize(
    ('swaps', 'loader', 'expected'),
    [
        ({'bgr_to_rgb': False}, {'type': 'UnSAMLoadImage', 'channel_order': 'bgr'}, 'bgr'),
        ({'bgr_to_rgb': False}, {'type': 'mmdet.LoadImageFromFile'}, 'bgr'),
        ({'bgr_to_rgb': False}, {'type': 'UnSAMLoadImage', 'channel_order': 'rgb'}, 'rgb'),
        ({'bgr_to_rgb': False, 'rgb_to_bgr': True}, {'type': 'UnSAMLoadImage', 'channel_order': 'rgb'}, 'rgb'),
        ({'bgr_to_rgb': True}, {'type': 'UnSAMLoadImage'}, 'bgr'),
        ({'bgr_to_rgb': True}, None, 'bgr'),
        ({'bgr_to_rgb': False, 'rgb_to_bgr': True}, None, 'rgb'),
    ],
)
def test_a_config_says_in_which_order_the_detector_is_given_channels(given_by, swaps, loader, expected):
    steps = loader and [loader, {'type': 'mmdet.Resize', 'scale': (96, 64), 'keep_ratio': True}]
    assert given_by(steps, swaps)[:, 0, 0].tolist() == ([50, 100, 200] if expected == 'bgr' else [200, 100, 50])


@pytest.mark.parametrize(
    ('scale', 'size_hw'), [((192, 128), (128, 192)), ([80, 192], (80, 120)), (48, (32, 48)), (None, (800, 1200))]
)
def test_images_are_resized_as_in_the_test_of_the_config(given_by, scale, size_hw):
    resize = {'type': 'Resize', 'scale': scale, 'keep_ratio': True}
    assert given_by(scale and [{'type': 'UnSAMLoadImage'}, resize]).shape == (3, *size_hw)


@pytest.mark.parametrize(
    'resizes',
    [
        [{'type': 'Resize', 'scale_factor': 0.5, 'keep_ratio': True}],
        [{'type': 'Resize', 'scale': (96, 32), 'keep_ratio': False}],
        [{'type': 'Resize', 'scale': 96}],  # MMCV changes the ratio unless it is told to keep it
        [{'type': 'Resize', 'scale': (96, 64), 'keep_ratio': True, 'interpolation': 'bicubic'}],
        [{'type': 'mmdet.FixShapeResize', 'width': 96, 'height': 64, 'keep_ratio': True}],
        [{'type': 'ResizeShortestEdge', 'scale': 64, 'max_size': 96}],
        [],
    ],
)
def test_a_config_whose_test_resizes_images_in_another_way_is_refused(given_by, resizes):
    with pytest.raises(
        UnSAMError, match=r'small\.py: test_dataloader resizes images by .*; expected Resize with scale, keep'
    ):
        given_by([{'type': 'UnSAMLoadImage'}, *resizes])


@pytest.mark.parametrize('changed', [{'bgr_to_rgb': False, 'rgb_to_bgr': False}, {'pad_size_divisor': 64}])
def test_the_signature_tells_detectors_apart_that_prepare_images_in_other_ways(changed):
    signatures = set()
    for settings in ({'bgr_to_rgb': True}, changed):
        config = small_model()
        config.data_preprocessor.update(settings)
        init_default_scope('mmdet')
        torch.manual_seed(0)
        signatures.add(DetectorEngine(MODELS.build(config), channel_order='bgr').signature)
    assert len(signatures) == 2


def test_an_image_of_another_size_is_resized_and_answered_in_its_own_pixels(detector):
    predictor = UnSAMPredictor(engine=DetectorEngine(detector, scale=(WIDTH, HEIGHT)))
    predictor.set_image(np.repeat(np.repeat(photographs()[1], 2, axis=0), 2, axis=1))
    masks, _, _ = clicked(predictor, (80, 100, 1))
    assert masks.shape == (6, 2 * HEIGHT, 2 * WIDTH)


def test_masks_of_untrained_weights_that_agree_with_all_clicks_come_first(predictor):
    """Several clicks are asked one by one, and what they found is ordered."""
    masks, _, logits = clicked(predictor, (40, 50, 1), (90, 20, 1), (10, 80, 0))
    right = masks[:, 50, 40].astype(int) + masks[:, 20, 90] + ~masks[:, 80, 10]
    assert (np.diff(right) <= 0).all()
    again = clicked(predictor, (40, 50, 1), (90, 20, 1), (10, 80, 0), mask_input=logits[3:4])[0]
    assert sorted(again.sum(axis=(1, 2))) != sorted(masks.sum(axis=(1, 2))) or not np.array_equal(again, masks)


@pytest.mark.parametrize('trained', [False, True])
def test_of_the_masks_that_agree_with_the_click_the_one_nearest_in_size_is_given(detector, predictor, trained):
    detector.mask_head.details.trained.fill_(trained)
    torch.nn.init.normal_(detector.mask_head.details.granularity_mlp[-1].weight, std=4.0)  # zero before training
    granularities = np.linspace(0, 1, 17)
    areas = np.array([clicked(predictor, (40, 50, 1), granularity=value)[0].sum() for value in granularities])
    assert (np.diff(areas) >= 0).all()
    assert areas[-1] > areas[0]
    apart = np.abs(np.log(areas) - np.log(HEIGHT * WIDTH * 10 ** (4 * (granularities[1:, None] - 1))))
    assert (apart[np.arange(16), np.arange(1, 17)] == apart.min(axis=1)).all()


def test_trained_weights_are_asked_everything_at_once(detector, predictor):
    detector.mask_head.details.trained.fill_(True)
    asked = {}
    answer = detector.mask_head.answer

    def watch(*arguments, **options):
        asked['details'] = options['details']
        return answer(*arguments, **options)

    detector.mask_head.answer = watch
    mask = np.full((1, 256, 256), 4.0, np.float32)
    masks, _, _ = clicked(
        predictor, (40, 50, 1), (90, 20, 0), box=np.array([20, 30, 70, 80]), mask_input=mask, granularity=0.5
    )
    assert masks.shape == (1, HEIGHT, WIDTH)
    assert (asked['details'].kinds == torch.tensor([1, 0])).all()
    assert asked['details'].masks.all()
    assert asked['details'].granularity.tolist() == [np.linspace(0, 1, 17).tolist()]


def test_all_masks_of_a_grid_differ(predictor):
    generator = UnSAMAutomaticMaskGenerator(
        predictor, points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0, box_nms_thresh=0.99
    )
    records = generator.generate(photographs()[1])
    assert len(records) > 1
    for record in records:
        expected = max(1 + np.log10(record['segmentation'].sum() / (HEIGHT * WIDTH)) / 4, 0)
        assert record['granularity'] == pytest.approx(expected, abs=1e-6)
        if record['parent'] >= 0:
            assert record['granularity'] <= records[record['parent']]['granularity']
    masks = np.array([record['segmentation'] for record in records])[:, 2::4, 2::4].reshape(len(records), -1)
    assert len(np.unique(masks, axis=0)) == len(masks)


def test_an_embedding_answers_without_the_image(predictor, detector, tmp_path):
    expected = clicked(predictor, (40, 50, 1))[0]
    predictor.save_embedding(tmp_path / 'photo.npz')
    other = UnSAMPredictor(engine=DetectorEngine(detector))
    other.load_embedding(tmp_path / 'photo.npz')
    found = clicked(other, (40, 50, 1))[0]
    assert (found != expected).mean() < 0.01  # float16
    with pytest.raises(UnSAMError, match='no embedding of an image by this model'):
        other.engine.set_embedding({'frames': np.zeros((3, 2))})


def test_a_config_and_a_checkpoint_make_an_engine(detector, tmp_path):
    torch.save({'state_dict': detector.state_dict()}, tmp_path / 'small.pth')
    Config({'model': small_model()}).dump(tmp_path / 'small.py')
    engine = DetectorEngine.from_config(tmp_path / 'small.py', tmp_path / 'small.pth')
    assert torch.equal(engine._head.mask_tokens.weight, detector.mask_head.mask_tokens.weight)
    with pytest.raises(WeightsError, match='the checkpoint is not one of this model'):
        DetectorEngine.from_config(CONFIG, tmp_path / 'small.pth')


def test_a_detector_that_answers_no_prompts_is_refused(detector):
    detector.mask_head = torch.nn.Identity()
    with pytest.raises(UnSAMError, match='a detector with the head Identity is not promptable'):
        DetectorEngine(detector)
