"""`mim test --benchmarks`: a row of Table 1, from data sets whose recall is known beforehand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests import warm_python
from tests.test_tools.conftest import TOOLS, environment
from unsam_mm.evaluation.benchmark_runs import BENCHMARKS

pytestmark = pytest.mark.usefixtures('_unformatted_configs')

BENCHMARK = """
test_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='TinyFolder', data_root='data/NAME'),
)
test_evaluator = dict(type='TinyRecall')
"""


class Benchmarks:
    """Seven data sets with a text file that holds the recall that a test on them gives."""

    def __init__(self, root: Path, scripts: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.train, self.test = scripts
        self.work_dir = root / 'work'
        monkeypatch.setattr(self.test, 'BASES', root)
        for name in ('coco', 'lvis', 'ade20k', 'entityseg', 'sa1b', 'partimagenet', 'paco'):
            text = BENCHMARK.replace('data/NAME', str(root / 'data' / name))
            (root / f'benchmark_{name}.py').write_text(text, encoding='utf-8')

    def put(self, name: str, recall: float, folder: str = 'data') -> Path:
        path = self.root / folder / name
        path.mkdir(parents=True, exist_ok=True)
        (path / 'recall.txt').write_text(str(recall), encoding='utf-8')
        return path

    def run(self, checkpoint: Path, *arguments: object) -> int:
        options = [checkpoint, '--work-dir', self.work_dir, *arguments]
        return self.train.run(self.test.test, self.test.parse_args(['tiny.py', *map(str, options)]))

    @property
    def recalls(self) -> dict[str, float | None]:
        return json.loads((self.work_dir / 'benchmarks.json').read_text())['row']['AR@1000']


@pytest.mark.slow
class TestBenchmarks:
    @pytest.fixture
    def benchmarks(self, tmp_path: Path, scripts, monkeypatch: pytest.MonkeyPatch) -> Benchmarks:
        return Benchmarks(tmp_path, scripts, monkeypatch)

    def test_row_stands_below_the_published_ones_with_the_average_of_the_columns(self, benchmarks, trained, capsys):
        benchmarks.put('coco', 0.4)
        benchmarks.put('paco', 0.2)
        assert benchmarks.run(trained / 'latest.pth', '--benchmarks', 'coco', 'paco') == 0
        table = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
        cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in table]
        assert cells[0] == ['method', 'backbone', 'images', 'Avg', 'COCO', 'PACO']
        assert cells[2] == ['SAM (supervised)', 'ViT-B', '11M', '33.9', '49.6', '18.1']
        assert cells[-1] == ['ours: tiny, latest.pth', '', '', '30.0', '40.0', '20.0']
        assert benchmarks.recalls == {'coco': 0.4, 'paco': 0.2}

    def test_missing_data_are_named_at_the_end_and_the_others_are_measured(self, benchmarks, trained, capsys):
        benchmarks.put('coco', 0.4)
        assert benchmarks.run(trained / 'latest.pth', '--benchmarks', 'all') == 1
        streams = capsys.readouterr()
        assert 'error: 6 of 7 benchmarks were not measured. lvis: ' in streams.err
        assert f'{benchmarks.root / "data" / "lvis"}: no such folder' in streams.err
        assert '--data-root lvis=PATH' in streams.err
        cells = [cell.strip() for cell in streams.out.splitlines()[-1].split('|')]
        assert cells[4:7] == ['-', '40.0', '-']
        assert benchmarks.recalls['coco'] == 0.4
        assert benchmarks.recalls['lvis'] is None

    def test_second_run_measures_what_is_missing_and_nothing_again_unless_asked(self, benchmarks, trained):
        benchmarks.put('coco', 0.4)
        assert benchmarks.run(trained / 'latest.pth', '--benchmarks', 'coco', 'lvis') == 1
        benchmarks.put('coco', 0.5)
        benchmarks.put('lvis', 0.3)
        assert benchmarks.run(trained / 'latest.pth', '--benchmarks', 'coco', 'lvis') == 0
        assert benchmarks.recalls == {'coco': 0.4, 'lvis': 0.3}
        written = json.loads((benchmarks.work_dir / 'benchmarks.json').read_text())['measurements']
        assert [(entry['benchmark'], entry['metrics']) for entry in written] == [
            ('coco', {'unsam/AR@1000': 0.4}),
            ('lvis', {'unsam/AR@1000': 0.3}),
        ]
        assert benchmarks.run(trained / 'latest.pth', '--benchmarks', 'coco', '--again') == 0
        assert benchmarks.recalls == {'coco': 0.5}

    def test_other_weights_or_settings_are_measured_again(self, benchmarks, trained):
        other = benchmarks.root / 'other.pth'
        checkpoint = torch.load(trained / 'latest.pth', weights_only=True)
        checkpoint['state_dict']['linear.bias'] += 1
        torch.save(checkpoint, other)
        recalls = []
        for recall, weights, options in (
            (0.4, trained / 'latest.pth', []),
            (0.5, other, []),
            (0.6, other, ['--cfg-options', 'coco.test_dataloader.dataset.type=TinyFolderOfAnotherName']),
        ):
            benchmarks.put('coco', recall)
            assert benchmarks.run(weights, '--benchmarks', 'coco', *options) == 0
            recalls.append(benchmarks.recalls['coco'])
        assert recalls == [0.4, 0.5, 0.6]
        written = json.loads((benchmarks.work_dir / 'benchmarks.json').read_text())['measurements']
        assert [entry['metrics']['unsam/AR@1000'] for entry in written] == recalls

    def test_data_root_says_where_a_benchmark_lies(self, benchmarks, trained):
        benchmarks.put('coco', 0.4)
        moved = benchmarks.put('coco', 0.7, folder='elsewhere')
        arguments = ['--benchmarks', 'coco', '--data-root', f'coco={moved}']
        assert benchmarks.run(trained / 'latest.pth', *arguments) == 0
        assert benchmarks.recalls == {'coco': 0.7}
        options = ['--cfg-options', f'coco.data_root={benchmarks.put("coco", 0.2)}']
        assert benchmarks.run(trained / 'latest.pth', '--benchmarks', 'coco', '--again', *options) == 0
        assert benchmarks.recalls == {'coco': 0.2}

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            (['--benchmarks', 'cocoa'], '--benchmarks cocoa: no such benchmark; choose from coco, '),
            (['--benchmarks', 'coco', '--data-root', '/data'], 'expected NAME=PATH with a name of coco, '),
            (['--benchmarks', 'coco', '--data-root', 'coco=/none'], '--data-root coco=/none: no such folder'),
            (
                ['--benchmarks', 'coco', '--data-root', 'lvis=/'],
                'lvis is not among the benchmarks to run; add it to --benchmarks',
            ),
            (['--data-root', 'coco=/'], 'for the test set of the config write --cfg-options data_root=/'),
            (['--cfg-options', 'coco.data_root=/'], 'coco is not among the benchmarks to run; add it to --benchmarks'),
        ],
    )
    def test_wrong_option_is_one_line(self, arguments, message, benchmarks, trained, capsys):
        assert benchmarks.run(trained / 'latest.pth', *arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert len(error.strip().splitlines()) == 1

    def test_two_processes_measure_each_image_once_and_print_one_row(self, benchmarks, trained, folder):
        benchmarks.put('coco', 0.4)
        # What `mim` starts is this file, which looks for benchmarks beside itself.
        tools = benchmarks.root / 'package' / 'tools'
        shutil.copytree(TOOLS, tools)
        bases = benchmarks.root / 'package' / 'configs' / '_base_' / 'datasets'
        bases.mkdir(parents=True)
        for path in benchmarks.root.glob('benchmark_*.py'):
            shutil.copy(path, bases)
        command = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
        command += ['--run-path', '--start-method=fork']  # forks where it would start Python twice, and adds no path
        arguments = ['tiny.py', trained / 'latest.pth', '--launcher', 'pytorch', '--work-dir', benchmarks.work_dir]
        result = warm_python.run(
            *command,
            tools / 'test.py',
            *arguments,
            *('--benchmarks', 'coco', 'lvis'),
            cwd=folder,
            env=environment(folder, tools),
            timeout=180,
        )
        assert result.returncode != 0
        assert result.stdout.count('| ours: tiny, latest.pth |') == 1, result.stderr
        assert '1 of 2 benchmarks were not measured. lvis: ' in result.stderr
        assert benchmarks.recalls == {'coco': 0.4, 'lvis': None}

    def test_without_benchmarks_the_row_holds_the_own_test_set(self, benchmarks, trained, capsys):
        options = ['--cfg-options', 'test_evaluator.type=TinyRecall']
        assert benchmarks.run(trained / 'latest.pth', *options) == 0
        assert capsys.readouterr().out.splitlines()[-3:] == [
            '| method                 | backbone | images |  Avg | TinyImages |',
            '| ---------------------- | -------- | ------ | ---: | ---------: |',
            '| ours: tiny, latest.pth |          |        | 80.0 |       80.0 |',
        ]
        assert benchmarks.recalls == {'TinyImages': 0.8}


def test_options_go_to_the_benchmark_that_they_name_to_all_or_to_the_model(scripts, tmp_path):
    of_benchmarks, of_model = scripts[1].sort_options(
        ['lvis', 'coco'],
        [f'coco={tmp_path}'],
        ['lvis.test_dataloader.dataset.indices=5', 'test_dataloader.batch_size=2', 'model.test_cfg.max_per_image=10'],
    )
    assert of_benchmarks == {
        'lvis': ['test_dataloader.dataset.indices=5', 'test_dataloader.batch_size=2'],
        'coco': ['test_dataloader.batch_size=2', f'data_root={tmp_path}'],
    }
    assert of_model == ['model.test_cfg.max_per_image=10']


def test_without_benchmarks_all_options_are_for_the_config(scripts):
    options = ['data_root=/images', 'test_dataloader.batch_size=2']
    assert scripts[1].sort_options([], [], options) == ({}, options)


def test_all_means_the_seven_in_the_order_of_the_table(scripts):
    assert list(scripts[1].sort_options(['paco', 'all'], [], [])[0]) == list(BENCHMARKS)
