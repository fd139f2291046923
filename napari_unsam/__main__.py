"""Command line: ``python -m napari_unsam batch IMAGES OUT``; needs no screen."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path

from napari_unsam.folders.automatic import ENGINES, SIDES, AutomaticSettings
from napari_unsam.folders.batch import FAILED, BatchJob, BatchReport
from napari_unsam.io.formats import FORMATS
from napari_unsam.model.text import counted
from unsam_mm.cli.streams import escape_unencodable, exit_status
from unsam_mm.errors import one_line


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog='python -m napari_unsam', description='Objects and measurements without a screen.'
    )
    commands = parser.add_subparsers(dest='command', required=True)
    batch = commands.add_parser(
        'batch',
        help='find and measure the objects of all images of a folder; can be interrupted and resumed',
        epilog='Exit status: 0 if any image is done, now or before, even if others failed (OUT/failed.txt says why); '
        '1 if none is, or the run could not go on; 2 for invalid options; 130 after Ctrl-C.',
    )
    settings = AutomaticSettings()
    batch.add_argument('images', type=Path, help='folder, searched at any depth, one image, or a .txt file of paths')
    batch.add_argument('out', type=Path, help='folder for the results; may be that of the images')
    batch.add_argument(
        '--engine', default=settings.engine, choices=ENGINES, help='engine that finds objects (default: %(default)s)'
    )
    batch.add_argument(
        '--level',
        type=_level,
        metavar='auto|0..1',
        help='for the engine tree: level of the regions in [0, 1], 0 is the finest; auto: the best regions of any size '
        '(default: auto)',
    )
    batch.add_argument(
        '--granularity',
        type=_level,
        metavar='auto|0..1',
        help='for the engine model: the largest masks up to this granularity in [0, 1]; 1 is the whole image, and 0.25 '
        'less is a tenth of the area; auto: the best masks of any size (default: auto)',
    )
    batch.add_argument(
        '--side',
        default=settings.side,
        choices=SIDES,
        help='brightness of objects relative to their surroundings (default: %(default)s)',
    )
    batch.add_argument(
        '--min-area',
        dest='min_area_px',
        type=partial(_integer, least=1),
        default=settings.min_area_px,
        metavar='PX',
        help='smaller objects are left out (default: %(default)s)',
    )
    batch.add_argument(
        '--channel',
        type=partial(_integer, least=0),
        default=settings.channel,
        metavar='N',
        help='channel to use, from 0 (default: %(default)s)',
    )
    batch.add_argument(
        '--link', action='store_true', help='link overlapping objects in neighbouring planes of a stack or movie'
    )
    batch.add_argument(
        '--format',
        nargs='+',
        default=['tiff', 'csv'],
        choices=sorted(FORMATS),
        help='what to write (default: tiff csv)',
    )
    batch.add_argument(
        '--workers',
        type=partial(_integer, least=1),
        default=1,
        metavar='N',
        help='processes, about 1 GB each (default: %(default)s)',
    )
    batch.add_argument('--resume', action='store_true', help='resume with the results in OUT')
    batch.add_argument('--device', default='auto', help='torch device, such as cuda:0 (default: CUDA if there is one)')
    batch.set_defaults(run=run_batch)
    return parser


def run_batch(options: argparse.Namespace) -> int:
    """Runs the command `batch`; returns 0 if any image is done, now or before, else 1."""
    from tqdm import tqdm

    job = BatchJob(
        images=options.images,
        out=options.out,
        settings=AutomaticSettings(**{one.name: getattr(options, one.name) for one in fields(AutomaticSettings)}),
        formats=tuple(dict.fromkeys(options.format)),
        workers=options.workers,
        resume=options.resume,
        device=options.device,
    )
    with tqdm(unit='image', disable=None) as bar:

        def show(report: BatchReport) -> None:
            bar.total = report.found
            bar.n = report.skipped + report.done + len(report.failed)
            bar.set_postfix(objects=report.n_objects, failed=len(report.failed), refresh=True)

        report = job.run(show)
    for reason in report.failed.values():
        sys.stderr.write(f'skipped: {one_line(reason)}\n')
    sys.stdout.write(
        f'{counted(report.done, "image")} done now with {counted(report.n_objects, "object")}, {report.skipped} before, '
        f'{len(report.failed)} failed, of {report.found}; in {one_line(options.out)}\n'
    )
    if report.failed:
        sys.stderr.write(
            f'the failed ones are listed in {one_line(options.out / FAILED)}; correct them and run again with --resume\n'
        )
    return 0 if report.done + report.skipped else 1


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit status. Expected errors are one line on stderr."""
    escape_unencodable()
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    return exit_status(lambda: options.run(options), 'run the same command with --resume to continue')


def _level(text: str) -> float | None:
    if text == 'auto':
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} is neither auto nor a number from 0 to 1')
    return value


def _integer(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from {least}')
    return value


if __name__ == '__main__':
    sys.exit(main())
