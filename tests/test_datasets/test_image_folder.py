"""A folder of images is a data set, without any annotation file."""

import json

import numpy as np
import pytest
from mmdet.registry import DATASETS
from PIL import Image
from skimage import data, io

from unsam_mm.datasets import UnSAMImageFolder
from unsam_mm.errors import ImageError, StoreError, UnSAMError
from unsam_mm.images import list_images
from unsam_mm.masks.rle import encode_bitmaps, rle_to_json

LOAD = [{'type': 'UnSAMLoadImage'}]


def open_folder(root, **arguments):
    """Without serialisation, which collects the garbage of the whole process."""
    return UnSAMImageFolder(data_root=str(root), serialize_data=False, **arguments)


def listed(root, **arguments):
    """Image names of a folder."""
    return names(open_folder(root, **arguments))


def names(dataset):
    return [dataset.get_data_info(i)['img_name'] for i in range(len(dataset))]


def touch(root, n):
    """Files that are listed but never opened."""
    root.mkdir()
    for i in range(n):
        (root / f'{i:03}.png').touch()
    return str(root)


def test_all_images_at_any_depth_are_listed_and_hidden_ones_are_not(image_folder):
    dataset = UnSAMImageFolder(data_root=str(image_folder))
    assert names(dataset) == ['Coffee.JPG', 'broken.png', 'micro/coins16.tif', 'micro/deep/cell.png', 'rgba.png']
    assert dataset.metainfo['classes'] == ('object',)
    assert dataset.get_cat_ids(0) == []


def test_a_subfolder_is_chosen_by_prefix(image_folder):
    dataset = DATASETS.build(
        {'type': 'UnSAMImageFolder', 'data_root': str(image_folder), 'data_prefix': {'img': 'micro/'}}
    )
    assert names(dataset) == ['coins16.tif', 'deep/cell.png']


def test_a_link_back_up_the_tree_does_not_go_round_for_ever(image_folder):
    (image_folder / 'micro' / 'again').symlink_to(image_folder, target_is_directory=True)
    assert len(listed(image_folder)) == 5


