"""Class-agnostic average recall against pycocotools, and by hand on masks whose overlap is known."""

import copy

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from skimage import data, segmentation

from tests.test_evaluation.scenes import MAX_DETS, OBJECT, box_mask, coco, record, reference, scenes
from unsam_mm.errors import UnSAMError
from unsam_mm.evaluation import evaluate_masks, format_table


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scenes(), st.sampled_from([MAX_DETS, (1, 2, 3)]))
def test_equals_pycocotools_on_random_scenes(scene, max_dets):
    predictions, ground_truth = scene
    expected = reference(predictions, ground_truth, max_dets)
    assert evaluate_masks(predictions, ground_truth, max_dets) == pytest.approx(expected, abs=1e-9)


def test_equals_pycocotools_on_regions_of_real_photographs():
    annotations, predictions = [], []
    for image_id, image in enumerate((data.coffee()[::2, ::2], data.astronaut()[:400:2, ::2]), start=1):
        coarse = segmentation.felzenszwalb(image, scale=400, min_size=60)
        fine = segmentation.slic(image, 60, start_label=0)
        annotations += [record(image_id, coarse == i, area=int((coarse == i).sum())) for i in np.unique(coarse)]
        for labels in (segmentation.felzenszwalb(image, scale=300, min_size=40), fine):
            predictions += [record(image_id, labels == i, score=float((labels == i).mean())) for i in np.unique(labels)]
    ground_truth = coco(annotations, n_images=2)
    for entry, shape in zip(ground_truth['images'], ((200, 300), (200, 256)), strict=True):
        entry['height'], entry['width'] = shape
    metrics = evaluate_masks(predictions, ground_truth)
    assert metrics == pytest.approx(reference(predictions, ground_truth), abs=1e-9)
    assert 0.05 < metrics['AR@1000'] < 0.95


@pytest.mark.parametrize(
    ('shift_px', 'found_of_ten'),
    [
        pytest.param(0, 10, id='equal masks pass every threshold'),
        pytest.param(2, 7, id='IoU 18/22 = 0.818 passes 0.50 to 0.80'),
        pytest.param(6, 1, id='IoU 14/26 = 0.538 passes 0.50 only'),
        pytest.param(10, 0, id='IoU 1/3 passes none'),
    ],
)
def test_recall_counts_the_thresholds_that_the_overlap_passes(shift_px, found_of_ten):
    truth = coco([record(1, OBJECT, area=400)])
    prediction = record(1, box_mask(5, 10 + shift_px, 25, 30 + shift_px), score=0.5)
    assert evaluate_masks([prediction], truth)['AR@1'] == pytest.approx(found_of_ten / 10)


def test_a_truth_is_found_once_and_further_copies_are_false():
    truth = coco([record(1, OBJECT, area=400)])
    copies = [record(1, OBJECT, score=s) for s in (0.9, 0.8)]
    wrong_first = [record(1, box_mask(0, 0, 5, 5), score=0.95), copies[0]]
    assert evaluate_masks(copies, truth)['AP@1000'] == pytest.approx(1.0)
    assert evaluate_masks(wrong_first, truth)['AP@1000'] == pytest.approx(0.5)
    assert evaluate_masks(wrong_first, truth)['AR@1'] == 0.0
    assert evaluate_masks(wrong_first, truth)['AR@10'] == 1.0


def test_categories_do_not_matter():
    truth = coco([record(1, OBJECT, area=400) | {'category_id': 2}])
    assert evaluate_masks([record(1, OBJECT, score=1.0)], truth)['AR@1'] == 1.0


def test_an_annotation_with_id_zero_counts_like_any_other():
    truth = coco([record(1, OBJECT, area=400)])
    truth['annotations'][0]['id'] = 0
    assert evaluate_masks([record(1, OBJECT, score=1.0)], truth)['AR@1'] == 1.0


def test_more_than_255_predictions_in_one_image_are_read():
    truth = coco([record(1, OBJECT, area=400)])
    many = [record(1, box_mask(0, 0, 2, 2), score=0.9)] * 300 + [record(1, OBJECT, score=0.1)]
    metrics = evaluate_masks(many, truth)
    assert (metrics['AR@100'], metrics['AR@1000']) == (0.0, 1.0)


