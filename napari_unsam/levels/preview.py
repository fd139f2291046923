"""The layer that shows what is chosen before it is accepted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels
from napari.layers.base import LayerLock
from napari.utils.colormaps import CyclicLabelColormap
from napari.utils.transforms import Affine

from napari_unsam._layers import OBJECT_COLOURS
from napari_unsam._planes import Plane
from napari_unsam.levels.cuts import N_COLOURS

if TYPE_CHECKING:
    from napari.components import ViewerModel

LEVELS_NAME = 'UnSAM levels'


def placed_as(objects: Labels, plane: Plane) -> dict[str, Any]:
    """All that places a layer, one pixel thick across a plane, where the layer of objects has that plane."""
    names = ('scale', 'translate', 'rotate', 'shear', 'affine', 'units', 'axis_labels')
    placed = {name: getattr(objects, name) for name in names}
    linear = Affine(scale=objects.scale, rotate=objects.rotate, shear=objects.shear, ndim=objects.ndim).linear_matrix
    return placed | {'translate': objects.translate + linear @ np.array(plane.index, float)}


def thin_shape(plane: Plane) -> tuple[int, ...]:
    """Shape of an array that holds the plane alone."""
    return tuple(n if axis in plane.axes else 1 for axis, n in enumerate(plane.shape))


class LevelPreview:
    """Colours over one plane, redrawn in place.

    The pixels are colours already, one byte each: napari hands them to the graphics card as they are. Labels of four bytes,
    or a colormap for each level, took two and five times as long.

    Args:
        viewer: Where.
        objects: The layer of objects over the image, which is placed the same.
        plane: Of it.
    """

    def __init__(self, viewer: ViewerModel, objects: Labels, plane: Plane) -> None:
        self._viewer, self.plane = viewer, plane
        data = np.zeros(thin_shape(plane), np.uint8)
        self.layer = Labels(
            data,
            name=LEVELS_NAME,
            opacity=0.5,
            colormap=CyclicLabelColormap(colors=['transparent', *OBJECT_COLOURS[:N_COLOURS]]),
            **placed_as(objects, plane),
        )
        self.pixels = data.reshape(plane.size_hw)
        selected = list(viewer.layers.selection)
        viewer.layers.insert(viewer.layers.index(objects) + 1, self.layer)
        self.layer.locked = LayerLock.DELETION
        viewer.layers.selection = selected

    def redraw(self) -> None:
        """Shows `pixels` as they are now."""
        self.layer.refresh(extent=False, thumbnail=False, highlight=False)

    def remove(self) -> None:
        """Takes the layer out of the viewer."""
        if self.layer in self._viewer.layers:
            self.layer.locked = LayerLock.NONE
            self._viewer.layers.remove(self.layer)
