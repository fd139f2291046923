"""Tracks of objects through the frames of a movie, with divisions, as napari shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import ndimage

from napari_unsam.volumes.linking import LinkedRegion, LinkSettings, link, overlaps

_MIN_COVERED = 0.5  # minimum share of each daughter's first mask that lies in the mother's last mask
_MAX_DIVISION_GAP = 1  # in frames, from the mother's last mask to the daughter's first one; 1 means adjacent frames
_MIN_DAUGHTER_LENGTH = 2  # in frames; shorter tracks are more likely errors


@dataclass(frozen=True, eq=False)
class TrackTable:
    """The data of a Tracks layer.

    Attributes:
        data: (N, 4) float: track, frame, row and column of the centre of each mask.
        graph: For each daughter track, a list that contains its mother track.
        regions: The regions of each track, by track number; counted from 1.
    """

    data: np.ndarray
    graph: dict[int, list[int]]
    regions: dict[int, list[LinkedRegion]]


def track(
    label_maps: Sequence[np.ndarray],
    settings: LinkSettings = LinkSettings(max_gap=1, min_extent=1),  # noqa: B008  frozen
) -> TrackTable:
    """Tracks the regions of a movie.

    A mother track ends at the division: if linking has continued it in one of the daughters, that part becomes a track
    of its own.

    Args:
        label_maps: T label maps (H, W); 0 is background.
        settings: When regions are linked.
    """
    tracks = link(label_maps, LinkSettings(settings.min_iou, settings.max_gap, 1))
    mothers = _cut_at_divisions(tracks, label_maps)
    kept = [number for number, regions in enumerate(tracks) if len(regions) >= settings.min_extent]
    numbers = {number: i for i, number in enumerate(kept, start=1)}
    graph = {
        numbers[daughter]: [numbers[mother]]
        for daughter, mother in mothers.items()
        if daughter in numbers and mother in numbers
    }
    regions = {numbers[number]: tracks[number] for number in kept}
    return TrackTable(_centres(regions, label_maps), graph, regions)


def _cut_at_divisions(tracks: list[list[LinkedRegion]], label_maps: Sequence[np.ndarray]) -> dict[int, int]:
    """Finds the mother of each daughter track. A mother's part that continues in a daughter becomes a new track."""

    @cache
    def covering(before: int, after: int) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
        """The regions of frame `before` that cover each region of frame `after`, and the regions covered by each."""
        pairs, shared, _, areas = overlaps(label_maps[before], label_maps[after])
        outer: dict[int, list[int]] = {}
        inner: dict[int, list[int]] = {}
        for one, other in pairs[shared >= _MIN_COVERED * areas[pairs[:, 1]]].tolist():
            outer.setdefault(other, []).append(one)
            inner.setdefault(one, []).append(other)
        return outer, inner

    # The track of each region, and its position in that track.
    places = {(one.z, one.region): (number, i) for number, parts in enumerate(tracks) for i, one in enumerate(parts)}
    mothers: dict[int, int] = {}
    children: dict[int, list[int]] = {}

    def join(mother: int, *daughters: int) -> None:
        mothers.update(dict.fromkeys(daughters, mother))
        children.setdefault(mother, []).extend(daughters)

    for born in range(len(tracks)):
        first = tracks[born][0]
        if len(tracks[born]) < _MIN_DAUGHTER_LENGTH or born in mothers:
            continue
        frames = range(max(first.z - _MAX_DIVISION_GAP, 0), first.z)
        around = sorted(places[z, region] for z in frames for region in covering(z, first.z)[0].get(first.region, []))
        for mother, at in around:
            last, later = tracks[mother][at], tracks[mother][at + 1 : at + 2]
            inner = covering(last.z, first.z)[1].get(last.region, [])
            if later:
                sister = later[0]
                if sister.z != first.z or sister.region not in inner:
                    continue  # the mother does not divide
                cut_off = len(tracks)
                tracks.append([LinkedRegion(sister.z, sister.region, 1.0), *tracks[mother][at + 2 :]])
                del tracks[mother][at + 1 :]
                places.update({(one.z, one.region): (cut_off, i) for i, one in enumerate(tracks[cut_off])})
                # Later daughters belong to the part that was cut off.
                late = [child for child in children.pop(mother, []) if tracks[child][0].z > sister.z]
                if late:
                    join(cut_off, *late)
                join(mother, cut_off, born)
                break
            begun = [places[first.z, region] for region in inner]
            others = sorted(
                number
                for number, i in begun
                if i == 0 and number > born and len(tracks[number]) >= _MIN_DAUGHTER_LENGTH
            )
            if others:
                join(mother, born, *others)
                break
    return mothers


def _centres(regions: dict[int, list[LinkedRegion]], label_maps: Sequence[np.ndarray]) -> np.ndarray:
    by_frame: dict[int, list[tuple[int, int]]] = {}
    for number, parts in regions.items():
        for part in parts:
            by_frame.setdefault(part.z, []).append((number, part.region))
    rows = []
    for z, members in by_frame.items():
        labels = label_maps[z]
        centres = ndimage.center_of_mass(np.ones(labels.shape, bool), labels, [region for _, region in members])
        rows += [(number, z, row, column) for (number, _), (row, column) in zip(members, centres, strict=True)]
    return np.array(sorted(rows), float).reshape(-1, 4)
