"""The layers of the plugin over one image: objects below, then the contour of the mask on offer, then the clicks.

The layers show what the controller holds. Only the clicks can also be edited in their layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels, Points
from napari.layers.base import LayerLock
from napari.utils.colormaps import CyclicLabelColormap
from napari.utils.transforms import Affine

from napari_unsam._prompts import PointPrompt, Polarity

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

    from napari_unsam._controller import Proposal
    from napari_unsam._planes import Plane

PROMPTS_NAME = 'UnSAM prompts'
PREVIEW_NAME = 'UnSAM preview'
OBJECTS_NAME = 'UnSAM objects'

# Told apart without colour vision: by hue (blue, vermilion; Okabe and Ito), by lightness and by symbol.
COLOURS = {Polarity.POSITIVE: '#0072b2', Polarity.NEGATIVE: '#d55e00'}
SYMBOLS = {Polarity.POSITIVE: 'disc', Polarity.NEGATIVE: 'diamond'}
PREVIEW_COLOUR = '#f0e442'
# Objects: the rest of that palette, then its tints; none dark, so that an object shows on a dark image too.
OBJECT_COLOURS = (
    '#56b4e9',
    '#e69f00',
    '#009e73',
    '#cc79a7',
    '#0072b2',
    '#d55e00',
    '#b5e3ff',
    '#ffd58a',
    '#7fe0c0',
    '#f3c1dc',
)

_SOURCE_KEY = 'unsam_image'


def transform_of(image: Image) -> dict[str, Any]:
    """All that places a layer in the world as the image is placed."""
    names = ('scale', 'translate', 'rotate', 'shear', 'affine', 'units', 'axis_labels')
    return {name: getattr(image, name) for name in names}


def transform_of_plane(image: Image, plane: Plane) -> dict[str, Any]:
    """All that places a layer, which is one pixel thick across the plane, exactly where the image has that plane."""
    placed = transform_of(image)
    linear = Affine(scale=image.scale, rotate=image.rotate, shear=image.shear, ndim=image.ndim).linear_matrix
    return placed | {'translate': image.translate + linear @ np.array(plane.index, float)}


class ObjectLayers:
    """Finds or makes the Labels layer that holds the committed objects of an image."""

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer

    def find(self, image: Image) -> Labels | None:
        """The objects of an image; None if there are none. Renaming the layer does not hide it."""
        for layer in self._viewer.layers:
            if isinstance(layer, Labels) and layer.metadata.get(_SOURCE_KEY) == image.unique_id:
                return layer
        return None

    def make(self, image: Image, shape: Sequence[int]) -> Labels:
        """Adds an empty layer for the objects, just above the image.

        Args:
            image: The image; its place in the world is copied.
            shape: Shape of the image in pixels, without channels.
        """
        labels = Labels(
            np.zeros(shape, np.uint32),
            name=OBJECTS_NAME,
            opacity=0.6,
            colormap=CyclicLabelColormap(colors=['transparent', *OBJECT_COLOURS]),
            metadata={_SOURCE_KEY: image.unique_id},
            **transform_of(image),
        )
        self._viewer.layers.insert(self._viewer.layers.index(image) + 1, labels)
        return labels


class PromptLayers:
    """The clicks on an image and the contour of the mask on offer; both come and go with the choice of the image."""

    def __init__(self, viewer: ViewerModel, image: Image, plane: Plane) -> None:
        self._viewer = viewer
        self._image = image
        self.points = Points(
            ndim=image.ndim,
            name=PROMPTS_NAME,
            size=max(plane.size_hw) / 30,
            canvas_size_limits=(2, 18),
            border_color='white',
            border_width=0.1,
            face_color=COLOURS[Polarity.POSITIVE],
            **transform_of(image),
        )
        self.preview = Labels(
            _blank(plane),
            name=PREVIEW_NAME,
            opacity=1.0,
            # A direct colormap would freeze the window for seconds: napari compiles code for the first one.
            colormap=CyclicLabelColormap(colors=['transparent', PREVIEW_COLOUR]),
            **transform_of_plane(image, plane),
        )
        self.preview.contour = 2
        selected = list(viewer.layers.selection)
        for layer in (self.preview, self.points):
            viewer.add_layer(layer)
            layer.locked = LayerLock.DELETION
        viewer.layers.selection = selected or [image]

    def show_prompts(self, prompts: Sequence[PointPrompt]) -> None:
        """Draws the clicks."""
        points = self.points
        points.selected_data = set()
        points.data = np.array([prompt.position for prompt in prompts]).reshape(-1, self._image.ndim)
        if prompts:
            points.face_color = [COLOURS[prompt.polarity] for prompt in prompts]
            points.symbol = [SYMBOLS[prompt.polarity] for prompt in prompts]
        points.refresh()

    def show_proposal(self, proposal: Proposal | None) -> None:
        """Draws the contour of a mask on its plane, or none."""
        if proposal is None:
            self.preview.data = np.zeros_like(self.preview.data)
            return
        plane = proposal.plane
        pixels = _blank(plane)
        x0, y0, x1, y1 = proposal.box_xyxy
        flat = tuple(slice(None) if axis in plane.axes else 0 for axis in range(pixels.ndim))
        pixels[flat][y0:y1, x0:x1] = proposal.mask
        self.preview.data = pixels
        translate = transform_of_plane(self._image, plane)['translate']
        if not np.array_equal(translate, self.preview.translate):  # napari redraws all layers when one moves
            self.preview.translate = translate

    def owns(self, layer: Layer) -> bool:
        """Whether a layer is one of the two."""
        return layer is self.points or layer is self.preview

    def remove(self) -> None:
        """Takes both layers out of the viewer."""
        for layer in (self.points, self.preview):
            if layer in self._viewer.layers:
                layer.locked = LayerLock.NONE
                self._viewer.layers.remove(layer)


def _blank(plane: Plane) -> np.ndarray:
    return np.zeros([n if axis in plane.axes else 1 for axis, n in enumerate(plane.shape)], np.uint8)
