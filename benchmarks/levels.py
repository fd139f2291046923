"""Finds the objects of whole micrographs without a click: one level of the region tree, or Auto, against thresholding.

F1 at IoU 0.5 is 2 TP / (objects found + true objects). It is averaged over the images of each type, which is derived
from the pixels. The best single level is chosen with the ground truth; the proposed level and Auto do not use it. The
rival is Otsu's threshold on the same lightness, with objects on the same side of the threshold, split by a watershed of
the distance to the background.

    python -m benchmarks.levels IMAGES GT.json
    python -m benchmarks.levels IMAGES GT.json --fold 1 --json figures.json    # other images of the same types
    python -m benchmarks.levels IMAGES --redraw                                # the level slider, in a window
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.io import imread
from skimage.segmentation import watershed

from napari_unsam.levels.candidate_table import CandidateTable
from napari_unsam.levels.cuts import RegionFilter
from napari_unsam.levels.region_properties import Scene
from unsam_mm import PseudoMaskGenerator
from unsam_mm.coco_files.ground_truth import load_ground_truth
from unsam_mm.files import check_result_file, write_json
from unsam_mm.images import as_rgb_uint8
from unsam_mm.masks.hierarchy import MaskHierarchy

_IMAGES_A_TYPE = {'fluorescence, small': 11, 'fluorescence, large': 8, 'stained': 8, 'brightfield': 4}
_SMALL_PX = 256 * 320
_COLOURED = 5  # mean difference of the largest and the smallest channel
_BRIGHT = 100  # median grey value
_LEVELS = np.linspace(0, 1, 101)
_SEED_DISTANCE_PX = 5
_REDRAW_PX = 1024
_N_REDRAWS = 60


def type_of(rgb: np.ndarray) -> str:
    """The type of a micrograph, derived from its colours, brightness and size: a key of `_IMAGES_A_TYPE`."""
    channels = rgb.astype(int)
    if np.ptp(channels, axis=-1).mean() > _COLOURED:
        return 'stained'
    if np.median(channels) > _BRIGHT:
        return 'brightfield'
    return 'fluorescence, small' if rgb.shape[0] * rgb.shape[1] <= _SMALL_PX else 'fluorescence, large'


def chosen_images(folder: Path, truth: dict[str, Any], fold: int) -> Iterator[tuple[str, dict[str, Any], np.ndarray]]:
    """Yields type, COCO record and (H, W, 3) pixels of evenly spaced images of each type; folds share no image."""
    found: dict[str, list[tuple[dict[str, Any], np.ndarray]]] = {name: [] for name in _IMAGES_A_TYPE}
    for image in sorted(truth['images'], key=lambda image: image['file_name']):
        rgb = as_rgb_uint8(imread(folder / image['file_name']))
        found[type_of(rgb)].append((image, rgb))
    for name, images in found.items():
        count = min(_IMAGES_A_TYPE[name], len(images) // 2)
        places = np.linspace(0, len(images) - 2, count).astype(int) + fold if count else []
        yield from ((name, *images[place]) for place in places)


def truth_map(annotations: list[dict[str, Any]], size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) int64 label map of the objects of one image."""
    labels = np.zeros(size_hw, np.int64)
    for label, annotation in enumerate(annotations, start=1):
        labels[coco_mask.decode(annotation['segmentation']).astype(bool)] = label
    return labels


def drawn(tree: MaskHierarchy, nodes: np.ndarray) -> np.ndarray:
    """(H, W) int64 label map of regions of one tree that do not overlap."""
    of_leaf = np.zeros(tree.n_leaves, np.int64)
    for label, node in enumerate(nodes, start=1):
        of_leaf[tree.first_leaf[node] : tree.end_leaf[node]] = label
    return of_leaf[tree.leaf_labels]


def f1(found: np.ndarray, truth: np.ndarray) -> float:
    """F1 at IoU 0.5 of two label maps in which 0 is background; only at exactly 0.5 can an object have two matches."""
    values, places = np.unique(found, return_inverse=True)
    found = places.reshape(found.shape) + int(values[0] != 0)
    n_found, n_truth = int(found.max()), int(truth.max())
    shared = np.bincount(found.ravel() * (n_truth + 1) + truth.ravel(), minlength=(n_found + 1) * (n_truth + 1))
    shared = shared.reshape(n_found + 1, n_truth + 1)
    union = shared.sum(axis=1)[:, None] + shared.sum(axis=0)[None] - shared
    hits = int(((shared / union)[1:, 1:].max(axis=0, initial=0) >= 0.5).sum())
    return 2 * hits / max(n_found + n_truth, 1)


def thresholded(scene: Scene) -> np.ndarray:
    """The rival's (H, W) label map: Otsu's threshold and a watershed."""
    light = scene.lab[..., 0] > scene.threshold
    inside = ndimage.binary_fill_holes(light == scene.objects_are_bright)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(inside), 1.0)
    peaks = peak_local_max(distance, min_distance=_SEED_DISTANCE_PX, labels=ndimage.label(inside)[0])
    seeds = np.zeros(inside.shape, int)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    labels = watershed(-distance, seeds, mask=inside)
    areas = np.bincount(labels.ravel())
    return np.where(areas[labels] >= RegionFilter().min_area_px, labels, 0)


