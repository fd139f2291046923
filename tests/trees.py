"""Random masks and region trees for property tests, and plain ways to draw and compare them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from unsam_mm import MaskHierarchy

seeds = st.integers(0, 2**32 - 1)


@st.composite
def random_trees(draw, max_side: int = 9):
    """A small label map with a random tree over it, not always binary; returns the leaves' numbers as given too."""
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    return random_tree(np.random.default_rng(draw(seeds)), height, width, draw(st.integers(1, height * width)))


@st.composite
def trees_of_one_image(draw, max_side: int = 9, max_trees: int = 4):
    """Random trees over the same pixels; some of their nodes have score 0, and some of their regions are equal."""
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    rng = np.random.default_rng(draw(seeds))
    trees = []
    for _ in range(draw(st.integers(1, max_trees))):
        tree = random_tree(rng, height, width, draw(st.integers(1, height * width)))[1]
        score = rng.random(len(tree)) * (rng.random(len(tree)) < 0.8)
        trees.append(replace(tree, score=score.astype(np.float32)))
    return trees


@st.composite
def random_masks(draw, max_side: int = 9, max_masks: int = 12):
    """(K, H, W) bool rectangles, unions of two of them, copies and empty masks: some nest, some cross, some are equal."""
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    rng = np.random.default_rng(draw(seeds))
    masks = np.zeros((draw(st.integers(0, max_masks)), height, width), bool)
    for i, mask in enumerate(masks):
        if i and rng.random() < 0.2:
            mask[:] = masks[rng.integers(i)]
        for _ in range(rng.integers(0, 3)):
            (top, bottom), (left, right) = np.sort(rng.integers(0, [[height + 1], [width + 1]], (2, 2)), axis=1)
            mask[top:bottom, left:right] = True
    return masks


def random_tree(rng: np.random.Generator, height: int, width: int, max_leaves: int):
    """The label map, the tree over it, and the tree's parents in the numbers of the label map."""
    labels = rng.integers(0, max_leaves, (height, width))
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


def all_masks(tree: MaskHierarchy) -> np.ndarray:
    """(N, H, W) bool masks of all nodes."""
    return np.stack([tree.mask(node) for node in range(len(tree))])


def cross(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two masks overlap and neither holds the other."""
    return bool((one & other).any() and (one & ~other).any() and (other & ~one).any())
