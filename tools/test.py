"""Tests a model: `mim test unsam_mm configs/unsam.py --checkpoint work_dirs/unsam/latest.pth`.

Or `python tools/test.py configs/unsam.py work_dirs/unsam/latest.pth`. With `--benchmarks all` the model is tested on the
seven data sets of the paper's Table 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from train import LATEST, add_common_options, build_runner, load_config, run

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner

RESULTS = 'benchmarks.json'
"""File in the work dir for the printed row and all measurements of this work dir."""

BASES = Path(__file__).resolve().parents[1] / 'configs' / '_base_' / 'datasets'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line; imports no large packages."""
    parser = argparse.ArgumentParser(description='Test a model.')
    parser.add_argument('config', type=Path, help='config file')
    parser.add_argument(
        'checkpoint', nargs='?', type=Path, help='weights (default: those that the config initialises the model with)'
    )
    add_common_options(parser)
    parser.add_argument('--out', type=Path, metavar='JSON', help='file for the metrics')
    parser.add_argument('--show-dir', type=Path, help='folder for images of the predictions')
    parser.add_argument(
        '--benchmarks',
        nargs='+',
        default=[],
        metavar='NAME',
        help='test on these data sets instead of that of the config: coco, lvis, ade20k, entityseg, sa1b, '
        'partimagenet, paco, or all; --cfg-options NAME.KEY=VALUE changes a setting of one of them, '
        'test_dataloader.KEY=VALUE of all of them',
    )
    parser.add_argument(
        '--data-root',
        nargs='+',
        action='extend',
        default=[],
        metavar='NAME=PATH',
        help='folder of a benchmark, such as coco=/data/coco',
    )
    parser.add_argument(
        '--again',
        action='store_true',
        help='with --benchmarks: repeat earlier measurements of this checkpoint',
    )
    return parser.parse_args(argv)


def test(args: argparse.Namespace) -> None:
    """Tests, prints AR@1000 as a row of the paper's Table 1, and writes the metrics to the file of --out.

    Raises:
        UnSAMError: If the config or the checkpoint cannot be read, the checkpoint is that of another model, the config
            has no hook that draws images, a benchmark could not be measured, or --out would replace a file that is not
            a result.
    """
    from unsam_mm.files import check_result_file

    checkpoint = None if args.checkpoint is None else find_checkpoint(args.checkpoint)
    if args.out is not None:
        check_result_file(args.out, args.config, checkpoint)
    of_benchmarks, args.cfg_options = sort_options(args.benchmarks, args.data_root, args.cfg_options)
    config = load_config(args)
    config.load_from = None if checkpoint is None else str(checkpoint)
    if args.show_dir is not None:
        _draw_into(config, args.show_dir)
    # These are read before the model is built, so that a wrong option is reported early.
    data_sets = {name: _load_benchmark(name, options, args) for name, options in of_benchmarks.items()}
    from unsam_mm.engine import check_channel_order

    for data_set in data_sets.values():
        check_channel_order({'model': config.model, 'test_dataloader': data_set.test_dataloader})
    runner = build_runner(config)
    if checkpoint is None:
        runner.logger.warning('No checkpoint is given: testing the model as the config initialises it')
    else:
        from unsam_mm.engine.resuming import check_start

        check_start(checkpoint, runner.model)
    _measure(args, runner, data_sets, checkpoint)


def _measure(args: argparse.Namespace, runner: Runner, data_sets: dict[str, Config], checkpoint: Path | None) -> None:
    """Tests on the benchmarks, or else on the test set of the config, and reports the metrics."""
    from mmengine.dist import is_main_process

    from unsam_mm.errors import UnSAMError
    from unsam_mm.evaluation.benchmark_runs import recall_of, run_benchmarks, title_of, write_row
    from unsam_mm.files import write_json

    results, missing = Path(runner.work_dir, RESULTS), {}
    if data_sets:
        found, missing = run_benchmarks(runner, data_sets, results, checkpoint, args.again, args.show_dir)
        metrics = {f'{name}/{key}': value for name in found for key, value in found[name].items()}
        row = {name: found.get(name) for name in data_sets}
    else:
        metrics = runner.test()
        has_row = recall_of(metrics) is not None
        row = {title_of(runner.cfg.test_dataloader.dataset): metrics} if has_row else {}
    if is_main_process():
        if args.out is not None:
            write_json(args.out, {key: float(value) for key, value in metrics.items()})
        if row:
            print(f'\n{write_row(runner, results, row, args.checkpoint)}')
    if missing:
        reasons = '; '.join(f'{name}: {reason}' for name, reason in missing.items())
        raise UnSAMError(
            f'{len(missing)} of {len(data_sets)} benchmarks were not measured. {reasons}. Name the folder of the data with '
            f'--data-root {next(iter(missing))}=PATH (docs/datasets.md says how to get them) and run again; the other '
            'results are kept'
        )


