"""Workarounds for napari 0.9, each with its reason. The one that needs Qt is in `qt.canvas`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels, Points
from napari.layers.base import LayerLock
from napari.utils.transforms import Affine

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Layer


def load_units() -> None:
    """Makes napari load its table of units, which every layer needs; call it in the GUI's thread.

    pint's table is not thread-safe: if another thread loaded it, opening an image at that time could fail.
    """
    Affine(ndim=2)


def load_layer_kinds() -> None:
    """Makes napari load pandas and compile numba functions, so that its first Points and Labels layers take less time.

    May be called in any thread after `load_units`.
    """
    Points(ndim=2)
    Labels(np.zeros((1, 1), np.uint32))


def remove_layers(viewer: ViewerModel, layers: Sequence[Layer | None]) -> None:
    """Removes layers from a viewer, even if they are locked.

    They are removed in one batch, since napari runs the garbage collector after each single removal, which takes 0.2 s.
    """
    present = [layer for layer in layers if layer is not None and layer in viewer.layers]
    if present:
        with viewer.layers.batched_update():
            for layer in present:
                layer.locked = LayerLock.NONE
                viewer.layers.remove(layer)


def insert_quietly(viewer: ViewerModel, layer: Layer, place: int | None = None) -> None:
    """Adds a layer, by default on top, without selecting it as napari does."""
    layers = viewer.layers
    selected = list(layers.selection)
    layers.insert(len(layers) if place is None else place, layer)
    layers.selection = selected


def redraw(layer: Layer, extent: bool = True) -> None:
    """Redraws a layer after its data was changed in place, without its thumbnail, which would take most of the time.

    Args:
        layer: The layer.
        extent: True if the extent of the layer may have changed.
    """
    layer.refresh(extent=extent, thumbnail=False, highlight=False)


def clear_layer_history(labels: Labels) -> None:
    """Empties napari's own undo history of a layer, which does not include commits and would overwrite them.

    napari has no method for it, but empties it when `editable` changes; that also changes the mode.
    """
    mode, editable = labels.mode, labels.editable
    labels.editable = not editable
    labels.editable = editable
    labels.mode = mode


class GuardedCallback:
    """Replaces a callback of napari by one that calls it only for events that the plugin does not handle.

    napari calls all callbacks of a list, even for handled events: Alt+wheel would also change the active layer, and a
    double click would zoom.

    Args:
        callbacks: napari's list of callbacks; if it lacks the function, the new callback is added at the end.
        name: Name of the function.
        handles: Called for each event; returns True if it has handled the event.
    """

    def __init__(self, callbacks: list[Callable[..., Any]], name: str, handles: Callable[[Any], bool]) -> None:
        self._callbacks, self._handles = callbacks, handles
        self._original = next((one for one in callbacks if getattr(one, '__name__', '') == name), None)
        at = len(callbacks) if self._original is None else callbacks.index(self._original)
        callbacks[at : at + 1] = [self._call]

    def restore(self) -> None:
        """Restores napari's callback."""
        if self._call in self._callbacks:
            at = self._callbacks.index(self._call)
            self._callbacks[at : at + 1] = [] if self._original is None else [self._original]

    def _call(self, viewer: ViewerModel, event: Any) -> None:
        if not self._handles(event) and self._original is not None:
            self._original(viewer, event)
