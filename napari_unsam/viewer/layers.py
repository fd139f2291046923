"""The layers of the plugin over one image: objects, the outline of the current mask, prompts.

The layers of the prompts and the outline show the state of the controller; prompts can also be edited in their layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels, Points, Shapes, Vectors
from napari.layers.base import LayerLock
from napari.utils.colormaps import CyclicLabelColormap

from napari_unsam.model.frame import Frame
from napari_unsam.model.palette import OBJECT_COLOURS
from napari_unsam.model.plane import Plane
from napari_unsam.model.prompts import PointPrompt, Polarity, Prompts, ShapeKind, ShapePrompt
from napari_unsam.model.targets import Proposal
from napari_unsam.viewer.contours import outline_of
from napari_unsam.viewer.workarounds import insert_quietly, redraw, remove_layers

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

PROMPTS_NAME = 'UnSAM prompts'
SHAPES_NAME = 'UnSAM shapes'
PREVIEW_NAME = 'UnSAM preview'
OBJECTS_NAME = 'UnSAM objects'

# Colour-blind safe: they differ in hue (blue, vermilion; Okabe and Ito), in lightness and in symbol.
COLOURS = {Polarity.POSITIVE: '#0072b2', Polarity.NEGATIVE: '#d55e00'}
SYMBOLS = {Polarity.POSITIVE: 'disc', Polarity.NEGATIVE: 'diamond'}
PREVIEW_COLOUR = '#f0e442'
SHAPE_TYPES = {ShapeKind.BOX: 'rectangle', ShapeKind.OUTLINE: 'polygon', ShapeKind.SCRIBBLE: 'path'}
_DRAWN_AS = {
    'rectangle': ShapeKind.BOX,
    'ellipse': ShapeKind.BOX,
    'polygon': ShapeKind.OUTLINE,
    'path': ShapeKind.SCRIBBLE,
    'line': ShapeKind.SCRIBBLE,
}

SOURCE_KEY = 'unsam_image'
_FOLLOWED_KEY = 'unsam_follows'
_OUTLINE_WIDTH = 2.5  # in screen pixels
_ZOOM_TOLERANCE = 1.3  # factor by which the outline's width may differ from `_OUTLINE_WIDTH`


def object_colours() -> CyclicLabelColormap:
    """The colours of committed objects."""
    return CyclicLabelColormap(colors=['transparent', *OBJECT_COLOURS])


def following_arguments(frame: Frame, origin: Sequence[float] | None = None) -> dict[str, Any]:
    """Arguments for a layer that lies on an image and moves with it.

    Args:
        frame: Frame of the image.
        origin: Position of the layer's first pixel in the frame; by default the first pixel of the image.
    """
    origin = tuple(origin) if origin is not None else (0,) * len(frame.shape)
    return {
        'metadata': {_FOLLOWED_KEY: (frame.image.unique_id, frame.shape, origin)},
        **frame.transform(origin),
    }


def move_on_image(layer: Layer, frame: Frame, origin: Sequence[float]) -> None:
    """Moves a layer made with `following_arguments` to another position on its image."""
    placed = following_arguments(frame, origin)
    layer.metadata.update(placed.pop('metadata'))
    for name, value in placed.items():
        setattr(layer, name, value)


def outline_layer(frame: Frame, name: str, colour: str, **placed: Any) -> Vectors:
    """An empty layer for outlines: segments along the sides of pixels.

    It moves with the image, unless `placed` has other arguments for its position.
    """
    ndim = len(frame.shape)
    look = {'opacity': 1.0, 'edge_color': colour, 'vector_style': 'line'}
    return Vectors(np.zeros((0, 2, ndim)), ndim=ndim, name=name, **look, **(placed or following_arguments(frame)))


def belongs_to(layer: Layer, image: Image) -> bool:
    """True if a layer shows the prompts, the current mask or the objects of this image."""
    return layer.metadata.get(SOURCE_KEY) == image.unique_id


def holds_objects(layer: Layer) -> bool:
    """True if a layer contains the objects of any image."""
    return isinstance(layer, Labels) and SOURCE_KEY in layer.metadata


def update_transform(layer: Layer, frame: Frame) -> None:
    """Moves a layer to the new position of the image, if it belongs to that image."""
    *followed, origin = layer.metadata.get(_FOLLOWED_KEY, (None, None, None))
    if followed == [frame.image.unique_id, frame.shape]:
        placed = frame.transform(origin)
    elif belongs_to(layer, frame.image) and not (isinstance(layer, Labels) and layer.data.shape != frame.shape):
        placed = frame.transform()
    else:
        return
    for name, value in placed.items():
        setattr(layer, name, value)


class AddLayers:
    """The action that adds layers to a viewer.

    Args:
        name: What the user did.
        viewer: The viewer.
        layers: The layers, the lowest first.
    """

    def __init__(self, name: str, viewer: ViewerModel, layers: Sequence[Layer]) -> None:
        self.name, self._viewer, self._layers = name, viewer, tuple(layers)

    @property
    def nbytes(self) -> int:
        """Memory in bytes of the layers that are not in the viewer."""
        return sum(getattr(layer.data, 'nbytes', 0) for layer in self._layers if layer not in self._viewer.layers)

    def do(self) -> None:
        """Adds the layers."""
        for layer in self._layers:
            self._viewer.add_layer(layer)

    def undo(self) -> None:
        """Removes the layers that are still in the viewer."""
        remove_layers(self._viewer, self._layers)


class PromptLayers:
    """The layers of the prompts on an image and of the outline of the current mask.

    Attributes:
        is_shown: True after the first call of `show`.
        points: Clicks; not drawn before `show` or `show_prompts`.
        shapes: Boxes, outlines and scribbles; None before `make_shapes`, since the first Shapes layer of napari takes
            half a second.
        preview: The outline; its drawing time does not depend on the size of the plane. None before `make_preview`.
    """

    def __init__(self, viewer: ViewerModel, frame: Frame, plane: Plane, bind: Callable[[Layer], None]) -> None:
        self._viewer, self._frame, self._bind = viewer, frame, bind
        self._ndim, self._size_px, self._axes = len(frame.shape), max(plane.size_hw), list(plane.axes)
        self._drawn: list[Polarity] = []
        self.is_shown = False
        self.preview: Vectors | None = None
        self.shapes: Shapes | None = None
        self.points = Points(
            ndim=self._ndim,
            name=PROMPTS_NAME,
            size=self._size_px / 30,
            canvas_size_limits=(2, 18),
            border_color='white',
            border_width=0.1,
            face_color=COLOURS[Polarity.POSITIVE],
            visible=False,
            **frame.transform(),
        )
        self._add(self.points, len(viewer.layers))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, the lowest first."""
        return tuple(layer for layer in (self.preview, self.shapes, self.points) if layer is not None)

    def make_preview(self) -> None:
        """Adds an empty layer of the outline below the prompts, unless it exists."""
        if self.preview is None:
            self.preview = outline_layer(self._frame, PREVIEW_NAME, PREVIEW_COLOUR, **self._frame.transform())
            self._add(self.preview, self._viewer.layers.index(self.shapes or self.points))

    def make_shapes(self) -> Shapes:
        """Adds the layer of the shapes below the clicks."""
        self.shapes = Shapes(
            ndim=self._ndim,
            name=SHAPES_NAME,
            face_color='transparent',
            edge_color=COLOURS[Polarity.POSITIVE],
            edge_width=max(self._size_px / 300, 0.2),
            **self._frame.transform(),
        )
        self._add(self.shapes, self._viewer.layers.index(self.points))
        return self.shapes

    def show(self) -> None:
        """Makes the layer of clicks visible, once; this takes as long as making the layer."""
        if not self.is_shown:
            self.is_shown = self.points.visible = True

    def show_prompts(self, prompts: Prompts) -> None:
        """Draws clicks and shapes."""
        self.show()
        points = self.points
        points.selected_data = set()
        points.data = np.array([point.position for point in prompts.points]).reshape(-1, self._ndim)
        polarities = [point.polarity for point in prompts.points]
        if {*polarities, *self._drawn} - {Polarity.POSITIVE}:  # each assignment redraws all points
            points.face_color = [COLOURS[polarity] for polarity in polarities] or COLOURS[Polarity.POSITIVE]
            points.symbol = [SYMBOLS[polarity] for polarity in polarities] or SYMBOLS[Polarity.POSITIVE]
            points.refresh()
        self._drawn = polarities
        if self.shapes is not None:
            self._show_shapes(prompts.shapes)

    def show_proposal(self, proposal: Proposal | None) -> None:
        """Draws the outline of a mask on its plane; None removes the outline."""
        if proposal is not None:
            self.make_preview()
            self._draw_outline(outline_of(proposal))
            self.fit_width()
        elif self.preview is not None and len(self.preview.data):
            self.preview.data = np.zeros((0, 2, self._ndim))

    def fit_width(self) -> None:
        """Sets the width of the outline for the current zoom; do not call it while the canvas is being drawn."""
        if self.preview is None:
            return
        pixel = float(np.abs(np.asarray(self._frame.image.scale))[self._axes].min())
        width = _OUTLINE_WIDTH / (max(float(self._viewer.scene.camera.zoom), 1e-9) * pixel)
        ratio = width / self.preview.edge_width
        if not 1 / _ZOOM_TOLERANCE < ratio < _ZOOM_TOLERANCE:
            self.preview.edge_width = width

    def _draw_outline(self, segments: np.ndarray) -> None:
        """Redraws segments in place if there are at least as many drawn ones; unused ones get the length 0."""
        drawn = self.preview.data
        fits = len(segments) <= len(drawn)
        if not fits:
            drawn = np.empty((1 << (len(segments) - 1).bit_length(), 2, self._ndim), np.float32)
        drawn[: len(segments)], drawn[len(segments) :] = segments, segments[0] * [[1], [0]]
        if fits:
            redraw(self.preview)
        else:
            self.preview.data = drawn

    def _show_shapes(self, shapes: tuple[ShapePrompt, ...]) -> None:
        layer = self.shapes
        is_drawn = len(layer.data) == len(shapes) and all(
            len(corners) == len(shape.vertices) and np.allclose(corners, shape.vertices)
            for corners, shape in zip(layer.data, shapes, strict=True)
        )
        if not is_drawn:
            layer.selected_data = set()
            layer.data = []
            if shapes:
                types = [SHAPE_TYPES[shape.kind] for shape in shapes]
                layer.add([np.array(shape.vertices) for shape in shapes], shape_type=types)
        if shapes:
            layer.edge_color = [COLOURS[shape.polarity] for shape in shapes]

    def _add(self, layer: Layer, place: int) -> None:
        layer.metadata[SOURCE_KEY] = self._frame.image.unique_id
        insert_quietly(self._viewer, layer, place)
        layer.locked = LayerLock.DELETION
        self._viewer.layers.selection = self._viewer.layers.selection or [self._frame.image]
        self._bind(layer)


