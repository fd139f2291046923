"""Trains a model from a config: `mim train unsam_mm configs/unsam.py`, or `python tools/train.py configs/unsam.py`.

`mim` requests the help text before each training, so torch and the MM packages are imported after the options are parsed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner

LATEST = 'latest.pth'
"""File with the weights at the end of a training, without optimizer and history, in the folder of its checkpoints."""

CONVERT = {
    'ResNet': 'for that of DINO run: python -m unsam_mm convert dino_resnet50 {}',
    'SwinTransformer': 'for that of MoBY download moby_swin_t_300ep_pretrained.pth of its authors and run: '
    'python -m unsam_mm convert moby_swin_t_300ep_pretrained.pth {}',
}
"""Backbone type to advice on how to get its published initial weights."""

PATH_KEYS = ('root', 'file', 'dir', 'prefix', 'path')
"""A setting is a path if a part of its name ends with one of these, as in data_root or data_prefix.img."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; imports no large packages."""
    parser = argparse.ArgumentParser(description='Train a model.')
    parser.add_argument('config', type=Path, help='config file')
    add_common_options(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from a checkpoint; without a name, the last one',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision, on CUDA devices')
    return parser.parse_args(argv)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that training and testing share."""
    parser.add_argument(
        '--work-dir', type=Path, help='folder for logs and results (default: that of the config, else work_dirs/NAME)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        help='replace settings of the config, such as data_root=/my/images train_cfg.max_iters=1000',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch')


def train(args: argparse.Namespace) -> None:
    """Trains, and saves the weights as ``latest.pth``.

    Raises:
        UnSAMError: If the config cannot be read, the initial checkpoint does not exist or is that of another model, or
            an option needs a CUDA device and there is none.
    """
    config = load_config(args)
    if args.amp:
        _check_device('--amp')
        config.optim_wrapper.type = 'AmpOptimWrapper'
    elif config.optim_wrapper.type == 'AmpOptimWrapper':
        _check_device("optim_wrapper.type='AmpOptimWrapper'", 'set optim_wrapper.type=OptimWrapper')
    if args.resume:
        _resume(config, args.resume)
    _check_backbone(config)
    runner = build_runner(config)
    _check_start(config, runner)
    # LATEST may be from an earlier training; without it, `tools/test.py` uses the file that `last_checkpoint` names.
    Path(runner.work_dir, LATEST).unlink(missing_ok=True)
    runner.train()
    _save_latest(runner)


def load_config(args: argparse.Namespace) -> Config:
    """Reads the config file `args.config` and applies the common options.

    Raises:
        UnSAMError: If there is no such file, an option is not KEY=VALUE, the model would get images with red and blue
            swapped, or the launcher did not start this process.
    """
    from unsam_mm._mmcv_ops import ensure_mmcv_ops
    from unsam_mm.errors import UnSAMError

    if not args.config.is_file():
        raise UnSAMError(f'{args.config}: no such config; give the path of a file such as configs/unsam.py')
    ensure_mmcv_ops()
    from mmengine.config import Config

    from unsam_mm.engine import check_channel_order, join_cpu_processes, resolve_data_root

    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    name = args.config.stem
    config = Config.fromfile(args.config)
    config.merge_from_dict(_read_options(args.cfg_options))
    resolve_data_root(config)
    check_channel_order(config)
    config.launcher = args.launcher
    if args.launcher != 'none' and not _has_accelerator():
        join_cpu_processes(config)
    config.work_dir = str(args.work_dir or config.get('work_dir') or Path('work_dirs', name))
    config.experiment_name = config.get('experiment_name') or name
    # The runner saves a copy of the config in the work dir, under the name of the config file. In an editable checkout
    # `mim` would then find two configs with this name and report an error. Formatting the copy with yapf takes seconds.
    return Config(
        config.to_dict(),
        cfg_text=config.text,
        filename=f'{name}.resolved.py',
        env_variables=config.env_variables,
        format_python_code=False,
    )


def build_runner(config: Config) -> Runner:
    """The runner that the config describes."""
    from mmengine.registry import RUNNERS
    from mmengine.runner import Runner

    return RUNNERS.build(config) if 'runner_type' in config else Runner.from_cfg(config)


def run(entry: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Calls ``entry(args)``; an error that a user can fix is printed as one line, and the exit status is 1."""
    from unsam_mm.cli.streams import escape_unencodable
    from unsam_mm.errors import UnSAMError, one_line

    escape_unencodable()
    try:
        entry(args)
    except UnSAMError as error:
        message = str(error)
        if message.startswith('Caught '):
            from unsam_mm.datasets.messages import original_message

            message = original_message(error)
        print(f'error: {one_line(message)}', file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name not in ('cv2', 'mmcv', 'mmdet', 'mmengine'):
            raise
        print(f"error: {error.name} is not installed; run: pip install 'unsam_mm[mm]'", file=sys.stderr)
        return 1
    return 0


def _read_options(pairs: list[str]) -> dict[str, Any]:
    from mmengine.config import DictAction

    from unsam_mm.errors import UnSAMError

    parser = argparse.ArgumentParser()
    parser.add_argument('pair', nargs=1, action=DictAction)
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not (key and equals):
            raise UnSAMError(f'--cfg-options: expected KEY=VALUE, got {pair!r}; write for example data_root=/my/images')
        parsed = parser.parse_args(['--', pair]).pair
        # MMEngine removes spaces, splits at commas and converts numbers, which would change a path.
        options |= {key: value} if _is_path(key, value, parsed[key]) else parsed
    return options


def _is_path(key: str, value: str, parsed: Any) -> bool:
    """True if an option's value is a path, which is not parsed. max_iters=300 is a number, even if a folder 300 exists.

    Args:
        key: Name of the setting.
        value: Text from the command line.
        parsed: MMEngine's value for the text.
    """
    has_path_name = any(part.endswith(PATH_KEYS) for part in key.split('.'))
    if value and (has_path_name or '/' in value or os.sep in value) and Path(value).exists():
        return True
    if not has_path_name or value[:1] in ('[', '(', '"', "'"):  # a list or quoted text is parsed
        return False
    if isinstance(parsed, list):  # a list of paths if all of them exist; else a single path that contains a comma
        return not all(Path(str(part)).exists() for part in parsed)
    is_number = isinstance(parsed, int | float) and not isinstance(parsed, bool)
    return is_number and not key.endswith('path')  # drop_path=0.1 is not a path


def _has_accelerator() -> bool:
    from mmengine.device import get_device

    return get_device() not in ('cpu', 'mps')


def _check_device(option: str, remedy: str = 'leave the option out') -> None:
    from mmengine.device import get_device

    from unsam_mm.errors import UnSAMError

    if not _has_accelerator():
        raise UnSAMError(f'{option} needs a CUDA device, found {get_device()} only; {remedy}')


def _resume(config: Config, checkpoint: str) -> None:
    """Sets the checkpoint to continue from; if there is none yet, training starts from the beginning."""
    from unsam_mm.engine import find_resumable
    from unsam_mm.errors import UnSAMError

    path = find_resumable(config.work_dir) if checkpoint == 'auto' else Path(checkpoint)
    if path is None:
        print(f'{config.work_dir}: no checkpoint yet; training starts from the beginning')
    elif not path.is_file():
        raise UnSAMError(f'{path}: no such checkpoint; give a .pth file of a training, or --resume alone for the last')
    else:
        config.load_from, config.resume = str(path), True


def _check_backbone(config: Config) -> None:
    from unsam_mm.errors import UnSAMError

    path = _backbone_checkpoint(config)
    if path is not None and not path.is_file():
        remedy = CONVERT.get(config.model.backbone.get('type'), 'put it there, or set model.backbone.init_cfg=None')
        raise UnSAMError(f'{path}: no such file, and the backbone starts from it; {remedy.format(path)}')


def _backbone_checkpoint(config: Config) -> Path | None:
    """The local file with the initial weights of the backbone; None if the config names none."""
    init = (config.model.get('backbone') or {}).get('init_cfg')
    path = str(init.get('checkpoint') or '') if isinstance(init, dict) else ''
    return Path(path) if path and ':' not in path else None


def _check_start(config: Config, runner: Runner) -> None:
    """Checks, before training, that the initial checkpoint fits the model."""
    from unsam_mm.engine.resuming import check_backbone, check_resumable, check_start
    from unsam_mm.errors import UnSAMError

    is_ours = str(config.model.type).startswith('UnSAM')
    if is_ours and (path := _backbone_checkpoint(config)) is not None:
        check_backbone(path, getattr(runner.model, 'module', runner.model).backbone)
    if not config.get('load_from') or '://' in config.load_from:
        return

    path = Path(config.load_from)
    if not path.is_file():
        raise UnSAMError(f'load_from={path}: no such checkpoint; give a .pth file')
    if config.get('resume'):
        check_resumable(path, runner.model)
    else:
        # Models of other packages commonly start from checkpoints with another number of classes.
        check_start(path, runner.model, partial=config.model.get('partial_checkpoint', not is_ours))


def _save_latest(runner: Runner) -> None:
    """Writes the weights of the last checkpoint, if there is one, to a file that loads with ``weights_only=True``."""
    import torch
    from mmengine.dist import is_main_process
    from mmengine.runner import CheckpointLoader, find_latest_checkpoint

    if not is_main_process() or (last := find_latest_checkpoint(runner.work_dir)) is None:
        return
    checkpoint = CheckpointLoader.load_checkpoint(last, map_location='cpu')
    meta = {
        name: checkpoint['meta'][name]
        for name in ('iter', 'epoch', 'cfg', 'dataset_meta')
        if name in checkpoint['meta']
    }
    partial = Path(runner.work_dir, f'{LATEST}.part')
    torch.save({'state_dict': checkpoint['state_dict'], 'meta': meta}, partial)
    runner.logger.info(f'The weights are in {partial.replace(Path(runner.work_dir, LATEST))}')


if __name__ == '__main__':
    sys.exit(run(train, parse_args()))
