"""What the keys of the dock do, as commands of napari's palette."""

from __future__ import annotations

from collections.abc import Callable

import napari
from napari.utils.notifications import show_info

from napari_unsam.qt.dock import UnSAMDock

_NOT_READY = 'The dock of UnSAM is still being opened; try again in a moment.'
_NOT_OPEN = 'The dock of UnSAM is not open; open it from the menu Plugins.'


def _pressing(key: str) -> Callable[[napari.Viewer], None]:
    """A command that does what a key does in the dock of the viewer."""

    def press(viewer: napari.Viewer) -> None:
        docks = [dock for dock in viewer.window.dock_widgets.values() if isinstance(dock, UnSAMDock)]
        keys = docks[0].content.session.keys if docks and docks[0].content is not None else {}
        if key in keys:
            keys[key]()
        else:
            show_info(_NOT_READY if docks else _NOT_OPEN)

    return press


coarser = _pressing('J')
finer = _pressing('K')
commit = _pressing('N')
set_aside = _pressing('Shift-H')
switch_polarity = _pressing('G')
clear_prompts = _pressing('Q')
undo = _pressing('U')
redo = _pressing('Shift-U')
split = _pressing('H')
merge = _pressing('W')
find_alike = _pressing('Shift-F')
review = _pressing('Shift-N')
propagate = _pressing('Shift-G')
