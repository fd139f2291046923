"""Computes region tokens and training masks of an image, with the steps of the pseudo-mask generator."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from scipy import sparse

from unsam_mm import threads
from unsam_mm.errors import UnSAMError
from unsam_mm.generator import settings_signature
from unsam_mm.images import as_rgb_uint8
from unsam_mm.masks.hierarchy import MaskHierarchy, intersections_between
from unsam_mm.masks.partition import Partition
from unsam_mm.masks.tree import Tree
from unsam_mm.pseudo_masks.region_trees import GeneratorSettings, GrownRegions, ProgressCallback, RegionTrees
from unsam_mm.pseudo_masks.superpixels import Superpixels
from unsam_mm.student.tokens import MAX_TOKENS, RegionTokens, TokenMasks

_T = TypeVar('_T')

ALGORITHM = 2
"""Version of the computation; incremented when the same image gives other tokens than before."""

_MIN_SUPERPIXELS = 2400
_MIN_SPACING_PX = 3.0
"""Smallest superpixel spacing. Small images, often of cells, get a spacing that gives them about `_MIN_SUPERPIXELS`; the
default spacing of 8 px applies from 481 x 321 px."""


class RegionTokenizer:
    """Computes region tokens of images, and the fractions of these regions that training masks cover.

    Args:
        settings: Settings of the generator. The regions are a cut of its first tree; their order and heights are stored
            for all its trees.
        n_tokens: Maximum number of regions; in an image with fewer superpixels each superpixel is a region.
        device: Torch device of the ViT.

    Raises:
        UnSAMError: If the number of tokens is out of range.
        WeightsError: If the weights of the ViT are not available.
    """

    def __init__(self, settings: GeneratorSettings | None = None, n_tokens: int = 768, device: str = 'cpu') -> None:
        if not 1 <= n_tokens <= MAX_TOKENS:
            raise UnSAMError(f'n_tokens={n_tokens} is out of range; it must lie in 1..{MAX_TOKENS}')
        self.settings, self.n_tokens = settings or GeneratorSettings(), n_tokens
        self._trees = RegionTrees(self.settings, device)

    def with_trees(
        self, image: np.ndarray, process: Callable[[RegionTokens], _T], progress: ProgressCallback | None = None
    ) -> tuple[_T, MaskHierarchy]:
        """Computes the tokens and the ranked trees of an image; returns the result of `process` and the trees.

        Args:
            image: (H, W) or (H, W, 3 or 4) array; see `unsam_mm.images.as_rgb_uint8`.
            process: Called with the tokens in the background, while the trees are ranked.
            progress: Called with the progress; an exception that it raises stops the computation.

        Raises:
            ImageError: If the array is not an image that can be segmented.
        """
        grown = self._grow(image, progress)
        with threads.run_in_background(
            lambda: process(_describe(grown, _cut(grown.trees[0], self.n_tokens)))
        ) as processed:
            hierarchy = self._trees.rank(grown, progress)
            return processed(), hierarchy

    def with_masks(self, image: np.ndarray, max_masks: int = 300) -> tuple[RegionTokens, TokenMasks]:
        """The tokens of an image and its best pseudo-masks.

        Args:
            image: As for `with_trees`.
            max_masks: Maximum number of masks.

        Raises:
            ImageError: If the array is not an image that can be segmented.
            UnSAMError: If `max_masks` is not positive.
        """
        grown = self._grow(image)
        nodes = _cut(grown.trees[0], self.n_tokens)
        return _describe(grown, nodes), _shares(self._trees.rank(grown), nodes, max_masks)

    def _grow(self, image: np.ndarray, progress: ProgressCallback | None = None) -> GrownRegions:
        rgb = as_rgb_uint8(image)
        spacing_px = min(self.settings.superpixel_spacing_px, math.sqrt(rgb.shape[0] * rgb.shape[1] / _MIN_SUPERPIXELS))
        return self._trees.grow(rgb, progress, max(spacing_px, _MIN_SPACING_PX))


def tokens_signature(settings: GeneratorSettings, n_tokens: int) -> str:
    """Twelve hexadecimal digits, a hash of everything besides the image on which tokens and trees depend.

    The weights of the ViT are downloaded if needed, but not loaded.
    """
    described = f'{settings_signature(settings)} {n_tokens} {ALGORITHM}'
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def _cut(tree: MaskHierarchy, n_regions: int) -> np.ndarray:
    """(L,) nodes of the cut with the given number of regions, or all leaves if there are not more than that."""
    if n_regions >= tree.n_leaves:
        return tree.cut_nodes(0.0)
    return tree.cut_nodes(float(tree.level[len(tree) - n_regions]))  # each merge is binary and removes one region


def _describe(grown: GrownRegions, nodes: np.ndarray) -> RegionTokens:
    """The tokens for nodes of the first tree that partition the image."""
    superpixels, means, main = grown.superpixels, grown.means, grown.trees[0]
    of_leaves = np.repeat(np.arange(len(nodes)), main.end_leaf[nodes] - main.first_leaf[nodes])
    token_of_superpixel = of_leaves[main.tree.leaf_of_region]
    tokens = Partition(token_of_superpixel[superpixels.labels])
    areas = tokens.areas
    weights = sparse.csr_matrix(
        (superpixels.partition.areas, (token_of_superpixel, np.arange(len(superpixels)))),
        shape=(len(nodes), len(superpixels)),
    )

    def per_token(values: np.ndarray) -> np.ndarray:
        return tokens.sums(values) / areas

    lab_mean = weights @ means.lab / areas[:, None]
    squares = np.stack([per_token(superpixels.colour.lab[..., channel] ** 2) for channel in range(3)], axis=1)
    orders, heights = zip(
        *(_order(tree.tree, token_of_superpixel, superpixels.partition.areas) for tree in grown.trees), strict=True
    )
    return RegionTokens(
        labels=tokens.labels.astype(np.uint16),
        areas_px=areas.astype(np.int32),
        features=(weights @ means.features.astype(np.float32) / areas[:, None]).astype(np.float16),
        lab_mean=lab_mean.astype(np.float16),
        lab_std=np.sqrt(np.maximum(squares - lab_mean**2, 0)).astype(np.float16),
        centres_yx=np.stack([per_token(axis) for axis in np.indices(tokens.size_hw)], axis=1).astype(np.float32),
        tree_orders=np.array(orders, np.uint16),
        tree_heights=np.array(heights, np.float32),
        **_borders(superpixels, token_of_superpixel),
    )


def _order(tree: Tree, token_of_superpixel: np.ndarray, areas_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth-first order of the tokens in a tree, and the level of the lowest common ancestor of consecutive tokens.

    A token is a node of the first tree, but not always of the others; its position is that of its largest superpixel.
    """
    largest = np.zeros(token_of_superpixel.max() + 1, np.int64)
    by_area = np.argsort(areas_px, kind='stable')
    largest[token_of_superpixel[by_area]] = by_area  # the last one written is the largest
    place = tree.leaf_of_region[largest]
    order = np.argsort(place)
    pairs = np.stack([place[order][:-1], place[order][1:]], axis=1)
    return order, tree.level[tree.common_ancestors(pairs)]


