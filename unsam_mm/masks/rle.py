"""COCO run-length encodings: encoding of label intervals, crops and bitmaps, decoding, and validation.

COCO's RLE stores the lengths of alternating runs of zeros and ones in column-major order. The RLE of an interval of
labels is assembled from the runs of the label map; its cost depends on the number of runs, not on the number of pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numba
import numpy as np
from pycocotools import mask as coco_mask

from unsam_mm.errors import UnSAMError

MAX_PIXELS = 2**32 - 1
"""Limit of pycocotools, which counts pixels in 32 bits."""

Rle = dict[str, Any]
"""``{'size': [height, width], 'counts': bytes}``, COCO's compressed form."""

_ZERO, _MORE, _SIGN = 48, 32, 16  # character code of the digit 0, continuation bit, sign bit
_CANONICAL, _NON_CANONICAL, _MALFORMED, _OUT_OF_RANGE, _WRONG_RUNS = range(5)  # results of `_check_text`


class LabelRuns:
    """The column-major runs of a label map, grouped by label, from which the RLE of any set of labels is assembled.

    Args:
        labels: (h, w) integers 0..n_labels - 1.
        n_labels: Number of labels.
        corner_xy: Column and row in the image of the top left pixel of the map, if the map covers a part of an image.
        size_hw: Height and width of that image; by default those of the map.
    """

    def __init__(
        self,
        labels: np.ndarray,
        n_labels: int,
        corner_xy: tuple[int, int] = (0, 0),
        size_hw: tuple[int, int] | None = None,
    ) -> None:
        rows = labels.shape[0]
        self.size_hw = tuple(int(side) for side in size_hw or labels.shape)
        flat = np.ascontiguousarray(labels.T).ravel()
        is_start = np.append(True, flat[1:] != flat[:-1])
        is_start[::rows] = True  # every column starts a run: the columns of a part are not adjacent in the image
        starts = np.flatnonzero(is_start)
        lengths = np.diff(starts, append=flat.size)
        order = np.argsort(flat[starts], kind='stable')
        self._offsets = np.searchsorted(flat[starts][order], np.arange(n_labels + 1))
        starts += (starts // rows + corner_xy[0]) * (self.size_hw[0] - rows) + corner_xy[0] * rows + corner_xy[1]
        self._starts, self._ends = starts[order], (starts + lengths)[order]

    def in_order(self, labels: np.ndarray) -> LabelRuns:
        """The runs with other labels: label i has the runs that ``labels[i]`` has here; `labels` is (L,) int64."""
        counts = np.diff(self._offsets)[labels]
        ordered = copy.copy(self)
        ordered._offsets = np.append(0, np.cumsum(counts))
        run = np.arange(ordered._offsets[-1]) + np.repeat(self._offsets[labels] - ordered._offsets[:-1], counts)
        ordered._starts, ordered._ends = self._starts[run], self._ends[run]
        return ordered

    def edges(self, first: int, last: int) -> np.ndarray:
        """(R, 2) int64 start and end (exclusive) of each run of labels in [first, last), ascending; see `run_edges`."""
        return self._edges(slice(self._offsets[first], self._offsets[last]))

    def encode(self, first: int, last: int) -> Rle:
        """RLE of the pixels whose label lies in [first, last)."""
        return encode_runs(self.edges(first, last), self.size_hw)

    def encode_set(self, is_member: np.ndarray) -> Rle:
        """RLE of the pixels for whose label the (L,) bool array `is_member` is True."""
        return encode_runs(self._edges(np.repeat(is_member, np.diff(self._offsets))), self.size_hw)

    def _edges(self, which: slice | np.ndarray) -> np.ndarray:
        starts, ends = self._starts[which], self._ends[which]
        order = np.argsort(starts)
        return join_runs(starts[order], ends[order])


def run_edges(rle: Rle) -> np.ndarray:
    """(R, 2) int64 start and end (exclusive) of each run of ones, in column-major pixel indices.

    Runs of length 0 in the encoding are removed and adjacent runs joined, so equal masks have equal runs.
    """
    lengths = _run_lengths(np.frombuffer(rle['counts'], np.uint8))
    edges = np.cumsum(lengths)[: len(lengths) // 2 * 2]
    if (lengths[1:] == 0).any():
        edges, times = np.unique(edges, return_counts=True)
        edges = edges[times % 2 == 1]  # an edge that occurs twice lies between equal values
    return edges.reshape(-1, 2)


def encode_bitmaps(masks: np.ndarray) -> list[Rle]:
    """RLEs of boolean masks of shape (N, H, W)."""
    if len(masks) == 0:
        return []
    return coco_mask.encode(np.asfortranarray(np.moveaxis(masks, 0, -1).astype(np.uint8)))


def encode_crop(bitmap: np.ndarray, top: int, left: int, size_hw: tuple[int, int]) -> Rle:
    """RLE of an image-sized mask from an (h, w) bool mask in a box of the image.

    Args:
        bitmap: The mask in the box, which has at least one pixel.
        top: First row of the box in the image.
        left: First column of the box in the image.
        size_hw: Height and width of the image, which contains the box.
    """
    return LabelRuns(bitmap.astype(np.uint8), 2, (left, top), size_hw).encode(1, 2)


def decode_crop(rle: Rle, box_xyxy: tuple[int, int, int, int]) -> np.ndarray:
    """(h, w) bool part of a mask in a box of the image, whose right and bottom edges are exclusive."""
    return draw_runs(run_edges(rle), rle['size'][0], *box_xyxy)


def decode_rles(rles: list[Rle], size_hw: tuple[int, int]) -> np.ndarray:
    """Boolean masks of shape (N, H, W); N may be 0.

    Raises:
        UnSAMError: If an encoding has another size, or is damaged and has pixels outside the image.
    """
    height, width = size_hw
    columns = np.zeros((len(rles), width, height), bool)
    for rle, out in zip(rles, columns, strict=True):
        edges = run_edges(rle)
        if tuple(rle['size']) != (height, width) or (len(edges) and edges[-1, 1] > out.size):
            found = ' x '.join(map(str, rle['size']))
            raise UnSAMError(
                f'an RLE of {found} px is damaged or of another image; expected {height} x {width} px; use masks of this image'
            )
        _fill_columns(edges, height, 0, 0, out)
    return columns.swapaxes(1, 2)


def draw_runs(edges: np.ndarray, height: int, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """(y1 - y0, x1 - x0) bool part, in a box, of the mask with the given runs; `height` is that of the image.

    See `run_edges` for the runs.
    """
    out = np.zeros((x1 - x0, y1 - y0), bool)
    _fill_columns(edges, height, x0, y0, out)
    return out.T


def rle_to_json(rle: Rle) -> Rle:
    """The RLE with its counts as text, as in COCO files."""
    counts = rle['counts']
    return {
        'size': [int(side) for side in rle['size']],
        'counts': counts.decode('ascii') if isinstance(counts, bytes) else counts,
    }


class RleError(UnSAMError):
    """A run-length encoding that is damaged, or of another image.

    Attributes:
        index: Index of the encoding in the list.
        reason: The error message without the index.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f'mask {index}: {reason}')
        self.index, self.reason = index, reason


def rle_from_json(rle: Mapping[str, Any]) -> Rle:
    """Validates one encoding; see `rles_from_json`."""
    return rles_from_json([rle])[0]


def rles_from_json(rles: Sequence[Any], size_hw: Sequence[int] | None = None) -> list[Rle]:
    """Validates encodings from untrusted sources; the C code of pycocotools does not check its input.

    Args:
        rles: N dictionaries with ``size`` and ``counts``, which are COCO's compressed text or a list of run lengths.
        size_hw: Expected height and width in pixels; None if unknown.

    Returns:
        N compressed encodings with counts as bytes. Equal masks have equal counts.

    Raises:
        RleError: If an encoding is malformed, has another size, is too large for pycocotools, or its run lengths do not
            sum to its size.
    """
    if _is_plain(rles, size_hw):
        sizes = [(size_hw[0], size_hw[1])] * len(rles)
        texts = [rle['counts'].encode('utf-8', 'surrogatepass') for rle in rles]
    else:
        sizes, texts = [], []
        for index, rle in enumerate(rles):
            try:
                size, text = _size_and_text(rle, size_hw)
            except ValueError as error:
                raise RleError(index, str(error)) from error
            sizes.append(size)
            texts.append(text)
    checked = [{'size': list(size), 'counts': text} for size, text in zip(sizes, texts, strict=True)]
    n_pixels = np.array([height * width for height, width in sizes], np.int64)
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    results = _check_texts(np.frombuffer(b''.join(texts), np.uint8), ends, n_pixels)
    for index in np.flatnonzero(results).tolist():
        if results[index] != _NON_CANONICAL:
            raise RleError(index, _reason(results[index], texts[index], sizes[index]))
        edges = run_edges(checked[index])
        checked[index] = encode_runs(edges, sizes[index])
    return checked


def areas_and_boxes(rles: Sequence[Rle]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 areas and (N, 4) int64 boxes x0, y0, x1, y1, in pixels, of N valid encodings.

    Right and bottom edges are exclusive; the box of an empty mask is zeros.
    """
    texts = [rle['counts'] for rle in rles]
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    heights = np.array([rle['size'][0] for rle in rles], np.int64)
    return _measure_texts(np.frombuffer(b''.join(texts), np.uint8), ends, heights)


def _is_plain(rles: Sequence[Any], size_hw: Sequence[int] | None) -> bool:
    """True if all encodings are dictionaries with the expected size and text counts, the common case."""
    if size_hw is None or not all(isinstance(rle, dict) and 'size' in rle and 'counts' in rle for rle in rles):
        return False
    sizes = [rle['size'] for rle in rles]
    return (
        set(map(type, [rle['counts'] for rle in rles])) <= {str}
        and sizes.count(list(size_hw)) == len(sizes)
        and set(map(type, chain.from_iterable(sizes))) <= {int}
        and 0 < size_hw[0] * size_hw[1] <= MAX_PIXELS
    )


def _size_and_text(rle: Any, size_hw: Sequence[int] | None) -> tuple[tuple[int, int], bytes]:
    """Size and compressed counts of one encoding; the runs are not checked yet.

    Raises:
        ValueError: If the encoding is malformed or has another size.
    """
    if not isinstance(rle, Mapping) or 'size' not in rle or 'counts' not in rle:
        raise ValueError(f'found {str(rle)[:40]!r}; expected run lengths with "size" and "counts"')
    size, counts = rle['size'], rle['counts']
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(_is_whole(side) and side > 0 for side in size):
        raise ValueError(f'the size of the RLE is {str(size)[:40]}; expected height and width in pixels')
    height, width = int(size[0]), int(size[1])
    if size_hw is not None and (height, width) != tuple(size_hw):
        raise ValueError(
            f'the mask is {height} x {width} px, the image {size_hw[0]} x {size_hw[1]}; masks must be given at the size '
            'of the original image'
        )
    if height * width > MAX_PIXELS:
        raise ValueError(f'the RLE has {height} x {width} px; pycocotools reads no more than {MAX_PIXELS} px')
    if isinstance(counts, list):
        return (height, width), _text_of_list(counts, height, width)
    if isinstance(counts, str):
        counts = counts.encode('utf-8', 'surrogatepass')  # non-ASCII characters fail the check of digits
    elif not isinstance(counts, bytes):
        raise ValueError(f'the counts of the RLE are of type {type(counts).__name__}; expected text or a list')
    return (height, width), counts


def _is_whole(value: Any) -> bool:
    if isinstance(value, float):  # pandas writes integers as floats
        return value.is_integer()
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _text_of_list(counts: list[Any], height: int, width: int) -> bytes:
    if wrong := [count for count in counts if not _is_whole(count) or count < 0]:
        raise ValueError(f'the RLE has a run of {str(wrong[0])[:20]!r} px; runs are whole numbers, none below 0')
    counts = [int(count) for count in counts]
    if (total := sum(counts)) != height * width:
        raise ValueError(_wrong_total(total, height, width))
    return coco_mask.frPyObjects({'size': [height, width], 'counts': counts}, height, width)['counts']


def _wrong_total(total: int, height: int, width: int) -> str:
    return (
        f'the counts of the RLE add up to {total} px, expected {height} x {width} = {height * width} px; the file is '
        'damaged; make it again'
    )


def _reason(result: int, text: bytes, size: tuple[int, int]) -> str:
    if result == _MALFORMED:
        return f'counts are not COCO run lengths: {text[:20]!r}; the file is damaged; make it again'
    runs = _run_lengths(np.frombuffer(text, np.uint8))
    if runs.min() < 0:
        return f'the RLE has a run of {runs.min()} px; the file is damaged; make it again'
    if result == _OUT_OF_RANGE:
        return 'two runs of the RLE differ by more pixels than pycocotools supports; split the image into tiles'
    return _wrong_total(runs.sum(), *size)


def join_runs(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(R, 2) starts and ends of (R',) ascending runs. Adjacent runs, as of two labels or columns, are joined."""
    gap = starts[1:] != ends[:-1]
    first = np.ones(min(len(starts), 1), bool)
    return np.stack([starts[np.append(first, gap)], ends[np.append(gap, first)]], axis=1)


def encode_runs(edges: np.ndarray, size_hw: tuple[int, int]) -> Rle:
    """RLE of (R, 2) starts and ends (exclusive) of runs, in ascending column-major order and not adjacent."""
    height, width = size_hw
    counts = np.diff(edges.ravel(), prepend=0)
    n_left = height * width - int(edges[-1, 1] if len(edges) else 0)
    if n_left:
        counts = np.append(counts, n_left)
    return coco_mask.frPyObjects({'size': [height, width], 'counts': counts.tolist()}, height, width)


@numba.njit(nogil=True, cache=True)
def _fill_columns(edges, height, left, top, out):
    """Draws runs into the (columns, rows) array of a box at column `left` and row `top`; ignores pixels outside it."""
    for run in range(len(edges)):
        start, end = edges[run]
        while start < end:  # a run may continue in the next column
            column = start // height
            stop = min(end, (column + 1) * height)
            first = start - column * height - top
            if 0 <= column - left < out.shape[0]:
                out[column - left, max(first, 0) : max(first + stop - start, 0)] = True
            start = stop


@numba.njit(nogil=True, cache=True)
def _run_lengths(codes):
    """(R,) int64 run lengths of one text.

    COCO's compressed counts are little-endian base-32 numbers, five bits in each character, with a continuation bit and
    a sign bit in the last character; from the fourth count on, the difference to the count two before is stored.
    """
    lengths = np.empty(len(codes), np.int64)
    n_runs, value, shift = 0, 0, 0
    for code in codes:
        digit = np.int64(code) - _ZERO
        value |= (digit & 31) << shift
        shift += 5
        if not digit & _MORE:
            if digit & _SIGN:
                value -= 1 << shift
            lengths[n_runs] = value + lengths[n_runs - 2] if n_runs > 2 else value
            n_runs += 1
            value, shift = 0, 0
    return lengths[:n_runs].copy()


@numba.njit(nogil=True, cache=True)
def _check_texts(codes, ends, n_pixels):
    """(N,) int8 result of `_check_text` for each of N concatenated texts and their numbers of pixels."""
    results = np.empty(len(ends), np.int8)
    start = 0
    for mask in range(len(ends)):
        results[mask] = _check_text(codes[start : ends[mask]], n_pixels[mask])
        start = ends[mask]
    return results


@numba.njit(nogil=True, cache=True)
def _check_text(codes, n_pixels):
    """Checks one text. Returns `_CANONICAL`, `_NON_CANONICAL` if pycocotools writes it differently, or an error."""
    result, out_of_range = _CANONICAL, False
    n_digits, before = 0, 0
    for code in codes:
        digit = np.int64(code) - _ZERO
        if digit < 0 or digit >= 2 * _MORE or n_digits == 7:
            return _MALFORMED
        n_digits += 1
        if digit & _MORE:
            before = digit
            continue
        # pycocotools extends signs of at most 32 bits.
        out_of_range |= n_digits == 7 and digit & _SIGN > 0
        if n_digits > 1 and ((digit == 0 and not before & _SIGN) or (digit == 31 and before & _SIGN)):
            result = _NON_CANONICAL  # a redundant digit
        n_digits = 0
    if n_digits > 0 or len(codes) == 0:
        return _MALFORMED
    lengths = _run_lengths(codes)
    left = n_pixels
    for run in range(len(lengths)):
        if lengths[run] < 0 or lengths[run] > left:
            return _WRONG_RUNS
        if lengths[run] == 0 and run > 0:
            result = _NON_CANONICAL  # pycocotools computes wrong boxes and overlaps for runs of length 0
        left -= lengths[run]
    if left:
        return _WRONG_RUNS
    return _OUT_OF_RANGE if out_of_range else result


@numba.njit(nogil=True, cache=True)
def _measure_texts(codes, ends, heights):
    """(N,) areas and (N, 4) boxes of N valid, concatenated texts."""
    areas, boxes = np.zeros(len(ends), np.int64), np.zeros((len(ends), 4), np.int64)
    start = 0
    for mask in range(len(ends)):
        height, box = heights[mask], boxes[mask]
        lengths = _run_lengths(codes[start : ends[mask]])
        start, run_start = ends[mask], 0
        for number in range(len(lengths)):
            run = lengths[number]
            if number % 2 and run > 0:
                left, right = run_start // height, (run_start + run - 1) // height  # first and last column
                top, bottom = run_start - left * height, run_start + run - right * height
                if left != right:
                    top, bottom = 0, height
                if areas[mask] == 0:
                    box[0], box[1] = left, top
                areas[mask] += run
                box[1], box[2], box[3] = min(box[1], top), right + 1, max(box[3], bottom)
            run_start += run
    return areas, boxes
