"""Runs the benchmarks of the paper's Table 1 with one model, and formats the results as a row of this table.

Source: Wang et al., "Segment Anything without Supervision", NeurIPS 2024, Table 1 (zero-shot, all classes as one).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, Runner

from unsam_mm.datasets.messages import original_message
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.files import read_json, write_json
from unsam_mm.fingerprints import file_digest, file_sha256

BENCHMARKS = {
    'coco': 'COCO',
    'lvis': 'LVIS',
    'ade20k': 'ADE',
    'entityseg': 'Entity',
    'sa1b': 'SA-1B',
    'partimagenet': 'PtIn',
    'paco': 'PACO',
}
"""Titles of the benchmarks in the table, by name in ``configs/_base_/datasets/benchmark_NAME.py``."""

_RECALL = 'AR@1000'
_DATA_ERRORS = (UnSAMError, FileNotFoundError)
_FIELDS = {'benchmark', 'checkpoint_sha256', 'settings_sha256', 'metrics'}
# Settings that do not change the results.
_WITHOUT_EFFECT = ('outfile_prefix', 'collect_device', 'collect_dir', 'engine')


class Published(NamedTuple):
    """A row of Table 1; figures in percent, `recalls` in the order of `BENCHMARKS`."""

    method: str
    backbone: str
    images: str
    average: float
    recalls: tuple[float, ...]


TABLE_1 = (
    Published('SAM (supervised)', 'ViT-B', '11M', 42.1, (49.6, 46.1, 45.8, 45.9, 60.8, 28.3, 18.1)),
    Published('FreeSOLO', 'RN101', '1.3M', 7.3, (11.6, 5.9, 7.3, 8.0, 2.2, 13.8, 2.4)),
    Published('CutLER', 'RN50', '1.3M', 21.8, (28.1, 20.2, 26.3, 23.1, 17.0, 28.7, 8.9)),
    Published('SOHES', 'ViT-B/8', '0.2M', 30.1, (30.5, 29.1, 31.1, 33.5, 33.3, 36.0, 17.1)),
    Published('UnSAM', 'RN50', '0.1M', 39.2, (40.5, 37.7, 35.7, 39.6, 41.9, 51.6, 27.5)),
    Published('UnSAM', 'RN50', '0.2M', 40.4, (41.2, 39.7, 36.8, 40.3, 43.6, 52.1, 29.1)),
    Published('UnSAM', 'RN50', '0.4M', 41.1, (42.0, 40.5, 37.5, 41.0, 44.5, 52.7, 29.7)),
    Published('UnSAM+ (labels too)', 'RN50', '0.1M', 48.8, (52.2, 50.8, 45.3, 49.8, 64.8, 46.0, 32.3)),
)


def format_row(label: str, recalls: Mapping[str, float | None]) -> str:
    """A Markdown table: the published rows for the same benchmarks, and below them the row of a model.

    The average is over the columns in the table.

    Args:
        label: Name of the model.
        recalls: AR@1000 in [0, 1] by benchmark; None if it was not measured. If a name is not in `BENCHMARKS`, there
            are no published rows.
    """
    names = list(recalls)
    lines = [['method', 'backbone', 'images', 'Avg', *(BENCHMARKS.get(name, name) for name in names)]]
    for row in TABLE_1 if set(names) <= set(BENCHMARKS) else ():
        shown = [row.recalls[list(BENCHMARKS).index(name)] for name in names]
        average = row.average if len(names) == len(BENCHMARKS) else sum(shown) / len(shown)
        lines.append([row.method, row.backbone, row.images, *(f'{value:.1f}' for value in (average, *shown))])
    ours = (mean_recall(recalls), *recalls.values())
    lines.append([label, '', '', *('-' if value is None else f'{100 * value:.1f}' for value in ours)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ['-' * width if i < 3 else f'{"-" * (width - 1)}:' for i, width in enumerate(widths)])
    forms = [f'{"<" if i < 3 else ">"}{width}' for i, width in enumerate(widths)]
    return '\n'.join(f'| {" | ".join(map(format, line, forms))} |' for line in lines)


def mean_recall(recalls: Mapping[str, float | None]) -> float | None:
    """The average; None if one is missing."""
    values = list(recalls.values())
    return None if None in values else sum(values) / len(values)


def run_benchmarks(
    runner: Runner,
    benchmarks: Mapping[str, Config],
    results: Path,
    checkpoint: Path | None,
    again: bool = False,
    show_dir: Path | None = None,
) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
    """Tests a model on several datasets; results for the same checkpoint and settings are read from a file.

    Args:
        runner: Runner with the model.
        benchmarks: Configs with `test_dataloader` and `test_evaluator`, by name.
        results: JSON file of results, which is read at the start and written after each benchmark.
        checkpoint: The weights; None for the initial weights of the config, whose results are not written.
        again: True to repeat tests whose results are in the file.
        show_dir: Folder with a subfolder for the pictures of each benchmark, if the config draws any.

    Returns:
        Metrics of the benchmarks by name, and error messages of failed benchmarks by name.

    Raises:
        StoreError: If `results` cannot be read or written.
    """
    content = _read_results(results)
    sha256 = None if checkpoint is None else file_sha256(checkpoint)
    model = {key: runner.cfg.get(key) for key in ('model', 'test_cfg')}
    metrics, missing = {}, {}
    runner.call_hook('before_run')
    runner.load_or_resume()
    for name, config in benchmarks.items():
        settings = fingerprint(model, config.test_dataloader.dataset, config.test_evaluator)
        key = {'benchmark': name, 'checkpoint_sha256': sha256, 'settings_sha256': settings}
        known = [entry for entry in content['measurements'] if key.items() <= entry.items()]
        if known and not again:
            runner.logger.info('benchmark %s: measured before with this checkpoint (--again repeats it)', name)
            metrics[name] = known[0]['metrics']
            continue
        runner.logger.info('benchmark %s', name)
        for hook in runner.hooks if show_dir is not None else ():
            if hasattr(hook, 'test_out_dir'):
                hook.test_out_dir = str(Path(show_dir, name).absolute())
        found, reason = _run(runner, config)
        if reason:
            missing[name] = reason
            runner.logger.error('benchmark %s is not measured: %s', name, reason)
            continue
        metrics[name] = found
        if sha256 is not None and is_main_process():
            others = [entry for entry in content['measurements'] if entry not in known]
            content['measurements'] = [*others, {**key, 'checkpoint': str(checkpoint), 'metrics': found}]
            write_json(results, content)
    runner.call_hook('after_run')
    return metrics, missing


def fingerprint(*configs: Any) -> str:
    """SHA-256 of all settings that the results depend on, and of the annotation files in them, in hexadecimal digits.

    Args:
        configs: Configs of the model, of the dataset with its pipeline, and of the metrics.
    """
    contents: dict[str, str] = {}

    def plain(value: Any, root: str = '') -> Any:
        if isinstance(value, Mapping):
            root = str(value.get('data_root') or root)
            return {str(key): plain(entry, root) for key, entry in value.items() if key not in _WITHOUT_EFFECT}
        if isinstance(value, (list, tuple)):
            return [plain(entry, root) for entry in value]
        if isinstance(value, str) and value.endswith('.json'):
            contents.update(
                {str(path): file_digest(path) for path in (Path(value), Path(root, value)) if path.is_file()}
            )
        return value

    text = json.dumps([plain(configs), contents], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()


def _run(runner: Runner, config: Config) -> tuple[dict[str, float], str]:
    """The metrics of one benchmark, or {} and an error message."""
    loop, reason = None, ''
    try:
        loop = _build_loop(runner, config)
    except _DATA_ERRORS as error:
        reason = str(error)
    # All processes must stop together, since they wait for each other.
    if reasons := [found for found in all_gather_object(reason) if found]:
        return {}, reasons[0]
    runner._test_loop = loop  # hooks use it, and there is no public setter
    try:
        metrics = {key: float(value) for key, value in loop.run().items()}
    except _DATA_ERRORS as error:
        if get_world_size() > 1:
            raise  # the other processes are in the middle of the benchmark
        return {}, original_message(error)
    if recall_of(metrics) is None:
        return {}, f'its metric gives no {_RECALL}, only {", ".join(metrics)}; use UnSAMCocoMetric'
    return metrics, ''


def _build_loop(runner: Runner, config: Config) -> BaseLoop:
    given = {'runner': runner, 'dataloader': config.test_dataloader, 'evaluator': config.test_evaluator}
    return LOOPS.build({'type': 'TestLoop', **(runner.cfg.get('test_cfg') or {})}, default_args=given)


def write_row(
    runner: Runner, results: Path, metrics: Mapping[str, Mapping[str, float] | None], checkpoint: Path | None
) -> str:
    """Writes AR@1000 to `results`, and returns the table of `format_row` under a heading.

    Args:
        runner: The runner of the test.
        results: The file of `run_benchmarks`.
        metrics: Metrics by benchmark; None if it failed.
        checkpoint: The weights, as on the command line.

    Raises:
        StoreError: If `results` cannot be read or written.
    """
    recalls = {name: None if found is None else recall_of(found) for name, found in metrics.items()}
    model = runner.cfg.get('experiment_name')
    weights = None if checkpoint is None else str(checkpoint)
    row = {'model': model, 'checkpoint': weights, _RECALL: recalls, 'average': mean_recall(recalls)}
    write_json(results, {**_read_results(results), 'row': row})
    label = f'ours: {model}' if checkpoint is None else f'ours: {model}, {checkpoint.name}'
    return f'{_RECALL} in percent, all classes as one\n{format_row(label, recalls)}'


def _read_results(path: Path) -> dict[str, Any]:
    content = read_json(path) if path.exists() else {'row': None, 'measurements': []}
    entries = content.get('measurements') if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(e, dict) and e.keys() >= _FIELDS for e in entries):
        raise StoreError(
            f'{path}: not a file of measurements of benchmarks; move it away, and run all benchmarks again'
        )
    return content


def recall_of(metrics: Mapping[str, float]) -> float | None:
    """AR@1000 among the metrics of a run, with any prefix; None if absent."""
    return next((float(value) for name, value in metrics.items() if name.split('/')[-1] == _RECALL), None)


def title_of(dataset: Mapping[str, Any]) -> str:
    """Title of the test set of a config: the name of its annotation file, its folder, or its class."""
    ann_file, root = str(dataset.get('ann_file') or ''), str(dataset.get('data_root') or '')
    return Path(ann_file).stem or Path(root).name or str(dataset.get('type'))
