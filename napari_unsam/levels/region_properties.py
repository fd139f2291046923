"""Colour, contrast and shape of all regions of a tree, from sums over the leaves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from skimage.color import rgb2lab
from skimage.filters import threshold_otsu

from unsam_mm.images import as_rgb_uint8
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.tree import sum_over_descendants

_MIN_CONTRAST = 0.4  # of an object with its surroundings, as a share of the gap between dark and light
_PIXEL_VARIANCE = 1 / 12  # a pixel is a square, not a point


class Brightness(Enum):
    """Brightness of objects relative to their surroundings."""

    GUESS = 'bright or dark'
    BRIGHT = 'brighter'
    DARK = 'darker'
    ANY = 'anything'


@dataclass(frozen=True, eq=False)
class Scene:
    """Colours of a plane and the threshold between dark and light.

    Attributes:
        lab: (H, W, 3) float32 pixels in CIE L*a*b*.
        threshold: Otsu's threshold of the lightness, in [0, 100].
        gap: Difference of the mean lightness above and below the threshold.
        objects_are_bright: True if at least half of the plane's outline is dark.
    """

    lab: np.ndarray
    threshold: float
    gap: float
    objects_are_bright: bool

    @classmethod
    def of(cls, image: np.ndarray) -> Scene:
        """Converts an (H, W) or (H, W, 3) array; see `unsam_mm.images.as_rgb_uint8` for dtypes.

        Raises:
            ImageError: If the array is not one image.
        """
        lab = rgb2lab(as_rgb_uint8(image).astype(np.float32) / 255).astype(np.float32)
        lightness = lab[..., 0]
        threshold = float(threshold_otsu(lightness))
        light = lightness > threshold
        if not light.any():
            return cls(lab, threshold, 0.0, True)
        outline = np.concatenate([light[[0, -1]].ravel(), light[:, [0, -1]].ravel()])
        gap = float(lightness[light].mean() - lightness[~light].mean())
        return cls(lab, threshold, gap, bool(outline.mean() <= 0.5))


@dataclass(frozen=True, eq=False)
class RegionProperties:
    """Colour, surroundings and shape of the N regions of a tree.

    Attributes:
        colour: (N, 3) mean L*, a* and b*.
        surround: (N, 3) mean L*, a* and b* of the adjacent leaves outside a region, weighted by the length of the
            common border; the region's own colour if it has no neighbour.
        eccentricity: (N,) of the ellipse with the same second moments, in [0, 1]; 0 is a circle.
        fullness: (N,) area over the area of that ellipse: 1 for any ellipse, less for bent, branched or hollow regions.
    """

    colour: np.ndarray
    surround: np.ndarray
    eccentricity: np.ndarray
    fullness: np.ndarray

    @classmethod
    def of(cls, tree: MaskHierarchy, scene: Scene) -> RegionProperties:
        """Measures all regions of a tree over a plane."""
        channels = scene.lab.reshape(-1, 3).T
        sums = np.stack([tree.tree.sums(tree.partition.sums(channel)) for channel in channels], axis=1)
        colour = sums / tree.area[:, None]
        return cls(colour, _surround(tree, colour), *_shape(tree))

    @property
    def contrast(self) -> np.ndarray:
        """(N,) lightness L* of a region minus that of its surroundings."""
        return self.colour[:, 0] - self.surround[:, 0]

    def has_contrast(self, scene: Scene, brightness: Brightness) -> np.ndarray:
        """(N,) bool: True for regions of the given brightness that differ enough from their surroundings.

        With `Brightness.ANY`, all regions are True.
        """
        if brightness is Brightness.ANY:
            return np.ones(len(self.colour), bool)
        bright = scene.objects_are_bright if brightness is Brightness.GUESS else brightness is Brightness.BRIGHT
        sign = 1 if bright else -1
        is_on_side = sign * (self.colour[:, 0] - scene.threshold) > 0
        return is_on_side & (sign * self.contrast > _MIN_CONTRAST * scene.gap)


def _surround(tree: MaskHierarchy, colour: np.ndarray) -> np.ndarray:
    """(N, 3) colours around regions.

    For each pair of adjacent leaves, the colour of each is added to the other one, and so to all regions that contain
    the other one. It is subtracted at the smallest region that contains both, since their border lies inside that one.
    """
    pairs, lengths, _ = tree.partition.borders(np.zeros(tree.size_hw, np.float32))
    pairs = np.sort(tree.tree.leaf_of_region[pairs], axis=1)
    order = np.lexsort(pairs.T[::-1])  # so that sums of floats do not depend on the numbering of the partition
    pairs, lengths = pairs[order], lengths[order]
    meet = tree.tree.common_ancestors(pairs)

    def neighbour_sums(of_first: np.ndarray, of_second: np.ndarray) -> np.ndarray:
        ends = np.bincount(pairs[:, 0], of_first * lengths, minlength=len(tree))
        ends += np.bincount(pairs[:, 1], of_second * lengths, minlength=len(tree))
        ends -= np.bincount(meet, (of_first + of_second) * lengths, minlength=len(tree))
        return sum_over_descendants(ends, tree.parent)

    ones = np.ones(len(pairs))
    border = neighbour_sums(ones, ones)
    # Sums of float differences leave a residue where there is no border.
    alone = border < 0.5
    sums = np.stack([neighbour_sums(channel[pairs[:, 1]], channel[pairs[:, 0]]) for channel in colour.T], axis=1)
    return np.where(alone[:, None], colour, sums / np.where(alone, 1, border)[:, None])


def _shape(tree: MaskHierarchy) -> tuple[np.ndarray, np.ndarray]:
    """(N,) eccentricity and (N,) fullness, from second moments."""
    mean_y, mean_x, yy, xx, xy = tree.moments / tree.area
    var_y, var_x = yy - mean_y**2 + _PIXEL_VARIANCE, xx - mean_x**2 + _PIXEL_VARIANCE
    covariance = xy - mean_x * mean_y
    middle, reach = (var_y + var_x) / 2, np.hypot((var_y - var_x) / 2, covariance)
    long, short = middle + reach, np.maximum(middle - reach, _PIXEL_VARIANCE)
    return np.sqrt(np.maximum(1 - short / long, 0)), tree.area / (4 * np.pi * np.sqrt(long * short))
