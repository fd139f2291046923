"""Objects through the frames of a movie as napari's tracks, and which of them divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from napari_unsam.volumes.linking import LinkedRegion, LinkSettings, link


@dataclass(frozen=True)
class DivisionSettings:
    """When a track that ends has divided rather than left.

    Attributes:
        min_covered: The least share of each daughter's first mask that lies in the mother's last.
        max_gap: How many frames may pass between them.
        min_length: The fewest frames of a daughter; one frame is more likely a slip.
    """

    min_covered: float = 0.5
    max_gap: int = 1
    min_length: int = 2


@dataclass(frozen=True, eq=False)
class TrackTable:
    """What a layer of tracks is made of.

    Attributes:
        data: (N, 4) float: track, frame, row and column of the centre of each mask.
        graph: For each daughter track its mother, alone in a list.
        regions: For each track, from 1, its regions.
    """

    data: np.ndarray
    graph: dict[int, list[int]]
    regions: dict[int, list[LinkedRegion]]


def track(
    label_maps: Sequence[np.ndarray],
    settings: LinkSettings = LinkSettings(max_gap=1, min_extent=1),  # noqa: B008  frozen
    divisions: DivisionSettings = DivisionSettings(),
) -> TrackTable:
    """Tracks of the regions of a movie.

    A mother keeps no daughter as herself: where a track goes on in the larger of two cells that lie in it, it is cut there.

    Args:
        label_maps: T label maps (H, W), 0 being background.
        settings: What counts as the same object.
        divisions: What counts as a division.
    """
    tracks = link(label_maps, LinkSettings(settings.min_iou, settings.max_gap, 1))
    mothers = _cut_at_divisions(tracks, label_maps, divisions)
    kept = [number for number, regions in enumerate(tracks) if len(regions) >= settings.min_extent]
    numbers = {number: i for i, number in enumerate(kept, start=1)}
    graph = {
        numbers[daughter]: [numbers[mother]]
        for daughter, mother in mothers.items()
        if daughter in numbers and mother in numbers
    }
    regions = {numbers[number]: tracks[number] for number in kept}
    return TrackTable(_centres(regions, label_maps), graph, regions)


def _cut_at_divisions(
    tracks: list[list[LinkedRegion]], label_maps: Sequence[np.ndarray], divisions: DivisionSettings
) -> dict[int, int]:
    """Finds the mother of each track that has one; a mother that went on as a daughter is cut, the rest added to the list."""
    mothers: dict[int, int] = {}
    for born in range(len(tracks)):
        first = tracks[born][0]
        if len(tracks[born]) < divisions.min_length or born in mothers:
            continue
        for mother in range(len(tracks)):
            before = [i for i, one in enumerate(tracks[mother]) if one.z < first.z]
            if mother == born or not before:
                continue
            at = before[-1]
            last = tracks[mother][at]
            if first.z - last.z > divisions.max_gap or not _covers(last, first, label_maps, divisions.min_covered):
                continue
            if at + 1 < len(tracks[mother]):
                sister = tracks[mother][at + 1]
                if sister.z != first.z or not _covers(last, sister, label_maps, divisions.min_covered):
                    continue
                tracks.append([LinkedRegion(sister.z, sister.region, 1.0), *tracks[mother][at + 2 :]])
                # Daughters of the part that was cut off stay with it.
                late = {
                    child for child, parent in mothers.items() if parent == mother and tracks[child][0].z > sister.z
                }
                mothers |= dict.fromkeys(late, len(tracks) - 1)
                del tracks[mother][at + 1 :]
                mothers[len(tracks) - 1] = mother
                mothers[born] = mother
                break
            others = [
                other
                for other in range(born + 1, len(tracks))
                if tracks[other][0].z == first.z
                and len(tracks[other]) >= divisions.min_length
                and _covers(last, tracks[other][0], label_maps, divisions.min_covered)
            ]
            if others:
                mothers |= dict.fromkeys((born, *others), mother)
                break
    return mothers


def _covers(mother: LinkedRegion, daughter: LinkedRegion, label_maps: Sequence[np.ndarray], min_covered: float) -> bool:
    """Whether enough of a region lies in another of an earlier frame."""
    inside = label_maps[daughter.z] == daughter.region
    shared = np.count_nonzero(inside & (label_maps[mother.z] == mother.region))
    return shared >= min_covered * np.count_nonzero(inside)


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
