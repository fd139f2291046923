"""Run lengths read from a label map equal those that pycocotools makes from the drawn mask."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unsam_mm.rle import LabelRuns, decode_rles, encode_bitmaps, rle_from_json, rle_to_json, run_edges

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
    assert decode_rles([rle], (2, 3))[0].tolist() == [[False, True, False], [True, False, False]]


def test_no_masks_are_an_empty_array():
    assert decode_rles([], (4, 5)).shape == (0, 4, 5)
