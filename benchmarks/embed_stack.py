"""Embeds a stack as the dock does, cancelled at half and resumed: ``python -m benchmarks.embed_stack STACK.tif``.

Planes that are too small are extended by reflection. The benchmark counts the planes that each run embeds, compares the
stored embeddings with those of a run without interruption, and measures the time of clicks on the first plane while all
planes are embedded.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tifffile

from napari_unsam.controller import SegmentationController
from napari_unsam.engine.embeddings import EmbeddingStore, StackReport
from napari_unsam.engine.inference import InferenceSettings
from napari_unsam.engine.planes import PlaneEmbedder
from napari_unsam.model.plane import Plane
from napari_unsam.model.targets import Target
from unsam_mm.prompting import ENGINES

CLICK_EVERY_S = 0.5


class StoppedAtHalf(Exception):
    """Raised in place of the user's cancellation."""


def main() -> None:
    """Prints one line for each run, whether the results are equal, and the times of clicks."""
    sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser(description='Embed a stack, cancel at half, resume.')
    parser.add_argument('stack', type=Path, help='TIFF file of (Z, H, W) numbers')
    parser.add_argument('--planes', type=int, default=20)
    parser.add_argument('--side', type=int, default=1024, help='side of a plane in pixels')
    parser.add_argument('--engine', choices=ENGINES, default='model')
    options = parser.parse_args()
    planes = square_planes(tifffile.imread(options.stack), options.planes, options.side)
    with tempfile.TemporaryDirectory() as folder:
        resumed, at_once, clicked = (Stack(planes, options.engine, Path(folder, name)) for name in ('r', 'o', 'c'))
        resumed.run('cancelled at half', stop_at=0.5)
        report = resumed.run('resumed')
        resumed.run('once more')
        whole = at_once.run('a run without interruption')
        mb = resumed.store.size_bytes / 1e6
        print(f'{mb:.1f} MB on disk, {mb / len(planes):.2f} MB a plane')
        same = whole.keys == report.keys and all(
            same_arrays(resumed.store.load(key), at_once.store.load(key)) for key in report.keys
        )
        print(f'results identical: {same}')
        clicked.click_meanwhile()
    if not same or report.analysed != len(planes) - len(planes) // 2:
        raise SystemExit(1)


class Stack:
    """Planes, and an embedder that stores their embeddings in a folder."""

    def __init__(self, planes: np.ndarray, engine: str, folder: Path) -> None:
        self._embedder = PlaneEmbedder(InferenceSettings(engine, store=folder))
        self._embedder.load()
        self.store = EmbeddingStore(folder / 'planes', 0)  # to read from
        self._targets = [
            Target('stack', Plane(planes.shape, (1, 2), (z, 0, 0)), 'stack', lambda plane=plane: [plane])
            for z, plane in enumerate(planes)
        ]

    def run(self, name: str, stop_at: float | None = None) -> StackReport | None:
        """Embeds all planes, up to the fraction `stop_at`; returns the report of the run, or None if it was stopped."""
        kept, report, started_s = [], None, time.perf_counter()

        def progress(fraction: float, text: str) -> None:
            if stop_at is not None and fraction > stop_at:
                raise StoppedAtHalf

        try:
            report = self._embedder.stack(self._targets, progress, kept.append)
        except StoppedAtHalf:
            name = f'{name} (stopped)'
        made = len(kept) if report is None else report.analysed
        print(f'{name}: {made} planes made in {time.perf_counter() - started_s:.1f} s')
        return report

    def click_meanwhile(self) -> None:
        """Prints the times of clicks on the first plane, while nothing else runs and while all planes are embedded."""
        controller, answered, done = SegmentationController(self._embedder), threading.Event(), threading.Event()
        controller.proposal_changed.connect(lambda: controller.proposal is not None and answered.set())
        random = np.random.default_rng(0)

        def click() -> float:
            controller.clear_prompts()
            answered.clear()
            started_s = time.perf_counter()
            controller.add_prompt((0, *random.integers(0, self._targets[0].plane.size_hw)))
            answered.wait()
            time.sleep(CLICK_EVERY_S)
            return time.perf_counter() - started_s - CLICK_EVERY_S

        controller.set_target(self._targets[0])
        click()  # embeds the plane
        alone_s = [click() for _ in range(20)]
        controller.run(
            'stack',
            lambda progress: controller.planes.embedder.stack(self._targets, progress, lambda number: None),
            lambda report: done.set(),
            lambda reason: done.set(),
        )
        meanwhile_s = []
        while not done.is_set():
            meanwhile_s.append(click())
        for name, times_s in (('alone', alone_s), ('while planes are made', meanwhile_s)):
            median, most = np.quantile(times_s, (0.5, 0.95))
            print(f'clicks {name}: {len(times_s)}, median {median:.2f} s, 95 percent {most:.2f} s')
        controller.close(10)


def square_planes(stack: np.ndarray, count: int, side_px: int) -> np.ndarray:
    """The stack, extended by reflection or cropped to (count, side_px, side_px)."""
    lacking = [(0, max(wanted - have, 0)) for wanted, have in zip((count, side_px, side_px), stack.shape, strict=True)]
    return np.pad(stack, lacking, mode='reflect')[:count, :side_px, :side_px]


def same_arrays(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    """True if two embeddings consist of the same arrays with equal values."""
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


if __name__ == '__main__':
    main()
