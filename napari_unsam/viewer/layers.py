"""The layers of the plugin over one image: objects, the outline of the current mask, prompts.

The layers show what the controller holds. Only the prompts can also be edited in their layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels, Points, Shapes, Vectors
from napari.layers.base import LayerLock
from napari.utils.colormaps import CyclicLabelColormap
from napari.utils.transforms import Affine

from napari_unsam.model.palette import OBJECT_COLOURS
from napari_unsam.model.prompts import Polarity, Prompts, ShapeKind, ShapePrompt
from napari_unsam.viewer.contours import placed_outline
from unsam_mm.errors import UnSAMError

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

    from napari_unsam.model.frame import Frame
    from napari_unsam.model.plane import Plane
    from napari_unsam.model.targets import Proposal

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
_FOLLOWED_KEY = 'unsam_follows'
_OUTLINE_WIDTH = 2.5  # on screen, in pixels
_ZOOM_TOLERANCE = 1.3  # how far the outline's width may be off before it is drawn again


def object_colours() -> CyclicLabelColormap:
    """The colours of committed objects."""
    return CyclicLabelColormap(colors=['transparent', *OBJECT_COLOURS])


def load_units() -> None:
    """Has napari load its table of units, which every layer needs; call it in the GUI's thread.

    The table cannot bear two threads that load it at once: the image that a user opens meanwhile would fail.
    """
    Affine(ndim=2)


def load_layer_kinds() -> None:
    """Has napari load what its first layers with a table and with labels need: pandas, and functions of numba.

    Takes longer than all else about these layers, and may be done in any thread once there is a table of units.
    """
    Points(ndim=2)
    Labels(np.zeros((1, 1), np.uint32), colormap=object_colours())


def following(frame: Frame, origin: Sequence[float] | None = None) -> dict[str, Any]:
    """Arguments of a layer that lies on an image and follows it when that is moved.

    Args:
        frame: Of the image.
        origin: Where in the frame the layer's first pixel lies; by default on that of the image.
    """
    origin = tuple(origin) if origin is not None else (0,) * len(frame.shape)
    return {
        'metadata': {_FOLLOWED_KEY: (frame.image.unique_id, frame.shape, origin)},
        **frame.placed_at(origin),
    }


def move_on_image(layer: Layer, frame: Frame, origin: Sequence[float]) -> None:
    """Puts a layer made with `following` at another place of its image."""
    for name, value in following(frame, origin).items():
        if name == 'metadata':
            layer.metadata.update(value)
        else:
            setattr(layer, name, value)


def is_of(layer: Layer, image: Image) -> bool:
    """Whether a layer holds prompts on an image, their answers, or its objects."""
    return layer.metadata.get(_SOURCE_KEY) == image.unique_id


def holds_objects(layer: Layer) -> bool:
    """Whether a layer holds the objects of an image."""
    return isinstance(layer, Labels) and _SOURCE_KEY in layer.metadata


def place_again(layer: Layer, frame: Frame) -> None:
    """Moves a layer to where its image is now, if it follows that image."""
    *followed, origin = layer.metadata.get(_FOLLOWED_KEY, (None, None, None))
    if followed == [frame.image.unique_id, frame.shape]:
        placed = frame.placed_at(origin)
    elif is_of(layer, frame.image) and _fits(layer, frame):
        placed = frame.placed
    else:
        return
    for name, value in placed.items():
        setattr(layer, name, value)


def _fits(layer: Layer, frame: Frame) -> bool:
    return not isinstance(layer, Labels) or layer.data.shape == frame.shape


def remove_layers(viewer: ViewerModel, layers: Sequence[Layer | None]) -> None:
    """Removes layers from a viewer, locked or not.

    All at once: napari collects Python's garbage after each removal, which takes a fifth of a second.
    """
    present = [layer for layer in layers if layer is not None and layer in viewer.layers]
    if present:
        with viewer.layers.batched_update():
            for layer in present:
                layer.locked = LayerLock.NONE
                viewer.layers.remove(layer)


def insert_quietly(viewer: ViewerModel, layer: Layer, place: int | None = None) -> None:
    """Adds a layer, by default on top, and leaves the selection as it is."""
    layers = viewer.layers
    selected = list(layers.selection)
    layers.insert(len(layers) if place is None else place, layer)
    layers.selection = selected


class AddLayers:
    """Layers added to a viewer.

    Args:
        name: What the user did.
        viewer: Where to.
        layers: The lowest first.
    """

    def __init__(self, name: str, viewer: ViewerModel, layers: Sequence[Layer]) -> None:
        self.name, self._viewer, self._layers = name, viewer, tuple(layers)

    @property
    def nbytes(self) -> int:
        """Bytes of those that are not in the viewer and would be gone otherwise."""
        return sum(getattr(layer.data, 'nbytes', 0) for layer in self._layers if layer not in self._viewer.layers)

    def do(self) -> None:
        """Adds them."""
        for layer in self._layers:
            self._viewer.add_layer(layer)

    def undo(self) -> None:
        """Removes those that are still there."""
        remove_layers(self._viewer, self._layers)


class ObjectLayers:
    """Finds or makes the Labels layer that holds the committed objects of an image."""

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer

    def find(self, image: Image, shape: tuple[int, ...] | None = None) -> Labels | None:
        """The layer of objects of an image, with a shape if given, whatever its name; None if there is none."""
        for layer in self._viewer.layers:
            if isinstance(layer, Labels) and is_of(layer, image) and shape in (None, layer.data.shape):
                return layer
        return None

    def make(self, frame: Frame, is_drawn: bool = True) -> Labels:
        """Adds an empty layer for the objects of an image, just above it, in its place in the world; hidden if not drawn.

        Raises:
            UnSAMError: If there is not memory enough, or the image has too many axes.
        """
        frame.check_axes()
        image = frame.image
        try:
            array = np.zeros(frame.shape, np.uint32)
        except MemoryError:
            size_gb = 4 * np.prod(frame.shape, dtype=float) / 1e9
            raise UnSAMError(
                f'The objects of "{image.name}" would take {size_gb:.0f} GB, more than the memory available; crop the image.'
            ) from None
        labels = Labels(
            array,
            name=OBJECTS_NAME,
            opacity=0.6,
            visible=is_drawn,
            colormap=object_colours(),
            metadata={_SOURCE_KEY: image.unique_id},
            **frame.placed,
        )
        self.add(labels, image)
        return labels

    def add(self, labels: Labels, image: Image) -> None:
        """Puts a layer of objects just above its image, on top of all if that was removed; another layer stays selected."""
        layers = self._viewer.layers
        insert_quietly(self._viewer, labels, layers.index(image) + 1 if image in layers else None)


class PromptLayers:
    """The prompts on an image and the outline of the current mask; all come and go with the choice of the image.

    Attributes:
        is_shown: Whether `points` are drawn, if there are any and the user has not hidden them.
        points: Clicks; drawn from `show` or `show_prompts` on.
        shapes: Boxes, outlines and scribbles; None before `make_shapes`, since napari takes half a second for its first such
            layer.
        preview: The outline, as segments along the sides of pixels: it takes as long as the outline is, not the plane. None
            before `make_preview`.
    """

    def __init__(self, viewer: ViewerModel, frame: Frame, plane: Plane) -> None:
        self._viewer = viewer
        self._ndim = len(frame.shape)
        self._drawn: list[Polarity] = []
        self.is_shown = False
        self._frame, self._size_px = frame, max(plane.size_hw)
        self.preview: Vectors | None = None
        self.shapes: Shapes | None = None
        self._axes = list(plane.axes)
        self.points = Points(
            ndim=self._ndim,
            name=PROMPTS_NAME,
            size=max(plane.size_hw) / 30,
            canvas_size_limits=(2, 18),
            border_color='white',
            border_width=0.1,
            face_color=COLOURS[Polarity.POSITIVE],
            visible=False,
            **frame.placed,
        )
        self._add(self.points, len(viewer.layers))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All of them, the lowest first."""
        return tuple(layer for layer in (self.preview, self.shapes, self.points) if layer is not None)

    def make_preview(self) -> Vectors:
        """Adds the layer of the outline below the prompts, empty."""
        self.preview = Vectors(
            self._no_outline(),
            ndim=self._ndim,
            name=PREVIEW_NAME,
            opacity=1.0,
            edge_color=PREVIEW_COLOUR,
            vector_style='line',
            **self._frame.placed,
        )
        self._add(self.preview, self._viewer.layers.index(self.shapes or self.points))
        return self.preview

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
        self._add(self.shapes, self._viewer.layers.index(self.points))
        return self.shapes

    def show(self) -> None:
        """Has the clicks drawn, once. For the first time this takes napari as long as the making of the layer."""
        if not self.is_shown:
            self.is_shown = self.points.visible = True

    def show_prompts(self, prompts: Prompts) -> None:
        """Draws clicks and shapes."""
        self.show()
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
        """Draws the outline of a mask on its plane, or none; there is a preview."""
        if proposal is not None:
            self._draw_outline(placed_outline(proposal))
            self.fit_width()
        elif len(self.preview.data):
            self.preview.data = self._no_outline()

    def _draw_outline(self, segments: np.ndarray) -> None:
        """Redraws segments in place if the old ones were as many or more; surplus ones get no length.

        New data would make napari draw a new thumbnail, which takes longer than the rest of a granularity step.
        """
        drawn = self.preview.data
        has_room = len(segments) <= len(drawn)
        if not has_room:
            drawn = np.empty((1 << (len(segments) - 1).bit_length(), 2, self._ndim), np.float32)
        drawn[: len(segments)], drawn[len(segments) :] = segments, segments[0] * [[1], [0]]
        if has_room:
            self.preview.refresh(thumbnail=False, highlight=False)
        else:
            self.preview.data = drawn

    def _no_outline(self) -> np.ndarray:
        return np.zeros((0, 2, self._ndim))

    def _add(self, layer: Layer, place: int) -> None:
        layer.metadata[_SOURCE_KEY] = self._frame.image.unique_id
        insert_quietly(self._viewer, layer, place)
        layer.locked = LayerLock.DELETION
        self._viewer.layers.selection = self._viewer.layers.selection or [self._frame.image]

    def owns(self, layer: Layer) -> bool:
        """Whether a layer is one of these."""
        return any(layer is own for own in self.layers)

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
        if self.preview is None:
            return
        pixel = float(np.abs(np.asarray(self._frame.image.scale))[self._axes].min())
        width = _OUTLINE_WIDTH / (max(float(self._viewer.scene.camera.zoom), 1e-9) * pixel)
        ratio = width / self.preview.edge_width
        if not 1 / _ZOOM_TOLERANCE < ratio < _ZOOM_TOLERANCE:
            self.preview.edge_width = width
