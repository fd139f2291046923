"""Ties a controller to a viewer: the mouse and the keys go in, the layers show what comes out.

Works on napari's viewer model, so it needs no window.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from napari.layers import Image
from psygnal import Signal

from napari_unsam._commit import ObjectTable, commit
from napari_unsam._controller import NO_IMAGE, Level, SegmentationController, Target
from napari_unsam._layers import ObjectLayers, PromptLayers
from napari_unsam._planes import model_image, plane_in_view
from napari_unsam._prompts import PointPrompt, Polarity
from unsam_mm.errors import ImageError

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Labels, Layer

_LEFT, _RIGHT = 1, 2  # mouse buttons as vispy numbers them
_MAX_CLICK_TRAVEL_PX = 4  # a mouse that moves further on screen while pressed is dragging the view


class ViewerSession:
    """One controller at work in one viewer.

    Attributes:
        prompting: Whether clicks on the canvas are prompts.
        keep_existing: Whether a commit leaves other objects alone.
        image_changed: Emitted when another image, or none, is being segmented.
    """

    image_changed = Signal()

    def __init__(self, viewer: ViewerModel, controller: SegmentationController) -> None:
        self.viewer = viewer
        self.controller = controller
        self.prompting = True
        self.keep_existing = True
        self._image: Image | None = None
        self._known_images: set[Image] = set()  # a region tree may be kept of each, so their pixels are watched
        self._prompt_layers: PromptLayers | None = None
        self._object_layers = ObjectLayers(viewer)
        self._tables: dict[Labels, ObjectTable] = {}
        # napari 0.9 leaves these letters free on every kind of layer.
        self._keys: dict[str, Callable[[], None]] = {
            'J': controller.coarser,
            'K': controller.finer,
            'N': self.commit,
            'G': controller.toggle_polarity,
            'U': controller.undo_prompt,
            'Q': controller.clear_prompts,
        }
        self._connect()

    @property
    def image(self) -> Image | None:
        """The image being segmented."""
        return self._image

    @property
    def objects(self) -> Labels | None:
        """The layer of committed objects of the image; None before the first commit."""
        return None if self._image is None else self._object_layers.find(self._image)

    def set_image(self, image: Image | None) -> None:
        """Chooses the image to segment."""
        if image is self._image:
            return
        self._drop_prompt_layers()
        self._image = image
        if image is not None and image not in self._known_images:
            self._known_images.add(image)
            image.events.data.connect(self._pixels_changed)
        self._retarget()
        self.image_changed.emit()

    def make_prompt_layers(self) -> None:
        """Makes the layers of the clicks and of the mask on offer, which the first click would otherwise wait for."""
        target = self.controller.target
        if self._prompt_layers is not None or target is None:
            return
        self._prompt_layers = PromptLayers(self.viewer, self._image, target.plane)
        for layer in (self._prompt_layers.points, self._prompt_layers.preview):
            self._bind_keys(layer)
        self._prompt_layers.points.events.data.connect(self._points_edited)

    def click(self, world: Any, polarity: Polarity | None = None) -> bool:
        """Makes a prompt of a position in world coordinates; returns False, and says why, if it cannot be one."""
        if self._image is None:
            self.controller.say(NO_IMAGE, Level.PROBLEM)
            return False
        return self.controller.add_prompt(tuple(self._image.world_to_data(world)), polarity)

    def commit(self) -> None:
        """Writes the mask on screen into the layer of objects."""
        proposal = self.controller.proposal
        if proposal is None:
            self.controller.say('There is no mask to commit; click on an object first.', Level.PROBLEM)
            return
        labels = self.objects
        if labels is None:
            labels = self._object_layers.make(self._image, proposal.plane.shape)
        if labels not in self._tables:
            self._tables[labels] = ObjectTable(labels)
            self._bind_keys(labels)
        committed = commit(labels, proposal, self.keep_existing)
        if committed is None:
            self.controller.say(
                'Nothing was committed: every pixel of this mask belongs to another object. The clicks are kept: '
                'press J, untick "Keep existing objects", or clear them (Q) to go on to another object.',
                Level.PROBLEM,
            )
            return
        self._tables[labels].add(committed)
        # napari sends Ctrl-Z to the selected layer.
        self.viewer.layers.selection.active = labels
        self.controller.object_committed(committed.label, committed.area_px)

    def close(self) -> None:
        """Takes the mouse, the keys and the prompt layers back; committed objects stay."""
        self.set_image(None)
        self.controller.close()
        for image in self._known_images:
            image.events.data.disconnect(self._pixels_changed)
        self._known_images.clear()
        for labels, table in self._tables.items():
            table.close()
            self._unbind_keys(labels)
        self._tables.clear()
        if self._on_mouse in self.viewer.mouse_drag_callbacks:
            self.viewer.mouse_drag_callbacks.remove(self._on_mouse)
        self._unbind_keys(self.viewer)
        for emitter in self._emitters():
            emitter.disconnect(self._retarget)
        self.viewer.layers.events.removed.disconnect(self._layer_removed)

    def _connect(self) -> None:
        self.controller.prompts_changed.connect(self._show_prompts)
        self.controller.proposal_changed.connect(self._show_proposal)
        self.viewer.mouse_drag_callbacks.append(self._on_mouse)
        self._bind_keys(self.viewer)
        for emitter in self._emitters():
            emitter.connect(self._retarget)
        self.viewer.layers.events.removed.connect(self._layer_removed)

    def _emitters(self) -> list[Any]:
        events = self.viewer.dims.events
        return [events.point, events.ndisplay, events.order]

    def _bind_keys(self, receiver: ViewerModel | Layer) -> None:
        """Binds the keys on a layer as well as on the viewer: a layer's own keys come before the viewer's."""
        for key, act in self._keys.items():
            receiver.bind_key(key, _without_sender(act), overwrite=True)

    def _unbind_keys(self, receiver: ViewerModel | Layer) -> None:
        for key in self._keys:
            receiver.bind_key(key, None)

    def _on_mouse(self, viewer: ViewerModel, event: Any) -> Generator[None, None, None]:
        if not self.prompting or event.button not in (_LEFT, _RIGHT) or not _is_viewing(viewer.layers.selection.active):
            return
        pressed_at, position = event.pos, tuple(event.position)
        negative = event.button == _RIGHT or 'Shift' in event.modifiers
        yield
        travel = 0.0
        while event.type == 'mouse_move':
            travel = max(travel, *(abs(now - before) for now, before in zip(event.pos, pressed_at, strict=True)))
            yield
        if travel <= _MAX_CLICK_TRAVEL_PX:
            self.click(position, self.controller.polarity.flipped() if negative else None)

    def _retarget(self) -> None:
        """Tells the controller which plane of which image is in view."""
        image = self._image
        if image is None:
            self.controller.set_target(None)
            return
        try:
            plane = plane_in_view(image, self.viewer.dims)
        except ImageError as error:
            self.controller.set_target(None, str(error))
            return
        read = partial(model_image, image, plane)
        self.controller.set_target(Target(source=image.unique_id, plane=plane, name=image.name, read=read))

    def _pixels_changed(self, event: Any) -> None:
        self.controller.forget(event.source.unique_id)
        self._retarget()

    def _layer_removed(self, event: Any) -> None:
        layer = event.value
        if layer in self._known_images:
            self._known_images.remove(layer)
            layer.events.data.disconnect(self._pixels_changed)
            self.controller.forget(layer.unique_id)
            if layer is self._image:
                self.set_image(None)
        elif layer in self._tables:
            self._tables.pop(layer).close()
        elif self._prompt_layers is not None and self._prompt_layers.owns(layer):
            self._drop_prompt_layers()
            self.controller.set_prompts(())

    def _show_prompts(self) -> None:
        if self.controller.prompts:
            self.make_prompt_layers()
        if self._prompt_layers is None:
            return
        with self._prompt_layers.points.events.data.blocker(self._points_edited):
            self._prompt_layers.show_prompts(self.controller.prompts)

    def _show_proposal(self) -> None:
        if self._prompt_layers is None:
            self._show_prompts()  # clicks outlive their layers while no image is chosen
        if self._prompt_layers is not None:
            self._prompt_layers.show_proposal(self.controller.proposal)

    def _points_edited(self, event: Any) -> None:
        """Follows edits with napari's own point tools; each edit is announced before and after, only "after" counts."""
        prompts, positions = list(self.controller.prompts), [tuple(map(float, row)) for row in event.value]
        match str(event.action):
            case 'added':
                prompts += [PointPrompt(at, self.controller.polarity) for at in positions[len(prompts) :]]
            case 'removed':
                gone = {index % len(prompts) for index in event.data_indices}
                prompts = [prompt for i, prompt in enumerate(prompts) if i not in gone]
            case 'changed':
                prompts = [PointPrompt(at, old.polarity) for at, old in zip(positions, prompts, strict=True)]
            case _:
                return
        self.controller.set_prompts(prompts)

    def _drop_prompt_layers(self) -> None:
        layers, self._prompt_layers = self._prompt_layers, None
        if layers is not None:
            layers.points.events.data.disconnect(self._points_edited)
            layers.remove()


def _without_sender(act: Callable[[], None]) -> Callable[[Any], None]:
    # A function, since napari asks every key binding for its __name__, which a partial lacks.
    def press(_sender: Any) -> None:
        act()

    return press


def _is_viewing(active: Layer | None) -> bool:
    """Whether the mouse is free: in other modes, such as painting, it belongs to the selected layer."""
    return active is None or str(active.mode) == 'pan_zoom'
