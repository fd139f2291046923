"""The same clicks for UnSAM and for methods without trained weights: GrabCut, random walker, SLIC and flood fill.

The rivals return one mask, so their Max and Oracle IoU are equal. Each has the same settings for all images. GrabCut
and the random walker, which solve for the whole image, process it at 320 px, since they would otherwise need seconds
for a click.

    python -m benchmarks.rival_clicks IMAGES GT.json --limit 8
    python -m benchmarks.rival_clicks IMAGES GT.json --limit 8 --clicks 5 --json figures.json --curve curves.png
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.color import rgb2lab
from skimage.segmentation import random_walker, slic
from skimage.transform import resize

from unsam_mm.cli.evaluate import check_results, make_predictor, prompt_images
from unsam_mm.errors import UnSAMError
from unsam_mm.evaluation.click_simulation import evaluate_prompts
from unsam_mm.evaluation.prompt_iou import format_prompt_table, iou_curve, save_click_curves, summarize
from unsam_mm.files import write_json
from unsam_mm.image_io.opencv import import_opencv

_SOLVED_SIDE_PX = 320
_SURE_RADIUS = 0.01  # radius around a click that is certain, as a share of the longer side
_BOX_SHARE = 0.25  # half side of GrabCut's box around the clicks, as a share of the longer side
_GRABCUT_ROUNDS = 5
_WALKER_BETA = 130  # scikit-image's default
_SLIC_REGIONS = 60
_FLOOD_TOLERANCE = 12.0  # in Lab, where 2.3 is just noticeable

Rival = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(H, W, 3) uint8 RGB, (N, 2) int64 clicks x and y, and (N,) bool, True for positive clicks, to (H, W) bool."""


