"""A partition of an image into regions, and measurements of them: areas, boxes, moments, runs, borders."""

from __future__ import annotations

from functools import cached_property

import numba
import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import LabelRuns


class Partition:
    """A partition of an image into L regions. Trees over the same regions share it, so each measurement is made once.

    Args:
        labels: (H, W) integers 0..L-1, every value used.

    Attributes:
        labels: (H, W) int32.
        areas: (L,) int64 in pixels.

    Raises:
        UnSAMError: If the labels have another shape or dtype, or gaps.
    """

    def __init__(self, labels: np.ndarray) -> None:
        labels = np.asarray(labels)
        if labels.ndim != 2 or labels.size == 0 or labels.dtype.kind not in 'iu':
            raise UnSAMError(f'leaf labels must be whole numbers of shape (H, W), got {labels.dtype}{labels.shape}')
        low, high = int(labels.min()), int(labels.max())
        in_range = low >= 0 and high < labels.size
        self.areas = np.bincount(labels.ravel().astype(np.int64, copy=False)) if in_range else np.zeros(1, np.int64)
        if not self.areas.all():
            raise UnSAMError(f'leaf labels must be 0..{len(np.unique(labels)) - 1} without gaps, got {low}..{high}')
        self.labels = labels.astype(np.int32, copy=False)

    def __len__(self) -> int:
        return len(self.areas)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        return self.labels.shape

    @cached_property
    def boxes_xyxy(self) -> np.ndarray:
        """(L, 4) int64 bounding boxes in pixels; right and bottom edges exclusive."""
        return _boxes(self.labels, len(self))

    @cached_property
    def moments(self) -> np.ndarray:
        """(5, L) float64 sums of y, x, y * y, x * x and x * y over the pixels of each region."""
        return _moments(self.labels, len(self))

    @cached_property
    def border_share(self) -> np.ndarray:
        """(L,) float64 in [0, 1]: fraction of the pixels at the image border that belong to each region."""
        outline = np.concatenate([self.labels[[0, -1]].ravel(), self.labels[:, [0, -1]].ravel()])
        return np.bincount(outline, minlength=len(self)) / len(outline)

    @cached_property
    def hashes(self) -> np.ndarray:
        """(L,) uint64 sums of a pseudo-random number for each pixel; unions with equal pixels have equal sums."""
        return _hashes(self.labels.ravel(), len(self))

    @cached_property
    def runs(self) -> LabelRuns:
        """The runs of the label map, from which the RLE of any union of regions is computed."""
        return LabelRuns(self.labels, len(self))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """(L,) float64 sum of (H, W) values over the pixels of each region."""
        return np.bincount(self.labels.ravel(), values.ravel(), minlength=len(self))

    def boxes_of(self, members: np.ndarray) -> np.ndarray:
        """(N, 4) float64 boxes x0, y0, x1, y1 of N unions of regions; infinite for a union of no regions.

        Args:
            members: (N, L) bool; True if union i contains region j.
        """
        low, high = self.boxes_xyxy[:, :2], self.boxes_xyxy[:, 2:]
        sides = [np.where(members, low[:, axis], np.inf).min(axis=1) for axis in range(2)]
        sides += [np.where(members, high[:, axis], -np.inf).max(axis=1) for axis in range(2)]
        return np.stack(sides, axis=1)

    def cells(self, other: Partition) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The intersections of the regions of this partition and of another partition of the same image.

        Returns:
            (R,) region of this partition, (R,) region of the other, and (R,) int64 area in pixels of each cell. An
            intersection may consist of several cells.
        """
        if other is self:
            return np.arange(len(self)), np.arange(len(self)), self.areas
        return _cells(self.labels.ravel(), other.labels.ravel())

    def borders(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of adjacent regions, the lengths of their borders, and the mean value along each border.

        Args:
            values: (H, W) float32, such as edge strengths.

        Returns:
            pairs: (E, 2) int32, smaller number first, sorted.
            lengths_px: (E,) float32 number of pixel sides that the pair shares.
            means: (E,) float32 mean of the values of the pixels on both sides.
        """
        low, high, lengths, means = _borders(np.ascontiguousarray(self.labels), values)
        return np.stack([low, high], axis=1), lengths, means


