"""Connects a controller to a viewer: what is in view, layers, mouse and keys.

Works on napari's viewer model, so it needs no window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from napari.layers import Image
from psygnal import Signal

from napari_unsam.controller import NO_IMAGE, SegmentationController, Target
from napari_unsam.model.frame import TRANSFORM, Channels, Frame, LayerChannels, check_aligned, layers_of
from napari_unsam.model.history import Action, ActionHistory, Change
from napari_unsam.model.label_boxes import Slices
from napari_unsam.model.pixels import plane_pixels
from napari_unsam.model.plane import Plane, plane_at, plane_in_view
from napari_unsam.model.plane_prompts import is_valid_shape
from napari_unsam.model.prompts import Polarity, Prompts, ShapeKind
from napari_unsam.viewer.inputs import Inputs
from napari_unsam.viewer.layers import PromptLayers, after_points_event, after_shapes_event, update_transform
from napari_unsam.viewer.object_write import ObjectWrite
from napari_unsam.viewer.objects import Objects
from napari_unsam.viewer.pending import PendingObjects
from napari_unsam.viewer.sources import Sources
from napari_unsam.viewer.stack import SlicePrecomputer
from napari_unsam.viewer.workarounds import remove_layers
from unsam_mm.errors import ImageError, UnSAMError

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Labels, Shapes

_TOOLS = {ShapeKind.BOX: 'add_rectangle', ShapeKind.OUTLINE: 'add_polygon_lasso', ShapeKind.SCRIBBLE: 'add_path'}


class ViewerSession:
    """Connects one controller to one viewer.

    Args:
        viewer: The viewer.
        controller: The controller.
        later: Runs a function after napari has handled the current event; by default it runs at once, for viewers
            without a window.

    Attributes:
        image: The image being segmented; see `set_image`.
        inputs: Mouse and keys.
        stack: Precomputes all planes of the image.
        pending: Objects that wait for a later commit.
        keep_existing: True if new objects do not overwrite pixels of existing ones.
        image_changed: Emitted when another image or none was chosen, or other channels of the image.
        contrast_changed: Emitted at each step of the contrast slider; call `reanalyse` when the slider has stopped.
        objects_changed: Emitted when objects were written or a write was undone.
        tool_changed: Emitted with the new `tool` when it changes.
        exported: Emitted when the objects of the image were written to a file.
    """

    image_changed = Signal()
    contrast_changed = Signal()
    exported = Signal()
    objects_changed = Signal()
    tool_changed = Signal(object)

    def __init__(
        self,
        viewer: ViewerModel,
        controller: SegmentationController,
        later: Callable[[Callable[[], None]], None] = lambda call: call(),
    ) -> None:
        self.viewer, self.controller, self.later = viewer, controller, later
        self.keep_existing = True
        self.image: Image | None = None
        self._is_outdated = False  # True if the prompt layers do not show the current prompts
        self._tool: ShapeKind | None = None
        self._sources = Sources()
        self._prompt_layers: PromptLayers | None = None
        self._objects = Objects(self, self.objects_changed.emit)
        self.inputs = Inputs(viewer, controller, self.click)
        self.inputs.add(
            {
                'coarser': controller.larger_mask,
                'finer': controller.smaller_mask,
                'commit': self.commit,
                'next_object': self.next_object,
                'switch_polarity': controller.toggle_polarity,
                'clear_prompts': controller.clear_prompts,
                'undo': controller.undo,
                'redo': controller.redo,
            }
        )
        self.stack, self.pending = SlicePrecomputer(controller, self.target_at), PendingObjects(self)
        controller.prompts_changed.connect(self._prompts_changed)
        controller.state_changed.connect(self._update_prompts)
        controller.proposal_changed.connect(self._show_proposal)
        self._sources.pixels_changed.connect(self._pixels_changed)
        self._sources.contrast_changed.connect(self._contrast_changed)
        dims, layers = viewer.dims.events, viewer.layers
        self._connections = [
            *((event, self._retarget) for event in (dims.point, dims.ndisplay, dims.order, dims.units)),
            (layers.events.removed, self._layer_removed),
            (layers.selection.events.active, self._tool_changed),
        ]
        for event, act in self._connections:
            event.connect(act)

    @property
    def objects(self) -> Labels | None:
        """The layer of committed objects of the image; None before it is made."""
        return self._objects.current

    @property
    def frame(self) -> Frame:
        """Where the layers of the image lie.

        Raises:
            UnSAMError: If no image is chosen.
        """
        if self.image is None:
            raise UnSAMError(NO_IMAGE)
        return Frame(self.image, self.channels, self.viewer.dims.units)

    @property
    def history(self) -> ActionHistory:
        """The actions of this session."""
        return self.controller.history

    @property
    def channels(self) -> Channels | LayerChannels | None:
        """The channels that the model sees, along an axis or in several layers; None for the image layer itself."""
        return self._sources.channels(self.image)

    def set_image(self, image: Image | None) -> None:
        """Chooses the image to segment, or none. Removes the prompt layers and unused layers of the previous one."""
        if image is self.image:
            return
        self._drop_prompt_layers()
        if self.image in self.viewer.layers:
            remove_layers(self.viewer, self._objects.unused(self.image))
        for followed, act in ((self.image, 'disconnect'), (image, 'connect')):
            for name in TRANSFORM if followed is not None else ():
                getattr(followed.events[name], act)(self._image_moved)
        self.image = image
        if image is not None:
            self._sources.add(image)
        self._retarget()
        self.image_changed.emit()

    def set_channels(self, channels: Channels | LayerChannels | None) -> None:
        """Chooses the channels that the model sees; prompts are removed if the channel axis changes.

        Raises:
            ImageError: If layers chosen as channels do not lie on the image.
        """
        image, before = self.image, self.channels
        if image is None or channels == before:
            return
        if isinstance(channels, LayerChannels):
            check_aligned(image, channels.layers[0])
        prompts = self.controller.prompts_of(image.unique_id)
        kept = prompts if (before and before.axis) == (channels and channels.axis) else Prompts()
        put = partial(self._put_channels, image)
        self.history.do(Change('choose channels', put, (before, prompts), (channels, kept)))

    def reanalyse(self) -> None:
        """Drops the analysed planes after a change of contrast; analyses the plane in view again if it was analysed."""
        controller, target = self.controller, self.controller.target
        if self.image is None or target is None:
            return
        was_wanted = controller.plane is not None or controller.embedding == target
        controller.forget(target.source)
        if was_wanted:
            controller.embed()
            controller.show_info('Contrast changed: analysing the slice again. Prompts are kept.')

    def target_at(self, index: Sequence[int]) -> Target:
        """The plane of the image at a position, parallel to the one in view.

        Args:
            index: Data coordinates, one per axis of the image; the two axes of the plane are ignored.

        Raises:
            UnSAMError: If no image is chosen, or the position lies outside the image.
        """
        frame = self.frame
        try:
            axes = frame.displayed(self.viewer.dims)
        except ImageError:
            axes = (len(frame.shape) - 2, len(frame.shape) - 1)
        return self._target_of(plane_at(frame, axes, index))

    def ensure_objects(self) -> Labels:
        """The layer of objects of the image, made if there is none.

        Raises:
            UnSAMError: If no image is chosen, the memory is too small, or the image has too many axes.
        """
        return self._objects.ensure()

    def next_label(self, layer: Labels | None = None) -> int:
        """A label that no object of the image has, or had in this session; `layer` as in `write_action`."""
        return self._objects.table(layer).highest + 1

    def box_of(self, label: int) -> Slices | None:
        """The bounding box of an object of the image; None if there is no such object."""
        labels = self.objects
        return None if labels is None else self._objects.table(labels).box_of(label)

    def write_objects(self, name: str, writes: Sequence[ObjectWrite], layer: Labels | None = None) -> None:
        """Writes, overwrites or erases objects, as one action; does nothing if `writes` is empty. See `write_action`."""
        if writes:
            self.history.do(self.write_action(name, writes, layer))

    def write_action(self, name: str, writes: Sequence[ObjectWrite], layer: Labels | None = None) -> Action:
        """Makes the action that writes objects.

        Args:
            name: What the user does.
            writes: The objects.
            layer: A layer from `ensure_objects`; by default that of the current image.

        Raises:
            UnSAMError: If no image is chosen, the image of the layer was removed, or the layer's dtype is too small
                for a label.
        """
        return self._objects.write_action(name, writes, layer)

    def draw(self, kind: ShapeKind | None) -> None:
        """Selects the tool for boxes, outlines or scribbles; None selects pan/zoom."""
        shapes = self.make_shapes_layer()
        if shapes is None:
            self.controller.show_no_target()
        elif kind is None:
            shapes.mode = 'pan_zoom'
            self.viewer.layers.selection.active = self.image
        else:
            shapes.visible = True
            self.viewer.layers.selection.active = shapes
            shapes.mode = _TOOLS[kind]

    @property
    def tool(self) -> ShapeKind | None:
        """The selected tool; None for pan/zoom."""
        shapes = None if self._prompt_layers is None else self._prompt_layers.shapes
        # `!=`, not `is not`: napari passes proxies of layers to plugins.
        if shapes is None or self.viewer.layers.selection.active != shapes:
            return None
        return {mode: kind for kind, mode in _TOOLS.items()}.get(str(shapes.mode))

    def make_prompt_layers(self) -> None:
        """Makes the layer of clicks, unless it exists or nothing can be segmented."""
        target = self.controller.target
        if self._prompt_layers is None and target is not None:
            self._prompt_layers = PromptLayers(self.viewer, self.frame, target.plane, self.inputs.bind)
            self._prompt_layers.points.events.data.connect(self._points_edited)

    def make_shapes_layer(self) -> Shapes | None:
        """The layer of boxes, outlines and scribbles, made if there is none; None if nothing can be segmented."""
        self.make_prompt_layers()
        layers = self._prompt_layers
        if layers is None:
            return None
        if layers.shapes is None:
            shapes = layers.make_shapes()
            shapes.events.data.connect(self._shapes_edited)
            shapes.events.mode.connect(self._tool_changed)
        return layers.shapes

    def prepare(self) -> bool:
        """Makes layers ahead of the first click, commit or stroke, one step per call; returns False if none is left."""
        if self._objects.add_table():
            return True
        if self.controller.target is None:
            return False
        layers = self._prompt_layers
        if layers is None:
            self.make_prompt_layers()
        elif layers.preview is None:
            layers.make_preview()
        elif not layers.is_shown:
            layers.show()
        else:
            return self._objects.prepare()
        return True

    def fit_outline(self) -> None:
        """Restores the width of the outline on screen after a zoom; do not call it while the canvas is being drawn."""
        if self._prompt_layers is not None:
            self._prompt_layers.fit_width()

    def click(self, world: Any, polarity: Polarity | None = None) -> bool:
        """Adds a click at world coordinates; if that is not possible, shows the reason and returns False."""
        if self.image is None:
            self.controller.show_problem(NO_IMAGE)
            return False
        return self.controller.add_prompt(self.frame.to_data(world), polarity)

    def commit(self) -> None:
        """Writes the current mask and the pending objects as objects of the layer, after the last click is answered."""
        self.controller.after_prediction(self.pending.commit)

    def next_object(self) -> None:
        """Keeps the current mask for a later commit, so that the next click starts another object."""
        self.controller.after_prediction(self.pending.keep)

    def close(self) -> None:
        """Releases the mouse and the keys and removes the prompt layers; committed objects stay."""
        self.set_image(None)
        self.stack.close()
        self.controller.close()
        self._sources.close()
        self._objects.close()
        self.inputs.close()
        self.history.clear()
        for event, act in self._connections:
            event.disconnect(act)

    def _retarget(self) -> None:
        """Passes the plane in view to the controller."""
        if self.image is None:
            self.controller.set_target(None)
            return
        try:
            self.frame.check_axes()
            plane = plane_in_view(self.frame, self.viewer.dims)
        except ImageError as error:
            self.controller.set_target(None, str(error))
            return
        self.controller.set_target(self._target_of(plane))

    def _target_of(self, plane: Plane) -> Target:
        image = self.image
        return Target(image.unique_id, plane, image.name, partial(plane_pixels, image, plane, self.channels))

    def _image_moved(self) -> None:
        frame = self.frame
        for layer in self.viewer.layers:
            update_transform(layer, frame)
        self._retarget()

    def _put_channels(self, image: Image, chosen: tuple[Channels | LayerChannels | None, Prompts]) -> None:
        channels, prompts = chosen
        if image not in self._sources or not all(layer in self.viewer.layers for layer in layers_of(channels)):
            return  # a layer was removed in the meantime
        is_here, before = image is self.image, self._sources.channels(image)
        if is_here and (before and before.axis) != (channels and channels.axis):
            self._drop_prompt_layers()
            remove_layers(self.viewer, self._objects.unused(image))
        self._sources.set_channels(image, channels)
        self.controller.set_prompts_without_undo(image.unique_id, prompts)
        self.controller.forget(image.unique_id)
        if is_here:
            self._retarget()
            self.image_changed.emit()

    def _pixels_changed(self, image: Image) -> None:
        self.controller.forget(image.unique_id)
        layers = self._prompt_layers
        if layers is not None and image is self.image and layers.points.ndim != len(self.frame.shape):
            self._drop_prompt_layers()
            self.controller.set_prompts_without_undo(image.unique_id, Prompts())
        self._retarget()

    def _contrast_changed(self, image: Image) -> None:
        if image is self.image:
            self.contrast_changed.emit()
        else:
            self.controller.forget(image.unique_id)

    def _layer_removed(self, event: Any) -> None:
        layer = event.value
        if isinstance(layer, Image):
            self._forget(layer)
            return
        own = () if self._prompt_layers is None else self._prompt_layers.layers
        if not self._objects.removed(layer) and any(layer is one for one in own):
            self._drop_prompt_layers(self.later)
            self.later(self._remove_prompts)

    def _forget(self, layer: Image) -> None:
        """Drops a removed image, and the analysed planes of images that used it as a channel."""
        # Not now: napari is removing a layer, and would fail if the layer that it selects next were removed too.
        self.later(partial(remove_layers, self.viewer, self._objects.unused(layer)))
        if layer is self.image:
            self._drop_prompt_layers(self.later)
            self.set_image(None)
        self.controller.forget(layer.unique_id)
        self.stack.forget(layer.unique_id)
        for image in self._sources.remove(layer):
            self._pixels_changed(image)
            if image is self.image:
                self.controller.show_info(f'Channel "{layer.name}" was removed; only "{image.name}" is used now.')
                self.image_changed.emit()

    def _remove_prompts(self) -> None:
        if self.image in self.viewer.layers:  # else they were removed with the image
            self.controller.set_prompts(Prompts(object_id=self.controller.prompts.object_id), 'remove all prompts')

    def _prompts_changed(self) -> None:
        self._is_outdated = True
        self._update_prompts()

    def _update_prompts(self) -> None:
        """Draws the current prompts; waits for the mask if it comes at once, since drawing twice would delay it."""
        controller = self.controller
        comes_at_once = controller.is_predicting and not controller.is_busy and not controller.is_loading
        if self._is_outdated and not comes_at_once:
            self._is_outdated = False
            self._show_prompts()

    def _show_prompts(self) -> None:
        prompts = self.controller.prompts
        if prompts:
            self.make_prompt_layers()
        layers = self._prompt_layers
        if layers is None:
            return
        with ExitStack() as quiet:
            quiet.enter_context(layers.points.events.data.blocker(self._points_edited))
            if prompts.shapes or layers.shapes is not None:
                quiet.enter_context(self.make_shapes_layer().events.data.blocker(self._shapes_edited))
            layers.show_prompts(prompts)
        self.pending.show(prompts.pending, self.frame.shape)

    def _show_proposal(self) -> None:
        if self._prompt_layers is None and self.controller.prompts:
            self._show_prompts()  # the layers were removed while no image was chosen
        if self._prompt_layers is not None:
            self._prompt_layers.show_proposal(self.controller.proposal)

    def _points_edited(self, event: Any) -> None:
        controller = self.controller
        edited = after_points_event(event, controller.prompts, controller.polarity, controller.prompts_here.object_id)
        if edited is not None:
            controller.set_prompts(*edited)
            self._show_prompts()  # removes points outside the image

    def _shapes_edited(self, event: Any) -> None:
        controller, target = self.controller, self.controller.target
        id_, layer = controller.prompts_here.object_id, self._prompt_layers.shapes
        edited = after_shapes_event(event, layer, controller.prompts, controller.polarity, id_)
        if edited is None or target is None:
            return
        prompts, name = edited
        usable = tuple(shape for shape in prompts.shapes if is_valid_shape(shape, target.plane))
        if len(usable) < len(prompts.shapes):
            controller.show_problem('The shape contains no pixel of the image; draw it larger.')
        controller.set_prompts(replace(prompts, shapes=usable), name)
        self._show_prompts()

    def _tool_changed(self) -> None:
        before, self._tool = self._tool, self.tool
        if self._tool is not before:
            self.tool_changed.emit(self._tool)

    def _drop_prompt_layers(self, when: Callable[[Callable[[], None]], None] = lambda call: call()) -> None:
        dropped = [self.pending.detach()]
        layers, self._prompt_layers = self._prompt_layers, None
        if layers is not None:
            layers.points.events.data.disconnect(self._points_edited)
            if layers.shapes is not None:
                layers.shapes.events.data.disconnect(self._shapes_edited)
                layers.shapes.events.mode.disconnect(self._tool_changed)
                self._tool_changed()
            self.inputs.unbind(*layers.layers)
            dropped += layers.layers
        when(partial(remove_layers, self.viewer, dropped))
