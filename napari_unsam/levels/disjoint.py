"""The best set of regions that do not overlap: exact within one tree, and joined from several trees of one plane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from unsam_mm.masks.hierarchy import MaskHierarchy

_MAX_OVERLAP = 0.1  # of the smaller of two regions: what may overlap without the two being rivals


@dataclass(frozen=True, eq=False)
class Selection:
    """Regions of several trees over one plane that hardly overlap.

    Attributes:
        source: (K,) the tree of each, by its place among the trees.
        nodes: (K,) its node there.
    """

    source: np.ndarray
    nodes: np.ndarray

    def __len__(self) -> int:
        return len(self.nodes)

    def of(self, source: int) -> np.ndarray:
        """The nodes of one tree."""
        return self.nodes[self.source == source]


def node_totals(tree: MaskHierarchy, of_leaves: np.ndarray) -> np.ndarray:
    """(N,) sum over the leaves of each node."""
    sums = np.concatenate([[0], np.cumsum(of_leaves)])
    return sums[tree.end_leaf] - sums[tree.first_leaf]


def best_disjoint(tree: MaskHierarchy, score: np.ndarray) -> np.ndarray:
    """(K,) the disjoint regions of a tree with the largest sum of scores.

    From the leaves up, a region is taken if its score is larger than the sum of the best below it.

    Args:
        tree: Of a plane.
        score: (N,) of each region; it is never taken if that is not positive.
    """
    return np.flatnonzero(_chosen(tree.parent, np.asarray(score, np.float64), True))


def greedy_disjoint(tree: MaskHierarchy, score: np.ndarray) -> np.ndarray:
    """(K,) disjoint regions, chosen greedily by score.

    Args:
        tree: Of a plane.
        score: (N,) of each region; it is never taken if that is not positive.
    """
    return np.flatnonzero(_chosen(tree.parent, np.asarray(score, np.float64), False))


class LeafOverlaps:
    """How many pixels the leaves of each two trees share, so that no choice among their regions looks at the pixels again.

    Args:
        trees: Over the same plane.
    """

    def __init__(self, trees: Sequence[MaskHierarchy]) -> None:
        self._trees = trees
        self._shared = {
            (one, other): csr_array(
                (
                    np.ones(trees[one].leaf_labels.size, np.int32),
                    (trees[one].leaf_labels.ravel(), trees[other].leaf_labels.ravel()),
                ),
                shape=(trees[one].n_leaves, trees[other].n_leaves),
            )
            for other in range(len(trees))
            for one in range(other)
        }

    def pixels(self, one: int, nodes: np.ndarray, other: int, others: np.ndarray) -> np.ndarray:
        """(K, K') pixels that regions of one tree share with those of a later one."""
        inside, of_others = (_leaves(self._trees[tree], chosen) for tree, chosen in ((one, nodes), (other, others)))
        return (inside @ self._shared[one, other] @ of_others.T).toarray()


def _leaves(tree: MaskHierarchy, nodes: np.ndarray) -> csr_array:
    """(K, L) which leaves each region holds."""
    first, counts = tree.first_leaf[nodes], tree.end_leaf[nodes] - tree.first_leaf[nodes]
    ends = np.concatenate([[0], np.cumsum(counts)])
    leaves = np.arange(ends[-1]) + np.repeat(first - ends[:-1], counts)
    return csr_array((np.ones(ends[-1], np.int32), leaves, ends), shape=(len(nodes), tree.n_leaves))


def best_of_trees(
    trees: Sequence[MaskHierarchy], scores: Sequence[np.ndarray], overlaps: LeafOverlaps | None = None
) -> Selection:
    """The best regions of several trees; where two trees overlap, the regions with the larger sum of scores stay.

    Args:
        trees: Over the same plane.
        scores: For each an (N,) array; see `best_disjoint`.
        overlaps: Of these trees, if they are known already.
    """
    overlaps = overlaps or LeafOverlaps(trees)
    chosen = Selection(np.zeros(0, np.int64), np.zeros(0, np.int64))
    for number, (tree, score) in enumerate(zip(trees, scores, strict=True)):
        chosen = _joined(trees, scores, overlaps, chosen, number, best_disjoint(tree, score))
    return chosen


def _joined(
    trees: Sequence[MaskHierarchy],
    scores: Sequence[np.ndarray],
    overlaps: LeafOverlaps,
    chosen: Selection,
    number: int,
    nodes: np.ndarray,
) -> Selection:
    both = Selection(
        np.concatenate([chosen.source, np.full(len(nodes), number)]), np.concatenate([chosen.nodes, nodes])
    )
    if not len(chosen) or not len(nodes):
        return both
    is_new = np.arange(len(both)) >= len(chosen)
    rivals = np.zeros((len(both), len(both)), bool)
    for other in np.unique(chosen.source):
        held = np.flatnonzero(chosen.source == other)
        shared = overlaps.pixels(int(other), chosen.nodes[held], number, nodes)
        smaller = np.minimum(trees[other].area[chosen.nodes[held]][:, None], trees[number].area[nodes][None])
        rivals[np.ix_(held, is_new.nonzero()[0])] = shared > _MAX_OVERLAP * smaller
    _, group = connected_components(rivals, directed=False)
    score = np.array([scores[source][node] for source, node in zip(both.source, both.nodes, strict=True)])
    new, held = (np.bincount(group[part], score[part], minlength=group.max() + 1) for part in (is_new, ~is_new))
    stays = np.where(is_new, new[group] > held[group], new[group] <= held[group])
    return Selection(both.source[stays], both.nodes[stays])


@numba.njit(nogil=True, cache=True)
def _chosen(parent, score, adds):
    """(N,) bool; a node is taken if its score is at least that of the best below it: their sum, or their maximum."""
    n_nodes = len(parent)
    below = np.zeros(n_nodes)
    taken = np.zeros(n_nodes, np.bool_)
    for node in range(n_nodes):
        taken[node] = score[node] > 0 and score[node] >= below[node]
        best, up = max(score[node], below[node]), parent[node]
        if up >= 0:
            below[up] = below[up] + best if adds else max(below[up], best)
    covered = np.zeros(n_nodes, np.bool_)
    for node in range(n_nodes - 2, -1, -1):
        up = parent[node]
        covered[node] = covered[up] or taken[up]
        if covered[node]:
            taken[node] = False
    return taken
