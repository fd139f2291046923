"""COCO run-length encoding of label intervals, without ever drawing a mask.

COCO's RLE walks an image column by column and stores the lengths of alternating runs of zeros and
ones. A label map has a run structure of its own, so the RLE of any interval of labels is a merge of
some of its runs; the cost is the number of those runs, not the number of pixels.
"""

from __future__ import annotations

import warnings
from typing import Any

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
        gap = starts[1:] != ends[:-1]  # runs that touch across two labels are one run of the mask
        starts, ends = starts[np.r_[True, gap]], ends[np.r_[gap, True]]
        edges = np.stack([starts, ends], axis=1).ravel()
        counts = np.diff(edges, prepend=0)
        n_pixels = self.size_hw[0] * self.size_hw[1]
        if edges[-1] < n_pixels:
            counts = np.append(counts, n_pixels - edges[-1])
        height, width = self.size_hw
        return coco_mask.frPyObjects({'size': [height, width], 'counts': counts.tolist()}, height, width)


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
