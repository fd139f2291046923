"""Outlines along pixel edges: valid polygons that give the same mask when they are drawn again."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from napari_unsam.io.outlines import polygons


def drawn(parts, shape):
    """The pixels whose centre lies within an odd number of rings."""
    inside = np.zeros(shape, int)
    for ring in [ring for part in parts for ring in part]:
        for (x0, y0), (_x1, y1) in pairwise(ring):
            # A vertical edge turns over all pixels of its rows that lie to the right of it.
            inside[min(y0, y1) : max(y0, y1), max(x0, 0) :] += y0 != y1
    return inside % 2 == 1


def mask_of(*rows):
    return np.array([[pixel == '#' for pixel in row] for row in rows])


def test_a_single_pixel_is_a_square_of_side_one():
    assert polygons(mask_of('...', '.#.')) == [[[(2, 1), (2, 2), (1, 2), (1, 1), (2, 1)]]]


def test_corners_are_told_only_where_the_outline_turns():
    [[ring]] = polygons(np.ones((200, 300), bool))
    assert ring == [(300, 0), (300, 200), (0, 200), (0, 0), (300, 0)]


def test_coordinates_are_those_of_the_whole_image():
    [[ring]] = polygons(np.ones((1, 2), bool), top=10, left=20)
    assert ring == [(22, 10), (22, 11), (20, 11), (20, 10), (22, 10)]


@pytest.mark.parametrize(
    ('mask', 'rings'),
    [
        pytest.param(mask_of('###', '#.#', '###'), [2], id='a hole'),
        pytest.param(mask_of('##...', '##.##'), [1, 1], id='two parts'),
        pytest.param(mask_of('#.', '.#'), [1, 1], id='parts that meet in a corner are two'),
        pytest.param(mask_of('###', '#.#', '##.'), [2], id='a hole that opens in a corner stays a hole'),
        pytest.param(mask_of('####', '#.##', '##.#', '####'), [3], id='holes that meet in a corner are two'),
        pytest.param(mask_of('#####', '#...#', '#.#.#', '#...#', '#####'), [2, 1], id='an island in a hole'),
        pytest.param(mask_of('...', '...'), [], id='nothing'),
    ],
)
def test_parts_and_holes(mask, rings):
    parts = polygons(mask)
    assert sorted(map(len, parts), reverse=True) == rings
    assert np.array_equal(drawn(parts, mask.shape), mask)


@settings(max_examples=300, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_any_mask_comes_back_from_rings_that_never_touch_themselves(mask):
    parts = polygons(mask)
    assert np.array_equal(drawn(parts, mask.shape), mask)
    for ring in [ring for part in parts for ring in part]:
        assert ring[0] == ring[-1]
        assert len(set(ring)) == len(ring) - 1


@settings(max_examples=200, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_polygons_are_valid_simple_features(mask):
    geometry = pytest.importorskip('shapely.geometry')
    parts = [geometry.Polygon(part[0], part[1:]) for part in polygons(mask)]
    whole = geometry.MultiPolygon(parts)
    assert whole.is_valid
    assert whole.area == mask.sum()
    assert all(part.exterior.is_ccw and not any(hole.is_ccw for hole in part.interiors) for part in parts)
