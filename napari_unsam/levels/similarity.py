"""Regions similar to some examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from napari_unsam.levels.disjoint import greedy_disjoint
from napari_unsam.levels.region_properties import RegionProperties
from unsam_mm.masks.hierarchy import MaskHierarchy

# Units of the features: if a region differs from the only example by one unit in each of the `_N_KINDS` kinds of
# features, its similarity is exp(-0.5) = 0.61.
_AREA_STEP = np.log(2.0)
_LEVEL_STEP = 0.15
_ECCENTRICITY_STEP = 0.35
_FULLNESS_STEP = 0.15
_COLOUR_STEP = 12.0
_CONTRAST_STEP = 12.0
_N_KINDS = 5  # size, level, shape, colour, contrast; each has the same weight


def region_features(tree: MaskHierarchy, properties: RegionProperties) -> np.ndarray:
    """(N, 10) float32 features of the regions of a tree, scaled to the same weight.

    Size (log area), level, shape (eccentricity and fullness), colour (L*, a*, b*) and contrast to the surroundings
    (L*, a*, b*).
    """
    kinds = [
        (np.log(tree.area)[:, None], _AREA_STEP),
        (tree.level[:, None], _LEVEL_STEP),
        (
            np.stack([properties.eccentricity, properties.fullness * (_ECCENTRICITY_STEP / _FULLNESS_STEP)], 1),
            _ECCENTRICITY_STEP,
        ),
        (properties.colour, _COLOUR_STEP),
        (properties.colour - properties.surround, _CONTRAST_STEP),
    ]
    return np.concatenate([values / step for values, step in kinds], axis=1).astype(np.float32)


def similarity(features: np.ndarray, examples: Sequence[int] | np.ndarray) -> np.ndarray:
    """(N,) float32 similarity in [0, 1] of each region to the nearest example; 1 for the examples.

    Features in which the examples differ count less.

    Args:
        features: (N, 10); see `region_features`.
        examples: Nodes, at least one.
    """
    example_features = features[np.asarray(examples, np.int64)]
    tolerance = 1 + example_features.std(axis=0)
    nearest = np.min([(((features - example) / tolerance) ** 2).sum(axis=1) for example in example_features], axis=0)
    return np.exp(-nearest / (2 * _N_KINDS)).astype(np.float32)


def similar_regions(
    tree: MaskHierarchy, similarities: np.ndarray, min_similarity: float, kept: np.ndarray | None = None
) -> np.ndarray:
    """(K,) disjoint regions that are similar to the examples; where regions overlap, the most similar one is chosen.

    Args:
        tree: Tree over a plane.
        similarities: (N,) similarities of the regions; see `similarity`.
        min_similarity: In [0, 1].
        kept: (N,) bool; limits the result to these regions.
    """
    hits = similarities >= min_similarity
    if kept is not None:
        hits &= kept
    return greedy_disjoint(tree, np.where(hits, similarities + np.float64(1e-12), 0.0))