def figures_of(rgb: np.ndarray, truth: np.ndarray, generator: PseudoMaskGenerator) -> dict[str, float]:
    """F1 of each method on one image, and the seconds for measuring all regions and for Auto."""
    hierarchy = generator(rgb)
    limits, start = RegionFilter(), time.perf_counter()
    table = CandidateTable(hierarchy, rgb)
    measured = time.perf_counter()
    best = table.best(limits)
    chosen = time.perf_counter()
    level = table.proposed_level(limits)

    def at(level: float) -> float:
        return f1(drawn(hierarchy, table.at_level(float(level), limits).nodes), truth)

    return {
        'best single level': max(at(level) for level in _LEVELS),
        'proposed level': at(level),
        'Auto': f1(table.object_class('best', best).labels.astype(np.int64), truth),
        'threshold + watershed': f1(thresholded(Scene.of(rgb)).astype(np.int64), truth),
        'measuring s': measured - start,
        'Auto s': chosen - measured,
    }


def measure(folder: Path, truth_file: Path, fold: int) -> dict[str, dict[str, float]]:
    """Mean figures over the images of each type, and over all images."""
    truth = load_ground_truth(truth_file)
    annotations: dict[int, list[dict[str, Any]]] = {}
    for annotation in truth['annotations']:
        annotations.setdefault(annotation['image_id'], []).append(annotation)
    generator = PseudoMaskGenerator.from_preset('default')
    rows: dict[str, list[dict[str, float]]] = {}
    for name, image, rgb in chosen_images(folder, truth, fold):
        figures = figures_of(rgb, truth_map(annotations.get(image['id'], []), rgb.shape[:2]), generator)
        rows.setdefault(name, []).append(figures)
        sys.stderr.write(f'{name}: {image["file_name"]}\n')
    rows['all'] = [figures for group in list(rows.values()) for figures in group]
    return {
        name: {'images': len(group), **{key: float(np.mean([row[key] for row in group])) for key in group[0]}}
        for name, group in rows.items()
        if group
    }


def format_table(figures: dict[str, dict[str, float]]) -> str:
    """A Markdown table with a row for each type, and the ratio of Auto to the rival."""
    columns = list(next(iter(figures.values())))
    lines = ['| type | ' + ' | '.join(columns) + ' |', '|---' * (len(columns) + 1) + '|']
    for name, row in figures.items():
        values = [f'{row[key]:.0f}' if key == 'images' else f'{row[key]:.3f}' for key in columns]
        lines.append(f'| {name} | ' + ' | '.join(values) + ' |')
    rival, auto = figures['all']['threshold + watershed'], figures['all']['Auto']
    return '\n'.join([*lines, '', f'Auto over threshold + watershed, all images: {auto / max(rival, 1e-9):.2f}'])


def redraws_a_second(rgb: np.ndarray, hierarchy: MaskHierarchy) -> float:
    """Number of times a second that the level slider redraws an image in a window, including napari's drawing."""
    import napari
    from napari.layers import Labels
    from qtpy.QtWidgets import QApplication, QOpenGLWidget

    from napari_unsam.levels.preview import LevelPreview
    from napari_unsam.model.frame import Frame
    from napari_unsam.model.plane import Plane

    viewer = napari.Viewer()
    image = viewer.add_image(rgb)
    objects = Labels(np.zeros(rgb.shape[:2], np.uint32))
    viewer.add_layer(objects)
    canvas = viewer.window._qt_window.findChild(QOpenGLWidget)
    preview = LevelPreview(viewer, objects, Frame(image), Plane(rgb.shape[:2], (0, 1), (0, 0)))
    table, limits = CandidateTable(hierarchy, rgb), RegionFilter()

    def redraw(level: float) -> None:
        table.draw(table.at_level(level, limits), preview.pixels)
        preview.redraw()
        canvas.repaint()
        QApplication.processEvents()

    for level in (0.2, 0.5, 0.8):
        redraw(level)
    start = time.perf_counter()
    for level in np.linspace(0, 1, _N_REDRAWS):
        redraw(float(level))
    seconds = time.perf_counter() - start
    viewer.close()
    return _N_REDRAWS / seconds


def main(arguments: list[str] | None = None) -> int:
    """Prints a table, or the number of redraws a second."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', type=Path, help='folder of micrographs')
    parser.add_argument('truth', type=Path, nargs='?', help='their objects, a COCO file')
    parser.add_argument('--fold', type=int, choices=(0, 1), default=0, help='which images of each type')
    parser.add_argument('--json', type=Path, help='file for the figures')
    parser.add_argument('--redraw', action='store_true', help='measures the slider on an image of 1024 x 1024 px')
    options = parser.parse_args(arguments)
    if options.redraw:
        paths = (path for path in sorted(options.images.iterdir()) if path.suffix == '.png')
        sizes = (as_rgb_uint8(imread(path)) for path in paths)
        rgb = next((rgb for rgb in sizes if rgb.shape[:2] == (_REDRAW_PX, _REDRAW_PX)), None)
        if rgb is None:
            parser.error(f'{options.images}: there is no PNG image of {_REDRAW_PX} x {_REDRAW_PX} px')
        rate = redraws_a_second(rgb, PseudoMaskGenerator.from_preset('default')(rgb))
        print(f'{rate:.1f} redraws a second at {_REDRAW_PX} x {_REDRAW_PX} px')
        return 0
    if options.truth is None:
        parser.error('the objects of the images are needed: GT.json')
    if options.json:
        check_result_file(options.json, options.truth)
    figures = measure(options.images, options.truth, options.fold)
    print(format_table(figures))
    if options.json:
        write_json(options.json, figures)
    return 0


if __name__ == '__main__':
    sys.exit(main())
