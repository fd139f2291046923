"""Runs one benchmark after the other on one loaded model, and reports AR@1000 as a row of the paper's Table 1."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import all_gather_object, get_world_size, is_main_process
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, Runner

from unsam_mm.datasets.worker_errors import own_words
from unsam_mm.errors import UnSAMError
from unsam_mm.evaluation.measurements import Measurement, Measurements, fingerprint
from unsam_mm.evaluation.published import format_row, mean_recall
from unsam_mm.fingerprints import file_sha256

_RECALL = 'AR@1000'


class _NotMeasured(UnSAMError):
    """A benchmark without which the others go on."""


class BenchmarkRuns:
    """Measures a model on several data sets; what was measured for the same checkpoint and settings is read instead.

    Args:
        runner: With the model; weights are loaded when the first benchmark is run.
        results: JSON file for the measurements; each is written as soon as it is there.
        checkpoint: The weights. None: those that the config initialises, whose figures are not kept for later runs.
        again: Measure also what `results` holds.
        show_dir: Pictures go to a folder for each benchmark below this one, where the config draws any.

    Raises:
        StoreError: If `results` cannot be read.
    """

    def __init__(
        self, runner: Runner, results: Path, checkpoint: Path | None, again: bool = False, show_dir: Path | None = None
    ) -> None:
        self.runner = runner
        self.measurements = Measurements(results)
        self.checkpoint = checkpoint
        self.again = again
        self.show_dir = show_dir
        self._sha256 = None if checkpoint is None else file_sha256(checkpoint)
        self._is_started = False

    def measure(self, benchmarks: Mapping[str, Config]) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
        """Goes through benchmarks in their order.

        Args:
            benchmarks: Name to a config with `test_dataloader` and `test_evaluator`.

        Returns:
            Name to metrics, and name to the reason why there are none.
        """
        metrics, missing = {}, {}
        for name, config in benchmarks.items():
            try:
                metrics[name] = self._measure(name, config)
            except _NotMeasured as error:
                missing[name] = str(error)
                self.runner.logger.error('benchmark %s is not measured: %s', name, error)
        if self._is_started:
            self.runner.call_hook('after_run')
        return metrics, missing

    def _measure(self, name: str, config: Config) -> dict[str, float]:
        logger = self.runner.logger
        model = {key: self.runner.cfg.get(key) for key in ('model', 'test_cfg')}
        settings = fingerprint(model, config.test_dataloader.dataset, config.test_evaluator)
        known = None if self.again else self.measurements.get((name, self._sha256, settings))
        if known is not None:
            logger.info('benchmark %s: measured before with this checkpoint (--again repeats it)', name)
            return known.metrics
        logger.info('benchmark %s', name)
        metrics = {key: float(value) for key, value in self._run(self._build_loop(config), name).items()}
        if recall_of(metrics) is None:
            raise _NotMeasured(f'its metric gives no {_RECALL}, only {", ".join(metrics)}; use UnSAMCocoMetric')
        if self._sha256 is not None and is_main_process():
            self.measurements.add(Measurement(name, str(self.checkpoint), self._sha256, settings, metrics))
        return metrics

    def _build_loop(self, config: Config) -> BaseLoop:
        """The test loop of a benchmark.

        Raises:
            _NotMeasured: If its data are not there, for any of the processes.
        """
        loop, reason = None, ''
        try:
            loop = LOOPS.build(
                {'type': 'TestLoop', **(self.runner.cfg.get('test_cfg') or {})},
                default_args={
                    'runner': self.runner,
                    'dataloader': config.test_dataloader,
                    'evaluator': config.test_evaluator,
                },
            )
        except (UnSAMError, FileNotFoundError) as error:
            reason = str(error)
        # A process that goes on alone would wait for the others for ever.
        reasons = [found for found in all_gather_object(reason) if found]
        if reasons:
            raise _NotMeasured(reasons[0])
        return loop

    def _run(self, loop: BaseLoop, name: str) -> dict[str, Any]:
        runner = self.runner
        runner._test_loop = loop  # hooks ask the runner for it, and there is no public way to change it
        if not self._is_started:
            runner.call_hook('before_run')
            runner.load_or_resume()
            self._is_started = True
        if self.show_dir is not None:
            for hook in runner.hooks:
                if hasattr(hook, 'test_out_dir'):
                    hook.test_out_dir = str(Path(self.show_dir, name).absolute())
        try:
            return loop.run()
        except (UnSAMError, FileNotFoundError) as error:
            if get_world_size() > 1:
                raise  # the other processes are in the middle of the benchmark
            raise _NotMeasured(own_words(error)) from error


def keep_row(
    runner: Runner, results: Path, metrics: Mapping[str, Mapping[str, float] | None], checkpoint: Path | None
) -> str:
    """Keeps AR@1000 in `results`, and returns it as a Markdown row below the published ones.

    Args:
        runner: Of the test.
        results: JSON file; see `Measurements`.
        metrics: Benchmark to its metrics, None where there are none.
        checkpoint: The weights, as they were named on the command line.
    """
    recalls = {name: None if found is None else recall_of(found) for name, found in metrics.items()}
    model = runner.cfg.get('experiment_name')
    if is_main_process():
        weights = None if checkpoint is None else str(checkpoint)
        row = {'model': model, 'checkpoint': weights, _RECALL: recalls, 'average': mean_recall(recalls)}
        Measurements(results).set_row(row)
    label = f'ours: {model}' if checkpoint is None else f'ours: {model}, {checkpoint.name}'
    return f'{_RECALL} in percent, all classes as one\n{format_row(label, recalls)}'


def recall_of(metrics: Mapping[str, float]) -> float | None:
    """AR@1000 among the metrics of a run, whatever prefix it has; None if it is not there."""
    return next((float(value) for name, value in metrics.items() if name.split('/')[-1] == _RECALL), None)


def title_of(dataset: Mapping[str, Any]) -> str:
    """How to call the test set of a config: by its annotation file, its folder, or its class."""
    ann_file, root = str(dataset.get('ann_file') or ''), str(dataset.get('data_root') or '')
    return Path(ann_file).stem or Path(root).name or str(dataset.get('type'))
