"""Command line: ``python -m unsam_mm {bench,convert,demo,evaluate,generate,merge,weights}``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings

from unsam_mm import __version__
from unsam_mm.cli import bench, convert, demo, evaluate, generate, merge, weights
from unsam_mm.cli.streams import escape_unencodable
from unsam_mm.errors import UnSAMError, explained, one_line

_COMMANDS = (bench, convert, demo, evaluate, generate, merge, weights)
_INTERRUPTED = 130  # what shells report for Ctrl-C


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
    """Runs one command; returns its exit status. Errors meant for people are one line on stderr."""
    escape_unencodable()
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format='%(message)s')
    logging.getLogger('unsam_mm').setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return options.run(options)
    except UnSAMError as error:
        print(f'error: {one_line(error)}', file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader, `head` for one, has had enough; Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f'error: {one_line(explained(error))}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('interrupted; run the same command again to go on', file=sys.stderr)
        return _INTERRUPTED


def _show_warning(message: Warning | str, *where: object, **more: object) -> None:
    print(f'warning: {message}', file=sys.stderr)


if __name__ == '__main__':
    sys.exit(main())
