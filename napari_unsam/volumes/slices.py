"""The slices of an image along one slider: masks of objects read from the labels array, and converted to objects to write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from napari_unsam.model.label_boxes import boxes_in
from napari_unsam.model.mask import EMPTY, BoxMask
from napari_unsam.model.plane import Plane
from napari_unsam.viewer.commit import ObjectWrite
from napari_unsam.volumes.matching import SliceMask, SliceState
from napari_unsam.volumes.propagation import Anchors, Found
from unsam_mm.masks.granularity import area_granularity


@dataclass(frozen=True)
class Slicing:
    """The planes of an image along one axis.

    Attributes:
        plane: One of the planes.
        axis: The axis.
    """

    plane: Plane
    axis: int

    @property
    def n_slices(self) -> int:
        """Number of planes."""
        return self.plane.shape[self.axis]

    @property
    def here(self) -> int:
        """Number of the slice that `plane` is."""
        return self.plane.index[self.axis]

    def index(self, z: int) -> tuple[int, ...]:
        """The position of slice z, one number per axis."""
        return tuple(z if axis == self.axis else at for axis, at in enumerate(self.plane.index))

    def labels(self, array: np.ndarray, z: int) -> np.ndarray:
        """(H, W) slice z of an array of the image's shape."""
        return replace(self.plane, index=self.index(z)).of(array)

    def write(self, label: int, crops: Mapping[int, BoxMask], features: Mapping[str, object]) -> ObjectWrite | None:
        """The object to write from its mask in each slice; None if all masks are empty."""
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
    """The mask of each object of an (H, W) label map, by label; `wanted` limits the labels."""
    wanted = None if wanted is None else set(wanted)
    return {
        label: BoxMask.of(labels[box] == label, box[0].start, box[1].start)
        for label, box in boxes_in(labels)
        if wanted is None or label in wanted
    }


def with_corrections(
    anchors: Anchors, found: Mapping[int, Found], slicing: Slicing, array: np.ndarray, zs: Iterable[int]
) -> dict[int, dict[int, BoxMask]]:
    """The known masks of objects: the anchors, and masks in other slices that differ from those that the last run wrote."""
    known = {label: dict(slices) for label, slices in anchors.items()}
    for z in zs:
        for label, crop in crops_of(slicing.labels(array, z), known).items():
            one = found.get(label, {}).get(z)
            is_ours = one is not None and one.state is SliceState.PROPAGATED and crop.equals(one.crop)
            if z not in known[label] and not is_ours:
                known[label][z] = crop
    return known


def mark_ended(found: Mapping[int, Found], before: Mapping[int, Found], zs: Iterable[int]) -> None:
    """Adds empty masks in slices beyond the new ends of objects, in which the last run had found them."""
    for label, slices in found.items():
        first, last = min(slices), max(slices)
        for z, one in before.get(label, {}).items():
            end = slices[first if z < first else last]
            is_beyond = not first <= z <= last and end.state is SliceState.STOPPED
            if z in zs and is_beyond and one.state is SliceState.PROPAGATED:
                slices[z] = replace(one, crop=EMPTY, state=SliceState.STOPPED)


def object_writes(
    found: Mapping[int, Found], slicing: Slicing, array: np.ndarray, keep_existing: bool
) -> tuple[dict[int, Found], list[ObjectWrite]]:
    """The masks limited to pixels that they may take, and the objects to write.

    In all slices in which an object was searched, its old pixels are erased first, unless another object takes them.
    """
    zs = sorted({z for slices in found.values() for z in slices})
    before = {z: crops_of(slicing.labels(array, z), found) for z in zs}
    others = {z: ~np.isin(slicing.labels(array, z), [0, *found]) for z in zs} if keep_existing else {}
    kept = {
        label: {
            z: one if one.state is SliceState.CORRECTED or not keep_existing else _limited(one, others[z])
            for z, one in slices.items()
        }
        for label, slices in found.items()
    }
    now = {z: [slices[z].crop for slices in kept.values() if z in slices] for z in zs}
    erased, writes = [], []
    for label, slices in kept.items():
        old = {z: before[z][label].without(now[z]) for z in slices if label in before[z]}
        present = [one for one in slices.values() if one.crop.area_px]
        row = {'score': float(np.mean([one.score for one in present]))}
        if (erasing := slicing.write(0, old, {})) is not None:
            erased.append(replace(erasing, replaces=label))
        writes.append(slicing.write(label, {z: one.crop for z, one in slices.items()}, row))
    return kept, [write for write in (*erased, *writes) if write is not None]


def _limited(one: SliceMask, taken: np.ndarray) -> SliceMask:
    crop = one.crop.without([BoxMask(one.crop.box_xyxy, taken[one.crop.slices])])
    return replace(one, crop=crop, granularity=float(area_granularity(crop.area_px, taken.size)))
