"""AR@1000 on seven data sets as UnSAM's Table 1 has it, and a row of our own below those lines.

Numbers: Wang et al., "Segment Anything without Supervision", NeurIPS 2024, Table 1 (zero-shot, all classes as one).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

BENCHMARKS = {
    'coco': 'COCO',
    'lvis': 'LVIS',
    'ade20k': 'ADE',
    'entityseg': 'Entity',
    'sa1b': 'SA-1B',
    'partimagenet': 'PtIn',
    'paco': 'PACO',
}
"""Name of a benchmark, as in ``configs/_base_/datasets/benchmark_NAME.py``, to its title in the table."""


class Published(NamedTuple):
    """One line of Table 1; figures are percent, `recalls` in the order of `BENCHMARKS`."""

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
    """A Markdown table: the published lines for the same benchmarks, and ours below them.

    The average is that of the columns shown: the published one where these are all seven.

    Args:
        label: Name of our model.
        recalls: Benchmark to AR@1000 in [0, 1], None where it was not measured. Names that are no benchmark of
            `BENCHMARKS` get a column that no published line fills.
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