class SingleMask:
    """A rival with the interface of a predictor.

    Args:
        rival: Computes the mask for all clicks on one object.
        longest_px: A larger image is shrunk until its longer side has this length. None: it is not shrunk.
    """

    def __init__(self, rival: Rival, longest_px: int | None = None) -> None:
        self._rival, self._longest_px = rival, longest_px

    def set_image(self, image: np.ndarray) -> None:
        """Sets the image, (H, W, 3) uint8 RGB."""
        self._size_hw = image.shape[:2]
        self._scale = min(1.0, (self._longest_px or max(self._size_hw)) / max(self._size_hw))
        shape = tuple(max(1, round(side * self._scale)) for side in self._size_hw)
        self._image = image
        if self._scale < 1:
            self._image = resize(image, (*shape, 3), anti_aliasing=True, preserve_range=True).round().astype(np.uint8)

    def predict(
        self,
        point_coords: np.ndarray,
        point_labels: np.ndarray,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A (1, H, W) bool mask with the score 1, and dummy logits; `mask_input` and `multimask_output` are ignored."""
        height, width = self._image.shape[:2]
        points = np.minimum(np.asarray(point_coords) * self._scale, (width - 1, height - 1)).astype(np.int64)
        mask = self._rival(self._image, points, np.asarray(point_labels) == 1)
        if self._scale < 1:
            mask = resize(mask.astype(np.float32), self._size_hw, order=1) > 0.5
        return mask[None], np.ones(1), np.zeros((1, 1, 1), np.float32)


def grabcut(image: np.ndarray, points: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """OpenCV's GrabCut: the object is in a box around the positive clicks; discs around clicks are certain."""
    cv2 = import_opencv()
    height, width = image.shape[:2]
    reach = round(_BOX_SHARE * max(height, width))
    low = np.maximum(points[positive].min(axis=0) - reach, 0)
    high = np.minimum(points[positive].max(axis=0) + reach + 1, (width, height))
    labels = np.full((height, width), cv2.GC_BGD, np.uint8)
    labels[low[1] : high[1], low[0] : high[0]] = cv2.GC_PR_FGD
    if (labels == cv2.GC_PR_FGD).all():  # GrabCut needs some background
        labels[[0, -1]] = labels[:, [0, -1]] = cv2.GC_BGD
    for disc, label in ((positive, cv2.GC_FGD), (~positive, cv2.GC_BGD)):
        labels[_discs(points[disc], (height, width))] = label
    cv2.setRNGSeed(0)
    cv2.grabCut(image, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), _GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
    return _parts_under((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD), points[positive])


def walker(image: np.ndarray, points: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """scikit-image's random walker from discs around the clicks; the border of the image is background."""
    seeds = np.zeros(image.shape[:2], np.int32)
    seeds[[0, -1]] = seeds[:, [0, -1]] = 2
    seeds[_discs(points[~positive], seeds.shape)] = 2
    seeds[_discs(points[positive], seeds.shape)] = 1
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about solvers that are not installed
        return random_walker(image, seeds, beta=_WALKER_BETA, mode='cg_j', channel_axis=-1) == 1


def slic_regions(image: np.ndarray, points: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The superpixels under positive clicks, without those that are also under negative clicks."""
    labels = slic(image, n_segments=_SLIC_REGIONS, compactness=10, start_label=1)
    under = labels[points[:, 1], points[:, 0]]
    return np.isin(labels, np.setdiff1d(under[positive], under[~positive]))


def flood_fill(image: np.ndarray, points: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """The connected pixels of similar colour around positive clicks, without those around negative clicks."""
    lab = rgb2lab(image)
    filled = np.zeros((2, *image.shape[:2]), bool)
    for (x, y), is_positive in zip(points, positive, strict=True):
        alike = np.linalg.norm(lab - lab[y, x], axis=-1) <= _FLOOD_TOLERANCE
        filled[int(is_positive)] |= _parts_under(alike, np.array([[x, y]]))
    return filled[1] & ~filled[0]


RIVALS: dict[str, Callable[[], SingleMask]] = {
    'GrabCut': partial(SingleMask, grabcut, _SOLVED_SIDE_PX),
    'random walker': partial(SingleMask, walker, _SOLVED_SIDE_PX),
    'SLIC': partial(SingleMask, slic_regions),
    'flood fill': partial(SingleMask, flood_fill),
}


def main(arguments: list[str] | None = None) -> int:
    """Evaluates all predictors with the same rule for clicks and the same segments, and prints a table."""
    options = _parse(arguments)
    check_results(options)
    images = prompt_images(options)
    predictors = {name: make() for name, make in RIVALS.items()}
    predictors['UnSAM tree'] = make_predictor('tree', None)
    if options.weights:
        predictors['UnSAM model'] = make_predictor('model', options.weights)
    rows = {}
    for name, predictor in predictors.items():
        start = time.perf_counter()
        ious = evaluate_prompts(predictor, images, options.clicks, max_segments=options.segments, seed=options.seed)
        rows[name] = summarize(ious)
        sys.stderr.write(f'{name}: {time.perf_counter() - start:.1f} s\n')
    print(format_prompt_table(rows))
    if options.json:
        write_json(options.json, rows)
    if options.curve:
        save_click_curves(options.curve, {name: iou_curve(row) for name, row in rows.items()})
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.rival_clicks')
    parser.add_argument('images', type=Path, help='folder of images')
    parser.add_argument('prompts', type=Path, help='COCO file, or folder of mask pictures')
    parser.add_argument('--limit', type=int, default=8, help='images (default: %(default)s)')
    parser.add_argument('--segments', type=int, default=20, help='segments of each, drawn (default: %(default)s)')
    parser.add_argument('--clicks', type=int, default=1, help='at each segment (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--weights', type=Path, help='of the engine model, which is left out without them')
    parser.add_argument('--json', type=Path)
    parser.add_argument('--curve', type=Path, metavar='PNG')
    parser.set_defaults(predictions=None, ground_truth=None, masks=None, each_value=False, ignored_value=None)
    return parser.parse_args(arguments)


def _discs(points: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    radius = max(1.0, _SURE_RADIUS * max(size_hw))
    rows, columns = np.ogrid[: size_hw[0], : size_hw[1]]
    covered = np.zeros(size_hw, bool)
    for x, y in points:
        covered |= (columns - x) ** 2 + (rows - y) ** 2 <= radius**2
    return covered


def _parts_under(mask: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The connected parts of a mask that contain a point."""
    parts, _ = ndimage.label(mask)
    under = parts[points[:, 1], points[:, 0]]
    return np.isin(parts, under[under > 0])


if __name__ == '__main__':
    try:
        sys.exit(main())
    except UnSAMError as error:
        sys.exit(f'error: {error}')
