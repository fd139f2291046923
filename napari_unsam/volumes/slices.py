"""Reads masks of objects from the slices of a labels array, and combines masks to objects to write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from napari_unsam.model.label_boxes import boxes_in
from napari_unsam.model.mask import EMPTY, BoxMask
from napari_unsam.model.plane import Plane
from napari_unsam.viewer.object_write import ObjectWrite
from napari_unsam.volumes.matching import SliceState
from napari_unsam.volumes.propagation import KnownMasks, SliceMasks
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

    def to_write(self, label: int, masks: Mapping[int, BoxMask], features: Mapping[str, object]) -> ObjectWrite | None:
        """Combines the masks of an object in several slices; None if all are empty."""
        masks = {z: mask for z, mask in masks.items() if mask.area_px}
        if not masks:
            return None
        boxes = np.array([mask.box_xyxy for mask in masks.values()])
        box = (*boxes[:, :2].min(axis=0).tolist(), *boxes[:, 2:].max(axis=0).tolist())
        slices, first = list(self.plane.slices(box)), min(masks)
        slices[self.axis] = slice(first, max(masks) + 1)
        volume = np.zeros([part.stop - part.start for part in slices], bool)
        planes = np.moveaxis(volume, (self.axis, *self.plane.axes), (-3, -2, -1))[(0,) * (volume.ndim - 3)]
        for z, mask in masks.items():
            planes[z - first] = mask.within(box)
        return ObjectWrite(tuple(slices), volume, label, features, self.plane.axes)


def masks_by_label(labels: np.ndarray, wanted: Iterable[int] | None = None) -> dict[int, BoxMask]:
    """Masks of the objects of an (H, W) label map, by label; if `wanted` is given, only those of these labels."""
    wanted = None if wanted is None else set(wanted)
    return {
        label: BoxMask.of(labels[box] == label, box[0].start, box[1].start)
        for label, box in boxes_in(labels)
        if wanted is None or label in wanted
    }


def with_corrections(
    known: KnownMasks, last_run: Mapping[int, SliceMasks], slicing: SliceAxis, array: np.ndarray, zs: Iterable[int]
) -> dict[int, dict[int, BoxMask]]:
    """Adds to the known masks those of the same objects in slices `zs` that the user has drawn or corrected.

    These are all masks except those that are unchanged since the last run has propagated them.
    """
    corrected = {label: dict(slices) for label, slices in known.items()}
    for z in zs:
        for label, mask in masks_by_label(slicing.labels(array, z), corrected).items():
            before = last_run.get(label, {}).get(z)
            is_unchanged = before is not None and before.state is SliceState.PROPAGATED and mask.equals(before.mask)
            if z not in corrected[label] and not is_unchanged:
                corrected[label][z] = mask
    return corrected


def mark_ended(found: Mapping[int, SliceMasks], last_run: Mapping[int, SliceMasks], zs: Iterable[int]) -> None:
    """Adds an empty mask in each slice where the last run found an object that now ends before this slice."""
    for label, slices in found.items():
        first, last = min(slices), max(slices)
        for z, one in last_run.get(label, {}).items():
            end = slices[first if z < first else last]
            is_beyond = not first <= z <= last and end.state is SliceState.STOPPED
            if z in zs and is_beyond and one.state is SliceState.PROPAGATED:
                slices[z] = replace(one, mask=EMPTY, state=SliceState.STOPPED)


def object_writes(
    found: Mapping[int, SliceMasks], slicing: SliceAxis, array: np.ndarray, keep_existing: bool
) -> tuple[dict[int, SliceMasks], list[ObjectWrite]]:
    """The masks and the objects to write.

    If `keep_existing`, propagated masks lose the pixels of existing objects that are not in `found`. In each slice in
    which an object was searched for, its old pixels are erased first, except those of any new mask.
    """
    zs = sorted({z for slices in found.values() for z in slices})
    before = {z: masks_by_label(slicing.labels(array, z), found) for z in zs}
    others = {z: ~np.isin(slicing.labels(array, z), [0, *found]) for z in zs} if keep_existing else {}
    kept = {label: _without_taken(slices, others) if keep_existing else dict(slices) for label, slices in found.items()}
    now = {z: [slices[z].mask for slices in kept.values() if z in slices] for z in zs}
    erased, writes = [], []
    for label, slices in kept.items():
        old = {z: before[z][label].without(now[z]) for z in slices if label in before[z]}
        present = [one for one in slices.values() if one.mask.area_px]
        features = {'score': float(np.mean([one.score for one in present]))}
        if (erasing := slicing.to_write(0, old, {})) is not None:
            erased.append(replace(erasing, replaces=label))
        writes.append(slicing.to_write(label, {z: one.mask for z, one in slices.items()}, features))
    return kept, [write for write in (*erased, *writes) if write is not None]


def _without_taken(slices: SliceMasks, taken: Mapping[int, np.ndarray]) -> SliceMasks:
    """Removes the pixels of other objects, (H, W) bool by slice, from the propagated masks of an object."""
    kept = dict(slices)
    for z, one in slices.items():
        if one.state is not SliceState.CORRECTED:
            mask = one.mask.without([BoxMask(one.mask.box_xyxy, taken[z][one.mask.slices])])
            kept[z] = replace(one, mask=mask, granularity=float(area_granularity(mask.area_px, taken[z].size)))
    for z, one in kept.items():
        pair = (z, z - one.step)
        if one.state is SliceState.PROPAGATED and any(kept[at].mask is not slices[at].mask for at in pair):
            kept[z] = replace(one, iou=one.mask.iou(kept[z - one.step].mask))
    return kept
