"""Random region trees for property tests, and a plain way to draw their nodes."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from unsam_mm import MaskHierarchy


@st.composite
def random_trees(draw, max_side: int = 9):
    """A small label map with a random tree over it, not always binary; returns the leaves' numbers as given too."""
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, draw(st.integers(1, height * width)), (height, width))
    labels = np.unique(labels, return_inverse=True)[1].reshape(height, width)
    parent, heights = random_parents(rng, labels.max() + 1)
    return labels, MaskHierarchy.from_merges(labels, parent, heights), parent


def random_parents(rng: np.random.Generator, n_leaves: int):
    """Parents and heights of a random tree over `n_leaves` leaves."""
    parent, heights = [-1] * n_leaves, [0.0] * n_leaves
    open_nodes = list(range(n_leaves))
    while len(open_nodes) > 1:
        count = min(len(open_nodes), int(rng.integers(2, 4)))
        for child in rng.choice(open_nodes, count, replace=False).tolist():
            parent[child] = len(parent)
            open_nodes.remove(child)
        open_nodes.append(len(parent))
        parent.append(-1)
        heights.append(float(rng.random()))
    return np.array(parent), np.array(heights)


def drawn(labels: np.ndarray, parent: np.ndarray, node: int) -> np.ndarray:
    """(H, W) bool mask of a node, by walking up from every leaf."""
    mask = np.zeros(labels.shape, bool)
    for leaf in range(labels.max() + 1):
        up = leaf
        while up not in (-1, node):
            up = parent[up]
        if up == node:
            mask |= labels == leaf
    return mask
