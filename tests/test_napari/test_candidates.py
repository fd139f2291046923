import itertools
from dataclasses import replace

import numpy as np
from skimage import data

from napari_unsam._candidates import NO_CANDIDATES, distinct_candidates
from tests.test_napari.stand_ins import colour_tree, patches_tree
from unsam_mm.hierarchy import MaskHierarchy
from unsam_mm.prompting import click_scores


def test_the_mask_with_the_best_score_is_shown_first():
    tree = patches_tree()
    candidates = distinct_candidates(tree, tree.path(0, 0))
    assert candidates.nodes.tolist() == [0, 4, 6]
    assert candidates.node == 4


def test_the_whole_image_is_shown_first_only_where_there_is_nothing_else():
    tree = replace(patches_tree(), score=np.array([0.1, 0.2, 0.3, 0.1, 0.9, 0.8, 1.0]))
    assert distinct_candidates(tree, tree.path(0, 0)).node == 4
    assert distinct_candidates(tree, tree.path(0, 0)).stepped(1).node == 6
    assert distinct_candidates(tree, np.array([6])).node == 6


def test_masks_that_look_the_same_are_one_step():
    # A strip that grows pixel by pixel: node 40 + k holds the first k + 2 pixels, so areas 36 to 40 differ by a sliver.
    strip = np.arange(40)[None]
    parent = np.r_[40, np.arange(40, 79), np.arange(41, 79), -1]
    tree = MaskHierarchy.from_merges(strip, parent, np.r_[np.zeros(40), np.linspace(0.1, 1, 39)])
    candidates = distinct_candidates(tree, tree.path(0, 0))
    overlaps = [tree.iou(a, [b])[0] for a, b in itertools.pairwise(candidates.nodes)]
    assert len(tree.path(0, 0)) == 40
    assert len(candidates) < 25
    assert max(overlaps) <= 0.9


def test_candidates_on_a_photo_grow_and_begin_with_the_best_score():
    tree = colour_tree(data.coffee(), lambda fraction, message: None)
    path = tree.path(200, 300)
    candidates = distinct_candidates(tree, path)
    assert (np.diff(tree.area[candidates.nodes]) > 0).all()
    scores = click_scores(tree)
    assert scores[candidates.node] == scores[path].max()


def test_a_mask_on_screen_stays_while_it_still_fits():
    tree = patches_tree()
    assert distinct_candidates(tree, tree.path(0, 0), shown=6).node == 6
    assert distinct_candidates(tree, tree.path(0, 0), shown=5).node == 4


def test_steps_end_at_the_finest_and_the_coarsest_mask():
    tree = patches_tree()
    candidates = distinct_candidates(tree, tree.path(0, 0))
    assert candidates.stepped(1).node == 6
    assert candidates.stepped(9).node == 6
    assert candidates.stepped(-9).node == 0


def test_no_node_gives_no_candidate():
    assert distinct_candidates(patches_tree(), np.array([], int)) is NO_CANDIDATES
    assert NO_CANDIDATES.node is None
    assert NO_CANDIDATES.stepped(1).node is None
