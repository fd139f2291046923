"""Exports the model of a training with configs/unsam_s.py to a file that predictors load.

`mim run unsam_mm export_regions work_dirs/unsam_s/latest.pth unsam_s.safetensors`, or
`python tools/export_regions.py work_dirs/unsam_s/latest.pth unsam_s.safetensors`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from train import run


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; imports no large packages."""
    parser = argparse.ArgumentParser(description='Write a trained region model in half precision, as safetensors.')
    parser.add_argument('checkpoint', type=Path, help='latest.pth of a training with configs/unsam_s.py')
    parser.add_argument('target', type=Path, help='file to write, ending in .safetensors')
    parser.add_argument('--n-tokens', type=int, default=768, help='as in the config of the training (default: 768)')
    parser.add_argument(
        '--note', action='append', default=[], metavar='KEY=TEXT', help='text to store in the file, such as seed=0'
    )
    return parser.parse_args(argv)


def export(args: argparse.Namespace) -> None:
    """Writes the weights file.

    Raises:
        UnSAMError: If the checkpoint cannot be read or belongs to another model, a note is not KEY=TEXT, or the target
            cannot be written.
    """
    from unsam_mm.errors import UnSAMError
    from unsam_mm.student.weights import net_of_checkpoint, save_weights

    if wrong := [note for note in args.note if '=' not in note]:
        raise UnSAMError(f'--note {wrong[0]}: must be KEY=TEXT, such as seed=0')
    net = net_of_checkpoint(args.checkpoint)
    save_weights(args.target, net, n_tokens=args.n_tokens, notes=dict(note.split('=', 1) for note in args.note))
    print(
        f"{args.target}: {args.target.stat().st_size / 1e6:.1f} MB; UnSAMPredictor(engine='model', weights=...) reads it"
    )


if __name__ == '__main__':
    sys.exit(run(export, parse_args()))
