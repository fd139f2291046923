"""The metric inside MMEngine: any form of masks, any source of truth, the same figures."""

import json
import pickle

import numpy as np
import pytest
import torch
from skimage import data, segmentation

from tests.test_evaluation.two_processes import metrics_of_one_and_of_two
from unsam_mm.__main__ import main
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.evaluation import evaluate_masks
from unsam_mm.masks.rle import encode_bitmaps, rle_to_json

pytest.importorskip('mmdet')

from unsam_mm.evaluation.coco_metric import UnSAMCocoMetric  # isort: skip  (it prepares the import of mmdet)

from mmdet.registry import METRICS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData


def regions(labels):
    return np.stack([labels == value for value in np.unique(labels)])


@pytest.fixture(scope='module')
def photographs():
    """Image id to (truths, predictions, scores): regions of two real images, not square, at two scales."""
    scenes = {}
    for image_id, image in {3: data.coffee()[::4, ::4], 8: data.chelsea()[::3, ::3]}.items():
        truths = regions(segmentation.felzenszwalb(image, scale=200, min_size=30))
        predictions = regions(segmentation.felzenszwalb(image, scale=150, min_size=20))
        scores = predictions.mean(axis=(1, 2))
        scenes[image_id] = truths, predictions, scores.astype(np.float32)
    return scenes


AS_PREDICTIONS = {
    'rle': encode_bitmaps,
    'rle_text': lambda masks: [rle_to_json(rle) for rle in encode_bitmaps(masks)],
    'tensor': torch.from_numpy,
    'bitmaps': lambda masks: BitmapMasks(masks.astype(np.uint8), *masks.shape[1:]),
}


def sample(image_id, scene, form='rle', with_truth=True):
    truths, predictions, scores = scene
    height, width = truths.shape[1:]
    result = DetDataSample(metainfo={'img_id': image_id, 'ori_shape': (height, width)})
    result.pred_instances = InstanceData(masks=AS_PREDICTIONS[form](predictions), scores=torch.from_numpy(scores))
    if with_truth:
        result.gt_instances = InstanceData(masks=BitmapMasks(truths.astype(np.uint8), height, width))
    return result


def coco_of(photographs):
    images, annotations = [], []
    for image_id, (truths, _, _) in photographs.items():
        images.append(
            {'id': image_id, 'height': truths.shape[1], 'width': truths.shape[2], 'file_name': f'{image_id}.png'}
        )
        for rle in encode_bitmaps(truths):
            annotations.append({'id': len(annotations) + 1, 'image_id': image_id, 'segmentation': rle_to_json(rle)})
    return {'images': images, 'annotations': annotations}


def run(metric, samples):
    evaluator = Evaluator(metric)
    for item in samples:  # batches of one
        evaluator.process([item])
    return evaluator.evaluate(len(samples))


@pytest.mark.parametrize('source', ['gt_instances', 'ann_file'])
@pytest.mark.parametrize('form', AS_PREDICTIONS)
def test_every_form_of_masks_and_truth_gives_the_figures_of_the_plain_function(photographs, tmp_path, form, source):
    truth = coco_of(photographs)
    (tmp_path / 'gt.json').write_text(json.dumps(truth))
    metric = UnSAMCocoMetric(ann_file=str(tmp_path / 'gt.json') if source == 'ann_file' else None)
    metrics = run(metric, [sample(i, scene, form, source == 'gt_instances') for i, scene in photographs.items()])

    records = [
        {'image_id': i, 'segmentation': rle, 'score': float(score)}
        for i, (_, predictions, scores) in photographs.items()
        for rle, score in zip(encode_bitmaps(predictions), scores, strict=True)
    ]
    expected = evaluate_masks(records, truth)
    assert metrics == pytest.approx({f'unsam/{name}': value for name, value in expected.items()}, abs=1e-12)
    assert 0.05 < metrics['unsam/AR@1000'] < 0.95


