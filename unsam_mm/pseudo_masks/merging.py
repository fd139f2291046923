"""The merge loop of the conquer step, compiled.

The most similar pair of touching regions becomes one region until a single one is left. Similarity is the cosine of
the size-weighted mean features, so after a merge only the pairs of the new region have to be scored again. A heap
holds the pairs; a pair whose regions are gone is skipped when it comes up, which is cheaper than finding it earlier.
The released code walks a dictionary of all pairs at every step and takes a hundred times as long for the same tree.

Source: UnSAM, section 3.2 (conquer); SOHES, section 3.1.
"""

from __future__ import annotations

import numba
import numpy as np


def merge_regions(features: np.ndarray, sizes: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merges the most similar pair of touching regions until one is left.

    Args:
        features: (L, C) mean feature of each region; rows need not have unit length.
        sizes: (L,) weight of each region, for example its area in pixels.
        edges: (E, 2) pairs of touching regions, each pair once. Together they must connect all regions.

    Returns:
        parent: (2L - 1,) int64; the k-th merge makes node L + k; -1 at the root, the last node.
        similarity: (L - 1,) float32 cosine of the pair that each merge joined, in the order of merging. Equal
            similarities are taken in the order of node numbers, so a machine gives the same tree every time.

    Raises:
        ValueError: If the regions are not connected.
    """
    sums = np.ascontiguousarray(features, np.float32) * np.asarray(sizes, np.float32)[:, None]
    parent, similarity, n_merges = _merge(sums, np.ascontiguousarray(edges, np.int32))
    if n_merges < len(features) - 1:
        raise ValueError(
            f'the regions form {len(features) - n_merges} unconnected parts; expected edges that join all of them'
        )
    return parent, similarity


_TINY = np.float32(1e-12)  # length of a region without features


@numba.njit(nogil=True, cache=True, fastmath=True)
def _dot(a, b):
    total = np.float32(0.0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@numba.njit(nogil=True, cache=True)
def _before(similarity, pair, other_similarity, other_pair, first, second):
    """Whether a pair comes before another: the more similar one, of equal ones that with the smaller numbers."""
    if similarity != other_similarity:
        return similarity > other_similarity
    if first[pair] != first[other_pair]:
        return first[pair] < first[other_pair]
    return second[pair] < second[other_pair]


@numba.njit(nogil=True, cache=True)
def _push(keys, pairs, length, similarity, pair, first, second):
    """Puts a pair into the heap of `length` pairs; keys lie beside pairs, so most steps read nothing else."""
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
    """Takes the best pair out of the heap of `length` pairs."""
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
def _grown(array, length):
    longer = np.empty(length, array.dtype)
    longer[: array.shape[0]] = array
    return longer


@numba.njit(nogil=True, cache=True)
def _merge(sums, edges):
    n_leaves, n_edges = sums.shape[0], edges.shape[0]
    n_nodes = 2 * n_leaves - 1
    parent = np.full(n_nodes, -1, np.int64)
    merged_at = np.empty(max(n_leaves - 1, 0), np.float32)
    # A merged region takes over the row of its first child, so the features need no second copy.
    row = np.empty(n_nodes, np.int32)
    norm = np.empty(n_nodes, np.float32)
    for node in range(n_leaves):
        row[node] = node
        norm[node] = max(np.sqrt(_dot(sums[node], sums[node])), _TINY)

    # Pair number e is stored twice as a link: 2e in the list of its first region, 2e + 1 in that of its second.
    capacity = max(8 * n_edges, 16)
    first, second = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    keys, pairs = np.empty(capacity, np.float32), np.empty(capacity, np.int32)
    following = np.empty(2 * capacity, np.int32)
    head = np.full(n_nodes, -1, np.int32)
    for pair in range(n_edges):
        a, b = min(edges[pair, 0], edges[pair, 1]), max(edges[pair, 0], edges[pair, 1])
        first[pair], second[pair] = a, b
        following[2 * pair], following[2 * pair + 1] = head[a], head[b]
        head[a], head[b] = 2 * pair, 2 * pair + 1
        _push(keys, pairs, pair, _dot(sums[a], sums[b]) / (norm[a] * norm[b]), pair, first, second)
    heap_length, n_pairs = n_edges, n_edges

    seen_by = np.full(n_nodes, -1, np.int32)
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
        for child in (a, b):
            link = head[child]
            while link >= 0:
                other = second[link // 2] if link % 2 == 0 else first[link // 2]
                link = following[link]
                if parent[other] >= 0 or seen_by[other] == node:
                    continue  # merged away, or a neighbour of both children
                seen_by[other] = node
                if n_pairs == capacity:
                    capacity *= 2
                    first, second = _grown(first, capacity), _grown(second, capacity)
                    keys, pairs = _grown(keys, capacity), _grown(pairs, capacity)
                    following = _grown(following, 2 * capacity)
                first[n_pairs], second[n_pairs] = other, node
                following[2 * n_pairs], following[2 * n_pairs + 1] = head[other], head[node]
                head[other], head[node] = 2 * n_pairs, 2 * n_pairs + 1
                cosine = _dot(sums[row[other]], sums[row[node]]) / (norm[other] * norm[node])
                _push(keys, pairs, heap_length, cosine, n_pairs, first, second)
                heap_length += 1
                n_pairs += 1
        node += 1
    return parent, merged_at, node - n_leaves
