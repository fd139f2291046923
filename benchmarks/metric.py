"""Average recall and precision by this package against pycocotools and faster-coco-eval, figure by figure.

``python -m benchmarks.metric`` generates nested regions; with ``--predictions FOLDER --gt FILE``, real masks are used.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from benchmarks.inputs import Inputs
from benchmarks.timing import Comparison, Row, format_table, in_turns, one_thread
from unsam_mm.evaluation import evaluate_masks, load_ground_truth, load_predictions
from unsam_mm.masks.rle import LabelRuns, Rle, rle_to_json

_TOLERANCE = 1e-9
_MAX_DETS = [1, 10, 100, 1000]
_SIZES_HW = ((321, 481), (480, 640), (640, 427))
_N_TRUTHS = 80  # ground-truth masks an image; BSDS500 has about as many, from several people
_CROWDS = 0.03  # share of the ground-truth masks that are crowds
_WAVES_PX = 2.0  # standard deviation of the displacement of borders, drawn separately for predictions and ground truth

Scene = tuple[list[dict[str, Any]], dict[str, Any]]
"""COCO results, and a COCO annotation file."""


def run(
    inputs: Inputs, n_images: int = 200, n_predictions: int = 1000, repetitions: int = 1, scene: Scene | None = None
) -> Row:
    """Evaluates the same masks by each toolbox that is installed.

    Args:
        inputs: Unused.
        n_images: Number of images.
        n_predictions: Number of predictions for each synthetic image.
        repetitions: Runs of each side.
        scene: Masks that replace the synthetic ones.
    """
    predictions, truth = scene or nested_scene(n_images, n_predictions)
    sides = {'ours': lambda: evaluate_masks(predictions, truth)} | _rivals(predictions, truth)
    with one_thread():
        costs, figures = in_turns(sides, repetitions)
    comparisons, differences = [], {}
    for rival in list(sides)[1:]:
        differences[rival] = max(abs(figures['ours'][name] - figures[rival][name]) for name in figures['ours'])
        checked = (
            f'{len(truth["images"])} images, {len(predictions)} predictions, {len(truth["annotations"])} ground-truth '
            f'masks: {len(figures["ours"])} figures differ by {differences[rival]:.1e} at the most'
        )
        comparisons.append(Comparison(rival, costs['ours'], costs[rival], checked, differences[rival] <= _TOLERANCE))
    shown = ', '.join(f'{name} {value:.4f}' for name, value in figures['ours'].items())
    return Row('metric', comparisons, [shown], {'metrics': figures, 'differences': differences})


def nested_scene(n_images: int, n_predictions: int, seed: int = 0) -> Scene:
    """Synthetic nested masks of all sizes, some with equal scores; ground-truth masks have other random borders."""
    random = np.random.default_rng(seed)
    images, predictions, annotations = [], [], []
    for image_id in range(1, n_images + 1):
        height, width = _SIZES_HW[image_id % len(_SIZES_HW)]
        images.append({'id': image_id, 'height': height, 'width': width, 'file_name': f'{image_id}.jpg'})
        found, wanted = _regions((height, width), n_predictions, random)
        for rle, area in found:
            # Large regions tend to have high scores; rounding to two decimals makes many scores equal.
            score = round(float(np.log(area) / np.log(height * width) + random.normal(0, 0.2)), 2)
            predictions.append({'image_id': image_id, 'category_id': 1, 'segmentation': rle, 'score': score})
        for rle, area in wanted:
            is_crowd = int(random.random() < _CROWDS)
            entry = {'image_id': image_id, 'category_id': 1, 'segmentation': rle, 'area': area, 'iscrowd': is_crowd}
            annotations.append(entry | {'id': len(annotations) + 1})
    truth = {'info': {}, 'images': images, 'annotations': annotations, 'categories': [{'id': 1, 'name': 'object'}]}
    return predictions, truth


def real_scene(predictions: Path, ground_truth: Path, n_images: int) -> Scene:
    """Masks from files; if there are fewer images, they are repeated with other ids."""
    truth = load_ground_truth(ground_truth)
    records = load_predictions(predictions, truth)
    images, annotations, found = [], [], []
    truths_of, records_of = (_by_image(entries) for entries in (truth['annotations'], records))
    for number in range(n_images):
        image = truth['images'][number % len(truth['images'])]
        images.append({**image, 'id': number + 1})
        for annotation in truths_of.get(image['id'], []):
            annotations.append({**annotation, 'category_id': 1, 'image_id': number + 1, 'id': len(annotations) + 1})
        for record in records_of.get(image['id'], []):
            mask, score = record['segmentation'], record['score']
            found.append({'image_id': number + 1, 'category_id': 1, 'segmentation': mask, 'score': score})
    return found, {
        'info': {},
        'images': images,
        'annotations': annotations,
        'categories': [{'id': 1, 'name': 'object'}],
    }


def _rivals(predictions: Sequence[dict[str, Any]], truth: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """The toolboxes, called as in their documentation, on copies of the records, since they modify them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    toolboxes = {'pycocotools': (COCO, COCOeval)}
    with contextlib.suppress(ModuleNotFoundError):
        from faster_coco_eval import COCO as FasterCOCO
        from faster_coco_eval import COCOeval_faster

        toolboxes['faster-coco-eval'] = (FasterCOCO, COCOeval_faster)

    def evaluate(data_set: type, evaluation: type) -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            reference = data_set()
            reference.dataset = {**truth, 'annotations': [dict(entry) for entry in truth['annotations']]}
            reference.createIndex()
            judged = evaluation(reference, reference.loadRes([dict(record) for record in predictions]), 'segm')
            judged.params.useCats = 0
            judged.params.maxDets = list(_MAX_DETS)
            judged.evaluate()
            judged.accumulate()
        return _figures(judged.eval['recall'], judged.eval['precision'])

    return {name: lambda pair=pair: evaluate(*pair) for name, pair in toolboxes.items()}


