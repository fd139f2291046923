"""The part of a `ViewerSession` that its own parts and the features may use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from psygnal import SignalInstance

from napari_unsam.controller import SegmentationController
from napari_unsam.model.frame import Frame
from napari_unsam.model.history import Action, ActionHistory
from napari_unsam.model.label_boxes import Slices
from napari_unsam.model.targets import Target
from napari_unsam.viewer.inputs import Inputs
from napari_unsam.viewer.object_write import ObjectWrite

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Labels


class SessionPort(Protocol):
    """One image in a viewer, and its objects. See `ViewerSession` for the arguments and errors of the methods.

    Attributes:
        viewer: The viewer.
        controller: The segmentation; also shows messages and runs jobs.
        history: Actions to undo and redo.
        inputs: Mouse and keys.
        later: Runs a function after napari has handled the current event.
        keep_existing: True if new objects do not overwrite pixels of existing ones.
        image_changed: Emitted when another image or none was chosen, or other channels of the image.
        objects_changed: Emitted when objects were written or a write was undone.
        image: The chosen image.
        objects: The layer of its objects; None before it is made.
        frame: Where the layers of the image lie; raises UnSAMError if no image is chosen.
    """

    viewer: ViewerModel
    controller: SegmentationController
    inputs: Inputs
    later: Callable[[Callable[[], None]], None]
    keep_existing: bool
    image_changed: SignalInstance
    objects_changed: SignalInstance

    @property
    def history(self) -> ActionHistory: ...

    @property
    def image(self) -> Image | None: ...

    @property
    def objects(self) -> Labels | None: ...

    @property
    def frame(self) -> Frame: ...

    def target_at(self, index: Sequence[int]) -> Target:
        """The plane of the image at a position, parallel to the one in view."""

    def ensure_objects(self) -> Labels:
        """The layer of objects, made if there is none."""

    def next_label(self, layer: Labels | None = None) -> int:
        """A label that no object of the image has, or had in this session."""

    def box_of(self, label: int) -> Slices | None:
        """The bounding box of an object; None if there is no such object."""

    def write_objects(self, name: str, writes: Sequence[ObjectWrite], layer: Labels | None = None) -> None:
        """Writes, overwrites or erases objects, as one action; does nothing if `writes` is empty."""

    def write_action(self, name: str, writes: Sequence[ObjectWrite], layer: Labels | None = None) -> Action:
        """Makes the action that writes objects."""

    def commit(self) -> None:
        """Writes the current mask and the pending objects."""
