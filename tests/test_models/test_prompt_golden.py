"""The converted promptable model computes what its authors' code computes.

Weights and picture are computed (`tests/golden.py`); the recorded numbers are float64 results of the authors' code.
Tolerances are a few times what the authors' code in float32 differs from itself in float64.
"""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.structures import InstanceData
from torch import nn
from torch.nn.functional import interpolate

import unsam_mm.models  # noqa: F401  (registers the models)
from tests import golden
from unsam_mm.convert.names import convert_promptable
from unsam_mm.convert.released import convert_checkpoint
from unsam_mm.errors import UnSAMError, WeightsError
from unsam_mm.masks import rle
from unsam_mm.models.prompt_head import ImageEmbedding, UnSAMPromptHead
from unsam_mm.models.prompt_targets import BOX_TYPE, CLICK_TYPE

CONFIG = Path(__file__).parents[2] / 'configs' / '_base_' / 'models' / 'unsam_swint_prompt.py'
VIEWS = {'full': (192, 256), 'pad': (170, 230)}
"""Part of the picture that is given; the second is padded inside the model to the size of the first."""
FRAME_HW = VIEWS['full']
THINNED = {'res2': 4, 'res3': 2, 'res4': 2, 'mask_features': 4, 'memory0': 2, 'memory1': 2}

MASK_TOLERANCE, TOLERANCE = 2e-3, 1e-4  # five times what instruction sets and numbers of threads differ by, and more
ROUNDING = 1e-4
"""How far scores of one prompt may be apart that are computed beside other prompts: sums have another order. Prompts that
see each other are apart by thirty times as much."""

_PREFIX = 'model.'
_PROMPTS = 'model.sem_seg_head.predictor'
_TABLES = ('mask_tokens.weight', 'pb_embedding.weight', 'label_enc.weight')


def golden_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """As `golden.golden_tensor`; the names of one tensor give the values of the one that sorts last."""
    if 'bbox_embed.' in name:
        name = f'{_PROMPTS}.decoder.bbox_embed.8.layers.{name.split(".layers.")[1]}'
    name = name.replace('.decoder.norm.', '.decoder_norm.').removeprefix(_PREFIX)
    if name.endswith(_TABLES):  # unit scale
        seed = zlib.crc32(name.encode()) & 0x7FFFFFFF
        return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    return golden.golden_tensor(name, shape)


def relative_positions(window: int = 7) -> torch.Tensor:
    """(49, 49) row of the bias table for each pair of pixels of a window, as Swin defines it."""
    y, x = np.mgrid[:window, :window].reshape(2, -1)
    rows, columns = y[:, None] - y + window - 1, x[:, None] - x + window - 1
    return torch.from_numpy(rows * (2 * window - 1) + columns)


def official_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes in the released promptable checkpoints, as their authors' code lists them."""
    listed = golden.golden_arrays('promptable_shapes')
    return {
        str(name): tuple(int(size) for size in shape[shape > 0])
        for name, shape in zip(listed['names'], listed['shapes'], strict=True)
    }


def official_state() -> dict[str, torch.Tensor]:
    """The released promptable model with golden weights."""
    return {
        name: relative_positions()
        if name.endswith('relative_position_index')
        else torch.from_numpy(golden_tensor(name, shape))
        for name, shape in official_shapes().items()
    }


def build() -> nn.Module:
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(Config.fromfile(CONFIG).model)


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> nn.Module:
    """The shipped config with a converted checkpoint, on the way that a user takes; each picture is encoded once."""
    folder = tmp_path_factory.mktemp('golden')
    torch.save({'model': official_state(), 'iteration': 99999}, folder / 'released.pth')
    convert_checkpoint(folder / 'released.pth', folder / 'converted.pth')
    model = build()
    load_checkpoint(model, str(folder / 'converted.pth'), map_location='cpu', strict=True)
    for path in folder.glob('*.pth'):
        path.unlink()  # 200 MB each, which pytest would keep
    golden.remember(model, 'extract_feat')
    golden.remember(model.mask_head.pixel_decoder, 'forward')
    return model.eval().requires_grad_(False)


@pytest.fixture(scope='module')
def levels(model) -> dict[str, tuple[torch.Tensor, ...]]:
    return {view: model.extract_feat(model.data_preprocessor(batch(view))['inputs']) for view in VIEWS}


@pytest.fixture(scope='module')
def embeddings(model, levels) -> dict[str, ImageEmbedding]:
    return {view: model.mask_head.embed(level) for view, level in levels.items()}


