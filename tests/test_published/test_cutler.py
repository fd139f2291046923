"""CutLER's detector: its checkpoint fits, its cascade is Detectron2's, and it runs without compiled ops."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from unsam_mm import weights
from unsam_mm.errors import UnSAMError, WeightsError
from unsam_mm.published.cutler import CutLERDivider, _resized_hw, load_cutler
from unsam_mm.published.cutler_checkpoint import convert_official_cutler, save


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes in ``cutler_cascade_final.pth``, written out from Detectron2's modules."""
    shapes = {}

    def conv(name, out_channels, in_channels, size, *, norm):
        shapes[f'{name}.weight'] = (out_channels, in_channels, size, size)
        if norm:
            for kind in ('weight', 'bias', 'running_mean', 'running_var'):
                shapes[f'{name}.norm.{kind}'] = (out_channels,)
            shapes[f'{name}.norm.num_batches_tracked'] = ()
        else:
            shapes[f'{name}.bias'] = (out_channels,)

    def linear(name, out_channels, in_channels):
        shapes[f'{name}.weight'], shapes[f'{name}.bias'] = (out_channels, in_channels), (out_channels,)

    conv('backbone.bottom_up.stem.conv1', 64, 3, 7, norm=True)
    channels = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=2):
        for block in range(blocks):
            name = f'backbone.bottom_up.res{stage}.{block}'
            conv(f'{name}.conv1', width, channels, 1, norm=True)
            conv(f'{name}.conv2', width, width, 3, norm=True)
            conv(f'{name}.conv3', 4 * width, width, 1, norm=True)
            if block == 0:
                conv(f'{name}.shortcut', 4 * width, channels, 1, norm=True)
            channels = 4 * width
        conv(f'backbone.fpn_lateral{stage}', 256, channels, 1, norm=True)
        conv(f'backbone.fpn_output{stage}', 256, 256, 3, norm=True)
    conv('proposal_generator.rpn_head.conv', 256, 256, 3, norm=False)
    conv('proposal_generator.rpn_head.objectness_logits', 3, 256, 1, norm=False)
    conv('proposal_generator.rpn_head.anchor_deltas', 12, 256, 1, norm=False)
    for stage in range(3):
        linear(f'roi_heads.box_head.{stage}.fc1', 1024, 256 * 7 * 7)
        linear(f'roi_heads.box_head.{stage}.fc2', 1024, 1024)
        linear(f'roi_heads.box_predictor.{stage}.cls_score', 2, 1024)
        linear(f'roi_heads.box_predictor.{stage}.bbox_pred', 4, 1024)
    for number in range(1, 5):
        conv(f'roi_heads.mask_head.mask_fcn{number}', 256, 256, 3, norm=False)
    conv('roi_heads.mask_head.deconv', 256, 256, 2, norm=False)
    conv('roi_heads.mask_head.predictor', 1, 256, 1, norm=False)
    return shapes


