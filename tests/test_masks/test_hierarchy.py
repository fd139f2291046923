"""A region tree answers everything from intervals of leaf numbers; these tests compare with pixels."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trees import drawn, random_trees, trees_of_one_image
from unsam_mm import MaskHierarchy
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.masks.partition import Partition
from unsam_mm.masks.tree import Tree

#   6
#  / \
# 4   5     over four quarters of a 2 x 4 image
# |\  |\
# 0 1 2 3
QUARTERS = np.array([[0, 0, 2, 2], [1, 1, 3, 3]])
PARENT = np.array([4, 4, 5, 5, 6, 6, -1])
HEIGHT = np.array([0, 0, 0, 0, 0.2, 0.5, 0.9])


@pytest.fixture
def quarters():
    return MaskHierarchy.from_merges(QUARTERS, PARENT, HEIGHT)


def test_path_runs_from_the_finest_region_to_the_whole_image(quarters):
    assert quarters.path(y=1, x=0).tolist() == [1, 4, 6]


def test_cut_gives_each_pixel_to_one_region_of_that_level(quarters):
    halfway = quarters.level[5]
    assert quarters.cut(0.0).tolist() == [[1, 1, 3, 3], [2, 2, 4, 4]]
    assert quarters.cut(halfway).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    assert quarters.cut(1.0).tolist() == [[1] * 4] * 2


def test_the_level_counts_the_regions_that_are_left_on_a_logarithmic_scale(quarters):
    expected = [0, 0, 0, 0, 1 - np.log(3) / np.log(4), 0.5, 1]
    assert quarters.level.tolist() == pytest.approx(expected)


def test_the_granularity_is_the_logarithm_of_the_share_of_the_image(quarters):
    expected = [1 + np.log10(share) / 4 for share in (1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 2, 1 / 2, 1)]
    assert quarters.granularity.tolist() == pytest.approx(expected)


def test_selected_masks_come_best_first_and_know_their_parents(quarters):
    masks = quarters.select(max_masks=3)
    # Persistence: node 4 lasts from 0.2 to 0.9, then the leaves 2 and 3 from 0 to 0.5.
    assert masks.areas.tolist() == [4, 2, 2]
    assert (np.diff(masks.scores) <= 0).all()
    assert masks.parents.tolist() == [-1, -1, -1]
    everything = quarters.select()
    whole = int(np.flatnonzero(everything.areas == 8)[0])
    assert sorted(everything.parents.tolist()).count(whole) == 2


def test_leaving_a_mask_out_hands_its_children_to_the_next_ancestor(quarters):
    chain = quarters.to_mask_set([0, 4, 6])
    assert chain.parents.tolist() == [1, 2, -1]
    assert chain[[0, 2]].parents.tolist() == [1, -1]
    assert chain[::2].areas.tolist() == [2, 8]
    assert chain[1].to_bitmaps()[0].sum() == 4


def test_coco_records_carry_the_parent_relation(quarters):
    leaf = quarters.to_mask_set([0, 4]).to_coco(image_id=7)[0]
    assert leaf['image_id'] == 7
    assert leaf['bbox'] == [0, 0, 2, 1]
    assert leaf['area'] == 2
    assert leaf['parent'] == 1
    assert isinstance(leaf['segmentation']['counts'], str)


def test_a_lower_parent_is_raised_to_its_children():
    tree = MaskHierarchy.from_merges(QUARTERS, PARENT, np.array([0, 0, 0, 0, 0.7, 0.5, 0.6]))
    assert (tree.height[tree.parent[:-1]] >= tree.height[:-1]).all()


@pytest.mark.parametrize(
    ('parent', 'reason'),
    [
        pytest.param([4, 4, 5, 5, 6, 6, 0], 'one root', id='no root'),
        pytest.param([4, 4, 5, 5, 3, 6, -1], 'parent.i. > i', id='parent before child'),
        pytest.param([5, 5, 5, 5, 5, -1], '4 labels, but the tree has 5 leaves', id='a leaf among the inner nodes'),
    ],
)
def test_what_is_no_tree_over_these_leaves_is_refused(parent, reason):
    with pytest.raises(UnSAMError, match=reason):
        MaskHierarchy.from_merges(QUARTERS, np.array(parent), np.zeros(len(parent)))


def test_labels_with_a_gap_are_refused():
    with pytest.raises(UnSAMError, match='without gaps, got 0..4'):
        MaskHierarchy.from_merges(np.where(QUARTERS == 3, 4, QUARTERS), PARENT, HEIGHT)


def test_every_node_needs_a_height():
    with pytest.raises(UnSAMError, match='every node needs a height'):
        MaskHierarchy.from_merges(QUARTERS, PARENT, HEIGHT[:-1])


def replaced(values, at, value):
    """A copy of an array as floats with another value at one place."""
    values = np.array(values, np.float64)
    values[at] = value
    return values


SCORE = np.full(len(PARENT), 0.5)


@pytest.mark.parametrize(
    ('fields', 'reason'),
    [
        pytest.param({'score': SCORE[:-1]}, 'every node needs a score', id='a score too few'),
        pytest.param(
            {'score': replaced(SCORE, 2, np.nan)}, r'score must lie in \[0, 1\], got nan', id='NaN for a score'
        ),
        pytest.param({'score': replaced(SCORE, 2, -3)}, r'score must lie in \[0, 1\], got -3', id='a score of -3'),
        pytest.param({'score': replaced(SCORE, 2, 9)}, r'score must lie in \[0, 1\], got 9', id='a score of 9'),
        pytest.param({'score': SCORE.astype(str)}, 'score must be numbers', id='text for scores'),
        pytest.param({'height': replaced(HEIGHT, 5, np.nan)}, 'height must be finite, got nan', id='NaN for a height'),
        pytest.param(
            {'height': replaced(HEIGHT, 5, np.inf)}, 'height must be finite, got inf', id='an infinite height'
        ),
        pytest.param({'height': replaced(HEIGHT, 5, 1e300)}, 'height must be finite, got 1e.300', id='beyond float32'),
        pytest.param({'height': HEIGHT.astype(object)}, 'height must be numbers', id='objects for heights'),
        pytest.param({'parent': PARENT.astype(float)}, 'parent must be whole numbers', id='floats for parents'),
        pytest.param({'parent': PARENT[None]}, 'parent must be whole numbers', id='parents in a table'),
        pytest.param({'parent': replaced(PARENT, 1, 99).astype(int)}, 'parent.i. > i', id='a parent that is no node'),
        pytest.param({'leaf_labels': QUARTERS + 0.5}, 'leaf labels must be whole numbers', id='floats for labels'),
        pytest.param({'leaf_labels': QUARTERS[0]}, 'leaf labels must be whole numbers', id='a row for a map'),
        pytest.param({'leaf_labels': QUARTERS[:0]}, 'leaf labels must be whole numbers', id='no pixel'),
        pytest.param({'leaf_labels': QUARTERS - 1}, 'without gaps, got -1', id='a label below zero'),
        pytest.param({'leaf_labels': QUARTERS.astype(np.uint64) + 2**63}, 'without gaps', id='labels of 64 bits'),
    ],
)
def test_numbers_that_a_tree_cannot_have_are_refused(fields, reason):
    arguments = {'leaf_labels': QUARTERS, 'parent': PARENT, 'height': HEIGHT, 'score': SCORE, **fields}
    with pytest.raises(UnSAMError, match=reason):
        MaskHierarchy.from_merges(**arguments)


@pytest.mark.parametrize(
    ('fields', 'reason'),
    [
        ({'score': np.full(7, 2.0)}, 'score must lie in'),
        ({'leaf_labels': np.zeros((2, 4), int)}, 'the label map has 1 labels, but the tree has 4 leaves'),
    ],
)
def test_a_tree_that_is_changed_is_checked_again(quarters, fields, reason):
    arrays = {'leaf_labels': quarters.leaf_labels, 'parent': PARENT, 'height': HEIGHT, 'score': SCORE, **fields}
    with pytest.raises(UnSAMError, match=reason):
        MaskHierarchy(Partition(arrays['leaf_labels']), Tree(arrays['parent'], arrays['height']), arrays['score'])


def test_alternatives_are_trees_over_the_same_pixels(quarters):
    other = MaskHierarchy.from_merges(QUARTERS.T, PARENT, HEIGHT)
    with pytest.raises(UnSAMError, match='alternatives must be trees of the same image'):
        replace(quarters, alternatives=(other,))


def test_trees_of_one_partition_share_what_is_measured_of_it(quarters):
    other = MaskHierarchy.from_merges(quarters.partition, [4, 5, 4, 5, 6, 6, -1], HEIGHT)
    assert other.partition is quarters.partition
    assert replace(quarters, score=SCORE).partition is quarters.partition
    assert [other.mask(node).sum() for node in range(7)] == other.area.tolist()
    assert other.mask(4).tolist() == (np.isin(QUARTERS, [0, 2])).tolist()


@given(trees_of_one_image())
def test_a_saved_hierarchy_comes_back_as_it_was(trees):
    saved = replace(trees[0], alternatives=tuple(trees[1:]))
    with tempfile.TemporaryDirectory() as folder:
        saved.save(Path(folder, 'trees.npz'))
        loaded = MaskHierarchy.load(Path(folder, 'trees.npz'))
    for one, other in zip(saved.trees, loaded.trees, strict=True):
        for name in ('leaf_labels', 'parent', 'height', 'score'):
            assert getattr(one, name).tolist() == getattr(other, name).tolist()


@pytest.mark.parametrize(
    'spoil',
    [
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: path.write_bytes(b''),
        lambda path: path.write_text('{}'),
        lambda path: np.savez(path, hierarchy_format=np.int64(1)),
        lambda path: np.savez(path, hierarchy_format=1, leaf_labels_0=QUARTERS, parent_0=PARENT),
        lambda path: np.savez(path, leaf_labels=QUARTERS),
        lambda path: path.unlink(),
    ],
)
def test_a_damaged_file_of_a_hierarchy_is_named(quarters, tmp_path, spoil):
    path = tmp_path / 'trees.npz'
    quarters.save(path)
    spoil(path)
    with pytest.raises(StoreError, match=r'trees\.npz'):
        MaskHierarchy.load(path)


@pytest.mark.parametrize(('y', 'x'), [(-1, 0), (2, 0), (0, 4)])
def test_a_pixel_outside_the_image_is_refused(quarters, y, x):
    with pytest.raises(UnSAMError, match='outside the 2 x 4 image'):
        quarters.path(y, x)


@pytest.mark.parametrize('call', [lambda tree: tree.cut(1.5), lambda tree: tree.select(0)])
def test_settings_out_of_range_are_refused(quarters, call):
    with pytest.raises(UnSAMError, match='must'):
        call(quarters)


def test_a_node_with_score_0_is_in_the_tree_but_is_no_mask(quarters):
    scored = replace(quarters, score=np.array([0, 0.5, 0, 0, 0.25, 0, 0], np.float32))
    assert scored.select().areas.tolist() == [2, 4]
    assert scored.cut(0.0).max() == 4


def test_a_small_mask_is_left_out_on_request(quarters):
    assert sorted(quarters.select(min_area_px=3).areas.tolist()) == [4, 4, 8]


def test_masks_of_alternatives_join_in_the_order_of_scores(quarters):
    """The alternative holds the upper row, which crosses the halves, and the image, which the tree holds too."""
    rows = MaskHierarchy.from_merges(np.array([[0] * 4, [1] * 4]), np.array([2, 2, -1]), np.array([0, 0, 1]))
    rows = replace(rows, score=np.array([0.6, 0, 0.8], np.float32))
    main = replace(quarters, score=np.array([0.2, 0, 0, 0, 0.7, 0, 0.9], np.float32), alternatives=(rows,))
    masks = main.select()
    assert masks.areas.tolist() == [8, 4, 4, 2]
    assert masks.scores.tolist() == pytest.approx([0.9, 0.7, 0.6, 0.2])
    assert masks.to_bitmaps()[2].tolist() == [[True] * 4, [False] * 4]
    assert masks.parents.tolist() == [-1, 0, 0, 1]
    assert main.select(max_masks=2).areas.tolist() == [8, 4]


@given(random_trees())
def test_every_node_is_the_union_of_its_leaves(case):
    labels, tree, parent = case
    n_leaves = tree.n_leaves
    for node in range(n_leaves, len(tree)):
        assert (tree.mask(node) == drawn(labels, parent, node)).all()
    # Leaves are renumbered, but they stay the same regions.
    assert len(np.unique(labels * n_leaves + tree.leaf_labels)) == n_leaves


@given(random_trees())
def test_areas_boxes_and_run_lengths_equal_those_of_the_pixels(case):
    _, tree, _ = case
    masks = tree.to_mask_set(np.arange(len(tree)))
    bitmaps = masks.to_bitmaps()
    for node, bitmap in enumerate(bitmaps):
        ys, xs = np.nonzero(bitmap)
        assert (bitmap == tree.mask(node)).all()
        assert masks.areas[node] == len(ys)
        assert masks.boxes_xyxy[node].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@given(random_trees(), st.data())
def test_overlap_needs_no_pixels(case, data):
    _, tree, _ = case
    node = data.draw(st.integers(0, len(tree) - 1))
    expected = [
        (tree.mask(node) & tree.mask(other)).sum() / (tree.mask(node) | tree.mask(other)).sum()
        for other in range(len(tree))
    ]
    assert tree.iou(node, np.arange(len(tree))) == pytest.approx(expected)


@given(random_trees(), st.floats(0, 1))
def test_every_cut_tiles_the_image_with_whole_nodes(case, level):
    _, tree, _ = case
    labels, nodes = tree.cut(level=level), tree.cut_nodes(level=level)
    assert (tree.level[nodes] <= level).all() or len(nodes) == tree.n_leaves
    for label, node in enumerate(nodes, start=1):
        assert ((labels == label) == tree.mask(node)).all()
    assert labels.min() == 1


@given(random_trees(), st.floats(0, 1), st.floats(0, 1))
def test_a_coarser_cut_never_splits_a_region(case, first, second):
    _, tree, _ = case
    fine, coarse = tree.cut(min(first, second)), tree.cut(max(first, second))
    pairs = np.unique(np.stack([fine.ravel(), coarse.ravel()]), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1]


@given(random_trees())
def test_granularity_and_level_grow_from_child_to_parent(case):
    _, tree, _ = case
    for values in (tree.granularity, tree.level):
        assert (values[tree.parent[:-1]] >= values[:-1]).all()
        assert values[-1] == 1


@given(trees_of_one_image(), st.integers(1, 30), st.integers(1, 5))
def test_a_selection_of_several_trees_holds_the_best_masks_once_best_first(trees, max_masks, min_area_px):
    best = {}
    for tree in trees:
        for node in np.flatnonzero((tree.score > 0) & (tree.area >= min_area_px)):
            pixels = tree.mask(node).tobytes()
            best[pixels] = max(best.get(pixels, 0), float(tree.score[node]))
    masks = replace(trees[0], alternatives=tuple(trees[1:])).select(max_masks, min_area_px)
    assert masks.scores.tolist() == sorted(best.values(), reverse=True)[:max_masks]
    selected = [bitmap.tobytes() for bitmap in masks.to_bitmaps()]
    assert len(set(selected)) == len(selected)
    assert [best[pixels] for pixels in selected] == masks.scores.tolist()


@given(trees_of_one_image(), st.integers(1, 30))
def test_the_parent_is_the_smallest_mask_that_holds_a_mask_of_whichever_tree(trees, max_masks):
    masks = replace(trees[0], alternatives=tuple(trees[1:])).select(max_masks)
    bitmaps = masks.to_bitmaps()
    assert masks.areas.tolist() == bitmaps.sum(axis=(1, 2)).tolist()
    for bitmap, area, parent in zip(bitmaps, masks.areas, masks.parents, strict=True):
        larger = [i for i in np.flatnonzero(masks.areas > area) if not (bitmap & ~bitmaps[i]).any()]
        assert (parent in larger and masks.areas[parent] == masks.areas[larger].min()) if larger else parent == -1


@given(trees_of_one_image())
def test_no_mask_of_several_trees_is_coarser_than_one_that_holds_it(trees):
    masks = replace(trees[0], alternatives=tuple(trees[1:])).select()
    bitmaps = masks.to_bitmaps()
    for i, bitmap in enumerate(bitmaps):
        holders = [j for j in range(len(masks)) if not (bitmap & ~bitmaps[j]).any()]
        assert (masks.granularity[i] <= masks.granularity[holders]).all()


def test_no_two_masks_of_a_real_image_are_equal(coins_tree):
    masks = coins_tree.select()
    assert len({rle['counts'] for rle in masks.rles}) == len(masks) == 1000
