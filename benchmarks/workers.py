"""A folder of images, processed by two processes against one; each process has one thread."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.inputs import Inputs
from benchmarks.timing import Comparison, Cost, Row, in_turns, one_thread
from unsam_mm import PseudoMaskGenerator
from unsam_mm.folders.run import FolderJob
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.generator import preset_settings
from unsam_mm.images import read_image
from unsam_mm.processes import available_cores


def run(inputs: Inputs, n_images: int = 10, crop_px: int = 320, vit_px: int | None = None, repetitions: int = 1) -> Row:
    """Finds the masks of crops of a few photographs.

    Args:
        inputs: The photographs.
        n_images: Number of crops.
        crop_px: Side of the crops.
        vit_px: Size of the ViT's input; None: as in the preset.
        repetitions: Runs of each side.
    """
    settings = preset_settings('default', **({'long_side_px': vit_px} if vit_px else {}))
    with tempfile.TemporaryDirectory() as folder, one_thread():
        images = _write_crops(Path(folder), inputs, n_images, crop_px)
        paces: dict[int, list[float]] = {1: [], 2: []}

        def masks_with(workers: int) -> dict[str, list[bytes]]:
            with tempfile.TemporaryDirectory() as out:
                moments_s: list[float] = []
                job = FolderJob(images, Path(out), settings, workers=workers)
                job.run(lambda report: moments_s.append(time.perf_counter()))
                # The first call is before the first image; the first two images of each process count as its start.
                started = min(2 * workers, n_images - 1)
                paces[workers].append((moments_s[-1] - moments_s[started]) / (n_images - started))
                store = PseudoMaskStore(out)
                return {name: [rle['counts'] for rle in store.read(name).rles] for name in store.names()}

        PseudoMaskGenerator(settings)(read_image(images / '000.png'))  # compiles
        costs, masks = in_turns({1: lambda: masks_with(1), 2: lambda: masks_with(2)}, repetitions)
    same = sum(masks[1][name] == masks[2].get(name) for name in masks[1])
    one, two = (float(np.median(paces[workers])) for workers in (1, 2))
    cores = available_cores()
    note = (
        f'after both processes have started: {one / two:.2f} times the images in the same time '
        f'({one:.2f} and {two:.2f} s an image), on {cores} cores'
    )
    return Row(
        'workers',
        [
            Comparison(
                'one worker',
                Cost(costs[2].cpu_s, costs[2].wall_s),
                costs[1],
                f'{n_images} images, start included; {same} files equal',
                same == n_images == len(masks[1]),
            )
        ],
        [note],
        {'pace_s': {'one worker': one, 'two workers': two}, 'cores': cores},
    )


def _write_crops(folder: Path, inputs: Inputs, n_images: int, crop_px: int) -> Path:
    """Writes crops of each photograph in turn, each shifted by some pixels, so that no two crops are equal."""
    pictures = [read_image(path) for path in inputs.paths()]
    for number, picture in zip(range(n_images), itertools.cycle(pictures)):
        y, x = (7 * number % max(side - crop_px, 1) for side in picture.shape[:2])
        Image.fromarray(picture[y : y + crop_px, x : x + crop_px]).save(folder / f'{number:03}.png')
    return folder
