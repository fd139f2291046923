"""Max-tree and min-tree of the lightness: connected regions brighter, or darker, than each threshold.

Objects with soft edges, such as nuclei, have no unique outline; annotators draw it at some lightness between those of
the object and of the background. The connected components at many thresholds approximate all these outlines, and they
nest.

Source: Salembier, Oliveras and Garrido, 1998 (max-tree and min-tree).
"""

from __future__ import annotations

import numba
import numpy as np
from scipy import ndimage
from skimage.measure import label

from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.partition import Partition
from unsam_mm.masks.tree import nearest_ancestors, nested_regions
from unsam_mm.pseudo_masks.ranking import UnrankedTree
from unsam_mm.pseudo_masks.superpixels import ColourEdges, Superpixels

_OUTLIERS_PERCENT = 0.2  # percentage of the pixels below the lowest level, and above the highest


def level_set_tree(
    colour: ColourEdges, bright: bool, n_levels: int = 32, min_area_px: int = 20, sigma_px: float = 1.0
) -> UnrankedTree:
    """The max-tree of the lightness, or the min-tree.

    Args:
        colour: Colour and gradient of the image.
        bright: True for the regions above each threshold (max-tree), False for those below it (min-tree).
        n_levels: Number of levels of lightness, equally wide, between its 0.2nd and its 99.8th percentile.
        min_area_px: Smaller regions are left out.
        sigma_px: Standard deviation of the Gaussian that smooths the lightness first.

    Returns:
        The unranked tree. Each leaf consists of the pixels of a region that belong to none of its children; it may be
        disconnected, and is a mask only if it is a whole region. Heights are in [0, 1].
    """
    lightness = ndimage.gaussian_filter(colour.lab[..., 0], sigma_px)
    low, high = np.percentile(lightness, [_OUTLIERS_PERCENT, 100 - _OUTLIERS_PERCENT])
    level = np.clip((lightness - low) / max(high - low, 1e-6) * n_levels, 0, n_levels - 1).astype(np.int64)
    if not bright:
        level = n_levels - 1 - level
    zones = label(level, connectivity=1, background=-1) - 1
    partition = Partition(zones)
    edges, _, _ = partition.borders(colour.strength)
    zone_level = np.empty(len(partition), np.int64)
    zone_level[zones.ravel()] = level.ravel()
    # Two adjacent zones join at the lower of their levels.
    order = np.argsort(-zone_level[edges].min(axis=1), kind='stable')
    leaf, parent, depth, is_region = _region_tree(edges[order], zone_level, partition.areas, min_area_px)
    superpixels = Superpixels(leaf[zones], colour)
    return UnrankedTree(
        MaskHierarchy.from_merges(superpixels.partition, parent, depth / n_levels), superpixels, is_region
    )


def _region_tree(
    edges: np.ndarray, level: np.ndarray, area: np.ndarray, min_area_px: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The tree of the regions of at least `min_area_px`; a zone is a connected set of pixels of equal level.

    Returns:
        Leaf of each zone; for each node its parent, its depth below the highest level, and True if it is a region.
    """
    binary_parent, binary_level, binary_area = _join_zones(edges, level, area)
    # A node of the binary tree is a whole region if its parent has a lower level.
    up = np.where(binary_parent >= 0, binary_parent, len(binary_parent) - 1)
    is_region = (binary_level > binary_level[up]) & (binary_area >= min_area_px)
    is_region[-1] = True
    regions = np.flatnonzero(is_region)
    region_of_node = nearest_ancestors(binary_parent, regions)
    region_parent = np.append(region_of_node[binary_parent[regions[:-1]]], -1)
    leaf, parent, node = nested_regions(region_of_node[: len(level)], region_parent)
    depth = np.zeros(len(parent))
    depth[node] = level.max() - binary_level[regions]
    is_large_region = np.zeros(len(parent), bool)
    is_large_region[node] = True
    return leaf.astype(np.int32), parent, depth, is_large_region


@numba.njit(nogil=True, cache=True)
def _join_zones(edges, level, area):
    """Merges adjacent zones in the order of `edges`; each merge adds a node with the lower level of the two zones."""
    n_zones = len(level)
    n_nodes = 2 * n_zones - 1
    parent = np.full(n_nodes, -1)
    root = np.arange(n_nodes)
    node_level, node_area = np.zeros(n_nodes, np.int64), np.zeros(n_nodes, np.int64)
    node_level[:n_zones], node_area[:n_zones] = level, area
    node = n_zones
    for pair in range(len(edges)):
        a, b = edges[pair]
        lower = min(level[a], level[b])
        while root[a] != a:
            root[a] = root[root[a]]
            a = root[a]
        while root[b] != b:
            root[b] = root[root[b]]
            b = root[b]
        if a != b:
            parent[a] = parent[b] = root[a] = root[b] = node
            node_level[node], node_area[node] = lower, node_area[a] + node_area[b]
            node += 1
    return parent, node_level, node_area
