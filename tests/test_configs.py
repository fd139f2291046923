"""Every config is read, built, trained for a step and tested; the paths in it reach the data sets."""

import re
import runpy
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image
from skimage import data, segmentation

from tests.conftest import skip_without_weights
from unsam_mm.datasets.loading import UnSAMLoadImage
from unsam_mm.engine import UnSAMDataRootHook, UnSAMFirstEvaluationHook, check_channel_order, resolve_data_root
from unsam_mm.errors import UnSAMError
from unsam_mm.files import write_json
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.masks.mask_set import MaskSet

pytestmark = pytest.mark.usefixtures('_unformatted_configs')

ROOT = Path(__file__).parents[1]
LEAVES = sorted((ROOT / 'configs').glob('*.py'))
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


SIDE_PX = 64
MIM_OPTIONS = {'--gpus', '--partition', '--gpus-per-node', '--cpus-per-task'}
"""Options with a value that `mim train` keeps for itself."""
NEW_SETTINGS = {
    'optim_wrapper.dtype',
    'optim_wrapper.accumulative_counts',
    'model.backbone.frozen',
    'model.backbone.with_cp',
    'model.partial_checkpoint',
}
"""Arguments with defaults, which no config has to name."""
SMALL = [
    ('mask_head', 'num_queries', 20),
    ('mask_head.whole_image', 'num_queries', 20),
    ('test_cfg', 'max_per_image', 20),
    ('train_cfg', 'num_points', 128),
    ('train_cfg', 'prompts_per_image', 8),
]
FIGURES = {'UnSAMCocoMetric': ['unsam/AR@1000'], 'UnSAMPromptIoUMetric': ['prompt/max_iou', 'prompt/oracle_iou']}
SIZES = {'RandomCrop': 'crop_size', 'Resize': 'scale', 'RandomResize': 'scale'}


@pytest.fixture(params=LEAVES, ids=lambda path: path.stem)
def config(request) -> Config:
    config = Config.fromfile(request.param)
    init_default_scope(config.default_scope)
    return config


@pytest.fixture
def detector(config) -> Config:
    """A config of `UnSAM`; that of the region model is tried in test_models/test_region_model.py."""
    if config.model.type != 'UnSAM':
        pytest.skip(f'{config.model.type} is no detector')
    return config


@pytest.fixture(scope='module')
def folders(tmp_path_factory) -> SimpleNamespace:
    """Two photographs: in SA-1B's form, with pseudo-masks, and as COCO's validation set in both of its forms."""
    root = tmp_path_factory.mktemp('data')
    folders = SimpleNamespace(images=root / 'sa1b', pseudo_masks=root / 'pseudo', coco=root / 'coco')
    drawings = folders.coco / 'annotations' / 'panoptic_val2017'
    for folder in (folders.images, folders.coco / 'val2017', drawings):
        folder.mkdir(parents=True)
    store, images, annotations, panoptic = PseudoMaskStore(folders.pseudo_masks), [], [], []
    for number, photograph in enumerate((data.coffee(), data.astronaut()), start=1):
        image = photograph[::3, ::3]
        name, (height, width) = f'sa_{number}.png', image.shape[:2]
        regions = segmentation.felzenszwalb(image, scale=300, min_size=200)
        masks = MaskSet.from_bitmaps(regions == np.unique(regions)[:, None, None])
        store.write(name, masks[::2])
        human = [{**record, 'id': 100 * number + i} for i, record in enumerate(masks[1::2].to_coco(number))]
        write_json(
            folders.images / f'sa_{number}.json',
            {'image': {'file_name': name, 'image_id': number, 'height': height, 'width': width}, 'annotations': human},
        )
        images.append({'id': number, 'file_name': name, 'height': height, 'width': width})
        annotations += human
        Image.fromarray((regions[..., None] * [1, 0, 0]).astype(np.uint8)).save(drawings / name)
        segments = [{'id': int(value), 'category_id': 1} for value in np.unique(regions)[1:]]
        panoptic.append({'image_id': number, 'file_name': name, 'segments_info': segments})
        for folder in (folders.images, folders.coco / 'val2017'):
            Image.fromarray(image).save(folder / name)
    content = {'images': images, 'annotations': annotations, 'categories': [{'id': 1, 'name': 'object'}]}
    write_json(drawings.with_name('instances_val2017.json'), content)
    write_json(drawings.with_name('panoptic_val2017.json'), content | {'annotations': panoptic})
    return folders