def test_the_command_line_finds_the_same_images_behind_links(image_folder, tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (image_folder / 'rgba.png').rename(tmp_path / 'elsewhere' / 'far.png')
    (image_folder / 'linked').symlink_to(tmp_path / 'elsewhere', target_is_directory=True)
    found = [path.relative_to(image_folder).as_posix() for path in list_images(image_folder)]
    assert 'linked/far.png' in found
    assert found == listed(image_folder)


def test_ids_depend_on_the_name_alone(image_folder):
    before = {info['img_name']: info['img_id'] for info in open_folder(image_folder).data_list}
    Image.fromarray(data.chelsea()).save(image_folder / 'a_new_one.png')
    after = {info['img_name']: info['img_id'] for info in open_folder(image_folder).data_list}
    assert len(set(after.values())) == 6
    assert before.items() <= after.items()
    assert max(after.values()) < 2**52


def test_without_a_folder_it_holds_the_photographs_of_scikit_image():
    train, held_out = (UnSAMImageFolder(split=split, pipeline=LOAD) for split in ('train', 'held_out'))
    assert names(held_out) == ['coffee.png', 'retina.jpg', 'rocket.jpg']
    assert 'astronaut.png' in names(train)
    assert not set(names(train)) & set(names(held_out))
    np.testing.assert_array_equal(held_out[0]['img'], data.coffee()[..., ::-1])


def test_the_two_splits_divide_the_folder(tmp_path):
    root = touch(tmp_path / 'many', 400)
    train, held_out = (set(listed(root, split=split, held_out_fraction=0.2)) for split in ('train', 'held_out'))
    assert not train & held_out
    assert len(train | held_out) == 400
    assert 50 < len(held_out) < 110


def test_an_image_keeps_its_side_when_others_are_added(tmp_path):
    root = touch(tmp_path / 'many', 100)
    before = set(listed(root, split='held_out'))
    (tmp_path / 'many' / 'new.png').touch()
    assert before == set(listed(root, split='held_out')) - {'new.png'}


@pytest.mark.parametrize('fraction', [0.001, 0.5, 0.999])
def test_two_images_are_enough_for_both_splits(tmp_path, fraction):
    root = touch(tmp_path / 'two', 2)
    assert [len(listed(root, split=split, held_out_fraction=fraction)) for split in ('train', 'held_out')] == [1, 1]


def test_one_image_cannot_be_divided(tmp_path):
    root = touch(tmp_path / 'one', 1)
    assert listed(root, split='train') == ['000.png']
    with pytest.raises(ImageError, match=r"split 'held_out' of 1 image\(s\) is empty; use split='all'"):
        listed(root, split='held_out')


def test_every_readable_kind_becomes_rgb_uint8_and_the_broken_file_is_replaced_by_another(image_folder):
    dataset = UnSAMImageFolder(data_root=str(image_folder), pipeline=LOAD)
    shapes = {
        'Coffee.JPG': (120, 160),
        'micro/coins16.tif': (110, 150),
        'micro/deep/cell.png': (130, 140),
        'rgba.png': (90, 130),
    }
    for i in range(len(dataset)):
        sample = dataset[i]
        assert sample['img'].dtype == np.uint8
        assert sample['img'].shape == (*shapes[sample['img_name']], 3)
        assert sample['ori_shape'] == sample['img_shape'] == (sample['height'], sample['width'])


def test_a_broken_file_is_reported_once(image_folder, monkeypatch):
    messages = []
    monkeypatch.setattr('unsam_mm.datasets.messages.print_log', lambda message, **_: messages.append(message))
    dataset = open_folder(image_folder, pipeline=LOAD)
    for _ in range(3):
        dataset[names(dataset).index('broken.png')]
    assert len(messages) == 1
    assert 'broken.png' in messages[0]


def test_a_broken_file_stops_a_test_run_with_its_own_message(image_folder):
    dataset = open_folder(image_folder, pipeline=[{'type': 'UnSAMLoadImage', 'skip_broken': False}], test_mode=True)
    with pytest.raises(ImageError, match=r'broken.png: cannot be read as an image'):
        dataset[names(dataset).index('broken.png')]


@pytest.mark.parametrize(('order', 'channels'), [('rgb', [0, 1, 2]), ('bgr', [2, 1, 0])])
def test_channels_come_in_the_order_asked_for(image_folder, order, channels):
    dataset = open_folder(image_folder, pipeline=[{'type': 'UnSAMLoadImage', 'channel_order': order}])
    image = dataset[names(dataset).index('rgba.png')]['img']
    np.testing.assert_array_equal(image, io.imread(image_folder / 'rgba.png')[..., channels])
    assert image.flags.writeable
    assert image.flags.c_contiguous


@pytest.fixture
def ann_file(image_folder):
    """Ground truth for two of the images, one under another folder name; one mask is a crowd, one a polygon."""
    mask = np.zeros((120, 160), bool)
    mask[30:60, 40:100] = True
    rle = rle_to_json(encode_bitmaps(mask[None])[0])
    annotations = [
        {'id': 1, 'image_id': 12, 'bbox': [40, 30, 60, 30], 'segmentation': rle, 'category_id': 7, 'iscrowd': 0},
        {'id': 2, 'image_id': 12, 'bbox': [40, 30, 60, 30], 'segmentation': rle, 'category_id': 9, 'iscrowd': 1},
        {
            'id': 3,
            'image_id': 40,
            'bbox': [10, 20, 30, 40],
            'segmentation': [[10, 20, 40, 20, 40, 60, 10, 60]],
            'category_id': 9,
        },
    ]
    images = [
        {'id': 12, 'file_name': 'train/Coffee.JPG', 'height': 120, 'width': 160},
        {'id': 40, 'file_name': 'micro/deep/cell.png', 'height': 130, 'width': 140},
    ]
    (image_folder / 'gt.json').write_text(json.dumps({'images': images, 'annotations': annotations}))
    return 'gt.json'


def test_ground_truth_comes_through_the_stock_loader(image_folder, ann_file):
    pipeline = [*LOAD, {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}]
    dataset = UnSAMImageFolder(ann_file=ann_file, data_root=str(image_folder), pipeline=pipeline)
    coffee, cell = dataset[0], dataset[1]
    assert (coffee['img_id'], cell['img_id'], len(dataset)) == (12, 40, 2)
    assert coffee['gt_masks'].masks.sum(axis=(1, 2)).tolist() == [1800, 1800]
    assert coffee['gt_masks'].masks[0, 45, 70] == 1
    assert coffee['gt_ignore_flags'].tolist() == [False, True]
    assert coffee['gt_bboxes_labels'].tolist() == [0, 0]
    np.testing.assert_array_equal(coffee['gt_bboxes'].tensor[0], [40, 30, 100, 60])
    assert cell['gt_masks'].masks.sum() == 1200


@pytest.mark.parametrize('bbox', [None, [], [1, 2], 'none', [0, 0, 'a', 1], {}, [float('nan')] * 4])
def test_a_box_that_is_none_is_left_to_the_mask(image_folder, ann_file, bbox):
    content = json.loads((image_folder / ann_file).read_text())
    content['annotations'][0]['bbox'] = bbox
    (image_folder / ann_file).write_text(json.dumps(content))
    dataset = open_folder(image_folder, ann_file=ann_file)
    boxes = [one['bbox'] for i in range(len(dataset)) for one in dataset.get_data_info(i)['instances']]
    assert [0.0] * 4 in boxes


@pytest.mark.parametrize(('score', 'expected'), [('0.5', 0.5), (float('nan'), None), (None, None)])
def test_a_score_may_be_text_or_absent(image_folder, ann_file, score, expected):
    content = json.loads((image_folder / ann_file).read_text())
    for annotation in content['annotations']:
        annotation['score'] = score
    (image_folder / ann_file).write_text(json.dumps(content))
    dataset = open_folder(image_folder, ann_file=ann_file)
    found = [one.get('score') for i in range(len(dataset)) for one in dataset.get_data_info(i)['instances']]
    assert set(found) == {expected}


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'iscrowd': 2}, 'annotation 1: the "iscrowd" is 2'),
        ({'score': 'high'}, 'annotation 1: the "score" is not a number'),
        ({'segmentation': {'size': [5, 5], 'counts': 'zz'}}, 'annotation 1: counts are not COCO'),
    ],
)
def test_a_field_that_is_not_understood_is_named_with_its_file(image_folder, ann_file, changed, message):
    content = json.loads((image_folder / ann_file).read_text())
    content['annotations'][0] |= changed | {'id': 1}
    (image_folder / ann_file).write_text(json.dumps(content))
    with pytest.raises(StoreError, match=f'{ann_file}, .*: {message}'):
        open_folder(image_folder, ann_file=ann_file)


def test_ground_truth_for_absent_images_is_refused(image_folder, ann_file):
    (image_folder / 'Coffee.JPG').unlink()
    with pytest.raises(ImageError, match=r'1 of 2 images are not in .* \(train/Coffee.JPG\); check data_root'):
        UnSAMImageFolder(ann_file=ann_file, data_root=str(image_folder))


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        pytest.param(
            {'data_root': 'absent/folder'}, ImageError, 'no such folder; expected a folder of images', id='no folder'
        ),
        pytest.param(
            {'data_root': '.', 'data_prefix': {'img': 'empty'}}, ImageError, 'no images found', id='no images'
        ),
        pytest.param({'ann_file': 'absent.json'}, StoreError, 'no such file', id='no annotation file'),
        pytest.param({'split': 'test'}, UnSAMError, "split must be one of .*, got 'test'", id='unknown split'),
        pytest.param({'data_root': ['a', 'b']}, UnSAMError, 'accepts one folder', id='two folders'),
        pytest.param({'held_out_fraction': 1.5}, UnSAMError, 'between 0 and 1, got 1.5', id='fraction'),
    ],
)
def test_bad_arguments_give_one_clear_line(tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(error, match=message):
        UnSAMImageFolder(**arguments)
