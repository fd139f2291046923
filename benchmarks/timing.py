"""Measures CPU time, wall time and memory of both sides of a comparison, alternately and on one thread."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unsam_mm.errors import UnSAMError

ONE_THREAD = dict.fromkeys(('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'), '1')
"""Environment of processes that use one thread; libraries read it when they are loaded."""

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Cost:
    """Time and memory of one side.

    Attributes:
        cpu_s: CPU seconds of all threads, which depend little on other programs.
        wall_s: Wall time in seconds.
        peak_mb: Peak memory in 10^6 bytes, if it is compared.
    """

    cpu_s: float
    wall_s: float
    peak_mb: float | None = None

    def __str__(self) -> str:
        memory = '' if self.peak_mb is None else f', {self.peak_mb:.0f} MB'
        return f'{_seconds(self.cpu_s)}, {_seconds(self.wall_s)}{memory}'


@dataclass(frozen=True)
class Comparison:
    """The comparison with one rival.

    Attributes:
        rival: Name of the rival.
        ours: Cost of this project.
        theirs: Cost of the rival for the same task.
        checked: How the results were compared, with figures.
        equal: True if the results are equal, False if they differ; None if they need not be equal.
    """

    rival: str
    ours: Cost
    theirs: Cost
    checked: str
    equal: bool | None = None

    @property
    def ratios(self) -> dict[str, float]:
        """The rival's cost divided by ours, for each figure that both have."""
        ours, theirs = asdict(self.ours), asdict(self.theirs)
        return {name: theirs[name] / ours[name] for name in ours if ours[name] and theirs[name]}


@dataclass(frozen=True)
class Row:
    """The result of one module in `ROWS`.

    Attributes:
        name: Name of the row.
        comparisons: One for each rival.
        notes: Remarks below the table, such as more figures, or a rival that is not installed.
        figures: More figures, for the JSON file.
    """

    name: str
    comparisons: list[Comparison]
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def in_turns(sides: Mapping[str, Callable[[], Any]], repetitions: int) -> tuple[dict[str, Cost], dict[str, Any]]:
    """Runs all sides repeatedly and alternately, so that other load on the machine affects all of them.

    Args:
        sides: Functions to run, by name. They must have been compiled, and their caches filled, before.
        repetitions: Runs of each side.

    Returns:
        The medians, and the last result of each side.
    """
    cpu_s, wall_s = ({name: [] for name in sides} for _ in range(2))
    results = {}
    for _ in range(repetitions):
        for name, side in sides.items():
            cost, results[name] = timed(side)
            cpu_s[name].append(cost.cpu_s)
            wall_s[name].append(cost.wall_s)
    costs = {name: Cost(statistics.median(cpu_s[name]), statistics.median(wall_s[name])) for name in sides}
    return costs, results


def timed(side: Callable[[], Any]) -> tuple[Cost, Any]:
    """Runs a function once; CPU time includes that of child processes that end meanwhile."""
    cpu_s, wall_s = _cpu_s(), time.perf_counter()
    result = side()
    return Cost(_cpu_s() - cpu_s, time.perf_counter() - wall_s), result


def in_new_process(module: str, *arguments: object, **environment: str) -> dict[str, Any]:
    """The figures that ``python -m benchmarks.MODULE`` prints as JSON in its last line.

    Args:
        module: Name of the module.
        arguments: Arguments of its command line.
        environment: Environment variables that are set for it.
    """
    command = [sys.executable, '-W', 'ignore', '-m', f'benchmarks.{module}', *map(str, arguments)]
    done = subprocess.run(command, check=True, cwd=_ROOT, env=os.environ | environment, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])  # libraries print when they are imported


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits this process, and those that it starts, to one thread.

    Raises:
        UnSAMError: If threadpoolctl is not installed and OMP_NUM_THREADS is not 1.
    """
    import torch

    with ExitStack() as stack:
        try:
            from threadpoolctl import threadpool_limits
        except ModuleNotFoundError as error:
            if os.environ.get('OMP_NUM_THREADS') != '1':
                raise UnSAMError(
                    'ratios are measured on one thread: run with OMP_NUM_THREADS=1, or: pip install threadpoolctl'
                ) from error
        else:
            stack.enter_context(threadpool_limits(1))
        stack.callback(_restore, {name: os.environ.get(name) for name in ONE_THREAD})
        os.environ.update(ONE_THREAD)
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        yield


def peak_memory() -> int:
    """Peak memory of this process in bytes; Linux and macOS.

    getrusage is not used on Linux, where a process starts with the peak of its parent.
    """
    status = Path('/proc/self/status')
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


def format_table(rows: list[Row]) -> str:
    """A Markdown table of all comparisons, and the notes below it."""
    lines = [('row', 'rival', 'ours: CPU, wall', "rival's", 'ratio', 'checked')]
    for row in rows:
        for comparison in row.comparisons:
            ratio = ', '.join(f'{value:.3g}' for value in comparison.ratios.values())
            wrong = 'NOT EQUAL: ' if comparison.equal is False else ''
            cells = (str(comparison.ours), str(comparison.theirs), ratio, wrong + comparison.checked)
            lines.append((row.name, comparison.rival, *cells))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    widths[-1] = len('checked')
    lines.insert(1, tuple('-' * width for width in widths))
    table = [f'| {" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |' for line in lines]
    return '\n'.join(table + [f'{row.name}: {note}' for row in rows for note in row.notes])


def _restore(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _cpu_s() -> float:
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def _seconds(value: float) -> str:
    return f'{value:.3g} s' if value >= 1 else f'{value * 1e3:.3g} ms'