def test_the_registered_metric_builds_from_a_config_dictionary(photographs):
    metric = METRICS.build({'type': 'UnSAMCocoMetric', 'max_dets': (1, 5), 'prefix': 'val'})
    metrics = run(metric, [sample(i, scene) for i, scene in photographs.items()])
    assert {'val/AR@1', 'val/AR@5', 'val/AR_s@5', 'val/AP@5'} <= metrics.keys()


def test_ignored_instances_are_crowds(photographs):
    truths, _, _ = photographs[3]
    item = sample(3, (truths, truths[:1], np.ones(1, np.float32)))
    height, width = truths.shape[1:]
    item.gt_instances = InstanceData(masks=BitmapMasks(truths[:1].astype(np.uint8), height, width))
    item.ignored_instances = InstanceData(masks=BitmapMasks(truths[1:].astype(np.uint8), height, width))
    assert run(UnSAMCocoMetric(), [item])['unsam/AR@1'] == 1.0


@pytest.mark.filterwarnings('ignore:.*have no prediction')
def test_an_image_without_predictions_is_counted_and_one_that_was_not_run_is_not(photographs, tmp_path):
    truths, _, _ = photographs[3]
    (tmp_path / 'gt.json').write_text(json.dumps(coco_of(photographs)))
    perfect = sample(3, (truths, truths, np.ones(len(truths), np.float32)), with_truth=False)
    empty = sample(8, (photographs[8][0], np.zeros((0, *photographs[8][0].shape[1:]), bool), np.zeros(0, np.float32)))
    assert run(UnSAMCocoMetric(ann_file=str(tmp_path / 'gt.json')), [perfect])['unsam/AR@1000'] == 1.0
    expected = len(truths) / (len(truths) + len(photographs[8][0]))
    assert run(UnSAMCocoMetric(ann_file=str(tmp_path / 'gt.json')), [perfect, empty])['unsam/AR@1000'] == pytest.approx(
        expected
    )


def test_predictions_are_written_as_coco_results(photographs, tmp_path):
    run(UnSAMCocoMetric(outfile_prefix=str(tmp_path / 'out' / 'val')), [sample(3, photographs[3])])
    records = json.loads((tmp_path / 'out' / 'val.segm.json').read_text())
    assert len(records) == len(photographs[3][1])
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['val.segm.json']


def test_truth_at_another_size_than_the_original_image_is_refused(photographs):
    item = sample(3, photographs[3])
    item.set_metainfo({'ori_shape': (500, 700)})
    with pytest.raises(UnSAMError, match='masks must be given at the size of the original image'):
        run(UnSAMCocoMetric(), [item])


def test_stated_areas_sort_objects_into_sizes(photographs):
    truths = photographs[3][0][:1]
    item = sample(3, (truths, truths, np.ones(1, np.float32)))
    by_pixels = run(UnSAMCocoMetric(), [item])
    item.set_metainfo({'gt_areas': [10_000.0]})
    as_stated = run(UnSAMCocoMetric(), [item])
    assert (by_pixels['unsam/AR_l@1000'], as_stated['unsam/AR_l@1000']) == (-1.0, 1.0)


def test_stated_areas_of_other_masks_are_refused(photographs):
    item = sample(3, photographs[3])
    item.set_metainfo({'gt_areas': [10_000.0]})
    with pytest.raises(UnSAMError, match='1 gt_areas but .* ground-truth masks'):
        run(UnSAMCocoMetric(), [item])


def test_image_that_ann_file_lacks_is_named(photographs, tmp_path):
    (tmp_path / 'gt.json').write_text(json.dumps(coco_of({3: photographs[3]})))
    with pytest.raises(UnSAMError, match='image 8 is not among the 1 of ann_file'):
        run(UnSAMCocoMetric(ann_file=str(tmp_path / 'gt.json')), [sample(8, photographs[8])])


