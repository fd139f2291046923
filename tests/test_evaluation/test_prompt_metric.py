"""Prompted masks inside MMEngine: the figures of the plain functions, whoever runs the images."""

import pickle

import numpy as np
import pytest
import torch

from tests.test_evaluation.prompt_scenes import Answering, scenes, write_coco
from tests.test_evaluation.two_processes import metrics_of_one_and_of_two
from unsam_mm.errors import UnSAMError
from unsam_mm.evaluation.click_simulation import evaluate_prompts
from unsam_mm.evaluation.prompt_data import coco_prompts
from unsam_mm.evaluation.prompt_iou import summarize
from unsam_mm.masks.rle import encode_bitmaps, rle_to_json

pytest.importorskip('mmdet')

from unsam_mm.evaluation.prompt_metric import UnSAMPromptIoUMetric  # isort: skip  (it prepares the import of mmdet)

from mmdet.registry import METRICS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData

FORMS = {
    'rle': encode_bitmaps,
    'rle_text': lambda masks: [rle_to_json(rle) for rle in encode_bitmaps(masks)],
    'tensor': torch.from_numpy,
    'array': np.asarray,
}


@pytest.fixture(scope='module')
def photographs():
    return scenes()


def shifted(predictor, points, labels):
    """Discs around the first click whose size and rank depend on how many clicks there were."""
    height, width = predictor.images[-1].shape[:2]
    rows, columns = np.ogrid[:height, :width]
    x, y = points[0]
    distance = np.hypot(columns - x, rows - y)
    return np.stack([distance <= radius * len(points) for radius in (4, 8, 16)]), np.array([0.3, 0.5, 0.4])


class Recorder(Answering):
    """Keeps every answer with the number of the segment that it was given for."""

    def __init__(self):
        super().__init__(shifted)
        self.answers = []

    def set_image(self, image):
        super().set_image(image)
        self.answers.append({'masks': [], 'scores': [], 'targets': [], 'clicks': []})

    def predict(self, point_coords, *others, **more):
        masks, scores, logits = super().predict(point_coords, *others, **more)
        answers = self.answers[-1]
        n_clicks = len(point_coords)
        target = len(answers['targets']) and answers['targets'][-1] + (n_clicks == 1)
        for key, value in zip(answers, (masks, scores, target, n_clicks), strict=True):
            answers[key].append(value)
        return masks, scores, logits


@pytest.fixture(scope='module')
def recorded(photographs, tmp_path_factory):
    """The figures of three clicks by the plain functions, and what was answered on each image."""
    predictor = Recorder()
    images = coco_prompts(*write_coco(tmp_path_factory.mktemp('coco'), photographs))
    return summarize(evaluate_prompts(predictor, images, n_clicks=3)), predictor.answers


def sample(image_id, truths, answers, form='rle'):
    item = DetDataSample(metainfo={'img_id': image_id, 'ori_shape': truths.shape[1:]})
    item.gt_instances = InstanceData(masks=BitmapMasks(truths.astype(np.uint8), *truths.shape[1:]))
    item.set_field(answers | {'masks': [FORMS[form](masks) for masks in answers['masks']]}, 'pred_prompts')
    return item


def samples(photographs, answers, form='rle'):
    return [
        sample(i, truths, own, form)
        for i, ((_, truths), own) in enumerate(zip(photographs.values(), answers, strict=True))
    ]


def run(metric, items):
    evaluator = Evaluator(metric)
    for item in items:
        evaluator.process([item])
    return evaluator.evaluate(len(items))


@pytest.mark.parametrize('form', FORMS)
def test_every_form_of_masks_gives_the_figures_of_the_plain_functions(photographs, recorded, form):
    expected, answers = recorded
    metrics = run(UnSAMPromptIoUMetric(n_clicks=3), samples(photographs, answers, form))
    assert metrics == pytest.approx({f'prompt/{name}': value for name, value in expected.items()}, abs=1e-12)
    assert 0.05 < metrics['prompt/max_iou'] < metrics['prompt/oracle_iou'] < 0.95


def test_without_targets_and_clicks_each_prompt_is_one_click_at_its_truth(photographs, recorded):
    expected, answers = recorded
    first = [
        {
            key: [value for value, n in zip(own[key], own['clicks'], strict=True) if n == 1]
            for key in ('masks', 'scores')
        }
        for own in answers
    ]
    metrics = run(METRICS.build({'type': 'UnSAMPromptIoUMetric', 'prefix': 'val'}), samples(photographs, first))
    assert metrics['val/max_iou'] == pytest.approx(expected['max_iou'])
    assert metrics['val/oracle_iou'] == pytest.approx(expected['oracle_iou'])
    assert 'val/NoC1@80' not in metrics


