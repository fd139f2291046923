"""A pyramid of overlapping tiles over a plane, and masks that are cropped to their boxes.

Tiles of all levels have the same side in their own pixels, unless the level is smaller; a pixel of level k is the mean
of 2^k x 2^k pixels of the plane.
The last level has a single tile, which covers the whole plane.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numba
import numpy as np

from unsam_mm.masks.ops import extent

_SIDE_OVER_RIM = 64  # a tile of 1024 px has rims of 16 px, as wide as the filters reach


@dataclass(frozen=True)
class Tile:
    """A tile of one level, in pixels of that level.

    Attributes:
        level: Level of the pyramid; the side of a pixel is 2^level pixels of the plane.
        top: First row.
        left: First column.
        height: Number of rows.
        width: Number of columns.
        inner: True for each of the top, bottom, left and right sides that lies inside the plane.
        rim_px: Width of the rim at inner sides; a mask in the rim may extend beyond the tile.
    """

    level: int
    top: int
    left: int
    height: int
    width: int
    inner: tuple[bool, bool, bool, bool]
    rim_px: int

    @property
    def scale(self) -> int:
        """Side of a pixel of the tile in pixels of the plane."""
        return 1 << self.level

    def reaches_rim(self, mask: np.ndarray) -> bool:
        """True if an (H, W) bool mask of the tile reaches the rim of an inner side."""
        rim, (top, bottom, left, right) = self.rim_px, self.inner
        bands = ((top, mask[:rim]), (bottom, mask[-rim:]), (left, mask[:, :rim]), (right, mask[:, -rim:]))
        return any(is_inner and bool(band.any()) for is_inner, band in bands)

    def to_plane(self, box_xyxy: np.ndarray) -> np.ndarray:
        """(4,) box in pixels of the plane, from a box in pixels of the tile."""
        return (box_xyxy + np.array([self.left, self.top] * 2)) * self.scale

    def contains(self, box_xyxy: np.ndarray, margin_px: float) -> bool:
        """True if a (4,) box of the plane lies in the tile, with a margin in its pixels to its inner sides."""
        x0, y0, x1, y1 = self.to_local(box_xyxy.reshape(2, 2)).ravel()
        top, bottom, left, right = (margin_px if is_inner else -np.inf for is_inner in self.inner)
        return y0 >= top and y1 <= self.height - bottom and x0 >= left and x1 <= self.width - right

    def to_local(self, xy: np.ndarray) -> np.ndarray:
        """(N, 2) coordinates in pixels of the tile, from coordinates of the plane, x before y."""
        return xy / self.scale - (self.left, self.top)


class TilePyramid:
    """The tiles of all levels of a plane; adjacent tiles overlap by half.

    Args:
        size_hw: Height and width of the plane in pixels.
        side_px: Side of a tile in its own pixels.
    """

    def __init__(self, size_hw: tuple[int, int], side_px: int) -> None:
        self.size_hw, self.side_px = size_hw, side_px
        self.n_levels = 1
        while max(self.level_size(self.n_levels - 1)) > side_px:
            self.n_levels += 1

    def level_size(self, level: int) -> tuple[int, int]:
        """Height and width of a level in its pixels."""
        height, width = (-(-side >> level) for side in self.size_hw)
        return height, width

    def tile_at(self, level: int, point_xy: np.ndarray) -> Tile:
        """The tile whose centre is nearest to a point of the plane.

        It extends at least a quarter of its side beyond the point, or to the border of the plane.
        """
        x, y = np.asarray(point_xy) / (1 << level)
        (height, width), side = self.level_size(level), self.side_px
        nearest = [
            min(self._starts(length), key=lambda start: abs(start + side / 2 - at))
            for length, at in ((height, y), (width, x))
        ]
        return self._tile(level, *nearest)

    def tiles(self, level: int) -> Iterator[Tile]:
        """All tiles of a level, row by row."""
        height, width = self.level_size(level)
        for top in self._starts(height):
            for left in self._starts(width):
                yield self._tile(level, top, left)

    def area_of(self, tile: Tile) -> int:
        """Area of a tile in pixels of the plane."""
        spans = zip(self.size_hw, (tile.top, tile.left), (tile.height, tile.width), strict=True)
        height, width = (min(length, (start + size) * tile.scale) - start * tile.scale for length, start, size in spans)
        return height * width

    def _starts(self, length: int) -> list[int]:
        step, last = self.side_px // 2, max(length - self.side_px, 0)
        return [*range(0, last, step), last]

    def _tile(self, level: int, top: int, left: int) -> Tile:
        height, width = self.level_size(level)
        rows, columns = min(self.side_px, height), min(self.side_px, width)
        inner = (top > 0, top + rows < height, left > 0, left + columns < width)
        return Tile(level, top, left, rows, columns, inner, max(self.side_px // _SIDE_OVER_RIM, 1))


@dataclass(frozen=True, eq=False)
class MaskCrop:
    """A mask of a plane, cropped to its box.

    Attributes:
        bitmap: (h, w) bool.
        top: First row of the box in the plane.
        left: First column of the box in the plane.
        level: Level of the tile that the mask comes from; the resolution of its boundary is 2^level pixels.
    """

    bitmap: np.ndarray
    top: int
    left: int
    level: int = 0

    @classmethod
    def from_mask(cls, mask: np.ndarray) -> MaskCrop:
        """The crop of an (H, W) bool mask of a plane."""
        top, bottom, left, right = extent(mask)
        return cls(mask[top:bottom, left:right], top, left)

    @property
    def area(self) -> int:
        """Area in pixels."""
        return int(np.count_nonzero(self.bitmap))

    @property
    def box_xyxy(self) -> tuple[int, int, int, int]:
        """The box in pixels of the plane; right and bottom edges exclusive."""
        height, width = self.bitmap.shape
        return self.left, self.top, self.left + width, self.top + height

    def paste(self, out: np.ndarray) -> None:
        """Sets the pixels of the mask to True in an (H, W) bool array of the size of the plane."""
        x0, y0, x1, y1 = self.box_xyxy
        out[y0:y1, x0:x1] |= self.bitmap

    def iou(self, other: MaskCrop) -> float:
        """Intersection over union."""
        ax0, ay0, ax1, ay1 = self.box_xyxy
        bx0, by0, bx1, by1 = other.box_xyxy
        x0, y0, x1, y1 = max(ax0, bx0), max(ay0, by0), min(ax1, bx1), min(ay1, by1)
        if x0 >= x1 or y0 >= y1:
            return 0.0
        one = self.bitmap[y0 - ay0 : y1 - ay0, x0 - ax0 : x1 - ax0]
        two = other.bitmap[y0 - by0 : y1 - by0, x0 - bx0 : x1 - bx0]
        shared = np.count_nonzero(one & two)
        return shared / max(self.area + other.area - shared, 1)


def upsample_mask(mask: np.ndarray, tile: Tile, size_hw: tuple[int, int]) -> MaskCrop:
    """Upsamples a mask of a tile to the resolution of the plane: bilinear interpolation, thresholded at 0.5.

    Args:
        mask: (H, W) bool mask of the tile, not empty.
        tile: The tile.
        size_hw: Height and width of the plane in pixels.
    """
    rows, ends, columns, column_ends = extent(mask)
    # Interpolation needs one neighbour on each side; at the sides of the tile the last pixel is repeated.
    around = np.pad(mask, 1, mode='edge')[rows : ends + 2, columns : column_ends + 2]
    # Values outside the box are at most 0.5, so the mask is empty there.
    drawn = around[1:-1, 1:-1].copy() if tile.level == 0 else _enlarged(around, tile.scale)
    top, left = (tile.top + rows) * tile.scale, (tile.left + columns) * tile.scale
    return MaskCrop(drawn[: size_hw[0] - top, : size_hw[1] - left], top, left, tile.level)


@numba.njit(nogil=True, cache=True)
def _enlarged(around, scale):
    """(h * scale, w * scale) bool: where the bilinear interpolation of an (h + 2, w + 2) bool mask exceeds 0.5."""
    height, width = around.shape[0] - 2, around.shape[1] - 2
    out = np.empty((height * scale, width * scale), np.bool_)
    whole = 2 * scale  # weights are integers in units of 1 / (2 * scale)
    for y in range(height * scale):
        offset = 2 * y + 1 + scale
        row, low = offset // whole, offset % whole
        for x in range(width * scale):
            offset = 2 * x + 1 + scale
            column, right = offset // whole, offset % whole
            upper = around[row, column] * (whole - right) + around[row, column + 1] * right
            lower = around[row + 1, column] * (whole - right) + around[row + 1, column + 1] * right
            out[y, x] = 2 * (upper * (whole - low) + lower * low) > whole * whole
    return out
