"""The default preset against the published procedure with the same backbone: time, and recall if there is ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.inputs import Inputs, photograph
from benchmarks.timing import Comparison, Cost, Row, in_turns, one_thread
from unsam_mm import PseudoMaskGenerator
from unsam_mm.evaluation import evaluate_masks, load_ground_truth, match_images
from unsam_mm.images import read_image
from unsam_mm.masks.mask_set import MaskSet

_VIT = 'dinov2_vits14'
_PRESETS = ('default', 'release')
_RECALL = 'AR@1000'


def run(inputs: Inputs, shrink: int = 1) -> Row:
    """Finds the masks of some images with both presets.

    Args:
        inputs: The images, and optionally their ground truth.
        shrink: Images are subsampled by this factor; must be 1 if there is ground truth.
    """
    paths = inputs.paths()
    truth = _truth_of(paths, inputs.ground_truth) if inputs.ground_truth else None
    images = [np.ascontiguousarray(read_image(path)[::shrink, ::shrink]) for path in paths]
    with one_thread():
        generators = [PseudoMaskGenerator.from_preset(preset, vit=_VIT) for preset in _PRESETS]
        for generator in generators:
            generator(photograph()[:64, :64]).select()  # compiles; the corner of a given image may have a single colour
        costs, found = zip(*(_both(generators, image) for image in images), strict=True)
    ours, theirs = (
        Cost(*(sum(getattr(pair[preset], name) for pair in costs) / len(images) for name in ('cpu_s', 'wall_s')))
        for preset in _PRESETS
    )
    counts = {preset: sum(len(pair[preset]) for pair in found) / len(images) for preset in _PRESETS}
    figures: dict[str, Any] = {'images': len(images), 'masks_per_image': counts}
    checked = f'a mean image of {len(images)}, {_VIT} on both sides; {counts["default"]:.0f} and {counts["release"]:.0f} masks'
    notes = []
    if truth:
        recall = {preset: _recall([pair[preset] for pair in found], *truth) for preset in _PRESETS}
        figures[_RECALL] = recall
        notes.append(
            f'{_RECALL} on these {len(images)} images: default {recall["default"]:.3f}, release {recall["release"]:.3f}, '
            f'{recall["default"] / max(recall["release"], 1e-9):.2f} times as much'
        )
    else:
        notes.append('recall is compared with --images FOLDER --gt FILE')
    return Row('generator', [Comparison("preset 'release'", ours, theirs, checked)], notes, figures)


def _both(generators: Sequence[PseudoMaskGenerator], image: np.ndarray) -> tuple[dict[str, Cost], dict[str, MaskSet]]:
    default, release = generators
    sides = {'default': lambda: default(image).select(), 'release': lambda: release(image).select()}
    return in_turns(sides, 1)


def _truth_of(paths: Sequence[Path], path: Path) -> tuple[list[Any], dict[str, Any]]:
    """Ids of the images, and the ground truth of these images only."""
    everything = load_ground_truth(path)
    paired = match_images([str(image) for image in paths], everything)
    ids = [paired[str(image)] for image in paths]
    return ids, {
        'images': [image for image in everything['images'] if image['id'] in ids],
        'annotations': [record for record in everything['annotations'] if record['image_id'] in ids],
    }


def _recall(masks: Sequence[MaskSet], ids: Sequence[Any], truth: Mapping[str, Any]) -> float:
    records = [record for found, image_id in zip(masks, ids, strict=True) for record in found.to_coco(image_id)]
    return evaluate_masks(records, truth)[_RECALL]