def test_prompts_can_be_an_instance_data(photographs, recorded):
    expected, answers = recorded
    items = samples(photographs, answers)
    for item in items:
        item.pred_prompts = InstanceData(
            masks=item.pred_prompts['masks'],
            scores=item.pred_prompts['scores'],
            targets=torch.tensor(item.pred_prompts['targets']),
            clicks=torch.tensor(item.pred_prompts['clicks']),
        )
    assert run(UnSAMPromptIoUMetric(n_clicks=3), items)['prompt/IoU@3'] == pytest.approx(expected['IoU@3'])


def test_truths_that_were_not_prompted_do_not_count_and_later_clicks_than_asked_for_neither(photographs, recorded):
    _, answers = recorded
    truths = next(iter(photographs.values()))[1]
    own = {key: values[:3] for key, values in answers[0].items()}  # three clicks at the first segment
    metrics = run(UnSAMPromptIoUMetric(n_clicks=2), [sample(0, truths, own)])
    assert (metrics['prompt/segments'], metrics['prompt/images']) == (1, 1)
    assert 'prompt/IoU@3' not in metrics


def test_a_segment_that_was_right_early_keeps_its_iou(photographs):
    truths = next(iter(photographs.values()))[1]
    answers = {'masks': [truths[2:3], truths[:1]], 'scores': [[1.0], [1.0]], 'targets': [2, 0], 'clicks': [1, 1]}
    metrics = run(UnSAMPromptIoUMetric(n_clicks=20), [sample(0, truths, answers)])
    assert (metrics['prompt/IoU@20'], metrics['prompt/NoC20@90'], metrics['prompt/segments']) == (1.0, 1.0, 2)


def test_an_image_that_was_run_twice_counts_once_and_little_is_kept(photographs, recorded):
    items = samples(photographs, recorded[1])
    metric = UnSAMPromptIoUMetric(n_clicks=3)
    assert run(UnSAMPromptIoUMetric(n_clicks=3), [items[0], *items]) == run(metric, items)
    Evaluator(metric).process(items)
    assert len(pickle.dumps(metric.results)) < 100 * sum(len(truths) for _, truths in photographs.values())


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'scores': [[1.0]] * 3}, '2 prompts have masks, but there are'),
        ({'scores': [[1.0], [1.0, 0.5]]}, '1 masks of a prompt have scores'),
        ({'targets': [0, 10_000]}, 'targets up to 10000'),
        ({'targets': [0, 0], 'clicks': [1, 0]}, 'clicks from 0'),
        ({'targets': [0, 1], 'clicks': [1, 2]}, 'has a prompt with several clicks but none with one'),
        ({'masks': [np.ones((1, 9, 9), bool)] * 2}, 'both need the same size'),
    ],
)
def test_answers_that_do_not_fit_are_explained(photographs, change, message):
    truths = next(iter(photographs.values()))[1]
    answers = {'masks': [truths[:1], truths[1:2]], 'scores': [[1.0], [1.0]]} | change
    with pytest.raises(UnSAMError, match=message):
        run(UnSAMPromptIoUMetric(n_clicks=2), [sample(0, truths, answers)])


def test_a_sample_without_answers_is_explained(photographs):
    truths = next(iter(photographs.values()))[1]
    item = sample(0, truths, {'masks': [], 'scores': []})
    with pytest.raises(UnSAMError, match='no segment was prompted'):
        run(UnSAMPromptIoUMetric(), [item])
    del item.pred_prompts
    with pytest.raises(UnSAMError, match='image 0: the data sample needs pred_prompts'):
        run(UnSAMPromptIoUMetric(), [item])


def test_clicks_start_at_one():
    with pytest.raises(UnSAMError, match='n_clicks must be at least 1'):
        UnSAMPromptIoUMetric(n_clicks=0)


METRIC_AND_SCENES = """
from unsam_mm.evaluation.prompt_metric import UnSAMPromptIoUMetric

metric = UnSAMPromptIoUMetric(collect_dir=sys.argv[1] + '_parts')

def scene(number):
    labels = segmentation.felzenszwalb(data.coffee()[number * 20 :: 4, ::4], scale=200, min_size=30)
    truths = np.stack([labels == value for value in np.unique(labels)])
    masks = [np.stack([np.roll(truth, shift, axis=1) for shift in (9, 2, 5)]) for truth in truths]
    return dict(
        img_id=number,
        gt_instances=dict(masks=truths),
        pred_prompts=dict(masks=masks, scores=[[0.2, 0.1, 0.3]] * len(truths)),
    )
"""


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one_although_one_image_is_padding(tmp_path):
    one, two = metrics_of_one_and_of_two(METRIC_AND_SCENES, tmp_path)
    assert one == two
    assert one['prompt/images'] == 5
    assert 0.05 < one['prompt/max_iou'] < one['prompt/oracle_iou'] < 0.99