def _figures(recall: Any, precision: Any) -> dict[str, float]:
    recall, precision = np.asarray(recall), np.asarray(precision)
    return {
        **{f'AR@{k}': recall[:, 0, 0, index].mean() for index, k in enumerate(_MAX_DETS)},
        **{f'AR_{name}@1000': recall[:, 0, index, -1].mean() for index, name in enumerate('sml', start=1)},
        'AP@1000': precision[:, :, 0, 0, -1].mean(),
        'AP50@1000': precision[0, :, 0, 0, -1].mean(),
        'AP75@1000': precision[5, :, 0, 0, -1].mean(),
    }


def _regions(
    size_hw: tuple[int, int], n_predictions: int, random: np.random.Generator
) -> tuple[list[tuple[Rle, int]], list[tuple[Rle, int]]]:
    """RLEs and areas of predictions and of ground-truth masks.

    Both are nodes of one tree over random points, with different random borders.
    """
    points = random.uniform((0, 0), size_hw, (max(n_predictions * 6 // 10, 2), 2))
    merges = linkage(points, 'average')
    place = np.empty(len(points), np.int64)
    place[leaves_list(merges)] = np.arange(len(points))  # in this order of leaves, each node is an interval of points
    first, last = [*place], [*(place + 1)]
    for left, right in merges[:, :2].astype(int):
        first.append(min(first[left], first[right]))
        last.append(max(last[left], last[right]))
    intervals = np.array([first, last]).T
    return tuple(
        _draw(place[_nearest(points, size_hw, random)], intervals, count, random)
        for count in (n_predictions, _N_TRUTHS)
    )


def _nearest(points: np.ndarray, size_hw: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """(H, W) index of the point nearest to each pixel, after a smooth random displacement of the pixels."""
    waves = gaussian_filter(random.normal(size=(2, *size_hw)), (0, 5, 5))
    pixels = np.indices(size_hw) + waves * (_WAVES_PX / waves.std())
    return cKDTree(points).query(pixels.reshape(2, -1).T)[1].reshape(size_hw)


def _draw(labels: np.ndarray, intervals: np.ndarray, count: int, random: np.random.Generator) -> list[tuple[Rle, int]]:
    below = np.concatenate([[0], np.cumsum(np.bincount(labels.ravel(), minlength=intervals.max()))])
    areas = below[intervals[:, 1]] - below[intervals[:, 0]]
    chosen = random.permutation(np.flatnonzero(areas))[:count]
    runs = LabelRuns(labels, int(intervals.max()))
    return [(rle_to_json(runs.encode(*intervals[i])), int(areas[i])) for i in chosen]


def _by_image(records: Sequence[Mapping[str, Any]]) -> dict[Any, list[Mapping[str, Any]]]:
    groups: dict[Any, list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault(record['image_id'], []).append(record)
    return groups


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; exit status 1 if two sides differ."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks.metric', description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=200, metavar='N', help='images (default: %(default)s)')
    parser.add_argument('--repetitions', type=int, default=1, metavar='N', help='of each side (default: %(default)s)')
    parser.add_argument('--predictions', type=Path, metavar='PATH', help='real masks, as `evaluate` accepts them')
    parser.add_argument('--gt', type=Path, metavar='FILE', help='their COCO annotation file')
    options = parser.parse_args(argv)
    if (options.predictions is None) != (options.gt is None):
        parser.error('--predictions and --gt belong together')
    scene = None if options.gt is None else real_scene(options.predictions, options.gt, options.count)
    row = run(Inputs(), n_images=options.count, repetitions=options.repetitions, scene=scene)
    print(format_table([row]))
    return int(not all(comparison.equal for comparison in row.comparisons))


if __name__ == '__main__':
    sys.exit(main())
