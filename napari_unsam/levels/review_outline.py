"""The outline around the object that is being reviewed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Vectors

from napari_unsam.viewer.contours import outline_segments
from napari_unsam.viewer.layers import following, insert_quietly, remove_layers

if TYPE_CHECKING:
    from napari.layers import Labels

    from napari_unsam.viewer.session import ViewerSession

REVIEW_NAME = 'UnSAM review'
REVIEW_COLOUR = '#ff4dff'  # of no object, no prompt and no mask
_WIDTH_SHARE = 1 / 120  # of the longer side of the object's box
_MIN_WIDTH = 0.4


class ReviewOutline:
    """An outline around one object, on all planes that it is on; a separate layer.

    Args:
        session: Whose object it is.
    """

    def __init__(self, session: ViewerSession) -> None:
        self._session = session
        self.layer: Vectors | None = None

    def show(self, objects: Labels, label: int, region: tuple[slice, ...], axes: Sequence[int]) -> None:
        """Draws it around another object.

        Args:
            objects: The layer of the object.
            label: Of the object.
            region: Its bounding box, one slice per axis.
            axes: The two that are in view.
        """
        mask = np.asarray(objects.data[region]) == label
        start = np.array([part.start for part in region])
        if self.layer is None or self.layer not in self._session.viewer.layers:
            self._make(mask.ndim)
        self.layer.edge_width = max(_WIDTH_SHARE * max(mask.shape[axis] for axis in axes), _MIN_WIDTH)
        self.layer.data = _outlines(mask, sorted(axes)) + np.stack([start, np.zeros_like(start)])
        self.layer.visible = True

    def hide(self) -> None:
        """Hides the layer; removing it would take napari longer than drawing it."""
        if self.layer is not None:
            self.layer.visible = False

    def remove(self) -> None:
        """Removes the layer once napari has handled the current event."""
        layer, self.layer = self.layer, None
        if layer is not None:
            self._session.unbind(layer)
            self._session.later(lambda: remove_layers(self._session.viewer, [layer]))

    def _make(self, ndim: int) -> None:
        self.layer = Vectors(
            np.zeros((0, 2, ndim)),
            ndim=ndim,
            name=REVIEW_NAME,
            opacity=1.0,
            edge_color=REVIEW_COLOUR,
            vector_style='line',
            **following(self._session.frame),
        )
        insert_quietly(self._session.viewer, self.layer)
        self._session.bind(self.layer)


def _outlines(mask: np.ndarray, axes: Sequence[int]) -> np.ndarray:
    """(S, 2, N) segments around a mask of N axes, plane by plane along two of them, the lower one first."""
    planes = np.moveaxis(mask, axes, (-2, -1))
    hidden = [axis for axis in range(mask.ndim) if axis not in axes]
    found = [np.zeros((0, 2, mask.ndim))]
    for index in np.ndindex(planes.shape[:-2]):
        segments = outline_segments(planes[index])
        placed = np.zeros((len(segments), 2, mask.ndim))
        placed[:, :, list(axes)] = segments
        placed[:, 0, hidden] = index
        found.append(placed)
    return np.concatenate(found)
