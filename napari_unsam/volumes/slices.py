"""The slices of an image along one slider, and objects as they lie across them in the labels array."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from napari_unsam.model.label_boxes import boxes_in
from napari_unsam.model.plane import Plane
from napari_unsam.viewer.commit import ObjectWrite
from napari_unsam.volumes.crops import CropMask


@dataclass(frozen=True)
class Slicing:
    """Planes that differ in one position only.

    Attributes:
        plane: One of them.
        axis: The axis along which they lie.
    """

    plane: Plane
    axis: int

    @property
    def n_slices(self) -> int:
        """How many there are."""
        return self.plane.shape[self.axis]

    @property
    def here(self) -> int:
        """Which of them `plane` is."""
        return self.plane.index[self.axis]

    def index(self, z: int) -> tuple[int, ...]:
        """The position of slice z, one number per axis."""
        return tuple(z if axis == self.axis else at for axis, at in enumerate(self.plane.index))

    def labels(self, array: np.ndarray, z: int) -> np.ndarray:
        """(H, W) of slice z of an array of the image's shape."""
        axes = self.plane.axes
        return np.asarray(array[tuple(slice(None) if axis in axes else at for axis, at in enumerate(self.index(z)))])

    def write(self, label: int, crops: Mapping[int, CropMask], features: Mapping[str, object]) -> ObjectWrite | None:
        """An object, from its mask in each slice; None if all are empty."""
        crops = {z: crop for z, crop in crops.items() if crop.area_px}
        if not crops:
            return None
        boxes = np.array([crop.box_xyxy for crop in crops.values()])
        x0, y0 = boxes[:, :2].min(axis=0).tolist()
        x1, y1 = boxes[:, 2:].max(axis=0).tolist()
        first, last = min(crops), max(crops) + 1
        spanned = dict(zip(self.plane.axes, (slice(y0, y1), slice(x0, x1)), strict=True)) | {
            self.axis: slice(first, last)
        }
        region = tuple(spanned.get(axis, slice(at, at + 1)) for axis, at in enumerate(self.plane.index))
        mask = np.zeros([part.stop - part.start for part in region], bool)
        for z, crop in crops.items():
            at = tuple(
                slice(None) if axis in self.plane.axes else z - first if axis == self.axis else 0
                for axis in range(len(region))
            )
            mask[at] = crop.within((x0, y0, x1, y1))
        return ObjectWrite(region, mask, label, features, self.plane.axes)


def crops_of(labels: np.ndarray, wanted: Iterable[int] | None = None) -> dict[int, CropMask]:
    """The mask of each object of an (H, W) label map, or of those that are wanted and there."""
    wanted = None if wanted is None else set(wanted)
    return {
        label: CropMask.of(labels[box] == label, box[0].start, box[1].start)
        for label, box in boxes_in(labels)
        if wanted is None or label in wanted
    }
