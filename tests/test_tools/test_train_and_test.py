"""The scripts that `mim train` and `mim test` start, run on a model small enough to train in a second."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.test_tools.conftest import TOOLS, start, succeed

pytestmark = pytest.mark.usefixtures('_unformatted_configs')


@pytest.mark.parametrize('script', ['train.py', 'test.py'])
class TestHelp:
    """`mim` reads the help text before it starts a training."""

    def test_imports_neither_torch_nor_mmengine(self, script: str, tmp_path: Path):
        for package in ('torch', 'mmengine'):
            (tmp_path / f'{package}.py').write_text('raise SystemExit("imported")', encoding='utf-8')
        text = succeed(script, '-h', cwd=tmp_path)
        assert '--cfg-options' in text
        assert '--local-rank' in text

    def test_never_says_gpus_since_mim_would_then_pass_that_option(self, script: str, tmp_path: Path):
        assert '--gpus' not in succeed(script, '-h', cwd=tmp_path)


@pytest.mark.slow
class TestTraining:
    def test_writes_to_work_dirs_and_the_name_of_the_config(self, trained: Path):
        assert (trained / 'iter_4.pth').is_file()

    def test_leaves_weights_that_load_without_unpickling_and_equal_the_last_checkpoint(self, trained: Path):
        latest = torch.load(trained / 'latest.pth', weights_only=True)
        last = torch.load(trained / 'iter_4.pth', weights_only=False)
        assert latest['meta']['dataset_meta'] == {'classes': ('object',)}
        assert latest['state_dict'].keys() == last['state_dict'].keys() == {'linear.weight', 'linear.bias'}
        assert all(torch.equal(latest['state_dict'][name], last['state_dict'][name]) for name in last['state_dict'])

    def test_leaves_no_second_file_of_the_name_of_the_config(self, trained: Path, folder: Path):
        # `mim` looks for a config by its file name below the whole checkout, and gives up where it finds two.
        assert (trained / 'tiny.resolved.py').is_file()
        assert list(folder.rglob('tiny.py')) == [folder / 'tiny.py']

    def test_resumes_where_the_last_checkpoint_ends(self, trained: Path, folder: Path):
        copy = folder / 'resumed'
        copy.mkdir()
        (copy / 'iter_4.pth').write_bytes((trained / 'iter_4.pth').read_bytes())
        (copy / 'last_checkpoint').write_text(str(copy / 'iter_4.pth'), encoding='utf-8')
        options = ['--work-dir', copy, '--resume', '--cfg-options', 'train_cfg.max_iters=6']
        assert 'iter: 4' in succeed('train.py', 'tiny.py', *options, cwd=folder)
        assert {path.name for path in copy.glob('iter_*.pth')} == {'iter_4.pth', 'iter_6.pth'}


@pytest.mark.slow
class TestConfig:
    def test_copy_in_the_work_dir_describes_the_same_run(self, trained: Path, scripts):
        train, _ = scripts
        original = train.load_config(train.parse_args(['tiny.py']))
        again = train.load_config(train.parse_args([str(trained / 'tiny.resolved.py')]))
        assert again.to_dict() == original.to_dict() | {'launcher': 'none'}

    def test_option_replaces_a_setting_with_a_value_of_its_type(self, scripts):
        train, _ = scripts
        config = train.load_config(
            train.parse_args(['tiny.py', '--cfg-options', 'train_cfg.max_iters=7', 'list=[1,2]'])
        )
        assert config.train_cfg.max_iters == 7
        assert config.list == [1, 2]

    def test_existing_path_with_spaces_and_commas_is_taken_as_it_stands(self, folder: Path, scripts):
        train, _ = scripts
        (folder / 'my images, 2024').mkdir()
        config = train.load_config(train.parse_args(['tiny.py', '--cfg-options', 'data_root=my images, 2024']))
        assert config.data_root == 'my images, 2024'

    @pytest.mark.parametrize(
        ('option', 'expected'),
        [
            ('train_cfg.max_iters=300', 300),
            ('data_root=300', '300'),
            ('data_prefix.img=300', '300'),
            ('seen=./300', './300'),
        ],
    )
    def test_number_is_a_folder_of_that_name_only_where_a_path_is_meant(
        self, option: str, expected: object, folder: Path, scripts
    ):
        train, _ = scripts
        (folder / '300').mkdir(exist_ok=True)
        config = train.load_config(train.parse_args(['tiny.py', '--cfg-options', option]))
        value = config
        for part in option.partition('=')[0].split('.'):
            value = value[part]
        assert value == expected

    def test_work_dir_on_the_command_line_wins(self, scripts):
        train, _ = scripts
        options = ['--work-dir', 'here', '--cfg-options', 'work_dir=there']
        assert train.load_config(train.parse_args(['tiny.py', *options])).work_dir == 'here'


@pytest.mark.parametrize(
    ('option', 'expected'),
    [
        ('data_root=missing, 2 [a]/', 'missing, 2 [a]/'),
        ('data_root=a=b', 'a=b'),
        ('data_root=301', '301'),
        ('data_root=1e5', '1e5'),
        ('data_root=~/images', '~/images'),
        ('test_dataloader.dataset.ann_file=labels, new.json', 'labels, new.json'),
        ('data_root=one,two', ['one', 'two']),
        ('data_root=one,missing', 'one,missing'),
        ('data_root=[one,missing]', ['one', 'missing']),
        ('model.backbone.drop_path=0.1', 0.1),
        ('train_cfg.max_iters=300', 300),
        ('scale=64,48', [64, 48]),
        ('data_root=None', None),
        ('with_file=True', True),
    ],
)
def test_option_that_means_a_path_is_one_path_also_where_nothing_is_there(
    option: str, expected: object, scripts, tmp_path: Path, monkeypatch
):
    for name in ('one', 'two', '300'):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert scripts[0]._read_options([option]) == {option.partition('=')[0]: expected}


@pytest.mark.slow
class TestTesting:
    def test_writes_the_metrics_of_the_trained_weights_as_json(self, trained: Path, folder: Path):
        succeed('test.py', 'tiny.py', trained / 'latest.pth', '--out', 'results/metrics.json', cwd=folder)
        weights = torch.load(trained / 'latest.pth', weights_only=True)['state_dict']
        inputs = torch.arange(4.0)[:, None].expand(4, 3)
        expected = (inputs @ weights['linear.weight'].T + weights['linear.bias']).abs().mean()
        metrics = json.loads((folder / 'results' / 'metrics.json').read_text())
        assert metrics == {'error': pytest.approx(float(expected), abs=1e-5)}

    def test_latest_of_a_training_that_did_not_end_is_its_last_checkpoint_wherever_its_folder_is(
        self, trained: Path, folder: Path, scripts
    ):
        _, test = scripts
        moved = folder / 'moved'
        moved.mkdir()
        (moved / 'iter_4.pth').write_bytes((trained / 'iter_4.pth').read_bytes())
        (moved / 'last_checkpoint').write_text('/no/longer/there/iter_4.pth', encoding='utf-8')
        assert test.find_checkpoint(moved / 'latest.pth') == moved / 'iter_4.pth'

    def test_reads_the_checkpoints_of_mmengine_with_their_loss_curves(self, trained: Path, scripts):
        train, test = scripts
        arguments = ['tiny.py', str(trained / 'iter_4.pth'), '--cfg-options', 'experiment_name=curves']
        assert train.run(test.test, test.parse_args(arguments)) == 0

    def test_without_a_checkpoint_scores_the_initial_weights_and_says_so(self, folder: Path, scripts, capsys):
        train, test = scripts
        arguments = ['tiny.py', '--out', 'initial.json', '--cfg-options', 'experiment_name=initial']
        assert train.run(test.test, test.parse_args(arguments)) == 0
        assert 'No checkpoint is given' in ''.join(capsys.readouterr())
        assert json.loads((folder / 'initial.json').read_text())['error'] > 0


@pytest.mark.slow
class TestMistakes:
    """What a user can mend is one line on standard error, and the exit status is 1."""

    @staticmethod
    def line(scripts: tuple[ModuleType, ModuleType], capsys: pytest.CaptureFixture, tool: str, *arguments: str) -> str:
        train, test = scripts
        module, entry = (train, train.train) if tool == 'train' else (test, test.test)
        assert train.run(entry, module.parse_args(['tiny.py', *arguments])) == 1
        return capsys.readouterr().err.strip().splitlines()[-1]

    def test_missing_checkpoint(self, scripts, capsys):
        assert 'none/latest.pth: no such checkpoint' in self.line(scripts, capsys, 'test', 'none/latest.pth')

    def test_metrics_in_the_place_of_the_checkpoint(self, trained: Path, scripts, capsys):
        latest = trained / 'latest.pth'
        before = latest.read_bytes()
        assert 'would overwrite an input' in self.line(scripts, capsys, 'test', str(latest), '--out', str(latest))
        assert latest.read_bytes() == before

    def test_checkpoint_that_was_cut_short(self, folder: Path, scripts, capsys):
        torch.save({'linear.weight': torch.zeros(1, 3)}, folder / 'cut.pth')
        whole = (folder / 'cut.pth').read_bytes()
        (folder / 'cut.pth').write_bytes(whole[: len(whole) // 2])
        assert 'cut.pth: cannot be read as a checkpoint' in self.line(scripts, capsys, 'test', 'cut.pth')

    def test_checkpoint_of_another_model(self, folder: Path, scripts, capsys):
        torch.save({'linear.weight': torch.zeros(1, 7), 'linear.bias': torch.zeros(1)}, folder / 'other.pth')
        line = self.line(scripts, capsys, 'test', 'other.pth')
        assert 'other.pth: of another model' in line
        assert 'linear.weight' in line

    def test_checkpoint_that_would_run_code(self, folder: Path, scripts, capsys):
        torch.save({'state_dict': {}, 'extra': Path('x')}, folder / 'code.pth')
        line = self.line(scripts, capsys, 'test', 'code.pth')
        assert 'code.pth: cannot be read as a checkpoint: besides tensors it contains pathlib.PosixPath' in line

    @pytest.mark.parametrize('content', [b'', b'text', b'\x80\x02}', b'\x80\x05\x95', b'PK\x03\x04', bytes(64)])
    def test_file_that_is_no_checkpoint(self, folder: Path, scripts, capsys, content: bytes):
        (folder / 'text.pth').write_bytes(content)
        assert 'text.pth: cannot be read as a checkpoint' in self.line(scripts, capsys, 'test', 'text.pth')

    def test_checkpoint_of_a_training_under_an_mmengine_that_lists_no_safe_classes(
        self, trained: Path, scripts, capsys, monkeypatch
    ):
        """Upstream's; its loss curves could only be unpickled, and training again would change nothing."""
        monkeypatch.delattr('mmengine.runner.checkpoint.get_torch_safe_globals')
        allowed = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            line = self.line(scripts, capsys, 'test', str(trained / 'iter_4.pth'))
        finally:
            torch.serialization.add_safe_globals(allowed)
        assert 'iter_4.pth: cannot be read as a checkpoint: besides tensors it contains ' in line
        assert 'give the latest.pth that' in line
        assert 'again' not in line

    def test_nobody_is_told_to_unpickle(self, folder: Path, scripts, capsys):
        torch.save({'extra': Path('x')}, folder / 'pickled.pth')
        assert 'weights_only' not in self.line(scripts, capsys, 'test', 'pickled.pth')

    def test_resuming_from_another_model(self, folder: Path, scripts, capsys):
        torch.save({'linear.weight': torch.zeros(1, 7)}, folder / 'seven.pth')
        options = ['--resume=seven.pth', '--cfg-options', 'work_dir=seven', 'experiment_name=seven']
        line = self.line(scripts, capsys, 'train', *options)
        assert 'seven.pth: of another model' in line

    def test_resuming_from_weights_alone(self, trained: Path, scripts, capsys):
        options = [f'--resume={trained / "latest.pth"}', '--cfg-options', 'work_dir=weights', 'experiment_name=weights']
        line = self.line(scripts, capsys, 'train', *options)
        assert 'latest.pth: has no optimizer, so no training can be resumed from it' in line

    def test_training_that_starts_from_no_file(self, scripts, capsys):
        options = ['--cfg-options', 'work_dir=absent', 'experiment_name=absent', 'load_from=none/latest.pth']
        assert 'load_from=none/latest.pth: no such checkpoint' in self.line(scripts, capsys, 'train', *options)

    def test_training_that_starts_from_a_checkpoint_of_which_nothing_fits(self, folder: Path, scripts, capsys):
        torch.save({'cubic.weight': torch.zeros(1, 3)}, folder / 'cubic.pth')
        options = ['--cfg-options', 'work_dir=cubic', 'experiment_name=cubic', 'load_from=cubic.pth']
        assert 'cubic.pth: of another model than that of the config; 2 of its 2 weights' in self.line(
            scripts, capsys, 'train', *options
        )

    def test_training_that_starts_from_a_checkpoint_of_which_a_part_fits(self, folder: Path, scripts, caplog):
        """The model is of another package, where heads with other classes commonly start afresh; but it is said."""
        torch.save({'linear.weight': torch.zeros(1, 3), 'linear.bias': torch.zeros(7)}, folder / 'part.pth')
        train, _ = scripts
        options = ['work_dir=part', 'experiment_name=part', 'load_from=part.pth', 'train_cfg.max_iters=2']
        assert train.run(train.train, train.parse_args(['tiny.py', '--cfg-options', *options])) == 0
        log = next((folder / 'part').rglob('*.log')).read_text()
        assert 'part.pth: not all weights of the model; 1 of its 2 weights are missing or differ in shape' in log
        assert 'linear.bias' in log

    @pytest.mark.parametrize(
        ('backbone', 'remedy'),
        [
            ('ResNet', 'for that of DINO run: python -m unsam_mm convert dino_resnet50 none.pth'),
            ('SwinTransformer', 'python -m unsam_mm convert moby_swin_t_300ep_pretrained.pth none.pth'),
            ('PyramidVisionTransformer', 'put it there, or set model.backbone.init_cfg=None'),
        ],
    )
    def test_backbone_that_starts_from_no_file(self, scripts, capsys, backbone: str, remedy: str):
        options = [f'model.backbone.type={backbone}', 'model.backbone.init_cfg.checkpoint=none.pth']
        line = self.line(scripts, capsys, 'train', '--work-dir=absent', '--cfg-options', *options)
        assert 'none.pth: no such file' in line
        assert line.endswith(remedy)

    def test_error_in_a_dataloader_worker(self, scripts, capsys):
        options = ['test_dataloader.dataset.type=TinyBrokenImages', 'test_dataloader.num_workers=1']
        assert self.line(scripts, capsys, 'test', '--cfg-options', *options) == 'error: 0.png: broken; mend it'

    def test_option_without_an_equals_sign(self, scripts, capsys):
        line = self.line(scripts, capsys, 'train', '--cfg-options', 'train_cfg.max_iters')
        assert "expected KEY=VALUE, got 'train_cfg.max_iters'" in line

    @pytest.mark.skipif(torch.cuda.is_available(), reason='this option works on this machine')
    def test_option_that_needs_cuda(self, scripts, capsys):
        assert '--amp needs a CUDA device, found cpu only' in self.line(scripts, capsys, 'train', '--amp')

    @pytest.mark.skipif(torch.cuda.is_available(), reason='MMEngine itself starts the processes there')
    def test_launcher_that_did_not_start_this_process(self, scripts, capsys):
        line = self.line(scripts, capsys, 'train', '--launcher=pytorch')
        assert 'MASTER_ADDR, MASTER_PORT is not set; start the processes with torchrun' in line

    def test_pictures_from_a_config_that_draws_none(self, scripts, capsys):
        assert 'DetVisualizationHook' in self.line(scripts, capsys, 'test', '--show-dir', 'pictures')


@pytest.mark.parametrize('script', ['train.py', 'test.py'])
def test_missing_config_is_one_line_that_names_the_file(script: str, tmp_path: Path):
    result = start(TOOLS / script, 'none.py', cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr == 'error: none.py: no such config; give the path of a file such as configs/unsam.py\n'


def test_no_workers_that_prepare_regions_is_one_line(tmp_path: Path):
    result = start(TOOLS / 'prepare_regions.py', 'any.py', '--workers', '-1', cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.endswith('error: --workers must be positive, got -1\n')
