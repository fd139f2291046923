"""Precomputes all planes of a stack or movie in the background."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from threading import Lock

from napari_unsam.controller import SegmentationController
from napari_unsam.engine.embeddings import StackReport
from napari_unsam.engine.inference import ProgressCallback
from napari_unsam.model.plane import parallel_planes
from napari_unsam.model.targets import Target
from unsam_mm.errors import UnSAMError

_CHANGED = 'The image has changed; precompute its slices again.'
_STORE_TOO_SMALL = (
    'Only {stored} of {wanted} slices fit on disk; increase the size of the folder in Preferences > UnSAM, '
    'then reopen the dock.'
)


class SlicePrecomputer:
    """Analyses the planes of the target image in advance, stores them on disk, and loads them when they come into view.

    Args:
        controller: The controller.
        target_at: Returns the plane of the image at a position, parallel to the one in view.
    """

    def __init__(self, controller: SegmentationController, target_at: Callable[[Sequence[int]], Target]) -> None:
        self._controller, self._target_at = controller, target_at
        self._stored: dict[Target, int] = {}  # the version of the pixels that each plane was computed from
        self._lock = Lock()  # for `_stored`, to which the inference thread adds planes
        controller.target_changed.connect(self._load)

    @property
    def is_stack(self) -> bool:
        """True if the image has more planes than the one in view."""
        target = self._controller.target
        if target is None:
            return False
        plane = target.plane
        return any(length > 1 for axis, length in enumerate(plane.shape) if axis not in plane.axes)

    def precompute(self) -> None:
        """Analyses all planes parallel to the one in view, the nearest first; planes on disk are skipped."""
        controller = self._controller
        if controller.target is None:
            controller.show_no_target()
            return
        source = controller.target.source
        targets = [self._target_at(plane.index) for plane in parallel_planes(controller.target.plane)]
        version = controller.planes.version(source)

        def work(progress: ProgressCallback) -> StackReport:
            def on_progress(fraction: float, text: str) -> None:
                if controller.planes.version(source) != version:
                    raise UnSAMError(_CHANGED)
                progress(fraction, text)

            return controller.planes.embedder.stack(
                targets, on_progress, lambda number: self._mark_stored(targets[number], version)
            )

        def done(report: StackReport) -> None:
            if report.stored < len(targets):
                controller.show_problem(_STORE_TOO_SMALL.format(stored=report.stored, wanted=len(targets)))
            else:
                controller.show_info(f'All {len(targets)} slices are precomputed.')
            self._load()

        if controller.plane is None and controller.embedding is None:
            controller.embed()  # the plane in view first, kept in memory
        controller.run(f'Precomputing {len(targets)} slices', work, done)

    def close(self) -> None:
        """Disconnects from the controller."""
        self._controller.target_changed.disconnect(self._load)

    def forget(self, source: Hashable) -> None:
        """Drops the planes of a removed image."""
        with self._lock:
            for target in [target for target in self._stored if target.source == source]:
                del self._stored[target]

    def _mark_stored(self, target: Target, version: int) -> None:
        with self._lock:
            self._stored[target] = version

    def _load(self) -> None:
        """Loads the plane in view if it is on disk and no other plane is being analysed."""
        controller = self._controller
        target, embedding = controller.target, controller.embedding
        if controller.plane is None and self._is_stored(target) and (embedding is None or self._is_stored(embedding)):
            controller.embed()

    def _is_stored(self, target: Target | None) -> bool:
        with self._lock:
            version = self._stored.get(target)
        return version is not None and version == self._controller.planes.version(target.source)
