"""The candidate regions of one plane: trees, properties, filters."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from napari_unsam.levels.cuts import LevelCut, RegionFilter
from napari_unsam.levels.disjoint import LeafOverlaps, Selection, best_disjoint, best_of_trees
from napari_unsam.levels.part_whole import ObjectClass
from napari_unsam.levels.region_properties import RegionProperties, Scene
from napari_unsam.levels.review import stability
from napari_unsam.levels.similarity import region_features, similar_regions, similarity
from napari_unsam.model.mask import BoxMask, free_parts, node_mask
from unsam_mm.masks.granularity import area_granularity
from unsam_mm.masks.hierarchy import MaskHierarchy

_MIN_FREE = 0.5 + 1e-9  # share of a region that must be free: more than half


class CandidateTable:
    """The regions of one plane with their properties.

    Args:
        hierarchy: Trees of the plane. Alternatives over the same leaves add few regions and are ignored.
        image: (H, W) or (H, W, 3) pixels.
        progress: Called with the fraction done and a description; may raise to cancel.

    Attributes:
        hierarchy: The main tree.
        trees: The main tree, and the alternatives over other leaves.
        cuts: The levels of each tree.
    """

    def __init__(
        self, hierarchy: MaskHierarchy, image: np.ndarray, progress: Callable[[float, str], None] = lambda *_: None
    ) -> None:
        self.hierarchy = hierarchy
        self.trees = (hierarchy, *(tree for tree in hierarchy.alternatives if tree.n_leaves != hierarchy.n_leaves))
        self.cuts = tuple(LevelCut(tree) for tree in self.trees)
        progress(0.0, 'measuring colours')
        self._scene = Scene.of(image)
        self._properties: list[RegionProperties] = []
        for number, tree in enumerate(self.trees):
            progress((1 + number) / (1 + len(self.trees)), 'measuring regions')
            self._properties.append(RegionProperties.of(tree, self._scene))
        self._overlaps = LeafOverlaps(self.trees)
        self._stability = [stability(tree) for tree in self.trees]
        # Computed now, in the inference thread, rather than at first use in the GUI's thread.
        for tree in self.trees:
            _ = tree.boxes_xyxy

    def at_level(self, level: float, limits: RegionFilter) -> Selection:
        """The objects of one level of the main tree."""
        return _of_main(self.cuts[0].nodes(level, self._is_object(0, limits)))

    def best(self, limits: RegionFilter) -> Selection:
        """The best objects that do not overlap, from all levels of all trees."""
        scores = [self._scores(source, limits) for source in range(len(self.trees))]
        return best_of_trees(self.trees, scores, self._overlaps)

    def proposed_level(self, limits: RegionFilter) -> float:
        """The level that contains most of the best objects of the main tree."""
        is_best = np.zeros(len(self.hierarchy))
        is_best[best_disjoint(self.hierarchy, self._scores(0, limits))] = 1
        return self.cuts[0].best_level(is_best)

    def similarity(self, examples: list[int]) -> np.ndarray:
        """(N,) similarity of each region of the main tree to some examples; see `similarity.similarity`."""
        return similarity(region_features(self.hierarchy, self._properties[0]), examples)

    def similar(self, similarities: np.ndarray, min_similarity: float, limits: RegionFilter) -> Selection:
        """The regions similar to the examples; only the area limits apply, not the other limits."""
        low_px, share = limits.min_area_px, limits.max_share * self.hierarchy.area[-1]
        sized = (self.hierarchy.area >= low_px) & (self.hierarchy.area <= share)
        return _of_main(similar_regions(self.hierarchy, similarities, min_similarity, sized))

    def objects(self, level: float | None, limits: RegionFilter) -> ObjectClass:
        """The objects of one level of the main tree; None for the best objects of all trees."""
        chosen = self.best(limits) if level is None else self.at_level(level, limits)
        return self.object_class('objects', chosen, level)

    def draw(self, chosen: Selection, out: np.ndarray) -> None:
        """Fills an (H, W) uint8 array with the colours of regions, 1 to `cuts.N_COLOURS`, and 0 elsewhere."""
        self.cuts[0].draw(chosen.of(0), out)
        for source in range(1, len(self.trees)):
            if len(nodes := chosen.of(source)):
                drawn = np.empty_like(out)
                self.cuts[source].draw(nodes, drawn)
                np.copyto(out, drawn, where=drawn > 0)

    def free_regions(self, chosen: Selection, taken: np.ndarray) -> Iterator[tuple[BoxMask, dict[str, object]]]:
        """The free pixels of each region, and its columns of the features table.

        Regions of which at most half is free are skipped.

        Args:
            chosen: The regions.
            taken: (H, W) bool, True for pixels that are not free; the yielded pixels are added to it.
        """
        regions = list(zip(chosen.source.tolist(), chosen.nodes.tolist(), strict=True))
        masks = (node_mask(self.trees[source], node) for source, node in regions)
        for number, free in free_parts(masks, taken, _MIN_FREE):
            source, node = regions[number]
            tree = self.trees[source]
            row = {
                'level': float(tree.level[node]),
                'granularity': float(area_granularity(free.area_px, taken.size)),
                'score': float(tree.score[node]),
                'stability': float(self._stability[source][node]),
            }
            yield free, row

    def object_class(self, name: str, chosen: Selection, level: float | None = None) -> ObjectClass:
        """Converts regions to a class of objects; see `part_whole`.

        Args:
            name: Name of the class.
            chosen: The regions.
            level: Level from which the regions were selected; by default, the level at which each region is formed.
        """
        labels = np.zeros(self.hierarchy.size_hw, np.uint32)
        rows = []
        for label, (free, features) in enumerate(self.free_regions(chosen, np.zeros(labels.shape, bool)), start=1):
            labels[free.slices][free.mask] = label
            own = {} if level is None else {'level': level}
            rows.append({'index': label, 'area_px': free.area_px, **features, **own})
        return ObjectClass(name, labels, pd.DataFrame(rows))

    def _is_object(self, source: int, limits: RegionFilter) -> np.ndarray:
        return limits.is_object(self.trees[source], self._properties[source], self._scene)

    def _scores(self, source: int, limits: RegionFilter) -> np.ndarray:
        return np.where(self._is_object(source, limits), self.trees[source].score.astype(np.float64) ** 2, 0.0)


def _of_main(nodes: np.ndarray) -> Selection:
    return Selection(np.zeros(len(nodes), np.int64), nodes)
