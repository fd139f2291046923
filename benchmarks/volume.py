"""Propagates one click on the middle slice of every object of a labelled stack; measures the IoU with the object.

    python -m benchmarks.volume raw.tif labels.tif --cache embeddings
    python -m benchmarks.volume raw.tif labels.tif --engines tree --starts click --json figures.json

The click is at the pixel farthest from the outline of the object. Propagation starts from the first mask of the engine,
from the best of its six masks, which a user can select with J and K, or from the labelled mask, to evaluate propagation
alone. The rival is µSAM's rule with the same engine: the box of the previous mask is the prompt in the next slice, and
propagation stops when the IoU of two consecutive masks is below 0.5.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile

from napari_unsam.engine.planes import EmbeddedPlane, make_engine
from napari_unsam.model.mask import EMPTY, BoxMask
from napari_unsam.volumes.matching import deepest_point
from napari_unsam.volumes.propagation import PropagationSettings, propagate
from unsam_mm.files import check_result_file, write_json
from unsam_mm.prompting import UnSAMPredictor

STARTS = ('labels', 'click', 'best of six')
_RULE_MIN_IOU = 0.5

Planes = Callable[[int], EmbeddedPlane]
Volume = dict[int, BoxMask]


class Stack:
    """A stack and its embeddings.

    Args:
        raw: (Z, H, W) uint8.
        engine: 'tree' or 'model'.
        cache: Folder in which embeddings are stored; None: they are not stored.
    """

    def __init__(self, raw: np.ndarray, engine: str, cache: Path | None) -> None:
        self._raw, self._predictor, self._cache = raw, UnSAMPredictor(make_engine(engine, 'cpu')), cache
        self._planes: dict[int, EmbeddedPlane] = {}

    def __call__(self, z: int) -> EmbeddedPlane:
        """The embedded slice z."""
        if z not in self._planes:
            predictor = self._predictor
            path = None if self._cache is None else self._cache / f'{predictor.engine.name}-{z:03d}.npz'
            if path is not None and path.exists():
                predictor.load_embedding(path)
            else:
                predictor.set_image(self._raw[z])
                if path is not None:
                    predictor.save_embedding(path)
            engine = copy.copy(predictor.engine)
            self._planes[z] = EmbeddedPlane(engine, engine.hierarchy)
        return self._planes[z]


def start_masks(planes: Planes, truth: np.ndarray, start: str) -> dict[int, tuple[int, BoxMask]]:
    """Label of each object to the index of its middle slice and the start mask in it; `start` is one of `STARTS`."""
    masks = {}
    for label in np.unique(truth)[1:]:
        zs = np.flatnonzero((truth == label).any(axis=(1, 2)))
        z = int(zs[len(zs) // 2])
        wanted = BoxMask.of(truth[z] == label)
        if start != 'labels':
            answers = planes(z).answer(deepest_point(wanted)[None], np.ones(1, np.int64))
            found = [BoxMask(one.box_xyxy, one.mask) for one in answers]
            wanted = found[0] if start == 'click' else max(found, key=wanted.iou)
        masks[int(label)] = (z, wanted)
    return masks


def by_rule(planes: Planes, z: int, mask: BoxMask, n_slices: int) -> Volume:
    """µSAM's box projection, which its documentation describes as `projection="box"`, `iou_threshold=0.5`."""
    volume = {z: mask}
    for step in (-1, 1):
        before, at = mask, z + step
        while 0 <= at < n_slices:
            answers = planes(at).answer(None, None, box_xyxy=np.array(before.box_xyxy, float))
            if not answers:
                break
            now = BoxMask(answers[0].box_xyxy, answers[0].mask)
            if now.iou(before) < _RULE_MIN_IOU:
                break
            volume[at], before, at = now, now, at + step
    return volume


def by_propagation(
    planes: Planes,
    raw: np.ndarray,
    starts: dict[int, tuple[int, BoxMask]],
    settings: PropagationSettings,
    together: bool = False,
) -> dict[int, Volume]:
    """Propagates each object alone, or all together."""
    known = {label: {z: mask} for label, (z, mask) in starts.items()}
    runs = [known] if together else [{label: slices} for label, slices in known.items()]
    volumes: dict[int, Volume] = {}
    for run in runs:
        found = propagate(planes, raw.__getitem__, run, (0, len(raw)), settings)
        volumes |= {label: {z: one.mask for z, one in slices.items()} for label, slices in found.items()}
    return volumes


def iou_3d(volume: Volume, truth: np.ndarray) -> float:
    """IoU of a propagated object with the true object, a (Z, H, W) bool mask."""
    shared = union = 0
    for z, wanted in enumerate(truth):
        crop = volume.get(z, EMPTY)
        x0, y0, x1, y1 = crop.box_xyxy
        inside = int(np.count_nonzero(crop.mask & wanted[y0:y1, x0:x1]))
        shared += inside
        union += crop.area_px + int(np.count_nonzero(wanted)) - inside
    return shared / max(union, 1)


def main(arguments: list[str] | None = None) -> int:
    """Prints a table with a row for each engine, start and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('raw', type=Path, help='(Z, H, W) uint8 TIFF')
    parser.add_argument('labels', type=Path, help='(Z, H, W) TIFF, 0 being background')
    parser.add_argument('--engines', nargs='+', default=['tree', 'model'], choices=['tree', 'model'])
    parser.add_argument('--starts', nargs='+', default=list(STARTS), choices=STARTS)
    parser.add_argument('--cache', type=Path, help='folder that stores embeddings')
    parser.add_argument('--json', type=Path, help='file for the IoU of each object')
    options = parser.parse_args(arguments)
    if options.json is not None:
        check_result_file(options.json, options.raw, options.labels)
    raw, truth = tifffile.imread(options.raw), tifffile.imread(options.labels)
    engine_too = PropagationSettings(ask_engine=True)
    figures: dict[str, dict[int, float]] = {}
    sys.stdout.reconfigure(line_buffering=True)
    print(f'{"engine":8}{"start":14}{"way":28}{"mean IoU":>10}{"> 0.5":>8}{"s":>8}')
    for engine in options.engines:
        planes = Stack(raw, engine, options.cache)
        for z in range(len(raw)):
            planes(z)
        for start in options.starts:
            starts = start_masks(planes, truth, start)
            ways = {
                'start mask alone': lambda starts=starts: {label: {z: mask} for label, (z, mask) in starts.items()},
                'box projection, IoU 0.5': lambda starts=starts, planes=planes: {
                    label: by_rule(planes, z, mask, len(raw)) for label, (z, mask) in starts.items()
                },
                'propagation': lambda starts=starts, planes=planes: by_propagation(
                    planes, raw, starts, PropagationSettings()
                ),
                'propagation, engine asked': lambda starts=starts, planes=planes: by_propagation(
                    planes, raw, starts, engine_too
                ),
                'propagation, all together': lambda starts=starts, planes=planes: by_propagation(
                    planes, raw, starts, PropagationSettings(), together=True
                ),
            }
            for name, way in ways.items():
                began_s = time.perf_counter()
                volumes = way()
                took_s = time.perf_counter() - began_s
                ious = {label: iou_3d(volume, truth == label) for label, volume in volumes.items()}
                figures[f'{engine}, {start}, {name}'] = ious
                values = np.array(list(ious.values()))
                print(f'{engine:8}{start:14}{name:28}{values.mean():10.3f}{(values > 0.5).mean():8.2f}{took_s:8.1f}')
    if options.json is not None:
        write_json(options.json, figures)
    return 0


if __name__ == '__main__':
    sys.exit(main())