def place(config: Config, folders: SimpleNamespace) -> None:
    """Lets the config find its data in `folders`; nothing has to be downloaded."""
    config.merge_from_dict({'data_root': str(folders.images), 'pseudo_masks_root': str(folders.pseudo_masks)})
    resolve_data_root(config)
    if config.test_dataloader.dataset.type in ('UnSAMCocoDataset', 'UnSAMCocoPanopticDataset'):
        config.test_dataloader.dataset.data_root = str(folders.coco)
    for step in steps(config):
        if step.type == 'UnSAMPseudoMasks':
            step.precomputed = str(folders.pseudo_masks)
        if step.type == 'UnSAMRegionTokens':
            skip_without_weights()
            step.store = str(folders.images.with_name('tokens'))
    backbone = config.model.get('backbone', {})
    if backbone.get('type') == 'UnSAMViTBackbone':
        backbone.pretrained = False
    if 'init_cfg' in backbone:
        backbone.init_cfg = None
    config.load_from = None


def shrink(config: Config) -> None:
    """Small images and few queries; all layers and all steps of the pipelines stay."""
    for part, setting, value in SMALL:
        if has(config.model, f'{part}.{setting}'):
            config.merge_from_dict({f'model.{part}.{setting}': value})
    for step in steps(config):
        if step.type in SIZES:
            step[SIZES[step.type]] = (SIDE_PX, SIDE_PX)
    for loader in loaders(config):
        loader.update(batch_size=min(loader.batch_size, 2), num_workers=0, persistent_workers=False)


def loaders(config: Config) -> list:
    return [config[name] for name in LOADERS if config[name] is not None]


def evaluators(config: Config) -> list:
    return config.test_evaluator if isinstance(config.test_evaluator, list) else [config.test_evaluator]


def steps(config: Config) -> list:
    return [step for loader in loaders(config) for step in loader.dataset.pipeline]


def test_red_reaches_the_channel_that_the_mean_of_red_is_taken_from(detector, tmp_path):
    """MMDetection's steps and tools take images for BGR; the means of its configs are in the order R, G, B."""
    from mmdet.registry import MODELS, TRANSFORMS

    Image.fromarray(np.full((32, 32, 3), (255, 10, 20), np.uint8)).save(tmp_path / 'red.png')
    preprocessor = MODELS.build({**detector.model.data_preprocessor, 'mean': [255, 10, 20], 'std': [1, 1, 1]})
    loaded = []
    for loader in loaders(detector):
        image = TRANSFORMS.build(loader.dataset.pipeline[0])({'img_path': str(tmp_path / 'red.png')})['img']
        loaded.append(image[0, 0].tolist())
        inputs = preprocessor({'inputs': [torch.from_numpy(image.transpose(2, 0, 1))]})['inputs']
        assert not inputs.any()
    assert loaded == [[20, 10, 255]] * len(loaded)
    check_channel_order(detector)


