"""``bench``: ratios of speed, memory and recall against named rivals, each measured in one run."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import unsam_mm
from unsam_mm.errors import UnSAMError
from unsam_mm.files import check_result_file, write_json


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        'bench', help='measure ratios against named rivals, side by side; needs a checkout of the repository'
    )
    parser.add_argument(
        '--rows', nargs='+', metavar='ROW', help='which comparisons (default: all; see docs/benchmarks.md)'
    )
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write all figures, unrounded, to this file')
    parser.add_argument('--images', type=Path, metavar='FOLDER', help='images for the rows that take several')
    parser.add_argument(
        '--gt', type=Path, metavar='FILE', help='COCO file about these images, for the recall of "generator"'
    )
    parser.add_argument(
        '--count', type=int, default=4, metavar='N', help='how many of them are used (default: %(default)s)'
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the table; exit status 1 if two sides that must agree do not."""
    benchmarks = import_benchmarks()
    names = options.rows or benchmarks.ROWS
    if unknown := [name for name in names if name not in benchmarks.ROWS]:
        raise UnSAMError(f'no benchmark row is called {unknown[0]!r}; choose from {", ".join(benchmarks.ROWS)}')
    if options.count < 1:
        raise UnSAMError(f'--count must be at least 1, got {options.count}')
    if options.json:
        check_result_file(options.json, options.gt)
    inputs = importlib.import_module('benchmarks.inputs').Inputs(options.images, options.gt, options.count)
    inputs.paths()  # a wrong folder shows now, not after minutes
    timing = importlib.import_module('benchmarks.timing')
    rows = []
    for name in dict.fromkeys(names):
        print(f'measuring {name} ...', file=sys.stderr)
        rows.append(importlib.import_module(f'benchmarks.{name}').run(inputs))
        if options.json:
            write_json(options.json, {'machine': _machine(), 'rows': [_for_programs(row) for row in rows]})
    print(timing.format_table(rows))
    return int(any(comparison.equal is False for row in rows for comparison in row.comparisons))


def import_benchmarks() -> Any:
    """The package of the checkout that this package lies in."""
    root = Path(unsam_mm.__file__).resolve().parents[1]
    if not (root / 'benchmarks' / '__init__.py').is_file():
        raise UnSAMError(
            f'{root}: no folder "benchmarks" beside the package; benchmarks are not installed: run this command in a '
            'checkout of the repository'
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return importlib.import_module('benchmarks')


def _machine() -> dict[str, Any]:
    return {
        'system': platform.platform(),
        'processor': platform.machine(),
        'cores': os.cpu_count(),
        'load': os.getloadavg() if hasattr(os, 'getloadavg') else None,
        'python': platform.python_version(),
        'unsam_mm': unsam_mm.__version__,
    }


def _for_programs(row: Any) -> dict[str, Any]:
    """A row as JSON takes it, with the ratios."""
    described = asdict(row)
    for comparison, record in zip(row.comparisons, described['comparisons'], strict=True):
        record['ratios'] = comparison.ratios
    return described
