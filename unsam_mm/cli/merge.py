"""``merge``: a folder of pseudo-masks becomes one COCO file."""

from __future__ import annotations

import argparse
from pathlib import Path

from unsam_mm.pseudo_masks.store import PseudoMaskStore


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser('merge', help='write a folder of pseudo-masks as one COCO file')
    parser.add_argument('masks', type=Path, help='folder that "generate" made')
    parser.add_argument('target', type=Path, help='COCO file to write, for example pseudo.json')
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Writes the file; it appears only once it is whole."""
    n_images, n_masks = PseudoMaskStore(options.masks).merge(options.target)
    print(f'{n_masks} masks of {n_images} images in {options.target}')
    return 0
