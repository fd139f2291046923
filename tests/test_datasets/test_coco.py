"""COCO files as training sets: read piece by piece, all categories as one, in every form that masks come in."""

import json

import numpy as np
import pytest
from mmdet.datasets import CocoDataset
from PIL import Image
from skimage import data

from unsam_mm.datasets import UnSAMCocoDataset
from unsam_mm.datasets.loading import UnSAMCapMasks, UnSAMLoadMasks, draw_without_replacement
from unsam_mm.errors import ImageError, StoreError, UnSAMError
from unsam_mm.masks.rle import encode_bitmaps, rle_to_json

LOAD = [{'type': 'UnSAMLoadImage'}, {'type': 'UnSAMLoadMasks'}]
SQUARE = [[10, 20, 40, 20, 40, 60, 10, 60]]


@pytest.fixture
def content(tmp_path):
    """Two images; annotations of the first stand before and behind those of the second."""
    for name, photo in {'a/one.png': data.coffee()[:90, :120], 'two.png': data.rocket()[:80, :100]}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photo).save(tmp_path / name)
    mask = np.zeros((1, 90, 120), bool)
    mask[0, 30:60, 40:100] = True
    rle = rle_to_json(encode_bitmaps(mask)[0])
    annotations = [
        {'id': 1, 'image_id': 7, 'category_id': 90, 'bbox': [10, 20, 30, 40], 'segmentation': SQUARE, 'area': 1199.5},
        {'id': 2, 'image_id': 3, 'category_id': 1, 'bbox': [10, 20, 30, 40], 'segmentation': SQUARE},
        {'id': 3, 'image_id': 7, 'category_id': 2, 'bbox': [40, 30, 60, 30], 'segmentation': rle, 'iscrowd': 1},
    ]
    images = [
        {'id': 7, 'file_name': 'a/one.png', 'height': 90, 'width': 120},
        {'id': 3, 'file_name': 'two.png', 'height': 80, 'width': 100},
    ]
    categories = [{'id': number, 'name': f'n{number}'} for number in (1, 2, 90)]
    return {'info': {}, 'images': images, 'annotations': annotations, 'categories': categories}


def opened(tmp_path, content, **arguments):
    (tmp_path / 'gt.json').write_text(json.dumps(content))
    return UnSAMCocoDataset(ann_file='gt.json', data_root=str(tmp_path), **{'pipeline': LOAD, **arguments})


def test_all_categories_are_one_and_ids_are_those_of_the_file(tmp_path, content):
    dataset = opened(tmp_path, content)
    first, second = dataset[0], dataset[1]
    assert (first['img_id'], second['img_id']) == (7, 3)
    assert first['gt_bboxes_labels'].tolist() == [0, 0]
    assert first['gt_masks'].areas.tolist() == [1800, 1200]  # by category: COCO's own code looks at them in this order
    assert first['gt_ignore_flags'].tolist() == [True, False]
    np.testing.assert_array_equal(second['gt_bboxes'].tensor, [[10, 20, 40, 60]])
    assert dataset.metainfo['classes'] == ('object',)


def test_areas_are_those_that_the_file_states_where_it_does(tmp_path, content):
    steps = [LOAD[0], {'type': 'UnSAMLoadMasks', 'at_original_size': True}]
    dataset = opened(tmp_path, content, pipeline=steps)
    assert (dataset[0]['gt_areas'], dataset[1]['gt_areas']) == ([1199.5], [1200.0])


def test_objects_that_cannot_be_drawn_are_left_out(tmp_path, content):
    line, nothing, outside = [[1, 1, 5, 5]], [], [[300, 300, 310, 300, 310, 310]]
    content['annotations'] += [
        {'id': number, 'image_id': 3, 'category_id': 1, 'bbox': [1, 1, 4, 4], 'segmentation': mask}
        for number, mask in enumerate((line, nothing, [*line, *SQUARE], outside), start=10)
    ]
    assert opened(tmp_path, content)[1]['gt_masks'].areas.tolist() == [1200, 1200]


def test_objects_without_a_mask_are_left_out_of_mmdetections_own_data_set_too(tmp_path, content):
    content['annotations'] = [{**one, 'area': 1200, 'iscrowd': 0} for one in content['annotations']]
    content['annotations'][2]['segmentation'] = []
    (tmp_path / 'gt.json').write_text(json.dumps(content))
    classes = [category['name'] for category in content['categories']]
    dataset = CocoDataset(
        ann_file='gt.json',
        data_root=str(tmp_path),
        data_prefix={'img': ''},
        metainfo={'classes': classes},
        pipeline=[*LOAD],
    )
    sample = dataset[0]
    assert sample['gt_masks'].areas.tolist() == [1200]
    assert sample['gt_bboxes'].tensor.tolist() == [[10, 20, 40, 60]]


