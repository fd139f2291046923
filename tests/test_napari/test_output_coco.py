"""COCO files: every mask comes back, in our reader and in pycocotools."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pycocotools.coco import COCO

from napari_unsam.io.coco import read_coco, write_coco
from napari_unsam.io.formats import FORMATS, is_lossless
from napari_unsam.io.objects import LabelledObjects
from tests.test_napari.labelled import DRAWN, background_of_one_object, drawn_objects
from unsam_mm.errors import StoreError


@pytest.mark.parametrize('n_planes', [0, 3])
def test_objects_come_back_as_they_were(tmp_path, n_planes):
    objects = drawn_objects(n_planes, largest=4_000_000_000)
    write_coco(tmp_path / 'a.json', objects)
    back = read_coco(tmp_path / 'a.json')
    assert np.array_equal(back.labels, objects.labels)
    assert (back.name, back.scale, back.units, back.axes) == (objects.name, objects.scale, objects.units, objects.axes)
    rows = back.rows()
    assert rows[2]['parent_id'] == 1
    assert rows[1]['level'] == 0.5
    assert rows[3]['granularity'] == pytest.approx(
        1 + np.log10(2 / 56) / 4
    )  # of its own two pixels, whatever the table says
    assert np.isnan(rows[5]['score'])


def test_an_object_that_fills_the_image_and_no_object_at_all_come_back(tmp_path):
    whole = background_of_one_object()
    write_coco(tmp_path / 'whole.json', whole)
    assert np.array_equal(read_coco(tmp_path / 'whole.json').labels, whole.labels)
    nothing = LabelledObjects(np.zeros((5, 6), np.uint32))
    write_coco(tmp_path / 'none.json', nothing)
    assert not read_coco(tmp_path / 'none.json').labels.any()
    assert len(read_coco(tmp_path / 'none.json').features) == 0


def test_pycocotools_reads_the_same_masks(tmp_path, capsys):
    write_coco(tmp_path / 'a.json', drawn_objects())
    coco = COCO(tmp_path / 'a.json')
    drawn = np.zeros_like(DRAWN)
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation['area']
        drawn[mask > 0] = annotation['object_id']
    assert np.array_equal(drawn, DRAWN)


def test_each_plane_of_a_stack_is_an_image_and_parents_stay_in_their_plane(tmp_path):
    write_coco(tmp_path / 'a.json', drawn_objects(n_planes=3))
    content = json.loads((tmp_path / 'a.json').read_text())
    assert [image['file_name'] for image in content['images']] == ['drawn.tif[0]', 'drawn.tif[1]', 'drawn.tif[2]']
    by_id = {annotation['id']: annotation for annotation in content['annotations']}
    parts = [annotation for annotation in content['annotations'] if annotation['object_id'] == 2]
    assert [part['image_id'] for part in parts] == [1, 2]
    for part in parts:
        assert by_id[part['parent']]['object_id'] == part['parent_id'] == 1
        assert by_id[part['parent']]['image_id'] == part['image_id']


def test_a_parent_that_is_not_in_the_image_is_told_by_its_label_only(tmp_path):
    objects = drawn_objects()
    objects.features.loc[objects.features['index'] == 3, 'parent_id'] = 77
    write_coco(tmp_path / 'a.json', objects)
    [child] = [a for a in json.loads((tmp_path / 'a.json').read_text())['annotations'] if a['object_id'] == 3]
    assert (child['parent'], child['parent_id']) == (-1, 77)


def test_a_parent_in_a_linked_layer_is_told_with_the_name_of_the_layer(tmp_path):
    objects = drawn_objects()
    objects.features['parent'] = np.where(objects.features['index'] == 2, 'cells', '')
    write_coco(tmp_path / 'a.json', objects)
    [child] = [a for a in json.loads((tmp_path / 'a.json').read_text())['annotations'] if a['object_id'] == 2]
    assert (child['parent'], child['parent_id'], child['parent_layer']) == (-1, 1, 'cells')
    assert read_coco(tmp_path / 'a.json').rows()[2]['parent'] == 'cells'


@pytest.mark.parametrize(
    ('column', 'value'),
    [('score', 'good'), ('score', np.inf), ('level', pd.Timestamp('2026-01-01')), ('parent_id', 'x'), ('parent', 5)],
)
def test_a_file_does_not_hold_what_would_not_be_read_back(tmp_path, column, value):
    features = drawn_objects().features
    assert is_lossless('coco', features)
    assert not is_lossless('coco', features.assign(**{column: value}))


@pytest.mark.parametrize('value', ['good', np.inf, -np.inf, pd.Timestamp('2026-01-01')])
def test_scores_that_are_no_numbers_are_left_out_and_the_objects_come_back(tmp_path, value):
    objects = drawn_objects()
    objects.features['score'] = objects.features['score'].astype(object)
    objects.features.loc[0, 'score'] = value
    write_coco(tmp_path / 'a.json', objects)
    back = read_coco(tmp_path / 'a.json')
    assert np.array_equal(back.labels, objects.labels)
    assert np.isnan(back.rows()[1]['score'])
    assert back.rows()[2]['score'] == 0.25


def test_files_from_elsewhere_are_numbered_and_smaller_masks_lie_on_top(tmp_path):
    def annotation(number, box):
        left, top, width, height = box
        mask = np.zeros((10, 12), np.uint8)
        mask[top : top + height, left : left + width] = 1
        flat = mask.T.ravel()
        edges = np.flatnonzero(np.diff(flat)) + 1
        counts = np.diff(np.r_[0, edges, flat.size]).tolist()
        area = int(mask.sum())
        return {
            'id': number,
            'image_id': 7,
            'bbox': box,
            'area': area,
            'segmentation': {'size': [10, 12], 'counts': counts},
        }

    images = [{'id': 7, 'file_name': 'a.png', 'height': 10, 'width': 12}]
    small, large = annotation(31, [3, 3, 2, 2]), annotation(32, [1, 1, 8, 7])
    (tmp_path / 'a.json').write_text(json.dumps({'images': images, 'annotations': [small, large]}))
    back = read_coco(tmp_path / 'a.json')
    assert (back.labels == 1).sum() == 4
    assert (back.labels == 2).sum() == 8 * 7 - 4
    assert back.name == 'a.png'


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ({'images': []}, 'not a COCO file'),
        ([1, 2], 'not a COCO file'),
        ({'images': [{}, {}], 'annotations': []}, 'contains 2 images'),
    ],
)
def test_other_files_are_refused(tmp_path, content, words):
    (tmp_path / 'a.json').write_text(json.dumps(content))
    with pytest.raises(StoreError, match=words):
        read_coco(tmp_path / 'a.json')


SQUARE = {'id': 1, 'image_id': 7, 'segmentation': [[1, 1, 5, 1, 5, 5, 1, 5]]}


def written(tmp_path, *annotations, **image):
    content = {'images': [{'id': 7, 'height': 10, 'width': 12, **image}], 'annotations': list(annotations)}
    (tmp_path / 'a.json').write_text(json.dumps(content))
    return tmp_path / 'a.json'


def test_polygons_are_read_and_two_annotations_with_one_id_stay_two_objects(tmp_path):
    other = SQUARE | {'image_id': 7.0, 'segmentation': [[6, 6, 9, 6, 9, 9, 6, 9]]}
    labels = read_coco(written(tmp_path, SQUARE, other)).labels
    assert [(labels == label).sum() for label in (1, 2)] == [16, 9]


def test_boxes_and_areas_are_those_of_the_mask_whatever_the_file_states(tmp_path):
    labels = read_coco(written(tmp_path, SQUARE | {'bbox': [-3, 0, 99, 99], 'area': 'large'})).labels
    assert (labels == 1).sum() == 16


@pytest.mark.parametrize(
    ('annotation', 'image', 'words'),
    [
        (
            SQUARE | {'segmentation': {'size': [10, 12], 'counts': 'zzzz'}},
            {},
            'image 7, record 1: counts are not COCO run',
        ),
        (SQUARE | {'segmentation': {'size': [5, 24], 'counts': [120]}}, {}, 'the mask is 5 x 24 px, the image 10 x 12'),
        (SQUARE | {'image_id': 8}, {}, 'image 8, record 1: its image_id is not in "images"'),
        (SQUARE | {'object_id': -1}, {}, 'an object_id is -1; expected an integer from 1'),
        (SQUARE | {'score': 'high'}, {}, 'the "score" is not a number'),
        (SQUARE, {'height': 0}, 'the "height" is 0'),
        (SQUARE, {'width': None}, 'the shape is .10, None.'),
    ],
)
def test_a_damaged_file_is_refused_on_one_line(tmp_path, annotation, image, words):
    with pytest.raises(StoreError, match=words) as caught:
        read_coco(written(tmp_path, annotation, **image))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', FORMATS)
def test_labels_and_parents_that_are_no_numbers_stop_no_export(tmp_path, name):
    objects = drawn_objects()
    labels = objects.features['index'].astype(object)
    features = objects.features.assign(
        index=labels.where(labels != 5, np.nan), parent_id=['nucleus', np.inf, None, 1.0, 2.0, -1.0, 3.5]
    )
    FORMATS[name].write(tmp_path / f'a{FORMATS[name].ending}', replace(objects, features=features))
    assert (tmp_path / f'a{FORMATS[name].ending}').exists()
