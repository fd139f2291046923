"""The 2D plane of an nD image layer that is in view, and its pixels as the model wants them.

Positions are data coordinates of the layer, one per axis, as `layer.world_to_data` gives them: whole numbers
are pixel centres. World coordinates never serve as indices, so scale, rotation and translation cannot mislead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unsam_mm.errors import ImageError

if TYPE_CHECKING:
    from napari.components import Dims
    from napari.layers import Image

MAX_PLANE_PX = 64_000_000
"""A larger plane would take the region tree tens of gigabytes."""


@dataclass(frozen=True)
class Plane:
    """A 2D plane through an nD array.

    Attributes:
        shape: Shape of the array in pixels, channels left out.
        axes: The two axes that the plane spans, ascending: rows, columns.
        index: Where the plane lies, one number per axis; 0 on the two axes that it spans.
    """

    shape: tuple[int, ...]
    axes: tuple[int, int]
    index: tuple[int, ...]

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.shape[self.axes[0]], self.shape[self.axes[1]]

    @property
    def slicing(self) -> tuple[int | slice, ...]:
        """Index that takes the plane out of the array."""
        return tuple(slice(None) if axis in self.axes else i for axis, i in enumerate(self.index))

    def inside(self, position: Sequence[float]) -> bool:
        """Whether a position lies inside the array, on this plane or another."""
        return all(0 <= i < n for i, n in zip(_nearest(position), self.shape, strict=True))

    def pixel(self, position: Sequence[float]) -> tuple[int, int] | None:
        """Row and column of the pixel at a position, or None if it lies outside the plane."""
        nearest = _nearest(position)
        beside = any(i != nearest[axis] for axis, i in enumerate(self.index) if axis not in self.axes)
        if beside or not self.inside(position):
            return None
        return nearest[self.axes[0]], nearest[self.axes[1]]

    def indices(self, rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, ...]:
        """Indices into the array, one (K,) array per axis, of the given pixels of the plane."""
        spanned = {self.axes[0]: rows, self.axes[1]: columns}
        return tuple(spanned.get(axis, np.full(len(rows), i)) for axis, i in enumerate(self.index))

    def region(self, box_xyxy: Sequence[int]) -> tuple[slice, ...]:
        """Slices of the array, one per axis, of a box in the plane; right and bottom edges exclusive."""
        x0, y0, x1, y1 = (int(edge) for edge in box_xyxy)
        spanned = {self.axes[0]: slice(y0, y1), self.axes[1]: slice(x0, x1)}
        return tuple(spanned.get(axis, slice(i, i + 1)) for axis, i in enumerate(self.index))


def plane_in_view(layer: Image, dims: Dims) -> Plane:
    """The plane of a layer that a 2D view shows.

    Raises:
        ImageError: If the view is 3D, shows an axis that the layer lacks, or the layer does not reach the view.
    """
    if dims.ndisplay != 2:
        raise ImageError('The view is 3D; switch to 2D to click on a plane.')
    shape = _full_resolution(layer).shape[: layer.ndim]
    axes = tuple(sorted(axis - (dims.ndim - layer.ndim) for axis in dims.displayed))
    if axes[0] < 0:
        raise ImageError(f'"{layer.name}" has no axis {dims.displayed[0]}; bring its own axes into view.')
    nearest = _nearest(layer.world_to_data(dims.point))
    index = tuple(0 if axis in axes else i for axis, i in enumerate(nearest))
    if not all(0 <= i < n for i, n in zip(index, shape, strict=True)):
        raise ImageError(f'"{layer.name}" has no plane at this slider position; move the slider.')
    return Plane(shape=shape, axes=axes, index=index)


def model_image(layer: Image, plane: Plane) -> np.ndarray:
    """The pixels of a plane for the model, read now: call it in the inference thread, dask may have to compute.

    Returns:
        RGB layers: (H, W, 3) with the values as they are. Others: (H, W) uint8, black and white at the layer's
        contrast limits, so that the model sees what the user sees; NaN becomes black.

    Raises:
        ImageError: If the plane is too large to segment at once.
    """
    height, width = plane.size_hw
    if height * width > MAX_PLANE_PX:
        raise ImageError(
            f'"{layer.name}": a plane of {height} x {width} px is too large, at most {MAX_PLANE_PX / 1e6:.0f} Mpx can be '
            'segmented at once; crop it or use a coarser pyramid level.'
        )
    pixels = np.asarray(_full_resolution(layer)[plane.slicing])
    return pixels[..., :3] if layer.rgb else to_uint8(pixels, layer.contrast_limits)


def to_uint8(pixels: np.ndarray, contrast_limits: Sequence[float]) -> np.ndarray:
    """Scales numbers of any type linearly so that the limits become 0 and 255; values beyond them are clipped.

    Args:
        pixels: Numbers of any shape; NaN becomes 0.
        contrast_limits: Lower and upper limit, lower < upper.
    """
    low, high = contrast_limits
    scaled = np.subtract(pixels, low, dtype=np.float64) * (255 / (high - low))
    return np.rint(np.nan_to_num(scaled).clip(0, 255)).astype(np.uint8)


def _nearest(position: Sequence[float]) -> list[int]:
    return [int(np.floor(value + 0.5)) for value in position]


def _full_resolution(layer: Image) -> np.ndarray:
    return layer.data[0] if layer.multiscale else layer.data
