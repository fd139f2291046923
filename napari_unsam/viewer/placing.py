"""Prompts, outlines and objects stay on their image when that is moved, turned or scaled."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from napari_unsam.model.frame import PLACING, Frame
from napari_unsam.viewer.layers import place_again

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image


class Placing:
    """Follows one image of a viewer at a time.

    Args:
        viewer: The viewer.
        frame: Gives the frame of the image that is followed.
        on_moved: Told when the layers are where the image is again.
    """

    def __init__(self, viewer: ViewerModel, frame: Callable[[], Frame], on_moved: Callable[[], None]) -> None:
        self._viewer, self._frame, self._on_moved = viewer, frame, on_moved
        self._image: Image | None = None

    def follow(self, image: Image | None) -> None:
        """Follows this image from now on and no other; None for none."""
        for followed, act in ((self._image, 'disconnect'), (image, 'connect')):
            for name in PLACING if followed is not None else ():
                getattr(followed.events[name], act)(self._moved)
        self._image = image

    def _moved(self) -> None:
        frame = self._frame()
        for layer in self._viewer.layers:
            place_again(layer, frame)
        self._on_moved()
