"""What speaks for a region is measured right, and regions of several trees are put in one order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.pseudo_masks.conquer import SuperpixelMeans, grow_trees
from unsam_mm.pseudo_masks.level_sets import level_set_tree
from unsam_mm.pseudo_masks.ranking import RankingSettings, UnrankedTree, measure_cues, rank_regions
from unsam_mm.pseudo_masks.superpixels import ColourEdges, Superpixels, find_superpixels

SETTINGS = RankingSettings()


@pytest.fixture(scope='module')
def entry(coffee):
    """A tree over the superpixels of a small part of a photograph."""
    colour = ColourEdges.from_image(np.ascontiguousarray(coffee[60:120, 90:170]))
    superpixels = find_superpixels(colour)
    grid = np.random.default_rng(0).standard_normal((6, 8, 5)).astype(np.float32)
    means = SuperpixelMeans.from_features(superpixels, grid)
    (tree,) = grow_trees(superpixels, means, [(0.6, 0.6)])
    return UnrankedTree(tree, superpixels, np.ones(len(tree), bool))


def flat_tree(labels: np.ndarray, image: np.ndarray | None = None) -> UnrankedTree:
    """All labels directly below the whole image, which is plain unless given."""
    image = np.full((*labels.shape, 3), 90, np.uint8) if image is None else image
    superpixels = Superpixels(labels.astype(np.int32), ColourEdges.from_image(image))
    parent = np.append(np.full(len(superpixels), len(superpixels)), -1) if len(superpixels) > 1 else np.array([-1])
    tree = MaskHierarchy.from_merges(superpixels.labels, parent, (parent == -1).astype(float))
    return UnrankedTree(tree, superpixels, np.ones(len(tree), bool))


def discs(centres_yx: list[tuple[int, int]], radius: float, shape: tuple[int, int] = (60, 120)) -> np.ndarray:
    """(H, W) int: discs numbered from 1 on a ground of 0."""
    y, x = np.indices(shape)
    labels = np.zeros(shape, int)
    for number, (row, column) in enumerate(centres_yx, start=1):
        labels[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = number
    return labels


def node_at(tree: MaskHierarchy, y: int, x: int) -> int:
    return int(tree.leaf_labels[y, x])


# Cues


def sides(values: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Values on both sides of every horizontal and vertical pixel side within the image."""
    return [(values[:, :-1], values[:, 1:]), (values[:-1], values[1:])]


def side_strengths(entry: UnrankedTree) -> list[np.ndarray]:
    """For every pixel side the mean gradient along the whole border of the two superpixels that it parts."""
    gradients = [(a + b) / 2 for a, b in sides(entry.superpixels.colour.strength.astype(np.float64))]
    pairs = [np.stack([np.minimum(a, b), np.maximum(a, b)], axis=-1) for a, b in sides(entry.superpixels.labels)]
    keys = [pair[..., 0].astype(np.int64) * len(entry.superpixels) + pair[..., 1] for pair in pairs]
    flat = np.concatenate([key.ravel() for key in keys])
    weights = np.concatenate([gradient.ravel() for gradient in gradients])
    unique, index = np.unique(flat, return_inverse=True)
    means = np.bincount(index, weights) / np.bincount(index)
    return [means[np.searchsorted(unique, key)] for key in keys]


def test_cues_equal_those_counted_pixel_by_pixel(entry):
    tree, cues = entry.tree, measure_cues(entry)
    typical = entry.superpixels.colour.strength.mean()
    strengths = side_strengths(entry)
    for node in range(0, len(tree) - 1, 5):
        mask = tree.mask(node)
        around = np.concatenate([strength[a != b] for strength, (a, b) in zip(strengths, sides(mask), strict=True)])
        perimeter = sum((a != b).sum() for a, b in sides(np.pad(mask, 1)))
        harmonic = 1 / np.mean(1 / (around + 0.02 * typical))
        assert cues.roughness[node] == pytest.approx(perimeter / np.sqrt(mask.sum()))
        assert cues.edge[node] == pytest.approx(harmonic / typical, rel=1e-4)
        assert cues.area[node] == mask.sum()


