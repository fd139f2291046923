"""What a round of self-training makes of the labels, and which weights it asks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from PIL import Image
from skimage import data
from torch.utils.data import Dataset

from tests.test_engine.runs import equal
from unsam_mm.datasets import UnSAMImageFolder, UnSAMSA1B
from unsam_mm.engine import UnSAMSelfTrainingHook, resolve_data_root
from unsam_mm.engine.round_labels import RoundLabels, check_names, join_labels, label_images, label_source
from unsam_mm.errors import ImageError, UnSAMError
from unsam_mm.files import write_json
from unsam_mm.fingerprints import tensors_digest
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.masks.mask_set import MaskSet

pytestmark = pytest.mark.usefixtures('_unformatted_configs')


def squares(*boxes: tuple[int, int, int, int], scores: list[float]) -> MaskSet:
    """Rectangles x0, y0, x1, y1 in an image of 40 x 60 px."""
    masks = np.zeros((len(boxes), 40, 60), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return MaskSet.from_bitmaps(masks, np.array(scores))


class TestJoinedLabels:
    old = squares((0, 0, 30, 30), (5, 5, 15, 15), (35, 5, 55, 25), scores=[0.9, 0.8, 0.6])

    def test_are_sure_predictions_and_old_labels_that_overlap_none_of_them(self):
        predicted = squares((36, 5, 55, 25), (0, 0, 20, 20), scores=[0.75, 0.65])
        joined = join_labels(predicted, self.old, 0.7, 0.5)
        expected = [predicted.to_bitmaps()[0], *self.old.to_bitmaps()[:2]]
        assert np.array_equal(joined.to_bitmaps(), expected)

    def test_put_predictions_first_whatever_old_labels_scored(self):
        joined = join_labels(squares((36, 5, 55, 25), scores=[0.75]), self.old, 0.7, 0.5)
        assert joined.scores == pytest.approx([0.75, 0.63, 0.56])
        assert list(np.argsort(-joined.scores)) == [0, 1, 2]

    def test_keep_the_tree_of_the_old_labels(self):
        joined = join_labels(squares((36, 5, 55, 25), scores=[0.75]), self.old, 0.7, 0.5)
        assert joined.parents.tolist() == [-1, -1, 1]

    def test_are_the_old_ones_where_no_prediction_is_sure(self):
        joined = join_labels(squares((36, 5, 55, 25), scores=[0.7]), self.old, 0.7, 0.5)
        assert np.array_equal(joined.to_bitmaps(), self.old.to_bitmaps())


class TestLabelPlace:
    @pytest.fixture(autouse=True)
    def _scope(self):
        with DefaultScope.overwrite_default_scope('mmdet'):
            yield

    @pytest.fixture
    def folders(self, tiny_data: Path, tmp_path: Path) -> SimpleNamespace:
        """The tiny images with one human mask each, in SA-1B's form, and a second folder of pseudo-masks."""
        old, new = PseudoMaskStore(tiny_data / 'labels'), PseudoMaskStore(tmp_path / 'new')
        for name in old.names():
            masks = old.read(name)
            new.write(name, masks[:1])
            image = {'file_name': name, 'image_id': 1, 'height': masks.size_hw[0], 'width': masks.size_hw[1]}
            human = masks[1:2].to_coco(1)
            write_json(tmp_path / 'human' / f'{name[:-4]}.json', {'image': image, 'annotations': human})
        return SimpleNamespace(images=tiny_data / 'images', human=tmp_path / 'human', old=old.root, new=new.root)

    @staticmethod
    def count(dataset: UnSAMSA1B) -> list[int]:
        return [len(dataset[index]['gt_bboxes']) for index in range(len(dataset))]

    def test_of_sa1b_with_pseudo_masks_is_its_folder(self, folders: SimpleNamespace):
        pipeline = [dict(type='UnSAMLoadImage'), dict(type='UnSAMLoadMasks')]
        options = {'labels': 'pseudo', 'pseudo_masks_root': str(folders.old), 'pipeline': pipeline}
        dataset = UnSAMSA1B(data_root=str(folders.images), **options)
        place = label_source(dataset)
        entry = dataset.get_data_info(0)
        assert len(place.read(entry, (entry['height'], entry['width']))) == len(entry['instances']) > 1
        place.folder = str(folders.new)
        assert self.count(dataset) == [1] * len(dataset)

    def test_of_unsam_plus_leaves_human_masks_as_they_are(self, folders: SimpleNamespace):
        pipeline = [dict(type=name) for name in ('UnSAMLoadImage', 'UnSAMLoadMasks', 'UnSAMPlusMasks')]
        options = {'labels': 'both', 'pseudo_masks_root': str(folders.old), 'pipeline': pipeline}
        dataset = UnSAMSA1B(
            data_prefix={'img': str(folders.images), 'ann': str(folders.human)}, data_root='/', **options
        )
        before = self.count(dataset)
        label_source(dataset).folder = str(folders.new)
        assert self.count(dataset) == [2] * len(dataset)
        assert min(before) > 2

    @pytest.fixture
    def two_cities(self, tmp_path: Path) -> Dataset:
        """A data set of MMDetection with images of one name in two folders, and a step for their pseudo-masks."""
        for city in ('aachen', 'bochum'):
            (tmp_path / 'images' / city).mkdir(parents=True)
            Image.fromarray(data.coffee()[:40, :60]).save(tmp_path / 'images' / city / '1.png')
        write_json(
            tmp_path / 'gt.json',
            {
                'images': [
                    {'id': i, 'file_name': f'{city}/1.png', 'height': 40, 'width': 60}
                    for i, city in enumerate(('aachen', 'bochum'))
                ],
                'annotations': [],
                'categories': [{'id': 1, 'name': 'object'}],
            },
        )
        return CocoDataset(
            ann_file='gt.json',
            data_root=str(tmp_path),
            data_prefix={'img': 'images'},
            metainfo={'classes': ('object',)},
            filter_cfg={'filter_empty_gt': False},
            pipeline=[dict(type='UnSAMLoadImage'), dict(type='UnSAMPseudoMasks', store=str(tmp_path / 'store'))],
        )

    def test_of_another_package_has_names_below_its_image_folder(self, two_cities: Dataset, tmp_path: Path):
        place = label_source(two_cities)
        check_names(two_cities, place)
        entries = [two_cities.get_data_info(index) for index in range(2)]
        assert [place.name(entry) for entry in entries] == ['aachen/1.png', 'bochum/1.png']
        labels = [squares((0, 0, 9, 9), scores=[0.9]), squares((0, 0, 9, 9), (20, 20, 30, 30), scores=[0.9, 0.8])]
        store = PseudoMaskStore(tmp_path / 'round_1')
        for entry, masks in zip(entries, labels, strict=True):
            store.write(place.name(entry), masks)
        place.folder = str(store.root)
        assert [len(two_cities[index]['gt_bboxes']) for index in range(2)] == [1, 2]

    def test_of_two_images_under_one_name_is_refused_with_both_paths(self, two_cities: Dataset, monkeypatch):
        def entry(index: int) -> dict:
            root = f'/data/{index}'
            return {'img_path': f'{root}/1.png', 'img_root': root, 'img_name': '1.png'}

        monkeypatch.setattr(two_cities, 'get_data_info', entry)
        with pytest.raises(UnSAMError, match=r'^/data/0/1\.png and /data/1/1\.png: .* stored as 1\.png'):
            check_names(two_cities, label_source(two_cities))

    def test_of_images_without_pseudo_masks_is_refused(self, folders: SimpleNamespace):
        dataset = UnSAMImageFolder(data_root=str(folders.images), pipeline=[dict(type='UnSAMLoadImage')])
        with pytest.raises(UnSAMError, match='found UnSAMImageFolder and 0 UnSAMPseudoMasks'):
            label_source(dataset)


