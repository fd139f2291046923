"""Start and result of a propagation in a layer of objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from napari_unsam.viewer.commit import ObjectWrite
from napari_unsam.volumes.crops import EMPTY, CropMask
from napari_unsam.volumes.propagation import Anchors, Found, SliceMask, SliceState, without
from napari_unsam.volumes.slices import Slicing, crops_of
from unsam_mm.masks.granularity import area_granularity


def with_corrections(
    anchors: Anchors, found: Mapping[int, Found], slicing: Slicing, array: np.ndarray, zs: Iterable[int]
) -> dict[int, dict[int, CropMask]]:
    """The slices where objects are known, and those that hold something of them that the last run did not write."""
    known = {label: dict(slices) for label, slices in anchors.items()}
    for z in zs:
        for label, crop in crops_of(slicing.labels(array, z), known).items():
            one = found.get(label, {}).get(z)
            is_ours = one is not None and one.state is SliceState.PROPAGATED and same(crop, one.crop)
            if z not in known[label] and not is_ours:
                known[label][z] = crop
    return known


def end_beyond(found: Mapping[int, Found], before: Mapping[int, Found], zs: Iterable[int]) -> None:
    """Marks slices beyond the new ends of objects, in which the last run had found them, as ended."""
    for label, slices in found.items():
        first, last = min(slices), max(slices)
        for z, one in before.get(label, {}).items():
            end = slices[first if z < first else last]
            is_beyond = not first <= z <= last and end.state is SliceState.STOPPED
            if z in zs and is_beyond and one.state is SliceState.PROPAGATED:
                slices[z] = replace(one, crop=EMPTY, state=SliceState.STOPPED)


def written(
    found: Mapping[int, Found], slicing: Slicing, array: np.ndarray, keep_existing: bool
) -> tuple[dict[int, Found], list[ObjectWrite]]:
    """What is to be written, and what was found as far as it is: pixels of other objects may have to stay theirs.

    What an object had before in slices that it was looked for in is erased first, unless it is another object's by then.
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
        # No pixel is written twice: napari drops what it takes for no change before it writes.
        old = {z: without(before[z][label], now[z]) for z in slices if label in before[z]}
        present = [one for one in slices.values() if one.crop.area_px]
        row = {'score': float(np.mean([one.score for one in present]))}
        if (erasing := slicing.write(0, old, {})) is not None:
            erased.append(replace(erasing, replaces=label))
        writes.append(slicing.write(label, {z: one.crop for z, one in slices.items()}, row))
    return kept, [write for write in (*erased, *writes) if write is not None]


def _limited(one: SliceMask, taken: np.ndarray) -> SliceMask:
    crop = free_of(one.crop, taken)
    return replace(one, crop=crop, granularity=float(area_granularity(crop.area_px, taken.size)))


def free_of(crop: CropMask, taken: np.ndarray) -> CropMask:
    """The mask without the pixels of an (H, W) bool array; itself if it has none of them."""
    x0, y0, x1, y1 = crop.box_xyxy
    return without(crop, [CropMask(crop.box_xyxy, taken[y0:y1, x0:x1])])


def same(one: CropMask, other: CropMask) -> bool:
    """Whether two masks hold the same pixels."""
    return one.area_px == other.area_px == one.intersection(other)
