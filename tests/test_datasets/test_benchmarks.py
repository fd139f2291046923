"""The seven benchmarks in their files' own forms: from the config to the metric, where the truth itself scores one.

The files are written here as the real ones are: their keys, the forms of their masks, how they name images.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config
from mmengine.structures import InstanceData
from PIL import Image
from skimage import data, draw

import unsam_mm.datasets  # (these two register what the configs name)
import unsam_mm.evaluation.coco_metric  # noqa: F401
from unsam_mm.masks.rle import encode_bitmaps, rle_to_json

BASES = Path(__file__).parents[2] / 'configs' / '_base_' / 'datasets'
HEIGHT, WIDTH = 120, 160
PHOTOS = (data.astronaut, data.coffee, data.rocket)


def photo(path, number, size_hw=(HEIGHT, WIDTH)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(PHOTOS[number]()[: size_hw[0], : size_hw[1]]).save(path)


def disc(y, x, radius):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[draw.disk((y, x), radius, shape=mask.shape)] = True
    return mask


def compressed(mask):
    return rle_to_json(encode_bitmaps(mask[None])[0])


def plain(mask):
    """As COCO writes its crowds: a list of counts."""
    runs = np.flatnonzero(np.diff(mask.T.ravel().astype(np.int8))) + 1
    return {'counts': np.diff([0, *runs, mask.size]).tolist(), 'size': list(mask.shape)}


def box_of(mask):
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(value) for value in (xs[0], ys[0], xs[-1] - xs[0] + 1, ys[-1] - ys[0] + 1)]


def rectangle(x, y, width, height):
    """A polygon as COCO and LVIS have them, and its box."""
    return {
        'segmentation': [[x, y, x + width, y, x + width, y + height, x, y + height]],
        'bbox': [x, y, width, height],
        'area': float(width * height),
    }


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_coco(root):
    """Numbers as ids, polygons, objects in two pieces, crowds as plain counts."""
    for number, image_id in enumerate((397133, 37777)):
        photo(root / 'val2017' / f'{image_id:012}.jpg', number)
    crowd = disc(60, 110, 30)
    two = rectangle(10.5, 20.0, 30.0, 25.5)
    two['segmentation'] += [[60.0, 70.0, 80.0, 70.0, 70.0, 95.0]]
    content = {
        'info': {'description': 'COCO 2017 Dataset', 'year': 2017},
        'licenses': [{'url': '', 'id': 1, 'name': ''}],
        'images': [
            {
                'license': 1,
                'file_name': f'{image_id:012}.jpg',
                'coco_url': f'http://images.cocodataset.org/val2017/{image_id:012}.jpg',
                'height': HEIGHT,
                'width': WIDTH,
                'date_captured': '2013-11-14 17:02:52',
                'flickr_url': '',
                'id': image_id,
            }
            for image_id in (397133, 37777)
        ],
        'annotations': [
            {**two, 'iscrowd': 0, 'image_id': 397133, 'category_id': 44, 'id': 82445},
            {**rectangle(90, 10, 40, 50), 'iscrowd': 0, 'image_id': 37777, 'category_id': 1, 'id': 119568},
            {
                'segmentation': plain(crowd),
                'bbox': box_of(crowd),
                'area': int(crowd.sum()),
                'iscrowd': 1,
                'image_id': 37777,
                'category_id': 1,
                'id': 900100037777,
            },
        ],
        'categories': [{'supercategory': 'person', 'id': 1, 'name': 'person'}, {'id': 44, 'name': 'bottle'}],
    }
    write(root / 'annotations' / 'instances_val2017.json', content)
    return {397133: 1, 37777: 1}


def write_lvis(root):
    """No file_name: the folder and the name are the end of coco_url. No iscrowd."""
    folders = {397133: 'val2017', 25274: 'train2017'}
    for number, (image_id, folder) in enumerate(folders.items()):
        photo(root / folder / f'{image_id:012}.jpg', number)
    content = {
        'info': {'description': 'LVIS v1'},
        'licenses': [],
        'images': [
            {
                'date_captured': '2013-11-14 17:02:52',
                'neg_category_ids': [279, 899],
                'license': 1,
                'height': HEIGHT,
                'width': WIDTH,
                'flickr_url': '',
                'coco_url': f'http://images.cocodataset.org/{folder}/{image_id:012}.jpg',
                'not_exhaustive_category_ids': [914],
                'id': image_id,
            }
            for image_id, folder in folders.items()
        ],
        'annotations': [
            {**rectangle(10, 10, 30, 20), 'id': 1, 'image_id': 25274, 'category_id': 914},
            {**rectangle(60, 40, 80, 60), 'id': 2, 'image_id': 25274, 'category_id': 3},
            {**rectangle(5.25, 7.5, 40, 90), 'id': 3, 'image_id': 397133, 'category_id': 1203},
        ],
        'categories': [{'id': 3, 'name': 'air_conditioner', 'synset': 'air_conditioner.n.01', 'frequency': 'f'}],
    }
    write(root / 'annotations' / 'lvis_v1_val.json', content)
    return {397133: 1, 25274: 2}


def write_ade20k(root):
    """Text as ids, categories from 0, run lengths."""
    annotations, images = [], []
    for number, name in enumerate(('ADE_val_00000001', 'ADE_val_00000002')):
        photo(root / 'images' / 'validation' / f'{name}.jpg', number)
        images.append({'id': name, 'file_name': f'{name}.jpg', 'width': WIDTH, 'height': HEIGHT})
        for mask in (disc(40, 50, 30), disc(90, 120, 8)):
            annotations.append(
                {
                    'id': len(annotations) + 1,
                    'image_id': name,
                    'iscrowd': 0,
                    'category_id': 0,
                    'bbox': [int(value) for value in box_of(mask)],
                    'segmentation': compressed(mask),
                    'area': int(mask.sum()),
                }
            )
    content = {'images': images, 'categories': [{'id': 0, 'name': 'bed'}], 'annotations': annotations}
    write(root / 'ade20k_instance_val.json', content)
    return dict.fromkeys(('ADE_val_00000001', 'ADE_val_00000002'), 2)


def write_entityseg(root):
    """Three subfolders, run lengths, categories as text beside a number; no iscrowd."""
    images, annotations = [], []
    for number, name in enumerate(('entity_01_11580/photo 1.jpg', 'entity_03_10049/b.png')):
        photo(root / 'images_lr' / name, number)
        images.append(
            {
                'file_name': name,
                'height': HEIGHT,
                'width': WIDTH,
                'id': 30000 + number,
                'img_source': 'coco',
                'url_flag': 'yes',
                'url_dataset': '',
                'url_image': '',
            }
        )
        for mask in (disc(30, 30, 25), disc(80, 100, 35)):
            annotations.append(
                {
                    'area': int(mask.sum()),
                    'image_id': 30000 + number,
                    'bbox': box_of(mask),
                    'category_id': 1,
                    'segmentation': compressed(mask),
                    'id': len(annotations),
                    'category_id_ori': 'tree',
                }
            )
    content = {'images': images, 'annotations': annotations, 'categories': [{'id': 1, 'name': 'entity'}]}
    write(root / 'annotations' / 'entity_segmentation' / 'entityv2_010203_entity_val_lr.json', content)
    return {30000: 2, 30001: 2}


def write_partimagenet(root):
    """ImageNet's names in capitals, one folder a class, ids from 0, parts as polygons in pieces; some are mere lines."""
    names = ('n02487347/n02487347_9450.JPEG', 'n01443537/n01443537_1029.JPEG')
    for number, name in enumerate(names):
        photo(root / 'val' / name, number)
    foot = rectangle(100, 80, 20, 30)
    foot['segmentation'] += [[130, 80, 150, 80, 150, 110, 130, 110], [1.0, 1.0, 2.0, 2.0]]
    content = {
        'images': [
            {'id': number, 'file_name': name, 'width': WIDTH, 'height': HEIGHT} for number, name in enumerate(names)
        ],
        'annotations': [
            {**rectangle(40, 30, 70, 60), 'iscrowd': 0, 'image_id': 0, 'category_id': 5, 'id': 0},
            {**foot, 'iscrowd': 0, 'image_id': 0, 'category_id': 6, 'id': 1},
            {**rectangle(20, 50, 100, 30), 'iscrowd': 0, 'image_id': 1, 'category_id': 9, 'id': 2},
        ],
        'categories': [{'id': 5, 'name': 'Biped Body', 'supercategory': 'Biped'}],
    }
    write(root / 'val.json', content)
    return {0: 2, 1: 1}


