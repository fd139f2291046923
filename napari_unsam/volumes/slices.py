"""Reads masks of objects from the slices of a labels array, and combines masks to objects to write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from napari_unsam.model.label_boxes import boxes_in
from napari_unsam.model.mask import EMPTY, BoxMask
from napari_unsam.model.plane import Plane
from napari_unsam.viewer.object_write import ObjectWrite
from napari_unsam.volumes.matching import SliceMask, SliceState
from napari_unsam.volumes.propagation import Anchors, Found
from unsam_mm.masks.granularity import area_granularity


@dataclass(frozen=True)
class SliceAxis:
    """The planes of an image along one axis.

    Attributes:
        plane: The plane in view.
        axis: The array axis along which slices are numbered.
    """

    plane: Plane
    axis: int

    @property
    def n_slices(self) -> int:
        """Number of planes."""
        return self.plane.shape[self.axis]

    @property
    def current(self) -> int:
        """Index of `plane` along the axis."""
        return self.plane.index[self.axis]

    def index(self, z: int) -> tuple[int, ...]:
        """Index of slice z in the array, one number per axis."""
        return tuple(z if axis == self.axis else position for axis, position in enumerate(self.plane.index))

    def labels(self, array: np.ndarray, z: int) -> np.ndarray:
        """(H, W) slice z of an array of the image's shape."""
        return replace(self.plane, index=self.index(z)).of(array)

    def to_write(self, label: int, crops: Mapping[int, BoxMask], features: Mapping[str, object]) -> ObjectWrite | None:
        """Combines the masks of an object in several slices; None if all are empty."""
        crops = {z: crop for z, crop in crops.items() if crop.area_px}
        if not crops:
            return None
        boxes = np.array([crop.box_xyxy for crop in crops.values()])
        box = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
        slices, first = list(self.plane.slices(box)), min(crops)
        slices[self.axis] = slice(first, max(crops) + 1)
        mask = np.zeros([part.stop - part.start for part in slices], bool)
        planes = np.moveaxis(mask, (self.axis, *self.plane.axes), (-3, -2, -1))[(0,) * (mask.ndim - 3)]
        for z, crop in crops.items():
            planes[z - first] = crop.within(box)
        return ObjectWrite(tuple(slices), mask, label, features, self.plane.axes)


def crops_of(labels: np.ndarray, wanted: Iterable[int] | None = None) -> dict[int, BoxMask]:
    """Masks of the objects of an (H, W) label map, by label; if `wanted` is given, only those of these labels."""
    wanted = None if wanted is None else set(wanted)
    return {
        label: BoxMask.of(labels[box] == label, box[0].start, box[1].start)
        for label, box in boxes_in(labels)
        if wanted is None or label in wanted
    }


def with_corrections(
    anchors: Anchors, found: Mapping[int, Found], slicing: SliceAxis, array: np.ndarray, zs: Iterable[int]
) -> dict[int, dict[int, BoxMask]]:
    """Adds to the anchors the masks of the same objects in slices `zs` that the user has drawn or corrected.

    These are all masks except those that are unchanged since the last run has propagated them.
    """
    known = {label: dict(slices) for label, slices in anchors.items()}
    for z in zs:
        for label, crop in crops_of(slicing.labels(array, z), known).items():
            one = found.get(label, {}).get(z)
            is_unchanged = one is not None and one.state is SliceState.PROPAGATED and crop.equals(one.crop)
            if z not in known[label] and not is_unchanged:
                known[label][z] = crop
    return known


def mark_ended(found: Mapping[int, Found], last_run: Mapping[int, Found], zs: Iterable[int]) -> None:
    """Adds an empty mask in each slice where the last run found an object that now ends before this slice."""
    for label, slices in found.items():
        first, last = min(slices), max(slices)
        for z, one in last_run.get(label, {}).items():
            end = slices[first if z < first else last]
            is_beyond = not first <= z <= last and end.state is SliceState.STOPPED
            if z in zs and is_beyond and one.state is SliceState.PROPAGATED:
                slices[z] = replace(one, crop=EMPTY, state=SliceState.STOPPED)


def object_writes(
    found: Mapping[int, Found], slicing: SliceAxis, array: np.ndarray, keep_existing: bool
) -> tuple[dict[int, Found], list[ObjectWrite]]:
    """The masks and the objects to write.

    If `keep_existing`, propagated masks lose the pixels of existing objects that are not in `found`. In each slice in
    which an object was searched for, its old pixels are erased first, except those of any new mask.
    """
    zs = sorted({z for slices in found.values() for z in slices})
    before = {z: crops_of(slicing.labels(array, z), found) for z in zs}
    others = {z: ~np.isin(slicing.labels(array, z), [0, *found]) for z in zs} if keep_existing else {}
    kept = {
        label: {
            z: one if one.state is SliceState.CORRECTED or not keep_existing else _without_taken(one, others[z])
            for z, one in slices.items()
        }
        for label, slices in found.items()
    }
    now = {z: [slices[z].crop for slices in kept.values() if z in slices] for z in zs}
    erased, writes = [], []
    for label, slices in kept.items():
        old = {z: before[z][label].without(now[z]) for z in slices if label in before[z]}
        present = [one for one in slices.values() if one.crop.area_px]
        features = {'score': float(np.mean([one.score for one in present]))}
        if (erasing := slicing.to_write(0, old, {})) is not None:
            erased.append(replace(erasing, replaces=label))
        writes.append(slicing.to_write(label, {z: one.crop for z, one in slices.items()}, features))
    return kept, [write for write in (*erased, *writes) if write is not None]


def _without_taken(one: SliceMask, taken: np.ndarray) -> SliceMask:
    crop = one.crop.without([BoxMask(one.crop.box_xyxy, taken[one.crop.slices])])
    return replace(one, crop=crop, granularity=float(area_granularity(crop.area_px, taken.size)))
