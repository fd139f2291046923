"""Hooks that copy `data_root` to datasets and metrics, and evaluate the model before training.

MMEngine evaluates a text config before it merges ``--cfg-options``, so ``data_root=/my/images`` on the command line
changes the variable, but not the values that were computed from it. In the configs of this package, datasets of the
user's images have no `data_root`; they get the top-level one when all options have been merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from unsam_mm.errors import UnSAMError
from unsam_mm.models.channel_order import type_name

_TEST_DATALOADERS = ('val_dataloader', 'test_dataloader')
_EVALUATORS = ('val_evaluator', 'test_evaluator')


def resolve_data_root(cfg: Config) -> None:
    """Copies the image settings from the top level of a config to its datasets and metrics, in place; idempotent.

    `data_root` is copied to UnSAM datasets, `pseudo_masks_root` to UnSAM datasets that read pseudo-masks, and
    `ann_file` to UnSAM datasets for validation and testing and to UnSAM metrics. Values that are set there take
    precedence. With a top-level `ann_file`, all images that it lists are tested, including training images.
    `UnSAMPseudoMasks` is removed from test pipelines of datasets with an `ann_file`, since its masks would not be used.

    Args:
        cfg: A config with all options merged.
    """
    for target, name, value in _unresolved(cfg):
        target[name] = _located(value, cfg.get('data_root')) if name == 'ann_file' else value
        if name == 'ann_file' and value and 'split' in target:
            target['split'] = 'all'
    for loader in _TEST_DATALOADERS:
        for dataset in _ours((cfg.get(loader) or {}).get('dataset')):
            if dataset.get('ann_file'):
                dataset['pipeline'] = [step for step in dataset['pipeline'] if type_name(step) != 'UnSAMPseudoMasks']


@HOOKS.register_module()
class UnSAMDataRootHook(Hook):
    """Stops a run whose datasets would ignore the config's `data_root` and silently use other images."""

    def before_run(self, runner: Runner) -> None:
        """Checks the config of `runner`.

        Raises:
            UnSAMError: If `resolve_data_root` would still change something.
        """
        for _, name, value in _unresolved(runner.cfg):
            if value:  # an empty value is also the default of datasets and metrics
                raise UnSAMError(
                    f'{name}={value!r} is set at the top level of the config, but not in its datasets; '
                    'call unsam_mm.engine.resolve_data_root(cfg) before the runner is built'
                )


def _located(ann_file: str, data_root: str | Sequence[str] | None) -> str:
    """Absolute path of an annotation file, since only datasets join it to `data_root`; unchanged if it is not found."""
    roots = [data_root or ''] if isinstance(data_root, str | None) else data_root
    paths = (Path(ann_file), *(Path(root, ann_file) for root in roots))
    return next((str(path.resolve()) for path in paths if ann_file and path.is_file()), ann_file)


def _unresolved(cfg: Config) -> Iterator[tuple[dict, str, Any]]:
    """Each (dict, name, value) that `resolve_data_root` would set."""
    for loader in ('train_dataloader', *_TEST_DATALOADERS):
        for dataset in _ours((cfg.get(loader) or {}).get('dataset')):
            names = ['data_root']
            if loader in _TEST_DATALOADERS:
                names.append('ann_file')
            if dataset.get('labels') in ('pseudo', 'both'):
                names.append('pseudo_masks_root')
            yield from ((dataset, name, cfg[name]) for name in names if name in cfg and name not in dataset)
    for evaluators in _EVALUATORS:
        for evaluator in _ours(cfg.get(evaluators)):
            if 'ann_file' in cfg and 'ann_file' not in evaluator:
                yield evaluator, 'ann_file', cfg['ann_file']


def _ours(config: dict | list | None) -> Iterator[dict]:
    """The configs of this package's classes in a config, in a list, or in dataset wrappers."""
    if isinstance(config, list | tuple):
        for entry in config:
            yield from _ours(entry)
    elif config and type_name(config).startswith('UnSAM'):
        yield config
    elif config:
        yield from _ours(config.get('dataset') or config.get('datasets'))


@HOOKS.register_module()
class UnSAMFirstEvaluationHook(Hook):
    """Validates once before the first iteration; not when training is resumed."""

    def before_train(self, runner: Runner) -> None:
        """Runs the validation loop of `runner`, if it has one."""
        if runner.iter == 0 and runner.val_loop is not None:
            runner.logger.info('Validating the model before training')
            runner.val_loop.run()
