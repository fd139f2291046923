"""COCO's panoptic form: each segment of a picture of numbers is an object, whatever its category."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

from unsam_mm.datasets import UnSAMCocoPanopticDataset
from unsam_mm.errors import ImageError, StoreError

LOAD = [{'type': 'UnSAMLoadImage'}, {'type': 'UnSAMLoadMasks'}]
NUMBERS = (7, 700, 70000)
"""One that fits a byte, and two that need two and three."""


@pytest.fixture
def content(tmp_path):
    """Two images; the first has a thing, stuff in two pieces and a crowd, the second is not annotated."""
    (tmp_path / 'images').mkdir()
    (tmp_path / 'segments').mkdir()
    for name in ('one.jpg', 'two.jpg'):
        Image.fromarray(data.coffee()[:90, :120]).save(tmp_path / 'images' / name)
    Image.fromarray(drawing().astype('<u4').view(np.uint8).reshape(90, 120, 4)[..., :3]).save(
        tmp_path / 'segments' / 'one.png'
    )
    images = [
        {'id': number, 'file_name': name, 'height': 90, 'width': 120}
        for number, name in ((5, 'one.jpg'), (9, 'two.jpg'))
    ]
    segments = [{'id': number, 'category_id': 1, 'iscrowd': int(number == 70000)} for number in NUMBERS]
    record = {'image_id': 5, 'file_name': 'one.png', 'segments_info': segments}
    return {'images': images, 'annotations': [record], 'categories': [{'id': 1, 'name': 'object'}]}


def drawing() -> np.ndarray:
    """(90, 120) the number of the segment of each pixel; 0 where there is none."""
    numbers = np.zeros((90, 120), np.int64)
    numbers[10:30, 10:50] = NUMBERS[0]
    numbers[40:50, :20] = numbers[70:80, 100:] = NUMBERS[1]
    numbers[60:, 30:60] = NUMBERS[2]
    return numbers


def opened(tmp_path, content, **prefix):
    (tmp_path / 'panoptic.json').write_text(json.dumps(content))
    return UnSAMCocoPanopticDataset(
        ann_file='panoptic.json',
        data_root=str(tmp_path),
        data_prefix={'img': 'images', 'seg': 'segments', **prefix},
        pipeline=LOAD,
        test_mode=True,
    )


def test_every_segment_is_an_object_and_crowds_are_ignored(tmp_path, content):
    dataset = opened(tmp_path, content)
    entry = dataset[0]
    assert (len(dataset), entry['img_id']) == (2, 5)
    assert entry['gt_ignore_flags'].tolist() == [False, False, True]
    np.testing.assert_array_equal(entry['gt_masks'].masks, [drawing() == number for number in NUMBERS])
    assert dataset.get_data_info(0)['instances'][1]['area'] == 400


def test_an_image_without_annotation_has_no_objects(tmp_path, content):
    assert len(opened(tmp_path, content)[1]['gt_masks']) == 0


def test_a_missing_folder_of_drawings_is_named(tmp_path, content):
    with pytest.raises(ImageError, match=r'none: contains no one\.png, .* set data_prefix\.seg'):
        opened(tmp_path, content, seg='none')


def test_a_drawing_that_cannot_be_read_is_named(tmp_path, content):
    dataset = opened(tmp_path, content)
    (tmp_path / 'segments' / 'one.png').write_bytes(b'PNG')
    with pytest.raises(ImageError, match=r'one\.png'):
        dataset[0]


def test_a_file_of_instances_is_refused(tmp_path, content):
    content['annotations'] = [{'id': 1, 'image_id': 5, 'category_id': 1, 'segmentation': [[1, 1, 9, 1, 9, 9]]}]
    with pytest.raises(StoreError, match=r'panoptic\.json: image .*: has no .* for instance annotations use'):
        opened(tmp_path, content)
