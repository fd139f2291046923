"""The benchmarks at tiny sizes: both sides of every row agree, and the command says what came out."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from benchmarks import inputs, plain_published, timing, tree
from benchmarks.__main__ import main
from tests.conftest import skip_without_weights
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import encode_bitmaps, rle_to_json

needs_scikit_learn = pytest.mark.skipif(
    importlib.util.find_spec('sklearn') is None, reason='scikit-learn is not installed'
)


def measure(name, given=None, **size):
    """The outcome of a row at the given size."""
    skip_without_weights()
    return importlib.import_module(f'benchmarks.{name}').run(given or inputs.Inputs(), **size)


# The rows


def test_the_dictionary_loop_makes_the_same_tree():
    row = measure('tree', side=8, repetitions=1)
    assert row.comparisons[0].equal
    assert '63 of 63 regions equal' in row.comparisons[0].checked


@needs_scikit_learn
def test_scikit_learn_makes_a_whole_tree_of_another_linkage():
    _, average, ward = measure('tree', side=8, repetitions=1).comparisons
    assert (average.rival, ward.rival) == ('scikit-learn, average linkage', 'scikit-learn, ward linkage')
    assert 'of 63 regions are equal' in average.checked
    assert average.equal is None


def test_without_scikit_learn_a_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    row = measure('tree', side=4, repetitions=1)
    assert len(row.comparisons) == 1
    assert row.notes == ['scikit-learn is not installed and was left out; pip install scikit-learn']


def test_lanczos_cuts_where_the_dense_solver_cuts():
    comparison = measure('ncut', side=20, repetitions=1).comparisons[0]
    assert comparison.equal
    assert '400 of 400 on the same side' in comparison.checked


@pytest.mark.slow
@pytest.mark.usefixtures('_benchmarks_fork')
def test_the_conquer_step_finds_the_masks_of_the_plain_one():
    row = measure('conquer', n_objects=3, n_plain=2, height=300)
    assert row.comparisons[0].equal
    assert row.figures['plain_masks'] == row.figures['our_masks'] > 0
    assert set(row.comparisons[0].ratios) == {'cpu_s', 'wall_s', 'peak_mb'}


@pytest.mark.parametrize(('drawn', 'distance'), [([0, 1], 0), ([0, 2], 10), ([0], 75), ([], 75)])
def test_masks_that_are_not_equal_are_compared_by_pixels(drawn, distance):
    """Masks of 25, 50 and 60 pixels, the last holding the second; the first two are the plain side's."""
    masks = np.zeros((3, 20, 20), bool)
    masks[0, :5, :5] = masks[1, 5:10, :10] = masks[2, 5:11, :10] = True
    counts = [rle['counts'] for rle in encode_bitmaps(masks)]
    found = plain_published._differing_px({counts[0], counts[1]}, {counts[i] for i in drawn}, (20, 20))
    assert found == distance


