"""The functions behind the commands of napari's palette, one for each row of `KEYS`."""

from __future__ import annotations

from collections.abc import Callable

import napari
from napari.utils.notifications import show_info

from napari_unsam.keys import KEYS
from napari_unsam.qt.dock import UnSAMDock

_NOT_READY = 'The UnSAM dock is still opening; try again in a moment.'
_NOT_OPEN = 'The UnSAM dock is not open; open it from the Plugins menu.'


def __getattr__(command: str) -> Callable[[napari.Viewer], None]:
    """A function that runs the action of a key in the dock of the viewer."""
    if command not in KEYS:
        raise AttributeError(command)

    def run(viewer: napari.Viewer) -> None:
        docks = [dock for dock in viewer.window.dock_widgets.values() if isinstance(dock, UnSAMDock)]
        actions = docks[0].content.session.inputs.actions if docks and docks[0].content is not None else {}
        if command in actions:
            actions[command]()
        else:
            show_info(_NOT_READY if docks else _NOT_OPEN)

    return run
