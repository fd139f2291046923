"""Makes the region tokens that a training reads: `mim run unsam_mm prepare_regions configs/unsam_s.py`.

Or `python tools/prepare_regions.py configs/unsam_s.py --cfg-options data_root=[/a,/b]`. A training makes missing tokens
at its start; with this tool they can be made on another machine, or while another model is trained.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from train import add_common_options, load_config, run

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; imports no large packages."""
    parser = argparse.ArgumentParser(description='Make the region tokens that a training reads.')
    parser.add_argument('config', type=Path, help='config file')
    parser.add_argument('--workers', type=int, help='processes, about 1 GB each (default: one per core)')
    add_common_options(parser)
    return parser.parse_args(argv)


def prepare(args: argparse.Namespace) -> None:
    """Makes the tokens of all training and test images of the config.

    Raises:
        UnSAMError: If the config or the images cannot be read, the tokens cannot be stored, or there are no workers.
    """
    from mmdet.registry import DATASETS
    from mmengine.registry import init_default_scope

    from unsam_mm.errors import UnSAMError

    if args.workers is not None and args.workers < 1:
        raise UnSAMError(f'--workers must be positive, got {args.workers}')
    config = load_config(args)
    init_default_scope(config.get('default_scope', 'mmdet'))
    datasets = [config[name].dataset for name in LOADERS if config.get(name)]
    others = {dataset.type for dataset in datasets} - {'UnSAMRegionFolders'}
    if others:
        raise UnSAMError(f'{args.config}: {", ".join(others)} needs no region tokens; give a config such as unsam_s.py')
    for dataset in datasets:  # all splits at once, so usually nothing is left to do for the second data set
        DATASETS.build({**dataset, 'split': 'all', 'max_images': None, 'prepare_workers': args.workers})


if __name__ == '__main__':
    sys.exit(run(prepare, parse_args()))
