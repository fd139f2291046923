"""Command line: ``python -m benchmarks`` in a checkout prints the ratios of all rows as one table."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import unsam_mm
from benchmarks import ROWS
from benchmarks.inputs import Inputs
from benchmarks.timing import Row, format_table
from unsam_mm.cli.streams import escape_unencodable, exit_status
from unsam_mm.errors import UnSAMError
from unsam_mm.files import check_result_file, write_json


def main(arguments: list[str] | None = None) -> int:
    """Measures and prints the table; exit status 1 after an error, or if results differ that must be equal."""
    parser = argparse.ArgumentParser(prog='python -m benchmarks', description='Ratios against named rivals.')
    parser.add_argument(
        '--rows',
        nargs='+',
        metavar='ROW',
        default=ROWS,
        help='which comparisons (default: all; see docs/benchmarks.md)',
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write all figures, unrounded, to this file')
    parser.add_argument('--images', type=Path, metavar='FOLDER', help='images for the rows that need several')
    parser.add_argument(
        '--gt', type=Path, metavar='FILE', help='COCO file about these images, for the recall of "generator"'
    )
    parser.add_argument(
        '--count', type=int, default=4, metavar='N', help='how many of them are used (default: %(default)s)'
    )
    escape_unencodable()
    options = parser.parse_args(arguments)
    return exit_status(lambda: _run(options), 'run the same command again')


def _run(options: argparse.Namespace) -> int:
    if unknown := [name for name in options.rows if name not in ROWS]:
        raise UnSAMError(f'no benchmark row is called {unknown[0]!r}; choose from {", ".join(ROWS)}')
    if options.count < 1:
        raise UnSAMError(f'--count must be at least 1, got {options.count}')
    if options.json:
        check_result_file(options.json, options.gt)
    inputs = Inputs(options.images, options.gt, options.count)
    inputs.paths()  # so that a wrong folder is reported now, not after minutes
    rows = []
    for name in dict.fromkeys(options.rows):
        print(f'measuring {name} ...', file=sys.stderr)
        rows.append(import_module(f'benchmarks.{name}').run(inputs))
        if options.json:
            write_json(options.json, {'machine': _machine(), 'rows': [_to_json(row) for row in rows]})
    print(format_table(rows))
    return int(any(comparison.equal is False for row in rows for comparison in row.comparisons))


def _machine() -> dict[str, Any]:
    return {
        'system': platform.platform(),
        'processor': platform.machine(),
        'cores': os.cpu_count(),
        'load': os.getloadavg() if hasattr(os, 'getloadavg') else None,
        'python': platform.python_version(),
        'unsam_mm': unsam_mm.__version__,
    }


def _to_json(row: Row) -> dict[str, Any]:
    """A row as a dictionary, with the ratios."""
    described = asdict(row)
    for comparison, record in zip(row.comparisons, described['comparisons'], strict=True):
        record['ratios'] = comparison.ratios
    return described


if __name__ == '__main__':
    sys.exit(main())
