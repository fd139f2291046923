"""Run lengths read from a label map equal those that pycocotools makes from the drawn mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import (
    LabelRuns,
    RleError,
    areas_and_boxes,
    decode_rles,
    encode_bitmaps,
    rle_from_json,
    rle_to_json,
    rles_from_json,
    run_edges,
)

label_maps = hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 5))


@given(label_maps, st.integers(0, 5), st.integers(1, 6))
def test_an_interval_of_labels_is_encoded_as_its_drawn_mask(labels, first, length):
    labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)
    n_labels = labels.max() + 1
    first = min(first, n_labels - 1)
    last = min(first + length, n_labels)
    mask = (labels >= first) & (labels < last)
    assert LabelRuns(labels, n_labels).encode(first, last) == encode_bitmaps(mask[None])[0]


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6)))
def test_bitmaps_survive_encoding_and_json(masks):
    rles = [rle_from_json(rle_to_json(rle)) for rle in encode_bitmaps(masks)]
    assert (decode_rles(rles, masks.shape[1:]) == masks).all()


def pixels_of(edges: np.ndarray, height: int, width: int) -> np.ndarray:
    """(H, W) bool, drawn run by run along the columns."""
    flat = np.zeros(width * height, bool)
    for start, end in edges:
        flat[start:end] = True
    return flat.reshape(width, height).T


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_the_edges_of_runs_draw_the_mask(mask):
    edges = run_edges(encode_bitmaps(mask[None])[0])
    assert (pixels_of(edges, *mask.shape) == mask).all()
    assert (np.diff(edges.ravel()) > 0).all()


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=30))
def test_edges_of_any_counts_are_those_of_the_mask_they_stand_for(counts):
    """Counts of several characters, differences below zero, runs of no pixels."""
    assume(sum(counts) > 0)
    rle = rle_from_json({'size': [sum(counts), 1], 'counts': counts})
    canonical = encode_bitmaps(decode_rles([rle], (sum(counts), 1)))[0]
    edges = run_edges(rle)
    assert edges.tolist() == run_edges(canonical).tolist()
    assert (np.diff(edges.ravel()) > 0).all()
    assert (pixels_of(edges, sum(counts), 1) == decode_rles([rle], (sum(counts), 1))[0]).all()


def test_the_edges_of_a_mask_with_thousands_of_runs_draw_it(coins):
    mask = np.kron(coins > 110, np.ones((3, 3), bool))
    edges = run_edges(encode_bitmaps(mask[None])[0])
    assert len(edges) > 5000
    assert (pixels_of(edges, *mask.shape) == mask).all()


def test_plain_lists_of_counts_are_understood():
    rle = rle_from_json({'size': [2, 3], 'counts': [1, 2, 3]})
    assert rle_from_json({'size': [2.0, 3.0], 'counts': [1.0, 2.0, 3.0]}) == rle  # as pandas writes numbers
    assert decode_rles([rle], (2, 3))[0].tolist() == [[False, True, False], [True, False, False]]


def test_no_masks_are_an_empty_array():
    assert decode_rles([], (4, 5)).shape == (0, 4, 5)


@pytest.mark.parametrize('size_hw', [(8, 12), (6, 4), (3, 8)], ids=['larger', 'turned', 'as many pixels'])
def test_masks_of_an_image_of_another_size_are_not_drawn(size_hw):
    rles = encode_bitmaps(np.ones((2, 4, 6), bool))
    with pytest.raises(
        UnSAMError, match=f'an RLE of 4 x 6 px is damaged or of another image; expected {size_hw[0]} x {size_hw[1]} px'
    ):
        decode_rles(rles, size_hw)


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9)))
def test_areas_and_boxes_are_those_of_the_pixels(masks):
    areas, boxes = areas_and_boxes(rles_from_json(encode_bitmaps(masks), masks.shape[1:]))
    assert areas.tolist() == masks.sum(axis=(1, 2)).tolist()
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        ys, xs = np.nonzero(mask)
        assert (x0, y0, x1, y1) == ((xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(ys) else (0, 0, 0, 0))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20), st.data())
def test_equal_masks_have_equal_counts_however_they_were_written(counts, data):
    """Runs of no pixels make pycocotools take wrong boxes and overlaps."""
    at = data.draw(st.integers(0, len(counts)))
    assume(sum(counts) > 0)
    split = [*counts[:at], 0, 0, *counts[at:]] if at else [0, 0, *counts]
    size = [sum(counts), 1]
    one, other = rles_from_json([{'size': size, 'counts': counts}, {'size': size, 'counts': split}])
    assert one == other == encode_bitmaps(decode_rles([one], size))[0]


@pytest.mark.parametrize(
    ('counts', 'reason'),
    [
        ('zzzz', 'counts are not COCO run lengths'),
        ('54', 'add up to 9 px, expected 2 x 3 = 6 px'),
        ('0', 'add up to 0 px'),
        ('', 'not COCO run lengths'),
        ('6P', 'not COCO run lengths'),  # the last number goes on
        ('\u0663', 'not COCO run lengths'),
        ('6\n', 'not COCO run lengths'),
        ('2O5', 'a run of -1 px'),
        ('12221K', 'a run of -1 px'),
        ('PPPPPPP1', 'not COCO run lengths'),  # a number of more than 35 bits
        ([7, -1], 'a run of .-1. px'),
        ([2**32 + 6], 'add up to 4294967302 px'),
        ([float('nan'), 6], 'a run of .nan. px'),
        ([5.5, 0.5], 'a run of .5.5. px'),
        ((6,), 'of type tuple'),
        (None, 'of type NoneType'),
    ],
)
def test_counts_that_are_no_mask_of_six_pixels_are_refused(counts, reason):
    good = {'size': [2, 3], 'counts': '6'}
    with pytest.raises(RleError, match=reason) as caught:
        rles_from_json([good, {'size': [2, 3], 'counts': counts}])
    assert caught.value.index == 1
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'size',
    [
        [3, 2],
        [6],
        [2, 3, 1],
        [2.5, 3],
        [float('nan'), 3],
        [float('inf'), 3],
        ['2', 3],
        [True, 6],
        [0, 0],
        [-2, -3],
        None,
        6,
        [2**20, 2**20],
    ],
)
def test_sizes_that_are_not_those_of_the_image_are_refused(size):
    with pytest.raises(RleError, match='size of the RLE|px, the image 2 x 3'):
        rles_from_json([{'size': size, 'counts': '6'}], (2, 3))


@pytest.mark.parametrize('rle', [None, 5, 'abc', [1, 2], {}, {'size': [2, 3]}, {'counts': '6'}])
def test_what_is_no_run_lengths_at_all_is_refused(rle):
    with pytest.raises(RleError, match='expected run lengths with "size" and "counts"'):
        rles_from_json([rle], (2, 3))
