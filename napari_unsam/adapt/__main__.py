"""``python -m napari_unsam.adapt FOLDER``: the training that `AdaptJob` starts."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from napari_unsam.adapt.steps import adapt, end_with_parent
from unsam_mm.errors import UnSAMError


def main() -> int:
    """Runs the steps; if one fails, the last line on standard error is the error message."""
    parser = argparse.ArgumentParser(description='Adapt the packaged model to the images in a folder.')
    parser.add_argument('folder', type=Path, help='images and settings, written by the dock')
    parser.add_argument('--parent', type=int, help='stop when the process with this number ends')
    options = parser.parse_args()
    if options.parent is not None:
        end_with_parent(options.parent)
    if hasattr(os, 'nice'):
        os.nice(10)  # the viewer has priority
    try:
        adapt(options.folder)
    except UnSAMError as error:
        sys.stderr.write(f'error: {error}\n')
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
