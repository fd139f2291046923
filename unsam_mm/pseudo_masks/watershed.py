"""Seeded watershed with an integer priority queue.

Pixels are processed in ascending order of their values, and pixels of equal value in the order in which they enter the
queue; each passes its label on to its unlabelled neighbours. A heap would dominate the running time. Here values are
replaced by their ranks, so the queue is a set of integers, and its minimum is found in three steps of a bit tree.

Source: Meyer, 1991 (flooding in the order of values); van Emde Boas, 1975 (idea of the priority queue).
"""

from __future__ import annotations

import numba
import numpy as np

_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
# Position of the lowest set bit of a word. The index is the six highest bits of that bit multiplied by `_DE_BRUIJN`.
_LOWEST_BIT = np.argsort([(int(_DE_BRUIJN) << bit) % 2**64 >> 58 for bit in range(64)])


def ranks_of(values: np.ndarray) -> np.ndarray:
    """(H, W) int32 dense rank of each value of an (H, W) image, from 0."""
    flat = values.ravel()
    order = np.argsort(flat)
    ranks = np.empty(len(flat), np.int32)
    _number(flat, order, ranks)
    return ranks.reshape(values.shape)


def flood(ranks: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Watershed of an image from seeds, 4-connected.

    Args:
        ranks: (H, W) int32, as from `ranks_of`; low values are flooded first.
        seeds: (H, W) int32 labels from 1, and 0 where there is no seed; at least one seed.

    Returns:
        (H, W) int32 labels of the seeds. The result equals that of scikit-image's `watershed`, except for seeds of
        equal value in one plateau, whose order is undefined in scikit-image; here they are processed row by row.
    """
    # The padding counts as labelled, so that neighbours need no bounds check.
    labels = np.pad(np.asarray(seeds, np.int32), 1, constant_values=-1)
    _flood(np.pad(np.asarray(ranks, np.int32), 1).ravel(), labels.ravel(), labels.shape[1])
    return labels[1:-1, 1:-1].copy()


@numba.njit(nogil=True, cache=True)
def _number(values, order, ranks):
    rank = 0
    for i in range(len(order)):
        if i > 0 and values[order[i]] != values[order[i - 1]]:
            rank += 1
        ranks[order[i]] = rank


@numba.njit(nogil=True, cache=True)
def _lowest_bit(word):
    return _LOWEST_BIT[((word & (~word + np.uint64(1))) * _DE_BRUIJN) >> np.uint64(58)]


@numba.njit(nogil=True, cache=True)
def _set_bit(words, position):
    words[position >> 6] |= np.uint64(1) << np.uint64(position & 63)


@numba.njit(nogil=True, cache=True)
def _flood(ranks, labels, width):
    n_ranks = ranks.max() + 1
    # Bit r of `fine` is set if pixels of rank r are queued. Bit w of `middle` is set if word w of `fine` is not zero;
    # `coarse` describes `middle` in the same way.
    fine = np.zeros((n_ranks >> 6) + 1, np.uint64)
    middle = np.zeros((len(fine) >> 6) + 1, np.uint64)
    coarse = np.zeros((len(middle) >> 6) + 1, np.uint64)
    # The queued pixels of a rank form a circular linked list, entered by its last pixel.
    last = np.full(n_ranks, -1, np.int32)
    following = np.empty(len(labels), np.int32)
    sides = (-width, -1, 1, width)
    for pixel in range(width, len(labels) - width):
        if labels[pixel] > 0 and not (
            labels[pixel - width] and labels[pixel - 1] and labels[pixel + 1] and labels[pixel + width]
        ):
            _enter(pixel, ranks[pixel], last, following, fine, middle, coarse)
    start = 0
    while True:
        while start < len(coarse) and coarse[start] == 0:
            start += 1
        if start == len(coarse):
            break
        word = start * 64 + _lowest_bit(coarse[start])
        word = word * 64 + _lowest_bit(middle[word])
        rank = word * 64 + _lowest_bit(fine[word])
        pixel = following[last[rank]]
        if pixel != last[rank]:
            following[last[rank]] = following[pixel]
        else:
            last[rank] = -1
            fine[word] &= fine[word] - np.uint64(1)
            if fine[word] == 0:
                middle[word >> 6] &= middle[word >> 6] - np.uint64(1)
                if middle[word >> 6] == 0:
                    coarse[start] &= coarse[start] - np.uint64(1)
        for side in sides:
            neighbour = pixel + side
            if labels[neighbour] == 0:
                labels[neighbour] = labels[pixel]
                _enter(neighbour, ranks[neighbour], last, following, fine, middle, coarse)
                start = min(start, ranks[neighbour] >> 18)


@numba.njit(nogil=True, cache=True)
def _enter(pixel, rank, last, following, fine, middle, coarse):
    """Appends a pixel to the list of its rank."""
    if last[rank] < 0:
        following[pixel] = pixel
        _set_bit(fine, rank)
        _set_bit(middle, rank >> 6)
        _set_bit(coarse, rank >> 12)
    else:
        following[pixel] = following[last[rank]]
        following[last[rank]] = pixel
    last[rank] = pixel
