"""The outline of a mask as polygons along the edges of its pixels; drawing the polygons gives the same mask."""

from __future__ import annotations

from itertools import pairwise

import numba
import numpy as np
from scipy import ndimage

Ring = list[tuple[int, int]]
"""Corners (x, y) in pixels; the last repeats the first. The pixel in row 0, column 0 extends from (0, 0) to (1, 1)."""

# Steps (x, y) along the top, right, bottom and left edge of a pixel, which lies to the right of the path.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def polygons(mask: np.ndarray, top: int = 0, left: int = 0) -> list[list[Ring]]:
    """One polygon for each part of a mask: the outer ring, then its holes.

    A part is a 4-connected component. Rings do not cross or touch themselves, and a ring and its holes share at most
    single corners, so the polygons are valid simple features. With the y axis pointing down, as in images, outer rings
    run clockwise and holes counter-clockwise.

    Args:
        mask: (H, W) bool.
        top: First row of the mask in the image.
        left: First column of the mask in the image.
    """
    mask = np.ascontiguousarray(mask, bool)
    parts, count = ndimage.label(mask)
    corners, starts, pixels = _trace(mask)
    outer: list[Ring | None] = [None] * count
    holes: list[list[Ring]] = [[] for _ in range(count)]
    for (start, stop), (row, column) in zip(pairwise([*starts, len(corners)]), pixels, strict=True):
        part = parts[row, column] - 1
        moved = np.add(corners[start:stop], (left, top))
        for ring in _simple_rings(list(map(tuple, moved.tolist()))):
            if _signed_area(ring) > 0:
                outer[part] = ring
            else:
                holes[part].append(ring)
    return [[ring, *inner] for ring, inner in zip(outer, holes, strict=True)]


def _simple_rings(corners: Ring) -> list[Ring]:
    """Splits a closed path at corners that it passes twice; its first corner is not repeated at the end."""
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
    """Twice the signed area in square pixels; positive for outer rings."""
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring))


def _trace(mask: np.ndarray) -> tuple[np.ndarray, list[int], np.ndarray]:
    """(N, 2) corners x, y of all rings, the R indices at which rings begin, and (R, 2) a mask pixel y, x at each."""
    tops = mask.copy()
    tops[1:] &= ~mask[:-1]
    # A ring has as many top edges of pixels as bottom edges. Corners are only at their ends: at most four per top edge.
    corners = np.empty((4 * int(np.count_nonzero(tops)), 2), np.int64)
    starts = np.empty(len(corners) + 1, np.int64)
    pixels = np.empty((len(corners) + 1, 2), np.int64)
    n_rings, n_corners = _follow(mask, tops, np.array(_STEPS), corners, starts, pixels)
    return corners[:n_corners], starts[:n_rings].tolist(), pixels[:n_rings]


@numba.njit(cache=True)
def _follow(mask, tops, steps, corners, starts, pixels):
    """Follows the outlines, with the mask on the right; does not cross over to pixels that touch only at a corner."""
    height, width = mask.shape
    n_rings = n_corners = 0
    for row in range(height):
        for column in range(width):
            if not tops[row, column]:
                continue
            starts[n_rings] = n_corners
            pixels[n_rings] = row, column
            n_rings += 1
            y, x, side = row, column, 0
            while True:
                if side == 0:
                    tops[y, x] = False
                dx, dy = steps[side]
                lx, ly = steps[side - 1]
                ahead_y, ahead_x = y + dy, x + dx
                left_y, left_x = ahead_y + ly, ahead_x + lx
                is_ahead = 0 <= ahead_y < height and 0 <= ahead_x < width and mask[ahead_y, ahead_x]
                is_left = is_ahead and 0 <= left_y < height and 0 <= left_x < width and mask[left_y, left_x]
                turn = -1 if is_left else (0 if is_ahead else 1)
                if turn:
                    # End of the edge: x + 1 for top and right edges, y + 1 for right and bottom edges.
                    corners[n_corners, 0] = x + (side < 2)
                    corners[n_corners, 1] = y + (side == 1 or side == 2)
                    n_corners += 1
                if is_left:
                    y, x = left_y, left_x
                elif is_ahead:
                    y, x = ahead_y, ahead_x
                side = (side + turn) % 4
                if y == row and x == column and side == 0:
                    break
    return n_rings, n_corners