def random_tensor(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Values that keep activations and boxes in the range of a trained detector's."""
    if name.endswith('num_batches_tracked'):
        return torch.zeros((), dtype=torch.long)
    if name.endswith(('running_var', 'norm.weight')):
        return torch.rand(shape, generator=generator) + 0.5
    inputs = int(np.prod(shape[1:])) if len(shape) > 1 else 100
    return torch.randn(shape, generator=generator) / inputs**0.5


@pytest.fixture(scope='module')
def official():
    generator = torch.Generator().manual_seed(0)
    return {name: random_tensor(name, shape, generator) for name, shape in official_shapes().items()}


@pytest.fixture(scope='module')
def checkpoint(official, tmp_path_factory):
    """The random weights in a converted file, which many tests can read quickly."""
    folder = tmp_path_factory.mktemp('cutler')
    torch.save({'model': official, 'iteration': 1}, folder / 'official.pth')
    save(convert_official_cutler(folder / 'official.pth'), folder / 'converted', {})
    (folder / 'official.pth').unlink()
    yield folder / 'converted'
    shutil.rmtree(folder)  # 300 MB, which pytest would keep


@pytest.fixture(scope='module')
def model(checkpoint):
    return load_cutler(checkpoint)


def one_value_each(**changes: tuple[int, ...] | None) -> dict[str, torch.Tensor]:
    """Official names and shapes in a file of a few kB: each tensor repeats one value. None removes a name."""
    shapes = {name: shape for name, shape in (official_shapes() | changes).items() if shape is not None}
    return {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}


def test_every_tensor_of_the_checkpoint_is_where_the_model_wants_it(model, official):
    """A tensor of each kind, by the modules' own attributes."""
    head = model.roi_head
    pairs = {
        'backbone.bottom_up.stem.conv1.weight': model.backbone.conv1.weight,
        'backbone.bottom_up.res4.5.conv2.weight': model.backbone.layer3[5].conv2.weight,
        'backbone.bottom_up.res4.5.conv2.norm.running_var': model.backbone.layer3[5].bn2.running_var,
        'backbone.bottom_up.res5.0.shortcut.weight': model.backbone.layer4[0].downsample[0].weight,
        'backbone.bottom_up.res5.0.shortcut.norm.bias': model.backbone.layer4[0].downsample[1].bias,
        'backbone.fpn_lateral2.weight': model.neck.lateral_convs[0].conv.weight,
        'backbone.fpn_output5.norm.weight': model.neck.fpn_convs[3].bn.weight,
        'proposal_generator.rpn_head.objectness_logits.bias': model.rpn_head.rpn_cls.bias,
        'roi_heads.box_head.1.fc1.weight': head.bbox_head[1].shared_fcs[0].weight,
        'roi_heads.box_head.2.fc2.bias': head.bbox_head[2].shared_fcs[1].bias,
        'roi_heads.box_predictor.0.cls_score.weight': head.bbox_head[0].fc_cls.weight,
        'roi_heads.box_predictor.2.bbox_pred.weight': head.bbox_head[2].fc_reg.weight,
        'roi_heads.mask_head.mask_fcn3.weight': head.mask_head[0].convs[2].conv.weight,
        'roi_heads.mask_head.deconv.weight': head.mask_head[0].upsample.weight,
        'roi_heads.mask_head.predictor.weight': head.mask_head[0].conv_logits.weight,
    }
    for name, parameter in pairs.items():
        assert torch.equal(parameter, official[name]), name


def test_conversion_uses_every_tensor_once_and_fills_the_model(tmp_path, model):
    torch.save({'model': one_value_each()}, tmp_path / 'cutler.pth')
    converted = convert_official_cutler(tmp_path / 'cutler.pth')
    assert converted.keys() == model.state_dict().keys()
    assert {name: tensor.shape for name, tensor in converted.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'roi_heads.box_head.2.fc1.bias': None}, r"lacks 'roi_heads\.box_head\.2\.fc1\.bias' \(1 such"),
        ({'roi_heads.keypoint_head.weight': (3,)}, r"unknown 'roi_heads\.keypoint_head\.weight'"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_its_key(tmp_path, changes, message):
    torch.save({'model': one_value_each(**changes)}, tmp_path / 'other.pth')
    with pytest.raises(WeightsError, match=rf'other\.pth: .*{message}.*cutler_cascade_final\.pth is'):
        convert_official_cutler(tmp_path / 'other.pth')


def test_a_tensor_of_another_shape_is_refused(tmp_path):
    torch.save({'model': one_value_each(**{'roi_heads.mask_head.predictor.bias': (80,)})}, tmp_path / 'coco.pth')
    with pytest.raises(WeightsError, match=r'coco\.pth.*conv_logits\.bias'):
        load_cutler(tmp_path / 'coco.pth')


def test_constants_of_old_detectron2_are_passed_over(tmp_path, model):
    extra = {'pixel_mean': (3, 1, 1), 'proposal_generator.anchor_generator.cell_anchors.0': (3, 4)}
    torch.save(one_value_each(**extra), tmp_path / 'old.pth')
    assert convert_official_cutler(tmp_path / 'old.pth').keys() == model.state_dict().keys()


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / 'cutler.pth').write_text('<html>')
    with pytest.raises(WeightsError, match=r'cutler\.pth: cannot be read'):
        load_cutler(tmp_path / 'cutler.pth')
    with pytest.raises(WeightsError, match=r'none\.pth: no such file'):
        load_cutler(tmp_path / 'none.pth')


@pytest.mark.slow
def test_the_published_file_put_into_the_cache_becomes_safetensors(tmp_path, monkeypatch, official):
    monkeypatch.setenv('UNSAM_CACHE', str(tmp_path))
    torch.save({'model': official}, tmp_path / 'cutler_cascade_final.pth')
    path = weights.fetch('cutler_cascade')
    assert path == weights.cached_path('cutler_cascade')
    assert weights.origin(path) == weights.TABLE['cutler_cascade'].sources[0].location
    assert torch.equal(
        load_file(path / 'model.safetensors')['backbone.conv1.weight'],
        official['backbone.bottom_up.stem.conv1.weight'],
    )
    shutil.rmtree(tmp_path)  # 600 MB, which pytest would keep


