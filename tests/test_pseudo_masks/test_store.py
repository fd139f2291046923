"""A folder of pseudo-masks: whole files or none, and a clear word about everything that is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from unsam_mm import MaskSet
from unsam_mm.errors import StoreError
from unsam_mm.pseudo_masks.store import PseudoMaskStore


@pytest.fixture
def masks():
    bitmaps = np.zeros((2, 6, 9), bool)
    bitmaps[0, 1:5, 2:8], bitmaps[1, 2:4, 3:5] = True, True
    return MaskSet.from_bitmaps(bitmaps, scores=np.array([0.9, 0.25]))


@pytest.fixture
def store(tmp_path):
    return PseudoMaskStore(tmp_path / 'masks')


def test_masks_come_back_as_they_were(store, masks):
    store.write('cats/1.jpg', masks)
    read = store.read('cats/1.jpg')
    assert (read.to_bitmaps() == masks.to_bitmaps()).all()
    for name in ('scores', 'granularity', 'parents', 'areas', 'boxes_xyxy'):
        assert getattr(read, name) == pytest.approx(getattr(masks, name), abs=1e-6)
    assert read.size_hw == masks.size_hw


def test_files_have_the_form_of_sa1b(store, masks):
    store.write('1.jpg', masks)
    content = json.loads(store.path_of('1.jpg').read_text())
    assert content['image'] == {'file_name': '1.jpg', 'height': 6, 'width': 9}
    assert {'id', 'segmentation', 'bbox', 'area', 'predicted_iou'} <= content['annotations'][0].keys()


def test_an_image_without_masks_is_finished_too(store):
    store.write('blank.jpg', MaskSet.from_bitmaps(np.zeros((0, 6, 9), bool)))
    assert store.has('blank.jpg')
    assert len(store.read('blank.jpg')) == 0


def test_names_are_sorted_and_tell_suffixes_apart(store, masks):
    for name in ('b.png', 'a/x.jpg', 'b.jpg'):
        store.write(name, masks)
    store.describe({'preset': 'default'})
    assert store.names() == ['a/x.jpg', 'b.jpg', 'b.png']


def test_other_files_in_the_folder_are_left_alone(store, masks, tmp_path):
    store.write('a.jpg', masks)
    (store.root / 'notes.json').write_text('[1]')
    assert store.merge(store.root / 'pseudo.json') == (1, 2)
    assert store.merge(store.root / 'pseudo.json') == (1, 2)
    store.clear()
    assert store.names() == []
    assert (store.root / 'notes.json').exists()


def test_merging_gives_a_coco_file_that_pycocotools_reads(store, masks, tmp_path, capsys):
    from pycocotools.coco import COCO

    store.write('b.jpg', masks)
    store.write('a.jpg', masks)
    assert store.merge(tmp_path / 'all.json') == (2, 4)
    coco = COCO(tmp_path / 'all.json')
    assert [image['file_name'] for image in coco.dataset['images']] == ['a.jpg', 'b.jpg']
    inner = coco.anns[4]
    assert coco.anns[inner['parent']]['image_id'] == inner['image_id'] == 2
    assert (coco.annToMask(inner) == masks.to_bitmaps()[1]).all()


def test_merging_nothing_writes_nothing(store, tmp_path):
    store.root.mkdir()
    with pytest.raises(StoreError, match='holds no pseudo-masks'):
        store.merge(tmp_path / 'all.json')
    assert not (tmp_path / 'all.json').exists()


@pytest.mark.parametrize(
    ('content', 'message'),
    [('{"image": {', 'cut short'), ('[]', 'not a pseudo-mask file'), ('{"image": {}}', 'not a pseudo')],
)
def test_a_broken_file_is_named(store, masks, content, message):
    store.write('1.jpg', masks)
    store.path_of('1.jpg').write_text(content)
    with pytest.raises(StoreError, match=rf'1\.jpg\.json.*{message}'):
        store.read('1.jpg')


@pytest.mark.parametrize('parent', [-2, 99])
def test_a_parent_that_is_no_mask_is_named(store, masks, parent):
    store.write('1.jpg', masks)
    content = json.loads(store.path_of('1.jpg').read_text())
    content['annotations'][0]['parent'] = parent
    store.path_of('1.jpg').write_text(json.dumps(content))
    with pytest.raises(StoreError, match=rf'1\.jpg\.json.*parent {parent} among'):
        store.read('1.jpg')


@pytest.mark.parametrize(
    ('change', 'reason'),
    [
        ({'segmentation': {'size': [6, 9], 'counts': 'zzzz'}, 'area': 3}, 'mask 0: counts are not COCO run lengths'),
        ({'segmentation': {'size': [9, 6], 'counts': '54'}}, 'the mask is 9 x 6 px, the image 6 x 9'),
        ({'segmentation': {'size': [6, 9], 'counts': [0, 54]}}, 'mask 0 has 54 px, its "area" is 24'),
        ({'segmentation': {'size': [6, 9], 'counts': [0, 24, 30]}}, r'has the box \[0, 0, 4, 6\], its "bbox" is'),
        ({'area': 3}, 'mask 0 has 24 px, its "area" is 3'),
        ({'predicted_iou': float('nan')}, '"predicted_iou" is nan'),
        ({'predicted_iou': 9}, '"predicted_iou" is 9'),
        ({'predicted_iou': '0.5'}, '"predicted_iou" is \'0.5\'; expected a number'),
        ({'granularity': -3}, '"granularity" is -3'),
        ({'parent': 0}, 'parents go round in a circle'),
        ({'parent': 0.5}, 'parent 0.5 among 2 masks'),
        ({'parent': 2**63}, 'parent 9.22.* among 2 masks'),
    ],
)
def test_a_mask_that_is_not_what_was_written_is_refused(store, masks, change, reason):
    store.write('1.jpg', masks)
    content = json.loads(store.path_of('1.jpg').read_text())
    content['annotations'][0] |= change
    store.path_of('1.jpg').write_text(json.dumps(content))
    with pytest.raises(StoreError, match=rf'1\.jpg\.json.*{reason}') as caught:
        store.read('1.jpg')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('size', [{'height': '6'}, {'height': 6.5}, {'width': 0}, {'width': None}, {'width': True}])
def test_an_image_without_a_size_is_refused(store, masks, size):
    store.write('1.jpg', masks)
    content = json.loads(store.path_of('1.jpg').read_text())
    content['image'] |= size
    store.path_of('1.jpg').write_text(json.dumps(content))
    with pytest.raises(StoreError, match='1.jpg.json: not a pseudo-mask file'):
        store.read('1.jpg')


def test_masks_of_other_settings_are_not_mixed_in(store):
    store.describe({'preset': 'default', 'max_masks': 10})
    store.describe({'preset': 'default', 'max_masks': 10})
    with pytest.raises(StoreError, match='another max_masks'):
        store.describe({'preset': 'default', 'max_masks': 20})


def test_a_missing_folder_says_how_to_make_one(store):
    with pytest.raises(StoreError, match='python -m unsam_mm generate'):
        store.names()
