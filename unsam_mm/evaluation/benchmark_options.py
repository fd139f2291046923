"""Which benchmarks the command line names, where they lie, and which options are meant for which of them."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unsam_mm.errors import UnSAMError
from unsam_mm.evaluation.published import BENCHMARKS

ALL = 'all'

_LOADING = ('test_dataloader', 'test_evaluator')
"""The settings of a benchmark; with `--benchmarks`, options that start so are for each of them."""


@dataclass(frozen=True)
class BenchmarkOptions:
    """What was asked for.

    Attributes:
        options: KEY=VALUE settings for each benchmark, in the order in which they are to be run; empty without any.
        model_options: Those for the config of the model.
    """

    options: dict[str, list[str]]
    model_options: list[str]


def read_benchmarks(
    names: Sequence[str] | None, data_roots: Sequence[str], cfg_options: Sequence[str]
) -> BenchmarkOptions:
    """Sorts the options of the command line by what they are meant for.

    Args:
        names: Of `--benchmarks`; None without.
        data_roots: NAME=PATH pairs of `--data-root`.
        cfg_options: KEY=VALUE pairs of `--cfg-options`.

    Raises:
        UnSAMError: If a name is unknown, a root is none, or there are roots for what is not to be run.
    """
    if not names:
        if data_roots:
            raise UnSAMError(
                f'--data-root {data_roots[0]}: there for --benchmarks; for the test set of the config write '
                '--cfg-options data_root=PATH'
            )
        for pair in cfg_options:
            _check_chosen(f'--cfg-options {pair}', pair.partition('.')[0], ())
        return BenchmarkOptions({}, list(cfg_options))
    chosen = _chosen(names)
    options: dict[str, list[str]] = {name: [] for name in chosen}
    model_options = []
    for pair in cfg_options:
        head, _, rest = pair.partition('.')
        _check_chosen(f'--cfg-options {pair}', head, chosen)
        if head in chosen:
            options[head].append(rest)
        elif head in _LOADING:
            for name in chosen:
                options[name].append(pair)
        else:
            model_options.append(pair)
    for pair in data_roots:
        name, path = _root(pair, chosen)
        options[name].append(f'data_root={path}')
    return BenchmarkOptions(options, model_options)


def move_paths(config: MutableMapping[str, Any], old_root: str | None, new_root: str | None) -> None:
    """Lets the paths below `old_root` in the data loading and the metric of a benchmark begin with `new_root`.

    MMEngine evaluates a config before it merges options, so a new ``data_root`` does not reach the paths that were
    made of it.

    Args:
        config: Changed in place.
        old_root: As the config file has it.
        new_root: As the options have it.
    """
    if not old_root or not new_root or old_root == new_root:
        return
    old = old_root.rstrip('/')

    def moved(value: Any) -> Any:
        if isinstance(value, MutableMapping):
            for key, entry in value.items():
                value[key] = moved(entry)
        elif isinstance(value, list):
            value[:] = [moved(entry) for entry in value]
        elif isinstance(value, str) and (value.rstrip('/') == old or value.startswith(f'{old}/')):
            return str(Path(new_root, value[len(old) :].strip('/')))
        return value

    for name in _LOADING:
        if name in config:
            moved(config[name])


def _chosen(names: Sequence[str]) -> list[str]:
    # `mim` hands values on as they are, so commas are allowed too.
    asked = [name for text in names for name in text.split(',') if name]
    unknown = [name for name in asked if name not in (*BENCHMARKS, ALL)]
    if unknown:
        raise UnSAMError(f'--benchmarks {unknown[0]}: no such benchmark; choose from {", ".join(BENCHMARKS)}, or {ALL}')
    return list(BENCHMARKS) if ALL in asked else list(dict.fromkeys(asked))


def _root(pair: str, chosen: Sequence[str]) -> tuple[str, str]:
    name, equals, path = pair.partition('=')
    if not (equals and path) or name not in BENCHMARKS:
        raise UnSAMError(
            f'--data-root: expected NAME=PATH with a name of {", ".join(BENCHMARKS)}, got {pair!r}; write for example '
            'coco=/data/coco'
        )
    _check_chosen(f'--data-root {pair}', name, chosen)
    if not Path(path).is_dir():
        raise UnSAMError(f'--data-root {pair}: no such folder')
    return name, path


def _check_chosen(option: str, name: str, chosen: Sequence[str]) -> None:
    if name in BENCHMARKS and name not in chosen:
        raise UnSAMError(f'{option}: {name} is not to be run; add it to --benchmarks')