def test_polygons_plain_counts_and_missing_optional_fields_are_read():
    polygon = {'image_id': 1, 'segmentation': [[10, 5, 30, 5, 30, 25, 10, 25]]}
    plain = {'image_id': 1, 'segmentation': {'size': [40, 60], 'counts': [0, 40, 2360]}}
    truth = {'images': [{'id': 1, 'height': 40, 'width': 60}], 'annotations': [polygon, plain]}
    predictions = [record(1, OBJECT, score=1.0), record(1, box_mask(0, 0, 40, 1), score=0.5)]
    metrics = evaluate_masks(predictions, truth)
    assert metrics['AR@10'] == 1.0
    assert metrics['AR_m@1000'] == -1.0


def test_images_without_predictions_count_as_missed_and_are_reported():
    truth = coco([record(1, OBJECT, area=400), record(2, OBJECT, area=400)], n_images=2)
    with pytest.warns(UserWarning, match='1 of 2 ground-truth images have no prediction'):
        assert evaluate_masks([record(1, OBJECT, score=1.0)], truth)['AR@1'] == 0.5


def test_evaluation_prints_nothing_and_leaves_its_input_alone(capsys):
    truth, predictions = coco([record(1, OBJECT, area=400)]), [record(1, OBJECT, score=1.0)]
    before = copy.deepcopy((truth, predictions))
    evaluate_masks(predictions, truth)
    assert (truth, predictions) == before
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    ('prediction', 'message'),
    [
        pytest.param(
            record(7, OBJECT, score=1.0), 'name 1 image ids that the ground truth does not list', id='unknown image'
        ),
        pytest.param(record(1, OBJECT), 'no finite score', id='no score'),
        pytest.param(record(1, OBJECT, score=float('nan')), 'no finite score', id='NaN score'),
        pytest.param(record(1, OBJECT, score=None), 'no finite score', id='null for a score'),
        pytest.param(
            record(1, OBJECT, score='high'),
            'image 1, record .*the "score" is not a number: .high',
            id='text for a score',
        ),
        pytest.param(record(1, OBJECT, score=[0.5]), 'the "score" is not a number', id='list for a score'),
        pytest.param(5, 'prediction 0 is of type int', id='a number for a record'),
        pytest.param(record([1], OBJECT, score=1.0), r'prediction 0 has the image_id \[1\]', id='list for an image_id'),
        pytest.param({'image_id': 1, 'score': 1.0}, 'prediction 0 has no segmentation', id='no mask'),
        pytest.param(
            record(1, OBJECT, score=1.0) | {'segmentation': 'abc'}, 'neither RLE nor polygons', id='text for a mask'
        ),
        pytest.param(record(1, OBJECT.T, score=1.0), '60 x 40 px, the image 40 x 60', id='width and height exchanged'),
    ],
)
def test_bad_predictions_are_named(prediction, message):
    with pytest.raises(UnSAMError, match=message):
        evaluate_masks([prediction], coco([record(1, OBJECT, area=400)]))