@pytest.mark.slow
def test_the_presets_are_compared_on_time_and_on_recall(tmp_path, coffee):
    """On an image with a plain corner, in which nothing is found."""
    coffee = coffee.copy()
    coffee[:64, :64] = 0
    Image.fromarray(coffee).save(tmp_path / 'coffee.png')
    height, width = coffee.shape[:2]
    cup = np.zeros((1, height, width), bool)
    cup[:, height // 4 : height // 2, width // 3 : width // 2] = True
    truth = {
        'images': [{'id': 5, 'file_name': 'coffee.png', 'height': height, 'width': width}, {'id': 6, 'file_name': 'b'}],
        'annotations': [
            {'id': 1, 'image_id': 5, 'category_id': 1, 'segmentation': rle_to_json(encode_bitmaps(cup)[0])}
        ],
    }
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    row = measure('generator', inputs.Inputs(tmp_path, tmp_path / 'truth.json'))
    assert set(row.figures['AR@1000']) == {'default', 'release'}
    assert row.figures['masks_per_image']['default'] > 100
    assert row.figures['images'] == 1


def test_three_ways_of_suppression_leave_the_same_masks():
    row = measure('nms', n_masks=300, shrink=4, repetitions=1)
    assert [comparison.equal for comparison in row.comparisons] == [True, True]


@pytest.mark.slow
def test_two_workers_write_what_one_writes():
    row = measure('workers', inputs.Inputs(count=2), n_images=3, crop_px=64, vit_px=112)
    assert row.comparisons[0].equal
    assert '3 files equal' in row.comparisons[0].checked


@pytest.mark.slow
@pytest.mark.usefixtures('_benchmarks_fork')
def test_the_index_of_sa1b_reads_the_names_that_the_list_of_mmengine_holds():
    pytest.importorskip('mmengine')
    row = measure('sa1b_index', sizes=[60])
    assert row.comparisons[0].equal
    assert set(row.figures['60']) == {'listing', 'start', 'stock'}


@pytest.mark.slow
@pytest.mark.usefixtures('_benchmarks_fork')
def test_each_size_is_measured_in_a_process_of_its_own():
    row = measure('scaling', megapixels=(0.02, 0.08))
    small, large = row.figures['sizes']
    assert large['pixels'] == pytest.approx(4 * small['pixels'], rel=0.02)
    assert sum(large['stages_s'].values()) == pytest.approx(large['rest_cpu_s'])
    assert large['model_mb'] > 100  # torch alone takes more
    assert set(row.figures['exponents']) == {'rest_cpu_s', 'vit_cpu_s', 'peak_mb'}


# How they are measured


def test_sides_take_turns_and_the_median_counts():
    turns = []
    costs, results = timing.in_turns({name: lambda name=name: turns.append(name) or len(turns) for name in 'ab'}, 3)
    assert ''.join(turns) == 'ababab'
    assert results == {'a': 5, 'b': 6}
    assert all(0 <= cost.cpu_s < 1 and 0 < cost.wall_s < 1 for cost in costs.values())


def test_processor_time_counts_work_and_not_waiting():
    script = 'import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass'
    work, _ = timing.timed(lambda: subprocess.run([sys.executable, '-c', script], check=True))
    wait, _ = timing.timed(lambda: time.sleep(0.3))
    assert work.cpu_s >= 0.3
    assert wait.cpu_s < 0.1
    assert wait.wall_s >= 0.3


def test_one_thread_is_asked_for_where_it_cannot_be_set(monkeypatch):
    monkeypatch.setitem(sys.modules, 'threadpoolctl', None)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    with pytest.raises(UnSAMError, match='run with OMP_NUM_THREADS=1'), timing.one_thread():
        pass


def test_the_table_shows_ratios_and_what_was_not_equal():
    ours, theirs = timing.Cost(0.002, 0.004, 10), timing.Cost(2, 2, 25)
    row = timing.Row('nms', [timing.Comparison('pixels', ours, theirs, '3 of 4', equal=False)], ['a note'])
    header, rule, line, note = timing.format_table([row]).splitlines()
    assert header.startswith('| row | rival  | ours: CPU, wall')
    assert set(rule) <= set('|- ')
    assert '| 2 ms, 4 ms, 10 MB | 2 s, 2 s, 25 MB | 1e+03, 500, 2.5 | NOT EQUAL: 3 of 4 |' in line
    assert note == 'nms: a note'


# The command


def test_the_command_prints_a_table_and_writes_its_figures(tmp_path, capsys):
    skip_without_weights()
    assert main(['--rows', 'tree', '--json', str(tmp_path / 'bench.json')]) == 0
    printed = capsys.readouterr().out
    assert '1024 patches of 384 channels: 1023 of 1023 regions equal' in printed
    written = json.loads((tmp_path / 'bench.json').read_text())
    assert written['machine']['cores'] >= 1
    comparison = written['rows'][0]['comparisons'][0]
    assert comparison['ratios']['cpu_s'] == pytest.approx(comparison['theirs']['cpu_s'] / comparison['ours']['cpu_s'])
    assert comparison['ratios']['cpu_s'] > 5  # nearly fifty on a busy core


def test_the_command_fails_if_two_sides_that_must_agree_do_not(monkeypatch, capsys):
    cost = timing.Cost(1, 1)
    row = timing.Row('tree', [timing.Comparison('pairs', cost, cost, '1 of 2', equal=False)])
    monkeypatch.setattr(tree, 'run', lambda given: row)
    assert main(['--rows', 'tree']) == 1
    assert 'NOT EQUAL: 1 of 2' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--rows', 'speed'], "no benchmark row is called 'speed'; choose from tree, ncut, conquer, generator, nms"),
        (['--gt', 'truth.json'], 'truth.json needs the folder of its images: give --images'),
        (['--images', 'nowhere'], 'nowhere: no such folder'),
        (['--count', '0'], '--count must be at least 1, got 0'),
    ],
)
def test_mistakes_get_one_line_before_anything_is_measured(capsys, arguments, message):
    assert main(arguments) == 1
    printed = capsys.readouterr().err.strip()
    assert printed.startswith('error: ')
    assert message in printed
    assert '\n' not in printed
