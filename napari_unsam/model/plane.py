"""The 2D plane of an nD image layer that is in view.

Positions are in the frame of the image, one number per axis; whole numbers are pixel centres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from napari_unsam.model.label_boxes import LazyArray
from napari_unsam.model.mask import BoxMask, box_slices
from unsam_mm.errors import ImageError

if TYPE_CHECKING:
    from napari.components import Dims, ViewerModel
    from napari.layers import Layer

    from napari_unsam.model.frame import Frame


@dataclass(frozen=True)
class Plane:
    """A 2D plane through an nD array.

    Attributes:
        shape: Shape of the array in pixels.
        axes: The axes of the rows and the columns, ascending.
        index: The index of the plane along each axis of the array; 0 along `axes`.
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
        """The index that selects the plane from the array."""
        return tuple(slice(None) if axis in self.axes else i for axis, i in enumerate(self.index))

    def of(self, array: LazyArray) -> np.ndarray:
        """(H, W) the values of an array in the plane."""
        return np.asarray(array[self.slicing])

    def inside(self, position: Sequence[float]) -> bool:
        """True if a position lies inside the array, on this plane or another."""
        return all(0 <= i < n for i, n in zip(_nearest(position), self.shape, strict=True))

    def holds(self, position: Sequence[float]) -> bool:
        """True if a position lies in this plane, also beyond the edges of the array."""
        nearest = _nearest(position)
        return all(i == nearest[axis] for axis, i in enumerate(self.index) if axis not in self.axes)

    def pixel(self, position: Sequence[float]) -> tuple[int, int] | None:
        """Row and column of the pixel at a position, or None if it lies outside the plane."""
        nearest = _nearest(position)
        if not (self.holds(position) and self.inside(position)):
            return None
        return nearest[self.axes[0]], nearest[self.axes[1]]

    def slices(self, box_xyxy: Sequence[int]) -> tuple[slice, ...]:
        """Slices of the array, one per axis, of a box in the plane; right and bottom edges exclusive."""
        spanned = dict(zip(self.axes, box_slices(box_xyxy), strict=True))
        return tuple(spanned.get(axis, slice(i, i + 1)) for axis, i in enumerate(self.index))

    def in_array(self, mask: BoxMask) -> tuple[np.ndarray, tuple[slice, ...]]:
        """A mask of the plane as a bool array with all axes of the array, and its slices of the array."""
        box = self.slices(mask.box_xyxy)
        return mask.mask.reshape([part.stop - part.start for part in box]), box


def view_of_layer(viewer: ViewerModel, layer: Layer) -> tuple[object, ...]:
    """The state of the sliders and axes on which the displayed slice of a layer depends.

    A layer that is redrawn while this state is unchanged has new pixels.
    """
    dims, first = viewer.dims, viewer.dims.ndim - layer.ndim
    order = tuple(axis - first for axis in dims.order if axis >= first)
    own = [values[-layer.ndim :] for values in (dims.point, dims.margin_left, dims.margin_right)]
    return *own, order, dims.ndisplay


def plane_in_view(frame: Frame, dims: Dims) -> Plane:
    """The plane of an image that a 2D view shows.

    Raises:
        ImageError: If the view is 3D, outside the image, or shows an axis that the image lacks or its channel axis.
    """
    axes = frame.displayed(dims)
    # napari ignores the two displayed axes when it chooses the plane; in an oblique layer they would change it.
    point = [0.0 if axis in dims.displayed else value for axis, value in enumerate(dims.point)]
    return plane_at(frame, axes, frame.to_data(point))


def plane_at(frame: Frame, axes: tuple[int, int], position: Sequence[float]) -> Plane:
    """The plane of an image at a position.

    Args:
        frame: The frame of the image.
        axes: The two axes of the plane, ascending.
        position: Position in the frame; its values along the two axes have no effect.

    Raises:
        ImageError: If the position is outside the image.
    """
    index = tuple(0 if axis in axes else i for axis, i in enumerate(_nearest(position)))
    if not all(0 <= i < n for i, n in zip(index, frame.shape, strict=True)):
        raise ImageError(f'"{frame.image.name}" has no slice at this slider position; move the slider.')
    return Plane(shape=frame.shape, axes=axes, index=index)


def parallel_planes(plane: Plane) -> list[Plane]:
    """All planes of the array that are parallel to a plane, nearest first; the first is the plane itself."""
    across = [1 if axis in plane.axes else length for axis, length in enumerate(plane.shape)]
    ordered = sorted(np.ndindex(*across), key=lambda index: float(np.abs(np.subtract(index, plane.index)).sum()))
    return [replace(plane, index=index) for index in ordered]


def _nearest(position: Sequence[float]) -> list[int]:
    """The index of the pixel that napari shows at a position; halfway between two pixels, it is the even index."""
    return [int(value) for value in np.round(position)]