def test_fullness_is_the_area_over_that_of_the_ellipse_with_the_same_moments(entry):
    fullness = measure_cues(entry).fullness
    for node in range(0, len(entry.tree), 7):
        y, x = np.nonzero(entry.tree.mask(node))
        spread = np.cov(np.stack([y, x]), bias=True).reshape(2, 2) + np.eye(2) / 12
        assert fullness[node] == pytest.approx(len(y) / (4 * np.pi * np.sqrt(np.linalg.det(spread))), rel=1e-6)


@pytest.mark.parametrize('angle', [0, 0.6, 1.2])
def test_an_ellipse_is_full_a_rectangle_nearly_and_a_ring_is_not(angle):
    y, x = np.indices((90, 120)) - np.array([45, 60])[:, None, None]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    radius = np.sqrt((along / 38) ** 2 + (across / 16) ** 2)
    shapes = {
        'ellipse': radius <= 1,
        'rectangle': (abs(along) <= 34) & (abs(across) <= 12),
        'ring': (radius <= 1) & (radius > 0.8),
    }
    fullness = {name: measure_cues(flat_tree(mask)).fullness[1] for name, mask in shapes.items()}
    assert fullness['ellipse'] == pytest.approx(1, abs=0.01)
    assert fullness['rectangle'] == pytest.approx(3 / np.pi, abs=0.01)
    assert fullness['ring'] < 0.3


def test_persistence_is_how_long_a_region_lasts_over_the_median_of_its_tree():
    labels = np.arange(4)[None].repeat(3, axis=0)
    superpixels = flat_tree(labels).superpixels
    tree = MaskHierarchy.from_merges(labels, np.array([4, 4, 5, 6, 5, 6, -1]), np.array([0, 0, 0, 0, 0.2, 0.3, 0.9]))
    persistence = measure_cues(UnrankedTree(tree, superpixels, np.ones(7, bool))).persistence
    rises = np.array([0.2, 0.2, 0.3, 0.9, 0.1, 0.6, 0])
    assert persistence == pytest.approx(rises / np.median(rises[:-1]) + 0.01, rel=1e-5)


def test_one_open_stretch_makes_an_edge_weak():
    """A square with a sharp outline, and one of which a quarter has no edge at all: it goes on to the right."""
    labels = np.zeros((60, 120), int)
    labels[20:40, 20:40], labels[20:40, 80:100], labels[20:40, 100:] = 1, 2, 3
    image = np.full((60, 120, 3), 60, np.uint8)
    image[labels > 0] = 180
    cues = measure_cues(flat_tree(labels, image))
    tree = flat_tree(labels, image).tree
    closed, opened = cues.edge[node_at(tree, 30, 30)], cues.edge[node_at(tree, 30, 90)]
    assert 0 < opened < 0.6 * closed  # a quarter of the outline costs more than a quarter


def test_cues_are_finite_and_positive_whatever_the_picture():
    for labels in (np.zeros((2, 3)), np.arange(6).reshape(1, 6), np.indices((4, 5)).sum(axis=0) % 2):
        cues = measure_cues(flat_tree(labels))
        for values in vars(cues).values():
            assert np.isfinite(values).all()
            assert (values > 0).all()


# Order


def test_an_object_with_an_edge_all_around_beats_a_part_of_the_ground():
    labels = discs([(30, 30), (30, 90)], 15)
    image = np.full((60, 120, 3), 60, np.uint8)
    image[labels == 1] = 200  # the other disc is not there
    entry = flat_tree(labels, image)
    ranked = rank_regions([entry], SETTINGS)
    assert ranked.score[node_at(ranked, 30, 30)] == ranked.score.max() == 1
    assert ranked.score[node_at(ranked, 30, 30)] > 3 * ranked.score[node_at(ranked, 30, 90)]


def test_what_only_tiles_the_image_has_score_0():
    entry = flat_tree(discs([(30, 30), (30, 90)], 15))
    ranked = rank_regions([replace(entry, is_mask=np.array([False, True, True, True]))], SETTINGS)
    assert ranked.score[node_at(ranked, 0, 0)] == 0
    assert (np.delete(ranked.score, node_at(ranked, 0, 0)) > 0).all()