def sort_options(
    names: list[str], data_roots: list[str], cfg_options: list[str]
) -> tuple[dict[str, list[str]], list[str]]:
    """Sorts the options of the command line by the config that they apply to.

    Args:
        names: Names from `--benchmarks`.
        data_roots: NAME=PATH pairs of `--data-root`.
        cfg_options: KEY=VALUE pairs of `--cfg-options`.

    Returns:
        The KEY=VALUE pairs of each benchmark to run, by name and in the order of the runs, and the pairs for
        `args.config`.

    Raises:
        UnSAMError: If a name is unknown, a root is not a folder, or an option is for a benchmark that is not run.
    """
    from unsam_mm.errors import UnSAMError
    from unsam_mm.evaluation.benchmark_runs import BENCHMARKS

    known = ', '.join(BENCHMARKS)
    if unknown := [name for name in names if name not in (*BENCHMARKS, 'all')]:
        raise UnSAMError(f'--benchmarks {unknown[0]}: no such benchmark; choose from {known}, or all')
    for pair in data_roots:
        name, _, path = pair.partition('=')
        if name not in BENCHMARKS or not path:
            raise UnSAMError(f'--data-root: expected NAME=PATH with a name of {known}, got {pair!r}')
        if not Path(path).is_dir():
            raise UnSAMError(f'--data-root {pair}: no such folder')
    of_benchmarks: dict[str, list[str]] = {name: [] for name in (BENCHMARKS if 'all' in names else names)}
    of_model = []
    for pair in [*cfg_options, *(pair.replace('=', '.data_root=', 1) for pair in data_roots)]:
        name, _, rest = pair.partition('.')
        if name in of_benchmarks:
            of_benchmarks[name].append(rest)
        elif name in BENCHMARKS:
            raise UnSAMError(
                f'{pair}: {name} is not among the benchmarks to run; add it to --benchmarks, or for the test set of the '
                f'config write --cfg-options {rest}'
            )
        elif of_benchmarks and name in ('test_dataloader', 'test_evaluator'):
            for options in of_benchmarks.values():
                options.append(pair)
        else:
            of_model.append(pair)
    return of_benchmarks, of_model


def _load_benchmark(name: str, options: list[str], args: argparse.Namespace) -> Config:
    path = BASES / f'benchmark_{name}.py'
    config = load_config(
        argparse.Namespace(config=path, cfg_options=options, launcher='none', local_rank=0, work_dir=args.work_dir)
    )
    if 'data_root' in config:
        config.test_dataloader.dataset.data_root = config.data_root
    return config


def find_checkpoint(path: Path) -> Path:
    """The file to load: `path`, or for the missing ``latest.pth`` of an unfinished training, its last checkpoint.

    Raises:
        UnSAMError: If there is no such file.
    """
    from unsam_mm.errors import UnSAMError

    if path.is_file():
        return path
    pointer = path.with_name('last_checkpoint')
    if path.name == LATEST and pointer.is_file():
        # The folder may have been moved since this absolute path was written.
        last = path.with_name(Path(pointer.read_text(encoding='utf-8').strip()).name)
        if last.is_file():
            return last
    raise UnSAMError(f'{path}: no such checkpoint; give a .pth file, or train first to make {LATEST}')


def _draw_into(config: Config, folder: Path) -> None:
    from unsam_mm.errors import UnSAMError

    hook = config.get('default_hooks', {}).get('visualization')
    if hook is None or 'DetVisualizationHook' not in hook.type:
        raise UnSAMError(
            "--show-dir: the config has no default_hooks.visualization=dict(type='DetVisualizationHook'); add it"
        )
    hook.draw = True
    # Unless the path is absolute, MMDetection makes this folder in a folder of the work dir that a time stamp names.
    hook.test_out_dir = str(folder.absolute())


if __name__ == '__main__':
    sys.exit(run(test, parse_args()))
