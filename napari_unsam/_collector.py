"""Python's collector of garbage, kept from holding up the window."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari.components import LayerList


class FrozenObjects:
    """Has the collector pass over all objects that there are, but for the moments in which napari wants it to look.

    A full collection looks at each object of the process, and nothing else can be done meanwhile: a fifth of a second with
    napari and torch, several times while libraries are loaded. None of what was loaded is garbage. Layers may be, so the
    collector looks at everything when one goes: napari then collects garbage in any case.

    Args:
        layers: Of the viewer.
        later: Runs a function once napari is done with what it is at.
    """

    def __init__(self, layers: LayerList, later: Callable[[Callable[[], None]], None]) -> None:
        self._layers, self._later, self._is_closed = layers, later, False
        layers.events.removing.connect(self._thaw_once)
        self.freeze()

    def freeze(self) -> None:
        """Passes over what has come since; from any thread."""
        if not self._is_closed:
            gc.freeze()

    def close(self) -> None:
        """Has the collector look at everything again."""
        if not self._is_closed:
            self._is_closed = True
            self._layers.events.removing.disconnect(self._thaw_once)
            gc.unfreeze()

    def _thaw_once(self, _event: Any) -> None:
        gc.unfreeze()
        self._later(self.freeze)
