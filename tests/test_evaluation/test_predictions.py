"""Predictions and ground truth from files, paired by image name."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import forbid_reading
from unsam_mm.errors import StoreError
from unsam_mm.evaluation import evaluate_masks, load_ground_truth, load_predictions, match_images
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.masks.mask_set import MaskSet


def truth_of(*file_names):
    return {'images': [{'id': i, 'file_name': name} for i, name in enumerate(file_names, start=1)], 'annotations': []}


def two_masks():
    masks = np.zeros((2, 30, 20), bool)
    masks[0, 4:20, 3:15] = True
    masks[1, 22:28, 1:5] = True
    return MaskSet.from_bitmaps(masks, scores=np.array([0.9, 0.4]))


@pytest.fixture
def scene(tmp_path):
    """A pseudo-mask folder of one image, and a ground-truth file that holds exactly its masks under another path."""
    store = PseudoMaskStore(tmp_path / 'pseudo')
    store.write('cats/1.jpg', two_masks())
    truth = {
        'images': [{'id': 77, 'file_name': 'val/cats/1.jpg', 'height': 30, 'width': 20}],
        'annotations': [{**record, 'id': i, 'iscrowd': 0} for i, record in enumerate(two_masks().to_coco(77), start=1)],
    }
    (tmp_path / 'gt.json').write_text(json.dumps(truth))
    return store, load_ground_truth(tmp_path / 'gt.json')


@pytest.mark.parametrize(
    ('name', 'file_names', 'expected'),
    [
        pytest.param('a/1.jpg', ('1.jpg', 'a/1.jpg'), 2, id='the same path'),
        pytest.param('101085.jpg', ('val/101085.jpg', 'val/101086.jpg'), 1, id='file name only'),
        pytest.param('set/b/1.jpg', ('a/1.jpg', 'b/1.jpg'), 2, id='longest common end'),
        pytest.param('b\\1.jpg', ('a/1.jpg', 'b/1.jpg'), 2, id='Windows separators'),
        pytest.param('1.jpg', ('x/1.jpg', '1.jpg'), 2, id='an equal path beats a longer one'),
    ],
)
def test_a_name_finds_its_image(name, file_names, expected):
    assert match_images([name], truth_of(*file_names)) == {name: expected}


def test_a_file_name_must_match_as_a_whole_part():
    with pytest.raises(StoreError, match=r'1 of 1 images .* not in the ground truth \(1.jpg\)'):
        match_images(['1.jpg'], truth_of('11.jpg'))


def test_lvis_images_are_known_by_their_url():
    truth = {'images': [{'id': 5, 'coco_url': 'http://host/val2017/000000397133.jpg'}]}
    assert match_images(['000000397133.jpg'], truth) == {'000000397133.jpg': 5}


def test_an_ambiguous_name_is_refused_with_its_rivals():
    with pytest.raises(StoreError, match=r'1.jpg: fits 2 images of the ground truth \(a/1.jpg, b/1.jpg\)'):
        match_images(['1.jpg'], truth_of('a/1.jpg', 'b/1.jpg'))


def test_two_names_for_one_image_are_refused():
    with pytest.raises(StoreError, match='a/1.jpg and b/1.jpg fit the same ground-truth image 1'):
        match_images(['a/1.jpg', 'b/1.jpg'], truth_of('1.jpg'))


def test_images_outside_the_ground_truth_are_an_error_unless_skipped():
    truth = truth_of('1.jpg')
    with pytest.raises(StoreError, match=r'4 of 5 images .*\(2.jpg, 3.jpg, 4.jpg, \.\.\.\).*--skip-unmatched'):
        match_images([f'{i}.jpg' for i in range(1, 6)], truth)
    assert match_images(['1.jpg', '2.jpg'], truth, skip_unmatched=True) == {'1.jpg': 1}
    with pytest.raises(StoreError, match='2 of 2'):
        match_images(['3.jpg', '4.jpg'], truth, skip_unmatched=True)


def test_folder_merged_file_and_result_list_give_the_same_metrics(scene, tmp_path):
    store, truth = scene
    store.merge(tmp_path / 'merged.json')
    (tmp_path / 'results.json').write_text(json.dumps(two_masks().to_coco(77)))
    metrics = [
        evaluate_masks(load_predictions(path, truth), truth)
        for path in (store.root, *sorted(tmp_path.glob('[mr]*.json')))
    ]
    assert metrics[0]['AR@1'] == pytest.approx(0.5)
    assert metrics[0]['AR@10'] == metrics[0]['AP@1000'] == pytest.approx(1.0)
    assert metrics[0] == metrics[1] == metrics[2]


def test_a_merged_file_in_sa1b_terms_is_ranked_by_predicted_iou(scene, tmp_path):
    _, truth = scene
    annotations = [{**record, 'predicted_iou': record.pop('score')} for record in two_masks().to_coco(3)]
    (tmp_path / 'm.json').write_text(
        json.dumps({'images': [{'id': 3, 'file_name': '1.jpg'}], 'annotations': annotations})
    )
    assert [record['score'] for record in load_predictions(tmp_path / 'm.json', truth)] == pytest.approx([0.9, 0.4])


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        pytest.param(None, 'no such file', id='missing'),
        pytest.param('', 'not a JSON file', id='empty file'),
        pytest.param('[{"image_id": 1', 'not a JSON file', id='cut short'),
        pytest.param('[]', 'no predictions in it', id='empty list'),
        pytest.param(
            '{"image": {}, "annotations": []}', 'expected a list of COCO results or a COCO file', id='one SA-1B file'
        ),
        pytest.param('3', 'found a int', id='a number'),
        pytest.param('[{"id": 1}]', 'record 0 has no "image_id"', id='records without image'),
        pytest.param('{"images": [{"id": 1}], "annotations": []}', 'no "file_name"', id='images without name'),
        pytest.param(
            '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"image_id": 1}]}',
            'annotation 0 has no score',
            id='no score',
        ),
        pytest.param('[{"image_id": 77, "score": 1}]', 'record 0 has no "segmentation"', id='boxes alone'),
        pytest.param(
            '[{"image_id": "77", "score": 1, "segmentation": []}]',
            "the image_id '77' is the text, the id of the image the number 77; write both in one form",
            id='text for a number',
        ),
        pytest.param('[5]', 'record 0 is a int', id='a number for a record'),
        pytest.param('[{"image_id": [1]}]', r'the "image_id" of record 0 is \[1\]', id='a list for an image_id'),
        pytest.param('{"images": [1], "annotations": [{}]}', 'image 0 is a int', id='a number for an image'),
        pytest.param('{"images": [{"file_name": "1.jpg"}], "annotations": []}', 'image 0 has no "id"', id='no id'),
        pytest.param(
            '{"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [7]}', 'annotation 0 is a int', id='a number'
        ),
        pytest.param(
            '{"images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "1.jpg"}], "annotations": []}',
            r'several images have the name 1\.jpg, so',
            id='two images of one name',
        ),
        pytest.param(
            '{"images": [{"id": 1, "file_name": "."}], "annotations": []}',
            r'1 of 1 images with predictions are not in the ground truth \(\.\)',
            id='a folder for a name',
        ),
        pytest.param(
            '{"images": [{"id": 1, "coco_url": "cats/1.jpg", "height": 60, "width": 40}], "annotations": []}',
            r'cats/1\.jpg is 60 x 40 px .*, in the ground truth 30 x 20',
            id='an address for a name, and another size',
        ),
    ],
)
def test_bad_prediction_files_give_one_clear_line(scene, tmp_path, content, message):
    path = tmp_path / 'bad.json'
    if content is not None:
        path.write_text(content)
    with pytest.raises(StoreError, match=message) as caught:
        load_predictions(path, scene[1])
    assert str(caught.value).startswith(str(path))
    assert '\n' not in str(caught.value)


def test_an_empty_prediction_folder_is_refused(scene, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(StoreError, match='contains no pseudo-masks'):
        load_predictions(tmp_path / 'empty', scene[1])


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        pytest.param('[]', 'expected a COCO file', id='a list'),
        pytest.param('{"images": [], "annotations": []}', 'the list "images" is empty', id='no images'),
        pytest.param(
            '{"images": [{"id": 1}], "annotations": []}', 'the list "annotations" is empty', id='no annotations'
        ),
        pytest.param('{"images": [{}], "annotations": [{}]}', 'image 0 has no "id"', id='no id'),
        pytest.param('{"images": [1], "annotations": [{}]}', 'image 0 is a int', id='a number for an image'),
        pytest.param(
            '{"images": [{"id": [1]}], "annotations": [{}]}', r'"id" of image 0 is \[1\]', id='a list for an id'
        ),
        pytest.param(
            '{"images": [{"id": 1, "file_name": 5}], "annotations": [{}]}',
            '"file_name" of image 0 is 5; expected text',
            id='a number for a name',
        ),
        pytest.param(
            '{"images": [{"id": 1, "height": "30 px"}], "annotations": [{}]}',
            '"height" is \'30 px\'; expected a positive whole number',
            id='text for a height',
        ),
        pytest.param(
            '{"images": [{"id": 1, "width": -4}], "annotations": [{}]}',
            'image 0: the "width" is -4; expected a positive whole number of pixels',
            id='a width below zero',
        ),
        pytest.param(
            '{"images": [{"id": 1, "file_name": "a.png"}, {"id": 1.0, "file_name": "c.png"}], "annotations": [{}]}',
            r'image id 1 is listed twice \(a.png, c.png\)',
            id='two files pasted together',
        ),
        pytest.param('{"images": [{"id": 1.5}], "annotations": [{}]}', '"id" of image 0 is 1.5', id='half an id'),
        pytest.param('{"images": [{"id": true}], "annotations": [{}]}', '"id" of image 0 is True', id='true for an id'),
        pytest.param(
            '{"images": [{"id": 1}], "annotations": [{"image_id": 2}]}',
            r'annotations of 1 images that are not listed \(2\)',
            id='an annotation of no image',
        ),
        pytest.param(
            '{"images": [{"id": 1}], "annotations": [{"image_id": "1"}]}',
            "the image_id '1' is the text, the id of the image the number 1",
            id='text here and a number there',
        ),
        pytest.param(
            '{"images": [{"id": 1}], "annotations": [{"image_id": 1, "segmentation": [[1, 1, 5, 5]]}]}',
            'no annotation has a mask',
            id='nothing but a line',
            marks=pytest.mark.filterwarnings('ignore:.*left out 1 annotations'),
        ),
        pytest.param(
            '{"images": [{"id": 1}, {"id": "a"}], "annotations": [{}]}', 'the "id" of some images', id='mixed ids'
        ),
        pytest.param('{"images": [{"id": 1}], "annotations": [3]}', 'annotation 0 is a int', id='a number'),
        pytest.param(
            '{"images": [{"id": 1}], "annotations": [{"id": 2}]}', 'annotation 0 has no "image_id"', id='no image_id'
        ),
        pytest.param(
            '{"images": [{"id": 1}], "annotations": [{"image_id": {}}]}',
            '"image_id" of annotation 0 is {}',
            id='a dictionary for an image_id',
        ),
    ],
)
def test_bad_ground_truth_files_give_one_clear_line(tmp_path, content, message):
    (tmp_path / 'gt.json').write_text(content)
    with pytest.raises(StoreError, match=message):
        load_ground_truth(tmp_path / 'gt.json')


def test_a_compressed_file_says_that_it_is(tmp_path):
    (tmp_path / 'gt.json.gz').write_bytes(gzip.compress(b'{}'))
    with pytest.raises(StoreError, match=r'gt\.json\.gz: is compressed with gzip; unpack it first'):
        load_ground_truth(tmp_path / 'gt.json.gz')


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        pytest.param({'image_id': '77'}, "the image_id '77' is the text", id='ids as text'),
        pytest.param({'image_id': 5}, 'no prediction is of an image that the ground truth lists', id='other images'),
        pytest.param({'segmentation': None}, 'no annotation has a mask', id='no mask'),
    ],
)
def test_results_of_which_nothing_is_left_are_refused(scene, tmp_path, changed, message):
    """They would have a recall of 0."""
    _, truth = scene
    results = [record | {'score': 1.0} | changed for record in two_masks().to_coco(77)]
    (tmp_path / 'results.json').write_text(json.dumps(results))
    with pytest.raises(StoreError, match=f'results.json: {message}'):
        load_predictions(tmp_path / 'results.json', truth, skip_unmatched=True)


def test_polygons_of_an_image_that_was_resized_are_refused(scene, tmp_path):
    """They would be drawn at a wrong place."""
    _, truth = scene
    record = {'image_id': 1, 'score': 1.0, 'segmentation': [[3, 4, 15, 4, 15, 20]]}
    content = {
        'images': [{'id': 1, 'file_name': 'cats/1.jpg', 'height': 60, 'width': 40}],
        'annotations': [record],
    }
    (tmp_path / 'resized.json').write_text(json.dumps(content))
    with pytest.raises(StoreError, match=r'resized\.json: cats/1\.jpg is 60 x 40 px .*, in the ground truth 30 x 20'):
        load_predictions(tmp_path / 'resized.json', truth)


def test_a_folder_with_files_that_cannot_be_read_is_refused_and_all_of_them_are_named(scene, tmp_path, monkeypatch):
    """A figure over fewer images is that of no set of predictions."""
    store, truth = scene
    for i in range(2, 5):
        store.write(f'{i}.jpg', two_masks())
        truth['images'].append({'id': i, 'file_name': f'{i}.jpg'})
    for name in ('2.jpg', '4.jpg'):
        store.path_of(name).write_bytes(store.path_of(name).read_bytes()[:-20])
    forbid_reading(store.path_of('3.jpg'), monkeypatch)
    with pytest.raises(StoreError, match=r'3 of 4 files of masks are damaged or .*: 2\.jpg\.json, 3.*, 4\.jpg\.json$'):
        load_predictions(store.root, truth)


def test_numbers_as_text_are_numbers(tmp_path):
    truth = truth_of('1.jpg')
    truth['images'][0] |= {'height': '30', 'width': '20.0'}
    truth['annotations'] = [{'image_id': 1, 'segmentation': [[3, 4, 15, 4, 15, 20]], 'area': '96', 'iscrowd': '0'}]
    (tmp_path / 'gt.json').write_text(json.dumps(truth))
    image = load_ground_truth(tmp_path / 'gt.json')['images'][0]
    assert (image['height'], image['width']) == (30, 20)


def test_evaluation_imports_neither_torch_nor_mmdet():
    code = 'import sys, unsam_mm.evaluation; print([m for m in ("torch", "mmengine", "mmdet", "mmcv") if m in sys.modules])'
    assert (
        subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
    )
