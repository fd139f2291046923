"""Command line: ``python -m unsam_mm {convert,demo,evaluate,generate,merge,weights}``."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings

from unsam_mm import __version__
from unsam_mm.cli import convert, demo, evaluate, generate, merge, weights
from unsam_mm.cli.streams import escape_unencodable, exit_status

_COMMANDS = (convert, demo, evaluate, generate, merge, weights)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog='python -m unsam_mm', description='Every object at every scale, without labels.'
    )
    parser.add_argument('--version', action='version', version=__version__)
    subparsers = parser.add_subparsers(dest='command', required=True)
    for command in _COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit status. Errors are printed as one line on stderr."""
    escape_unencodable()
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    logging.getLogger('unsam_mm').setLevel(logging.INFO)
    return exit_status(lambda: _run(options), 'run the same command again to continue')


def _run(options: argparse.Namespace) -> int:
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return options.run(options)


def _show_warning(message: Warning | str, *where: object, **more: object) -> None:
    print(f'warning: {message}', file=sys.stderr)


if __name__ == '__main__':
    sys.exit(main())
