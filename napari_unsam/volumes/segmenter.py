"""Propagation, automatic 3D objects and tracks in a viewer, without Qt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from napari.layers import Labels, Tracks
from psygnal import Signal

from napari_unsam.engine.inference import ProgressCallback, part_of
from napari_unsam.engine.planes import EmbeddedPlane
from napari_unsam.keys import TO_UNDO
from napari_unsam.levels.candidate_table import CandidateTable
from napari_unsam.levels.cuts import RegionFilter
from napari_unsam.levels.part_whole import ObjectClass
from napari_unsam.levels.region_properties import Brightness
from napari_unsam.model.frame import Frame
from napari_unsam.model.history import ActionGroup
from napari_unsam.model.mask import EMPTY, BoxMask
from napari_unsam.model.targets import Target
from napari_unsam.model.text import counted
from napari_unsam.viewer.layers import AddLayers, following_arguments
from napari_unsam.viewer.object_write import ObjectWrite, limited_to_free, renumbered
from napari_unsam.viewer.port import SessionPort
from napari_unsam.volumes.linking import LinkSettings, link
from napari_unsam.volumes.propagation import (
    KnownMasks,
    PropagationSettings,
    SliceMasks,
    SliceState,
    propagate,
)
from napari_unsam.volumes.slices import SliceAxis, mark_ended, masks_by_label, object_writes, with_corrections
from napari_unsam.volumes.tracks import TrackTable, track
from unsam_mm.errors import UnSAMError

TRACKS_NAME = 'UnSAM tracks'
_NO_SLIDER = 'This image has no slider to propagate along; open a stack or a movie.'
_NOT_CORRECTED = 'No slice was corrected: propagate an object, correct it in some slices, then press this.'
_TOO_LARGE = 'Automatic objects need slices of at most 2048 px a side; propagate single objects instead.'


class Regions(Enum):
    """Which regions of each slice are linked."""

    LEVEL = 'One level'
    BEST = 'Best masks'


@dataclass(frozen=True)
class StackSettings:
    """How whole stacks are segmented.

    Attributes:
        regions: Which regions of each slice are linked.
        level: Level of the regions in [0, 1], for `Regions.LEVEL`.
        min_area_px: Minimum area of a region in a slice.
        max_share: Maximum area of a region as a share of its slice; larger ones are background.
        brightness: Brightness of objects relative to their surroundings.
        links: When regions are linked.
    """

    regions: Regions = Regions.LEVEL
    level: float = 0.5
    min_area_px: int = 50
    max_share: float = 0.2
    brightness: Brightness = Brightness.ANY
    links: LinkSettings = field(default_factory=LinkSettings)

    @property
    def limits(self) -> RegionFilter:
        """Which regions of a slice count as objects; they may touch the outline of the slice."""
        return RegionFilter(
            self.min_area_px, self.max_share, max_border_share=1.0, min_score=0.0, brightness=self.brightness
        )


@dataclass(frozen=True, eq=False)
class _Run:
    """The last propagation.

    Attributes:
        layer: The layer of objects.
        slicing: The slices.
        masks: The written masks, by label and slice.
    """

    layer: Labels
    slicing: SliceAxis
    masks: Mapping[int, SliceMasks]


class VolumeSegmenter:
    """Objects across the slices of the image of a session.

    Attributes:
        changed: Emitted when a method has changed `axis`, `z_range`, `label`, `axes`, `strip` or `labels`.
        axis: The axis to propagate along; None if there is none.
        z_range: First and last slice to use, the last exclusive; None for all.
        settings: Settings of propagation.
        label: The object whose masks are in `strip`; 0 for none.
    """

    changed = Signal()

    def __init__(self, session: SessionPort) -> None:
        self.session = session
        self.axis: int | None = None
        self.z_range: tuple[int, int] | None = None
        self.settings = PropagationSettings()
        self.label = 0
        self._run: _Run | None = None
        self._shape: tuple[int, ...] | None = None
        session.controller.target_changed.connect(self._update_axis)
        session.image_changed.connect(self._image_changed)
        self._update_axis()

    def close(self) -> None:
        """Disconnects from the session."""
        self.session.controller.target_changed.disconnect(self._update_axis)
        self.session.image_changed.disconnect(self._image_changed)

    @property
    def axes(self) -> list[int]:
        """The axes that have a slider, the last one first since it is the most likely choice."""
        target = self.session.controller.target
        if target is None:
            return []
        plane = target.plane
        return [axis for axis in reversed(range(len(plane.shape))) if axis not in plane.axes and plane.shape[axis] > 1]

    @property
    def slicing(self) -> SliceAxis | None:
        """The slices along `axis`; None if there is no such axis."""
        target = self.session.controller.target
        return None if target is None or self.axis not in self.axes else SliceAxis(target.plane, self.axis)

    @property
    def strip(self) -> SliceMasks:
        """The propagated masks of object `label`, by slice, for the panel's strip of bars; empty if there are none."""
        return dict(self._run.masks.get(self.label, {})) if self._is_run_here() else {}

    @property
    def labels(self) -> list[int]:
        """The labels of the propagated objects."""
        return sorted(self._run.masks) if self._is_run_here() else []

    def set_axis(self, axis: int) -> None:
        """Chooses the axis to propagate along."""
        if axis != self.axis:
            self.axis, self.z_range = axis, None
            self.changed.emit()

    def show(self, label: int) -> None:
        """Chooses the object whose masks are in `strip`."""
        self.label = label
        self.changed.emit()

    def go_to(self, z: int) -> None:
        """Brings a slice into view."""
        slicing, dims = self.slicing, self.session.viewer.dims
        if slicing is not None:
            world = self.session.frame.to_world(slicing.index(z))
            dims.set_point(self.axis + dims.ndim - len(world), world[self.axis])

    def propagate_current(self) -> None:
        """Propagates the current mask, which is committed first, or else the object with the selected label."""
        if self._is_ready():
            self.session.controller.after_prediction(self._propagate_predicted)

    def _propagate_predicted(self) -> None:
        controller = self.session.controller
        if controller.proposal is not None:
            self.session.commit()
            if controller.proposal is not None:
                return  # it was not committed; the status line shows the reason
        elif controller.prompts_here:
            controller.show_problem('No mask yet; try again when it is shown.')
            return
        label = 0 if self.session.objects is None else int(self.session.objects.selected_label)
        known = self._masks_here({label})
        if known:
            self._propagate(known, f'propagate object {label}')
        else:
            controller.show_problem('No object to propagate: click on one, or select the label of one in this slice.')

    def propagate_all(self) -> None:
        """Propagates all objects of the slice in view, in one run."""
        if not self._is_ready():
            return
        known = self._masks_here()
        if known:
            self._propagate(known, f'propagate {counted(len(known), "object")}')
        else:
            self.session.controller.show_problem('There is no object in this slice; commit one first.')

    def propagate_again(self) -> None:
        """Propagates the objects of the last run again from the slices that were corrected by hand."""
        if not self._is_ready():
            return
        run, controller = self._run, self.session.controller
        if not self._is_run_here():
            controller.show_problem(_NOT_CORRECTED)
            return

        def corrected(known: dict[int, dict[int, BoxMask]]) -> None:
            if run is not self._run or not self._is_run_here():
                controller.show_problem('Nothing was propagated: another stack was chosen.')
            elif not known:
                controller.show_problem(_NOT_CORRECTED)
            else:
                self._propagate(known, f'propagate {counted(len(known), "corrected object")}')

        controller.run('Finding corrected slices', lambda progress: _corrected(run, progress), corrected)

    def automatic(self, settings: StackSettings, as_tracks: bool = False) -> None:
        """Links the regions of all slices to objects; with `as_tracks`, also adds a layer of tracks."""
        if not self._is_ready():
            return
        session, slicing = self.session, self.slicing
        if as_tracks and self.axis != 0:
            session.controller.show_problem(
                'Tracks follow the first axis of the image; choose it in "Along", or make time the first axis.'
            )
            return
        layer, targets, keep = session.ensure_objects(), self._targets(), session.keep_existing
        frame = session.frame
        kind, one = ('tracks', 'track') if as_tracks else ('3D objects', '3D object')

        def work(progress: ProgressCallback) -> tuple[list[ObjectWrite], TrackTable | None]:
            found = [
                self._objects_in(target, settings, part_of(progress, number, len(targets)))
                for number, target in enumerate(targets.values())
            ]
            return _linked(found, list(targets), slicing, settings.links, as_tracks)

        def done(result: tuple[list[ObjectWrite], TrackTable | None]) -> None:
            writes, table = result
            # Labels are chosen only now, since objects may have been committed in the meantime.
            writes = renumbered(writes, session.next_label(layer) - 1)
            writes = limited_to_free(writes, layer.data) if keep else writes
            if not writes:
                session.controller.show_problem('No object was found; change the level or the minimum size.')
                return
            name = f'find {counted(len(writes), one)}'
            actions = [session.write_action(name, writes, layer)]
            if table is not None:
                tracks = self._tracks(table, min(targets), slicing, frame)
                actions.append(AddLayers(name, session.viewer, [tracks]))
            session.history.do(ActionGroup(name, actions))
            session.controller.show_info(f'Found {counted(len(writes), one)}. {TO_UNDO}')
            self.changed.emit()

        session.controller.run(f'Finding {kind}', work, done)

    def _masks_here(self, wanted: Iterable[int] | None = None) -> KnownMasks:
        """The masks of the objects in the slice in view; `wanted` limits the labels."""
        layer, slicing = self.session.objects, self.slicing
        masks = {} if layer is None else masks_by_label(slicing.labels(layer.data, slicing.current), wanted)
        return {label: {slicing.current: mask} for label, mask in masks.items()}

    def _is_run_here(self) -> bool:
        """True if the last run was along the current slices and wrote into the current layer."""
        run, slicing = self._run, self.slicing
        if run is None or slicing is None or run.layer is not self.session.objects:
            return False
        return (run.slicing.axis, run.slicing.index(0)) == (slicing.axis, slicing.index(0))

    def _is_ready(self) -> bool:
        """True if there are slices to work on; otherwise shows the reason."""
        controller = self.session.controller
        if controller.target is None:
            controller.show_no_target()
        elif self.slicing is None:
            controller.show_problem(_NO_SLIDER)
        return self.slicing is not None

    def _range(self) -> tuple[int, int]:
        n_slices = self.slicing.n_slices
        first, last = self.z_range or (0, n_slices)
        return max(first, 0), min(last, n_slices)

    def _targets(self) -> dict[int, Target]:
        return {z: self.session.target_at(self.slicing.index(z)) for z in range(*self._range())}

    def _propagate(self, known: KnownMasks, name: str) -> None:
        session, slicing, z_range, settings = self.session, self.slicing, self._range(), self.settings
        before = self._run.masks if self._is_run_here() else {}
        layer, targets, keep = session.ensure_objects(), self._targets(), session.keep_existing
        known = {label: {z: mask for z, mask in slices.items() if z in targets} for label, slices in known.items()}
        if not all(any(mask.area_px for mask in slices.values()) for slices in known.values()):
            session.controller.show_problem(
                f'Slice {slicing.current} is not among slices {z_range[0]} to {z_range[1] - 1}; widen the range.'
            )
            return

        def work(progress: ProgressCallback) -> tuple[dict[int, SliceMasks], list[ObjectWrite]]:
            done = 0.0

            def report(fraction: float, text: str) -> None:
                nonlocal done
                done = fraction
                progress(fraction, text)

            def plane(z: int) -> EmbeddedPlane:
                # The fraction does not change: the number of slices to analyse is not known.
                return session.controller.planes.get_or_embed(targets[z], lambda _fraction, text: progress(done, text))

            all_known = with_corrections(known, before, slicing, layer.data, targets)
            found = propagate(plane, lambda z: targets[z].read(), all_known, z_range, settings, report)
            mark_ended(found, before, targets)
            return object_writes(found, slicing, layer.data, keep)

        def finished(result: tuple[dict[int, SliceMasks], list[ObjectWrite]]) -> None:
            found, writes = result
            gone = [
                label
                for label, slices in known.items()
                if not any((slicing.labels(layer.data, z) == label).any() for z in slices)
            ]
            if gone:
                raise UnSAMError(f'Nothing was propagated: object {gone[0]} was removed.')
            session.write_objects(name, limited_to_free(writes, layer.data, found) if keep else writes, layer)
            self._run = _Run(layer, slicing, found)
            self.label = self.label if self.label in found else next(iter(found))
            slices = sum(one.mask.area_px > 0 for one in found[self.label].values())
            session.controller.show_info(
                f'Object {self.label} is in {counted(slices, "slice")}; check slices with low bars. {TO_UNDO}'
                if len(found) == 1
                else f'Propagated {len(found)} objects. {TO_UNDO}'
            )
            self.changed.emit()

        session.controller.run(name[:1].upper() + name[1:], work, finished)

    def _objects_in(self, target: Target, settings: StackSettings, progress: ProgressCallback) -> ObjectClass:
        """The objects of one slice."""
        tree = self.session.controller.planes.get_or_embed(target, progress).hierarchy
        if tree is None:
            raise UnSAMError(_TOO_LARGE)
        level = settings.level if settings.regions is Regions.LEVEL else None
        return CandidateTable(tree, target.read(), progress).objects(level, settings.limits)

    def _tracks(self, table: TrackTable, first: int, slicing: SliceAxis, frame: Frame) -> Tracks:
        data = np.zeros((len(table.data), 1 + len(slicing.plane.shape)))
        data[:, 1:] = slicing.plane.index
        data[:, [0, 1 + slicing.axis, *(1 + axis for axis in slicing.plane.axes)]] = table.data
        data[:, 1 + slicing.axis] += first
        return Tracks(data, graph=table.graph, name=TRACKS_NAME, **following_arguments(frame))

    def _image_changed(self) -> None:
        self._shape = None
        self._update_axis()

    def _update_axis(self) -> None:
        target = self.session.controller.target
        shape = None if target is None else target.plane.shape
        axes = self.axes
        if shape == self._shape and (self.axis in axes or not axes):
            return
        self._shape = shape
        if self.axis not in axes:
            self.axis, self.z_range = (axes[0] if axes else None), None
        if self._run is not None and self._run.layer is not self.session.objects:
            self._run, self.label = None, 0
        self.changed.emit()


