"""The outline of a mask as polygons along the sides of its pixels; drawn as a mask, they give the same mask."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy import ndimage
from skimage.measure import find_contours

Ring = list[tuple[int, int]]
"""Corners x, y in pixels, the first again at the end; pixel (row 0, column 0) reaches from (0, 0) to (1, 1)."""


def polygons(mask: np.ndarray, top: int = 0, left: int = 0) -> list[list[Ring]]:
    """One polygon for each 4-connected part of a mask: the outer ring, then its holes.

    Rings do not cross or touch themselves, and a ring and its holes share at most single corners, so the polygons are
    valid as simple features. With the y axis pointing down, as in images, outer rings run clockwise and holes
    counter-clockwise.

    Args:
        mask: (H, W) bool.
        top: Row of the image at which the mask begins.
        left: Column of the image at which the mask begins.
    """
    parts, count = ndimage.label(mask)
    outer: list[Ring | None] = [None] * count
    holes: list[list[Ring]] = [[] for _ in range(count)]
    contours = find_contours(np.pad(mask, 1), 0.5, fully_connected='low')
    for pixel, corners in sorted((_ring(contour[:-1] - 1) for contour in contours), key=lambda ring: ring[0]):
        part = parts[pixel] - 1
        for ring in _simple_rings(list(map(tuple, np.add(corners, (left, top)).tolist()))):
            if _signed_area(ring) > 0:
                outer[part] = ring
            else:
                holes[part].append(ring)
    return [[ring, *inner] for ring, inner in zip(outer, holes, strict=True)]


def _ring(sides: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
    """Turns a contour of scikit-image into one along the sides of pixels.

    Args:
        sides: (N, 2) y, x of the contour: the centres of the pixel sides that it crosses, clockwise around the mask.

    Returns:
        The pixel (y, x) below the uppermost, then leftmost side, and the (K, 2) corners x, y after that side.
    """
    following = np.roll(sides, -1, axis=0)
    is_horizontal = sides[:, 0] % 1 > 0
    corners_yx = np.where(is_horizontal, (sides[:, 0], following[:, 1]), (following[:, 0], sides[:, 1])).T + 0.5
    turns = np.flatnonzero(is_horizontal != np.roll(is_horizontal, -1))
    tops = np.flatnonzero(is_horizontal & (following[:, 1] > sides[:, 1]))
    first = tops[np.lexsort(sides[tops, ::-1].T)[0]]
    turns = np.roll(turns, -np.searchsorted(turns, first))
    y, x = sides[first]
    return (int(y + 0.5), int(x)), corners_yx[turns, ::-1].astype(int)


def _simple_rings(corners: Ring) -> list[Ring]:
    """Splits a closed path at the corners that it passes twice."""
    rings: list[Ring] = []
    path: Ring = []
    places: dict[tuple[int, int], int] = {}
    for corner in corners:
        if corner in places:
            at = places[corner]
            loop = path[at:]
            rings.append([*loop, corner])
            for passed in loop[1:]:
                del places[passed]
            del path[at + 1 :]
        else:
            places[corner] = len(path)
            path.append(corner)
    return [*rings, [*path, path[0]]]


def _signed_area(ring: Ring) -> int:
    """Twice the area; positive for outer rings."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring))
