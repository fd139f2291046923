"""All regions like some examples, at their level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from napari_unsam.levels.best import winners
from napari_unsam.levels.region_properties import RegionProperties
from unsam_mm.masks.hierarchy import MaskHierarchy

# What counts as a step in each trait; two regions one step apart in everything are still taken for each other.
_AREA_STEP = np.log(2.0)
_LEVEL_STEP = 0.15
_ECCENTRICITY_STEP = 0.35
_FULLNESS_STEP = 0.15
_COLOUR_STEP = 12.0
_CONTRAST_STEP = 12.0
_N_KINDS = 5  # size, level, shape, colour, contrast: each has the same say, however many numbers it takes


def traits(tree: MaskHierarchy, properties: RegionProperties) -> np.ndarray:
    """(N, 10) float32 what the regions of a tree are compared by, in steps, such that each kind of trait has the same say.

    Size (log area), level, shape (eccentricity and fullness), colour (L*, a*, b*) and contrast to what
    touches them (L*, a*, b*).
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


def likeness(all_traits: np.ndarray, examples: Sequence[int] | np.ndarray) -> np.ndarray:
    """(N,) float32 in [0, 1]: how like the nearest example each region is; 1 for the examples.

    Traits in which several examples differ count for less, as they cannot be what is meant.

    Args:
        all_traits: (N, 10); see `traits`.
        examples: Nodes, at least one.
    """
    shown = all_traits[np.asarray(examples, np.int64)]
    tolerance = 1 + shown.std(axis=0)
    nearest = np.min([(((all_traits - example) / tolerance) ** 2).sum(axis=1) for example in shown], axis=0)
    return np.exp(-nearest / (2 * _N_KINDS)).astype(np.float32)


def alike(tree: MaskHierarchy, how_like: np.ndarray, least: float, kept: np.ndarray | None = None) -> np.ndarray:
    """(K,) regions that are like the examples, no two of which overlap: the more alike stay.

    Args:
        tree: Of a plane.
        how_like: (N,); see `likeness`.
        least: The likeness that it takes, in [0, 1].
        kept: (N,) bool; only these.
    """
    hits = how_like >= least
    if kept is not None:
        hits &= kept
    return winners(tree, np.where(hits, how_like + np.float64(1e-12), 0.0))
