"""The merge loop of the conquer step, compiled with numba.

The most similar pair of adjacent regions is merged until a single region is left. Similarity is the cosine of the
size-weighted mean features, so a merge changes only the similarities of the new region. Pairs are stored in a heap;
a pair with a region that no longer exists is skipped when it is popped, which is cheaper than removing it earlier.
The released code searches a dictionary of all pairs at every step and takes about fifty times as long for the same
tree.

Source: UnSAM, section 3.2 (conquer); SOHES, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np


@dataclass(frozen=True)
class Borders:
    """Borders between adjacent regions.

    Attributes:
        lengths_px: (E,) length of the border that each pair shares.
        strengths: (E,) mean edge strength along the border, in a unit whose typical value is 1.
        weight: Weight of the edge strength, in [0, 1); 0 ignores borders.
    """

    lengths_px: np.ndarray
    strengths: np.ndarray
    weight: float


def merge_regions(
    features: np.ndarray, sizes: np.ndarray, edges: np.ndarray, borders: Borders | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Merges the most similar pair of adjacent regions until one is left.

    Similarity is the cosine of the mean features. With borders it is 1 - (1 - cosine) ** (1 - w) * strength ** w, where
    w is the weight of the borders.

    Args:
        features: (L, C) mean feature of each region; rows need not have unit length.
        sizes: (L,) weight of each region, for example its area in pixels.
        edges: (E, 2) pairs of adjacent regions, each pair once. The graph must be connected.
        borders: Lengths and edge strengths of the pairs; None to merge by features alone.

    Returns:
        parent: (2L - 1,) int64; the k-th merge makes node L + k; -1 at the root, the last node.
        similarity: (L - 1,) float32 similarity of the two regions of each merge, in the order of the merges. Of equally
            similar pairs the one with the smaller node numbers is merged first, so the result is deterministic.

    Raises:
        ValueError: If the regions are not connected.
    """
    sums = np.ascontiguousarray(features, np.float32) * np.asarray(sizes, np.float32)[:, None]
    weight = np.float32(borders.weight if borders else 0)
    lengths = np.asarray(borders.lengths_px if weight else np.zeros(len(edges)), np.float32)
    strengths = np.asarray(borders.strengths if weight else np.zeros(len(edges)), np.float32) * lengths
    parent, similarity, n_merges = _merge(sums, np.ascontiguousarray(edges, np.int32), lengths, strengths, weight)
    if n_merges < len(features) - 1:
        raise ValueError(
            f'the regions form {len(features) - n_merges} unconnected components; expected edges that connect all regions'
        )
    return parent, similarity


_TINY = np.float32(1e-12)  # lower bound of norms, for zero feature vectors
_THOUSANDTH = np.float32(1e-3)


