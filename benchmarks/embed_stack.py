"""A stack whose embedding is cancelled at half and resumed: ``python -m benchmarks.embed_stack STACK.tif``.

Planes that are narrower than asked for are continued by their mirror image, so that every pixel is a real one. Counts
how many planes each run made, and compares what the store holds in the end with a run that nobody stopped.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tifffile

from napari_unsam.state.embeddings import EmbeddingStore, StackReport, embed_stack
from unsam_mm.prompting import ENGINES, UnSAMPredictor

PLENTY_BYTES = 10**10


class StoppedAtHalf(Exception):
    """The user has pressed Cancel."""


def main() -> None:
    """Prints one line for each run, then whether the results are the same."""
    parser = argparse.ArgumentParser(description='Embed a stack, cancel at half, resume.')
    parser.add_argument('stack', type=Path, help='TIFF file of (Z, H, W) numbers')
    parser.add_argument('--planes', type=int, default=20)
    parser.add_argument('--side', type=int, default=1024, help='of a plane, in pixels')
    parser.add_argument('--engine', choices=ENGINES, default='model')
    options = parser.parse_args()
    planes = square_planes(tifffile.imread(options.stack), options.planes, options.side)
    predictor = UnSAMPredictor(options.engine)
    predictor.set_image(planes[0])  # loads the networks
    with tempfile.TemporaryDirectory() as folder:
        resumed = EmbeddingStore(Path(folder, 'resumed'), PLENTY_BYTES)
        at_once = EmbeddingStore(Path(folder, 'at once'), PLENTY_BYTES)
        run = Run(predictor, planes, options.engine)
        run('cancelled at half', resumed, stop_at=0.5)
        report = run('resumed', resumed)
        run('once more', resumed)
        whole = run('a run that nobody stopped', at_once)
        say(f'{resumed.size_bytes / 1e6:.1f} MB on disk, {resumed.size_bytes / 1e6 / len(planes):.2f} MB a plane')
        same = whole.keys == report.keys and all(
            same_arrays(resumed.load(key), at_once.load(key)) for key in report.keys
        )
    say(f'results identical: {same}')
    if not same or (report.made, report.found) != (len(planes) - len(planes) // 2, len(planes) // 2):
        raise SystemExit(1)


class Run:
    """Embeds the planes with one engine, and says how long it took."""

    def __init__(self, predictor: UnSAMPredictor, planes: np.ndarray, settings: str) -> None:
        self._predictor, self._planes, self._settings = predictor, planes, settings

    def __call__(self, name: str, store: EmbeddingStore, stop_at: float | None = None) -> StackReport | None:
        """The report of the run; None if it was stopped."""
        made, started_s = [], time.perf_counter()

        def embed(pixels: np.ndarray, progress: object) -> Mapping[str, np.ndarray]:
            self._predictor.set_image(pixels)
            made.append(pixels)
            return self._predictor.engine.embedding()

        def progress(fraction: float, text: str) -> None:
            if stop_at is not None and fraction >= stop_at:
                raise StoppedAtHalf

        report = None
        try:
            reads = [lambda plane=plane: plane for plane in self._planes]
            report = embed_stack(reads, embed, self._settings, store, progress)
        except StoppedAtHalf:
            name = f'{name} (stopped)'
        say(f'{name}: {len(made)} planes made in {time.perf_counter() - started_s:.1f} s')
        return report


def square_planes(stack: np.ndarray, count: int, side_px: int) -> np.ndarray:
    """(count, side, side): the stack repeated, mirrored and cut as needed."""
    lacking = [(0, max(wanted - have, 0)) for wanted, have in zip((count, side_px, side_px), stack.shape, strict=True)]
    return np.pad(stack, lacking, mode='reflect')[:count, :side_px, :side_px]


def same_arrays(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> bool:
    """Whether two embeddings are equal to the bit."""
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def say(text: str) -> None:
    """Prints a line now."""
    sys.stdout.write(f'{text}\n')
    sys.stdout.flush()


if __name__ == '__main__':
    main()
