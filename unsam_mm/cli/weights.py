"""``weights``: lists and downloads pretrained weights."""

from __future__ import annotations

import argparse

from unsam_mm import weights


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser('weights', help='list pretrained weights, or download them into the cache')
    parser.add_argument('action', choices=('list', 'fetch'), help='what to do')
    parser.add_argument('names', nargs='*', metavar='NAME', help='weights to fetch (default: dinov2_vits14)')
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Lists the table, or fetches the named weights."""
    if options.action == 'list':
        print(f'cache: {weights.cache_dir()}')
        for name, row in weights.TABLE.items():
            print(f'{"*" if weights.cached_path(name) else " "} {name:26} {row.licence:14} {row.description}')
        print('* in the cache')
        return 0
    for name in options.names or ['dinov2_vits14']:
        path = weights.fetch(name)
        print(f'{name}: {path} (from {weights.origin(path)})')
    return 0