def after_points_event(event: Any, prompts: Prompts, polarity: Polarity, object_id: int) -> tuple[Prompts, str] | None:
    """The prompts after an edit of the points, and the name of the edit; None for events before an edit.

    Args:
        event: Data event of the layer.
        prompts: The prompts before the edit.
        polarity: Polarity of added points.
        object_id: Object of added points.
    """
    points, positions = list(prompts.points), [tuple(map(float, row)) for row in event.value]
    match str(event.action):
        case 'added':
            points += [PointPrompt(at, polarity, object_id) for at in positions[len(points) :]]
            name = 'click'
        case 'removed':
            removed = {index % len(points) for index in event.data_indices}
            points, name = [point for i, point in enumerate(points) if i not in removed], 'remove click'
        case 'changed':
            points = [replace(old, position=at) for at, old in zip(positions, points, strict=True)]
            name = 'move click'
        case _:
            return None
    return replace(prompts, points=tuple(points)), name


def after_shapes_event(
    event: Any, layer: Shapes, prompts: Prompts, polarity: Polarity, object_id: int
) -> tuple[Prompts, str] | None:
    """The prompts after an edit of the shapes, and the name of the edit; None for events before an edit.

    Args:
        event: Data event of the layer.
        layer: The layer of shapes.
        prompts: The prompts before the edit.
        polarity: Polarity of added scribbles; other added shapes are positive.
        object_id: Object of added shapes.
    """
    action = str(event.action)
    if action not in ('added', 'removed', 'changed'):
        return None
    drawn = [
        (_DRAWN_AS.get(kind, ShapeKind.BOX), tuple(tuple(map(float, corner)) for corner in corners))
        for kind, corners in zip(layer.shape_type, layer.data, strict=True)
    ]
    shapes = list(prompts.shapes)
    if action == 'removed':
        removed = {index % len(shapes) for index in event.data_indices} if shapes else set()
        shapes = [shape for i, shape in enumerate(shapes) if i not in removed]
    # All shapes are compared, since napari may report the drag of a corner only as an addition.
    for i, (kind, vertices) in enumerate(drawn):
        if i < len(shapes):
            shapes[i] = replace(shapes[i], vertices=vertices)
        else:
            added = polarity if kind is ShapeKind.SCRIBBLE else Polarity.POSITIVE
            shapes.append(ShapePrompt(kind, vertices, added, object_id))
    name = {'removed': 'remove shape', 'changed': 'move shape'}.get(
        action, shapes[-1].kind.value if shapes else 'shape'
    )
    return replace(prompts, shapes=tuple(shapes)), name