@numba.njit(nogil=True, cache=True)
def _boxes(labels, n_labels):
    boxes = np.empty((n_labels, 4), np.int64)
    boxes[:, :2], boxes[:, 2:] = max(labels.shape), 0
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            box = boxes[labels[y, x]]
            box[0], box[1] = min(box[0], x), min(box[1], y)
            box[2], box[3] = max(box[2], x + 1), max(box[3], y + 1)
    return boxes


@numba.njit(nogil=True, cache=True)
def _moments(labels, n_labels):
    sums = np.zeros((5, n_labels))
    for y in range(labels.shape[0]):
        for x in range(labels.shape[1]):
            label = labels[y, x]
            sums[0, label] += y
            sums[1, label] += x
            sums[2, label] += y * y
            sums[3, label] += x * x
            sums[4, label] += x * y
    return sums


@numba.njit(nogil=True, cache=True)
def _hashes(labels, n_labels):
    """The random numbers are those of SplitMix64 (Steele, Lea and Flood, 2014); sums are modulo 2 ** 64."""
    sums = np.zeros(n_labels, np.uint64)
    state = np.uint64(0)
    for pixel in range(len(labels)):
        state += np.uint64(0x9E3779B97F4A7C15)
        mixed = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        sums[labels[pixel]] += mixed ^ (mixed >> np.uint64(31))
    return sums


@numba.njit(nogil=True, cache=True)
def _cells(labels, others):
    """Runs of pixels in which two flattened label maps are constant: both labels, and the length of each run."""
    starts = np.empty(len(labels) + 1, np.int64)
    n_runs = 0
    for pixel in range(len(labels)):
        starts[n_runs] = pixel
        n_runs += pixel == 0 or labels[pixel] != labels[pixel - 1] or others[pixel] != others[pixel - 1]
    starts[n_runs] = len(labels)
    return labels[starts[:n_runs]], others[starts[:n_runs]], starts[1 : n_runs + 1] - starts[:n_runs]


@numba.njit(nogil=True, cache=True)
def _borders(labels, values):
    low, high, side_values = _sides(labels, values)
    n_labels = labels.max() + 1
    order = _stable_order(high, n_labels)
    order = order[_stable_order(low[order], n_labels)]
    n_pairs = 0
    firsts, seconds = np.empty(len(order), np.int32), np.empty(len(order), np.int32)
    lengths, sums = np.zeros(len(order), np.float32), np.zeros(len(order))
    for side in order:
        if n_pairs == 0 or low[side] != firsts[n_pairs - 1] or high[side] != seconds[n_pairs - 1]:
            firsts[n_pairs], seconds[n_pairs] = low[side], high[side]
            n_pairs += 1
        lengths[n_pairs - 1] += 1
        sums[n_pairs - 1] += side_values[side]
    lengths = lengths[:n_pairs].copy()
    return firsts[:n_pairs].copy(), seconds[:n_pairs].copy(), lengths, (sums[:n_pairs] / lengths).astype(np.float32)


@numba.njit(nogil=True, cache=True)
def _sides(labels, values):
    """The smaller label, the larger label and the mean value at each pixel side between two labels."""
    height, width = labels.shape
    count = 0
    for y in range(height):
        for x in range(width):
            count += x + 1 < width and labels[y, x] != labels[y, x + 1]
            count += y + 1 < height and labels[y, x] != labels[y + 1, x]
    low, high, side_values = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.float32)
    count = 0
    for down, right in ((0, 1), (1, 0)):
        for y in range(height - down):
            for x in range(width - right):
                one, other = labels[y, x], labels[y + down, x + right]
                if one != other:
                    low[count], high[count] = min(one, other), max(one, other)
                    side_values[count] = (values[y, x] + values[y + down, x + right]) / np.float32(2)
                    count += 1
    return low, high, side_values


@numba.njit(nogil=True, cache=True)
def _stable_order(values, n_values):
    """Indices that sort integers 0 .. n_values - 1; a stable sort in linear time."""
    starts = np.zeros(n_values + 1, np.int64)
    for value in values:
        starts[value + 1] += 1
    starts = np.cumsum(starts)
    order = np.empty(len(values), np.int64)
    for i in range(len(values)):
        order[starts[values[i]]] = i
        starts[values[i]] += 1
    return order
