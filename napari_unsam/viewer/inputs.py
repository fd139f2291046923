"""Mouse and keys on a viewer and on the plugin's layers."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from napari_unsam.controller import SegmentationController
from napari_unsam.keys import KEYS, Actions
from napari_unsam.model.prompts import Polarity
from napari_unsam.viewer.workarounds import GuardedCallback

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

_LEFT, _RIGHT = 1, 2  # mouse buttons as vispy numbers them
_MAX_CLICK_TRAVEL_PX = 4  # a mouse that moves further on screen while pressed is dragging the view

_OPEN: WeakSet[Inputs] = WeakSet()  # of all docks: several may listen to one viewer


class Inputs:
    """Listens to a viewer until it is closed.

    Handles plain and Shift clicks of the left and right button, and Alt+wheel while there are prompts; all other events
    go to napari. A double click counts as one click, and does not zoom where it can be a prompt.

    Args:
        viewer: The viewer.
        controller: The wheel steps through its candidate regions.
        click: Called with world coordinates and a polarity; None for the current polarity of the controller.

    Attributes:
        prompting: True if clicks add prompts.
        actions: The functions that the keys call, by command.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        controller: SegmentationController,
        click: Callable[[tuple[float, ...], Polarity | None], object],
    ) -> None:
        self._viewer, self._controller, self._click = viewer, controller, click
        self.prompting = True
        self.actions: Actions = {}
        self._receivers: list[ViewerModel | Layer] = [viewer]
        self._is_pressed = False
        _OPEN.add(self)
        viewer.mouse_drag_callbacks.append(self._on_mouse)
        self._replaced = (
            GuardedCallback(viewer.mouse_wheel_callbacks, 'layers_scroll', self._on_wheel),
            GuardedCallback(viewer.mouse_double_click_callbacks, 'double_click_to_zoom', self._on_double_click),
        )

    def add(self, actions: Actions) -> None:
        """Binds the keys of commands on the viewer and on all layers given to `bind`, earlier or later."""
        actions = {name: self._controller.reporting(act) for name, act in actions.items()}
        self.actions |= actions
        for receiver in self._receivers:
            self._bind(receiver, actions)

    def bind(self, *layers: Layer) -> None:
        """Binds the keys on layers too, since a layer's own keys come before the viewer's."""
        for layer in layers:
            if not self._listens_to(layer):
                self._receivers.append(layer)
                self._bind(layer, self.actions)

    def unbind(self, *receivers: ViewerModel | Layer) -> None:
        """Unbinds the keys; if another dock listens to the same layer or viewer, binds the keys of that dock."""
        for receiver in receivers:
            if self._listens_to(receiver):
                self._receivers = [one for one in self._receivers if one is not receiver]
                for command in self.actions:
                    receiver.bind_key(KEYS[command].key, None)
                for other in _OPEN:
                    if other._listens_to(receiver):
                        other._bind(receiver, other.actions)

    def close(self) -> None:
        """Releases the mouse and all keys."""
        if self._on_mouse in self._viewer.mouse_drag_callbacks:
            self._viewer.mouse_drag_callbacks.remove(self._on_mouse)
        for replaced in self._replaced:
            replaced.restore()
        self.unbind(*self._receivers)

    def _listens_to(self, receiver: ViewerModel | Layer) -> bool:
        return any(receiver is one for one in self._receivers)

    def _bind(self, receiver: ViewerModel | Layer, actions: Actions) -> None:
        for command, act in actions.items():
            receiver.bind_key(KEYS[command].key, self.unless_drawing(act), overwrite=True)

    def unless_drawing(self, act: Callable[[], None]) -> Callable[..., None]:
        """Wraps a function so that it does nothing while a stroke is being drawn, and ignores its arguments."""

        # Not a partial: napari reads the __name__ of every key binding.
        def press(*_senders: Any) -> None:
            if self._is_pan_zoom or not self._is_pressed:
                act()

        return press

    @property
    def _is_pan_zoom(self) -> bool:
        """True if the selected layer is in pan/zoom mode; in other modes, such as painting, it handles the mouse."""
        active = self._viewer.layers.selection.active
        return active is None or str(active.mode) == 'pan_zoom'

    def _is_click(self, event: Any) -> bool:
        plain = all(modifier == 'Shift' for modifier in event.modifiers)
        return self.prompting and plain and event.button in (_LEFT, _RIGHT) and self._is_pan_zoom

    def _on_mouse(self, _viewer: ViewerModel, event: Any) -> Generator[None, None, None]:
        is_ours, pressed_at, position = self._is_click(event), event.pos, tuple(event.position)
        is_other = event.button == _RIGHT or 'Shift' in event.modifiers
        travel, self._is_pressed = 0.0, True
        yield
        while True:
            # Includes the release: a quick drag may have no move event.
            travel = max(travel, *(abs(now - before) for now, before in zip(event.pos, pressed_at, strict=True)))
            if event.type != 'mouse_move':
                break
            yield
        self._is_pressed = False
        if is_ours and travel <= _MAX_CLICK_TRAVEL_PX:
            self._click(position, self._controller.polarity.flipped() if is_other else None)

    def _on_double_click(self, event: Any) -> bool:
        """Suppresses the zoom of a double click whose first click was a prompt."""
        return self._controller.target is not None and self._is_click(event)

    def _on_wheel(self, event: Any) -> bool:
        if set(event.modifiers) != {'Alt'} or not self._controller.prompts_here:
            return False
        # Some systems report horizontal scrolling while Alt is held.
        turned = event.delta[1] or event.delta[0]
        if turned:
            self._controller.step_region(1 if turned > 0 else -1)
        event.handled = True  # otherwise the view would zoom
        return True