def write_paco(root):
    """LVIS's images with file_name; objects as polygons, parts as run lengths, one part without any mask."""
    for number, image_id in enumerate((25274, 8)):
        photo(root / 'train2017' / f'{image_id:012}.jpg', number)
    part = disc(45, 60, 10)
    shared = {
        'attribute_ids': [3],
        'dom_color_ids': [],
        'unknown_color': 0,
        'unknown_pattern_marking': 0,
        'unknown_material': 1,
        'unknown_transparency': 0,
    }
    whole = {**rectangle(30, 20, 70, 60), 'id': 5, 'image_id': 25274, 'category_id': 2, 'obj_ann_id': 5, **shared}
    parts = [
        {
            'id': 6 + number,
            'image_id': 25274,
            'category_id': 300,
            'bbox': box_of(part),
            'area': float(part.sum()),
            'segmentation': mask,
            'obj_ann_id': 5,
            **shared,
        }
        for number, mask in enumerate((compressed(part), []))
    ]
    # Its ids are not the numbers in its file names: reading ids off the names would score zero.
    other = {**rectangle(10, 60, 90, 40), 'id': 9, 'image_id': 77, 'category_id': 9, 'obj_ann_id': 9, **shared}
    content = {
        'info': {},
        'images': [
            {
                'id': image_id,
                'file_name': f'train2017/{number:012}.jpg',
                'width': WIDTH,
                'height': HEIGHT,
                'neg_category_ids': [9],
                'not_exhaustive_category_ids': [],
                'neg_category_ids_attrs': [],
                'not_exhaustive_category_ids_attrs': [],
                'license': 1,
            }
            for image_id, number in ((25274, 25274), (77, 8))
        ],
        'annotations': [whole, *parts, other],
        'categories': [{'supercategory': 'OBJECT', 'id': 2, 'name': 'handbag', 'frequency': 'f'}],
        'part_categories': [{'supercategory': 'PART', 'id': 1, 'name': 'handle'}],
        'attributes': [{'supercategory': 'ATTR', 'id': 3, 'name': 'blue'}],
        'attr_type_to_attr_idxs': {'color': [3]},
    }
    write(root / 'annotations' / 'paco_lvis_v1_val.json', content)
    return {25274: 2, 77: 1}


