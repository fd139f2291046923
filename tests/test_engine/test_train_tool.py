"""What tools/train.py decides before a training starts."""

import copy
import runpy
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope, init_default_scope
from torch import nn

import unsam_mm.models  # noqa: F401  (registers the models)
from tests.test_engine.runs import ROOT, TRAIN, equal
from unsam_mm.engine.resuming import check_backbone, check_start
from unsam_mm.errors import UnSAMError

pytestmark = pytest.mark.usefixtures('_unformatted_configs')

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


@pytest.fixture(scope='module')
def models() -> dict[str, nn.Module]:
    """A model with a backbone of each type."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        return {kind: TestBackbone.build(kind, None) for kind in TestBackbone.MODELS}


@pytest.fixture(scope='module')
def files(models: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files of both types of backbones, as "python -m unsam_mm convert" writes them."""
    folder = tmp_path_factory.mktemp('backbones')
    for kind, model in models.items():
        weights = model.backbone.state_dict()
        if kind == 'SwinTransformer':  # MoBY has no norms of the levels
            weights = {f'backbone.{key}': value for key, value in weights.items() if not key.startswith('norm')}
        else:
            weights['fc.weight'] = torch.zeros(3, 2048)  # a classifier does no harm
        torch.save({'state_dict': weights}, folder / f'{kind}.pth')
    return folder


class TestBackbone:
    """The file that a backbone starts from, which MMEngine would load as far as it fits, and only log the rest."""

    MODELS: ClassVar[dict[str, str]] = {'ResNet': 'unsam_r50.py', 'SwinTransformer': 'unsam_swint_prompt.py'}

    @pytest.fixture(params=MODELS, autouse=True)
    def backbone(self, request) -> str:
        """Its type."""
        init_default_scope('mmdet')
        return request.param

    @classmethod
    def build(cls, kind: str, path: Path | None) -> nn.Module:
        model = Config.fromfile(ROOT / 'configs' / '_base_' / 'models' / cls.MODELS[kind]).model
        model.backbone.init_cfg = None if path is None else {'type': 'Pretrained', 'checkpoint': str(path)}
        return MODELS.build(model)

    def test_of_its_own_kind_is_taken_and_the_check_changes_nothing(self, backbone: str, files: Path):
        model = self.build(backbone, files / f'{backbone}.pth')
        before, seed = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
        check_backbone(files / f'{backbone}.pth', model.backbone)
        assert equal(before, model.state_dict())
        assert torch.equal(torch.get_rng_state(), seed)
        model.backbone.init_weights()
        written = torch.load(files / f'{backbone}.pth')['state_dict']
        first = next(iter(model.backbone.state_dict()))
        assert torch.equal(model.backbone.state_dict()[first], next(iter(written.values())))

    @pytest.mark.parametrize(
        'change',
        [
            lambda weights: {},
            lambda weights: {f'other.{name}': value for name, value in weights.items()},
            lambda weights: dict(list(weights.items())[: len(weights) // 2]),
            lambda weights: {
                name: torch.cat([value, value]) if value.ndim else value for name, value in weights.items()
            },
            lambda weights: weights | {f'{list(weights)[-20].rpartition(".")[0]}.more': torch.zeros(1)},
        ],
        ids=['no weight', 'other names', 'a half', 'a wider one', 'a deeper one'],
    )
    def test_of_another_kind_is_refused(
        self, backbone: str, models: dict[str, nn.Module], files: Path, tmp_path: Path, change
    ):
        content = torch.load(files / f'{backbone}.pth', mmap=True)
        torch.save({'state_dict': change(content['state_dict'])}, tmp_path / 'changed.pth')
        model = copy.deepcopy(models[backbone])
        model.backbone.init_cfg = ConfigDict(type='Pretrained', checkpoint=str(tmp_path / 'changed.pth'))
        with pytest.raises(UnSAMError, match=r'changed\.pth: not a checkpoint of the backbone, (ResNet|Swin)'):
            check_backbone(tmp_path / 'changed.pth', model.backbone)

    def test_of_the_other_published_model_is_refused_by_the_training_tool_before_it_touches_anything(
        self, backbone: str, files: Path, tmp_path: Path, tool, capsys
    ):
        other = next(kind for kind in self.MODELS if kind != backbone)
        recipe = {
            'ResNet': 'unsam_r50_2000q_4xb4-50k_sa1b-0.1m',
            'SwinTransformer': 'unsam-prompt_swint_4xb2-50k_sa1b-0.1m',
        }
        latest = tmp_path / 'work' / 'latest.pth'
        latest.parent.mkdir()
        latest.touch()
        options = {
            'model.backbone.init_cfg.checkpoint': files / f'{other}.pth',
            'optim_wrapper.type': 'OptimWrapper',
            'experiment_name': tmp_path.name,
        }
        arguments = [str(ROOT / 'configs' / f'{recipe[backbone]}.py'), '--work-dir', str(latest.parent)]
        arguments += ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
        assert tool['run'](tool['train'], tool['parse_args'](arguments)) == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error: ')]
        assert f'{other}.pth: not a checkpoint of the backbone, {backbone}' in line
        assert latest.exists()


def test_a_model_of_this_package_starts_from_all_of_its_weights_unless_it_is_told_otherwise(tmp_path: Path, caplog):
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    torch.save(
        {name: value for name, value in model.state_dict().items() if name.startswith('0')}, tmp_path / 'half.pth'
    )
    with pytest.raises(UnSAMError, match=r'half\.pth: of another model .* 2 of its 4 weights are missing'):
        check_start(tmp_path / 'half.pth', model)
    check_start(tmp_path / 'half.pth', model, partial=True)