@pytest.mark.parametrize(
    ('preprocessor', 'loader', 'message'),
    [
        ({'bgr_to_rgb': True}, {'type': 'UnSAMLoadImage'}, None),
        ({'bgr_to_rgb': True}, {'type': 'LoadImageFromFile'}, None),
        ({'bgr_to_rgb': False}, {'type': 'UnSAMLoadImage', 'channel_order': 'rgb'}, None),
        ({'bgr_to_rgb': False}, {'type': 'LoadImageFromFile'}, None),  # a backbone that was trained on BGR
        ({'rgb_to_bgr': True}, {'type': 'UnSAMLoadImage', 'channel_order': 'rgb'}, None),
        ({'bgr_to_rgb': True}, {'type': 'UnSAMLoadImage', 'channel_order': 'rgb'}, 'gives RGB images, .* expects BGR'),
        ({'rgb_to_bgr': True}, {'type': 'UnSAMLoadImage'}, 'UnSAMLoadImage gives BGR images, .* expects RGB'),
        ({'rgb_to_bgr': True}, {'type': 'LoadImageFromFile'}, 'LoadImageFromFile gives BGR images, .* expects RGB'),
        (
            {'rgb_to_bgr': True},
            {'type': 'mmdet.LoadImageFromFile'},
            'LoadImageFromFile gives BGR images, .* expects RGB',
        ),
        ({'rgb_to_bgr': True}, {'type': UnSAMLoadImage}, 'UnSAMLoadImage gives BGR images, .* expects RGB'),
        ({'bgr_to_rgb': False}, {'type': 'UnSAMLoadImage'}, 'does not state channel_order'),
    ],
)
def test_red_and_blue_are_never_exchanged_in_silence(preprocessor, loader, message):
    steps = [{'type': 'RandomFlip'}, {'type': 'TransformBroadcaster', 'transforms': [loader]}]
    config = Config(
        {
            'model': {'data_preprocessor': {'mean': [1, 2, 3], **preprocessor}},
            'val_dataloader': {'dataset': {'type': 'RepeatDataset', 'dataset': {'pipeline': steps}}},
        }
    )
    if message is None:
        check_channel_order(config)
    else:
        with pytest.raises(UnSAMError, match=f'^val_dataloader: .*{message}'):
            check_channel_order(config)


@pytest.mark.slow
def test_one_step_of_training_and_one_test_on_photographs(detector, folders, tmp_path):
    place(detector, folders)
    shrink(detector)
    if detector.optim_wrapper.type == 'AmpOptimWrapper':
        detector.optim_wrapper.type = 'OptimWrapper'  # MMEngine has the other one for accelerators only
    detector.train_cfg.max_iters = 1
    detector.default_hooks.checkpoint.save_last = False  # half a gigabyte
    detector.work_dir = str(tmp_path)
    detector.experiment_name = tmp_path.name
    runner = Runner.from_cfg(detector)
    before = {name: parameter.detach().clone() for name, parameter in runner.model.named_parameters()}
    runner.train()
    changed = {name for name, parameter in runner.model.named_parameters() if not parameter.equal(before[name])}
    assert {name.partition('.')[0] for name in changed} == {name.partition('.')[0] for name in before}
    metrics = runner.test()
    for evaluator in evaluators(detector):
        assert all(0 <= metrics[name] <= 1 for name in FIGURES[evaluator.type])


def test_every_model_is_built(detector, folders):
    from mmdet.registry import MODELS

    place(detector, folders)
    head = MODELS.build(detector.model).mask_head
    head = getattr(head, 'whole_image', head)
    if detector.model.mask_head.type != 'UnSAMPromptHead':
        assert head.num_queries >= detector.model.test_cfg.max_per_image


def test_every_pipeline_dataset_metric_hook_and_visualizer_is_built(detector, folders):
    from mmdet.registry import DATASETS, HOOKS, METRICS, VISUALIZERS

    place(detector, folders)
    for loader in loaders(detector):
        assert len(DATASETS.build(loader.dataset)) > 0
    for evaluator in evaluators(detector):
        METRICS.build(evaluator)
    for hook in detector.custom_hooks:
        HOOKS.build(hook)
    VISUALIZERS.build(dict(detector.visualizer, name='configs', vis_backends=None))


