"""Changes of objects and prompts, by whatever tool or script; another view of them is no change."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, ref

from napari_unsam._planes import view_of

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Labels

    from napari_unsam._session import ViewerSession

_EVENTS = ('paint', 'labels_update', 'data', 'features')


class LayerWatch:
    """Counts the changes of one layer, which it does not keep in memory.

    Args:
        layer: The layer.
        viewer: Whose sliders have it drawn anew though nothing has changed.
        on_change: Called after each change; the owner keeps the watch, as napari holds what it calls weakly.

    Attributes:
        n_changes: How many there were.
    """

    def __init__(self, layer: Labels, viewer: ViewerModel, on_change: Callable[[], None] = lambda: None) -> None:
        self._layer, self._viewer, self._on_change = ref(layer), viewer, on_change
        self._seen = self._view()
        self.n_changes = 0
        layer.events.set_data.connect(self._drawn)
        for name in _EVENTS:
            layer.events[name].connect(self._changed)

    def end(self) -> None:
        """Leaves the layer alone from now on."""
        layer = self._layer()
        if layer is not None:
            layer.events.set_data.disconnect(self._drawn)
            for name in _EVENTS:
                layer.events[name].disconnect(self._changed)

    def _changed(self, event: object = None) -> None:
        self.n_changes += 1
        self._on_change()

    def _drawn(self, event: object = None) -> None:
        # A script that changes pixels has the layer drawn anew; so does a slider, which changes none.
        before, self._seen = self._seen, self._view()
        if before == self._seen:
            self._changed()

    def _view(self) -> tuple[object, ...]:
        point, *axes = view_of(self._viewer)
        return point[-self._layer().ndim :], *axes  # sliders of other axes do not have it drawn anew


class LayerChanges:
    """Counts the changes of layers, so that nobody has to compare their pixels to know of one.

    Args:
        viewer: Of the layers.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._watches: WeakKeyDictionary[Labels, LayerWatch] = WeakKeyDictionary()

    def count(self, layer: Labels | None) -> tuple[Hashable, int]:
        """Which layer it is, and how often it was changed since it was asked about for the first time."""
        if layer is None:
            return None, 0
        if layer not in self._watches:
            self._watches[layer] = LayerWatch(layer, self._viewer)
        return layer.unique_id, self._watches[layer].n_changes


class SessionWatch:
    """Tells of each change in a session.

    Args:
        session: The session.
        note: Called with it and whether its objects were changed.
        look: Called after layers were removed.
    """

    def __init__(
        self, session: ViewerSession, note: Callable[[ViewerSession, bool], None], look: Callable[[], None]
    ) -> None:
        self._session, self._note, self._look = session, note, look
        self._objects: Labels | None = None
        self._changes: LayerWatch | None = None
        layers = session.viewer.layers.events
        self._connections = [
            *((signal, self._changed) for signal in (session.image_changed, session.history.changed)),
            (session.controller.prompts_changed, self._changed),
            # A script may write into a layer that nothing else was done to yet.
            (layers.inserted, self._follow_objects),
            (layers.removed, self._removed),
        ]
        for signal, act in self._connections:
            signal.connect(act)
        self._follow_objects()

    def end(self) -> None:
        """Leaves the session alone from now on."""
        for signal, act in self._connections:
            signal.disconnect(act)
        self._follow(None)

    def _changed(self) -> None:
        self._note(self._session, self._follow_objects())

    def _removed(self, event: object = None) -> None:
        self._look()

    def _objects_changed(self) -> None:
        # A layer that is being taken away, or belongs to an image that is not in view, is not the session's.
        if self._objects is self._session.objects:
            self._note(self._session, True)

    def _follow_objects(self, event: object = None) -> bool:
        """Follows the layer of the session; returns whether it is another one than before."""
        return self._follow(self._session.objects)

    def _follow(self, objects: Labels | None) -> bool:
        if objects is self._objects:
            return False
        if self._changes is not None:
            self._changes.end()
        self._objects, self._changes = objects, None
        if objects is not None:
            self._changes = LayerWatch(objects, self._session.viewer, self._objects_changed)
        return True
