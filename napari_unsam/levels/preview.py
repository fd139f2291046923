"""The layer that previews the chosen regions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Labels
from napari.layers.base import LayerLock
from napari.utils.colormaps import CyclicLabelColormap

from napari_unsam.levels.cuts import N_COLOURS
from napari_unsam.model.plane import Plane
from napari_unsam.viewer.layers import OBJECT_COLOURS, following, insert_quietly, move_on_image, remove_layers

if TYPE_CHECKING:
    from napari.components import ViewerModel

    from napari_unsam.model.frame import Frame

LEVELS_NAME = 'UnSAM levels'


def thin_shape(plane: Plane) -> tuple[int, ...]:
    """Shape of an array that holds the plane alone."""
    return tuple(n if axis in plane.axes else 1 for axis, n in enumerate(plane.shape))


class LevelPreview:
    """Colours over one plane, redrawn in place.

    The pixels are colours already, one byte each: napari hands them to the graphics card as they are. Labels of four bytes,
    or a colormap for each level, took two and five times as long.

    Args:
        viewer: Where.
        objects: The layer of objects over the image; the colours lie just above it.
        frame: Of the image.
        plane: Of the image.
    """

    def __init__(self, viewer: ViewerModel, objects: Labels, frame: Frame, plane: Plane) -> None:
        self._viewer, self.plane = viewer, plane
        data = np.zeros(thin_shape(plane), np.uint8)
        self.layer = Labels(
            data,
            name=LEVELS_NAME,
            opacity=0.5,
            colormap=CyclicLabelColormap(colors=['transparent', *OBJECT_COLOURS[:N_COLOURS]]),
            **following(frame, plane.index),
        )
        self.pixels = data.reshape(plane.size_hw)
        insert_quietly(viewer, self.layer, viewer.layers.index(objects) + 1)
        self.layer.locked = LayerLock.DELETION

    def redraw(self) -> None:
        """Shows `pixels` as they are now."""
        self.layer.refresh(extent=False, thumbnail=False, highlight=False)

    def move_to(self, frame: Frame, plane: Plane) -> bool:
        """Shows another plane of the image from now on; returns False if this layer cannot."""
        if thin_shape(plane) != self.layer.data.shape or self.layer not in self._viewer.layers:
            return False
        if plane != self.plane:
            self.plane = plane
            move_on_image(self.layer, frame, plane.index)
        self.layer.visible = True
        return True

    def hide(self) -> None:
        """Hides the layer; removing it would take napari longer than drawing it."""
        self.layer.visible = False

    def remove(self) -> None:
        """Removes the layer."""
        remove_layers(self._viewer, [self.layer])