def test_the_backbones_of_the_published_recipes_learn_slowly_and_norms_and_embeddings_keep_their_size(
    detector, folders
):
    from mmdet.registry import MODELS
    from mmengine.optim import build_optim_wrapper
    from torch import nn

    if detector.optim_wrapper.type != 'AmpOptimWrapper':
        pytest.skip('a recipe of its own')
    place(detector, folders)
    model = MODELS.build(detector.model)
    wrapper = dict(detector.optim_wrapper, type='OptimWrapper')
    groups = {
        id(weight): group for group in build_optim_wrapper(model, wrapper).param_groups for weight in group['params']
    }
    rate = wrapper['optimizer'].lr
    for name, module in model.named_modules():
        kept = isinstance(module, nn.Embedding | nn.LayerNorm | nn.GroupNorm)
        for kind, weight in module.named_parameters(recurse=False):
            if weight.requires_grad:
                group = groups[id(weight)]
                assert group['lr'] == pytest.approx(rate / 10 if name.startswith('backbone.') else rate), name
                # That of the pixel decoder is no embedding in the released code.
                kept_here = kept and not name.endswith('pixel_decoder.level_encoding')
                expected = 0.0 if kept_here or kind == 'relative_position_bias_table' else 0.05
                assert group['weight_decay'] == expected, f'{name}.{kind}'


def test_every_training_goes_on_after_a_kill_as_if_there_had_been_none(config):
    assert config.train_cfg.type == 'UnSAMTrainLoop'
    assert config.train_dataloader.sampler.type == 'InfiniteSampler'
    assert config.randomness.seed is not None
    assert config.default_hooks.checkpoint.max_keep_ckpts >= 2  # one is whole while the other is written


def test_every_config_is_listed_for_mim():
    listed = Config.fromfile(ROOT / 'configs' / 'metafile.yml').Models
    assert sorted(model['Config'] for model in listed) == [f'configs/{path.name}' for path in LEAVES]
    assert sorted(model['Name'] for model in listed) == sorted(path.stem for path in LEAVES)


def test_no_config_names_weights_that_torchvision_would_have_to_load(config):
    assert 'torchvision://' not in config.pretty_text


def test_no_module_has_the_name_of_a_config_since_mim_would_find_both():
    modules = {
        path.name for package in ('unsam_mm', 'napari_unsam', 'tools') for path in (ROOT / package).rglob('*.py')
    }
    assert modules.isdisjoint(path.name for path in LEAVES)


def test_a_data_root_given_on_the_command_line_reaches_the_users_own_datasets(config):
    config.merge_from_dict({'data_root': '/my/images', 'pseudo_masks_root': '/my/masks'})
    resolve_data_root(config)
    assert config.train_dataloader.dataset.data_root == '/my/images'
    if config.train_dataloader.dataset.type == 'UnSAMSA1B':
        assert config.train_dataloader.dataset.pseudo_masks_root == '/my/masks'
    if config.test_dataloader.dataset.type == 'UnSAMImageFolder':  # not a benchmark, which has a place of its own
        assert config.test_dataloader.dataset.data_root == '/my/images'


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


def commands(page: str) -> list[list[str]]:
    """What stands behind the name of a config in the commands of a page."""
    blocks = re.findall(r'```sh\n(.*?)```', (ROOT / 'docs' / page).read_text(encoding='utf-8'), re.DOTALL)
    words = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    starts = [[i for i, word in enumerate(line) if word.startswith('configs/')] for line in words]
    return [line[first[0] :] for line, first in zip(words, starts, strict=True) if first]


@pytest.mark.parametrize('command', commands('training.md'), ids=' '.join)
def test_every_command_of_the_page_on_training_is_understood(command, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    tool = runpy.run_path(str(ROOT / 'tools' / 'train.py'))
    for option in MIM_OPTIONS & set(command):
        at = command.index(option)
        command = command[:at] + command[at + 2 :]
    options = tool['parse_args'](command)
    settings = Config.fromfile(options.config)
    for pair in options.cfg_options:
        key = pair.partition('=')[0]
        assert key in NEW_SETTINGS or has(settings, key)
    options.launcher = 'none'  # nobody started several processes here
    tool['load_config'](options)


def has(settings: Config, key: str) -> bool:
    """Whether there is a setting to be replaced, such as train_cfg.max_iters or param_scheduler.0.end."""
    for part in key.split('.'):
        part = int(part) if isinstance(settings, list) else part
        if not isinstance(settings, list) and part not in settings:
            return False
        settings = settings[part]
    return True