@pytest.mark.parametrize(
    ('segmentation', 'message'),
    [
        pytest.param({'size': [40, 60], 'counts': 'hello!'}, 'not COCO run lengths', id='any text'),
        pytest.param({'size': [40, 60], 'counts': 'PPPo'}, 'not COCO run lengths', id='a last run without end'),
        pytest.param({'size': [40, 60], 'counts': 'o' * 20 + '0'}, 'not COCO run lengths', id='a run of 100 bits'),
        pytest.param({'size': [40, 60], 'counts': ''}, 'not COCO run lengths', id='no text'),
        pytest.param({'size': [40, 60], 'counts': 7}, 'counts of the RLE are of type int', id='a number'),
        pytest.param(
            {'size': [40, 60], 'counts': [100, 20]}, 'add up to 120 px, expected 40 x 60 = 2400 px', id='too few'
        ),
        pytest.param({'size': [40, 60], 'counts': [2000, 401]}, 'add up to 2401 px', id='one too many'),
        pytest.param({'size': [40, 60], 'counts': [-5, 2405]}, 'a run of .-5. px', id='a negative run'),
        pytest.param(
            {'size': [40], 'counts': [2400]}, 'size of the RLE is .40.; expected height and width', id='one side'
        ),
        pytest.param({'size': [40, 60], 'counts': [2399.5, 0.5]}, "a run of '2399.5' px", id='half a pixel'),
        pytest.param({'size': [40, 60], 'counts': [True, 2399]}, "a run of 'True' px", id='a truth value'),
        pytest.param({'size': [40, 60], 'counts': ['2400']}, "a run of '2400' px", id='text for a run'),
        pytest.param({'size': [40, 60], 'counts': [2**63, 0]}, 'add up to 9223372036854775808 px', id='64 bits'),
        pytest.param({'size': [40, -60], 'counts': [2400]}, 'size of the RLE is .40, -60.', id='a side below zero'),
        pytest.param({'size': [True, 2400], 'counts': [2400]}, 'size of the RLE is .True, 2400.', id='true for a side'),
        pytest.param('abc', 'neither RLE nor polygons', id='text for a mask'),
    ],
)
def test_masks_that_cannot_be_of_the_image_are_refused_before_pycocotools_sees_them(segmentation, message):
    prediction = {'image_id': 1, 'id': 8, 'segmentation': segmentation, 'score': 1.0}
    with pytest.raises(UnSAMError, match=message) as caught:
        evaluate_masks([prediction], coco([record(1, OBJECT, area=400)]))
    assert str(caught.value).startswith('prediction of image 1, record 8: ')


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 40), st.integers(1, 100_000)), min_size=1, max_size=40), st.booleans())
def test_runs_of_any_length_are_added_up_exactly(runs, starts_with_the_mask):
    counts = [0, *runs] if starts_with_the_mask else runs
    truth = {'image_id': 1, 'segmentation': {'size': [sum(runs), 1], 'counts': counts}}
    prediction = truth | {'segmentation': coco_mask.frPyObjects(truth['segmentation'], sum(runs), 1), 'score': 1.0}
    whole = truth | {'segmentation': {'size': [sum(runs), 1], 'counts': [0, sum(runs)]}}
    images = [{'id': 1, 'height': sum(runs), 'width': 1}]
    evaluate_masks([prediction, whole | {'score': 0.5}], {'images': images, 'annotations': [truth, whole]})
    one_more = {'size': [sum(runs) + 1, 1], 'counts': prediction['segmentation']['counts']}
    with pytest.raises(UnSAMError, match=f'add up to {sum(runs)} px'):
        evaluate_masks([prediction | {'segmentation': one_more}], {'images': [{'id': 1}], 'annotations': [truth]})


@pytest.mark.parametrize(('key', 'value'), [('area', 'large'), ('area', [400]), ('iscrowd', 'yes'), ('iscrowd', 2)])
def test_bad_fields_of_the_ground_truth_are_named(key, value):
    truth = coco([record(1, OBJECT, area=400), record(1, OBJECT, area=400)])
    truth['annotations'][1][key] = value
    with pytest.raises(UnSAMError, match=f'image 1, record 2: the "{key}" is'):
        evaluate_masks([record(1, OBJECT, score=1.0)], truth)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('area', None),
        ('area', '400'),
        ('iscrowd', None),
        ('iscrowd', '0'),
        ('category_id', None),
        ('category_id', 'cat'),
        ('category_id', [3]),
        ('id', 1),
        ('image_id', 1.0),
    ],
)
def test_fields_in_forms_that_are_clear_change_no_figure(key, value):
    truth = coco([record(1, OBJECT, area=400), record(1, box_mask(0, 0, 5, 5), area=25)])
    truth['annotations'][1][key] = value
    found = [record(1, OBJECT, score=1.0), record(1, box_mask(0, 0, 5, 5), score=0.5)]
    assert evaluate_masks(found, truth)['AR@100'] == 1.0


NO_POLYGONS = {
    'two corners': [10, 10, 12, 10],
    'a box': [10, 10, 20, 20],
    'seven numbers': [10, 10, 60, 10, 60, 50, 10],
    'nothing': [],
    'null': None,
    'text': 'abc',
    'text among numbers': [1, 1, 'a', 9, 9, 1],
    'null among numbers': [1, 1, None, 9, 9, 1],
    'no number': [1, 1, float('nan'), 9, 9, 1],
    'one corner three times': [5, 5, 5, 5, 5, 5],
    'a line': [1, 1, 5, 5, 9, 9],
    'a long line': [0.1, 0.1, 1000.3, 1000.3, 0.3, 0.3, 500.7, 500.7],
    'no place': [1, 1, 1e300, 9, 9, 1],
    'a number beyond floats': [1, 1, 10**400, 9, 9, 1],
}


@pytest.mark.parametrize('polygon', NO_POLYGONS.values(), ids=NO_POLYGONS)
def test_a_part_that_is_no_polygon_costs_only_itself(polygon):
    square = [10, 5, 30, 5, 30, 25, 10, 25]
    truth = coco([record(1, OBJECT), record(1, OBJECT)])
    truth['annotations'][0] |= {'segmentation': [square, polygon]}
    truth['annotations'][1] |= {'segmentation': [polygon]}
    with pytest.warns(UserWarning, match='left out 1 annotations .* and 1 polygons .*; the first: image 1, record 1$'):
        metrics = evaluate_masks([record(1, OBJECT, score=1.0)], truth)
    assert metrics['AR@1'] == 1.0


