"""Folders with one JSON file an image: SA-1B's own, and pseudo-masks; only an index of names is held."""

import json
import os
import pickle
import time

import numpy as np
import pytest
from PIL import Image
from skimage import data

from unsam_mm.datasets import RleMasks, UnSAMSA1B
from unsam_mm.datasets.sa1b import open_index
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import encode_bitmaps, rle_to_json

LOAD = [{'type': 'UnSAMLoadImage'}, {'type': 'UnSAMLoadMasks'}]
HEIGHT, WIDTH = 90, 120


def squares(*corners):
    """Masks of 20 x 20 px with these upper left corners."""
    masks = np.zeros((len(corners), HEIGHT, WIDTH), bool)
    for mask, (y, x) in zip(masks, corners, strict=True):
        mask[y : y + 20, x : x + 20] = True
    return masks


def sa1b_file(number, masks):
    """What SA-1B says about one image."""
    annotations = [
        {
            'id': 544_000_000 + index,
            'segmentation': rle_to_json(rle),
            'bbox': [float(np.flatnonzero(mask.any(0))[0]), float(np.flatnonzero(mask.any(1))[0]), 20.0, 20.0],
            'area': int(mask.sum()),
            'predicted_iou': 0.91,
            'stability_score': 0.97,
            'crop_box': [0.0, 0.0, float(WIDTH), float(HEIGHT)],
            'point_coords': [[15.5, 12.25]],
        }
        for index, (mask, rle) in enumerate(zip(masks, encode_bitmaps(masks), strict=True))
    ]
    image = {'image_id': number, 'width': WIDTH, 'height': HEIGHT, 'file_name': f'sa_{number}.jpg'}
    return {'image': image, 'annotations': annotations}


def backdate(root):
    """Nothing has happened here for long."""
    long_ago = 1.6e9
    for folder, _, _ in os.walk(root):
        os.utime(folder, (long_ago, long_ago))


