"""Clicks at pixels: every answer agrees with them, also below the size of a region."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unsam_mm.errors import UnSAMError
from unsam_mm.region_model import RegionNet
from unsam_mm.region_model.clicks import ClickableImage
from unsam_mm.region_model.pixel_clicks import PixelClicks

pixels = st.tuples(st.integers(0, 299), st.integers(0, 199))


@pytest.fixture(scope='module')
def image(cup):
    torch.manual_seed(0)
    net = RegionNet(width=32, heads=2, encoder_layers=1, decoder_layers=1, prompt_channels=8, feature_channels=3)
    return ClickableImage(net.eval(), cup[0])


@settings(max_examples=30)
@given(points=st.lists(pixels, min_size=1, max_size=6, unique=True), data=st.data())
def test_answers_agree_with_every_click(image, points, data):
    negative = data.draw(st.lists(st.booleans(), min_size=len(points) - 1, max_size=len(points) - 1))
    positive = np.array([True, *negative])
    masks, scores = PixelClicks(image, np.array(points), positive).answer(6)
    x, y = np.array(points).T
    assert 1 <= len(masks) == len(scores) <= 6
    assert (masks[:, y, x] == positive).all()


def test_a_click_that_the_mask_holds_already_changes_nothing(image):
    first = np.array([[150, 100]])
    masks, _ = PixelClicks(image, first, np.array([True])).answer(1)
    y, x = np.argwhere(masks[0])[-1]
    more, _ = PixelClicks(image, np.array([[150, 100], [x, y]]), np.array([True, True])).answer(1)
    assert (more == masks).all()


def test_a_click_beside_the_outline_moves_the_outline_only(image):
    masks, _ = PixelClicks(image, np.array([[150, 100]]), np.array([True])).answer(1)
    beside = np.argwhere(~masks[0][:, 1:] & masks[0][:, :-1])[0] + [0, 1]
    y, x = beside
    moved, _ = PixelClicks(image, np.array([[150, 100], [x, y]]), np.array([True, True])).answer(1)
    assert moved[0, y, x]
    assert 1 <= (moved != masks).sum() <= 5
    assert not (masks & ~moved).any()


def test_a_region_with_clicks_of_both_kinds_is_split_between_them(image):
    labels = image.tokens.labels
    region = int(np.bincount(labels.ravel()).argmax())
    ys, xs = np.nonzero(labels == region)
    left, right = (int(xs.argmin()), int(xs.argmax()))
    points = np.array([[xs[left], ys[left]], [xs[right], ys[right]]])
    masks, _ = PixelClicks(image, points, np.array([True, False])).answer(1)
    pixels = np.stack([xs, ys], axis=1)
    near, far = (np.linalg.norm(pixels - point, axis=1) for point in points)
    inside = masks[0, ys, xs]
    assert inside[near < far - 2].all()
    assert not inside[far < near - 2].any()


def test_clicks_of_one_kind_only_that_say_what_it_is_not_are_refused(image):
    with pytest.raises(UnSAMError, match='positive point or a box'):
        PixelClicks(image, np.array([[5, 5]]), np.array([False])).answer(1)


def test_negative_clicks_join_a_box(image):
    box = np.array([20.0, 20, 200, 180])
    alone, _ = PixelClicks(image, np.zeros((0, 2), int), np.zeros(0, bool), box).answer(1)
    y, x = np.argwhere(alone[0])[len(np.argwhere(alone[0])) // 2]
    masks, _ = PixelClicks(image, np.array([[x, y]]), np.array([False]), box).answer(6)
    assert not masks[:, y, x].any()


def test_one_mask_answers_at_a_granularity_and_holds_the_click(image):
    clicks = PixelClicks(image, np.array([[150, 100]]), np.array([True]))
    areas = [clicks.answer_at(granularity)[0].sum() for granularity in np.linspace(0.1, 1, 10)]
    assert areas == sorted(areas)
    assert clicks.answer_at(0.0)[0].shape == (1, 200, 300)
    assert clicks.answer_at(0.0)[0][0, 100, 150]