def test_equal_regions_of_two_trees_are_ranked_once(entry):
    alone, twice = rank_regions([entry], SETTINGS), rank_regions([entry, entry], SETTINGS)
    assert not twice.alternatives[0].score.any()
    assert len(twice.select(10_000)) == len(alone.select(10_000)) == len(entry.tree)


def test_an_object_that_comes_back_in_a_little_other_shape_is_held_back():
    """Discs of radius 15 and 16 in two trees, and nothing else; they share 0.88 of their pixels."""
    one, other = flat_tree(discs([(30, 30)], 15)), flat_tree(discs([(30, 30)], 16))

    def scores(max_decay: float) -> np.ndarray:
        settings = RankingSettings(max_decay=max_decay, iou_power=3)
        ranked = rank_regions([one, other], settings)
        (alternative,) = ranked.alternatives
        return np.array([ranked.score[node_at(ranked, 30, 30)], alternative.score[node_at(alternative, 30, 30)]])

    areas = [(discs([(30, 30)], radius) > 0).sum() for radius in (15, 16)]
    first = scores(0).argmax()
    before, after = scores(0), scores(0.6)
    assert after[first] == before[first]
    assert after[1 - first] / before[1 - first] == pytest.approx(1 - 0.6 * (areas[0] / areas[1]) ** 3, rel=1e-4)


def test_a_region_of_which_all_trees_have_a_like_beats_one_that_a_single_tree_finds():
    """Two equal discs in a picture; the second tree has only the left one, in nearly the same shape."""
    image = np.full((60, 120, 3), 60, np.uint8)
    both = discs([(30, 30), (30, 89)], 15)
    image[both > 0] = 200
    trees = [flat_tree(both, image), flat_tree(discs([(30, 30)], 15.5), image)]

    def scores(cross_tree_consensus: float) -> tuple[float, float]:
        ranked = rank_regions(trees, RankingSettings(cross_tree_consensus=cross_tree_consensus, max_decay=0))
        return ranked.score[node_at(ranked, 30, 30)], ranked.score[node_at(ranked, 30, 89)]

    left, right = scores(cross_tree_consensus=0)
    assert left == pytest.approx(right, rel=1e-3)
    left, right = scores(cross_tree_consensus=1)
    assert left > 1.5 * right


def test_regions_beyond_the_candidates_come_after_all_of_them(entry, coffee):
    """The order of quality is kept below the candidates, and everything that is a mask keeps a score."""
    level_sets = level_set_tree(entry.superpixels.colour, bright=True)
    ranked = rank_regions([entry, level_sets], RankingSettings(candidates=10))
    scores = np.sort(np.concatenate([ranked.score, ranked.alternatives[0].score]))[::-1]
    everything = rank_regions([entry, level_sets], SETTINGS)
    n_masks = int((everything.score > 0).sum() + (everything.alternatives[0].score > 0).sum())
    assert (scores > 0).sum() == n_masks
    assert scores[0] == 1
    assert scores[10] < scores[9]


def test_all_trees_of_one_picture_stay_as_they_are(entry):
    level_sets = [level_set_tree(entry.superpixels.colour, bright) for bright in (True, False)]
    ranked = rank_regions([entry, *level_sets], SETTINGS)
    assert ranked.partition is entry.tree.partition
    assert ranked.tree is entry.tree.tree
    assert [tree.parent.tolist() for tree in ranked.alternatives] == [e.tree.parent.tolist() for e in level_sets]
    for tree in (ranked, *ranked.alternatives):
        assert 0 <= tree.score.min() <= tree.score.max() <= 1


# Settings


@pytest.mark.parametrize(
    'wrong',
    [
        {'candidates': 0},
        {'candidates': np.inf},
        {'max_decay': -0.1},
        {'max_decay': 1.5},
        {'iou_power': -1.0},
        {'edge': np.nan},
        {'cross_tree_consensus': np.inf},
        {'roughness': -np.inf},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(UnSAMError, match=f'^{name}=.* is out of range; candidates must be at least 1'):
        RankingSettings(**wrong)
