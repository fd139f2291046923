"""Ties a controller to a viewer: the mouse and the keys go in, the layers show what comes out.

Works on napari's viewer model, so it needs no window.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image
from psygnal import Signal

from napari_unsam._commit import ObjectTable, ObjectWrite, WriteObjects, write_of
from napari_unsam._controller import NO_IMAGE, Level, SegmentationController, Target
from napari_unsam._edits import after_points_event, after_shapes_event
from napari_unsam._frame import Channels, Frame, labelled_channels
from napari_unsam._inputs import Inputs, Keys
from napari_unsam._layers import ObjectLayers, PromptLayers
from napari_unsam._pixels import plane_pixels
from napari_unsam._planes import Plane, plane_at, plane_in_view
from napari_unsam._prompts import Polarity, Prompts, ShapeKind
from napari_unsam._questions import is_drawn_well
from napari_unsam.state.history import ActionHistory, Together
from unsam_mm.errors import ImageError, UnSAMError

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Labels, Shapes

_TOOLS = {ShapeKind.BOX: 'add_rectangle', ShapeKind.OUTLINE: 'add_polygon_lasso', ShapeKind.SCRIBBLE: 'add_path'}
_NOTHING_FREE = (
    'Nothing was committed: every pixel of this mask belongs to another object. The clicks are kept: '
    'press J, untick "Keep existing objects", or clear them (Q) to go on to another object.'
)


class ViewerSession:
    """One controller at work in one viewer.

    Attributes:
        viewer: The viewer.
        controller: The controller.
        prompting: Whether clicks on the canvas are prompts.
        keep_existing: Whether a commit leaves other objects alone.
        image_changed: Emitted when another image, none, or other channels of it are being segmented.
        objects_changed: Emitted when objects were written or a write was taken back.
        tool_changed: Emitted with `tool` when another one was taken.
        exported: Emitted when the objects of the image were written to a file.
    """

    image_changed = Signal()
    exported = Signal()
    objects_changed = Signal()
    tool_changed = Signal(object)

    def __init__(self, viewer: ViewerModel, controller: SegmentationController) -> None:
        self.viewer = viewer
        self.controller = controller
        self.prompting = True
        self.keep_existing = True
        self._image: Image | None = None
        self._known_images: set[Image] = set()  # planes may be kept of each, so their pixels are watched
        self._channels: dict[Image, Channels | None] = {}
        self._prompt_layers: PromptLayers | None = None
        self._object_layers = ObjectLayers(viewer)
        self._tables: dict[Labels, ObjectTable] = {}
        # napari 0.9 leaves these letters free on every kind of layer.
        keys: Keys = {
            'J': controller.coarser,
            'K': controller.finer,
            'N': self.commit,
            'G': controller.toggle_polarity,
            'U': controller.undo,
            'Shift-U': controller.redo,
            'Q': controller.clear_prompts,
        }
        self._inputs = Inputs(viewer, self, keys)
        self._connect()

    @property
    def image(self) -> Image | None:
        """The image being segmented."""
        return self._image

    @property
    def objects(self) -> Labels | None:
        """The layer of committed objects of the image; None before it is made."""
        if self._image is None:
            return None
        labels = self._object_layers.find(self._image)
        return labels if labels is not None and labels.data.shape == self._frame.shape else None

    def use_weights(self, path: Path | None) -> None:
        """Has prompts answered with other weights of the model; None: those of the package."""
        self.controller.use_weights(path)

    @property
    def history(self) -> ActionHistory:
        """Everything that was done in this session."""
        return self.controller.history

    @property
    def channels(self) -> Channels | None:
        """Which channels of the image the model sees; None if none of its axes is of channels."""
        return self._channels.get(self._image)

    def add_keys(self, keys: Keys) -> None:
        """Binds keys of a panel on the viewer and on the layers of the plugin."""
        self._inputs.add_keys(keys)

    def set_image(self, image: Image | None) -> None:
        """Chooses the image to segment."""
        if image is self._image:
            return
        self._drop_prompt_layers()
        if self._image in self.viewer.layers:
            self._drop_unused_objects()
        self._image = image
        if image is not None and image not in self._known_images:
            self._known_images.add(image)
            self._channels[image] = labelled_channels(image)
            image.events.data.connect(self._pixels_changed)
            image.events.contrast_limits.connect(self._contrast_changed)
        self._retarget()
        self.image_changed.emit()

    def set_channels(self, channels: Channels | None) -> None:
        """Chooses the channels that the model sees; prompts go if they lie along another axis than before."""
        image, before = self._image, self.channels
        if image is None or channels == before:
            return
        if (before and before.axis) != (channels and channels.axis):
            self._drop_prompt_layers()
            self._drop_unused_objects()
            self._channels[image] = channels
            self.controller.put_prompts(image.unique_id, Prompts())
        self._channels[image] = channels
        self.controller.forget(image.unique_id)
        self._retarget()
        self.image_changed.emit()

    def target_at(self, index: Sequence[int]) -> Target:
        """The plane of the image at some data positions, with the axes that are in view.

        Args:
            index: One number per axis of the image; those of the two axes of the plane are not read.

        Raises:
            UnSAMError: If no image is chosen, or it does not reach there.
        """
        frame = self._frame
        try:
            axes = frame.displayed(self.viewer.dims)
        except ImageError:
            axes = (len(frame.shape) - 2, len(frame.shape) - 1)
        return self._target_of(plane_at(frame, axes, index))

    def ensure_objects(self) -> Labels:
        """The layer of objects of the image, made if there is none.

        Raises:
            UnSAMError: If no image is chosen.
        """
        labels = self.objects
        is_new = labels is None
        if is_new:
            labels = self._object_layers.make(self._frame)
        if labels not in self._tables:
            self._tables[labels] = ObjectTable(labels, is_empty=is_new)
            self._inputs.bind(labels)
        return labels

    def next_label(self) -> int:
        """A label that no object of the image has, or had in this session.

        Raises:
            UnSAMError: If no image is chosen.
        """
        return self._tables[self.ensure_objects()].highest + 1

    def write_objects(self, name: str, writes: Sequence[ObjectWrite]) -> None:
        """Writes, overwrites or erases objects, as one action; nothing happens without any.

        Raises:
            UnSAMError: If no image is chosen.
        """
        if writes:
            self.history.do(self._writing(name, writes))

    def draw(self, kind: ShapeKind | None) -> None:
        """Puts a tool for boxes, outlines or scribbles in the user's hand; None gives the view back."""
        shapes = self.make_shapes_layer()
        if shapes is None:
            self.controller.say(self.controller.status.text, Level.PROBLEM)
        elif kind is None:
            shapes.mode = 'pan_zoom'
            self.viewer.layers.selection.active = self._image
        else:
            shapes.visible = True
            self.viewer.layers.selection.active = shapes
            shapes.mode = _TOOLS[kind]

    @property
    def tool(self) -> ShapeKind | None:
        """The tool in the user's hand; None if it is the mouse pointer."""
        if self._prompt_layers is None or self._prompt_layers.shapes is None:
            return None
        modes = {mode: kind for kind, mode in _TOOLS.items()}
        return modes.get(str(self._prompt_layers.shapes.mode))

    def make_prompt_layers(self) -> None:
        """Makes the layers of the prompts and of the mask on offer, which the first click would otherwise wait for."""
        target = self.controller.target
        if self._prompt_layers is not None or target is None:
            return
        self._prompt_layers = layers = PromptLayers(self.viewer, self._frame, target.plane)
        self._inputs.bind(*layers.layers)
        layers.points.events.data.connect(self._points_edited)

    def make_shapes_layer(self) -> Shapes | None:
        """The layer of boxes, outlines and scribbles, made if there is none; None if nothing can be segmented."""
        self.make_prompt_layers()
        layers = self._prompt_layers
        if layers is None:
            return None
        if layers.shapes is None:
            shapes = layers.make_shapes()
            self._inputs.bind(shapes)
            shapes.events.data.connect(self._shapes_edited)
            shapes.events.mode.connect(self._tool_changed)
        return layers.shapes

    def prepare(self) -> bool:
        """Makes those layers that would hold up the first click and the first commit, one kind a call; returns whether more lack."""
        if self.controller.target is None:
            return False
        if self._prompt_layers is None:
            self.make_prompt_layers()
            return True
        self.ensure_objects()
        return False

    def fit_outline(self) -> None:
        """Keeps the outline as wide on screen as it was, after the zoom has changed; never while the canvas is being drawn."""
        if self._prompt_layers is not None:
            self._prompt_layers.fit_width()

    def click(self, world: Any, polarity: Polarity | None = None) -> bool:
        """Makes a prompt of a position in world coordinates; returns False, and says why, if it cannot be one."""
        if self._image is None:
            self.controller.say(NO_IMAGE, Level.PROBLEM)
            return False
        return self.controller.add_prompt(self._frame.to_data(world), polarity)

    def pressed(self, world: tuple[float, ...], is_other_polarity: bool) -> None:
        """Makes a prompt of a click with the mouse."""
        self.click(world, self.controller.polarity.flipped() if is_other_polarity else None)

    def wheeled(self, steps: int) -> None:
        """Slides along the regions under the prompts."""
        self.controller.slide(steps)

    def commit(self) -> None:
        """Writes the mask on screen into the layer of objects, once it is the answer to the last click."""
        self.controller.when_answered(self._commit)

    def close(self) -> None:
        """Takes the mouse, the keys and the prompt layers back; committed objects stay."""
        self.set_image(None)
        self.controller.close()
        for image in self._known_images:
            self._unwatch(image)
        self._known_images.clear()
        for table in self._tables.values():
            table.close()
        self._tables.clear()
        self._inputs.close()
        self.history.clear()
        for emitter in self._emitters():
            emitter.disconnect(self._retarget)
        self.viewer.layers.events.removed.disconnect(self._layer_removed)

    @property
    def _frame(self) -> Frame:
        if self._image is None:
            raise UnSAMError(NO_IMAGE)
        return Frame(self._image, self.channels)

    def _connect(self) -> None:
        self.controller.prompts_changed.connect(self._show_prompts)
        self.controller.proposal_changed.connect(self._show_proposal)
        for emitter in self._emitters():
            emitter.connect(self._retarget)
        self.viewer.layers.events.removed.connect(self._layer_removed)

    def _emitters(self) -> list[Any]:
        events = self.viewer.dims.events
        return [events.point, events.ndisplay, events.order]

    def _writing(self, name: str, writes: Sequence[ObjectWrite]) -> WriteObjects:
        labels = self.ensure_objects()
        return WriteObjects(name, self._tables[labels], writes, self.objects_changed.emit)

    def _commit(self) -> None:
        proposal = self.controller.proposal
        if proposal is None:
            self.controller.say('There is no mask to commit; click on an object first.', Level.PROBLEM)
            return
        labels = self.ensure_objects()
        write = write_of(proposal, self.next_label(), labels.data, self.keep_existing)
        if write is None:
            self.controller.say(_NOTHING_FREE, Level.PROBLEM)
            return
        name = f'commit object {write.label}'
        self.history.do(Together(name, [self._writing(name, [write]), self.controller.next_object()]))
        labels.selected_label = write.label
        area_px = int(write.mask.sum())
        self.controller.say(f'Object {write.label} committed, {area_px:,} px. U takes it back, with its clicks.')

    def _retarget(self) -> None:
        """Tells the controller which plane of which image is in view."""
        if self._image is None:
            self.controller.set_target(None)
            return
        try:
            plane = plane_in_view(self._frame, self.viewer.dims)
        except ImageError as error:
            self.controller.set_target(None, str(error))
            return
        self.controller.set_target(self._target_of(plane))

    def _target_of(self, plane: Plane) -> Target:
        image = self._image
        pixels = partial(plane_pixels, image, plane, self.channels)
        return Target(image.unique_id, plane, image.name, lambda: pixels()[0][:, :], pixels)

    def _pixels_changed(self, event: Any) -> None:
        self.controller.forget(event.source.unique_id)
        self._retarget()

    def _contrast_changed(self, event: Any) -> None:
        """The model has seen the image as it was shown before; looking again is left to the user."""
        if event.source is self._image and not self._image.rgb and self.controller.plane is not None:
            self.controller.say('The contrast has changed. Press Embed to have the image looked at as it is shown now.')

    def _unwatch(self, image: Image) -> None:
        image.events.data.disconnect(self._pixels_changed)
        image.events.contrast_limits.disconnect(self._contrast_changed)
        self._channels.pop(image, None)

    def _layer_removed(self, event: Any) -> None:
        layer = event.value
        if layer in self._known_images:
            self._known_images.remove(layer)
            self.controller.forget(layer.unique_id)
            if layer is self._image:
                self.set_image(None)
            self._unwatch(layer)
        elif layer in self._tables:
            self._tables.pop(layer).close()
            self._inputs.unbind(layer)
        elif self._prompt_layers is not None and self._prompt_layers.owns(layer):
            self._drop_prompt_layers()
            self.controller.set_prompts(Prompts(object_id=self.controller.prompts.object_id), 'remove all prompts')

    def _show_prompts(self) -> None:
        if self.controller.prompts:
            self.make_prompt_layers()
        layers = self._prompt_layers
        if layers is None:
            return
        with ExitStack() as quiet:
            quiet.enter_context(layers.points.events.data.blocker(self._points_edited))
            if self.controller.prompts.shapes or layers.shapes is not None:
                quiet.enter_context(self.make_shapes_layer().events.data.blocker(self._shapes_edited))
            layers.show_prompts(self.controller.prompts)

    def _show_proposal(self) -> None:
        if self._prompt_layers is None and self.controller.prompts:
            self._show_prompts()  # prompts outlive their layers while no image is chosen
        if self._prompt_layers is not None:
            self._prompt_layers.show_proposal(self.controller.proposal)

    def _points_edited(self, event: Any) -> None:
        controller = self.controller
        edited = after_points_event(event, controller.prompts, controller.polarity, controller.prompts_here.object_id)
        if edited is not None:
            controller.set_prompts(*edited)
            self._show_prompts()  # without what lies outside the image

    def _shapes_edited(self, event: Any) -> None:
        controller, target = self.controller, self.controller.target
        id_, layer = controller.prompts_here.object_id, self._prompt_layers.shapes
        edited = after_shapes_event(event, layer, controller.prompts, controller.polarity, id_)
        if edited is None or target is None:
            return
        prompts, name = edited
        usable = tuple(shape for shape in prompts.shapes if is_drawn_well(shape, target.plane))
        if len(usable) < len(prompts.shapes):
            controller.say('That shape holds no pixel of the image; draw it larger.', Level.PROBLEM)
        controller.set_prompts(replace(prompts, shapes=usable), name)
        self._show_prompts()

    def _tool_changed(self) -> None:
        self.tool_changed.emit(self.tool)

    def _drop_unused_objects(self) -> None:
        labels = self.objects
        if labels in self._tables and self._tables[labels].highest == 0:
            self.viewer.layers.remove(labels)

    def _drop_prompt_layers(self) -> None:
        layers, self._prompt_layers = self._prompt_layers, None
        if layers is not None:
            layers.points.events.data.disconnect(self._points_edited)
            if layers.shapes is not None:
                layers.shapes.events.data.disconnect(self._shapes_edited)
                layers.shapes.events.mode.disconnect(self._tool_changed)
                self.tool_changed.emit(None)
            self._inputs.unbind(*layers.layers)
            layers.remove()
