"""Three engines, one set of figures: this package, pycocotools, faster-coco-eval."""

import sys
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tests.test_evaluation.scenes import MAX_DETS, OBJECT, box_mask, coco, record, scenes
from unsam_mm.errors import UnSAMError
from unsam_mm.evaluation import ENGINES, evaluate_masks
from unsam_mm.evaluation.matching import overlaps, read_image

OTHERS = [engine for engine in ENGINES if engine != 'unsam']
TOLERANCE = 1e-9


@pytest.fixture(params=OTHERS)
def engine(request):
    """Each toolbox that is installed."""
    pytest.importorskip(request.param)
    return request.param


def assert_all_agree(predictions, ground_truth, engine, **options):
    """The figures of this package, after they were found equal to those of `engine`."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*have no prediction')
        ours = evaluate_masks(predictions, ground_truth, **options)
        theirs = evaluate_masks(predictions, ground_truth, **options, engine=engine)
    assert list(ours) == list(theirs)
    assert ours == pytest.approx(theirs, abs=TOLERANCE)
    return ours


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(scenes(), st.sampled_from([MAX_DETS, (1, 2, 3)]))
def test_random_scenes_have_the_same_figures(engine, scene, max_dets):
    assert_all_agree(*scene, engine, max_dets=max_dets)


def test_beyond_the_thousandth_prediction_nothing_counts(engine):
    truth = coco([record(1, OBJECT, area=400), record(2, OBJECT, area=400)], n_images=2)
    speck = record(1, box_mask(0, 0, 2, 2), score=0.9)
    late = [speck] * 1000 + [record(1, OBJECT, score=0.1)]
    in_time = [speck | {'image_id': 2}] * 999 + [record(2, OBJECT, score=0.1)]
    assert assert_all_agree(late + in_time, truth, engine)['AR@1000'] == 0.5


def test_image_without_truth_adds_false_predictions_only(engine):
    truth = coco([record(1, OBJECT, area=400)], n_images=2)
    predictions = [record(1, OBJECT, score=0.5), record(2, OBJECT, score=0.9)]
    metrics = assert_all_agree(predictions, truth, engine)
    assert (metrics['AR@1000'], metrics['AP@1000']) == (1.0, pytest.approx(0.5))


def test_empty_truth_and_empty_prediction_match_nothing(engine):
    nothing = np.zeros((40, 60), bool)
    truth = coco([record(1, OBJECT, area=400), record(1, nothing, area=0)])
    predictions = [record(1, nothing, score=0.9), record(1, OBJECT, score=0.5)]
    assert assert_all_agree(predictions, truth, engine)['AR@1000'] == 0.5


def test_nothing_predicted_at_all_is_nothing_found(engine):
    metrics = assert_all_agree([], coco([record(1, OBJECT, area=400)]), engine)
    assert set(metrics.values()) == {0.0, -1.0}


def test_crowd_takes_any_number_of_predictions_and_is_never_missed(engine):
    crowd = record(1, box_mask(0, 0, 40, 30), area=1200, iscrowd=1)
    truth = coco([crowd, record(1, box_mask(5, 35, 25, 55), area=400)])
    inside = [record(1, box_mask(y, 2, y + 6, 12), score=0.9) for y in range(0, 30, 6)]
    metrics = assert_all_agree([*inside, record(1, box_mask(5, 35, 25, 55), score=0.1)], truth, engine)
    assert (metrics['AR@1000'], metrics['AP@1000']) == (1.0, pytest.approx(1.0))


def test_equal_scores_keep_the_order_of_the_file(engine):
    truth = coco([record(1, OBJECT, area=400), record(2, OBJECT, area=400)], n_images=2)
    wrong = box_mask(0, 40, 10, 50)
    predictions = [record(i, mask, score=0.5) for i in (2, 1) for mask in (wrong, OBJECT)]
    metrics = assert_all_agree(predictions, truth, engine)
    assert (metrics['AR@1'], metrics['AR@10']) == (0.0, 1.0)


def test_area_of_one_pixel_of_the_limits_and_of_a_whole_large_image(engine):
    size_hw = (1200, 1300)
    masks = [
        box_mask(7, 3, 8, 4, size_hw),
        box_mask(100, 100, 132, 132, size_hw),  # 32 x 32 is small and medium
        box_mask(300, 300, 396, 396, size_hw),  # 96 x 96 is medium and large
        np.ones(size_hw, bool),
    ]
    truth = coco([record(1, mask, area=int(mask.sum())) for mask in masks], size_hw)
    metrics = assert_all_agree([record(1, mask, score=0.5) for mask in masks[:3]], truth, engine)
    assert [metrics[f'AR_{size}@1000'] for size in 'sml'] == [1.0, 1.0, 0.5]


def test_categories_collapse_to_one(engine):
    truth = coco([record(1, OBJECT, area=400) | {'category_id': 2}, record(1, box_mask(0, 40, 10, 50), area=100)])
    predictions = [record(1, OBJECT, score=0.5), record(1, box_mask(0, 40, 10, 50), score=0.4) | {'category_id': 2}]
    assert assert_all_agree(predictions, truth, engine)['AR@1000'] == 1.0


def test_image_ids_may_be_text_and_annotation_ids_zero(engine):
    truth = coco([record(1, OBJECT, area=400), record(2, OBJECT, area=400)], n_images=2)
    names = {1: 'b.png', 2: 'a.png'}
    for entry in truth['images']:
        entry['id'] = names[entry['id']]
    for number, annotation in enumerate(truth['annotations']):
        annotation |= {'id': number, 'image_id': names[annotation['image_id']]}
    assert assert_all_agree([record('b.png', OBJECT, score=0.5)], truth, engine)['AR@1'] == 0.5


def test_other_area_ranges_keep_their_names(engine):
    truth = coco([record(1, OBJECT, area=400), record(1, box_mask(0, 40, 10, 50), area=100)])
    ranges = {'speck': (0, 200), 'rest': (200, 1e10)}
    metrics = assert_all_agree([record(1, OBJECT, score=1.0)], truth, engine, area_ranges=ranges)
    assert (metrics['AR_speck@1000'], metrics['AR_rest@1000']) == (0.0, 1.0)


@settings(max_examples=30, deadline=None)
@given(scenes())
def test_pairs_that_are_not_compared_overlap_by_less_than_one_half(scene):
    predictions, truth = scene
    of_first = ([r for r in records if r['image_id'] == 1] for records in (predictions, truth['annotations']))
    detections, truths = read_image(*of_first, (120, 110), 1000)
    exact = coco_mask.iou(detections.rles, truths.rles, truths.is_crowd.astype(np.uint8).tolist())
    found = overlaps(detections, truths)
    assert (found == np.where(found > 0, exact, 0)).all()
    assert (exact[found == 0] < 0.5).all()


def test_an_unknown_engine_is_refused():
    with pytest.raises(UnSAMError, match="one of unsam, pycocotools, faster_coco_eval, got 'fast'"):
        evaluate_masks([], coco([record(1, OBJECT, area=400)]), engine='fast')


def test_an_engine_that_is_not_installed_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, 'faster_coco_eval', None)
    with pytest.raises(UnSAMError, match=r"'faster_coco_eval' is not installed; run: pip install 'unsam_mm\[eval\]'"):
        evaluate_masks([record(1, OBJECT, score=1.0)], coco([record(1, OBJECT, area=400)]), engine='faster_coco_eval')
