"""The layers that show the chosen regions and the reviewed object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Labels
from napari.layers.base import LayerLock
from napari.utils.colormaps import CyclicLabelColormap

from napari_unsam.levels.cuts import N_COLOURS
from napari_unsam.model.frame import Frame
from napari_unsam.model.label_boxes import Slices
from napari_unsam.model.palette import OBJECT_COLOURS
from napari_unsam.model.plane import Plane
from napari_unsam.viewer.contours import outline_in_array
from napari_unsam.viewer.layers import following_arguments, move_on_image, outline_layer
from napari_unsam.viewer.port import SessionPort
from napari_unsam.viewer.workarounds import insert_quietly, redraw, remove_layers

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Vectors

LEVELS_NAME = 'UnSAM levels'
REVIEW_NAME = 'UnSAM review'
REVIEW_COLOUR = '#ff4dff'  # differs from those of objects, prompts and masks
_WIDTH_SHARE = 1 / 120  # outline width as a share of the longer side of the object's box
_MIN_WIDTH = 0.4


def thin_shape(plane: Plane) -> tuple[int, ...]:
    """Shape of an array of one plane with as many axes as the image."""
    return tuple(n if axis in plane.axes else 1 for axis, n in enumerate(plane.shape))


class LevelPreview:
    """A Labels layer over one plane, redrawn in place.

    Its labels are colours, 1 to `cuts.N_COLOURS`, in one byte each, which napari passes to the graphics card unchanged.
    Labels of four bytes took twice as long, and a colormap for each level five times as long.

    Args:
        viewer: The viewer.
        objects: The layer of objects, below this layer.
        frame: Frame of the image.
        plane: Plane of the image.

    Attributes:
        plane: The plane on which the layer lies.
        layer: The layer.
        pixels: (H, W) uint8 labels of the plane, a view of the layer's data; call `redraw` after a change.
    """

    def __init__(self, viewer: ViewerModel, objects: Labels, frame: Frame, plane: Plane) -> None:
        self._viewer, self.plane = viewer, plane
        data = np.zeros(thin_shape(plane), np.uint8)
        self.layer = Labels(
            data,
            name=LEVELS_NAME,
            opacity=0.5,
            colormap=CyclicLabelColormap(colors=['transparent', *OBJECT_COLOURS[:N_COLOURS]]),
            **following_arguments(frame, plane.index),
        )
        self.pixels = data.reshape(plane.size_hw)
        insert_quietly(viewer, self.layer, viewer.layers.index(objects) + 1)
        self.layer.locked = LayerLock.DELETION

    def redraw(self) -> None:
        """Redraws the layer after a change of `pixels`."""
        redraw(self.layer, extent=False)

    def move_to(self, frame: Frame, plane: Plane) -> bool:
        """Moves the layer to another plane of the image; returns False if its shape differs or the layer is gone."""
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


class ReviewOutline:
    """A layer with the outline of one object in all planes that contain it."""

    def __init__(self, session: SessionPort) -> None:
        self._session = session
        self.layer: Vectors | None = None

    def show(self, objects: Labels, label: int, box: Slices, axes: Sequence[int]) -> None:
        """Draws the outline of an object.

        Args:
            objects: The layer of the object.
            label: Its label.
            box: Its bounding box, one slice per axis.
            axes: The two axes in view.
        """
        session, mask = self._session, np.asarray(objects.data[box]) == label
        if self.layer is None or self.layer not in session.viewer.layers:
            self.layer = outline_layer(session.frame, REVIEW_NAME, REVIEW_COLOUR)
            insert_quietly(session.viewer, self.layer)
            session.inputs.bind(self.layer)
        self.layer.edge_width = max(_WIDTH_SHARE * max(mask.shape[axis] for axis in axes), _MIN_WIDTH)
        self.layer.data = outline_in_array(mask, box, sorted(axes))
        self.layer.visible = True

    def hide(self) -> None:
        """Hides the layer; removing it would take napari longer than drawing it."""
        if self.layer is not None:
            self.layer.visible = False

    def remove(self) -> None:
        """Removes the layer after napari has handled the current event."""
        layer, self.layer = self.layer, None
        if layer is not None:
            self._session.inputs.unbind(layer)
            self._session.later(lambda: remove_layers(self._session.viewer, [layer]))