@numba.njit(nogil=True, cache=True, fastmath=True)
def _dot(a, b):
    total = np.float32(0.0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@numba.njit(nogil=True, cache=True)
def _before(similarity, pair, other_similarity, other_pair, first, second):
    """True if a pair comes before another: by higher similarity, then by the smaller numbers of its regions."""
    if similarity != other_similarity:
        return similarity > other_similarity
    if first[pair] != first[other_pair]:
        return first[pair] < first[other_pair]
    return second[pair] < second[other_pair]


@numba.njit(nogil=True, cache=True)
def _push(keys, pairs, length, similarity, pair, first, second):
    """Pushes a pair onto a heap of `length` pairs; keys are stored beside the pairs for fast comparison."""
    position = length
    while position > 0:
        up = (position - 1) // 2
        if not _before(similarity, pair, keys[up], pairs[up], first, second):
            break
        keys[position], pairs[position] = keys[up], pairs[up]
        position = up
    keys[position], pairs[position] = similarity, pair


@numba.njit(nogil=True, cache=True)
def _pop(keys, pairs, length, first, second):
    """Pops the best pair from a heap of `length` pairs."""
    best, similarity, pair = pairs[0], keys[length - 1], pairs[length - 1]
    position, length = 0, length - 1
    while True:
        child = 2 * position + 1
        if child >= length:
            break
        right = child + 1
        if right < length and _before(keys[right], pairs[right], keys[child], pairs[child], first, second):
            child = right
        if not _before(keys[child], pairs[child], similarity, pair, first, second):
            break
        keys[position], pairs[position] = keys[child], pairs[child]
        position = child
    keys[position], pairs[position] = similarity, pair
    return best


@numba.njit(nogil=True, cache=True)
def _enlarged(array, length):
    longer = np.empty(length, array.dtype)
    longer[: array.shape[0]] = array
    return longer


@numba.njit(nogil=True, cache=True)
def _similarity(sums, norm, row, a, b, length, strength, weight):
    """Similarity of two regions; `strength` is summed over the `length` of their border."""
    cosine = _dot(sums[row[a]], sums[row[b]]) / (norm[a] * norm[b])
    if weight == 0:
        return cosine
    # The offset keeps the product above zero for equal features or absent edges.
    differs = max(np.float32(1) - cosine, np.float32(0)) + _THOUSANDTH
    return np.float32(1) - differs ** (np.float32(1) - weight) * (strength / length + _THOUSANDTH) ** weight


@numba.njit(nogil=True, cache=True)
def _merge(sums, edges, lengths, strengths, weight):
    n_leaves, n_edges = sums.shape[0], edges.shape[0]
    n_nodes = 2 * n_leaves - 1
    parent = np.full(n_nodes, -1, np.int64)
    merged_at = np.empty(max(n_leaves - 1, 0), np.float32)
    # A merged region reuses the row of its first child, so the features need no second copy.
    row = np.empty(n_nodes, np.int32)
    norm = np.empty(n_nodes, np.float32)
    for node in range(n_leaves):
        row[node] = node
        norm[node] = max(np.sqrt(_dot(sums[node], sums[node])), _TINY)

    # Pair number e is stored twice as a link: 2e in the list of its first region, 2e + 1 in that of its second.
    capacity = max(8 * n_edges, 16)
    first, second = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    keys, pairs = np.empty(capacity, np.float32), np.empty(capacity, np.int32)
    length, strength = np.empty(capacity, np.float32), np.empty(capacity, np.float32)
    length[:n_edges], strength[:n_edges] = lengths, strengths
    following = np.empty(2 * capacity, np.int32)
    head = np.full(n_nodes, -1, np.int32)
    for pair in range(n_edges):
        a, b = min(edges[pair, 0], edges[pair, 1]), max(edges[pair, 0], edges[pair, 1])
        first[pair], second[pair] = a, b
        following[2 * pair], following[2 * pair + 1] = head[a], head[b]
        head[a], head[b] = 2 * pair, 2 * pair + 1
        key = _similarity(sums, norm, row, a, b, length[pair], strength[pair], weight)
        _push(keys, pairs, pair, key, pair, first, second)
    heap_length, n_pairs = n_edges, n_edges

    pair_with = np.full(n_nodes, -1, np.int32)  # for each region, its pair with the newest region
    node = n_leaves
    while heap_length > 0 and node < n_nodes:
        similarity = keys[0]
        pair = _pop(keys, pairs, heap_length, first, second)
        heap_length -= 1
        a, b = first[pair], second[pair]
        if parent[a] >= 0 or parent[b] >= 0:
            continue
        parent[a] = parent[b] = node
        merged_at[node - n_leaves] = similarity
        row[node] = row[a]
        sums[row[a]] += sums[row[b]]
        norm[node] = max(np.sqrt(_dot(sums[row[node]], sums[row[node]])), _TINY)
        n_old = n_pairs
        for child in (a, b):
            link = head[child]
            while link >= 0:
                old, other = link // 2, second[link // 2] if link % 2 == 0 else first[link // 2]
                link = following[link]
                if parent[other] >= 0:
                    continue  # it is part of a larger region
                if pair_with[other] >= n_old:  # a neighbour of both children
                    length[pair_with[other]] += length[old]
                    strength[pair_with[other]] += strength[old]
                    continue
                if n_pairs == capacity:
                    capacity *= 2
                    first, second = _enlarged(first, capacity), _enlarged(second, capacity)
                    keys, pairs = _enlarged(keys, capacity), _enlarged(pairs, capacity)
                    length, strength = _enlarged(length, capacity), _enlarged(strength, capacity)
                    following = _enlarged(following, 2 * capacity)
                pair_with[other] = n_pairs
                first[n_pairs], second[n_pairs] = other, node
                length[n_pairs], strength[n_pairs] = length[old], strength[old]
                following[2 * n_pairs], following[2 * n_pairs + 1] = head[other], head[node]
                head[other], head[node] = 2 * n_pairs, 2 * n_pairs + 1
                n_pairs += 1
        for new in range(n_old, n_pairs):
            key = _similarity(sums, norm, row, first[new], node, length[new], strength[new], weight)
            _push(keys, pairs, heap_length, key, new, first, second)
            heap_length += 1
        node += 1
    return parent, merged_at, node - n_leaves
