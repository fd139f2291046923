"""Divide-and-conquer: the fast conquer step finds what the plain one finds, and the two presets differ as they say."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tests.conftest import skip_without_weights
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import LabelRuns, decode_rles, draw_runs, encode_bitmaps, encode_runs, run_edges
from unsam_mm.published.patch_tree import (
    PatchClusters,
    bicubic_masks,
    cluster_patches,
    intersect_runs,
    suppress_masks,
    suppress_nested,
)
from unsam_mm.published.procedure import PAPER, RELEASE, PublishedProcedure, PublishedSettings, conquer_object

BENCHMARK = Path(__file__).resolve().parents[2] / 'benchmarks' / 'plain_published.py'
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope='module')
def plain_parts():
    """The conquer step done the plain way."""
    spec = importlib.util.spec_from_file_location('plain_published', BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module.plain_parts


def smooth_features(rng, rows, columns, channels=4):
    """(rows, columns, channels) features of a few blobs, so that clusters of all sizes come out."""
    centres = rng.uniform(0, 1, (6, 2)) * (rows, columns)
    place = np.indices((rows, columns)).transpose(1, 2, 0)[:, :, None] - centres
    near = np.exp(-(place**2).sum(axis=-1) / rng.uniform(2, 20, 6))
    noise = 0.3 * rng.standard_normal((rows, columns, channels))
    return (near @ rng.standard_normal((6, channels)) + noise).astype(np.float32)


def blob(rng, height, width):
    """(height, width) bool ellipse, at least one pixel large."""
    y, x = rng.integers(height), rng.integers(width)
    ys, xs = np.ogrid[:height, :width]
    reach_y, reach_x = rng.integers(1, height), rng.integers(1, width)
    return ((ys - y) / reach_y) ** 2 + ((xs - x) / reach_x) ** 2 <= 1


def rle_of(mask):
    return encode_bitmaps(mask[None])[0]


# The conquer step


@settings(max_examples=40)
@given(seed=SEEDS, window=st.sampled_from([None, 1, 4]))
def test_the_masks_are_those_of_the_plain_procedure(plain_parts, seed, window):
    rng = np.random.default_rng(seed)
    mask = blob(rng, *rng.integers(20, 90, 2))
    chosen = replace(
        RELEASE, nms_window=window, min_coverage=rng.choice([0.0, 0.5, 0.9]), min_patches=rng.choice([2, 4])
    )
    features = smooth_features(rng, *rng.integers(3, 14, 2))
    found, _ = conquer_object(features, rle_of(mask), chosen)
    expected = plain_parts(features, mask, chosen)
    assert {rle['counts'] for rle in found} == {rle_of(part)['counts'] for part in expected}


@settings(max_examples=60)
@given(SEEDS)
@example(247512)  # has a pixel within the rounding of float32 of the threshold
def test_bicubic_pixels_are_those_of_torch(seed):
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(2, 12, 2)
    height, width = rng.integers(1, 120, 2)
    clusters = cluster_patches(smooth_features(rng, rows, columns), (0.8, 0.5), min_patches=1)
    top, left = rng.integers(3, size=2)
    masks = bicubic_masks(clusters, (left, top, left + width, top + height), top + height + 1)
    for cluster, runs in enumerate(masks):
        patches = torch.tensor(clusters.patches(cluster)).float()[None, None]
        enlarged = torch.nn.functional.interpolate(patches, (int(height), int(width)), mode='bicubic')[0, 0].numpy()
        drawn = draw_runs(runs, top + height + 1, left, top, left + width, top + height)
        is_sure = np.abs(enlarged - (0.5 + 1e-5)) > 1e-6  # the order of float32 sums decides the others
        assert np.array_equal(drawn[is_sure], enlarged[is_sure] > 0.5 + 1e-5)


@settings(max_examples=60)
@given(SEEDS)
def test_clusters_nest_and_their_levels_get_coarser(seed):
    rng = np.random.default_rng(seed)
    inside = rng.random((9, 7)) < 0.8
    clusters = cluster_patches(smooth_features(rng, 9, 7), (0.7, 0.4, 0.0), min_patches=1, inside=inside)
    members = np.array([clusters.patches(k) for k in range(len(clusters))]).reshape(len(clusters), 9, 7)
    assert not members[:, ~inside].any()
    for level in clusters.levels.T:
        assert members[level].sum(axis=0, dtype=int).max(initial=0) <= 1
    for finer, coarser in zip(clusters.levels.T, clusters.levels.T[1:], strict=False):
        for fine in members[finer]:
            around = members[coarser] & fine
            assert all(not shared.any() or (shared == fine).all() for shared in around)


def test_the_cluster_that_holds_everything_is_never_a_part():
    clusters = cluster_patches(np.ones((4, 5, 3), np.float32), (0.5,), min_patches=1)
    assert len(clusters) == 0


# Suppression


def nested_intervals(rng):
    """Intervals of a random tree over (6, 8) patches, areas not rising, some of them twice."""
    grid = smooth_features(rng, 6, 8)
    clusters = cluster_patches(grid, tuple(np.linspace(0.95, -0.5, 8)), min_patches=1)
    chosen = rng.integers(len(clusters), size=2 * len(clusters)) if len(clusters) else np.zeros(0, int)
    sizes = clusters.end - clusters.first
    return clusters, chosen[np.argsort(-sizes[chosen], kind='stable')]


@settings(max_examples=100)
@given(seed=SEEDS, max_iou=st.floats(0.1, 0.95), window=st.sampled_from([None, 1, 4]))
def test_suppression_of_intervals_is_that_of_pixels(seed, max_iou, window):
    clusters, chosen = nested_intervals(np.random.default_rng(seed))
    masks = [np.kron(clusters.patches(k), np.ones((3, 2), bool)) for k in chosen]
    expected = np.ones(len(masks), bool)
    for i, larger in enumerate(masks):
        last = len(masks) if window is None else i + 1 + window
        for j in range(i + 1, min(last, len(masks))) if expected[i] else ():
            if (larger & masks[j]).sum() / (larger | masks[j]).sum() > max_iou:
                expected[j] = False
    first, end = clusters.first[chosen], clusters.end[chosen]
    assert np.array_equal(suppress_nested(first, end, 6 * (end - first), max_iou, window), expected)


@settings(max_examples=60)
@given(seed=SEEDS, max_iou=st.floats(0.1, 0.95))
@example(seed=9, max_iou=0.7)  # a pair of this IoU
def test_suppression_on_run_lengths_is_that_of_pixels(seed, max_iou):
    rng = np.random.default_rng(seed)
    masks = [blob(rng, 15, 22) for _ in range(12)]
    masks += [mask.copy() for mask in masks[:2]]
    kept: list[int] = []
    for i in sorted(range(len(masks)), key=lambda i: -masks[i].sum()):
        if all((masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum() <= max_iou for j in kept):
            kept.append(i)
    assert suppress_masks([rle_of(mask) for mask in masks], max_iou).tolist() == sorted(kept)


def test_the_window_of_the_release_is_filled_by_copies_of_one_cluster():
    """Five levels record one cluster: then the next in size, 0.95 of it, is not among the next four."""
    first, end = np.zeros(6, int), np.array([20] * 5 + [19])
    assert suppress_nested(first, end, end, 0.9).tolist() == [True] + 5 * [False]
    assert suppress_nested(first, end, end, 0.9, window=4).tolist() == [True] + 4 * [False] + [True]


# Runs


@settings(max_examples=60)
@given(seed=SEEDS, share=st.sampled_from([0.0, 0.1, 0.5, 0.97, 1.0]))
def test_runs_and_run_lengths_say_the_same(seed, share):
    mask = np.random.default_rng(seed).random((13, 17)) < share
    runs = run_edges(rle_of(mask))
    assert np.array_equal(draw_runs(runs, 13, 0, 0, 17, 13), mask)
    assert encode_runs(runs, (13, 17)) == rle_of(mask)


def test_run_lengths_of_large_images_are_read():
    mask = np.zeros((3000, 400), bool)
    mask[100:2900, 7:380] = mask[5, 3] = True
    assert encode_runs(run_edges(rle_of(mask)), mask.shape) == rle_of(mask)


@settings(max_examples=60)
@given(SEEDS)
def test_common_runs_are_the_common_pixels(seed):
    rng = np.random.default_rng(seed)
    a, b = (rng.random((11, 9)) < rng.random() for _ in range(2))
    common = intersect_runs(run_edges(rle_of(a)), run_edges(rle_of(b)))
    assert np.array_equal(draw_runs(common, 11, 0, 0, 9, 11), a & b)


def test_a_partition_gives_each_cluster_the_pixels_of_its_patches():
    rng = np.random.default_rng(0)
    clusters = cluster_patches(smooth_features(rng, 5, 6), (0.7, 0.2), min_patches=1)
    patch_of_pixel = rng.integers(30, size=(20, 25))
    runs = LabelRuns(np.argsort(clusters.order)[patch_of_pixel], 30, (3, 4), (30, 40))
    for k in range(len(clusters)):
        drawn = draw_runs(runs.edges(clusters.first[k], clusters.end[k]), 30, 3, 4, 28, 24)
        assert np.array_equal(drawn, clusters.patches(k).ravel()[patch_of_pixel])


# The whole procedure


@pytest.fixture(scope='module')
def small():
    """Changes to a preset that make it run in a second."""
    skip_without_weights()
    return {'maskcut_patches': 20, 'crop_patches': 16}


def two_boxes(image):
    """A divider that knows nothing about the image."""
    masks = np.zeros((2, *image.shape[:2]), bool)
    masks[0, 20:180, 30:200] = masks[1, 90:190, 150:290] = True
    return masks, np.array([0.9, 0.5], np.float32)


@pytest.mark.parametrize('preset', [PAPER, RELEASE], ids=['paper', 'release'])
def test_both_presets_give_the_same_masks_every_time(small, coffee, preset):
    first, second = (PublishedProcedure(replace(preset, **small)).find_masks(coffee) for _ in range(2))
    assert len(first[0]) > 3
    assert [rle['counts'] for rle in first[0]] == [rle['counts'] for rle in second[0]]
    assert first[1].tolist() == second[1].tolist()
    assert ((first[1] > 0) & (first[1] <= 1)).all()


def test_a_hierarchy_holds_every_mask_that_was_found(small, coffee):
    procedure = PublishedProcedure(replace(PAPER, **small))
    rles, _ = procedure.find_masks(coffee)
    selected = procedure(coffee).select()
    assert {rle['counts'] for rle in rles} <= {rle['counts'] for rle in selected.rles}


def test_parts_end_where_their_object_ends_in_the_paper_only(small, coffee):
    objects, _ = two_boxes(coffee)

    def outside(preset):
        chosen = replace(preset, nms_scope='per_mask', nms_window=None, max_area=1.0, **small)
        parts, _ = PublishedProcedure(chosen, divider=two_boxes).find_masks(coffee)
        assert len(parts) > 4
        return (decode_rles(parts, coffee.shape[:2]) & ~objects.any(axis=0)).any()

    assert not outside(PAPER)
    assert not outside(RELEASE)  # a box is its own object, and crops end there

    def one_ellipse(image):
        ys, xs = np.indices(image.shape[:2])
        return (((ys - 100) / 80) ** 2 + ((xs - 140) / 100) ** 2 < 1)[None], np.ones(1)

    ellipse = one_ellipse(coffee)[0][0]
    for preset, leaves in ((PAPER, False), (RELEASE, True)):
        parts, _ = PublishedProcedure(replace(preset, **small), divider=one_ellipse).find_masks(coffee)
        assert (decode_rles(parts, coffee.shape[:2]) & ~ellipse).any() == leaves


def test_no_two_masks_are_near_equal_in_the_paper(small, coffee):
    rles, _ = PublishedProcedure(replace(PAPER, **small), divider=two_boxes).find_masks(coffee)
    ious = coco_mask.iou(rles, rles, [0] * len(rles))
    assert (ious - np.eye(len(rles))).max() <= PAPER.nms_iou


def test_a_part_scores_less_than_its_object(small, coffee):
    _, scores = PublishedProcedure(replace(RELEASE, **small), divider=two_boxes).find_masks(coffee)
    assert scores[:2].tolist() == pytest.approx([0.9, 0.5])
    assert scores[2:].max() < 0.9


def test_the_lost_row_and_column_of_the_release_can_be_had(small, coffee):
    def reach(**changes):
        chosen = replace(RELEASE, **small, **changes)
        rles, _ = PublishedProcedure(chosen, divider=lambda image: (two_boxes(image)[0][:1], np.ones(1))).find_masks(
            coffee
        )
        parts = decode_rles(rles[1:], coffee.shape[:2]).any(axis=0)
        return np.flatnonzero(parts.any(axis=1))[-1], np.flatnonzero(parts.any(axis=0))[-1]

    assert reach() == (179, 199)
    assert reach(drop_last_row_column=True) == (178, 198)


@pytest.mark.parametrize(('preset', 'threshold'), [(PAPER, 0.3), (RELEASE, 0.1)], ids=['paper', 'release'])
def test_the_detector_of_cutler_plugs_in_with_the_threshold_of_the_preset(
    small, coffee, monkeypatch, preset, threshold
):
    cutler = pytest.importorskip('unsam_mm.published.cutler')
    made = []

    def make(score_threshold, device):
        made.append((score_threshold, device))
        return two_boxes

    monkeypatch.setattr(cutler, 'CutLERDivider', make)
    rles, scores = PublishedProcedure(replace(preset, divide='cutler', **small)).find_masks(coffee)
    assert made == [(threshold, 'cpu')]
    assert len(rles) == len(scores) > 2


def test_an_image_without_objects_has_no_masks(small, coffee):
    def nothing(image):
        return np.zeros((0, *image.shape[:2]), bool), np.zeros(0, np.float32)

    rles, scores = PublishedProcedure(replace(PAPER, **small), divider=nothing).find_masks(coffee)
    assert rles == []
    assert scores.shape == (0,)


def test_masks_larger_than_allowed_are_dropped(small, coffee):
    def everything(image):
        return np.ones((1, *image.shape[:2]), bool), np.ones(1)

    rles, _ = PublishedProcedure(replace(RELEASE, **small), divider=everything).find_masks(coffee)
    assert coco_mask.area(rles).max() <= 0.9 * coffee.shape[0] * coffee.shape[1]


def test_a_partition_keeps_the_parts_of_one_object_nested(small, coffee):
    def one_box(image):
        return two_boxes(image)[0][:1], np.ones(1)

    chosen = replace(RELEASE, refine='partition', **small)
    rles, _ = PublishedProcedure(chosen, divider=one_box).find_masks(coffee)
    masks = decode_rles(rles[1:], coffee.shape[:2])
    assert len(masks) > 2
    for i, mask in enumerate(masks):
        shared = (masks[i + 1 :] & mask).sum(axis=(1, 2))
        assert ((shared == 0) | (shared == masks[i + 1 :].sum(axis=(1, 2)))).all()


def test_a_refined_mask_replaces_its_old_self_and_a_strange_one_is_dropped(small, coffee, monkeypatch):
    from unsam_mm.published import refine

    def moved(image, mask):
        return np.roll(mask, 2, axis=1) if mask.sum() > 3000 else None

    monkeypatch.setattr(refine, 'mask_crf', moved)
    chosen = replace(RELEASE, max_area=1.0, **small)
    plain, _ = PublishedProcedure(chosen, divider=two_boxes).find_masks(coffee)
    refined, scores = PublishedProcedure(replace(chosen, refine='crf'), divider=two_boxes).find_masks(coffee)
    assert len(refined) == len(scores) == (coco_mask.area(plain) > 3000).sum()
    assert np.array_equal(decode_rles(refined[:1], coffee.shape[:2])[0], np.roll(two_boxes(coffee)[0][0], 2, axis=1))


def test_a_refining_network_runs_on_the_device_of_the_generator(small, monkeypatch):
    devices = []
    package = SimpleNamespace(Refiner=lambda device: devices.append(device))
    monkeypatch.setitem(sys.modules, 'segmentation_refinement', package)
    PublishedProcedure(replace(PAPER, refine='cascadepsp', **small), device='cpu:0', divider=two_boxes)
    assert devices == ['cpu:0']


def test_the_keys_of_dino_are_taken_as_they_are():
    assert not replace(PAPER, vit='dino_vitb8').is_centred
    assert PAPER.is_centred
    assert not replace(PAPER, centre=False).is_centred


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'divide': 'sam'}, 'divide'),
        ({'refine': 'magic'}, 'refine'),
        ({'crop_patches': 0}, 'crop_patches'),
        ({'nms_iou': 1.5}, 'nms_iou'),
        ({'nms_window': 4}, 'nms_window'),
        ({'thetas': (0.1, 0.6)}, 'thetas'),
        ({'thetas': ()}, 'thetas'),
        ({'thetas': (2.0, 0.5)}, 'thetas'),
        ({'thetas': (float('nan'), 0.5)}, 'thetas'),
        ({'thetas': (0.5, 0.5)}, 'thetas'),
        ({'maskcut_tau': float('nan')}, 'maskcut_tau'),
        ({'maskcut_max_corners': -1}, 'maskcut_max_corners'),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(UnSAMError, match=message):
        PublishedSettings(**change)


def test_clusters_know_their_patches():
    clusters = PatchClusters(np.array([2, 0, 1, 3]), np.array([0]), np.array([2]), np.ones((1, 1), bool), (2, 2))
    assert clusters.patches(0).tolist() == [[True, False], [True, False]]


def test_suppression_takes_more_masks_than_fit_into_a_byte():
    rles = encode_bitmaps(np.eye(300, dtype=bool).reshape(300, 20, 15))
    assert len(suppress_masks(rles, 0.9)) == 300
