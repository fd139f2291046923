"""The levels of a region tree as label maps, drawn within milliseconds, and which regions count as objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from napari_unsam.levels.disjoint import leaf_values
from napari_unsam.levels.region_properties import Brightness, RegionProperties, Scene
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.hierarchy import MaskHierarchy

N_COLOURS = 10
"""Number of colours in a drawing; its values are 1 to `N_COLOURS`."""

_COLOUR_STEP = 7  # coprime to `N_COLOURS`, so that ten consecutive leaf numbers get ten colours


@dataclass(frozen=True)
class RegionFilter:
    """Which regions count as objects.

    Attributes:
        min_area_px: Minimum area in pixels.
        max_share: Maximum area as a share of the plane.
        max_border_share: Maximum share of the plane's outline that an object may touch; the background touches more.
        min_score: Minimum score; the default excludes regions with a score of 0.
        brightness: Brightness of objects relative to their surroundings.
    """

    min_area_px: int = 25
    max_share: float = 0.25
    max_border_share: float = 0.1
    min_score: float = 1e-6
    brightness: Brightness = Brightness.GUESS

    def is_object(self, tree: MaskHierarchy, properties: RegionProperties, scene: Scene) -> np.ndarray:
        """(N,) bool: True for regions of a tree that count as objects."""
        return (
            (tree.area >= self.min_area_px)
            & (tree.area <= self.max_share * tree.area[-1])
            & (tree.border_share <= self.max_border_share)
            & (tree.score >= self.min_score)
            & properties.has_contrast(scene, self.brightness)
        )


class LevelCut:
    """Draws the levels of one tree. A region has the same colour at all levels, and shares it with its first child.

    Args:
        tree: The tree.

    Attributes:
        begins: (N,) the lowest level at which each region is in the cut; 0 for leaves.
        ends: (N,) the level at which its parent replaces it, exclusive; infinite for the root.
    """

    def __init__(self, tree: MaskHierarchy) -> None:
        self.tree = tree
        self.begins = tree.level.astype(np.float64)
        self.begins[: tree.n_leaves] = 0.0
        self.ends = np.full(len(tree), np.inf)
        self.ends[:-1] = self.begins[tree.parent[:-1]]
        self._colours = 1 + tree.first_leaf * _COLOUR_STEP % N_COLOURS

    def nodes(self, level: float, kept: np.ndarray | None = None) -> np.ndarray:
        """(K,) the regions of one level, as from `MaskHierarchy.cut_nodes`, in ascending order.

        Args:
            level: In [0, 1]; 0 is the finest.
            kept: (N,) bool; limits the result to these regions.

        Raises:
            UnSAMError: If the level lies outside [0, 1].
        """
        if not 0 <= level <= 1:
            raise UnSAMError(f'a level must lie in [0, 1], got {level}')
        in_cut = (self.begins <= level) & (level < self.ends)
        return np.flatnonzero(in_cut if kept is None else in_cut & kept)

    def draw(self, nodes: np.ndarray, out: np.ndarray) -> None:
        """Draws disjoint regions.

        Args:
            nodes: (K,) regions.
            out: (H, W) uint8, filled with the colours of the regions, 1 to `N_COLOURS`, and 0 elsewhere.
        """
        colours = leaf_values(self.tree, nodes, self._colours[nodes]).astype(np.uint8)
        # 'clip' avoids the buffer that 'raise' needs; all labels are in range.
        np.take(colours, self.tree.leaf_labels, out=out, mode='clip')

    def best_level(self, score: np.ndarray) -> float:
        """The level with the largest sum of scores; the finest such level if there are several.

        Args:
            score: (N,) scores of the regions, not negative.
        """
        found = np.flatnonzero((score > 0) & (self.ends > self.begins))
        if len(found) == 0:
            return 0.0
        levels = np.unique(self.begins)
        change = np.zeros(len(levels) + 1)
        np.add.at(change, np.searchsorted(levels, self.begins[found]), score[found])
        np.add.at(change, np.searchsorted(levels, self.ends[found]), -score[found])
        total = change.cumsum()[:-1]
        return float(levels[np.argmax(total > total.max() - 1e-9)])
