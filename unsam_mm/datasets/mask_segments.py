"""Masks as vertical segments, for flipping, cropping and resizing of RLEs without decoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from unsam_mm.masks.rle import Rle, run_edges


@dataclass(frozen=True)
class Segments:
    """The pixels of N masks: S segments, each the rows y0 <= y < y1 of one column of one mask.

    Segments are sorted by mask, column and row, and do not overlap.

    Attributes:
        mask: (S,) int64 index of the mask.
        x: (S,) int64 column.
        y0: (S,) int64 first row.
        y1: (S,) int64 end, exclusive, larger than y0.
        size_hw: Height and width of the image in pixels.
    """

    mask: np.ndarray
    x: np.ndarray
    y0: np.ndarray
    y1: np.ndarray
    size_hw: tuple[int, int]

    @classmethod
    def from_rles(cls, rles: list[Rle], size_hw: tuple[int, int]) -> Segments:
        """Segments of compressed RLEs, whose runs are split at the ends of columns."""
        height = size_hw[0]
        edges = [run_edges(rle) for rle in rles]
        mask = np.repeat(np.arange(len(rles)), [len(runs) for runs in edges])
        start, end = np.concatenate([np.zeros((0, 2), np.int64), *edges]).T
        first, last = start // height, (end - 1) // height
        n_columns = last - first + 1
        run = np.repeat(np.arange(len(start)), n_columns)
        x = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(n_columns) - n_columns, n_columns)
        y0 = np.where(x == first[run], start[run] - first[run] * height, 0)
        y1 = np.where(x == last[run], end[run] - last[run] * height, height)
        return cls(mask[run], x, y0, y1, size_hw)

    def to_rles(self, n_masks: int) -> list[Rle]:
        """Compressed RLEs; adjacent segments are joined to runs."""
        height, width = self.size_hw
        start, end = self.x * height + self.y0, self.x * height + self.y1
        # A segment that starts at the end of the previous one continues its run.
        joins = np.zeros(len(start), bool)
        joins[1:] = (start[1:] == end[:-1]) & (self.mask[1:] == self.mask[:-1])
        opens, closes = ~joins, ~np.append(joins[1:], False)[: len(joins)]
        start, end, mask = start[opens], end[closes], self.mask[opens]
        first = np.searchsorted(mask, np.arange(n_masks + 1))
        edges = np.stack([start, end], axis=1)
        plain = []
        for begin, stop in pairwise(first):
            # The count of the zeros after the last run is left out if it is 0.
            borders = np.append(edges[begin:stop], height * width)
            counts = np.diff(borders, prepend=0)
            plain.append({'size': [height, width], 'counts': counts if counts[-1] else counts[:-1]})
        return coco_mask.frPyObjects(plain, height, width) if plain else []

    def areas(self, n_masks: int) -> np.ndarray:
        """(n_masks,) int64 areas in pixels."""
        total = np.cumsum(np.append(0, self.y1 - self.y0))
        return np.diff(total[np.searchsorted(self.mask, np.arange(n_masks + 1))])

    def boxes(self, n_masks: int) -> np.ndarray:
        """(n_masks, 4) float32 boxes x0, y0, x1, y1; right and bottom edges exclusive, zeros for empty masks."""
        boxes = np.zeros((n_masks, 4), np.float32)
        if len(self.mask):
            starts = np.flatnonzero(np.diff(self.mask, prepend=-1))
            filled = self.mask[starts]
            boxes[filled, 0] = np.minimum.reduceat(self.x, starts)
            boxes[filled, 1] = np.minimum.reduceat(self.y0, starts)
            boxes[filled, 2] = np.maximum.reduceat(self.x, starts) + 1
            boxes[filled, 3] = np.maximum.reduceat(self.y1, starts)
        return boxes

    def drawn(self) -> Iterator[tuple[int, tuple[slice, slice], np.ndarray]]:
        """Yields the index, the box as row and column slices, and the (h, w) uint8 crop of each non-empty mask."""
        firsts = np.flatnonzero(np.diff(self.mask, prepend=-1)).tolist()
        for first, end in pairwise([*firsts, len(self.mask)]):
            x, y0, y1 = self.x[first:end], self.y0[first:end], self.y1[first:end]
            left, top, right, bottom = int(x[0]), int(y0.min()), int(x[-1]) + 1, int(y1.max())
            columns = (x - left) * (bottom - top) - top
            # Mark the pixels where the value changes along the columns; a cumulative XOR then fills the mask.
            changes = np.zeros((right - left) * (bottom - top) + 1, np.uint8)
            changes[columns + y0] ^= 1
            changes[columns + y1] ^= 1
            pixels = np.bitwise_xor.accumulate(changes[:-1]).reshape(right - left, bottom - top)
            yield int(self.mask[first]), (slice(top, bottom), slice(left, right)), cv2.transpose(pixels)

    def flipped(self, horizontal: bool, vertical: bool) -> Segments:
        """The segments after a horizontal or vertical flip, or both."""
        height, width = self.size_hw
        x = width - 1 - self.x if horizontal else self.x
        y0, y1 = (height - self.y1, height - self.y0) if vertical else (self.y0, self.y1)
        return self._sorted(self.mask, x, y0, y1, self.size_hw)

    def cropped(self, y0: int, y1: int, x0: int, x1: int) -> Segments:
        """The segments inside of a window, in coordinates of the window."""
        top, bottom = np.maximum(self.y0, y0) - y0, np.minimum(self.y1, y1) - y0
        kept = np.flatnonzero((self.x >= x0) & (self.x < x1) & (top < bottom))
        return Segments(self.mask[kept], self.x[kept] - x0, top[kept], bottom[kept], (y1 - y0, x1 - x0))

    def placed(self, top: int, left: int, height: int, width: int) -> Segments:
        """The segments after translation by `top` and `left` into a larger image."""
        return Segments(self.mask, self.x + left, self.y0 + top, self.y1 + top, (height, width))

    def resampled(self, rows: np.ndarray, columns: np.ndarray) -> Segments:
        """The segments after nearest-neighbour resizing.

        Args:
            rows: (height,) int64, non-decreasing: the source row of each new row.
            columns: (width,) int64, non-decreasing: the source column of each new column.
        """
        size_hw = (len(rows), len(columns))
        y0, y1 = np.searchsorted(rows, self.y0), np.searchsorted(rows, self.y1)
        first, end = np.searchsorted(columns, self.x), np.searchsorted(columns, self.x, side='right')
        kept = np.flatnonzero((y0 < y1) & (first < end))
        times = (end - first)[kept]
        old = np.repeat(kept, times)
        x = first[old] + np.arange(len(old)) - np.repeat(np.cumsum(times) - times, times)
        return self._sorted(self.mask[old], x, y0[old], y1[old], size_hw)

    @classmethod
    def _sorted(
        cls, mask: np.ndarray, x: np.ndarray, y0: np.ndarray, y1: np.ndarray, size_hw: tuple[int, int]
    ) -> Segments:
        place = (mask * size_hw[1] + x) * size_hw[0] + y0
        order = np.argsort(place)
        return cls(mask[order], x[order], y0[order], y1[order], size_hw)