@pytest.mark.parametrize(
    'segmentation',
    [
        pytest.param([[[1, 1], [9, 1], [9, 9]]], id='corners as pairs'),
        pytest.param([[1, 1], [9, 1], [9, 9], [[1, 2]]], id='pairs at two depths'),
        pytest.param([{'x': 1, 'y': 1}, {'x': 9, 'y': 1}, {'x': 9, 'y': 9}], id='corners as dictionaries'),
        pytest.param([{'size': [40, 60], 'counts': [2400]}], id='a list of run lengths'),
        pytest.param(7, id='a number'),
        pytest.param(True, id='true'),
    ],
)
def test_a_mask_in_another_form_is_refused_and_not_left_out(segmentation):
    truth = coco([record(1, OBJECT), record(1, OBJECT) | {'segmentation': segmentation}])
    with pytest.raises(UnSAMError, match='ground truth of image 1, record 2: segmentation is neither RLE nor polygons'):
        evaluate_masks([record(1, OBJECT, score=1.0)], truth)


@pytest.mark.parametrize('area', [-400, float('inf')])
def test_an_area_that_is_none_is_measured(area):
    """By an area below 0 the object belongs to no range of sizes, and would not be asked for."""
    truth = coco([record(1, OBJECT, area=area)])
    assert evaluate_masks([record(1, OBJECT, score=1.0)], truth)['AR_s@1000'] == 1.0


def test_the_panoptic_form_is_named():
    truth = coco([{'image_id': 1, 'file_name': 'a.png', 'segments_info': []}])
    with pytest.raises(UnSAMError, match='annotation 0 is in the panoptic format, whose masks are PNG files'):
        evaluate_masks([record(1, OBJECT, score=1.0)], truth)


def test_a_flat_list_of_numbers_is_one_polygon():
    truth = coco([record(1, OBJECT) | {'segmentation': [10, 5, 30, 5, 30, 25, 10, 25]}])
    assert evaluate_masks([record(1, OBJECT, score=1.0)], truth)['AR@1'] == 1.0


def test_an_outline_that_no_mask_needs_is_refused_before_it_is_drawn():
    zigzag = [number for i in range(2_000) for number in ((-1e6, 1e6)[i % 2], i % 40)]
    truth = coco([record(1, OBJECT) | {'segmentation': [zigzag]}])
    with pytest.raises(UnSAMError, match='image 1, record .*: its polygons have an outline of .* px'):
        evaluate_masks([], truth)


@pytest.mark.parametrize('far', [100.0, 20_000.0, 1e9])
def test_polygons_are_cut_at_the_borders_of_the_image(far):
    """The left 30 columns: an outline of a billion pixels is not drawn first."""
    truth = coco([record(1, OBJECT) | {'segmentation': [[-far, -far, 30, -far, 30, far, -far, far]]}])
    assert evaluate_masks([record(1, box_mask(0, 0, 40, 30), score=1.0)], truth)['AP75@1000'] == pytest.approx(1.0)


def test_a_figure_of_eight_is_a_polygon():
    """Its two halves have areas of opposite sign."""
    truth = coco([record(1, OBJECT) | {'segmentation': [[0, 0, 20, 20, 20, 0, 0, 20]]}])
    assert evaluate_masks([record(1, OBJECT, score=1.0)], truth)['AR@1'] == 0.0


def test_images_with_one_id_are_refused():
    truth = coco([record(1, OBJECT)], n_images=2)
    truth['images'][1]['id'] = 1
    with pytest.raises(UnSAMError, match='the ground truth: image id 1 is listed twice'):
        evaluate_masks([record(1, OBJECT, score=1.0)], truth)


def test_a_ground_truth_of_crowds_alone_is_refused():
    truth = coco([record(1, OBJECT, area=400, iscrowd=1)])
    with pytest.raises(UnSAMError, match='no mask to find'):
        evaluate_masks([record(1, OBJECT, score=1.0)], truth)


def test_the_table_shows_percent_and_a_dash_for_absent_sizes():
    assert format_table({'AR@1000': 0.3046, 'AR_l@1000': -1.0}) == 'AR@1000  AR_l@1000\n   30.5          -'