def detectron2_bottleneck(state, name, x, stride):
    def norm(part, x):
        kinds = ('running_mean', 'running_var', 'weight', 'bias')
        return functional.batch_norm(x, *(state[f'{name}.{part}.norm.{kind}'] for kind in kinds))

    def conv(part, x, **options):
        return norm(part, functional.conv2d(x, state[f'{name}.{part}.weight'], **options))

    inner = conv('conv1', x).relu()
    inner = conv('conv2', inner, padding=1, stride=stride).relu()
    shortcut = conv('shortcut', x, stride=stride) if f'{name}.shortcut.weight' in state else x
    return (conv('conv3', inner) + shortcut).relu()


@torch.no_grad()
def test_the_backbone_computes_what_detectron2s_tensors_compute(model, official):
    """Written with the official names: the stride is in the 3 x 3 convolution, the pyramid is normalised."""
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    stem = 'backbone.bottom_up.stem.conv1'
    found = functional.conv2d(x, official[f'{stem}.weight'], stride=2, padding=3)
    kinds = ('running_mean', 'running_var', 'weight', 'bias')
    found = functional.batch_norm(found, *(official[f'{stem}.norm.{kind}'] for kind in kinds)).relu()
    found = functional.max_pool2d(found, 3, stride=2, padding=1)
    levels = []
    for stage, blocks in ((2, 3), (3, 4), (4, 6), (5, 3)):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 2 else 1
            found = detectron2_bottleneck(official, f'backbone.bottom_up.res{stage}.{block}', found, stride)
        levels.append(found)
    outputs, above = [], None
    for stage, level in zip((5, 4, 3, 2), reversed(levels), strict=True):
        lateral, output = (f'backbone.fpn_{part}{stage}' for part in ('lateral', 'output'))
        level = functional.conv2d(level, official[f'{lateral}.weight'])
        level = functional.batch_norm(level, *(official[f'{lateral}.norm.{kind}'] for kind in kinds))
        if above is not None:
            level = level + functional.interpolate(above, scale_factor=2, mode='nearest')
        above = level
        level = functional.conv2d(level, official[f'{output}.weight'], padding=1)
        outputs.insert(0, functional.batch_norm(level, *(official[f'{output}.norm.{kind}'] for kind in kinds)))
    outputs.append(functional.max_pool2d(outputs[-1], 1, stride=2))
    pyramid = model.neck(model.backbone(x))
    assert len(pyramid) == len(outputs) == 5
    for ours, theirs in zip(pyramid, outputs, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3)


def test_anchors_are_detectron2s(model):
    """Centred on the corner of a cell; for each cell height over width 1/2, 1, 2 at equal area."""
    levels = model.rpn_head.prior_generator.grid_priors([(2, 3)] * 5, device='cpu')
    for level, stride in enumerate((4, 8, 16, 32, 64)):
        expected = []
        for row in range(2):
            for column in range(3):
                for ratio in (0.5, 1.0, 2.0):
                    width = (64 * stride * stride / ratio) ** 0.5
                    half = np.array([width, width * ratio]) / 2
                    centre = np.array([column, row]) * stride
                    expected.append([*(centre - half), *(centre + half)])
        assert np.allclose(levels[level].numpy(), expected, atol=1e-3)


def apply_deltas(boxes, deltas, weights_, image_hw):
    """Detectron2's box transform and clipping."""
    sizes = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + sizes / 2
    deltas = deltas / torch.tensor(weights_)
    centres = centres + deltas[:, :2] * sizes
    sizes = sizes * deltas[:, 2:].clamp(max=np.log(1000 / 16)).exp()
    corners = torch.stack([centres - sizes / 2, centres + sizes / 2], dim=1)
    limit = torch.tensor([image_hw[1], image_hw[0]])
    return corners.clamp(min=0).minimum(limit).flatten(1)