def _borders(superpixels: Superpixels, token_of_superpixel: np.ndarray) -> dict[str, np.ndarray]:
    """Adjacent tokens, the length of their border in pixel sides, and the mean edge strength along it."""
    pairs = np.sort(token_of_superpixel[superpixels.edges], axis=1)
    apart = pairs[:, 0] != pairs[:, 1]
    lengths = superpixels.edge_lengths_px[apart].astype(np.float64)
    edges, which = np.unique(pairs[apart], axis=0, return_inverse=True)
    which = which.ravel()
    total = np.bincount(which, lengths, minlength=len(edges))
    strength = np.bincount(which, lengths * superpixels.edge_strength[apart], minlength=len(edges)) / total
    return {
        'edges': edges.reshape(-1, 2).astype(np.uint16),
        'edge_lengths_px': total.astype(np.float32),
        'edge_strengths': strength.astype(np.float32),
    }


def _shares(hierarchy: MaskHierarchy, nodes: np.ndarray, max_masks: int) -> TokenMasks:
    """The best masks of all trees, as the fractions that they cover of the given nodes of the first tree."""
    tree_index, chosen = hierarchy.best_nodes(max_masks)
    shares = np.zeros((len(chosen), len(nodes)), np.uint8)
    for number in np.unique(tree_index):
        rows = tree_index == number
        pixels = intersections_between(hierarchy.trees[number], chosen[rows], hierarchy, nodes)
        shares[rows] = np.round(255 * pixels / hierarchy.area[nodes])
    return TokenMasks(
        shares, hierarchy.gather('score', tree_index, chosen), hierarchy.gather('area', tree_index, chosen)
    )
