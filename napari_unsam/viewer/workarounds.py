"""What the plugin does otherwise than napari 0.9 would have it, each with the reason. `qt.canvas` holds the one that needs Qt."""

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
    """Has napari load its table of units, which every layer needs; call it in the GUI's thread.

    pint's table cannot bear two threads that load it at once: the image that a user opens meanwhile would fail.
    """
    Affine(ndim=2)


def load_layer_kinds() -> None:
    """Has napari load what its first layers with a table and with labels need: pandas, and functions of numba.

    Takes longer than all else about these layers, and may be done in any thread once there is a table of units.
    """
    Points(ndim=2)
    Labels(np.zeros((1, 1), np.uint32))


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
    """Adds a layer, by default on top, and leaves the selection as it is: napari selects each layer that is added."""
    layers = viewer.layers
    selected = list(layers.selection)
    layers.insert(len(layers) if place is None else place, layer)
    layers.selection = selected


def redraw(layer: Layer, extent: bool = True) -> None:
    """Draws a layer whose data was changed in place, but no thumbnail, which takes longer than the rest of a slider step.

    Args:
        layer: The layer.
        extent: Whether its extent may have changed.
    """
    layer.refresh(extent=extent, thumbnail=False, highlight=False)


def clear_layer_history(labels: Labels) -> None:
    """Empties napari's own history of a layer, which knows of no commit and would restore what was there before one.

    There is no method for it; a switch of `editable` does it, and changes the mode.
    """
    mode, editable = labels.mode, labels.editable
    labels.editable = not editable
    labels.editable = editable
    labels.mode = mode


class GuardedCallback:
    """A callback of napari that is called only for events that the plugin does not handle.

    napari calls all callbacks of a list, also for handled events: Alt and the wheel would also change the active layer, and
    the second of two quick clicks would zoom.

    Args:
        callbacks: The list that it is in; without it, the other one is added at the end.
        name: Of the function.
        takes: Called for each event; returns whether it handled it.
    """

    def __init__(self, callbacks: list[Callable[..., Any]], name: str, takes: Callable[[Any], bool]) -> None:
        self._callbacks, self._takes = callbacks, takes
        self._theirs = next((one for one in callbacks if getattr(one, '__name__', '') == name), None)
        at = len(callbacks) if self._theirs is None else callbacks.index(self._theirs)
        callbacks[at : at + 1] = [self._call]

    def put_back(self) -> None:
        """Restores napari's callback."""
        if self._call in self._callbacks:
            at = self._callbacks.index(self._call)
            self._callbacks[at : at + 1] = [] if self._theirs is None else [self._theirs]

    def _call(self, viewer: ViewerModel, event: Any) -> None:
        if not self._takes(event) and self._theirs is not None:
            self._theirs(viewer, event)
