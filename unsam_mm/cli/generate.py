"""``generate``: pseudo-masks for a folder of images."""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

from tqdm import tqdm

from unsam_mm.cli import positive_int
from unsam_mm.errors import one_line
from unsam_mm.folders.run import FolderJob, FolderReport
from unsam_mm.generator import PRESETS, preset_settings


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        'generate',
        help='find pseudo-masks in a folder of images; can be interrupted and resumed',
        epilog='Exit status: 0 if any image is done, now or before, even if others failed (OUT/quarantine says why); '
        '1 if none is, or the run could not continue; 2 for invalid options; 130 after Ctrl-C.',
    )
    parser.add_argument('images', type=Path, help='folder of images, searched at any depth, or one image')
    parser.add_argument('out', type=Path, help='folder for the masks: one JSON file an image, as in SA-1B')
    parser.add_argument(
        '--preset', default='default', choices=sorted(PRESETS), help='which method (default: %(default)s)'
    )
    parser.add_argument(
        '--max-masks', type=positive_int, default=1000, metavar='N', help='maximum per image (default: %(default)s)'
    )
    processes = parser.add_mutually_exclusive_group()
    processes.add_argument(
        '--workers', type=positive_int, default=1, metavar='N', help='processes, about 1 GB each (default: %(default)s)'
    )
    processes.add_argument(
        '--dask',
        metavar='ADDRESS|local:N',
        help='run on the Dask cluster whose scheduler has this address, or on N Dask workers on this machine',
    )
    parser.add_argument('--device', default='cpu', help='torch device, such as cuda:0 or mps (default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='remove the masks in OUT, and process all images')
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Processes the images. Exit status 0 if any image is done, now or in an earlier run; 1 if none is."""
    job = FolderJob(
        images=options.images,
        out=options.out,
        settings=preset_settings(options.preset),
        max_masks=options.max_masks,
        device=options.device,
        workers=options.workers,
        overwrite=options.overwrite,
        dask=options.dask,
    )
    times_s: list[float] = []
    with tqdm(unit='image', disable=None) as bar:

        def show(report: FolderReport) -> None:
            if not times_s:
                bar.reset(total=report.found)
            times_s.append(time.perf_counter())
            bar.n = report.skipped + report.done + len(report.failed)
            bar.set_postfix(failed=len(report.failed), refresh=True)

        report = job.run(show)
    _print_summary(report, times_s, options)
    return 0 if report.done + report.skipped else 1


def _print_summary(report: FolderReport, times_s: list[float], options: argparse.Namespace) -> None:
    """Prints errors, the number of images, and how long they took.

    Args:
        report: Result of the run.
        times_s: Clock times: when the first image was started, and when each image was finished, by any process.
        options: The command line.
    """
    for message in report.failed.values():
        print(f'skipped: {one_line(message)}', file=sys.stderr)
    print(
        f'{report.done} images done now, {report.skipped} before, {len(report.failed)} failed, '
        f'of {report.found}; in {one_line(options.out)}'
    )
    if report.done:
        where = f'Dask at {options.dask}' if options.dask is not None else f'{options.workers} worker(s)'
        steps_s = [later - earlier for earlier, later in itertools.pairwise(times_s)]
        median_s, mean_s = statistics.median(steps_s), statistics.mean(steps_s)
        print(f'median {median_s:.2f} s, mean {mean_s:.2f} s an image, with {where} on {options.device}')
