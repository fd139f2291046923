"""Detects changes of objects and prompts by any tool or script."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from napari_unsam.model.plane import view_of_layer
from napari_unsam.viewer.layers import holds_objects
from napari_unsam.viewer.port import SessionPort

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Labels

_EVENTS = ('paint', 'labels_update', 'data', 'features')


class LayerWatch:
    """Counts the changes of one layer. Keep a reference to it: napari refers to its callbacks weakly.

    Args:
        layer: The layer, to which this object refers weakly.
        viewer: The viewer; a move of its sliders redraws the layer, but does not count as a change.
        on_change: Called after each change.

    Attributes:
        n_changes: Number of changes.
    """

    def __init__(self, layer: Labels, viewer: ViewerModel, on_change: Callable[[], None] = lambda: None) -> None:
        self._layer, self._viewer, self._on_change = ref(layer), viewer, on_change
        self._view_before = view_of_layer(viewer, layer)
        self.n_changes = 0
        self._listen(layer, 'connect')

    def end(self) -> None:
        """Disconnects from the layer."""
        layer = self._layer()
        if layer is not None:
            self._listen(layer, 'disconnect')

    def _listen(self, layer: Labels, how: str) -> None:
        getattr(layer.events.set_data, how)(self._data_set)
        getattr(layer.events.visible, how)(self._visibility_changed)
        for name in _EVENTS:
            getattr(layer.events[name], how)(self._changed)

    def _changed(self, event: object = None) -> None:
        self.n_changes += 1
        self._on_change()

    def _data_set(self, event: object = None) -> None:
        # The layer is redrawn after a script has changed pixels, but also after a slider was moved, which changes none.
        before, self._view_before = self._view_before, view_of_layer(self._viewer, self._layer())
        if before == self._view_before:
            self._changed()

    def _visibility_changed(self, event: object = None) -> None:
        if self._layer().visible:  # changes while the layer was hidden went unnoticed
            self._changed()


class LayerChanges:
    """Counts the changes of the layers of a viewer, so that their pixels need not be compared."""

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._watches: WeakKeyDictionary[Labels, LayerWatch] = WeakKeyDictionary()

    def count(self, layer: Labels | None) -> tuple[Hashable, int]:
        """The unique id of a layer and the number of its changes since the first call for it; (None, 0) for None.

        Changes of a hidden layer may be counted only when it is shown again.
        """
        if layer is None:
            return None, 0
        if layer not in self._watches:
            self._watches[layer] = LayerWatch(layer, self._viewer)
        return layer.unique_id, self._watches[layer].n_changes


class SessionWatch:
    """Reports each change in a session, including changes of the objects of other images.

    Args:
        session: The session.
        on_change: Called with the session and the layer of objects that has changed, or None for any other change.
        on_removed: Called after layers were removed.
    """

    def __init__(
        self,
        session: SessionPort,
        on_change: Callable[[SessionPort, Labels | None], None],
        on_removed: Callable[[], None],
    ) -> None:
        self._session, self._on_change, self._on_removed = session, on_change, on_removed
        self._watches: dict[Labels, LayerWatch] = {}
        layers = session.viewer.layers.events
        self._connections = [
            *((signal, self._changed) for signal in (session.image_changed, session.history.changed)),
            (session.controller.prompts_changed, self._changed),
            (session.objects_changed, self._objects_changed),
            # A script may write into a new layer.
            (layers.inserted, self._watch_layers),
            (layers.removed, self._removed),
        ]
        for signal, act in self._connections:
            signal.connect(act)
        self._watch_layers()

    def end(self) -> None:
        """Disconnects from the session."""
        for signal, act in self._connections:
            signal.disconnect(act)
        for watch in self._watches.values():
            watch.end()

    def _changed(self) -> None:
        self._on_change(self._session, None)

    def _objects_changed(self) -> None:
        for layer in self._watches:
            if not layer.visible:  # not redrawn, so its watch cannot tell whether it has changed
                self._on_change(self._session, layer)

    def _watch_layers(self, event: object = None) -> None:
        for layer in self._session.viewer.layers:
            if holds_objects(layer) and layer not in self._watches:
                self._watches[layer] = LayerWatch(
                    layer, self._session.viewer, partial(self._on_change, self._session, layer)
                )

    def _removed(self, event: Any) -> None:
        watch = self._watches.pop(event.value, None)
        if watch is not None:
            watch.end()
        self._on_removed()