class TestRound:
    """Images named 0, 1, ... of 40 x 60 px, and a detector that finds a square in each with a box that is not tight."""

    predicted = squares((5, 5, 15, 15), scores=[0.9])

    class Detector:
        fails_at: tuple[str, ...] = ()

        def test_step(self, batch: dict) -> list[DetDataSample]:
            (sample,) = batch['data_samples']
            if sample.img_path in self.fails_at:
                raise RuntimeError('CUDA out of memory')
            found = TestRound.predicted
            boxes = torch.tensor(found.boxes_xyxy + 0.3)
            sample.pred_instances = InstanceData(masks=found.rles, scores=torch.tensor(found.scores), bboxes=boxes)
            return [sample]

    @pytest.fixture
    def label(self, tmp_path: Path):
        def label(unreadable: tuple[str, ...], too_large: tuple[str, ...]) -> PseudoMaskStore:
            def load(entry: dict) -> dict:
                if entry['img_path'] in unreadable:
                    raise ZeroDivisionError('division by zero')
                meta = {'img_path': entry['img_path'], 'ori_shape': (40, 60)}
                return {'inputs': torch.zeros(3, 40, 60), 'data_samples': DetDataSample(metainfo=meta)}

            labels = RoundLabels(tmp_path / 'round_1', 0.7, 0.5)
            dataset, old, detector = MagicMock(), MagicMock(), self.Detector()
            dataset.__len__.return_value = 3
            dataset.get_data_info = lambda number: {'img_path': f'{number}.png'}
            old.name = lambda entry: entry['img_path']
            old.read.return_value = squares((35, 5, 55, 25), scores=[0.6])
            detector.fails_at = too_large
            label_images(detector, dataset, old, [load], labels, num_workers=0)
            return labels.store

        return label

    def test_writes_labels_that_the_next_one_reads_whatever_boxes_the_detector_gives(self, label):
        store = label((), ())
        assert store.names() == ['0.png', '1.png', '2.png']
        assert store.read('0.png').boxes_xyxy.tolist() == [[5, 5, 15, 15], [35, 5, 55, 25]]

    def test_goes_on_after_an_image_that_fails(self, label):
        assert label(('0.png',), ('2.png',)).names() == ['1.png']

    def test_ends_where_all_images_fail(self, label):
        with pytest.raises(
            ImageError, match='none of 3 images can be labelled; the first: 0.png: ZeroDivisionError: division'
        ):
            label(('0.png', '1.png'), ('2.png',))