def write_sa1b(root):
    """A JSON file an image, beside it."""
    for number, image_id in enumerate((223750, 1)):
        photo(root / f'sa_{image_id}.jpg', number)
        annotations = [
            {
                'segmentation': compressed(mask),
                'bbox': box_of(mask),
                'area': int(mask.sum()),
                'predicted_iou': 0.95,
                'stability_score': 0.96,
                'crop_box': [0.0, 0.0, float(WIDTH), float(HEIGHT)],
                'point_coords': [[40.0, 40.0]],
                'id': 5 * number + index,
            }
            for index, mask in enumerate((disc(40, 40, 30), disc(40, 40, 12), disc(90, 100, 20)))
        ]
        image = {'image_id': image_id, 'width': WIDTH, 'height': HEIGHT, 'file_name': f'sa_{image_id}.jpg'}
        write(root / f'sa_{image_id}.json', {'image': image, 'annotations': annotations})
    return {223750: 3, 1: 3}


WRITERS = {
    'coco': write_coco,
    'lvis': write_lvis,
    'ade20k': write_ade20k,
    'entityseg': write_entityseg,
    'partimagenet': write_partimagenet,
    'paco': write_paco,
    'sa1b': write_sa1b,
}


@pytest.fixture
def base(request, tmp_path, monkeypatch):
    """The benchmark's config, its data in their usual places below another root, and objects by image id."""
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path / 'cache'))
    config = Config.fromfile(BASES / f'benchmark_{request.param}.py')
    config.merge_from_dict({'test_dataloader.dataset.data_root': str(tmp_path / 'data')})
    return config, WRITERS[request.param](tmp_path / 'data')


def test_every_benchmark_has_a_config():
    assert {path.stem for path in BASES.glob('benchmark_*.py')} == {f'benchmark_{name}' for name in WRITERS}


