"""Propagates objects from the slices where they are known to the other slices of a stack."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise

import numpy as np

from napari_unsam.engine.planes import EmbeddedPlane
from napari_unsam.model.mask import EMPTY, BoxMask
from napari_unsam.volumes.matching import (
    SliceMask,
    SliceState,
    appearance_of,
    appearance_score,
    colour_bins,
    match_mask,
)
from unsam_mm.masks.granularity import area_granularity

# An object ends below this expected IoU, as a share of the expected IoU of the known mask in its own slice.
_MIN_SCORE = 0.7
_MIN_AREA = 0.02  # an object ends at this share of its largest area so far, or less

KnownMasks = Mapping[int, Mapping[int, BoxMask]]
"""The known masks of each object, by label and slice; an empty mask means that the object is not in that slice."""


class Direction(Enum):
    """Direction of propagation from the known slices."""

    BOTH = 'both'
    FORWARD = 'forward'
    BACK = 'back'


@dataclass(frozen=True)
class PropagationSettings:
    """How objects are propagated.

    Attributes:
        min_iou: Minimum IoU with the mask of the previous slice; below it, the object ends.
        direction: Direction of propagation.
        ask_engine: True if answers of the engine are candidate masks too; they take most of the time.
    """

    min_iou: float = 0.35
    direction: Direction = Direction.BOTH
    ask_engine: bool = False


SliceMasks = dict[int, SliceMask]
"""The masks of one object, by slice."""


def propagate(
    plane: Callable[[int], EmbeddedPlane],
    pixels: Callable[[int], np.ndarray],
    known: KnownMasks,
    z_range: tuple[int, int],
    settings: PropagationSettings = PropagationSettings(),
    progress: Callable[[float, str], None] = lambda fraction, text: None,
) -> dict[int, SliceMasks]:
    """Finds objects in the slices where they are not known yet.

    Objects do not overlap: a pixel goes to the object with the largest score; known masks take precedence. Between two
    known slices, an object is propagated from both, and the two halves are joined where they agree best. Before the
    first and after the last known slice, it is propagated until it ends.

    Args:
        plane: Returns the analysed slice of an index; called at most twice for each slice.
        pixels: Returns the same slice as an image, (H, W) or (H, W, 3) uint8.
        known: The known masks within the range, at least one that is not empty for each object.
        z_range: First and last slice, the last exclusive.
        settings: How objects are propagated.
        progress: Called with the fraction done and a description; may raise to cancel.

    Returns:
        The masks of each object, by label and slice: the known ones, and those of all slices in which it was searched.
    """
    first, last = z_range
    sweep = _Sweep(plane, pixels, known, settings)
    starts = [z for slices in known.values() for z in slices]
    directions = [(+1, range(min(starts), last)), (-1, range(max(starts), first - 1, -1))]
    total, done = sum(len(zs) for _, zs in directions), 0
    found = []
    for step, zs in directions:
        tracks: dict[int, _Track] = {}
        for z in zs:
            progress(done / total, f'slice {z}')
            sweep.advance(tracks, z, step)
            done += 1
        found.append({label: track.slices for label, track in tracks.items()})
    forward, back = found
    return {label: _joined(slices, forward.get(label, {}), back.get(label, {})) for label, slices in known.items()}


@dataclass(eq=False)
class _Track:
    """The state of one object in one direction.

    Attributes:
        slices: The masks so far, including the known ones.
        last: The previous mask.
        appearance: Appearance of the object in its last known slice.
        appearance_score: Expected IoU of the known mask in that slice.
        largest_px: The largest area so far.
        has_ended: True if the object has ended; it begins again in the next slice where it is known.
    """

    slices: SliceMasks
    last: BoxMask
    appearance: np.ndarray
    appearance_score: float
    largest_px: int
    has_ended: bool = False


class _Sweep:
    """Propagates all objects, slice by slice in one direction."""

    def __init__(
        self,
        plane: Callable[[int], EmbeddedPlane],
        pixels: Callable[[int], np.ndarray],
        known: KnownMasks,
        settings: PropagationSettings,
    ) -> None:
        self._plane, self._pixels, self._known, self._settings = plane, pixels, known, settings

    def advance(self, tracks: dict[int, _Track], z: int, step: int) -> None:
        """Finds in slice z the objects that have begun before, and begins those that have a known mask there."""
        known_here = [label for label, slices in self._known.items() if z in slices]
        ongoing = [
            label
            for label, track in tracks.items()
            if label not in known_here and self._is_wanted(label, track, z, step)
        ]
        if not known_here and not ongoing:
            return
        embedded, bins = self._plane(z), colour_bins(self._pixels(z))
        ask_engine = self._settings.ask_engine
        matches = {
            label: match_mask(embedded, tracks[label].last, tracks[label].appearance, bins, ask_engine)
            for label in ongoing
        }
        taken = [self._known[label][z] for label in known_here]
        for label, match in sorted(matches.items(), key=lambda pair: -pair[1].score):
            mask = match.mask.without(taken)
            iou = match.iou if mask is match.mask else mask.iou(tracks[label].last)
            self._continue(tracks[label], z, replace(match, mask=mask, iou=iou, step=step))
            taken.append(tracks[label].slices[z].mask)
        for label in known_here:
            self._begin(tracks, label, z, bins)

    def _is_wanted(self, label: int, track: _Track, z: int, step: int) -> bool:
        if track.has_ended:
            return False
        against = Direction.BACK if step > 0 else Direction.FORWARD
        between = any((other - z) * step > 0 for other in self._known[label])
        return between or self._settings.direction is not against

    def _begin(self, tracks: dict[int, _Track], label: int, z: int, bins: np.ndarray) -> None:
        mask, earlier = self._known[label][z], tracks.get(label)
        slices = {} if earlier is None else earlier.slices
        granularity = float(area_granularity(mask.area_px, bins.size))
        slices[z] = SliceMask(mask, 1.0, 1.0, granularity, SliceState.CORRECTED)
        if mask.area_px:
            appearance = appearance_of(mask, bins)
            score = appearance_score(mask, appearance, bins)
            tracks[label] = _Track(slices, mask, appearance, score, mask.area_px)
        elif earlier is not None:
            earlier.has_ended = True

    def _continue(self, track: _Track, z: int, match: SliceMask) -> None:
        """Continues a track with a match, or ends it."""
        is_tiny = match.mask.area_px <= _MIN_AREA * track.largest_px
        is_weak = match.iou < self._settings.min_iou or match.score < _MIN_SCORE * track.appearance_score
        if is_tiny or is_weak:
            granularity = 0.0 if is_tiny else match.granularity
            track.slices[z] = replace(match, mask=EMPTY, granularity=granularity, state=SliceState.STOPPED)
            track.has_ended = True
        else:
            track.slices[z], track.last = match, match.mask
            track.largest_px = max(track.largest_px, match.mask.area_px)


def _joined(known: Mapping[int, BoxMask], forward: SliceMasks, back: SliceMasks) -> SliceMasks:
    """Joins both directions; between two known slices, masks come from the lower one up to a seam, then the upper."""
    known_zs = sorted(known)
    joined = {z: (forward if z in forward else back)[z] for z in known_zs}
    joined |= {z: found for z, found in back.items() if z < known_zs[0]}
    joined |= {z: found for z, found in forward.items() if z > known_zs[-1]}
    for low, high in pairwise(known_zs):
        gap = range(low + 1, high)
        seam = _meeting_slice(gap, forward, back, joined[low], joined[high])
        for z in gap:
            first, second = (forward, back) if z <= seam else (back, forward)
            one = _present(first, z) or _present(second, z) or first.get(z) or second.get(z)
            if one is not None:
                joined[z] = one
    return dict(sorted(joined.items()))


def _present(found: SliceMasks, z: int) -> SliceMask | None:
    return found[z] if z in found and found[z].mask.area_px else None


def _meeting_slice(gap: range, forward: SliceMasks, back: SliceMasks, low: SliceMask, high: SliceMask) -> int:
    """The last slice of a gap whose mask comes from the lower known slice; one before the gap if there is none.

    It maximises the product of the IoUs of adjacent slices; in a sum, one bad slice would count too little.
    """

    def log_iou(found: SliceMasks, z: int) -> float:
        return float(np.log(max(found[z].iou if _present(found, z) else 0.0, 1e-3)))

    best, best_score = gap.start - 1, -np.inf
    for seam in range(gap.start - 1, gap.stop):
        below = forward.get(seam, low) if seam >= gap.start else low
        above = back.get(seam + 1, high) if seam + 1 < gap.stop else high
        across = np.log(max(below.mask.iou(above.mask), 1e-3))
        score = sum(log_iou(forward, z) for z in gap if z <= seam) + sum(log_iou(back, z) for z in gap if z > seam)
        if score + across > best_score:
            best, best_score = seam, score + across
    return best
