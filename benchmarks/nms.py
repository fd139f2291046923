"""Suppression of near-equal masks of one tree by intervals of leaves, against the same by pixels and run lengths."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask

from benchmarks.inputs import Inputs, photograph
from benchmarks.timing import Comparison, Row, in_turns, one_thread
from unsam_mm import PseudoMaskGenerator
from unsam_mm.masks.rle import Rle, encode_bitmaps
from unsam_mm.published.patch_tree import suppress_nested

_MAX_IOU = 0.9


def run(inputs: Inputs, n_masks: int = 500, repetitions: int = 3, shrink: int = 1) -> Row:
    """Suppresses masks among the largest regions of a photograph.

    Args:
        inputs: Unused.
        n_masks: Number of regions.
        repetitions: Runs of each side.
        shrink: The photograph is subsampled by this factor.
    """
    with one_thread():
        image = np.ascontiguousarray(photograph('coffee.png')[::shrink, ::shrink])
        tree = PseudoMaskGenerator.from_preset('default')(image)
        nodes = np.argsort(-tree.area, kind='stable')[:n_masks]
        first, end, areas = tree.first_leaf[nodes], tree.end_leaf[nodes], tree.area[nodes]
        masks = np.array([tree.mask(node) for node in nodes])
        rles = encode_bitmaps(masks)
        sides = {
            'ours': lambda: suppress_nested(first, end, areas, _MAX_IOU),
            'pixels': lambda: by_pixels(masks, areas, _MAX_IOU),
            'run lengths': lambda: by_run_lengths(rles, _MAX_IOU),
        }
        sides['ours']()  # compiles
        costs, kept = in_turns(sides, repetitions)
    height, width = tree.size_hw
    return Row(
        'nms',
        [
            Comparison(
                rival,
                costs['ours'],
                costs[name],
                f'{len(nodes)} masks of {height} x {width} px at IoU {_MAX_IOU}: the same {int(kept["ours"].sum())} '
                'survive (masks drawn beforehand)',
                bool((kept['ours'] == kept[name]).all()),
            )
            for name, rival in (('pixels', 'pixels, numpy'), ('run lengths', 'pycocotools, IoU of all pairs'))
        ],
    )


def by_pixels(masks: np.ndarray, areas: np.ndarray, max_iou: float) -> np.ndarray:
    """(N,) bool, True for the masks to keep, of (N, H, W) bool masks that are sorted by decreasing (N,) areas.

    For a fair comparison, pairs whose areas rule out an IoU above `max_iou` are not compared.
    """
    kept = np.ones(len(masks), bool)
    for i in range(len(masks)):
        if not kept[i]:
            continue
        later = np.arange(i + 1, len(masks))
        for j in later[kept[later] & (areas[later] > max_iou * areas[i])]:
            shared = np.count_nonzero(masks[i] & masks[j])
            kept[j] = shared <= max_iou * (areas[i] + areas[j] - shared)
    return kept


def by_run_lengths(rles: list[Rle], max_iou: float) -> np.ndarray:
    """(N,) bool, True for the masks to keep, of N masks that are sorted by decreasing areas."""
    above = coco_mask.iou(rles, rles, [0] * len(rles)) > max_iou
    kept = np.ones(len(rles), bool)
    for i in range(len(rles)):
        if kept[i]:
            kept[i + 1 :] &= ~above[i, i + 1 :]
    return kept
