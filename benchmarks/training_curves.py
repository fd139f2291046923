"""Plots the losses of a training from its log, and recall from evaluations of its checkpoints.

``python -m benchmarks.training_curves WORK_DIR OUT.png --recall 500=iter_500.json 1000=iter_1000.json``, where each JSON file
is the output of ``python -m unsam_mm evaluate ... --json`` or of a test: an object with the keys ``AR@100`` and ``AR@1000``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from unsam_mm.errors import StoreError
from unsam_mm.files import read_json

_SHOWN = ('AR@100', 'AR@1000')


def read_losses(work_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Name of each loss to (iteration, value) pairs in all runs below `work_dir`; of equal iterations, the last counts.

    Raises:
        StoreError: If there is no log.
    """
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not logs:
        raise StoreError(f'{work_dir}: has no */vis_data/scalars.json; give the work dir of a training')
    curves: dict[str, dict[int, float]] = {}
    for log in logs:
        for line in log.read_text().splitlines():
            record = json.loads(line)
            for name, value in record.items():
                if name.startswith('loss'):
                    curves.setdefault(name, {})[record['step']] = value
    return {name: sorted(values.items()) for name, values in curves.items()}


def draw(losses: dict[str, list[tuple[int, float]]], recall: dict[int, dict[str, float]], out: Path) -> None:
    """Writes a plot of the losses on the left and, if there are evaluations, of recall on the right.

    Args:
        losses: The result of `read_losses`.
        recall: Iteration to recall by name, in [0, 1].
        out: PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10 if recall else 5, 3.5), layout='constrained')
    left, *right = figure.subplots(1, 2 if recall else 1, squeeze=False)[0]
    for name, pairs in losses.items():
        left.plot(*zip(*pairs, strict=True), label=name, linewidth=1)
    left.set(xlabel='iteration', ylabel='loss', yscale='log')
    left.legend()
    for axis in right:
        steps = sorted(recall)
        for name in _SHOWN:
            axis.plot(steps, [recall[step][name] for step in steps], marker='o', label=name)
        axis.set(xlabel='iteration', ylabel='recall', ylim=(0, None))
        axis.legend()
    figure.savefig(out, dpi=120)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--recall', nargs='*', default=[], metavar='ITERATION=JSON')
    options = parser.parse_args(argv)
    recall = {int(step): read_json(path) for step, path in (pair.split('=', 1) for pair in options.recall)}
    draw(read_losses(options.work_dir), recall, options.out)
    return 0


if __name__ == '__main__':
    sys.exit(main())
