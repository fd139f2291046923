"""The best set of regions that do not overlap: exact within one tree, and combined from several trees of one plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from unsam_mm.masks.hierarchy import MaskHierarchy

_MAX_OVERLAP = 0.1  # maximum overlap of two regions that may both be chosen, as a share of the smaller one


@dataclass(frozen=True, eq=False)
class Selection:
    """Regions of several trees over one plane that hardly overlap.

    Attributes:
        source: (K,) index of the tree of each region.
        nodes: (K,) node of each region in its tree.
    """

    source: np.ndarray
    nodes: np.ndarray

    def __len__(self) -> int:
        return len(self.nodes)

    def of(self, source: int) -> np.ndarray:
        """The chosen nodes of one tree."""
        return self.nodes[self.source == source]


def leaf_values(tree: MaskHierarchy, nodes: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(L,) int64: for each leaf the value of the node that contains it; 0 if none does.

    Args:
        tree: Tree over a plane.
        nodes: (K,) disjoint nodes.
        values: (K,) integer values of the nodes.
    """
    steps = np.zeros(tree.n_leaves + 1, np.int64)
    steps[tree.first_leaf[nodes]] += values
    steps[tree.end_leaf[nodes]] -= values
    return np.cumsum(steps[:-1])


def best_disjoint(tree: MaskHierarchy, score: np.ndarray) -> np.ndarray:
    """(K,) the disjoint regions of a tree with the largest sum of scores.

    From the leaves up, a region is chosen over its descendants if its score is at least their largest sum.

    Args:
        tree: Tree over a plane.
        score: (N,) scores of the regions; regions without a positive score are never chosen.
    """
    return np.flatnonzero(_chosen(tree.parent, np.asarray(score, np.float64), True))


def greedy_disjoint(tree: MaskHierarchy, score: np.ndarray) -> np.ndarray:
    """(K,) disjoint regions, chosen greedily by score; see `best_disjoint` for the arguments."""
    return np.flatnonzero(_chosen(tree.parent, np.asarray(score, np.float64), False))


class LeafOverlaps:
    """Intersections of the leaves of each pair of trees over a plane; those of other regions are computed from them."""

    def __init__(self, trees: Sequence[MaskHierarchy]) -> None:
        self._trees = trees
        self._shared = {(i, j): _leaf_intersections(trees[i], trees[j]) for j in range(len(trees)) for i in range(j)}

    def pixels(self, one: int, nodes: np.ndarray, other: int, others: np.ndarray) -> np.ndarray:
        """(K, K') intersections in pixels of K nodes of tree `one` with K' nodes of tree `other`, one < other."""
        inside, of_others = (_leaves(self._trees[tree], chosen) for tree, chosen in ((one, nodes), (other, others)))
        return (inside @ self._shared[one, other] @ of_others.T).toarray()


def _leaf_intersections(tree: MaskHierarchy, other: MaskHierarchy) -> csr_array:
    """(L, L') intersections of the leaves of two trees in pixels."""
    regions, other_regions, areas = tree.partition.cells(other.partition)
    leaves = tree.tree.leaf_of_region[regions], other.tree.leaf_of_region[other_regions]
    return csr_array((areas, leaves), shape=(tree.n_leaves, other.n_leaves))


def _leaves(tree: MaskHierarchy, nodes: np.ndarray) -> csr_array:
    """(K, L) sparse matrix: 1 where a node contains a leaf."""
    first, counts = tree.first_leaf[nodes], tree.end_leaf[nodes] - tree.first_leaf[nodes]
    ends = np.concatenate([[0], np.cumsum(counts)])
    leaves = np.arange(ends[-1]) + np.repeat(first - ends[:-1], counts)
    return csr_array((np.ones(ends[-1], np.int32), leaves, ends), shape=(len(nodes), tree.n_leaves))


def best_of_trees(
    trees: Sequence[MaskHierarchy], scores: Sequence[np.ndarray], overlaps: LeafOverlaps | None = None
) -> Selection:
    """The best regions of several trees; of overlapping ones, the set with the larger sum of scores is chosen.

    Args:
        trees: Trees over the same plane.
        scores: (N,) scores for each tree; see `best_disjoint`.
        overlaps: Overlaps of these trees, if they are already computed.
    """
    overlaps = overlaps or LeafOverlaps(trees)
    chosen = Selection(np.zeros(0, np.int64), np.zeros(0, np.int64))
    for number, (tree, score) in enumerate(zip(trees, scores, strict=True)):
        nodes = best_disjoint(tree, score)
        if not len(nodes):
            continue
        source = np.concatenate([chosen.source, np.full(len(nodes), number)])
        node = np.concatenate([chosen.nodes, nodes])
        is_new = np.arange(len(node)) >= len(chosen)
        is_overlapping = np.zeros((len(node), len(node)), bool)
        for other in np.unique(chosen.source):
            earlier = np.flatnonzero(chosen.source == other)
            shared = overlaps.pixels(int(other), node[earlier], number, nodes)
            smaller = np.minimum(trees[other].area[node[earlier]][:, None], tree.area[nodes][None])
            is_overlapping[earlier, len(chosen) :] = shared > _MAX_OVERLAP * smaller
        # In each group of overlapping regions, either the old or the new ones are chosen.
        n_groups, group = connected_components(csr_array(is_overlapping), directed=False)
        each = np.array([scores[i][j] for i, j in zip(source, node, strict=True)])
        new, old = (np.bincount(group[part], each[part], minlength=n_groups) for part in (is_new, ~is_new))
        is_kept = np.where(is_new, new[group] > old[group], new[group] <= old[group])
        chosen = Selection(source[is_kept], node[is_kept])
    return chosen


@numba.njit(nogil=True, cache=True)
def _chosen(parent, score, adds):
    """(N,) bool: True for chosen nodes, which are disjoint.

    A node is chosen over its descendants if its score is at least the best result from them: their largest sum if
    `adds`, else their largest score.
    """
    n_nodes = len(parent)
    below = np.zeros(n_nodes)
    chosen = np.zeros(n_nodes, np.bool_)
    for node in range(n_nodes):
        chosen[node] = score[node] > 0 and score[node] >= below[node]
        best, up = max(score[node], below[node]), parent[node]
        if up >= 0:
            below[up] = below[up] + best if adds else max(below[up], best)
    covered = np.zeros(n_nodes, np.bool_)
    for node in range(n_nodes - 2, -1, -1):
        up = parent[node]
        covered[node] = covered[up] or chosen[up]
        if covered[node]:
            chosen[node] = False
    return chosen