@pytest.fixture(scope='module')
def recorded() -> dict[str, np.ndarray]:
    return golden.golden_arrays('promptable')


@pytest.fixture
def release(model, monkeypatch) -> None:
    monkeypatch.setattr(model.mask_head, 'release', True)


def batch(view: str, scale: int = 1, **prompts: np.ndarray) -> dict:
    """One image as the test pipeline gives it, the original being `scale` times as large."""
    height, width = VIEWS[view]
    image = torch.from_numpy(golden.golden_image()[:height, :width, ::-1].copy()).permute(2, 0, 1)
    sample = DetDataSample(
        metainfo={'img_shape': (height, width), 'ori_shape': (height * scale, width * scale)},
        prompts=InstanceData(**prompts),
    )
    return {'inputs': [image], 'data_samples': [sample]}


def in_frame(boxes: np.ndarray, view: str) -> torch.Tensor:
    """Boxes in shares of the padded image, from shares of the image, for a batch of one."""
    height, width = VIEWS[view]
    ratio = np.array([width / FRAME_HW[1], height / FRAME_HW[0]] * 2)
    return torch.from_numpy((boxes * ratio).astype(np.float32))[None]


def demo_clicks(recorded: dict[str, np.ndarray], view: str) -> torch.Tensor:
    clicks = recorded['clicks']
    return in_frame(np.concatenate([clicks, np.full_like(clicks, 0.005)], axis=1), view)


def points_px(recorded: dict[str, np.ndarray], view: str) -> np.ndarray:
    return recorded['clicks'] * VIEWS[view][::-1]


def types(kind: int, number: int) -> torch.Tensor:
    return torch.full((1, number), kind)


def assert_close(found: torch.Tensor, expected: np.ndarray, tolerance: float, name: str = '') -> None:
    assert tuple(found.shape) == expected.shape, name
    assert np.abs(found.numpy() - expected).max() < tolerance, name


def test_weights_are_those_of_the_recorded_run():
    listed, shapes = golden.golden_arrays('promptable_shapes'), official_shapes()
    assert len(listed['checked']) == 5
    for name, expected in zip(listed['checked'], listed['sha256'], strict=True):
        assert hashlib.sha256(golden_tensor(str(name), shapes[str(name)]).tobytes()).hexdigest() == expected, name


@pytest.mark.parametrize('view', VIEWS)
def test_backbone_and_pixel_decoder_match(model, levels, recorded, view):
    mask_features, memories = model.mask_head.pixel_decoder(levels[view])
    found = {f'res{stage}': level[0, :: 12 * 2 ** (stage - 2)] for stage, level in enumerate(levels[view], start=2)}
    found |= {f'memory{number}': memory[0, ::32] for number, memory in enumerate(reversed(memories))}
    found['mask_features'] = mask_features[0, ::16]
    assert len(found) == 9
    for name, values in found.items():
        step = THINNED.get(name, 1)
        assert_close(values[:, ::step, ::step], recorded[f'{view}.{name}'], TOLERANCE, name)


@pytest.mark.parametrize('view', VIEWS)
def test_every_layer_of_the_prompt_decoder_matches(model, embeddings, recorded, view):
    head, embedding = model.mask_head, embeddings[view]
    click = demo_clicks(recorded, view)[:, :1]
    decoded = head._decoded(embedding, click, types(BOX_TYPE, 1), joint=False, details=None)
    assert_close(torch.stack(decoded.states)[:, 0, 0, :, ::4], recorded[f'{view}.states'], TOLERANCE)
    assert_close(torch.stack(decoded.boxes)[:, 0, 0], recorded[f'{view}.boxes'], TOLERANCE)


@pytest.mark.parametrize('view', VIEWS)
@pytest.mark.parametrize('kind', [BOX_TYPE, CLICK_TYPE])
def test_clicks_match_for_both_types(model, embeddings, recorded, view, kind):
    """Recorded one click a call; here all are given at once, and none sees another."""
    found = model.mask_head.answer(embeddings[view], demo_clicks(recorded, view), types(kind, 5))
    assert_close(found.masks[0, ..., ::4, ::4], recorded[f'{view}.click_masks'][kind], MASK_TOLERANCE)
    assert_close(found.overlaps[0], recorded[f'{view}.click_ious'][kind], TOLERANCE)
    assert_close(found.boxes[0], recorded[f'{view}.click_boxes'][kind], TOLERANCE)