@torch.no_grad()
def test_the_cascade_averages_probabilities_and_refines_boxes_as_detectron2_does(model, official):
    """Three stages by the official names, from pooled features on."""
    head, hw = model.roi_head, (128, 160)
    features = tuple(
        torch.randn(1, 256, 128 // s, 160 // s, generator=torch.Generator().manual_seed(s)) for s in (4, 8, 16, 32, 64)
    )
    rois = torch.tensor([[0.0, 10, 20, 70, 90], [0, 60, 5, 150, 100], [0, 0, 0, 30, 12]])
    expected, boxes = 0.0, rois[:, 1:]
    for stage, divisors in enumerate(((10.0, 10, 5, 5), (20.0, 20, 10, 10), (30.0, 30, 15, 15))):
        pooled = head.bbox_roi_extractor[stage](features[:4], torch.cat([rois[:, :1], boxes], dim=1))
        x = pooled.flatten(1)  # channel, row, column
        for name in ('fc1', 'fc2'):
            layer = f'roi_heads.box_head.{stage}.{name}'
            x = functional.linear(x, official[f'{layer}.weight'], official[f'{layer}.bias']).relu()
        predictor = f'roi_heads.box_predictor.{stage}'
        logits, deltas = (
            functional.linear(x, official[f'{predictor}.{part}.weight'], official[f'{predictor}.{part}.bias'])
            for part in ('cls_score', 'bbox_pred')
        )
        expected = expected + logits.softmax(-1)[:, 0] / 3  # the background is last
        boxes = apply_deltas(boxes, deltas, divisors, hw)
    proposals = InstanceData(bboxes=rois[:, 1:], scores=torch.ones(3), labels=torch.zeros(3))
    sample = {'img_shape': hw, 'ori_shape': hw, 'scale_factor': (1.0, 1.0)}
    config = head.test_cfg.copy()
    config.update(score_thr=0.0, nms=dict(type='nms', iou_threshold=1.0))
    found = head.predict_bbox(features, [sample], [proposals], config)[0]
    order = expected.argsort(descending=True)
    assert torch.allclose(found.scores, expected[order], atol=1e-4)
    assert torch.allclose(found.bboxes, boxes[order], atol=1e-2)


def test_one_mask_head_looks_at_the_final_boxes(model, monkeypatch):
    calls = []
    monkeypatch.setattr(
        model.roi_head.mask_head[0], 'forward', lambda x: (calls.append(x.shape), torch.ones(len(x), 1, 28, 28))[1]
    )
    meta = {'img_shape': (64, 96), 'ori_shape': (32, 48), 'scale_factor': (2.0, 2.0)}
    boxes = InstanceData(bboxes=torch.tensor([[20.0, 10, 60, 30]]), labels=torch.zeros(1), scores=torch.ones(1))
    features = tuple(torch.zeros(1, 256, 64 // s, 96 // s) for s in (4, 8, 16, 32))
    masks = model.roi_head.predict_mask(features, [meta], [boxes], rescale=True)[0].masks
    assert calls == [(1, 256, 14, 14)]
    assert masks.shape == (1, 32, 48)
    rows, columns = masks[0].nonzero().T
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (10, 29, 5, 14)


def test_a_photograph_is_divided_into_masks_of_its_own_size(checkpoint, coffee):
    divide = CutLERDivider(checkpoint, score_threshold=0.0, max_masks=7, short_side_px=160)
    masks, scores = divide(coffee)
    assert masks.shape == (len(scores), 200, 300)
    assert masks.dtype == bool
    assert scores.dtype == np.float32
    assert 0 < len(scores) <= 7
    assert masks.any(axis=(1, 2)).all()
    assert (np.diff(scores) <= 0).all()
    assert scores.min() >= 0
    assert scores.max() <= 1
    again = divide(coffee)
    assert np.array_equal(masks, again[0])


def test_a_photograph_without_objects_has_no_masks(checkpoint, coffee):
    masks, scores = CutLERDivider(checkpoint, score_threshold=0.999999, short_side_px=160)(coffee)
    assert masks.shape == (0, 200, 300)
    assert scores.shape == (0,)


class Detector(nn.Module):
    """Records what it is given, and finds the red pixels."""

    def __init__(self):
        super().__init__()
        self.roi_head = nn.Module()
        self.roi_head.test_cfg = {}

    def test_step(self, data):
        self.given = data
        height, width = data['data_samples'][0].ori_shape
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[0, 3] = True
        found = DetDataSample()
        found.pred_instances = InstanceData(masks=masks, scores=torch.tensor([0.9, 0.8]))
        return [found]


def test_the_detector_is_given_rgb_of_detectron2s_size_and_empty_masks_are_dropped(monkeypatch):
    detector = Detector()
    monkeypatch.setattr('unsam_mm.published.cutler.load_cutler', lambda *arguments: detector)
    image = np.zeros((60, 90, 3), np.uint8)
    image[..., 0] = 200
    masks, scores = CutLERDivider()(image)
    pixels, sample = detector.given['inputs'][0], detector.given['data_samples'][0]
    assert pixels.shape == (3, 800, 1200)
    assert pixels[0].min() == 200
    assert pixels[1:].max() == 0
    assert sample.scale_factor == (1200 / 90, 800 / 60)
    assert (len(masks), len(scores)) == (1, 1)


@pytest.mark.parametrize(
    ('size', 'resized'), [((480, 640), (800, 1067)), ((100, 300), (444, 1333)), ((1500, 1000), (1200, 800))]
)
def test_the_short_side_becomes_800_px_unless_the_long_side_would_pass_1333(size, resized):
    assert _resized_hw(*size, 800) == resized


@pytest.mark.parametrize('arguments', [{'score_threshold': 1.0}, {'max_masks': 0}, {'short_side_px': 0}])
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(UnSAMError, match=next(iter(arguments))):
        CutLERDivider(**arguments)