@pytest.mark.parametrize('base', WRITERS, indirect=True)
def test_the_truth_itself_scores_one(base):
    config, n_objects = base
    dataset = DATASETS.build(config.test_dataloader.dataset)
    metric = METRICS.build(config.test_evaluator)
    found = {}
    for item in dataset:
        sample = item['data_samples']
        assert max(item['inputs'].shape) == 1365  # 120 x 160 px, enlarged to a shortest edge of 1024
        assert sample.ori_shape == (HEIGHT, WIDTH)
        truth = sample.gt_instances.masks
        found[sample.img_id] = len(truth)
        assert len(sample.gt_areas) == len(truth)
        sample.pred_instances = InstanceData(masks=truth.rles, scores=np.linspace(1, 0.5, len(truth)))
        metric.process({}, [sample.to_dict()])
    assert found == n_objects
    scores = metric.evaluate(len(dataset))
    assert scores['unsam/AR@1000'] == scores['unsam/AP@1000'] == 1


@pytest.mark.parametrize('base', ['coco', 'lvis', 'ade20k', 'entityseg'], indirect=True)
def test_the_figures_are_those_of_the_file_read_as_a_whole(base):
    """Truths that come with the images, one at a time, count as those that the metric reads from the file."""
    config, _ = base
    dataset = DATASETS.build(config.test_dataloader.dataset)
    metrics = [METRICS.build({**config.test_evaluator, **more}) for more in ({}, {'ann_file': dataset.ann_file})]
    for item in dataset:
        sample = item['data_samples']
        shifted = sample.gt_instances.masks.translate((HEIGHT, WIDTH), 3)  # good at low thresholds only
        sample.pred_instances = InstanceData(masks=shifted.rles, scores=np.linspace(1, 0.5, len(shifted)))
        for metric in metrics:
            metric.process({}, [sample.to_dict()])
    with_images, with_file = (metric.evaluate(len(dataset)) for metric in metrics)
    assert with_images == with_file
    assert 0 < with_images['unsam/AR@1000'] < 1


@pytest.mark.parametrize('base', WRITERS, indirect=True)
def test_nothing_found_scores_nothing(base):
    config, _ = base
    metric = METRICS.build(config.test_evaluator)
    for item in DATASETS.build(config.test_dataloader.dataset):
        item['data_samples'].pred_instances = InstanceData(masks=[], scores=np.zeros(0))
        metric.process({}, [item['data_samples'].to_dict()])
    assert metric.evaluate(2)['unsam/AR@1000'] == 0


@pytest.mark.parametrize('base', ['coco'], indirect=True)
def test_crowds_are_ignored_and_areas_are_the_files(base):
    config, _ = base
    dataset = DATASETS.build(config.test_dataloader.dataset)
    samples = {item['data_samples'].img_id: item['data_samples'] for item in dataset}
    assert len(samples[37777].ignored_instances.masks) == 1
    assert samples[397133].gt_areas == [765.0]  # though the object has a second piece


@pytest.mark.parametrize('base', WRITERS, indirect=True)
def test_missing_data_are_named_with_where_to_get_them(base, tmp_path):
    config, _ = base
    (tmp_path / 'data').rename(tmp_path / 'moved')
    with pytest.raises(ValueError, match=r'no such (file|folder); .*get it from http'):
        DATASETS.build(config.test_dataloader.dataset)


def test_validation_and_testing_are_the_same():
    for name in WRITERS:
        config = Config.fromfile(BASES / f'benchmark_{name}.py')
        assert config.val_dataloader == config.test_dataloader
        assert config.val_evaluator == config.test_evaluator


@pytest.mark.parametrize('name', ['sa1b', 'sa1b_plus'])
def test_a_training_base_and_a_benchmark_go_into_one_config(name, tmp_path):
    (tmp_path / 'leaf.py').write_text(f'_base_ = [{str(BASES / f"{name}.py")!r}, {str(BASES / "benchmark_coco.py")!r}]')
    config = Config.fromfile(tmp_path / 'leaf.py')
    assert config.train_dataloader.dataset.type == 'UnSAMSA1B'
    assert config.test_dataloader.dataset.type == 'UnSAMCocoDataset'