@pytest.mark.parametrize('view', VIEWS)
@pytest.mark.parametrize('kind', [BOX_TYPE, CLICK_TYPE])
def test_clicks_that_see_each_other_match(model, embeddings, recorded, view, kind):
    clicks = demo_clicks(recorded, view)
    found = model.mask_head.answer(embeddings[view], clicks, types(kind, 5), joint=True)
    assert_close(found.overlaps[0], recorded[f'{view}.joint_ious_pb{kind}'], TOLERANCE)
    if kind == BOX_TYPE:  # for the other only overlaps and areas are recorded
        assert_close(found.masks[0, ..., ::4, ::4], recorded[f'{view}.joint_masks_pb0'], MASK_TOLERANCE)
    alone = model.mask_head.answer(embeddings[view], clicks, types(kind, 5))
    assert (alone.overlaps - found.overlaps).abs().max() > 100 * TOLERANCE  # so the two ways are told apart


@pytest.mark.parametrize('view', VIEWS)
@pytest.mark.parametrize('kind', [BOX_TYPE, CLICK_TYPE])
def test_a_box_matches(model, embeddings, recorded, view, kind):
    found = model.mask_head.answer(embeddings[view], in_frame(recorded['box'][None], view), types(kind, 1))
    assert_close(found.masks[0, 0, ..., ::4, ::4], recorded[f'{view}.box_masks'][kind], MASK_TOLERANCE)
    assert_close(found.overlaps[0, 0], recorded[f'{view}.box_ious'][kind], TOLERANCE)
    assert_close(found.boxes[0, 0], recorded[f'{view}.box_boxes'][kind], TOLERANCE)


def truth(view: str) -> torch.Tensor:
    """(8, H, W) bool: the discs and rectangles of the picture, and a strip along two borders."""
    height, width = VIEWS[view]
    y, x = np.mgrid[:192, :256]
    shapes = [(y - cy) ** 2 + (x - cx) ** 2 <= radius**2 for cy, cx, radius, _ in golden._DISCS]
    for y0, x0, y1, x1 in [*(rectangle[:4] for rectangle in golden._RECTANGLES), (0, 0, 30, 200)]:
        shapes.append((y >= y0) & (y < y1) & (x >= x0) & (x < x1))
    return torch.from_numpy(np.stack(shapes)[:, :height, :width])


@pytest.mark.parametrize('view', VIEWS)
def test_the_published_evaluation_gives_the_same_figures(model, embeddings, recorded, view):
    """Clicks of 6 pixels with the type of a box; best of six masks, and the one that expects the largest overlap."""
    height, width = VIEWS[view]
    boxes = torch.from_numpy(recorded[f'{view}.eval_boxes_dn'])
    found = model.mask_head.answer(embeddings[view], boxes[None], types(BOX_TYPE, 8))
    assert_close(found.overlaps[0], recorded[f'{view}.eval_ious_pred'], TOLERANCE)
    masks = interpolate(found.masks[0], size=FRAME_HW, mode='bilinear', align_corners=False)[..., :height, :width] > 0
    objects = truth(view)[:, None]
    ious = (masks & objects).sum((2, 3)) / (masks | objects).sum((2, 3))
    assert_close(ious.amax(1), recorded[f'{view}.eval_oracle_iou'], 1e-4)
    chosen = ious.gather(1, found.overlaps[0].argmax(1, keepdim=True))[:, 0]
    assert_close(chosen, recorded[f'{view}.eval_max_iou'], 1e-4)


@pytest.mark.usefixtures('release')
@pytest.mark.parametrize('view', VIEWS)
def test_the_released_demonstration_gives_the_same_masks(model, recorded, view):
    points = points_px(recorded, view)
    one = model.test_step(batch(view, points=points[:1]))[0].pred_instances
    masks = rle.decode_rles(one.masks[0], VIEWS[view])
    width = VIEWS[view][1]
    expected = np.unpackbits(recorded[f'{view}.click0_image_masks'], axis=-1, count=width).astype(bool)
    assert (masks != expected).sum(axis=(1, 2)).max() <= 4
    assert_close(one.scores[0], recorded[f'{view}.click_ious'][0, 0], TOLERANCE)
    several = model.test_step(batch(view, points=points))[0].pred_instances
    areas = np.array([rle.decode_rles(masks, VIEWS[view]).sum(axis=(1, 2)) for masks in several.masks])
    assert np.abs(areas - recorded[f'{view}.joint_areas_pb0']).max() <= 4