@pytest.mark.parametrize('score', ['high', True, [0.5], float('inf')])
def test_a_score_that_is_no_number_is_named(tmp_path, content, score):
    content['annotations'][1]['score'] = score
    with pytest.raises(StoreError, match='image 3: annotation 2: the "score" is not a number'):
        opened(tmp_path, content, test_mode=True)[1]


def test_images_without_objects_stay(tmp_path, content):
    content['annotations'] = [one for one in content['annotations'] if one['image_id'] == 7]
    assert len(opened(tmp_path, content)[1]['gt_masks']) == 0


def test_one_flat_folder_of_images_is_found_too(tmp_path, content):
    (tmp_path / 'a' / 'one.png').rename(tmp_path / 'one.png')
    dataset = opened(tmp_path, content)
    assert [dataset[i]['img_name'] for i in range(2)] == ['one.png', 'two.png']


def test_annotations_are_read_when_they_are_wanted(tmp_path, content):
    content['annotations'][1]['segmentation'] = 'broken'
    dataset = opened(tmp_path, content, test_mode=True)
    assert len(dataset[0]['gt_masks']) == 2
    with pytest.raises(StoreError, match='two.png, record 0: segmentation is neither RLE nor polygons'):
        dataset[1]


def test_a_file_that_was_exchanged_meanwhile_is_noticed(tmp_path, content):
    dataset = opened(tmp_path, content, test_mode=True)
    content['info'] = {'description': 'longer than before'}
    (tmp_path / 'gt.json').write_text(json.dumps(content))
    with pytest.raises(StoreError, match='has changed while it was in use, so the annotations of a/one.png cannot'):
        dataset[0]


def test_annotations_that_stand_together_are_recorded_together(tmp_path, content):
    content['annotations'] = sorted(content['annotations'] * 50, key=lambda one: one['image_id'])
    (tmp_path / 'gt.json').write_text(json.dumps(content))
    dataset = UnSAMCocoDataset('gt.json', str(tmp_path))
    assert len(dataset._index._sorted_spans) == 2
    assert len(dataset.annotations(0)) == 100


def test_a_merged_file_of_pseudo_masks_is_a_training_set(tmp_path):
    from unsam_mm.folders.store import PseudoMaskStore
    from unsam_mm.masks.mask_set import MaskSet

    Image.fromarray(data.coffee()[:90, :120]).save(tmp_path / 'coffee.png')
    masks = np.zeros((2, 90, 120), bool)
    masks[0, 5:40, 5:60] = masks[1, 10:20, 10:20] = True
    store = PseudoMaskStore(tmp_path / 'store')
    store.write('coffee.png', MaskSet.from_bitmaps(masks))
    store.merge(tmp_path / 'pseudo.json')
    dataset = UnSAMCocoDataset(ann_file=str(tmp_path / 'pseudo.json'), data_root=str(tmp_path), pipeline=LOAD)
    np.testing.assert_array_equal(dataset[0]['gt_masks'].masks, masks)


def damaged(content, part, number, **changes):
    content[part][number] |= changes
    return content


@pytest.mark.parametrize(
    ('damage', 'error', 'message'),
    [
        (lambda c: c | {'images': c['images'][:1]}, StoreError, r'annotations of 1 images that are not listed \(3\)'),
        (lambda c: {'annotations': []}, StoreError, 'gt.json: no images in it'),
        (lambda c: c | {'images': c['images'] * 2}, StoreError, r'image id 7 is listed twice \(a/one.png, a/one.png\)'),
        (lambda c: damaged(c, 'images', 0, file_name=None), StoreError, 'neither "file_name" nor "coco_url"'),
        (lambda c: damaged(c, 'images', 0, id=[]), StoreError, 'where an entry with "id" was expected'),
        (
            lambda c: damaged(c, 'images', 0, file_name='x.png'),
            ImageError,
            r'contains no x.png .* set data_root, or data_pr',
        ),
    ],
)
def test_files_of_another_form_are_refused_at_the_start(tmp_path, content, damage, error, message):
    with pytest.raises(error, match=message):
        opened(tmp_path, damage(content))


def test_an_empty_list_of_images_is_refused(tmp_path):
    with pytest.raises(StoreError, match='no images in it'):
        opened(tmp_path, {'images': [], 'annotations': []})


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ({}, UnSAMError, 'ann_file is empty'),
        ({'ann_file': 'absent.json', 'homepage': 'X'}, StoreError, 'absent.json: no such file; .* get it from X'),
    ],
)
def test_what_is_missing_is_named_with_where_to_get_it(arguments, error, message):
    with pytest.raises(error, match=message):
        UnSAMCocoDataset(**arguments)


def test_fields_that_only_other_tools_write_are_not_needed(tmp_path, content):
    """Boxes are taken from masks; pandas writes ids as floats, and some tools null for what they do not know."""
    for image in content['images']:
        image['id'] = float(image['id'])
    for annotation in content['annotations']:
        annotation['image_id'] = float(annotation['image_id'])
        del annotation['bbox'], annotation['id'], annotation['category_id']
        annotation |= {'area': None, 'iscrowd': None}
    steps = [LOAD[0], {'type': 'UnSAMLoadMasks', 'at_original_size': True}]
    dataset = opened(tmp_path, content, pipeline=steps)
    assert [dataset[i]['img_id'] for i in range(2)] == [7, 3]
    assert [dataset[i]['gt_areas'] for i in range(2)] == [[1200.0, 1800.0], [1200.0]]


