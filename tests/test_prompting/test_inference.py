"""Masks for clicks: they agree with every click, and are centred on them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from tests.trees import random_trees
from unsam_mm.evaluation.click_simulation import simulate_clicks
from unsam_mm.evaluation.prompt_data import Segment
from unsam_mm.prompting.inference import ClickInference, masks_of
from unsam_mm.prompting.nested_masks import (
    CandidateMask,
    LabelMap,
    SamplingGrid,
    click_centrality,
    empty_mask,
    relative_depth,
)
from unsam_mm.prompting.prompt import Prompt
from unsam_mm.prompting.tree_engine import TreeEngine, TreeSource

COIN_XY, NEXT_COIN_XY, FAR_COIN_XY = (44, 55), (99, 55), (216, 56)  # of skimage.data.coins()


@st.composite
def clicks_on(draw, tree, max_clicks=5):
    height, width = tree.size_hw
    pixels = st.tuples(st.integers(0, width - 1), st.integers(0, height - 1))
    points = np.array(draw(st.lists(pixels, min_size=1, max_size=max_clicks, unique=True)), np.int64)
    positive = np.array(draw(st.lists(st.booleans(), min_size=len(points), max_size=len(points))))
    positive[0] = True
    return points, positive


def answered(inference, points, positive, box=None, mask_input=None):
    answer = inference.answer(Prompt.checked(inference.source.grid.size_hw, points, positive, box, mask_input))
    return masks_of(answer.candidates, inference.source.grid.size_hw), answer.scores


@pytest.fixture(scope='module')
def coins_clicks(coins_tree):
    return ClickInference(TreeSource(coins_tree, all_trees=True))


@given(random_trees(), st.data())
def test_every_mask_agrees_with_every_click(case, data):
    tree = case[1]
    points, positive = data.draw(clicks_on(tree))
    masks, scores = answered(ClickInference(TreeSource(tree)), points, positive)
    assert 1 <= len(masks) == len(scores) <= 6
    assert (masks[:, points[:, 1], points[:, 0]] == positive).all()
    assert ((scores > 0) & (scores <= 1)).all()
    assert (np.diff(scores) <= 0).all()


@given(random_trees(), st.data())
def test_earlier_prompts_do_not_change_the_masks(case, data):
    tree = case[1]
    points, positive = data.draw(clicks_on(tree))
    asked_before = ClickInference(TreeSource(tree))
    for count in range(1, len(points)):
        answered(asked_before, points[:count], positive[:count])
    masks, scores = answered(asked_before, points, positive)
    fresh_masks, fresh_scores = answered(ClickInference(TreeSource(tree)), points, positive)
    assert (masks == fresh_masks).all()
    assert (scores == fresh_scores).all()


@settings(max_examples=60)
@given(random_trees(), st.data())
def test_centredness_is_the_depth_of_the_click_in_the_error_region(case, data):
    tree = case[1]
    source = TreeSource(tree)
    (point,), _ = data.draw(clicks_on(tree, max_clicks=1))
    adds, positive = data.draw(st.booleans()), data.draw(st.booleans())
    shown, start = (
        data.draw(st.sampled_from([tree.mask(node) for node in range(len(tree))] + [np.zeros(tree.size_hw, bool)]))
        for _ in range(2)
    )
    base = CandidateMask((), start.ravel(), 0.0)  # images this small have a point for each pixel
    (nested,) = source.at_point(point)
    values = click_centrality(base, nested, adds, shown.ravel(), source.grid.click(point, positive))
    for number, value in enumerate(values):
        piece = np.zeros(tree.size_hw, bool)
        nested.draw([number], [piece])
        meant = start | piece if adds else start & ~piece
        wrong = meant & ~shown if positive else shown & ~meant
        depth = ndimage.distance_transform_edt(np.pad(wrong, 1))[1:-1, 1:-1][point[1], point[0]]
        expected = max(depth, 0.5) / np.sqrt(max((meant != shown).sum(), 1) / np.pi)
        assert value == pytest.approx(min(expected, 1.0))


@given(
    arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.booleans()),
    st.booleans(),
    st.data(),
)
def test_relative_depth_is_the_depth_over_the_largest_depth(meant, positive, data):
    shown = data.draw(arrays.arrays(bool, meant.shape, elements=st.booleans()))
    y, x = (data.draw(st.integers(0, side - 1)) for side in meant.shape)
    depths = [
        ndimage.distance_transform_edt(np.pad(wrong, 1))[1:-1, 1:-1] for wrong in (meant & ~shown, shown & ~meant)
    ]
    own, deepest = depths[0 if positive else 1][y, x], np.max(depths)
    share = relative_depth(meant, shown, SamplingGrid(meant.shape).click((x, y), positive))
    # The library's distances are exact, those of the two sweeps wrong by less than a tenth.
    assert share == pytest.approx((own + 3) / (deepest + 3), rel=0.06)


def test_a_grid_has_a_point_for_each_pixel_of_a_small_image_and_few_of_a_large_one():
    small, large = SamplingGrid((200, 256)), SamplingGrid((1000, 4000))
    labels = np.arange(200 * 256).reshape(200, 256)
    assert (LabelMap(labels, small).sampled == labels.ravel()).all()
    assert (len(small), len(large)) == (200 * 256, 250 * 1000)
    assert (small.spacing_px, SamplingGrid((300, 512)).spacing_px, large.spacing_px) == (1, 2, 4)
    assert not empty_mask(large).sampled.any()


def test_clicks_on_two_objects_without_the_one_between_them(coins_clicks):
    points = np.array([COIN_XY, FAR_COIN_XY, NEXT_COIN_XY])
    masks, _ = answered(coins_clicks, points, np.array([True, True, False]))
    assert (masks[:, points[:, 1], points[:, 0]] == [True, True, False]).all()
    pieces, count = ndimage.label(masks[0])
    areas = np.bincount(pieces.ravel())[1:]
    assert count == 2  # no region of any tree is like this
    assert ((areas > 800) & (areas < 4000)).all()


def test_contradictory_clicks_give_no_mask(coins_clicks):
    masks, scores = answered(coins_clicks, np.array([COIN_XY, COIN_XY]), np.array([True, False]))
    assert (len(masks), len(scores)) == (0, 0)


def test_a_click_at_the_rim_of_an_object_gives_a_smaller_mask(coins_clicks):
    in_the_middle, _ = answered(coins_clicks, np.array([COIN_XY]), np.array([True]))
    y, x = np.argwhere(in_the_middle[0])[0]
    at_the_rim, _ = answered(coins_clicks, np.array([(x, y)]), np.array([True]))
    assert 1000 < in_the_middle[0].sum() < 2500
    assert at_the_rim[0].sum() < in_the_middle[0].sum()


def test_a_negative_click_in_a_box_excludes_its_region(coins_clicks):
    box = np.array([15.0, 30, 130, 85])  # around two coins
    masks, _ = answered(coins_clicks, np.array([NEXT_COIN_XY]), np.array([False]), box)
    assert len(masks) > 0
    assert not masks[:, 55, 99].any()
    assert masks[0][30:85, 15:130].sum() > 0.9 * masks[0].sum() > 0


@given(random_trees(), st.data())
def test_negative_clicks_in_a_box_never_give_empty_masks(case, data):
    tree = case[1]
    points, _ = data.draw(clicks_on(tree))
    height, width = tree.size_hw
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = np.array([x, y, data.draw(st.integers(x + 1, width)), data.draw(st.integers(y + 1, height))], float)
    masks, _ = answered(ClickInference(TreeSource(tree)), points, np.zeros(len(points), bool), box)
    assert masks.any(axis=(1, 2)).all()


def test_masks_are_returned_if_another_thread_clears_the_cache(coins_tree):
    class ClearedAtOnce(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            self.clear()

    inference = ClickInference(TreeSource(coins_tree))
    inference._cache = ClearedAtOnce()
    masks, _ = answered(inference, np.array([COIN_XY, NEXT_COIN_XY]), np.array([True, False]))
    assert masks[:, 55, 44].all()


def test_a_mask_from_elsewhere_is_corrected_by_a_click(coins_clicks):
    row, column = np.ogrid[:303, :384]
    theirs = np.hypot(row - 55, column - 44) < 15
    logits = np.full((256, 256), -4.0, np.float32)
    logits[:202] = np.where(ndimage.zoom(theirs.astype(float), (202 / 303, 256 / 384), order=1) > 0.5, 4.0, -4.0)
    points = np.array([COIN_XY, NEXT_COIN_XY])
    masks, _ = answered(coins_clicks, points, np.array([True, True]), mask_input=logits)
    assert (masks[0] & theirs).sum() > 0.9 * theirs.sum()
    assert masks[0].sum() < theirs.sum() + 4000  # and the other coin, not the ground between them all
    assert masks[:, 55, [44, 99]].all()


def test_the_mean_iou_never_falls_with_more_clicks(coins_tree, coins):
    engine = TreeEngine(generator=object())
    engine.set_hierarchy(coins_tree)

    class Predictor:
        def predict(self, point_coords, point_labels, mask_input, multimask_output):
            prompt = Prompt.checked(engine.size_hw, point_coords, point_labels, None, mask_input)
            masks, scores = engine.answer(prompt, multimask_output, None)
            return masks, scores, np.zeros((len(masks), 256, 256), np.float32)

    pieces, count = ndimage.label(ndimage.binary_opening(ndimage.gaussian_filter(coins, 2) > 110, iterations=3))
    segments = [pieces == number for number in range(1, count + 1)]
    curves = np.mean([simulate_clicks(Predictor(), Segment(mask, None), 5, feed_mask=False)[0] for mask in segments], 0)
    assert (np.diff(curves) > -0.01).all()
    assert curves[4] > 0.8
