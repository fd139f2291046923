import numpy as np
import pytest

from napari_unsam.model.candidates import NO_CANDIDATES, Candidates
from napari_unsam.model.mask import node_mask, predicted_mask
from tests.test_napari.stand_ins import patches_tree


@pytest.fixture
def tree():
    return patches_tree()


@pytest.fixture
def candidates(tree):
    """Three nested answers, of which the middle one is the best."""
    answers = [node_mask(tree, node) for node in (4, 6, 0)]
    return Candidates.from_masks(answers, tree.path(0, 0), tree)


def test_the_best_answer_is_shown_first_among_answers_by_area(candidates):
    assert [mask.area_px for mask in candidates.masks] == [4, 12, 24]
    assert (candidates.shown.area_px, candidates.rank) == (12, 2)


def test_steps_end_at_the_finest_and_the_coarsest_answer(candidates):
    assert candidates.stepped(1).shown.area_px == 24
    assert candidates.stepped(1).stepped(1).shown.area_px == 24
    assert candidates.stepped(-1).stepped(-1).shown.area_px == 4


def test_sliding_begins_at_the_region_most_like_the_mask_on_screen(tree):
    candidates = Candidates.from_masks([node_mask(tree, 6)], tree.path(0, 0), tree)
    assert candidates.stepped_in_chain(-1).shown.node == 4
    assert candidates.stepped_in_chain(-9).shown.node == 0
    assert candidates.stepped_in_chain(9).shown.node == 6


@pytest.mark.parametrize(('granularity', 'node'), [(0.0, 0), (0.85, 0), (0.9, 4), (0.97, 6), (1.0, 6)])
def test_a_granularity_shows_the_region_that_is_nearest_in_size(candidates, granularity, node):
    assert candidates.at_granularity(granularity).shown.node == node


def test_a_mask_that_was_on_screen_leads_the_answers_that_come_later(tree, candidates):
    alone = Candidates.from_masks([node_mask(tree, 0)])
    assert candidates.still_showing(alone.shown).rank == 1
    assert candidates.still_showing(node_mask(tree, 5)).shown.node == 5


def test_no_answer_gives_no_candidate():
    assert Candidates.from_masks([]) is NO_CANDIDATES
    assert NO_CANDIDATES.shown is None
    assert NO_CANDIDATES.stepped(1) is NO_CANDIDATES


def test_a_mask_that_is_a_region_of_the_tree_is_known_as_such(tree):
    found = predicted_mask(tree, np.ones((2, 6), bool), left=0, top=0, score=0.3)
    assert (found.node, found.area_px, found.box_xyxy) == (4, 12, (0, 0, 6, 2))
    assert found.granularity == pytest.approx(tree.granularity[4])


def test_a_mask_between_two_regions_has_the_granularity_of_its_own_area(tree):
    found = predicted_mask(tree, np.array([[1, 1, 1], [1, 1, 0]], bool), left=0, top=0, score=0.3)
    assert found.node is None
    assert found.granularity == pytest.approx(1 + np.log10(5 / 24) / 4)