def test_polygons_that_enclose_nothing_are_counted_once_at_the_start(tmp_path, content, monkeypatch):
    content['annotations'][1]['segmentation'] = [*SQUARE, [1, 1, 5, 5], [1, 1, 5, 5, 9, 9]]
    content['annotations'].append({'id': 9, 'image_id': 3, 'segmentation': [[1, 1, 9, 1, 9, 9, 1]]})
    logged = []
    monkeypatch.setattr('unsam_mm.datasets.coco.log_warning', logged.append)
    dataset = opened(tmp_path, content)
    [message] = logged
    assert 'gt.json: left out 1 annotations that have no polygon, and 2 polygons of others' in message
    assert 'the first: image 3, record 2' in message
    assert dataset[1]['gt_masks'].areas.tolist() == [1200]


@pytest.mark.parametrize('step', [{'type': 'Resize', 'scale': (64, 64)}, {'type': 'RandomFlip', 'prob': 1.0}])
def test_masks_are_loaded_before_geometric_steps(tmp_path, content, step):
    with pytest.raises(UnSAMError, match='before the geometric transforms'):
        opened(tmp_path, content, pipeline=[LOAD[0], step, LOAD[1]])[0]


def labelled(tmp_path, content, n_masks):
    """The first image with so many squares and its crowd."""
    extra = {'image_id': 7, 'category_id': 3, 'bbox': [10, 20, 30, 40], 'segmentation': SQUARE}
    content['annotations'] += [{**extra, 'id': 100 + number} for number in range(n_masks - 1)]
    return opened(tmp_path, content)[0]


def test_the_cap_draws_a_subset_that_the_seed_decides(tmp_path, content):
    sample = labelled(tmp_path, content, 40)
    sample['gt_bboxes_labels'] = np.arange(41)  # to tell them apart

    def drawn(seed):
        np.random.seed(seed)  # noqa: NPY002  (the generator that the runner seeds)
        return UnSAMCapMasks(max_masks=10)(dict(sample))['gt_bboxes_labels'].tolist()

    assert len(drawn(0)) == 11  # the crowd is not counted, and stays
    assert drawn(0) == sorted(drawn(0)) == drawn(0)
    assert drawn(0) != drawn(1)
    assert 0 in drawn(0)
    assert 0 in drawn(1)


def waiting_times(n_masks, steps):
    """(steps ** n_masks, n_masks): every combination of the midpoints of `steps` equally likely exponential times."""
    midpoints = -np.log1p(-(np.arange(steps) + 0.5) / steps)
    return np.stack(np.meshgrid(*[midpoints] * n_masks), axis=-1).reshape(-1, n_masks)


def test_the_first_draw_is_in_proportion_to_the_scores():
    """Chance is replaced by all combinations of equally likely times, so shares are probabilities, but for the grid."""
    scores = np.array([0.6, 0.3, 0.1])
    drawn = [draw_without_replacement(scores, times, 1)[0] for times in waiting_times(3, steps=24)]
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), scores / scores.sum(), atol=1 / 24)


def test_the_second_draw_is_in_proportion_to_the_scores_that_are_left():
    scores = np.array([0.6, 0.3, 0.1])
    drawn = np.array([draw_without_replacement(scores, times, 2) for times in waiting_times(3, steps=24)])
    for first in range(3):
        left = np.delete(np.arange(3), first)
        seconds = np.bincount(drawn[drawn[:, 0] == first, 1], minlength=3)[left]
        np.testing.assert_allclose(seconds / seconds.sum(), scores[left] / scores[left].sum(), atol=2 / 24)


def test_a_mask_of_score_0_is_drawn_when_no_other_is_left():
    for times in waiting_times(3, steps=5):
        assert draw_without_replacement(np.array([0.0, 0.2, 0.7]), times, 3)[2] == 0


def test_fewer_masks_than_the_cap_stay_as_they_are(tmp_path, content):
    sample = labelled(tmp_path, content, 5)
    assert len(UnSAMCapMasks(max_masks=5)(sample)['gt_masks']) == 6


def test_the_steps_can_be_printed_and_a_cap_of_nothing_is_refused():
    assert repr(UnSAMCapMasks(7)) == "UnSAMCapMasks(max_masks=7, sampling='score')"
    assert repr(UnSAMLoadMasks()) == 'UnSAMLoadMasks(at_original_size=False)'
    with pytest.raises(UnSAMError, match='max_masks must be positive, got 0'):
        UnSAMCapMasks(0)
    with pytest.raises(UnSAMError, match="sampling must be one of .*, got 'best'"):
        UnSAMCapMasks(sampling='best')