class TestWeights:
    """A round after two of three iterations."""

    @pytest.fixture
    def run(self, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.chdir(tiny_data)
        states = []
        label = UnSAMSelfTrainingHook._label

        def spy(hook, runner, number):
            states.append({name: value.clone() for name, value in runner.model.state_dict().items()})
            label(hook, runner, number)
            states.append({name: value.clone() for name, value in runner.model.state_dict().items()})

        monkeypatch.setattr(UnSAMSelfTrainingHook, '_label', spy)

        def run(weights: str, **changes) -> str:
            """Trains; the fingerprint of the weights that labelled. The trained ones are the same after as before."""
            config = Config.fromfile('tiny.py')
            hook = dict(type='UnSAMSelfTrainingHook', at_iters=[2], weights=weights, min_score=0.2)
            config.merge_from_dict({'train_cfg.max_iters': 3, 'train_dataloader.num_workers': 0})
            config.update({name: value for name, value in changes.items() if '.' not in name})
            config.merge_from_dict({name: value for name, value in changes.items() if '.' in name})
            config.train_dataloader.persistent_workers = False
            config.custom_hooks = [*config.custom_hooks, hook]
            config.update(work_dir=str(tmp_path), experiment_name=tmp_path.name)
            resolve_data_root(config)
            runner = Runner.from_cfg(config)
            runner.train()
            assert equal(*states)
            return RoundLabels(tmp_path / 'self_training' / 'round_1', 0.2, 0.5).weights

        return run

    @staticmethod
    def checkpoint(path: Path) -> dict:
        return torch.load(path, weights_only=False)

    @pytest.mark.slow
    def test_current_ones_are_those_of_the_checkpoint_before_the_round(self, run, tmp_path: Path):
        assert run('current') == tensors_digest(self.checkpoint(tmp_path / 'self_training_1.pth')['state_dict'].items())

    @pytest.mark.slow
    def test_averaged_ones_are_those_that_validation_takes(self, run, tmp_path: Path):
        ema = dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.5)
        labelled = run('averaged', custom_hooks=[ema])
        checkpoint = self.checkpoint(tmp_path / 'self_training_1.pth')
        assert labelled == tensors_digest(checkpoint['state_dict'].items())  # where MMEngine puts averages
        assert not equal(checkpoint['state_dict'], dict(checkpoint['ema_state_dict']))

    @pytest.mark.slow
    def test_best_ones_are_those_of_the_best_checkpoint(self, run, tmp_path: Path):
        config = Config.fromfile('tiny.py')
        changes = {
            'train_cfg.val_interval': 1,
            'val_cfg': dict(type='ValLoop'),
            'val_dataloader': config.test_dataloader,
            'val_evaluator': dict(type='FirstIsBest'),
            'default_hooks.checkpoint.save_best': 'score',
            'default_hooks.checkpoint.rule': 'greater',
        }
        labelled = run('best', **changes)
        best = list(tmp_path.glob('best_*.pth'))
        assert [path.name for path in best] == ['best_score_iter_1.pth']
        assert labelled == tensors_digest(self.checkpoint(best[0])['state_dict'].items())

    def test_unknown_ones_are_refused(self):
        with pytest.raises(UnSAMError, match=r"weights must be one of \('current', 'averaged', 'best'\), got 'ema'"):
            UnSAMSelfTrainingHook(at_iters=[1], weights='ema')


