"""The whole-image model against MMDetection's Mask2Former with the same weights: time and peak memory.

``python -m benchmarks.head predict`` or ``python -m benchmarks.head train``, with sizes as options. Both sides run
alternately, each in a separate process, so that its peak memory can be measured. By default, the model is that of the
published config; its weights are random.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inputs import Inputs, photograph
from benchmarks.timing import ONE_THREAD, Comparison, Cost, Row, format_table, in_new_process, peak_memory, timed

_CONFIG = Path(__file__).resolve().parents[1] / 'configs' / '_base_' / 'models' / 'unsam_r50.py'
_RIVAL = "MMDetection's Mask2Former"
_SIDES = ('ours', 'mmdet')
_CLASS_AGNOSTIC = {'num_things_classes': 1, 'num_stuff_classes': 0}
_WARM_UP_PX = 64
_FORGET_PEAK = Path('/proc/self/clear_refs')


@dataclass(frozen=True)
class Job:
    """The task of both sides.

    Attributes:
        mode: 'predict': one image to masks, as run lengths (ours) or bitmaps (MMDetection); 'train': losses and
            gradients.
        size: Height and width of the image in pixels.
        queries: Number of queries of the model.
        masks: Number of ground-truth masks of the image, in training.
        threads: Number of torch threads.
        config: Config file of the model.
    """

    mode: str
    size: int = 512
    queries: int = 2000
    masks: int = 200
    threads: int = 2
    config: Path = _CONFIG

    def __str__(self) -> str:
        masks = f', {self.masks} masks' if self.mode == 'train' else ''
        return f'{self.mode} {self.size} x {self.size} px, {self.queries} queries{masks}, {self.threads} threads'


_DEFAULTS = {'predict': {'queries': 2000}, 'train': {'queries': 500}}


def run(inputs: Inputs, size: int = 512, queries: int | None = None, rounds: int = 1) -> Row:
    """Compares prediction and training.

    Args:
        inputs: Unused.
        size: Height and width of the image in pixels.
        queries: Number of queries of the model; None: 2000 to predict, 500 to train.
        rounds: Number of runs of each side.
    """
    jobs = [Job(mode, size, queries or default['queries']) for mode, default in _DEFAULTS.items()]
    comparisons, notes = zip(*(compare(job, rounds) for job in jobs), strict=True)
    return Row('head', list(comparisons), list(notes))


def compare(job: Job, rounds: int) -> tuple[Comparison, str]:
    """Runs both sides alternately, and compares the medians.

    Returns:
        The comparison, and a note with the inverse of its ratios: our cost divided by the rival's.
    """
    records = measure(job, rounds, _SIDES)
    (ours, theirs), (outcome, expected) = (
        [_median(records[side]) for side in _SIDES],
        [records[side][-1]['outcome'] for side in _SIDES],
    )
    equal, checked = _agreement(job, outcome, expected)
    comparison = Comparison(_RIVAL, ours, theirs, f'{job}: {checked}; memory above the loaded model', equal)
    ratios = ', '.join(f'{name} {1 / ratio:.3f}' for name, ratio in comparison.ratios.items())
    return comparison, f"{job.mode}: ours over the rival's: {ratios}"


def measure(job: Job, rounds: int, sides: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """Costs and results of all runs, by side; each run is a separate process."""
    records: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        _save_weights(job, Path(folder))
        for _ in range(rounds):
            for side in sides:
                records[side].append(_in_process(job, side, Path(folder)))
    return records


def _median(records: list[dict[str, Any]]) -> Cost:
    return Cost(*(statistics.median(record[name] for record in records) for name in ('cpu_s', 'wall_s', 'peak_mb')))


def _agreement(job: Job, ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[bool, str]:
    """True if the results are equal up to rounding or, in training, to the choice of random points; and the figures."""
    if job.mode == 'train':
        apart = abs(ours['loss'] - theirs['loss']) / theirs['loss']
        return apart < 0.02, f'losses {ours["loss"]:.4g} and {theirs["loss"]:.4g} at different random points'
    pairs = [np.asarray([side[name] for side in (ours, theirs)]) for name in ('scores', 'areas')]
    scores = np.abs(np.diff(pairs[0], axis=0)).max()
    areas = np.median(np.abs(np.diff(pairs[1], axis=0)) / pairs[1][1])
    return (
        scores < 5e-3 and areas < 0.01,
        f'{len(ours["scores"])} sorted scores at most {scores:.0e} apart, areas {areas:.0e} (median)',
    )


def _save_weights(job: Job, folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    model = _build(job, 'ours')
    model.mask_head.init_weights()
    torch.save(model.state_dict(), folder / 'ours.pth')
    renamed = {name.replace('mask_head.', 'panoptic_head.', 1): value for name, value in model.state_dict().items()}
    torch.save(renamed, folder / 'mmdet.pth')


def _in_process(job: Job, side: str, folder: Path) -> dict[str, Any]:
    request = json.dumps(asdict(job) | {'config': str(job.config)})
    threads = dict.fromkeys(ONE_THREAD, str(job.threads))
    return in_new_process('head', '--side', side, request, folder, **threads)


def _measure(job: Job, side: str, folder: Path) -> dict[str, Any]:
    """Runs one side in this process, after a small image: libraries initialise themselves at the first call."""
    import torch

    torch.set_num_threads(job.threads)
    model = _build(job, side)
    model.load_state_dict(torch.load(folder / f'{side}.pth', weights_only=True, mmap=True))
    step = {'predict': _predict, 'train': _train}[job.mode]
    step(model, _WARM_UP_PX, 2)
    model.zero_grad()
    if _FORGET_PEAK.exists():
        _FORGET_PEAK.write_text('5')  # resets the peak, which otherwise includes the warm-up
    loaded = peak_memory()
    torch.manual_seed(1)
    cost, outcome = timed(lambda: step(model, job.size, job.masks))
    return {
        'cpu_s': cost.cpu_s,
        'wall_s': cost.wall_s,
        'peak_mb': (peak_memory() - loaded) / 1e6,
        'outcome': outcome,
    }


def _predict(model: Any, size: int, masks: int) -> dict[str, Any]:
    import torch
    from pycocotools import mask as coco_mask

    model.eval()
    batch = model.data_preprocessor(_batch(size, 0), False)
    with torch.no_grad():
        found = model.predict(batch['inputs'], batch['data_samples'])[0].pred_instances
    if isinstance(found.masks, torch.Tensor):
        areas = found.masks.flatten(1).sum(1)
    else:
        areas = torch.tensor([int(coco_mask.area(rle)) for rle in found.masks])
    order = found.scores.argsort(descending=True)
    return {'scores': found.scores[order].tolist(), 'areas': areas.sort(descending=True).values.tolist()}


def _train(model: Any, size: int, masks: int) -> dict[str, Any]:
    model.train()
    batch = model.data_preprocessor(_batch(size, masks), True)
    loss, _ = model.parse_losses(model.loss(batch['inputs'], batch['data_samples']))
    loss.backward()
    return {'loss': loss.item()}


def _build(job: Job, side: str) -> Any:
    import unsam_mm.models  # noqa: F401, I001  (before mmdet, which fails to import without it)
    from mmdet.registry import MODELS
    from mmengine.config import Config, ConfigDict
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    model = Config.fromfile(job.config).model
    model.mask_head.num_queries = job.queries
    model.test_cfg.max_per_image = min(job.queries, model.test_cfg.max_per_image)
    if side == 'ours':
        return MODELS.build(model)
    head = copy.deepcopy(model.mask_head)
    head.update(type='Mask2FormerHead', **_CLASS_AGNOSTIC)
    return MODELS.build(
        ConfigDict(
            type='Mask2Former',
            data_preprocessor=model.data_preprocessor,
            backbone=model.backbone,
            panoptic_head=head,
            panoptic_fusion_head={'type': 'MaskFormerFusionHead', **_CLASS_AGNOSTIC},
            train_cfg=model.train_cfg,
            test_cfg={'panoptic_on': False, 'instance_on': True, 'max_per_image': model.test_cfg.max_per_image},
        )
    )


def _batch(size: int, n_masks: int) -> dict[str, list]:
    """A photograph, with ellipses of many sizes as its masks, in the format that a pipeline returns."""
    import torch
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData
    from PIL import Image

    # BGR, as pipelines load it
    image = np.asarray(Image.fromarray(photograph()).resize((size, size)))[..., ::-1]
    rng = np.random.default_rng(0)
    centre, radius = rng.uniform(0, size, (2, n_masks, 1, 1)), size * 2 ** rng.uniform(-6, -2, (2, n_masks, 1, 1))
    y, x = np.mgrid[:size, :size]
    masks = ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < 1
    sample = DetDataSample(metainfo={'img_shape': (size, size), 'ori_shape': (size, size)})
    sample.gt_instances = InstanceData(
        masks=BitmapMasks(masks.astype(np.uint8), size, size), labels=torch.zeros(n_masks, dtype=torch.long)
    )
    return {'inputs': [torch.from_numpy(image.transpose(2, 0, 1).copy())], 'data_samples': [sample]}


def main() -> None:
    """Prints the table of one mode."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.head', description=__doc__.splitlines()[0])
    parser.add_argument('mode', choices=tuple(_DEFAULTS))
    parser.add_argument('--size', type=int, default=512, help='of the image, in pixels (default: %(default)s)')
    parser.add_argument('--queries', type=int, help='(default: 2000 to predict, 500 to train)')
    parser.add_argument('--masks', type=int, default=200, help='of the image, to train (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=1, help='how often each side is run (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=2, help='of torch (default: %(default)s)')
    parser.add_argument('--config', type=Path, default=_CONFIG, help='of a model (default: the published one)')
    parser.add_argument('--ours-only', action='store_true', help='without the rival, for sizes where it does not fit')
    options = parser.parse_args()
    queries = options.queries or _DEFAULTS[options.mode]['queries']
    job = Job(options.mode, options.size, queries, options.masks, options.threads, options.config.resolve())
    if options.ours_only:
        cost = _median(measure(job, options.rounds, _SIDES[:1])[_SIDES[0]])
        print(f'{job}: {cost} above the loaded model')
        return
    comparison, note = compare(job, options.rounds)
    print(format_table([Row('head', [comparison], [note])]))


if __name__ == '__main__':
    if sys.argv[1:2] == ['--side']:
        requested = json.loads(sys.argv[3])
        print(json.dumps(_measure(Job(**requested), sys.argv[2], Path(sys.argv[4]))))
    else:
        main()
