"""Parts, wholes, similarity, review and links, on trees and arrays."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from skimage import data

from napari_unsam.levels.candidate_table import CandidateTable
from napari_unsam.levels.disjoint import Selection
from napari_unsam.levels.part_whole import linked, parents_by_overlap
from napari_unsam.levels.region_properties import RegionProperties, Scene
from napari_unsam.levels.review import ReviewQueue, certainty, stability
from napari_unsam.levels.similarity import region_features, similar_regions, similarity
from napari_unsam.levels.split_merge import (
    closest_region,
    larger_region,
    merge_writes,
    parts_of,
    region_ious,
    split_writes,
)
from napari_unsam.model.plane import Plane
from tests.test_napari.coin_tree import coin_tree
from tests.test_napari.stand_ins import PATCHES, patches_tree
from tests.trees import all_masks, random_trees
from unsam_mm.masks.hierarchy import MaskHierarchy

PLANE = Plane(shape=(4, 6), axes=(0, 1), index=(0, 0))


def written(labels, writes):
    """The labels after some writes."""
    labels = labels.copy()
    for write in writes:
        labels[write.box][write.mask] = write.label
    return labels


@given(random_trees())
@settings(max_examples=60, deadline=None)
def test_overlaps_with_all_regions_are_counted_without_drawing_them(made):
    _labels, tree, _parent = made
    mask = np.zeros(tree.size_hw, bool)
    mask[: 1 + tree.size_hw[0] // 2, tree.size_hw[1] // 3 :] = True
    rows = mask.any(axis=1)
    left = int(mask.any(axis=0).argmax())
    expected = [(mask & other).sum() / (mask | other).sum() for other in all_masks(tree)]
    assert region_ious(tree, mask[rows, left:], 0, left) == pytest.approx(np.array(expected))


def test_a_painted_object_is_found_in_the_tree_by_its_best_overlap():
    mask = PATCHES < 2
    mask[0, 0] = False
    assert closest_region([patches_tree()], mask) == (0, 4)


def test_another_tree_has_the_object_only_where_it_is_clearly_better():
    across = MaskHierarchy.from_merges(
        (np.indices((4, 6))[1] >= 3).astype(int), np.array([2, 2, -1]), np.array([0, 0, 1.0])
    )
    trees = [patches_tree(), across]
    assert closest_region(trees, PATCHES < 2)[0] == 0
    assert closest_region(trees, np.indices((4, 6))[1] >= 3)[0] == 1


def sliver_tree():
    """Two halves of 20 and 19 px and a sliver of 1 px that joins last."""
    labels = np.repeat([0, 1], 20).reshape(4, 10)
    labels[3, 9] = 2
    return MaskHierarchy.from_merges(labels, np.array([3, 3, 4, 4, -1]), np.array([0, 0, 0, 0.5, 1]))


def test_slivers_are_no_parts():
    tree = sliver_tree()
    assert sorted(tree.area[parts_of(tree, 4)]) == [19, 20]


def test_a_leaf_has_no_parts():
    assert len(parts_of(patches_tree(), 0)) == 0


def test_the_whole_of_a_part_is_more_than_a_sliver_larger_and_not_the_image():
    tree = patches_tree()
    assert larger_region(tree, 0) == 4
    assert larger_region(tree, 4) is None
    assert larger_region(sliver_tree(), 3) is None


def test_a_split_leaves_other_objects_alone_and_erases_what_no_part_holds():
    labels = np.where(PATCHES < 2, 7, 0)
    labels[0, 0] = 3
    after = written(labels, split_writes(PLANE, labels, 7, patches_tree(), np.array([0, 1]), 11))
    assert after[0, 0] == 3
    assert sorted(np.unique(after[PATCHES == 0])) == [3, 11]
    assert (after[PATCHES == 1] == 12).all()
    assert not (after == 7).any()


def test_a_merge_swallows_what_lies_in_the_whole_and_spares_what_only_reaches_into_it():
    labels = np.array([[5, 5, 6, 6, 6, 0], [5, 5, 6, 6, 6, 9], [0, 0, 0, 0, 0, 9], [0, 0, 0, 0, 0, 9]])
    writes, others = merge_writes(PLANE, labels, 5, patches_tree(), 4)
    after = written(labels, writes)
    assert others == [6]
    assert np.array_equal(after == 9, labels == 9)
    assert (after[:2, :5] == 5).all()
    assert after[0, 5] == 5
    assert not (after == 6).any()


def test_a_merge_takes_all_of_a_swallowed_object_away_from_outside_of_the_whole():
    labels = np.where(PATCHES == 0, 5, np.where(PATCHES == 1, 6, 0))
    labels[2, 5] = 6
    after = written(labels, merge_writes(PLANE, labels, 5, patches_tree(), 4)[0])
    assert np.array_equal(after, np.where(PATCHES < 2, 5, 0))


@given(random_trees())
@settings(max_examples=40, deadline=None)
def test_stability_is_a_share_of_the_levels(made):
    tree = made[1]
    spans = stability(tree)
    assert ((spans >= 0) & (spans <= 1)).all()


def test_a_region_that_only_loses_a_sliver_is_as_stable_as_without():
    tree = sliver_tree()
    spans = stability(tree)
    assert spans[3] == spans[4] == pytest.approx(1 - tree.level[3])


def test_the_least_certain_objects_come_first_and_rows_without_figures_before_them():
    rows = pd.DataFrame({'index': [1, 2, 3], 'score': [0.9, 0.1, np.nan], 'stability': [0.5, 0.2, np.nan]})
    assert certainty(rows).tolist() == [1.0, 0.5, 0.0]
    assert ReviewQueue.of(rows).labels == (3, 2, 1)


def test_the_queue_goes_on_after_the_current_object_and_comes_back_to_those_left():
    rows = pd.DataFrame({'index': [1, 2, 3], 'score': [0.1, 0.2, 0.3], 'reviewed': [False, True, np.nan]})
    queue = ReviewQueue.of(rows, current=1)
    assert (queue.done, queue.left, queue.next()) == (frozenset({2}), 2, 3)
    assert ReviewQueue.of(rows, current=3).next() == 1
    assert ReviewQueue.of(rows.assign(reviewed=True)).next() is None
    assert ReviewQueue.of(pd.DataFrame({'index': []})).next() is None


def test_classes_are_linked_from_part_to_whole():
    large = np.kron(PATCHES, np.ones((4, 4), int))
    tree = patches_tree()
    table = CandidateTable(
        MaskHierarchy.from_merges(large, tree.parent, tree.height, tree.score), (60 * large).astype(np.uint8)
    )

    def object_class(name, nodes):
        return table.object_class(name, Selection(np.zeros(len(nodes), int), np.array(nodes, int)), 0.5)

    cells, nuclei = linked([object_class('cells', [4]), object_class('nuclei', [0, 1, 3])])[::-1]
    assert nuclei.name == 'nuclei'
    assert nuclei.features.groupby('parent_id').size().to_dict() == {0: 1, 1: 2}
    assert nuclei.features['parent'].tolist() == ['cells', 'cells', '']
    assert cells.features['parent_id'].tolist() == [0]
    assert nuclei.features[['level', 'area_px']].values.tolist() == [[0.5, 64], [0.5, 128], [0.5, 64]]
    assert set(nuclei.features) >= {'index', 'granularity', 'score', 'stability'}


def test_parents_are_those_with_the_largest_share():
    parts = np.array([[1, 1, 1, 2, 2, 3]])
    wholes = np.array([[8, 8, 9, 0, 0, 9]])
    assert parents_by_overlap(parts, wholes) == {1: 8, 2: 0, 3: 9}


def test_all_coins_are_similar_to_one_coin_and_the_ground_is_not():
    tree = coin_tree()
    coins = np.flatnonzero(tree.score == np.float32(0.9))
    similarities = similarity(region_features(tree, RegionProperties.of(tree, Scene.of(data.coins()))), [coins[5]])
    assert similarities[coins[5]] == 1
    found = similar_regions(tree, similarities, 0.3)
    assert len(np.intersect1d(found, coins)) > len(coins) / 2
    assert tree.parent[found].min() > 0
    assert sum(tree.mask(node).astype(int) for node in found).max() == 1
    assert len(similar_regions(tree, similarities, 0.8)) < len(found)


def test_a_feature_in_which_examples_differ_counts_for_less():
    features = np.zeros((4, 10), np.float32)
    features[1, 0], features[2, 0], features[3, 0] = 6, 3, 3
    features[3, 1] = 3
    one, two = similarity(features, [0]), similarity(features, [0, 1])
    assert two[2] > one[2]
    assert two[2] > two[3]
