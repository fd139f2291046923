"""``convert``: converts a released checkpoint to one that MMEngine loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from unsam_mm import weights
from unsam_mm.errors import UnSAMError


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser(
        'convert',
        help="convert a released checkpoint to MMDetection's tensor names",
        description="The whole-image and promptable models of UnSAM and UnSAM+, CutLER's detector, DINO's ResNet-50 and "
        "MoBY's Swin-T, recognised by their tensor names. Nothing is unpickled.",
    )
    parser.add_argument(
        'checkpoint', help='a .pth or .safetensors file, or a name of "weights list", which is fetched if needed'
    )
    parser.add_argument(
        'target',
        type=Path,
        metavar='out',
        help='file to write: .pth, or .safetensors for CutLER; replaced if it exists',
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Converts one checkpoint.

    Raises:
        UnSAMError: If the kind of checkpoint is not known, a file cannot be read or written, or MMDetection is missing.
    """
    named = options.checkpoint in weights.TABLE and not Path(options.checkpoint).exists()
    source = weights.fetch(options.checkpoint) if named else Path(options.checkpoint)
    try:
        from unsam_mm.convert.released import convert_checkpoint
    except ModuleNotFoundError as error:
        raise UnSAMError(f"{error.name} is not installed; run: pip install 'unsam_mm[mm]'") from error
    converted, n_tensors = convert_checkpoint(source, options.target)
    print(f'{options.target}: {n_tensors} tensors of {converted.kind}')
    print(f'now {converted.usage.format(options.target)}')
    return 0
