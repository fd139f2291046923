"""The layers of the plugin over one image: objects below, then the outline of the mask on offer, then the prompts.

The layers show what the controller holds. Only the prompts can also be edited in their layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Image, Labels, Points, Shapes, Vectors
from napari.layers.base import LayerLock
from napari.utils.colormaps import CyclicLabelColormap

from napari_unsam._contours import outline_segments
from napari_unsam._prompts import Polarity, Prompts, ShapeKind, ShapePrompt
from napari_unsam.output.palette import OBJECT_COLOURS

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

    from napari_unsam._frame import Frame
    from napari_unsam._planes import Plane
    from napari_unsam._targets import Proposal

PROMPTS_NAME = 'UnSAM prompts'
SHAPES_NAME = 'UnSAM shapes'
PREVIEW_NAME = 'UnSAM preview'
OBJECTS_NAME = 'UnSAM objects'

# Told apart without colour vision: by hue (blue, vermilion; Okabe and Ito), by lightness and by symbol.
COLOURS = {Polarity.POSITIVE: '#0072b2', Polarity.NEGATIVE: '#d55e00'}
SYMBOLS = {Polarity.POSITIVE: 'disc', Polarity.NEGATIVE: 'diamond'}
PREVIEW_COLOUR = '#f0e442'
SHAPE_TYPES = {ShapeKind.BOX: 'rectangle', ShapeKind.OUTLINE: 'polygon', ShapeKind.SCRIBBLE: 'path'}

_SOURCE_KEY = 'unsam_image'
_OUTLINE_WIDTH = 2.5  # on screen, in pixels
_ZOOM_TOLERANCE = 1.3  # how far the outline's width may be off before it is drawn anew


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

    def make(self, frame: Frame) -> Labels:
        """Adds an empty layer for the objects of an image, just above it, in its place in the world."""
        image = frame.image
        labels = Labels(
            np.zeros(frame.shape, np.uint32),
            name=OBJECTS_NAME,
            opacity=0.6,
            colormap=CyclicLabelColormap(colors=['transparent', *OBJECT_COLOURS]),
            metadata={_SOURCE_KEY: image.unique_id},
            **frame.placed,
        )
        selected = list(self._viewer.layers.selection)
        self._viewer.layers.insert(self._viewer.layers.index(image) + 1, labels)
        self._viewer.layers.selection = selected
        return labels


class PromptLayers:
    """The prompts on an image and the outline of the mask on offer; all come and go with the choice of the image.

    Attributes:
        points: Clicks.
        shapes: Boxes, outlines and scribbles; None before `make_shapes`, since napari takes half a second for its first such
            layer.
        preview: The outline, as segments along the sides of pixels: it takes as long as the outline is, not the plane.
    """

    def __init__(self, viewer: ViewerModel, frame: Frame, plane: Plane) -> None:
        self._viewer = viewer
        self._ndim = len(frame.shape)
        self._drawn: list[Polarity] = []
        self._frame, self._size_px = frame, max(plane.size_hw)
        self.shapes: Shapes | None = None
        self._pixel = float(np.abs(np.asarray(frame.placed['scale']))[list(plane.axes)].min())
        self.preview = Vectors(
            np.zeros((0, 2, self._ndim)),
            ndim=self._ndim,
            name=PREVIEW_NAME,
            opacity=1.0,
            edge_color=PREVIEW_COLOUR,
            vector_style='line',
            visible=False,
            **frame.placed,
        )
        self.preview._update_thumbnail = lambda: (
            None
        )  # would take longer than all else that a step of granularity takes
        self.points = Points(
            ndim=self._ndim,
            name=PROMPTS_NAME,
            size=max(plane.size_hw) / 30,
            canvas_size_limits=(2, 18),
            border_color='white',
            border_width=0.1,
            face_color=COLOURS[Polarity.POSITIVE],
            **frame.placed,
        )
        selected = list(viewer.layers.selection)
        for layer in self.layers:
            viewer.add_layer(layer)
            layer.locked = LayerLock.DELETION
        viewer.layers.selection = selected or [frame.image]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All of them, the lowest first."""
        return tuple(layer for layer in (self.preview, self.shapes, self.points) if layer is not None)

    def make_shapes(self) -> Shapes:
        """Adds the layer of the shapes below the clicks."""
        self.shapes = Shapes(
            ndim=self._ndim,
            name=SHAPES_NAME,
            face_color='transparent',
            edge_color=COLOURS[Polarity.POSITIVE],
            edge_width=max(self._size_px / 300, 0.2),
            **self._frame.placed,
        )
        selected = list(self._viewer.layers.selection)
        self._viewer.layers.insert(self._viewer.layers.index(self.points), self.shapes)
        self.shapes.locked = LayerLock.DELETION
        self._viewer.layers.selection = selected
        return self.shapes

    def show_prompts(self, prompts: Prompts) -> None:
        """Draws clicks and shapes."""
        points = self.points
        points.selected_data = set()
        points.data = np.array([point.position for point in prompts.points]).reshape(-1, self._ndim)
        polarities = [point.polarity for point in prompts.points]
        if {*polarities, *self._drawn} - {Polarity.POSITIVE}:  # each of these draws all points again
            points.face_color = [COLOURS[polarity] for polarity in polarities] or COLOURS[Polarity.POSITIVE]
            points.symbol = [SYMBOLS[polarity] for polarity in polarities] or SYMBOLS[Polarity.POSITIVE]
            points.refresh()
        self._drawn = polarities
        if self.shapes is not None:
            self._show_shapes(prompts.shapes)

    def _holds(self, shapes: tuple[ShapePrompt, ...]) -> bool:
        """Whether the layer of shapes shows these."""
        drawn = self.shapes.data
        return len(drawn) == len(shapes) and all(
            len(corners) == len(shape.vertices) and np.allclose(corners, shape.vertices)
            for corners, shape in zip(drawn, shapes, strict=True)
        )

    def show_proposal(self, proposal: Proposal | None) -> None:
        """Draws the outline of a mask on its plane, or none."""
        self.preview.visible = proposal is not None
        if proposal is None:
            return
        segments = outline_segments(proposal.mask)
        placed = np.zeros((len(segments), 2, self._ndim))
        placed[:, 0] = proposal.plane.index
        x0, y0 = proposal.box_xyxy[:2]
        rows, columns = proposal.plane.axes
        placed[:, :, rows], placed[:, :, columns] = segments[..., 0], segments[..., 1]
        placed[:, 0, rows] += y0
        placed[:, 0, columns] += x0
        self.preview.data = placed
        self.fit_width()

    def owns(self, layer: Layer) -> bool:
        """Whether a layer is one of these."""
        return any(layer is own for own in self.layers)

    def remove(self) -> None:
        """Takes all of them out of the viewer."""
        for layer in reversed(self.layers):
            if layer in self._viewer.layers:
                layer.locked = LayerLock.NONE
                self._viewer.layers.remove(layer)

    def _show_shapes(self, shapes: tuple[ShapePrompt, ...]) -> None:
        if not self._holds(shapes):
            self.shapes.selected_data = set()
            self.shapes.data = []
            if shapes:
                self.shapes.add(
                    [np.array(shape.vertices) for shape in shapes],
                    shape_type=[SHAPE_TYPES[shape.kind] for shape in shapes],
                )
        if shapes:
            self.shapes.edge_color = [COLOURS[shape.polarity] for shape in shapes]

    def fit_width(self) -> None:
        """Gives the outline its width on screen at this zoom; never call it while the canvas is being drawn."""
        width = _OUTLINE_WIDTH / (max(float(self._viewer.scene.camera.zoom), 1e-9) * self._pixel)
        ratio = width / self.preview.edge_width
        if not 1 / _ZOOM_TOLERANCE < ratio < _ZOOM_TOLERANCE:
            self.preview.edge_width = width
