"""Pseudo-masks join human labels or predictions: everything added is there, and nothing that it covers."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tests import warm_python
from unsam_mm import MaskSet
from unsam_mm.__main__ import main
from unsam_mm.coco_files import index
from unsam_mm.coco_files.index import stream_lists
from unsam_mm.coco_files.segmentations import PolygonFilter
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.evaluation import load_ground_truth
from unsam_mm.folders.merge import MergeReport, merge_ground_truth, merge_predictions
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.masks.rle import encode_bitmaps, rle_to_json

SIZE = (20, 30)
NESTED = [(0, 0, 20, 20), (2, 2, 18, 18), (5, 5, 10, 10), (12, 22, 18, 28)]
"""Boxes y0, x0, y1, x1: three that nest, and one apart."""


def bitmaps(*boxes):
    masks = np.zeros((len(boxes), *SIZE), bool)
    for mask, (y0, x0, y1, x1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def annotation(box, image_id=1, **more):
    rle = encode_bitmaps(bitmaps(box))[0]
    y0, x0, y1, x1 = box
    return {
        'image_id': image_id,
        'category_id': 7,
        'segmentation': rle_to_json(rle),
        'area': int(coco_mask.area(rle)),
        'bbox': [x0, y0, x1 - x0, y1 - y0],
        **more,
    }


def coco_image(image_id, name):
    return {'id': image_id, 'file_name': name, 'height': SIZE[0], 'width': SIZE[1]}


@pytest.fixture
def store(tmp_path):
    """Pseudo-masks of a.jpg and deep/b.jpg."""
    store = PseudoMaskStore(tmp_path / 'masks')
    scores = np.array([0.9, 0.8, 0.7, 0.6], np.float32)
    for name in ('a.jpg', 'deep/b.jpg'):
        store.write(name, MaskSet.from_bitmaps(bitmaps(*NESTED), scores))
    return store


@pytest.fixture
def target(tmp_path):
    return tmp_path / 'joined.json'


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def read_boxes(target, name):
    """Source and box (y0, x0, y1, x1) of each annotation of an image, in order."""
    coco = json.loads(target.read_text())
    (image_id,) = [image['id'] for image in coco['images'] if image['file_name'] == name]
    records = [record for record in coco['annotations'] if record['image_id'] == image_id]
    return [(record['source'], tuple(_yxyx(record['bbox']))) for record in records]


def _yxyx(box):
    x, y, width, height = map(int, box)
    return y, x, y + height, x + width


def test_human_labels_stay_and_pseudo_masks_on_them_go(store, target, tmp_path):
    human = (5, 5, 10, 11)
    truth = write(
        tmp_path / 'gt.json', {'images': [coco_image(44, 'a.jpg')], 'annotations': [annotation(human, 44, id=9)]}
    )
    report = merge_ground_truth(store.root, target, truth, max_iou=0.1)
    # 25 of 30 px of the innermost mask, 30 of 256 of the middle one, 30 of 400 of the outer one.
    assert read_boxes(target, 'a.jpg') == [('gt', human), ('pseudo', NESTED[0]), ('pseudo', NESTED[3])]
    assert [box for _, box in read_boxes(target, 'deep/b.jpg')] == NESTED
    assert report == MergeReport(matched=1, only_pseudo=1, added=1, kept=6, dropped=2)


def test_a_parent_that_is_left_out_is_replaced_by_its_own(store, target, tmp_path):
    images = [coco_image(3, 'deep/b.jpg'), coco_image(4, 'a.jpg')]
    truth = write(
        tmp_path / 'gt.json',
        {'images': images, 'annotations': [annotation((2, 2, 18, 17), 3, parent=5), annotation(NESTED[3], 4)]},
    )
    merge_ground_truth(store.root, target, truth, max_iou=0.8)
    coco = COCO(target)
    inner = [record for record in coco.anns.values() if _yxyx(record['bbox']) == NESTED[2]]
    assert [_yxyx(coco.anns[record['parent']]['bbox']) for record in inner] == [NESTED[1], NESTED[0]]
    assert all(coco.anns[record['parent']]['image_id'] == record['image_id'] for record in inner)
    assert {record['parent'] for record in coco.anns.values() if record['source'] == 'gt'} == {-1}


def test_the_result_is_a_coco_file_that_says_where_its_labels_come_from(store, target, tmp_path):
    truth = write(
        tmp_path / 'gt.json', {'images': [coco_image(1, 'a.jpg')], 'annotations': [annotation(NESTED[2], licence=3)]}
    )
    merge_ground_truth(store.root, target, truth)
    content = load_ground_truth(target)
    assert content['info']['supervised'] is True
    assert content['info']['label_sources'] == ['human labels', 'pseudo-masks']
    assert [record['id'] for record in content['annotations']] == list(range(1, len(content['annotations']) + 1))
    assert {record['category_id'] for record in content['annotations']} == {1}
    assert content['annotations'][0]['licence'] == 3


def test_images_without_pseudo_masks_are_kept_with_their_labels(store, target, tmp_path):
    images = [coco_image(1, 'a.jpg'), coco_image(2, 'z.jpg')]
    truth = write(tmp_path / 'gt.json', {'images': images, 'annotations': [annotation(NESTED[2], 2)]})
    report = merge_ground_truth(store.root, target, truth)
    assert read_boxes(target, 'z.jpg') == [('gt', NESTED[2])]
    assert (report.matched, report.only_pseudo, report.only_added) == (1, 1, 1)


@pytest.mark.parametrize(
    ('url', 'name'),
    [
        ('http://images.cocodataset.org/train2017/z.jpg', 'train2017/z.jpg'),
        ('https://host/data/train2017/z.jpg?width=640', 'train2017/z.jpg'),
        ('https://host/z.jpg', 'z.jpg'),
    ],
)
def test_images_that_only_an_address_names_are_named_by_its_end(store, target, tmp_path, url, name):
    """LVIS has no file_name."""
    images = [{**coco_image(2, ''), 'coco_url': url}, {**coco_image(1, ''), 'coco_url': 'http://host/val2017/a.jpg'}]
    truth = write(tmp_path / 'gt.json', {'images': images, 'annotations': [annotation(NESTED[2], 2)]})
    report = merge_ground_truth(store.root, target, truth)
    assert read_boxes(target, name) == [('gt', NESTED[2])]
    assert (report.matched, report.only_added) == (1, 1)


def test_polygons_of_an_image_without_a_size_say_what_is_missing(store, target, tmp_path):
    images = [coco_image(1, 'a.jpg'), {'id': 2, 'file_name': 'z.jpg'}]
    polygon = annotation(NESTED[3], 2, segmentation=[[22, 12, 28, 12, 28, 18, 22, 18]])
    truth = write(tmp_path / 'gt.json', {'images': images, 'annotations': [polygon]})
    (message,) = merge_ground_truth(store.root, target, truth).failed
    assert message.startswith(f'{truth}, z.jpg: image 2')
    assert message.endswith('add "height" and "width" to its entry in "images"')


@pytest.mark.parametrize('content', [[], {'images': [], 'annotations': []}])
def test_predictions_of_no_image_at_all_are_refused(store, target, tmp_path, content):
    with pytest.raises(StoreError, match='pred.json: contains no images'):
        merge_predictions(store.root, target, write(tmp_path / 'pred.json', content))


def test_annotations_may_come_before_images_and_in_any_order(store, target, tmp_path):
    a, b = NESTED[2], NESTED[3]
    content = {
        'annotations': [annotation(a, 'x'), annotation(b, 'y'), annotation(b, 'x'), annotation(a, 'y')],
        'categories': [{'id': 7, 'name': 'thing'}],
        'images': [coco_image('y', 'val/deep/b.jpg'), coco_image('x', 'a.jpg')],
    }
    merge_ground_truth(store.root, target, write(tmp_path / 'gt.json', content))
    assert [box for source, box in read_boxes(target, 'a.jpg') if source == 'gt'] == [a, b]
    assert [box for source, box in read_boxes(target, 'deep/b.jpg') if source == 'gt'] == [b, a]


def test_polygons_and_crowds_count_like_other_masks(store, target, tmp_path):
    polygon = annotation(NESTED[3], segmentation=[[22, 12, 28, 12, 28, 18, 22, 18]])
    plain = np.zeros(SIZE, bool)
    plain[5:10, 5:10] = True
    runs = np.diff(np.flatnonzero(np.diff(np.r_[False, plain.T.ravel(), False])), prepend=0).tolist()
    crowd = annotation(
        NESTED[2], segmentation={'size': list(SIZE), 'counts': [*runs, plain.size - sum(runs)]}, iscrowd=1
    )
    truth = write(tmp_path / 'gt.json', {'images': [coco_image(1, 'a.jpg')], 'annotations': [polygon, crowd]})
    merge_ground_truth(store.root, target, truth, max_iou=0.5)
    assert [box for source, box in read_boxes(target, 'a.jpg') if source == 'pseudo'] == NESTED[:2]
    records = json.loads(target.read_text())['annotations']
    assert [record['iscrowd'] for record in records[:3]] == [0, 1, 0]


def test_sa1b_folders_are_ground_truth_too(store, target, tmp_path):
    for name, file in (('a', 'sa_000/a.json'), ('c', 'sa_000/c.json')):
        path = tmp_path / 'truth' / file
        path.parent.mkdir(parents=True, exist_ok=True)
        record = annotation(NESTED[2], id=77, predicted_iou=0.9, stability_score=0.97)
        del record['image_id']
        write(path, {'image': {'image_id': 5, **coco_image(5, f'{name}.jpg')}, 'annotations': [record]})
    report = merge_ground_truth(store.root, target, tmp_path / 'truth', max_iou=0.5)
    assert (report.matched, report.only_pseudo, report.only_added) == (1, 1, 1)
    assert [source for source, _ in read_boxes(target, 'a.jpg')] == ['gt', 'pseudo', 'pseudo', 'pseudo']
    assert read_boxes(target, 'sa_000/c.jpg') == [('gt', NESTED[2])]


PREDICTED = [
    annotation(NESTED[2], 1, score=0.71),
    annotation(NESTED[3], 1, score=0.7),
    annotation((12, 23, 18, 28), 2, score=0.99),
]


def check_self_training(target):
    assert read_boxes(target, 'a.jpg') == [('prediction', NESTED[2]), *(('pseudo', NESTED[i]) for i in (0, 1, 3))]
    assert read_boxes(target, 'deep/b.jpg')[0] == ('prediction', (12, 23, 18, 28))
    assert ('pseudo', NESTED[3]) not in read_boxes(target, 'deep/b.jpg')


def test_sure_predictions_replace_the_labels_that_they_cover(store, target, tmp_path):
    """A list of results is numbered as the merged file of the same folder is."""
    store.merge(tmp_path / 'pseudo.json')
    results = [{key: record[key] for key in ('image_id', 'segmentation', 'score')} for record in PREDICTED]
    report = merge_predictions(store.root, target, write(tmp_path / 'results.json', results))
    check_self_training(target)
    assert report == MergeReport(matched=2, added=2, kept=6, dropped=2)
    assert COCO(target).anns[1]['area'] == 25


def test_other_image_ids_need_the_file_that_they_come_from(store, target, tmp_path):
    results = write(
        tmp_path / 'results.json', [{**record, 'image_id': record['image_id'] + 70} for record in PREDICTED]
    )
    with pytest.raises(StoreError, match=r'2 images that are not listed \(71, 72\).*--images'):
        merge_predictions(store.root, target, results)
    images = write(
        tmp_path / 'val.json', {'images': [coco_image(71, 'a.jpg'), coco_image(72, 'b.jpg')], 'annotations': []}
    )
    merge_predictions(store.root, target, results, images=images)
    check_self_training(target)


def test_predictions_may_be_a_coco_file(store, target, tmp_path):
    content = {'images': [coco_image(1, 'a.jpg'), coco_image(2, 'b.jpg')], 'annotations': PREDICTED}
    merge_predictions(store.root, target, write(tmp_path / 'predicted.json', content))
    check_self_training(target)


def test_predictions_may_be_a_folder_of_masks(store, target, tmp_path):
    predicted = PseudoMaskStore(tmp_path / 'predicted')
    predicted.write('a.jpg', MaskSet.from_bitmaps(bitmaps(*NESTED), np.array([0.95, 0.1, 0.9, 0.2])))
    merge_predictions(store.root, target, predicted.root)
    assert read_boxes(target, 'a.jpg') == [
        ('prediction', NESTED[0]),
        ('prediction', NESTED[2]),
        ('pseudo', NESTED[3]),
    ]
    records = {record['id']: record for record in json.loads(target.read_text())['annotations']}
    assert [records[i]['parent'] for i in (1, 2, 3)] == [-1, 1, -1]


@pytest.mark.parametrize(
    ('flag', 'info', 'refine', 'expected'),
    [
        (False, None, 'none', False),
        (True, None, 'none', True),
        (False, {'supervised': True}, 'none', True),
        (False, None, 'cascadepsp', True),
    ],
)
def test_self_trained_labels_are_marked_if_anything_in_them_was_supervised(
    store, target, tmp_path, flag, info, refine, expected
):
    store.describe({'refine': refine})
    content = {'info': info, 'images': [coco_image(1, 'a.jpg')], 'annotations': PREDICTED[:1]}
    predictions = write(tmp_path / 'predicted.json', content)
    merge_predictions(store.root, target, predictions, supervised=flag)
    assert json.loads(target.read_text())['info']['supervised'] is expected


def test_masks_refined_by_cascadepsp_are_marked_in_the_folder_and_in_the_merged_file(store, target):
    store.describe({'preset': 'release', 'refine': 'cascadepsp'})
    store.describe({'preset': 'release', 'refine': 'cascadepsp'})
    assert json.loads((store.root / 'unsam.json').read_text())['supervised'] is True
    store.merge(target)
    info = json.loads(target.read_text())['info']
    assert info['supervised'] is True
    assert info['label_sources'] == ['pseudo-masks', 'CascadePSP']


def test_masks_without_labels_say_so(store, target):
    store.describe({'preset': 'default'})
    store.merge(target)
    assert json.loads((store.root / 'unsam.json').read_text())['supervised'] is False
    assert json.loads(target.read_text())['info']['supervised'] is False


boxes = st.lists(
    st.tuples(st.integers(0, 15), st.integers(0, 25), st.integers(1, 5), st.integers(1, 5)).map(
        lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
    ),
    max_size=6,
)


@settings(max_examples=60)
@given(pseudo=boxes, added=boxes, max_iou=st.sampled_from([0.0, 0.02, 0.25, 0.5, 1.0]))
def test_all_human_labels_survive_and_no_pseudo_mask_above_the_threshold(tmp_path_factory, pseudo, added, max_iou):
    root = tmp_path_factory.mktemp('merge')
    store = PseudoMaskStore(root / 'masks')
    store.write('a.jpg', MaskSet.from_bitmaps(bitmaps(*pseudo)))
    truth = write(
        root / 'gt.json', {'images': [coco_image(1, 'a.jpg')], 'annotations': [annotation(box) for box in added]}
    )
    merge_ground_truth(store.root, root / 'all.json', truth, max_iou)
    joined = read_boxes(root / 'all.json', 'a.jpg')
    assert [box for source, box in joined if source == 'gt'] == added

    def iou(left, right):
        left, right = bitmaps(left)[0], bitmaps(right)[0]
        return (left & right).sum() / (left | right).sum()

    expected = [box for box in pseudo if all(iou(box, other) <= max_iou for other in added)]
    assert [box for source, box in joined if source == 'pseudo'] == expected


def test_labels_of_another_data_set_are_refused(store, target, tmp_path):
    truth = write(tmp_path / 'gt.json', {'images': [coco_image(1, 'other.jpg')], 'annotations': []})
    with pytest.raises(StoreError, match=r'none of its 1 images \(other.jpg, ...\) has pseudo-masks \(a.jpg, ...\)'):
        merge_ground_truth(store.root, target, truth)
    assert not target.exists()


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{"images": [', 'not a JSON file'),
        ('[1, 2]', 'a list; expected a dictionary'),
        ('{"images": {}, "annotations": []}', '"images" is not a list'),
        ('{"images": [{"id": 1}], "annotations": []}', 'image 1 has no "file_name"'),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [3]}', "found '3' where an entry"),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 2}]}', 'not listed'),
        ('{"images": [{"id": 1, "file_name": "a.jpg"}]}', 'no "annotations" in it'),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 1.0, "file_name": "b.jpg"}], "annotations": []}',
            r'image id 1(.0)? is listed twice \(a.jpg, b.jpg\)',
        ),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": "1"}]}',
            "image_id '1' is the text, the id of the image the number 1; write both in one form",
        ),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "segments_info": []}]}',
            'in the panoptic format, whose masks are PNG files',
        ),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "segmentation": "abc"}]}',
            'neither RLE nor polygons',
        ),
        (
            '{"images": [{"id": 1, "file_name": "a.jpg", "height": 30, "width": 20}], "annotations": []}',
            '30 x 20 px .height x width., pseudo-masks for 20 x 30',
        ),
    ],
)
def test_broken_ground_truth_is_named_and_nothing_is_written(store, target, tmp_path, content, message):
    truth = tmp_path / 'gt.json'
    truth.write_text(content)
    with pytest.raises(StoreError, match=message) as error:
        merge_ground_truth(store.root, target, truth)
    assert 'gt.json' in str(error.value)
    assert not target.exists()


def test_an_image_that_cannot_be_read_is_left_out_and_the_others_are_joined(store, target, tmp_path, capsys):
    images = [coco_image(i, name) for i, name in enumerate(('a.jpg', 'b.jpg', 'c.jpg', 'd.jpg'), start=1)]
    labels = [annotation(NESTED[2], i) for i in range(1, 5)]
    labels[2]['segmentation'] = 'abc'
    truth = write(tmp_path / 'gt.json', {'images': images, 'annotations': labels})
    path = store.path_of('a.jpg')
    path.write_bytes(path.read_bytes()[:-20])
    assert main(['merge', str(store.root), str(target), '--gt', str(truth)]) == 1
    assert [image['file_name'] for image in json.loads(target.read_text())['images']] == ['deep/b.jpg', 'd.jpg']
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f'left out: {path}: not a JSON file')
    assert lines[1].startswith(f'left out: {truth}, c.jpg: image 3, record without id: segmentation is neither')
    assert lines[2] == f'2 images are not in {target}'


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-be', 'utf-32'])
def test_labels_may_be_in_any_encoding_of_json(store, target, tmp_path, encoding):
    content = {'images': [coco_image(1, 'a.jpg')], 'annotations': [annotation(NESTED[2], note='Zellkern, 5 µm, 😀')]}
    truth = tmp_path / 'gt.json'
    truth.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    assert merge_ground_truth(store.root, target, truth).added == 1
    added = next(one for one in json.loads(target.read_text())['annotations'] if one['source'] == 'gt')
    assert added['note'] == 'Zellkern, 5 µm, 😀'


def test_ids_may_be_whole_floats_and_other_fields_may_be_absent(store, target, tmp_path):
    label = {'image_id': 1.0, 'segmentation': annotation(NESTED[2])['segmentation'], 'area': None, 'iscrowd': None}
    truth = write(tmp_path / 'gt.json', {'images': [coco_image(1.0, 'a.jpg')], 'annotations': [label]})
    assert merge_ground_truth(store.root, target, truth).added == 1
    added = next(one for one in json.loads(target.read_text())['annotations'] if one['source'] == 'gt')
    assert (added['area'], added['iscrowd']) == (bitmaps(NESTED[2]).sum(), 0)


def test_polygons_that_enclose_nothing_are_left_out_with_one_warning(store, target, tmp_path):
    square, line = [1, 1, 9, 1, 9, 9, 1, 9], [1, 1, 5, 5]
    labels = [{'id': i, 'image_id': 1, 'segmentation': parts} for i, parts in enumerate(([square, line], [line], None))]
    truth = write(tmp_path / 'gt.json', {'images': [coco_image(1, 'a.jpg')], 'annotations': labels})
    with pytest.warns(UserWarning, match='left out') as caught:
        assert merge_ground_truth(store.root, target, truth).added == 1
    [message] = [str(one.message) for one in caught]
    assert f'{truth}: left out 2 annotations that have no polygon, and 1 polygons of others' in message
    assert message.endswith('the first: image 1, record 0')


def test_only_what_was_left_out_is_counted():
    polygons = PolygonFilter('gt.json')
    polygons([{'segmentation': [[1, 1, 5, 5]]}])
    assert polygons.message().startswith('gt.json: left out 1 annotations that have no polygon, since they')


@pytest.mark.parametrize('extra', [{}, {'segmentation': None}, {'segmentation': []}, {'keypoints': [1, 1, 2]}])
def test_labels_without_any_mask_are_refused(store, target, tmp_path, extra):
    label = {'image_id': 1, 'bbox': [1, 1, 5, 5], 'score': 0.9} | extra
    content = {'images': [coco_image(1, 'a.jpg')], 'annotations': [label]}
    labels = write(tmp_path / 'boxes.json', content)
    for merge in (merge_ground_truth, merge_predictions):
        with pytest.raises(StoreError, match=r'boxes\.json: no annotation has a mask'):
            merge(store.root, target, labels)
    assert not target.exists()


@pytest.mark.parametrize(
    ('key', 'value', 'expected'),
    [
        ('bbox', [float('nan')] * 4, [2, 2, 16, 16]),
        ('bbox', 'none', [2, 2, 16, 16]),
        ('bbox', [1, 2], [2, 2, 16, 16]),
        ('bbox', [], [2, 2, 16, 16]),
        ('area', float('inf'), 256),
        ('area', -256, 256),
        ('area', '250', 250),
        ('score', float('nan'), None),
        ('attributes', {'depths': [float('nan'), 2.0]}, {'depths': [None, 2.0]}),
    ],
)
def test_what_is_written_is_json_with_whole_fields(store, target, tmp_path, key, value, expected):
    label = annotation((2, 2, 18, 18)) | {key: value}
    truth = write(tmp_path / 'gt.json', {'images': [coco_image(1, 'a.jpg')], 'annotations': [label]})
    merge_ground_truth(store.root, target, truth)
    written = json.loads(target.read_text(), parse_constant=pytest.fail)
    assert next(one for one in written['annotations'] if one['source'] == 'gt')[key] == expected


@pytest.mark.parametrize('score', [float('nan'), float('inf'), None])
def test_a_score_that_is_not_finite_is_refused(store, target, tmp_path, score):
    content = {'images': [coco_image(1, 'a.jpg')], 'annotations': [annotation(NESTED[2], score=score)]}
    predictions = write(tmp_path / 'predicted.json', content)
    with pytest.raises(StoreError, match=r'predicted\.json: a prediction of image 1 has no finite "score"'):
        merge_predictions(store.root, target, predictions)


def test_folders_may_be_divided_as_on_windows(store, target, tmp_path):
    content = {'images': [coco_image(1, 'D:\\set\\deep\\b.jpg')], 'annotations': [annotation(NESTED[2])]}
    assert merge_ground_truth(store.root, target, write(tmp_path / 'gt.json', content)).matched == 1


def test_an_image_that_is_listed_twice_is_named_with_its_file(store, target, tmp_path):
    content = {'images': [coco_image(1, 'a.jpg'), coco_image(2, 'a.jpg')], 'annotations': []}
    with pytest.raises(StoreError, match=r'gt\.json: a\.jpg: fits 2 images'):
        merge_ground_truth(store.root, target, write(tmp_path / 'gt.json', content))


def test_a_compressed_file_says_that_it_is(store, target, tmp_path):
    (tmp_path / 'gt.json').write_bytes(gzip.compress(b'{"images": [], "annotations": []}'))
    with pytest.raises(StoreError, match=r'gt\.json: is compressed with gzip; unpack it first'):
        merge_ground_truth(store.root, target, tmp_path / 'gt.json')


def test_a_folder_that_holds_other_json_files_is_refused(store, target, tmp_path):
    (tmp_path / 'truth').mkdir()
    with pytest.raises(StoreError, match='no JSON files in it'):
        merge_ground_truth(store.root, target, tmp_path / 'truth')
    write(tmp_path / 'truth' / 'a.json', [1])
    with pytest.raises(StoreError, match=r'a\.json: not an SA-1B annotation file'):
        merge_ground_truth(store.root, target, tmp_path / 'truth')


def test_inputs_are_never_overwritten(store, tmp_path):
    truth = write(tmp_path / 'gt.json', {'images': [], 'annotations': []})
    with pytest.raises(StoreError, match='would overwrite an input'):
        merge_ground_truth(store.root, truth, truth)


@pytest.mark.parametrize('name', ['a.json', 'new.json', 'deep/new.json'])
def test_a_folder_of_human_labels_gets_no_file_of_ours(store, tmp_path, capsys, name):
    """Not even a new one, which the next run would read as labels."""
    (tmp_path / 'truth' / 'deep').mkdir(parents=True)
    labels = write(tmp_path / 'truth' / 'a.json', {'image': coco_image(5, 'a.jpg'), 'annotations': []})
    before = labels.read_bytes()
    command = ['merge', str(store.root), str(tmp_path / 'truth' / name), '--gt', str(tmp_path / 'truth')]
    assert main(command) == 1
    assert f'{name}: lies in {tmp_path / "truth"}, whose files are read' in capsys.readouterr().err
    with pytest.raises(StoreError, match='whose files are read'):
        merge_ground_truth(store.root, tmp_path / 'truth' / name, tmp_path / 'truth')
    assert list((tmp_path / 'truth').rglob('*.json')) == [labels]
    assert labels.read_bytes() == before


def test_masks_are_never_replaced_by_labels_made_of_them(store, tmp_path, capsys):
    predicted = PseudoMaskStore(tmp_path / 'predicted')
    predicted.write('a.jpg', MaskSet.from_bitmaps(bitmaps(*NESTED)))
    command = ['merge', str(store.root), '--predictions', str(predicted.root)]
    for read in (store, predicted):
        target, before = read.path_of('a.jpg'), read.path_of('a.jpg').read_bytes()
        assert main([*command, str(target)]) == 1
        assert 'a.jpg.json: is one of the files that are read' in capsys.readouterr().err
        with pytest.raises(StoreError, match='is one of the files that are read'):
            merge_predictions(store.root, target, predicted.root)
        assert target.read_bytes() == before
        for _ in range(2):
            assert main([*command, str(read.root / 'joined.json')]) == 0


def test_thresholds_are_shares(store, target, tmp_path):
    truth = write(tmp_path / 'gt.json', {'images': [coco_image(1, 'a.jpg')], 'annotations': []})
    with pytest.raises(UnSAMError, match='iou must lie in'):
        merge_ground_truth(store.root, target, truth, max_iou=2)
    with pytest.raises(UnSAMError, match='score must lie in'):
        merge_predictions(store.root, target, truth, min_score=70)


def test_the_command_joins_and_counts(store, target, tmp_path, capsys):
    truth = write(tmp_path / 'gt.json', {'images': [coco_image(1, 'a.jpg')], 'annotations': [annotation(NESTED[2])]})
    assert main(['merge', str(store.root), str(target), '--gt', str(truth), '--iou', '0.5']) == 0
    printed = capsys.readouterr().out
    assert f'1 human labels and 7 pseudo-masks in {target}; 1 pseudo-masks overlapped' in printed
    assert '1 images with both, 1 with pseudo-masks only, 0 with human labels only' in printed
    results = write(tmp_path / 'results.json', PREDICTED)
    assert main(['merge', str(store.root), str(target), '--predictions', str(results), '--score', '0.6']) == 0
    assert '3 predictions and 5 pseudo-masks' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--iou', '0.5'], '--iou needs labels to compare with'),
        (['--gt', 'gt.json', '--score', '0.5'], '--score applies to predictions only'),
        (['--supervised'], '--supervised applies to predictions only'),
        (['--gt', '{}/none.json'], 'none.json: no such file'),
    ],
)
def test_options_without_effect_are_mistakes(store, target, capsys, arguments, message):
    command = ['merge', str(store.root), str(target), *(text.format(store.root) for text in arguments)]
    assert main(command) == 1
    assert message in capsys.readouterr().err


def test_two_kinds_of_labels_at_once_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(['merge', 'a', 'b', '--gt', 'c', '--predictions', 'd'])
    assert 'not allowed with' in capsys.readouterr().err


_encodable = st.characters(codec='utf-8')
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(_encodable),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@example(items=[12, 0.5, 1e-07, 1e22, True], others={'b': [1, 2], 'a': -0.25}, chunk=1, indent=None, ascii_only=True)
@example(items=['ü', {'é': '"]}'}], others={}, chunk=2, indent=1, ascii_only=False)
@given(
    items=st.lists(json_values),
    others=st.dictionaries(st.text(max_size=3), json_values, max_size=3),
    chunk=st.integers(1, 9),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_entries_are_those_of_json_wherever_a_file_is_cut(tmp_path_factory, items, others, chunk, indent, ascii_only):
    path = tmp_path_factory.mktemp('stream') / 'a.json'
    text = json.dumps({**others, 'wanted list': items}, indent=indent, ensure_ascii=ascii_only)
    path.write_text(text, encoding='utf-8')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, '_CHUNK_BYTES', chunk)
        entries = list(stream_lists(path, {'wanted list'}))
    assert [entry.value for entry in entries] == items
    content = path.read_bytes()
    assert [json.loads(content[entry.start : entry.end]) for entry in entries] == items


_LABELS_AN_IMAGE = 30


@pytest.mark.slow
def test_memory_does_not_grow_with_the_ground_truth(tmp_path):
    """More labels cost an index of some tens of bytes each, but not themselves, over a thousand bytes each in Python."""
    few, many = 20, 420
    grown = _peak_bytes(tmp_path / 'many', many) - _peak_bytes(tmp_path / 'few', few)
    assert grown < 100 * (many - few) * _LABELS_AN_IMAGE


def _peak_bytes(root, n_images):
    store = PseudoMaskStore(root / 'masks')
    for number in range(n_images):
        store.write(f'{number}.jpg', MaskSet.from_bitmaps(bitmaps(*NESTED)))
    records = [annotation(NESTED[2], number, id=number, more='x' * 100) for number in range(n_images)]
    records *= _LABELS_AN_IMAGE
    images = [coco_image(number, f'{number}.jpg') for number in range(n_images)]
    write(root / 'gt.json', {'images': images, 'annotations': records})
    script = (
        'import sys, tracemalloc; from unsam_mm.__main__ import main; tracemalloc.start(); main(sys.argv[1:]);'
        'print(tracemalloc.get_traced_memory()[1])'
    )
    finished = warm_python.run('-c', script, 'merge', root / 'masks', root / 'all.json', '--gt', root / 'gt.json')
    assert finished.returncode == 0, finished.stderr
    return int(finished.stdout.split()[-1])
