"""Run lengths read from a label map equal those that pycocotools makes from the drawn mask."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unsam_mm.rle import LabelRuns, decode_rles, encode_bitmaps, rle_from_json, rle_to_json

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


def test_plain_lists_of_counts_are_understood():
    rle = rle_from_json({'size': [2, 3], 'counts': [1, 2, 3]})
    assert decode_rles([rle], (2, 3))[0].tolist() == [[False, True, False], [True, False, False]]


def test_no_masks_are_an_empty_array():
    assert decode_rles([], (4, 5)).shape == (0, 4, 5)
