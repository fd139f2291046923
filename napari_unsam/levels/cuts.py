"""Any level of a region tree as labels within milliseconds, and which of its regions count as objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from napari_unsam.levels.region_properties import RegionProperties, Scene, Side
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.hierarchy import MaskHierarchy

N_COLOURS = 10
"""Colours that a drawing uses: the values 1 to this."""

_SPREAD = 7  # no factor in common with the colours, so that neighbours in the numbering differ


@dataclass(frozen=True)
class RegionFilter:
    """Which regions count as objects.

    Attributes:
        min_area_px: Smaller ones do not.
        max_share: Nor those that take more of the plane.
        max_border_share: Nor those that touch more of its outline, as the background does.
        min_score: Nor those that look less like an object; what a generator did not rank has a score far below the default.
        side: Nor those that do not stand out on that side.
    """

    min_area_px: int = 25
    max_share: float = 0.25
    max_border_share: float = 0.1
    min_score: float = 1e-6
    side: Side = Side.GUESS

    def keeps(self, tree: MaskHierarchy, properties: RegionProperties, scene: Scene) -> np.ndarray:
        """(N,) bool; which regions of a tree count."""
        return (
            (tree.area >= self.min_area_px)
            & (tree.area <= self.max_share * tree.area[-1])
            & (tree.border_share <= self.max_border_share)
            & (tree.score >= self.min_score)
            & properties.stand_out(scene, self.side)
        )


class LevelCut:
    """The levels of one tree, ready to be drawn.

    A region keeps its colour at all levels, and passes it on to its first part.

    Args:
        tree: Of a plane.
    """

    def __init__(self, tree: MaskHierarchy) -> None:
        self.tree = tree
        self.begins = tree.level.astype(np.float64)
        self.begins[: tree.n_leaves] = 0.0
        self.ends = np.full(len(tree), np.inf)
        self.ends[:-1] = self.begins[tree.parent[:-1]]
        self._colours = (1 + tree.first_leaf * _SPREAD % N_COLOURS).astype(np.uint8)
        self._lut = np.zeros(tree.n_leaves, np.uint8)

    def nodes(self, level: float, kept: np.ndarray | None = None) -> np.ndarray:
        """(K,) the regions of one level; as `MaskHierarchy.cut_nodes` gives them, in the order of the nodes.

        Args:
            level: In [0, 1]; 0 is the finest.
            kept: (N,) bool; only these.

        Raises:
            UnSAMError: If the level lies outside [0, 1].
        """
        if not 0 <= level <= 1:
            raise UnSAMError(f'a level must lie in [0, 1], got {level}')
        alive = (self.begins <= level) & (level < self.ends)
        return np.flatnonzero(alive if kept is None else alive & kept)

    def draw(self, nodes: np.ndarray, out: np.ndarray) -> None:
        """Draws regions that do not overlap.

        Args:
            nodes: (K,) regions.
            out: (H, W) uint8, filled with the colours of the regions, 1 to `N_COLOURS`, and 0 beside them.
        """
        tree, lut = self.tree, self._lut
        lut[:] = 0
        sizes = tree.end_leaf[nodes] - tree.first_leaf[nodes]
        starts = np.repeat(tree.first_leaf[nodes] - np.cumsum(sizes) + sizes, sizes)
        lut[starts + np.arange(len(starts))] = np.repeat(self._colours[nodes], sizes)
        # 'clip' writes straight into `out`; the labels are known to be in range.
        np.take(lut, tree.leaf_labels, out=out, mode='clip')

    def best_level(self, score: np.ndarray) -> float:
        """The level with the largest sum of scores; the finest of equals.

        Args:
            score: (N,) of each region, not negative.
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
