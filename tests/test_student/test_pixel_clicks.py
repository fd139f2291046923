"""One mask at a granularity: it agrees with every click, also with two in one region."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unsam_mm.errors import UnSAMError
from unsam_mm.student import RegionNet
from unsam_mm.student.encoded_image import EncodedImage

pixels = st.tuples(st.integers(0, 299), st.integers(0, 199))


@pytest.fixture(scope='module')
def image(cup):
    torch.manual_seed(0)
    net = RegionNet(width=32, heads=2, encoder_layers=1, decoder_layers=1, prompt_channels=8, feature_channels=3)
    return EncodedImage(net.eval(), cup[0])


@settings(max_examples=30)
@given(points=st.lists(pixels, min_size=1, max_size=6, unique=True), data=st.data())
def test_the_mask_agrees_with_every_click(image, points, data):
    others = data.draw(st.lists(st.booleans(), min_size=len(points) - 1, max_size=len(points) - 1))
    positive = np.array([True, *others])
    masks, scores = image.mask_at(0.6, np.array(points), positive)
    x, y = np.array(points).T
    assert len(masks) == len(scores) == 1
    assert (masks[:, y, x] == positive).all()


def test_a_region_with_clicks_of_both_kinds_is_split_between_them(image):
    labels = image.tokens.labels
    region = int(np.bincount(labels.ravel()).argmax())
    ys, xs = np.nonzero(labels == region)
    left, right = (int(xs.argmin()), int(xs.argmax()))
    points = np.array([[xs[left], ys[left]], [xs[right], ys[right]]])
    masks, _ = image.mask_at(0.6, points, np.array([True, False]))
    pixels = np.stack([xs, ys], axis=1)
    near, far = (np.linalg.norm(pixels - point, axis=1) for point in points)
    inside = masks[0, ys, xs]
    assert inside[near < far].all()
    assert not inside[far < near].any()


def test_negative_clicks_alone_are_refused(image):
    with pytest.raises(UnSAMError, match='positive point or a box'):
        image.mask_at(0.6, np.array([[5, 5]]), np.array([False]))


def test_the_area_grows_with_granularity(image):
    click = (np.array([[150, 100]]), np.array([True]))
    areas = [image.mask_at(granularity, *click)[0].sum() for granularity in np.linspace(0.1, 1, 10)]
    assert areas == sorted(areas)
    finest, _ = image.mask_at(0.0, *click)
    assert finest.shape == (1, 200, 300)
    assert finest[0, 100, 150]
