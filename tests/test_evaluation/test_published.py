"""The published rows, in the code and in the documentation, and ours below them."""

from pathlib import Path

import pytest

from unsam_mm.evaluation.benchmark_runs import BENCHMARKS, TABLE_1, format_row, mean_recall

DOCS = Path(__file__).parents[2] / 'docs' / 'results.md'


def cells_of(line):
    return [cell.strip() for cell in line.strip().strip('|').split('|')]


@pytest.mark.parametrize('row', TABLE_1, ids=lambda row: f'{row.method} {row.images}')
def test_published_average_is_that_of_the_seven_columns(row):
    assert len(row.recalls) == len(BENCHMARKS)
    assert sum(row.recalls) / len(row.recalls) == pytest.approx(row.average, abs=0.101)


def test_documentation_has_the_same_rows():
    rows = [cells_of(line) for line in DOCS.read_text(encoding='utf-8').splitlines() if line.startswith('| ')]
    published = [[r.method, r.backbone, r.images, f'{r.average}', *map(str, r.recalls)] for r in TABLE_1]
    assert [row[:11] for row in rows if len(row) == 12 and row[:11] in published] == published


def test_all_seven_columns_stand_beside_the_published_average():
    table = format_row('ours', dict.fromkeys(BENCHMARKS, 0.5)).splitlines()
    assert cells_of(table[0])[3:] == ['Avg', *BENCHMARKS.values()]
    assert cells_of(table[6])[:5] == ['UnSAM', 'RN50', '0.1M', '39.2', '40.5']
    assert cells_of(table[-1]) == ['ours', '', '', *['50.0'] * 8]


def test_some_columns_have_the_average_of_these_in_any_order():
    table = format_row('ours', {'paco': 0.1, 'coco': 0.2}).splitlines()
    assert cells_of(table[2]) == ['SAM (supervised)', 'ViT-B', '11M', '33.9', '18.1', '49.6']


def test_what_was_not_measured_is_a_dash_and_leaves_no_average():
    assert cells_of(format_row('ours', {'coco': 0.2, 'lvis': None}).splitlines()[-1])[3:] == ['-', '20.0', '-']
    assert mean_recall({'coco': 0.2, 'lvis': None}) is None


def test_another_data_set_has_no_published_rows():
    assert [cells_of(line)[0] for line in format_row('ours', {'cells': 0.2}).splitlines()] == [
        'method',
        '------',
        'ours',
    ]