def test_a_click_has_the_type_and_size_of_training_and_sees_no_other(model, embeddings, recorded):
    points = points_px(recorded, 'pad')
    found = model.test_step(batch('pad', points=points))[0].pred_instances
    sides = np.full_like(points, 6.0)
    boxes = torch.from_numpy(np.concatenate([points, sides], axis=1) / np.array(FRAME_HW[::-1] * 2)).float()[None]
    expected = model.mask_head.answer(embeddings['pad'], boxes, types(CLICK_TYPE, 5), joint=False)
    assert_close(found.scores, expected.overlaps[0].numpy(), ROUNDING)
    alone = model.test_step(batch('pad', points=points[3:4]))[0].pred_instances
    assert_close(alone.scores[0], found.scores[3].numpy(), ROUNDING)


def test_prompts_and_answers_are_in_pixels_of_the_original_image(model, recorded):
    """Of an original of twice the size, points and boxes have twice the coordinates; bitmaps have its size."""
    points = points_px(recorded, 'pad')[:2]
    small, large = (model.test_step(batch('pad', scale, points=points * scale))[0].pred_instances for scale in (1, 2))
    assert_close(large.scores, small.scores.numpy(), ROUNDING)
    assert_close(large.bboxes, 2 * small.bboxes.numpy(), 1e-2)
    assert large.masks[0][0]['size'] == [340, 460]


def test_bitmaps_are_those_of_the_run_lengths(model, recorded, monkeypatch):
    boxes = np.array([[120.0, 20, 180, 70], [38, 22, 90, 74]])
    runs = model.test_step(batch('pad', bboxes=boxes))[0].pred_instances
    monkeypatch.setattr(model.mask_head, 'mask_format', 'bitmap')
    bitmaps = model.test_step(batch('pad', bboxes=boxes))[0].pred_instances
    assert bitmaps.masks.shape == (2, 6, 170, 230)
    for masks, expected in zip(runs.masks, bitmaps.masks.numpy(), strict=True):
        assert np.array_equal(rle.decode_rles(masks, VIEWS['pad']), expected)


def test_a_box_is_given_by_its_corners(model, embeddings, recorded):
    cx, cy, width, height = recorded['box'] * np.array(VIEWS['full'][::-1] * 2)
    corners = np.array([[cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]])
    found = model.test_step(batch('full', bboxes=corners))[0].pred_instances
    assert_close(found.scores[0], recorded['full.box_ious'][BOX_TYPE], TOLERANCE)


def test_no_prompts_is_one_clear_line(model):
    with pytest.raises(UnSAMError, match='has no prompts; set its `prompts` to InstanceData'):
        model.test_step(batch('full'))


@pytest.mark.parametrize(
    ('prompts', 'message'),
    [
        ({'points': np.zeros(2)}, 'points must be'),
        ({'bboxes': np.zeros((1, 2))}, r'bboxes must be \(P, 4\), got \(1, 2\)'),
    ],
)
def test_prompts_of_another_shape_are_refused(model, prompts, message):
    with pytest.raises(UnSAMError, match=message):
        model.test_step(batch('full', **prompts))


def test_an_unknown_mask_format_is_refused():
    with pytest.raises(UnSAMError, match="UnSAMPromptHead: test_cfg.mask_format must be one of .* got 'png'"):
        UnSAMPromptHead(pixel_decoder={}, test_cfg={'mask_format': 'png'})


def tiny(**changed: torch.Tensor) -> dict[str, torch.Tensor]:
    """The names of the checkpoint, each with eight numbers."""
    values = {name: torch.arange(8.0).view(2, 4) for name in official_shapes()}
    return {name: changed.get(name, value) for name, value in values.items()}


def test_each_tensor_is_used_but_those_of_labels():
    converted = convert_promptable(tiny(), Path('released.pth'))
    assert converted.keys() == build().state_dict().keys()


def test_names_of_one_tensor_must_agree():
    name = f'{_PROMPTS}.bbox_embed.3.layers.0.weight'
    with pytest.raises(WeightsError, match=r"bbox_embed\.3\.layers\.0\.weight' (differs from|.*differs)"):
        convert_promptable(tiny(**{name: torch.ones(2, 4)}), Path('released.pth'))


def test_a_model_with_more_parts_is_refused():
    with pytest.raises(
        WeightsError, match=r"released\.pth: has an unknown 'x' \(1 such keys\), so it is not UnSAM's p"
    ):
        convert_promptable(tiny() | {'x': torch.ones(1)}, Path('released.pth'))