@pytest.mark.parametrize('at_iters', [[], [5, 5], [7, 5], [-1]])
def test_iterations_that_do_not_rise_are_refused(at_iters):
    with pytest.raises(UnSAMError, match='at_iters must be iterations in increasing order, from 0 on'):
        UnSAMSelfTrainingHook(at_iters=at_iters)


FOUND = SimpleNamespace(folder='', signature='settings')  # labels that are found on first sight


class TestRoundLabels:
    masks = squares((0, 0, 30, 30), scores=[0.9])

    @pytest.fixture
    def labels(self, tmp_path: Path) -> RoundLabels:
        """A round of which one image is done."""
        labels = RoundLabels(tmp_path / 'round_1', 0.7, 0.5)
        labels.begin('a', FOUND, 1)
        labels.add('x.png', self.masks, self.masks)
        return labels

    def test_of_the_same_weights_go_on(self, labels: RoundLabels):
        labels.begin('a', FOUND, 1)
        assert labels.store.names() == ['x.png']
        assert not labels.is_complete
        labels.end()
        assert labels.is_complete

    def test_of_other_weights_are_made_again(self, labels: RoundLabels):
        labels.end()
        labels.begin('b', FOUND, 1)
        assert labels.store.names() == []
        assert (labels.weights, labels.is_complete) == ('b', False)

    @pytest.mark.parametrize(
        'changed',
        [
            ('a', SimpleNamespace(folder='', signature='other settings'), 1, 'scale 1'),
            ('a', FOUND, 2, 'scale 1'),
            ('a', FOUND, 1, 'scale 2'),
        ],
        ids=['other old labels', 'other images', 'other settings'],
    )
    def test_that_were_predicted_otherwise_are_made_again(self, labels: RoundLabels, changed: tuple):
        labels.begin('a', FOUND, 1, 'scale 1')
        labels.add('x.png', self.masks, self.masks)
        labels.begin('a', FOUND, 1, 'scale 1')
        assert labels.store.names() == ['x.png']
        labels.begin(*changed)
        assert labels.store.names() == []

    def test_say_that_people_had_a_part_where_the_old_ones_say_so(self, labels: RoundLabels, tmp_path: Path):
        write_json(labels.folder / 'unsam.json', {'supervised': True})
        second = RoundLabels(tmp_path / 'round_2', 0.7, 0.5)
        second.begin('b', SimpleNamespace(folder=str(labels.folder), signature='b'), 1)
        assert second.store.supervised


@METRICS.register_module()
class FirstIsBest(BaseMetric):
    """A score that falls with each validation."""

    rounds = 0

    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results) -> dict[str, float]:
        self.rounds += 1
        return {'score': -self.rounds}
