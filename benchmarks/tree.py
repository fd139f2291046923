"""The compiled merge loop against a dictionary of all pairs, and against scikit-learn's clustering on the same graph."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np

from benchmarks.inputs import Inputs, patch_keys
from benchmarks.timing import Comparison, Row, in_turns, one_thread
from unsam_mm.pseudo_masks.merging import merge_regions

_LINKAGES = {'average': 'cosine', 'ward': 'euclidean'}
"""Linkage and metric of scikit-learn. Unlike `merge_regions`, none compares mean features of regions by their cosine:
'average' updates the cosines of touching pairs without features; 'ward' compares mean features by distance."""


def run(inputs: Inputs, side: int = 32, repetitions: int = 9) -> Row:
    """Merges all patches of a photograph into one region.

    Args:
        inputs: Unused.
        side: Patches along each side; 32 is the grid of the published conquer step.
        repetitions: Runs of each side.
    """
    with one_thread():
        features = patch_keys(side).reshape(side * side, -1)
        edges = grid_edges(side)
        sides = {
            'ours': lambda: merge_regions(features, np.ones(len(features)), edges)[0],
            'dictionary': lambda: plain_tree(features, edges),
        }
        notes = []
        if importlib.util.find_spec('sklearn'):
            sides |= {name: _scikit_learn(features, edges, name) for name in _LINKAGES}
        else:
            notes.append('scikit-learn is not installed and was left out; pip install scikit-learn')
        sides['ours']()  # compiles
        costs, parents = in_turns(sides, repetitions)
    clusters = {name: clusters_of(parent, len(features)) for name, parent in parents.items()}
    shared = {name: len(clusters['ours'] & found) for name, found in clusters.items()}
    total, size = len(clusters['ours']), f'{len(features)} patches of {features.shape[1]} channels'
    comparisons = [
        Comparison(
            'dictionary of pairs',
            costs['ours'],
            costs['dictionary'],
            f'{size}: {shared["dictionary"]} of {total} regions equal',
            shared['dictionary'] == total,
        )
    ]
    comparisons += [
        Comparison(
            f'scikit-learn, {name} linkage',
            costs['ours'],
            costs[name],
            f'same patches and graph, whole tree; another criterion ({metric}), so {shared[name]} of {total} regions are equal',
        )
        for name, metric in _LINKAGES.items()
        if name in costs
    ]
    return Row('tree', comparisons, notes)


def grid_edges(side: int) -> np.ndarray:
    """(E, 2) pairs of neighbouring cells of a square grid."""
    index = np.arange(side * side).reshape(side, side)
    beside = np.stack([index[:, :-1], index[:, 1:]], axis=-1).reshape(-1, 2)
    below = np.stack([index[:-1], index[1:]], axis=-1).reshape(-1, 2)
    return np.concatenate([beside, below])


def plain_tree(features: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Parents of the merge tree as the paper describes it: every step searches all pairs for the best one.

    Args:
        features: (L, C) float, one row for each patch.
        edges: (E, 2) pairs of touching patches that connect all of them.

    Returns:
        (2L - 1,) parents; the k-th merge makes node L + k.
    """
    sums = {i: row.astype(np.float64) for i, row in enumerate(features)}
    lengths = {i: np.linalg.norm(row) for i, row in sums.items()}
    pairs = {(int(a), int(b)): sums[a] @ sums[b] / (lengths[a] * lengths[b]) for a, b in edges}
    parent = np.full(2 * len(features) - 1, -1)
    for node in range(len(features), len(parent)):
        best = max(pairs, key=pairs.__getitem__)
        parent[list(best)] = node
        sums[node] = sums.pop(best[0]) + sums.pop(best[1])
        lengths[node] = np.linalg.norm(sums[node])
        touching = [pair for pair in pairs if pair[0] in best or pair[1] in best]
        for pair in touching:
            del pairs[pair]
        for other in {region for pair in touching for region in pair} - set(best):
            pairs[other, node] = sums[other] @ sums[node] / (lengths[other] * lengths[node])
    return parent


def clusters_of(parent: np.ndarray, n_leaves: int) -> set[bytes]:
    """The merged regions of a tree, each as the packed bits of its leaves; the order of the merges does not matter."""
    member = np.zeros((len(parent), n_leaves), bool)
    member[np.arange(n_leaves), np.arange(n_leaves)] = True
    for node in range(len(parent) - 1):
        member[parent[node]] |= member[node]
    return {np.packbits(row).tobytes() for row in member[n_leaves:]}


def _scikit_learn(features: np.ndarray, edges: np.ndarray, linkage: str) -> Callable[[], np.ndarray]:
    """A function that merges the patches and returns the parents."""
    from scipy.sparse import coo_matrix
    from sklearn.cluster import AgglomerativeClustering

    count = len(features)
    graph = coo_matrix((np.ones(len(edges)), edges.T), shape=(count, count))
    clustering = AgglomerativeClustering(
        n_clusters=None,
        distance_threshold=0,  # computes the whole tree
        metric=_LINKAGES[linkage],
        linkage=linkage,
        connectivity=(graph + graph.T).tocsr(),
    )

    def merge() -> np.ndarray:
        parent = np.full(2 * count - 1, -1)
        parent[clustering.fit(features).children_.ravel()] = np.repeat(np.arange(count, 2 * count - 1), 2)
        return parent

    return merge
