"""COCO run-length encoding of label intervals, without ever drawing a mask.

COCO's RLE walks an image column by column and stores the lengths of alternating runs of zeros and
ones. A label map has a run structure of its own, so the RLE of any interval of labels is a merge of
some of its runs; the cost is the number of those runs, not the number of pixels.
"""

from __future__ import annotations

import warnings
from typing import Any

import numba
import numpy as np
from pycocotools import mask as coco_mask

Rle = dict[str, Any]
"""``{'size': [height, width], 'counts': bytes}``, COCO's compressed form."""


class LabelRuns:
    """The column-major runs of a label map, sorted by label.

    Args:
        labels: (H, W) integer map with the values 0..n_labels - 1.
        n_labels: How many labels there are.
    """

    def __init__(self, labels: np.ndarray, n_labels: int) -> None:
        self.size_hw = tuple(int(side) for side in labels.shape)
        flat = np.ascontiguousarray(labels.T).ravel()
        starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
        ends = np.r_[starts[1:], flat.size]
        order = np.argsort(flat[starts], kind='stable')
        self._starts, self._ends = starts[order], ends[order]
        self._offsets = np.searchsorted(flat[starts][order], np.arange(n_labels + 1))

    def encode(self, first: int, last: int) -> Rle:
        """RLE of the pixels whose label lies in [first, last)."""
        run = slice(self._offsets[first], self._offsets[last])
        order = np.argsort(self._starts[run])
        starts, ends = self._starts[run][order], self._ends[run][order]
        return _rle_of_runs(starts, ends, self.size_hw)


def run_edges(rle: Rle) -> np.ndarray:
    """(R, 2) int64 first pixel and end (exclusive) of each run of ones, along the columns of the image.

    Runs are as long as they can be, whatever runs of no pixels the encoding holds: equal masks have equal runs.

    COCO's compressed counts are base-32 digits, five bits a character from the lowest, with a bit that says whether
    more follow and a sign in the last; from the fourth count on, each is stored as its difference to the last but one.
    """
    digits = np.frombuffer(rle['counts'], np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((digits & 0x20) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    counts = np.add.reduceat((digits & 0x1F) << (5 * place), starts) if len(digits) else np.zeros(0, np.int64)
    negative = (digits[ends] & 0x10) > 0
    counts = counts - (negative.astype(np.int64) << (5 * (place[ends] + 1)))
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    edges = np.cumsum(counts)[: len(counts) // 2 * 2]
    if (counts[1:] == 0).any():
        edges, times = np.unique(edges, return_counts=True)
        edges = edges[times % 2 == 1]  # what ends where it starts, or goes on where it ends, has no edge there
    return edges.reshape(-1, 2)


def encode_bitmaps(masks: np.ndarray) -> list[Rle]:
    """RLEs of boolean masks of shape (N, H, W)."""
    if len(masks) == 0:
        return []
    return coco_mask.encode(np.asfortranarray(np.moveaxis(masks, 0, -1).astype(np.uint8)))


def encode_crop(bitmap: np.ndarray, top: int, left: int, size_hw: tuple[int, int]) -> Rle:
    """RLE of an (h, w) bool mask that lies in a box of an image; the image itself is never drawn.

    Args:
        bitmap: The mask in the box.
        top: Row of the image where the box begins.
        left: Column of the image where the box begins.
        size_hw: Height and width of the image; it holds the box.
    """
    below = bitmap.shape[0] + 1  # an empty row under each column ends its last run
    columns = np.zeros((bitmap.shape[1], below), np.int8)
    columns[:, :-1] = bitmap.T
    changes = np.diff(columns.ravel(), prepend=np.int8(0))
    places = (left + np.arange(bitmap.shape[1])) * size_hw[0] + top
    starts, ends = (
        places[at // below] + at % below for at in (np.flatnonzero(changes == 1), np.flatnonzero(changes == -1))
    )
    return _rle_of_runs(starts, ends, size_hw)


def decode_crop(rle: Rle, box_xyxy: tuple[int, int, int, int]) -> np.ndarray:
    """(h, w) bool mask in a box that holds all of it; right and bottom edges are exclusive."""
    x0, y0, x1, y1 = box_xyxy
    out = np.zeros((x1 - x0, y1 - y0), bool)
    _fill_columns(run_edges(rle), rle['size'][0], x0, y0, out)
    return out.T


def decode_rles(rles: list[Rle], size_hw: tuple[int, int]) -> np.ndarray:
    """Boolean masks of shape (N, H, W); N may be 0."""
    if not rles:
        return np.zeros((0, *size_hw), bool)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', DeprecationWarning)  # of NumPy 2, about pycocotools' own arrays
        return np.moveaxis(coco_mask.decode(rles), -1, 0).astype(bool)


def rle_to_json(rle: Rle) -> Rle:
    """The same RLE with its counts as text, as COCO files store it."""
    counts = rle['counts']
    return {
        'size': [int(side) for side in rle['size']],
        'counts': counts.decode('ascii') if isinstance(counts, bytes) else counts,
    }


def rle_from_json(rle: Rle) -> Rle:
    """The same RLE with its counts as bytes, as pycocotools wants it; plain lists of counts are compressed."""
    counts = rle['counts']
    if isinstance(counts, list):
        return coco_mask.frPyObjects(rle, *rle['size'])
    return {'size': list(rle['size']), 'counts': counts.encode('ascii') if isinstance(counts, str) else counts}


def _rle_of_runs(starts: np.ndarray, ends: np.ndarray, size_hw: tuple[int, int]) -> Rle:
    """RLE of (R,) rising runs of pixels along the columns of an image; they may touch."""
    height, width = size_hw
    gap = starts[1:] != ends[:-1]  # runs that touch across two labels or columns are one run of the mask
    first = np.ones(min(len(starts), 1), bool)
    edges = np.stack([starts[np.r_[first, gap]], ends[np.r_[gap, first]]], axis=1).ravel()
    counts = np.diff(edges, prepend=0)
    n_left = height * width - int(edges[-1] if len(edges) else 0)
    if n_left:
        counts = np.append(counts, n_left)
    return coco_mask.frPyObjects({'size': [height, width], 'counts': counts.tolist()}, height, width)


@numba.njit(nogil=True, cache=True)
def _fill_columns(edges, height, left, top, out):
    for run in range(len(edges)):
        start, end = edges[run]
        while start < end:  # a run may go on in the next column
            column = start // height
            stop = min(end, (column + 1) * height)
            first = start - column * height - top
            out[column - left, first : first + stop - start] = True
            start = stop