@pytest.mark.parametrize('engine', ['pycocotools', 'faster_coco_eval'])
@pytest.mark.parametrize('source', ['gt_instances', 'ann_file'])
def test_toolboxes_give_the_same_figures(photographs, tmp_path, engine, source):
    pytest.importorskip(engine)
    (tmp_path / 'gt.json').write_text(json.dumps(coco_of(photographs)))
    ann_file = str(tmp_path / 'gt.json') if source == 'ann_file' else None
    samples = [sample(i, scene) for i, scene in photographs.items()]
    ours, theirs = (run(UnSAMCocoMetric(ann_file=ann_file, engine=name), samples) for name in ('unsam', engine))
    assert ours == pytest.approx(theirs, abs=1e-9)


def test_between_batches_an_image_takes_ten_kilobytes_whatever_its_masks_take(photographs):
    metric = UnSAMCocoMetric()
    truths, predictions, _ = photographs[8]
    many = np.resize(predictions, (1000, *predictions.shape[1:]))
    Evaluator(metric).process([sample(8, (truths, many, np.linspace(0, 1, 1000, dtype=np.float32)))])
    assert len(pickle.dumps(metric.results)) < 13_000


def test_image_that_was_run_twice_counts_once(photographs, tmp_path):
    samples = [sample(i, scene) for i, scene in photographs.items()]
    once = run(UnSAMCocoMetric(), samples)
    twice = run(UnSAMCocoMetric(outfile_prefix=str(tmp_path / 'out')), [samples[0], *samples])
    assert twice == once
    assert len(json.loads((tmp_path / 'out.segm.json').read_text())) == sum(len(s[1]) for s in photographs.values())


def test_written_predictions_have_the_same_figures_on_the_command_line(photographs, tmp_path, capsys):
    samples = [sample(i, scene) for i, scene in photographs.items()]
    metrics = run(UnSAMCocoMetric(outfile_prefix=str(tmp_path / 'out')), samples)
    (tmp_path / 'gt.json').write_text(json.dumps(coco_of(photographs)))
    files = [str(tmp_path / name) for name in ('out.segm.json', 'gt.json', 'figures.json')]
    assert main(['evaluate', *files[:2], '--json', files[2]]) == 0
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert {f'unsam/{name}': value for name, value in figures.items()} == metrics
    assert f'{100 * metrics["unsam/AR@1000"]:.1f}' in capsys.readouterr().out


METRIC_AND_SCENES = """
from unsam_mm.evaluation.coco_metric import UnSAMCocoMetric

metric = UnSAMCocoMetric(outfile_prefix=sys.argv[1], collect_dir=sys.argv[1] + '_parts')

def scene(number):
    image = data.coffee()[number * 20 :: 4, ::4]
    truths, predictions = (
        np.stack([labels == value for value in np.unique(labels)])
        for labels in (segmentation.felzenszwalb(image, scale=scale, min_size=30) for scale in (200, 150))
    )
    return dict(
        img_id=number,
        ori_shape=image.shape,
        pred_instances=dict(masks=predictions, scores=predictions.mean(axis=(1, 2))),
        gt_instances=dict(masks=truths),
    )
"""


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one_although_one_image_is_padding(tmp_path):
    one, two = metrics_of_one_and_of_two(METRIC_AND_SCENES, tmp_path)
    assert one == two
    assert 0.05 < one['unsam/AR@1000'] < 0.95
    written = [(tmp_path / f'{name}.segm.json').read_text() for name in ('one', 'two')]
    assert written[0] == written[1]


def test_missing_truth_is_explained(photographs):
    with pytest.raises(UnSAMError, match='no ground-truth masks; set ann_file'):
        run(UnSAMCocoMetric(), [sample(3, photographs[3], with_truth=False)])


def test_a_wrong_ann_file_fails_before_any_work(tmp_path):
    with pytest.raises(StoreError, match='no such file'):
        UnSAMCocoMetric(ann_file=str(tmp_path / 'absent.json'))