def _linked(
    found: Sequence[ObjectClass], zs: Sequence[int], slicing: SliceAxis, settings: LinkSettings, as_tracks: bool
) -> tuple[list[ObjectWrite], TrackTable | None]:
    """Links the objects of slices; returns the objects to write, labelled from 1, and the tracks if wanted."""
    maps = [objects.labels.astype(np.int32) for objects in found]
    table = track(maps, settings) if as_tracks else None
    objects = link(maps, settings) if table is None else list(table.regions.values())
    parents = {} if table is None else {child: mothers[0] for child, mothers in table.graph.items()}
    masks, writes = [masks_by_label(labels) for labels in maps], []
    for label, regions in enumerate(objects, start=1):
        levels = [found[part.z].features['level'].iloc[part.region - 1] for part in regions]
        row = {'level': float(np.mean(levels)), 'score': float(np.mean([part.iou for part in regions]))}
        if label in parents:
            row['parent_id'] = parents[label]
        writes.append(slicing.to_write(label, {zs[part.z]: masks[part.z][part.region] for part in regions}, row))
    return writes, table


def _corrected(run: _Run, progress: ProgressCallback) -> dict[int, dict[int, BoxMask]]:
    """The known masks of the corrected objects of a run: masks that were changed since, and unchanged known masks."""
    now: dict[int, dict[int, BoxMask]] = {}
    zs = sorted({z for masks in run.masks.values() for z in masks})
    for done, z in enumerate(zs):
        progress(done / len(zs), f'slice {z}')
        now[z] = masks_by_label(run.slicing.labels(run.layer.data, z), run.masks)
    known = {}
    for label, masks in run.masks.items():
        changed = {
            z: now[z].get(label, EMPTY) for z, one in masks.items() if not one.mask.equals(now[z].get(label, EMPTY))
        }
        # If all masks were changed, the object was undone or removed rather than corrected.
        kept = [z for z, one in masks.items() if one.mask.area_px and z not in changed]
        unchanged = {z: one.mask for z, one in masks.items() if one.state is SliceState.CORRECTED and z not in changed}
        if changed and kept and any(mask.area_px for mask in (unchanged | changed).values()):
            known[label] = unchanged | changed
    return known