@pytest.fixture
def sa1b(tmp_path):
    """Two shards of photographs; the numbers are not those of the order."""
    root = tmp_path / 'sa1b'
    photos = {223_750: data.astronaut(), 1_001: data.coffee(), 500_000: data.rocket()}
    for shard, numbers in {'sa_000020': (223_750, 500_000), 'sa_000000': (1_001,)}.items():
        (root / shard).mkdir(parents=True)
        for number in numbers:
            Image.fromarray(photos[number][:HEIGHT, :WIDTH]).save(root / shard / f'sa_{number}.jpg')
            content = sa1b_file(number, squares((10, 30), (50, 60)))
            (root / shard / f'sa_{number}.json').write_text(json.dumps(content))
    backdate(root)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where indexes are kept."""
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def pseudo_masks(tmp_path):
    """What `generate` writes, for two of the three images."""
    store = PseudoMaskStore(tmp_path / 'pseudo')
    for name in ('sa_000000/sa_1001.jpg', 'sa_000020/sa_223750.jpg'):
        store.write(name, MaskSet.from_bitmaps(squares((12, 30), (50, 5), (60, 90)), np.array([0.9, 0.5, 0.1])))
    store.describe({'preset': 'default'})
    return store.root


def names(dataset):
    return [dataset.get_data_info(i)['img_name'] for i in range(len(dataset))]


def test_sa1b_is_read_as_it_comes(sa1b):
    dataset = UnSAMSA1B(data_root=str(sa1b), pipeline=LOAD)
    assert names(dataset) == ['sa_000000/sa_1001.jpg', 'sa_000020/sa_223750.jpg', 'sa_000020/sa_500000.jpg']
    sample = dataset[1]
    assert sample['img_id'] == 223_750
    np.testing.assert_array_equal(sample['gt_masks'].masks, squares((10, 30), (50, 60)))
    np.testing.assert_array_equal(sample['gt_bboxes'].tensor, [[30, 10, 50, 30], [60, 50, 80, 70]])
    assert sample['img'].shape == (HEIGHT, WIDTH, 3)


def test_the_stock_loader_reads_it_too(sa1b):
    load = [{'type': 'UnSAMLoadImage'}, {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True}]
    sample = UnSAMSA1B(data_root=str(sa1b), pipeline=load)[0]
    np.testing.assert_array_equal(sample['gt_masks'].masks, squares((10, 30), (50, 60)))


def test_images_and_labels_may_lie_apart(sa1b, tmp_path):
    for path in sorted(sa1b.rglob('*.json')):
        target = tmp_path / 'labels' / path.relative_to(sa1b)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    dataset = UnSAMSA1B(data_root=str(tmp_path), data_prefix={'img': 'sa1b', 'ann': 'labels'}, pipeline=LOAD)
    assert dataset[0]['img_name'] == 'sa_000000/sa_1001.jpg'


def test_pseudo_masks_label_the_images_that_have_them(sa1b, pseudo_masks):
    dataset = UnSAMSA1B(data_root=str(sa1b), labels='pseudo', pseudo_masks_root=str(pseudo_masks), pipeline=LOAD)
    assert names(dataset) == ['sa_000000/sa_1001.jpg', 'sa_000020/sa_223750.jpg']
    np.testing.assert_array_equal(dataset[1]['gt_masks'].masks, squares((12, 30), (50, 5), (60, 90)))


@pytest.mark.parametrize(
    ('sampling', 'drawn'), [('score', [(10, 30), (0, 0)]), ('uniform', [(50, 5), (60, 90)])], ids=['score', 'uniform']
)
def test_the_cap_draws_masks_by_their_scores_or_all_alike(sa1b, tmp_path, monkeypatch, sampling, drawn):
    """The bad masks wait for a shorter time than the good ones, but not by as much as their scores are lower."""
    corners, scores = [(10, 30), (50, 5), (60, 90), (0, 0)], np.array([0.9, 0.1, 0.2, 0.8])
    store = PseudoMaskStore(tmp_path / 'scored')
    store.write('sa_000000/sa_1001.jpg', MaskSet.from_bitmaps(squares(*corners), scores))
    waits = np.where(scores < 0.5, 0.5, 1.0)
    monkeypatch.setattr(np.random, 'standard_exponential', lambda n: waits[:n])
    steps = [*LOAD, {'type': 'UnSAMCapMasks', 'max_masks': 2, 'sampling': sampling}]
    dataset = UnSAMSA1B(data_root=str(sa1b), labels='pseudo', pseudo_masks_root=str(store.root), pipeline=steps)
    np.testing.assert_array_equal(dataset[0]['gt_masks'].masks, squares(*drawn))


def test_masks_bring_the_scores_of_their_files(sa1b, pseudo_masks):
    steps = [*LOAD, {'type': 'UnSAMPlusMasks'}]
    dataset = UnSAMSA1B(data_root=str(sa1b), labels='both', pseudo_masks_root=str(pseudo_masks), pipeline=steps)
    np.testing.assert_allclose(dataset[0]['gt_masks'].scores, [0.91, 0.91, 0.5, 0.1], rtol=1e-6)


def test_unsam_plus_adds_the_pseudo_masks_that_overlap_no_human_one(sa1b, pseudo_masks):
    steps = [*LOAD, {'type': 'UnSAMPlusMasks'}]
    dataset = UnSAMSA1B(data_root=str(sa1b), labels='both', pseudo_masks_root=str(pseudo_masks), pipeline=steps)
    both, only_human = dataset[0], dataset[2]
    np.testing.assert_array_equal(both['gt_masks'].masks, squares((10, 30), (50, 60), (50, 5), (60, 90)))
    assert len(both['gt_bboxes']) == len(both['gt_bboxes_labels']) == len(both['gt_ignore_flags']) == 4
    np.testing.assert_array_equal(only_human['gt_masks'].masks, squares((10, 30), (50, 60)))


def test_unsam_plus_on_the_fly_is_the_merged_file(sa1b, pseudo_masks, tmp_path):
    from unsam_mm.datasets import UnSAMCocoDataset
    from unsam_mm.folders.merge import merge_ground_truth

    merge_ground_truth(pseudo_masks, tmp_path / 'plus.json', sa1b)
    merged = UnSAMCocoDataset(ann_file=str(tmp_path / 'plus.json'), data_prefix={'img': str(sa1b)}, pipeline=LOAD)
    steps = [*LOAD, {'type': 'UnSAMPlusMasks'}]
    on_the_fly = UnSAMSA1B(data_root=str(sa1b), labels='both', pseudo_masks_root=str(pseudo_masks), pipeline=steps)
    at = {name: number for number, name in enumerate(names(merged))}
    for number, name in enumerate(names(on_the_fly)):
        np.testing.assert_array_equal(on_the_fly[number]['gt_masks'].masks, merged[at[name]]['gt_masks'].masks)


def test_pseudo_masks_of_another_size_are_refused(sa1b, tmp_path):
    PseudoMaskStore(tmp_path / 'pseudo').write('sa_000000/sa_1001.jpg', MaskSet.from_bitmaps(np.ones((1, 8, 9), bool)))
    steps = [*LOAD, {'type': 'UnSAMPlusMasks', 'pseudo_masks_root': str(tmp_path / 'pseudo')}]
    with pytest.raises(StoreError, match='are 8 x 9 px, the image is 90 x 120; generate them again'):
        UnSAMSA1B(data_root=str(sa1b), pipeline=steps, test_mode=True)[0]


def test_nothing_is_read_before_it_is_wanted(sa1b, monkeypatch):
    opened = []
    monkeypatch.setattr('unsam_mm.datasets.sa1b.read_json', lambda path: opened.append(path) or {})
    dataset = UnSAMSA1B(data_root=str(sa1b))
    assert (len(dataset), opened) == (3, [])


def test_a_second_start_lists_no_folder(sa1b, monkeypatch):
    first = names(UnSAMSA1B(data_root=str(sa1b)))
    monkeypatch.setattr('unsam_mm.datasets.sa1b._walk', None)
    assert names(UnSAMSA1B(data_root=str(sa1b))) == first


@pytest.mark.parametrize('change', ['added', 'removed', 'new folder'])
def test_a_changed_folder_is_noticed(sa1b, change):
    UnSAMSA1B(data_root=str(sa1b))
    shard = sa1b / 'sa_000020'
    if change == 'removed':
        (shard / 'sa_500000.json').unlink()
    else:
        target = shard if change == 'added' else sa1b / 'sa_000900'
        target.mkdir(exist_ok=True)
        (target / 'sa_7.json').write_text(json.dumps(sa1b_file(7, squares((0, 0)))))
    assert len(UnSAMSA1B(data_root=str(sa1b))) == (2 if change == 'removed' else 4)


def test_a_folder_that_was_being_written_is_listed_again(sa1b):
    now = time.time()
    os.utime(sa1b, (now, now))
    UnSAMSA1B(data_root=str(sa1b))
    (sa1b / 'sa_1.json').write_text(json.dumps(sa1b_file(1, squares((0, 0)))))
    os.utime(sa1b, (now, now))  # within the same tick of the clock
    assert len(UnSAMSA1B(data_root=str(sa1b))) == 4


def test_a_folder_is_listed_again_on_demand(sa1b, tmp_path):
    index = tmp_path / 'kept.index'
    UnSAMSA1B(data_root=str(sa1b), index_file=str(index))
    (sa1b / 'sa_1.json').write_text(json.dumps(sa1b_file(1, squares((0, 0)))))
    backdate(sa1b)  # a file system that keeps no times
    assert len(UnSAMSA1B(data_root=str(sa1b), index_file=str(index))) == 3
    assert len(UnSAMSA1B(data_root=str(sa1b), index_file=str(index), reindex=True)) == 4


@pytest.mark.parametrize('damage', [lambda content: content[:-5], lambda content: b'{}\n', lambda content: b''])
def test_a_broken_index_is_made_again(sa1b, cache, damage):
    UnSAMSA1B(data_root=str(sa1b))
    (index,) = (cache / 'indexes').iterdir()
    index.write_bytes(damage(index.read_bytes()))
    assert len(UnSAMSA1B(data_root=str(sa1b))) == 3


def test_an_interrupted_index_leaves_the_old_one(sa1b, cache, monkeypatch):
    UnSAMSA1B(data_root=str(sa1b))
    (index,) = (cache / 'indexes').iterdir()
    before = index.read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr('unsam_mm.datasets.sa1b.json.dumps', interrupted)
    with pytest.raises(KeyboardInterrupt):
        UnSAMSA1B(data_root=str(sa1b), reindex=True)
    assert index.read_bytes() == before
    assert list(index.parent.iterdir()) == [index]


def test_without_a_place_for_the_index_the_names_are_held_in_memory(sa1b, tmp_path):
    (tmp_path / 'file').touch()
    dataset = UnSAMSA1B(data_root=str(sa1b), index_file=str(tmp_path / 'file' / 'index'))
    assert len(dataset) == 3
    assert names(pickle.loads(pickle.dumps(dataset))) == names(dataset)


def test_names_are_mapped_from_the_file_and_processes_map_it_again(sa1b):
    dataset = UnSAMSA1B(data_root=str(sa1b))
    assert isinstance(dataset._index.names, np.memmap)
    copy = pickle.loads(pickle.dumps(dataset))
    assert isinstance(copy._index.names, np.memmap)
    assert names(copy) == names(dataset)


def test_names_of_any_bytes_are_found_again(tmp_path):
    root = tmp_path / 'odd'
    root.mkdir()
    for name in ('ä b.json', os.fsdecode(b'\xff.json'), '.hidden.json', 'note.txt'):
        (root / name).touch()
    index = open_index(root)
    assert [index[i] for i in range(len(index))] == ['ä b', os.fsdecode(b'\xff')]


def test_links_to_folders_are_followed_once(sa1b):
    (sa1b / 'again').symlink_to(sa1b, target_is_directory=True)
    (sa1b / 'loop').symlink_to('loop')
    assert len(UnSAMSA1B(data_root=str(sa1b))) == 3


@pytest.mark.parametrize(('indices', 'expected'), [(2, [1_001, 223_750]), ([2, 0], [500_000, 1_001])])
def test_a_part_of_the_images_is_taken_by_number(sa1b, indices, expected):
    dataset = UnSAMSA1B(data_root=str(sa1b), indices=indices)
    assert [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))] == expected
    subset = dataset.get_subset(1)
    assert (len(subset), subset.get_data_info(-1)['img_id']) == (1, expected[0])


def test_a_broken_label_file_costs_training_one_image(sa1b):
    (sa1b / 'sa_000020' / 'sa_223750.json').write_text('{"image": {')
    dataset = UnSAMSA1B(data_root=str(sa1b), pipeline=LOAD)
    assert dataset[0]['img_id'] == 1_001
    assert dataset[1]['img_id'] in (1_001, 500_000)


def test_a_broken_label_file_stops_testing(sa1b):
    (sa1b / 'sa_000020' / 'sa_223750.json').write_text('{"image": {"file_name": "sa_223750.jpg"}}')
    dataset = UnSAMSA1B(data_root=str(sa1b), pipeline=LOAD, test_mode=True)
    with pytest.raises(StoreError, match=r"sa_223750.json: not a label file \(KeyError: 'annotations'\)"):
        dataset[1]


def test_if_no_label_can_be_read_training_stops_with_the_reason(sa1b):
    for path in sa1b.rglob('*.json'):
        path.write_text('{}')
    with pytest.raises(StoreError, match='not a label file'):
        UnSAMSA1B(data_root=str(sa1b), pipeline=LOAD)[0]


def test_labels_that_do_not_fit_the_image_are_named(sa1b):
    Image.fromarray(data.coffee()[:50, :60]).save(sa1b / 'sa_000000' / 'sa_1001.jpg')
    dataset = UnSAMSA1B(data_root=str(sa1b), pipeline=LOAD, test_mode=True)
    with pytest.raises(StoreError, match=r'image sa_000000/sa_1001.jpg.*90 x 120 px, the image 50 x 60'):
        dataset[0]


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ({}, UnSAMError, 'data_root is empty'),
        (
            {'data_root': 'absent'},
            StoreError,
            'absent: no such folder; expected one JSON file for each image; get it from X',
        ),
        ({'data_root': 'empty'}, StoreError, 'empty: no label files'),
        ({'data_root': '.', 'labels': 'all'}, UnSAMError, 'labels must be one of'),
        ({'data_root': '.', 'labels': 'both'}, UnSAMError, "needs pseudo_masks_root, a folder written by 'python -m"),
    ],
)
def test_bad_arguments_give_one_clear_line(tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(error, match=message):
        UnSAMSA1B(**{'homepage': 'X', **arguments})


def test_the_training_pipeline_of_the_paper_crops_flips_and_caps(sa1b, pseudo_masks):
    steps = [
        *LOAD,
        {'type': 'RandomCrop', 'crop_size': (64, 64), 'recompute_bbox': True, 'allow_negative_crop': True},
        {'type': 'RandomFlip', 'prob': 1.0},
        {'type': 'FilterAnnotations', 'by_box': False, 'by_mask': True, 'min_gt_mask_area': 1, 'keep_empty': False},
        {'type': 'UnSAMCapMasks', 'max_masks': 2},
        {'type': 'PackDetInputs'},
    ]
    dataset = UnSAMSA1B(data_root=str(sa1b), labels='pseudo', pseudo_masks_root=str(pseudo_masks), pipeline=steps)
    for _ in range(10):
        instances = dataset[0]['data_samples'].gt_instances
        assert isinstance(instances.masks, RleMasks)
        assert instances.masks.size_hw == (64, 64)
        assert len(instances) <= 2
        assert (instances.masks.areas > 0).all()
