"""The compiled merge loop makes the same tree as code that tries all pairs at every step."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unsam_mm.pseudo_masks.merging import Borders, merge_regions


def merge_plainly(features, sizes, edges):
    """Scores all touching pairs of live regions at every step and merges the best one."""
    total = {i: (features[i].astype(np.float64) * sizes[i]) for i in range(len(features))}
    touching = {frozenset(edge) for edge in edges.tolist()}
    parent = np.full(2 * len(features) - 1, -1)
    for node in range(len(features), len(parent)):
        # Best cosine first; of equal ones the pair with the smallest numbers.
        def cost(pair):
            a, b = sorted(pair)
            return -total[a] @ total[b] / np.linalg.norm(total[a]) / np.linalg.norm(total[b]), a, b

        a, b = sorted(min(touching, key=cost))
        parent[[a, b]] = node
        total[node] = total.pop(a) + total.pop(b)
        touching = {frozenset(node if i in (a, b) else i for i in pair) for pair in touching - {frozenset((a, b))}}
    return parent


def plain_cost(cosine, length, strength, weight):
    """What two regions cost to join; the thousandths keep equal colours and absent edges comparable."""
    return (max(1 - cosine, 0) + 0.001) ** (1 - weight) * (strength / length + 0.001) ** weight


def costs_of_merges(parent, features, sizes, edges, borders):
    """Follows the merges of a tree with plain dictionaries; for each the cost of the joined pair and the least cost."""
    total = {i: features[i].astype(np.float64) * sizes[i] for i in range(len(features))}
    touching = {}
    for edge, length, strength in zip(edges.tolist(), borders.lengths_px, borders.strengths, strict=True):
        touching[frozenset(edge)] = (float(length), float(length * strength))

    def cost(pair):
        a, b = pair
        cosine = total[a] @ total[b] / np.linalg.norm(total[a]) / np.linalg.norm(total[b])
        return plain_cost(cosine, *touching[pair], borders.weight)

    found = []
    for node in range(len(features), len(parent)):
        joined = frozenset(np.flatnonzero(parent == node).tolist())
        found.append((cost(joined), min(cost(pair) for pair in touching)))
        total[node] = sum(total[child] for child in joined)
        after = {}
        for pair, border in touching.items():
            if pair != joined:
                moved = frozenset(node if i in joined else i for i in pair)
                after[moved] = tuple(np.add(after.get(moved, (0, 0)), border))
        touching = after
    return np.array(found).reshape(-1, 2)


@st.composite
def random_graphs(draw):
    """A connected graph: a random spanning tree and some more edges."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_regions = draw(st.integers(1, 24))
    pairs = {(int(rng.integers(i)), i) for i in range(1, n_regions)}
    for _ in range(draw(st.integers(0, 30)) if n_regions > 1 else 0):
        a, b = sorted(rng.choice(n_regions, 2, replace=False).tolist())
        pairs.add((a, b))
    features = rng.standard_normal((n_regions, draw(st.integers(2, 9)))).astype(np.float32)
    return features, rng.integers(1, 50, n_regions), np.array(sorted(pairs), np.int32).reshape(-1, 2)


@settings(max_examples=200)
@given(random_graphs())
def test_the_tree_equals_that_of_the_plain_method(graph):
    parent, similarity = merge_regions(*graph)
    assert parent.tolist() == merge_plainly(*graph).tolist()
    assert len(similarity) == len(graph[0]) - 1


@settings(max_examples=200)
@given(random_graphs(), st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_with_borders_each_merge_is_the_cheapest_of_that_moment(graph, seed, weight):
    rng = np.random.default_rng(seed)
    n_edges = len(graph[2])
    borders = Borders(rng.integers(1, 40, n_edges).astype(float), rng.uniform(0, 3, n_edges), weight)
    parent, similarity = merge_regions(*graph, borders)
    joined, least = costs_of_merges(parent, *graph, borders).T
    assert joined == pytest.approx(least, abs=1e-4)
    assert 1 - similarity == pytest.approx(joined, abs=1e-4)


@given(random_graphs())
def test_borders_without_weight_change_nothing(graph):
    borders = Borders(np.ones(len(graph[2])), np.linspace(0, 2, len(graph[2])), weight=0)
    for with_borders, without in zip(merge_regions(*graph, borders), merge_regions(*graph), strict=True):
        assert with_borders.tolist() == without.tolist()


def test_a_long_weak_border_opens_a_strong_one():
    """Region 0 touches 1 with a strong edge; once 1 has joined 2, whose edge with 0 is long and weak, they go together.

    Region 3 lies beside 0 with an edge of strength 1: stronger than the mean of the joined border, weaker than the
    strong part of it.
    """
    features = np.array([[1, 0], [0.6, 0.8], [0.6, 0.8], [0.6, -0.8]])
    edges = np.array([[0, 1], [0, 2], [1, 2], [0, 3]])
    strengths = np.array([4, 0.5, 0.1, 1.0])
    parent, _ = merge_regions(features, np.ones(4), edges, Borders(np.array([5, 45, 9, 9]), strengths, 0.5))
    assert parent.tolist() == [5, 4, 4, 6, 5, 6, -1]
    parent, _ = merge_regions(features, np.ones(4), edges, Borders(np.array([45, 5, 9, 9]), strengths, 0.5))
    assert parent.tolist() == [5, 4, 4, 5, 6, 6, -1]


def test_equal_similarities_are_taken_in_the_order_of_node_numbers():
    edges = np.array([[0, 1], [1, 2], [2, 3]])
    parent, _ = merge_regions(np.ones((4, 3)), np.ones(4), edges)
    assert parent.tolist() == [4, 4, 5, 5, 6, 6, -1]


def test_the_order_of_the_edges_does_not_matter():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((40, 8)).astype(np.float32)
    edges = np.array([[i, j] for i in range(40) for j in range(i) if (i + j) % 3 == 0 or j == i - 1])
    shuffled = rng.permutation(edges)[:, ::-1]
    assert (merge_regions(features, np.ones(40), edges)[0] == merge_regions(features, np.ones(40), shuffled)[0]).all()


def test_regions_that_do_not_hang_together_are_refused():
    with pytest.raises(ValueError, match='2 unconnected components'):
        merge_regions(np.ones((3, 2)), np.ones(3), np.array([[0, 1]]))


def test_merging_takes_a_hundredth_of_the_time_of_code_that_tries_all_pairs():
    """In processor time, which other programs do not lengthen; what is measured is a thousandth."""
    index = np.arange(144).reshape(12, 12)
    beside = np.stack([index[:, :-1], index[:, 1:]], axis=-1).reshape(-1, 2)
    below = np.stack([index[:-1], index[1:]], axis=-1).reshape(-1, 2)
    edges, sizes = np.concatenate([beside, below]), np.ones(144)
    features = np.random.default_rng(0).standard_normal((144, 32)).astype(np.float32)
    merge_regions(features, sizes, edges)  # compiles
    start = time.process_time()
    expected = merge_plainly(features, sizes, edges)
    plain_s = time.process_time() - start
    start = time.process_time()
    for _ in range(10):
        parent, _ = merge_regions(features, sizes, edges)
    assert np.array_equal(parent, expected)
    assert (time.process_time() - start) / 10 < plain_s / 100
