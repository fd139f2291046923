"""What every region of a tree looks like: colour, contrast and shape, from sums that are passed up the tree."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from skimage.color import rgb2lab
from skimage.filters import threshold_otsu

from unsam_mm.images import as_rgb_uint8
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.tree import sum_over_descendants

_MIN_CONTRAST = 0.4  # of the gap between dark and light: what an object differs by from what surrounds it
_PIXEL_VARIANCE = 1 / 12  # a pixel is a square, not a point


class Side(Enum):
    """Brightness of objects relative to their surroundings."""

    GUESS = 'bright or dark'
    BRIGHT = 'brighter'
    DARK = 'darker'
    ANY = 'anything'


@dataclass(frozen=True, eq=False)
class Scene:
    """Lightness of a plane.

    Attributes:
        lab: (H, W, 3) float32 pixels in CIE L*a*b*.
        threshold: Lightness that parts light from dark (Otsu's), in [0, 100].
        gap: Difference of the mean lightness of both.
        objects_are_bright: Whether the larger part of the plane's outline is dark.
    """

    lab: np.ndarray
    threshold: float
    gap: float
    objects_are_bright: bool

    @classmethod
    def of(cls, image: np.ndarray) -> Scene:
        """Of an (H, W) or (H, W, 3) array; see `unsam_mm.images.as_rgb_uint8` for dtypes.

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
    """What the N regions of a tree look like.

    Attributes:
        colour: (N, 3) mean of L*, a* and b*.
        surround: (N, 3) the same of the leaves that touch a region from outside, by the length of the touch; the region's
            own colour where nothing touches it.
        eccentricity: (N,) of the ellipse with the same second moments, in [0, 1]; 0 is a circle.
        fullness: (N,) area over the area of that ellipse: 1 for any ellipse, less for what is bent, branched or hollow.
    """

    colour: np.ndarray
    surround: np.ndarray
    eccentricity: np.ndarray
    fullness: np.ndarray

    @classmethod
    def of(cls, tree: MaskHierarchy, scene: Scene) -> RegionProperties:
        """Of all regions of a tree over a plane."""
        channels = scene.lab.reshape(-1, 3).T
        colour = np.stack([_sums(tree, channel) for channel in channels], axis=1) / tree.area[:, None]
        return cls(colour, _surround(tree, colour), *_shape(tree))

    @property
    def contrast(self) -> np.ndarray:
        """(N,) how much lighter a region is than what touches it, in units of L*; negative if it is darker."""
        return self.colour[:, 0] - self.surround[:, 0]

    def stand_out(self, scene: Scene, side: Side) -> np.ndarray:
        """(N,) bool; which regions lie on one side of the light and differ enough from what touches them."""
        if side is Side.ANY:
            return np.ones(len(self.colour), bool)
        bright = scene.objects_are_bright if side is Side.GUESS else side is Side.BRIGHT
        sign = 1 if bright else -1
        beyond = sign * (self.colour[:, 0] - scene.threshold) > 0
        return beyond & (sign * self.contrast > _MIN_CONTRAST * scene.gap)


def _sums(tree: MaskHierarchy, pixels: np.ndarray) -> np.ndarray:
    """(N,) sum over the pixels of each region."""
    sums = np.zeros(len(tree))
    sums[: tree.n_leaves] = np.bincount(tree.leaf_labels.ravel(), pixels.ravel(), minlength=tree.n_leaves)
    return sum_over_descendants(sums, tree.parent)


def _surround(tree: MaskHierarchy, colour: np.ndarray) -> np.ndarray:
    """A pair of touching leaves counts at every region that holds one of them: added at both, taken off where they join."""
    pairs, lengths = _touching(tree.leaf_labels, tree.n_leaves)
    meet = tree.tree.common_ancestors(pairs)

    def around(beyond_first: np.ndarray, beyond_second: np.ndarray) -> np.ndarray:
        ends = np.bincount(pairs[:, 0], beyond_first * lengths, minlength=len(tree))
        ends += np.bincount(pairs[:, 1], beyond_second * lengths, minlength=len(tree))
        ends -= np.bincount(meet, (beyond_first + beyond_second) * lengths, minlength=len(tree))
        return sum_over_descendants(ends, tree.parent)

    ones = np.ones(len(pairs))
    border = around(ones, ones)
    # Sums of float differences leave a residue where there is no border.
    alone = border < 0.5
    beyond = np.stack([around(channel[pairs[:, 1]], channel[pairs[:, 0]]) for channel in colour.T], axis=1)
    return np.where(alone[:, None], colour, beyond / np.where(alone, 1, border)[:, None])


def _touching(leaf_labels: np.ndarray, n_leaves: int) -> tuple[np.ndarray, np.ndarray]:
    """(K, 2) pairs of leaves that touch, and (K,) along how many pixel edges."""
    beside = np.concatenate([leaf_labels[:, :-1].ravel(), leaf_labels[:-1].ravel()]).astype(np.int64)
    other = np.concatenate([leaf_labels[:, 1:].ravel(), leaf_labels[1:].ravel()]).astype(np.int64)
    differ = beside != other
    low, high = np.minimum(beside, other)[differ], np.maximum(beside, other)[differ]
    keys, lengths = np.unique(low * n_leaves + high, return_counts=True)
    return np.stack([keys // n_leaves, keys % n_leaves], axis=1), lengths.astype(np.float64)


def _shape(tree: MaskHierarchy) -> tuple[np.ndarray, np.ndarray]:
    """(N,) eccentricity and (N,) fullness, by second moments."""
    y, x = (axis.ravel().astype(np.float64) for axis in np.indices(tree.size_hw))
    mean_y, mean_x, yy, xx, xy = (_sums(tree, part) / tree.area for part in (y, x, y * y, x * x, x * y))
    var_y, var_x = yy - mean_y**2 + _PIXEL_VARIANCE, xx - mean_x**2 + _PIXEL_VARIANCE
    covariance = xy - mean_x * mean_y
    middle, reach = (var_y + var_x) / 2, np.hypot((var_y - var_x) / 2, covariance)
    long, short = middle + reach, np.maximum(middle - reach, _PIXEL_VARIANCE)
    return np.sqrt(np.maximum(1 - short / long, 0)), tree.area / (4 * np.pi * np.sqrt(long * short))
