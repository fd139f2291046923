"""Mouse and keys of a viewer and of the plugin's layers."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer

_LEFT, _RIGHT = 1, 2  # mouse buttons as vispy numbers them
_MAX_CLICK_TRAVEL_PX = 4  # a mouse that moves further on screen while pressed is dragging the view

Keys = dict[str, Callable[[], None]]


class Listener(Protocol):
    """Who is told of clicks."""

    prompting: bool

    def pressed(self, world: tuple[float, ...], is_other_polarity: bool) -> None:
        """Told of a click at world coordinates, which may mean the polarity that is not set."""

    def wheeled(self, steps: int) -> None:
        """Told of Alt and the wheel, up for positive steps."""


class Inputs:
    """Listens to a viewer until it is closed.

    Args:
        viewer: The viewer.
        listener: Is told of clicks and of the wheel.
        keys: What keys do, on the viewer and on the layers given to `bind`.
    """

    def __init__(self, viewer: ViewerModel, listener: Listener, keys: Keys) -> None:
        self._viewer, self._listener = viewer, listener
        self._keys: Keys = {}
        self._receivers: list[ViewerModel | Layer] = [viewer]
        self.add_keys(keys)
        viewer.mouse_drag_callbacks.append(self._on_mouse)
        viewer.mouse_wheel_callbacks.append(self._on_wheel)

    @property
    def keys(self) -> Keys:
        """What each key does."""
        return dict(self._keys)

    def add_keys(self, keys: Keys) -> None:
        """Binds more keys on all that listens, now and later."""
        self._keys |= keys
        for receiver in self._receivers:
            _bind(receiver, keys)

    def bind(self, *layers: Layer) -> None:
        """Binds the keys on layers as well as on the viewer: a layer's own keys come before the viewer's."""
        for layer in layers:
            if not any(layer is receiver for receiver in self._receivers):
                self._receivers.append(layer)
                _bind(layer, self._keys)

    def unbind(self, *layers: Layer) -> None:
        """Takes the keys of layers back."""
        for layer in layers:
            if any(layer is receiver for receiver in self._receivers):
                self._receivers = [receiver for receiver in self._receivers if receiver is not layer]
                _unbind(layer, self._keys)

    def close(self) -> None:
        """Takes the mouse and all keys back."""
        for callbacks, callback in (
            (self._viewer.mouse_drag_callbacks, self._on_mouse),
            (self._viewer.mouse_wheel_callbacks, self._on_wheel),
        ):
            if callback in callbacks:
                callbacks.remove(callback)
        for receiver in self._receivers:
            _unbind(receiver, self._keys)
        self._receivers.clear()

    def _on_mouse(self, viewer: ViewerModel, event: Any) -> Generator[None, None, None]:
        is_ours = self._listener.prompting and event.button in (_LEFT, _RIGHT)
        if not is_ours or not _is_viewing(viewer.layers.selection.active):
            return
        pressed_at, position = event.pos, tuple(event.position)
        is_other = event.button == _RIGHT or 'Shift' in event.modifiers
        yield
        travel = 0.0
        while event.type == 'mouse_move':
            travel = max(travel, *(abs(now - before) for now, before in zip(event.pos, pressed_at, strict=True)))
            yield
        if travel <= _MAX_CLICK_TRAVEL_PX:
            self._listener.pressed(position, is_other)

    def _on_wheel(self, _viewer: ViewerModel, event: Any) -> None:
        if 'Alt' not in event.modifiers:
            return
        # Some systems turn the wheel sideways while Alt is held.
        turned = event.delta[1] or event.delta[0]
        if turned:
            self._listener.wheeled(1 if turned > 0 else -1)
        event.handled = True  # otherwise the view would zoom


def _bind(receiver: ViewerModel | Layer, keys: Keys) -> None:
    for key, act in keys.items():
        receiver.bind_key(key, _without_sender(act), overwrite=True)


def _unbind(receiver: ViewerModel | Layer, keys: Keys) -> None:
    for key in keys:
        receiver.bind_key(key, None)


def _without_sender(act: Callable[[], None]) -> Callable[[Any], None]:
    # A function, since napari asks every key binding for its __name__, which a partial lacks.
    def press(_sender: Any) -> None:
        act()

    return press


def _is_viewing(active: Layer | None) -> bool:
    """Whether the mouse is free: in other modes, such as painting, it belongs to the selected layer."""
    return active is None or str(active.mode) == 'pan_zoom'
