"""The watershed from given seeds, by a queue that needs no comparisons.

Pixels are taken in the order of their values, of equal ones those that were reached first, and hand their label to their
neighbours that have none. A heap spends most of the time on keeping its order. Here each pixel's value is replaced by its
rank beforehand; then the queue is a set of small integers, and the smallest is found by three looks at a tree of bits.

Source: Meyer, 1991 (flooding in the order of values); van Emde Boas, 1975 (the queue's idea).
"""

from __future__ import annotations

import numba
import numpy as np

_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
# The position of a word's lowest bit, by the six highest bits of that bit's product with the number above.
_LOWEST_BIT = np.argsort([(int(_DE_BRUIJN) << bit) % 2**64 >> 58 for bit in range(64)])


def ranks_of(values: np.ndarray) -> np.ndarray:
    """(H, W) int32 place of each value among the different values of an (H, W) image, from 0."""
    flat = values.ravel()
    order = np.argsort(flat)
    ranks = np.empty(len(flat), np.int32)
    _number(flat, order, ranks)
    return ranks.reshape(values.shape)


def flood(ranks: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The seeds grown until they fill the image, 4-connected.

    Args:
        ranks: (H, W) int32 as from `ranks_of`; low values are flooded first.
        seeds: (H, W) int32 labels from 1, 0 where there is no seed; at least one.

    Returns:
        (H, W) int32 labels as of the seeds. The same as scikit-image's `watershed` gives, but for seeds of exactly the
        same value that stand in one plain: there its heap has no order, and here the upper left seed comes first.
    """
    # A frame that counts as labelled, so that no pixel has to be asked whether it lies at the outline.
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
    # Bit r of `fine` says that rank r waits, each bit of the next two that a word of the one before is not empty.
    fine = np.zeros((n_ranks >> 6) + 1, np.uint64)
    middle = np.zeros((len(fine) >> 6) + 1, np.uint64)
    coarse = np.zeros((len(middle) >> 6) + 1, np.uint64)
    # The last pixel of each rank that waits, and after each pixel the next one of its rank, after the last the first.
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
    """Puts a pixel behind the others of its rank."""
    if last[rank] < 0:
        following[pixel] = pixel
        _set_bit(fine, rank)
        _set_bit(middle, rank >> 6)
        _set_bit(coarse, rank >> 12)
    else:
        following[pixel] = following[last[rank]]
        following[last[rank]] = pixel
    last[rank] = pixel
