"""Every config is read and built; the paths in it reach the data sets."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from unsam_mm.engine import UnSAMDataRootHook, UnSAMFirstEvaluationHook, resolve_data_root
from unsam_mm.errors import UnSAMError

ROOT = Path(__file__).parents[1]
LEAVES = sorted((ROOT / 'configs').glob('*.py'))
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


@pytest.fixture(params=LEAVES, ids=lambda path: path.stem)
def config(request) -> Config:
    config = Config.fromfile(request.param)
    init_default_scope(config.default_scope)
    return config


def test_every_model_is_built(config):
    from mmdet.registry import MODELS

    if config.model.backbone.type == 'UnSAMViTBackbone':
        config.model.backbone.pretrained = False
    model = MODELS.build(config.model)
    assert model.mask_head.num_queries >= config.model.test_cfg.max_per_image


def test_every_pipeline_dataset_metric_hook_and_visualizer_is_built(config):
    from mmdet.registry import DATASETS, HOOKS, METRICS, VISUALIZERS

    resolve_data_root(config)
    for loader in LOADERS:
        assert len(DATASETS.build(config[loader].dataset)) > 0
    METRICS.build(config.val_evaluator)
    METRICS.build(config.test_evaluator)
    for hook in config.custom_hooks:
        HOOKS.build(hook)
    VISUALIZERS.build(dict(config.visualizer, name='configs', vis_backends=None))


def test_no_config_names_weights_that_torchvision_would_have_to_load(config):
    assert 'torchvision://' not in config.pretty_text


def test_no_module_has_the_name_of_a_config_since_mim_would_find_both():
    modules = {
        path.name for package in ('unsam_mm', 'napari_unsam', 'tools') for path in (ROOT / package).rglob('*.py')
    }
    assert modules.isdisjoint(path.name for path in LEAVES)


def test_a_data_root_given_on_the_command_line_reaches_every_dataset(config):
    config.merge_from_dict({'data_root': '/my/images'})
    resolve_data_root(config)
    assert [config[loader].dataset.data_root for loader in LOADERS] == ['/my/images'] * 3


def test_the_training_tool_hands_the_data_root_on(tmp_path):
    tool = runpy.run_path(str(ROOT / 'tools' / 'train.py'))
    options = tool['parse_args']([str(ROOT / 'configs' / 'unsam.py'), '--cfg-options', f'data_root={tmp_path}'])
    config = tool['load_config'](options)
    assert [config[loader].dataset.data_root for loader in LOADERS] == [str(tmp_path)] * 3


def test_a_data_root_written_for_one_dataset_wins():
    config = Config.fromfile(ROOT / 'configs' / 'unsam.py')
    config.merge_from_dict({'data_root': '/my/images', 'val_dataloader.dataset.data_root': '/other'})
    resolve_data_root(config)
    assert config.train_dataloader.dataset.data_root == '/my/images'
    assert config.val_dataloader.dataset.data_root == '/other'


@pytest.mark.parametrize('given', ['truth.json', 'images/truth.json'])
def test_an_annotation_file_is_found_from_here_or_below_the_images(tmp_path, monkeypatch, given):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'truth.json').touch()
    monkeypatch.chdir(tmp_path)
    config = Config.fromfile(ROOT / 'configs' / 'unsam.py')
    config.merge_from_dict({'ann_file': given, 'data_root': 'images'})
    resolve_data_root(config)
    found = str(tmp_path / 'images' / 'truth.json')
    assert config.test_evaluator.ann_file == config.test_dataloader.dataset.ann_file == found


def test_an_annotation_file_reaches_tests_and_metrics_but_not_training_and_replaces_pseudo_masks():
    config = Config.fromfile(ROOT / 'configs' / 'unsam.py')
    config.merge_from_dict({'ann_file': 'truth.json'})
    resolve_data_root(config)
    resolve_data_root(config)  # a second time changes nothing
    assert config.val_evaluator.ann_file == config.val_dataloader.dataset.ann_file == 'truth.json'
    assert 'ann_file' not in config.train_dataloader.dataset
    assert config.val_dataloader.dataset.split == 'all'  # every annotated image is tested
    assert config.train_dataloader.dataset.split == 'train'
    steps = {loader: [step.type for step in config[loader].dataset.pipeline] for loader in LOADERS}
    assert 'UnSAMPseudoMasks' in steps['train_dataloader']
    assert 'UnSAMPseudoMasks' not in steps['val_dataloader'] + steps['test_dataloader']


def test_dataset_wrappers_and_lists_of_metrics_are_looked_into():
    config = Config(
        {
            'data_root': '/my/images',
            'ann_file': 'truth.json',
            'train_dataloader': {
                'dataset': {'type': 'RepeatDataset', 'times': 2, 'dataset': {'type': 'UnSAMImageFolder'}}
            },
            'test_evaluator': [{'type': 'DumpDetResults'}, {'type': 'UnSAMCocoMetric'}],
        }
    )
    resolve_data_root(config)
    assert config.train_dataloader.dataset.dataset.data_root == '/my/images'
    assert config.test_evaluator == [{'type': 'DumpDetResults'}, {'type': 'UnSAMCocoMetric', 'ann_file': 'truth.json'}]


def test_a_run_whose_datasets_would_ignore_the_data_root_is_stopped():
    config = Config.fromfile(ROOT / 'configs' / 'unsam.py')
    UnSAMDataRootHook().before_run(SimpleNamespace(cfg=config))  # the images that come with scikit-image need no root
    config.data_root = '/my/images'
    with pytest.raises(UnSAMError, match=r"data_root='/my/images' .* call unsam_mm.engine.resolve_data_root"):
        UnSAMDataRootHook().before_run(SimpleNamespace(cfg=config))


@pytest.mark.parametrize(('iteration', 'runs'), [(0, 1), (50, 0)], ids=['new training', 'resumed training'])
def test_the_first_evaluation_takes_place_before_a_new_training_only(iteration, runs):
    calls = []
    runner = SimpleNamespace(
        iter=iteration,
        val_loop=SimpleNamespace(run=lambda: calls.append('val')),
        logger=SimpleNamespace(info=lambda text: None),
    )
    UnSAMFirstEvaluationHook().before_train(runner)
    assert len(calls) == runs
