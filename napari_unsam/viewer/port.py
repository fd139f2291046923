"""What the parts of a session and the features on top of it may use of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from psygnal import SignalInstance

from napari_unsam.controller import SegmentationController
from napari_unsam.model.frame import Frame
from napari_unsam.model.history import ActionHistory
from napari_unsam.model.label_boxes import Slices
from napari_unsam.model.targets import Target
from napari_unsam.viewer.commit import ObjectWrite, WriteObjects
from napari_unsam.viewer.inputs import Inputs

if TYPE_CHECKING:
    from napari.components import ViewerModel
    from napari.layers import Image, Labels


class SessionPort(Protocol):
    """One image in a viewer: what is in view of it, and its objects.

    Attributes:
        viewer: The viewer.
        controller: What is segmented, the messages to the user, the jobs.
        history: Everything that the user did, to be undone.
        inputs: Mouse and keys.
        later: Runs a function once napari is done with what it is at.
        keep_existing: Whether pixels of other objects stay theirs.
        image_changed: Emitted when another image, none, or other channels of it are being segmented.
        objects_changed: Emitted when objects were written or a write was undone.
        image: The chosen image.
        objects: The layer of its objects; None before it is made.
        frame: Where it lies; raises UnSAMError if no image is chosen.
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
        """The plane of the image at some data positions, one number per axis; those of the plane's two axes are not read."""

    def ensure_objects(self) -> Labels:
        """The layer of objects, made if there is none."""

    def next_label(self, layer: Labels | None = None) -> int:
        """A label that no object of the image has, or had in this session."""

    def box_of(self, label: int) -> Slices | None:
        """The bounding box of an object; None if it is not there."""

    def write_objects(self, name: str, writes: Sequence[ObjectWrite], layer: Labels | None = None) -> None:
        """Writes, overwrites or erases objects, as one action; nothing happens without any."""

    def writing(self, name: str, writes: Sequence[ObjectWrite], layer: Labels | None = None) -> WriteObjects:
        """The action that writes objects, not done yet; `layer` is where, by default that of the image."""

    def commit(self) -> None:
        """Writes the current mask and the pending objects, once the last click is answered."""
