"""The losses of a training so far, from MMEngine's log."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Curve:
    """One number a logged step.

    Attributes:
        steps: Counted from 1, rising.
        losses: Means over the steps since some before.
        ious: With the pseudo-masks that are learnt, in [0, 1].
    """

    steps: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    ious: tuple[float, ...] = ()

    @property
    def step(self) -> int:
        """The last one; 0 before the first is logged."""
        return self.steps[-1] if self.steps else 0


def read_curve(work_dir: Path) -> Curve:
    """The curve of a training, which may be running, and may have been resumed any number of times."""
    rows: dict[int, tuple[float, float]] = {}
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for row in _rows(path):
            if 'loss' in row and 'step' in row:
                # What a resumed training did again counts, not what it had done before.
                rows[int(row['step'])] = float(row['loss']), float(row.get('iou', 'nan'))
    steps = sorted(rows)
    return Curve(tuple(steps), tuple(rows[step][0] for step in steps), tuple(rows[step][1] for step in steps))


def _rows(path: Path) -> list[dict]:
    rows = []
    try:
        lines = path.read_text(encoding='utf-8').splitlines()
    except OSError:
        return rows
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # the last line may be half written
    return [row for row in rows if isinstance(row, dict)]
