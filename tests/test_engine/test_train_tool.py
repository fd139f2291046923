"""What tools/train.py decides before a training starts."""

import runpy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from tests.test_engine.runs import ROOT, TRAIN
from unsam_mm.errors import UnSAMError

RECIPE = str(ROOT / 'configs' / 'unsam_r50_2000q_4xb4-200k_sa1b-0.4m_round-2.py')


@pytest.fixture(scope='module')
def tool() -> dict:
    return runpy.run_path(str(TRAIN))


class TestResume:
    @pytest.fixture
    def config(self, tmp_path: Path) -> Config:
        return Config({'work_dir': str(tmp_path), 'load_from': 'first_round.pth', 'resume': False})

    def test_takes_the_last_checkpoint_instead_of_what_the_config_loads(self, tool, config, tmp_path: Path):
        torch.save({}, tmp_path / 'iter_2.pth')
        tool['_resume'](config, 'auto')
        assert (config.load_from, config.resume) == (str(tmp_path / 'iter_2.pth'), True)

    def test_before_the_first_checkpoint_starts_with_what_the_config_loads(self, tool, config, capsys):
        tool['_resume'](config, 'auto')
        assert (config.load_from, config.resume) == ('first_round.pth', False)
        assert 'no checkpoint yet; training starts from the beginning' in capsys.readouterr().out

    def test_from_a_checkpoint_that_does_not_exist_is_refused(self, tool, config):
        with pytest.raises(UnSAMError, match=r'none\.pth: no such checkpoint'):
            tool['_resume'](config, 'none.pth')


@pytest.mark.skipif(torch.cuda.is_available(), reason='mixed precision works on this machine')
def test_recipe_in_mixed_precision_names_the_setting_to_change_where_there_is_no_cuda(tool, tmp_path, capsys):
    status = tool['run'](tool['train'], tool['parse_args']([RECIPE, '--work-dir', str(tmp_path)]))
    error = capsys.readouterr().err
    assert status == 1
    assert 'needs a CUDA device, found cpu only; set optim_wrapper.type=OptimWrapper' in error
    assert len(error.strip().splitlines()) == 1
