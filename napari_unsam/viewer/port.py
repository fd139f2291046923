"""The interface of a session for its parts, so that they need not import it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Labels, Layer

    from napari_unsam.controller import SegmentationController
    from napari_unsam.model.frame import Frame
    from napari_unsam.model.history import ActionHistory
    from napari_unsam.model.targets import Target
    from napari_unsam.viewer.commit import ObjectWrite, WriteObjects


class SessionPort(Protocol):
    """See `napari_unsam.viewer.session.ViewerSession`, which has all of this.

    Attributes:
        viewer: The viewer.
        controller: The state of the segmentation.
        keep_existing: Whether pixels of other objects stay theirs.
    """

    viewer: ViewerModel
    controller: SegmentationController
    keep_existing: bool

    @property
    def image(self) -> Image | None:
        """The chosen image."""

    @property
    def objects(self) -> Labels | None:
        """The layer of its objects; None before it is made."""

    @property
    def frame(self) -> Frame:
        """Where the image lies."""

    @property
    def history(self) -> ActionHistory:
        """The undo history."""

    def bind(self, *layers: Layer) -> None:
        """Has the keys work on layers."""

    def unbind(self, *layers: Layer) -> None:
        """Unbinds the keys of layers."""

    def unless_drawing(self, act: Callable[[], None]) -> Callable[..., None]:
        """Wraps a function so that it does nothing while a stroke is being drawn."""

    def target_at(self, index: Sequence[int]) -> Target:
        """The plane at an index of the sliders."""

    def ensure_objects(self) -> Labels:
        """The layer of objects, made if there is none."""

    def next_label(self, layer: Labels | None = None) -> int:
        """A label that no object of the layer has."""

    def writing(self, name: str, writes: Sequence[ObjectWrite], layer: Labels | None = None) -> WriteObjects:
        """The action that writes objects."""
