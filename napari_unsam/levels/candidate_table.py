"""The candidate regions of one plane: trees, features, filters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

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

_MIN_FREE = 0.5 + 1e-9  # of a region that is accepted: more than half


class CandidateTable:
    """The regions of one plane with their features.

    Args:
        hierarchy: Of the plane. Its alternatives over the same leaves hold little that it lacks, and are left out.
        image: (H, W) or (H, W, 3) pixels.
        progress: Told the fraction done and what is being done; raise inside it to stop.

    Attributes:
        hierarchy: As given.
        trees: The main tree, and those over other leaves.
        cuts: The levels of each.
    """

    def __init__(
        self, hierarchy: MaskHierarchy, image: np.ndarray, progress: Callable[[float, str], None] = lambda *_: None
    ) -> None:
        self.hierarchy = hierarchy
        self.trees = (hierarchy, *(tree for tree in hierarchy.alternatives if tree.n_leaves != hierarchy.n_leaves))
        self.cuts = tuple(LevelCut(tree) for tree in self.trees)
        progress(0.0, 'measuring colours')
        self._scene = Scene.of(image)
        properties = []
        for number, tree in enumerate(self.trees):
            progress((1 + number) / (1 + len(self.trees)), 'measuring regions')
            properties.append(RegionProperties.of(tree, self._scene))
        self._properties = tuple(properties)
        self._overlaps = LeafOverlaps(self.trees)
        self._stability = tuple(stability(tree) for tree in self.trees)
        self._filter: RegionFilter | None = None
        self._kept: tuple[np.ndarray, ...] = ()
        # Now, in the thread that measures: what is found at first use would hold up the one that draws.
        for tree in self.trees:
            _ = tree.boxes_xyxy

    def warm_up(self) -> None:
        """Compiles and caches what the first `best` needs."""
        self.best(RegionFilter())

    @property
    def stability(self) -> np.ndarray:
        """(N,) of the regions of the main tree; see `review.stability`."""
        return self._stability[0]

    @cached_property
    def region_features(self) -> np.ndarray:
        """(N, 10) of the regions of the main tree; see `similarity.region_features`."""
        return region_features(self.hierarchy, self._properties[0])

    def kept(self, limits: RegionFilter) -> tuple[np.ndarray, ...]:
        """For each tree (N,) bool: which regions count as objects."""
        if limits != self._filter:
            self._kept = tuple(
                limits.keeps(tree, properties, self._scene)
                for tree, properties in zip(self.trees, self._properties, strict=True)
            )
            self._filter = limits
        return self._kept

    def at_level(self, level: float, limits: RegionFilter) -> Selection:
        """The objects of one level of the main tree."""
        return _of_main(self.cuts[0].nodes(level, self.kept(limits)[0]))

    def best(self, limits: RegionFilter) -> Selection:
        """The best objects that do not overlap, of all levels of all trees."""
        return best_of_trees(self.trees, self._scores(limits), self._overlaps)

    def proposed_level(self, limits: RegionFilter) -> float:
        """The level that holds most of the best objects of the main tree."""
        is_best = np.zeros(len(self.hierarchy))
        is_best[best_disjoint(self.hierarchy, self._scores(limits)[0])] = 1
        return self.cuts[0].best_level(is_best)

    def similarity(self, examples: list[int]) -> np.ndarray:
        """(N,) similarity of each region of the main tree to some examples; see `similarity.similarity`."""
        return similarity(self.region_features, examples)

    def similar(self, similarities: np.ndarray, min_similarity: float, limits: RegionFilter) -> Selection:
        """The regions similar to the examples; `side` does not count."""
        low_px, share = limits.min_area_px, limits.max_share * self.hierarchy.area[-1]
        sized = (self.hierarchy.area >= low_px) & (self.hierarchy.area <= share)
        return _of_main(similar_regions(self.hierarchy, similarities, min_similarity, sized))

    def objects(self, level: float | None, limits: RegionFilter) -> ObjectClass:
        """The objects of one level of the main tree, or for None the best of all levels of all trees."""
        return self.object_class('objects', self.best(limits) if level is None else self.at_level(level, limits))

    def draw(self, chosen: Selection, out: np.ndarray) -> None:
        """Fills an (H, W) uint8 array with the colours of regions, 0 beside them."""
        self.cuts[0].draw(chosen.of(0), out)
        for source in range(1, len(self.trees)):
            if len(nodes := chosen.of(source)):
                drawn = np.empty_like(out)
                self.cuts[source].draw(nodes, drawn)
                np.copyto(out, drawn, where=drawn > 0)

    def features(self, source: int, node: int) -> dict[str, object]:
        """What the table says of a region."""
        tree = self.trees[source]
        return {
            'level': float(tree.level[node]),
            'granularity': float(tree.granularity[node]),
            'score': float(tree.score[node]),
            'stability': float(self._stability[source][node]),
        }

    def free_regions(self, chosen: Selection, taken: np.ndarray) -> Iterator[tuple[BoxMask, dict[str, object]]]:
        """The free pixels of each region; regions with less than half of them free are left out.

        Args:
            chosen: Regions.
            taken: (H, W) bool pixels that are not free; those that are given out become so.
        """
        regions = list(zip(chosen.source.tolist(), chosen.nodes.tolist(), strict=True))
        masks = (node_mask(self.trees[source], node) for source, node in regions)
        for number, free in free_parts(masks, taken, _MIN_FREE):
            granularity = float(area_granularity(free.area_px, taken.size))
            yield free, {**self.features(*regions[number]), 'granularity': granularity}

    def object_class(self, name: str, chosen: Selection, level: float | None = None) -> ObjectClass:
        """Regions as one kind of object; see `part_whole`.

        Args:
            name: Of the kind.
            chosen: The regions.
            level: That they were taken from; by default each is noted with the one at which it is formed.
        """
        labels = np.zeros(self.hierarchy.size_hw, np.uint32)
        rows = []
        for label, (free, features) in enumerate(self.free_regions(chosen, np.zeros(labels.shape, bool)), start=1):
            labels[free.slices][free.mask] = label
            own = {} if level is None else {'level': level}
            rows.append({'index': label, 'area_px': free.area_px, **features, **own})
        return ObjectClass(name, labels, pd.DataFrame(rows))

    def _scores(self, limits: RegionFilter) -> list[np.ndarray]:
        return [
            np.where(kept, tree.score.astype(np.float64) ** 2, 0.0)
            for tree, kept in zip(self.trees, self.kept(limits), strict=True)
        ]


def _of_main(nodes: np.ndarray) -> Selection:
    return Selection(np.zeros(len(nodes), np.int64), nodes)
