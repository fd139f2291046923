"""``generate --dask local:2`` against ``local:1``, one torch thread each: how much faster, with and without the start.

    python -m benchmarks.scale_workers IMAGES [--images 24] [--rounds 1]

The masks are written to a temporary folder. The start (processes, imports, model) ends when two images for each worker
are finished; from then on, the speed is that in a large folder. Each round also prints, before and after, the speed-up
of as many processes that only count: if it is far from the number of workers, other programs use the cores, and the
round is not reliable.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.images import list_images

_COUNTING_S = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', type=Path)
    parser.add_argument('--images', type=int, default=24, dest='count', help='number of images (default: %(default)s)')
    parser.add_argument('--workers', type=int, default=2, help='to compare with one (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=1, help='each runs both alternately (default: %(default)s)')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, 'images')
        images.mkdir()
        for path in list_images(options.images)[: options.count]:
            shutil.copy(path, images)
        for _ in range(options.rounds):
            before = counting_ratio(options.workers)
            whole_s, pace_s = zip(*(measure(images, n) for n in (1, options.workers)), strict=True)
            print(
                f'{options.count} images, {options.workers} workers against 1: '
                f'{whole_s[0] / whole_s[1]:.2f} x as fast with the start ({whole_s[0]:.1f} s, {whole_s[1]:.1f} s), '
                f'{pace_s[0] / pace_s[1]:.2f} x without ({pace_s[0]:.2f} s, {pace_s[1]:.2f} s an image); '
                f'counting {before:.2f} x before, {counting_ratio(options.workers):.2f} x after',
                flush=True,
            )


def measure(images: Path, workers: int) -> tuple[float, float]:
    """Seconds of the whole command, and seconds per image after all workers have started."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, '-m', 'unsam_mm', 'generate', str(images), out, '--dask', f'local:{workers}']
        start_s = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'})
        whole_s = time.perf_counter() - start_s
        store = PseudoMaskStore(out)
        finished_s = sorted(store.path_of(name).stat().st_mtime for name in store.names())
        # If one worker starts long before the others, it may finish the first `workers` images; two each are safer.
        started = 2 * workers
        return whole_s, (finished_s[-1] - finished_s[started - 1]) / (len(finished_s) - started)


def counting_ratio(processes: int) -> float:
    """The sum of the counts of several processes that run at once, divided by the count of one process alone."""
    with multiprocessing.get_context('spawn').Pool(processes) as pool:
        pool.map(count, [0.0] * processes)  # all have started
        return sum(pool.map(count, [_COUNTING_S] * processes, chunksize=1)) / pool.apply(count, [_COUNTING_S])


def count(seconds: float) -> int:
    """Number of iterations of a loop in this time."""
    counted, end_s = 0, time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        counted += 1
    return counted


if __name__ == '__main__':
    main()
