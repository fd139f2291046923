"""The promptable head learns the masks of an image: which prompts it is given, and what it is told about them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.test_models.descent import fall_in_proportion
from tests.test_models.prompt_scene import HEIGHT, WIDTH, small_model
from unsam_mm.evaluation.prompt_metric import UnSAMPromptIoUMetric
from unsam_mm.masks import rle
from unsam_mm.models.mask_ops import BitMasks, PointSampling
from unsam_mm.models.prompt_criterion import TokenPredictions, match, prompt_losses
from unsam_mm.models.prompt_targets import BOX_TYPE, CLICK_TYPE, TrainingPrompts, draw_prompts


@pytest.fixture
def small() -> ConfigDict:
    """The shipped config with a Swin of four narrow blocks and a decoder of two layers."""
    return small_model()


def nested_masks(count: int) -> BitmapMasks:
    """Rectangles around (y 40, x 60), each within the next; the last number is the smallest."""
    masks = np.zeros((count, HEIGHT, WIDTH), np.uint8)
    for number in range(count):
        margin = 3 * (count - number)
        masks[number, 40 - margin : 40 + margin, 60 - margin : 60 + margin] = 1
    return BitmapMasks(masks, HEIGHT, WIDTH)


def test_a_click_lies_in_its_mask_and_may_mean_every_mask_around_it():
    masks = nested_masks(4)
    drawn = draw_prompts(masks, 50, max_targets=6, box_prob=0.0, random_targets=False)
    assert (drawn.types == CLICK_TYPE).all()
    x, y = (drawn.boxes[:, :2] * torch.tensor([WIDTH, HEIGHT])).floor().long().unbind(1)
    for targets, holding in zip(drawn.targets, masks.masks[:, y, x].T, strict=True):
        assert targets.tolist() == np.flatnonzero(holding).tolist()
        assert len(targets) >= 1
    assert len({len(targets) for targets in drawn.targets}) > 1
    assert torch.allclose(drawn.boxes[:, 2:], torch.tensor([6 / WIDTH, 6 / HEIGHT]))


def test_a_box_is_near_that_of_its_mask_and_means_it_alone():
    drawn = draw_prompts(nested_masks(4), 50, max_targets=6, box_prob=1.0, random_targets=False)
    assert (drawn.types == BOX_TYPE).all()
    assert all(len(targets) == 1 for targets in drawn.targets)
    own = drawn.mask_boxes[torch.cat(drawn.targets)]
    away = (drawn.boxes - own).abs() / own[:, [2, 3, 2, 3]]
    assert 0.05 < away.max() <= 0.2 + 1e-5  # both sides may move by a tenth, so the size by a fifth


def test_of_many_masks_the_smallest_and_the_largest_are_among_the_targets():
    masks = nested_masks(10)
    one_pixel = draw_prompts(masks, 400, max_targets=6, box_prob=0.0, random_targets=False)
    crowded = [targets for targets in one_pixel.targets if 9 in targets]  # clicks into the smallest hold all ten
    assert crowded
    assert all(targets.tolist() == [9, 7, 5, 4, 2, 0] for targets in crowded)


def test_the_release_takes_random_ones_of_many():
    drawn = draw_prompts(nested_masks(10), 400, max_targets=6, box_prob=0.0, random_targets=True)
    crowded = {tuple(sorted(targets.tolist())) for targets in drawn.targets if 9 in targets}
    assert len(crowded) > 1
    assert all(len(targets) <= 6 for targets in drawn.targets)


def test_an_empty_mask_is_never_meant():
    masks = nested_masks(3)
    masks.masks[1] = 0
    drawn = draw_prompts(masks, 30, max_targets=6, box_prob=0.5, random_targets=False)
    assert 1 not in torch.cat(drawn.targets)


@pytest.fixture
def scene() -> tuple[TokenPredictions, torch.Tensor, TrainingPrompts]:
    """Random predictions of two tokens for two prompts, of which one may mean two masks and the other one."""
    feature = torch.randn(8, HEIGHT // 4, WIDTH // 4)
    masks = draw_prompts(nested_masks(2), 1, 6, 0.0, False)
    prompts = TrainingPrompts(
        torch.zeros(2, 4),
        torch.ones(2).long(),
        [torch.tensor([0, 1]), torch.tensor([1])],
        masks.masks,
        masks.mask_boxes,
    )
    found = TokenPredictions(torch.randn(2, 2, 8), torch.rand(2, 2), 0.25 + 0.5 * torch.rand(2, 2, 4))
    return found, feature, prompts


def giou(first: torch.Tensor, second: torch.Tensor) -> float:
    """Of two boxes as centre x, y, width, height."""
    (a0, a1), (b0, b1) = ((box[:2] - box[2:] / 2, box[:2] + box[2:] / 2) for box in (first, second))
    shared = (torch.minimum(a1, b1) - torch.maximum(a0, b0)).clamp(min=0).prod()
    union = (a1 - a0).prod() + (b1 - b0).prod() - shared
    hull = (torch.maximum(a1, b1) - torch.minimum(a0, b0)).prod()
    return float(shared / union - (hull - union) / hull)


def test_the_pairs_of_each_prompt_have_the_lowest_cost(scene):
    found, _, prompts = scene
    feature, truth = torch.randn(8, 300), (torch.rand(2, 300) > 0.5).float()
    rows, tokens, targets = match(found, prompts, feature, truth)
    expected = []
    for row, candidates in enumerate(prompts.targets):
        costs = np.zeros((2, len(candidates)))
        for token in range(2):
            logits = found.embeds[row, token] @ feature
            probability = logits.sigmoid()
            for column, mask in enumerate(candidates):
                own, box = truth[mask], prompts.mask_boxes[mask]
                entropy = binary_cross_entropy_with_logits(logits, own)
                dice = 1 - (2 * (probability * own).sum() + 1) / (probability.sum() + own.sum() + 1)
                distance = (found.boxes[row, token] - box).abs().sum()
                costs[token, column] = 5 * entropy + 5 * dice + 5 * distance - 2 * giou(found.boxes[row, token], box)
        for token, column in zip(*linear_sum_assignment(costs), strict=True):
            expected.append((row, int(token), int(candidates[column])))
    assert list(zip(rows.tolist(), tokens.tolist(), targets.tolist(), strict=True)) == expected
    assert len(expected) == 3  # a token without a mask is in no pair


def test_perfect_tokens_have_no_loss():
    """One mask whose logits are right everywhere, with its own box and the right overlap."""
    mask = np.zeros((1, HEIGHT, WIDTH), np.uint8)
    mask[0, :, : WIDTH // 2] = 1
    feature = torch.full((1, HEIGHT // 4, WIDTH // 4), -40.0)
    feature[..., : WIDTH // 8] = 40.0
    box = torch.tensor([[0.25, 0.5, 0.5, 1.0]])
    packed = BitMasks.pack(BitmapMasks(mask, HEIGHT, WIDTH))
    prompts = TrainingPrompts(box, torch.ones(1).long(), [torch.tensor([0])], packed, box)
    found = TokenPredictions(torch.ones(1, 1, 1), torch.ones(1, 1), box[None])
    sampling, n_pairs = PointSampling(2000, oversample_ratio=1.0, importance_sample_ratio=0.0), torch.tensor(1.0)
    (perfect,) = prompt_losses([found], feature, prompts, sampling, n_pairs)
    assert perfect.keys() == {'loss_mask', 'loss_dice', 'loss_bbox', 'loss_giou', 'loss_iou'}
    # Points within a pixel of the mask's edge see logits between both sides.
    assert all(loss < 0.5 for loss in perfect.values())
    wrong = TokenPredictions(-found.embeds, found.overlaps, found.boxes / 2)
    (worst,) = prompt_losses([wrong], feature, prompts, sampling, n_pairs)
    assert all(worst[name] > max(0.4, 10 * perfect[name]) for name in perfect)
    assert worst['loss_bbox'] == pytest.approx(5 * (0.125 + 0.25 + 0.25 + 0.5))


def test_an_image_without_masks_gives_every_weight_a_gradient_of_zero(small, photo, make_sample):
    model = MODELS.build(small)
    model.init_weights()
    data = model.data_preprocessor(
        {'inputs': [photo], 'data_samples': [make_sample(np.zeros((0, HEIGHT, WIDTH)))]}, training=True
    )
    losses = model(**data, mode='loss')
    assert all(loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, weight in model.named_parameters() if weight.grad is None]
    assert all((weight.grad == 0).all() for weight in model.parameters())


def test_every_layer_has_every_loss(small, photo, make_sample):
    model = MODELS.build(small)
    model.init_weights()
    data = model.data_preprocessor(
        {'inputs': [photo, photo], 'data_samples': [make_sample(nested_masks(3).masks)] * 2}, training=True
    )
    losses = model(**data, mode='loss')
    names = ('loss_mask', 'loss_dice', 'loss_bbox', 'loss_giou', 'loss_iou')
    assert losses.keys() == {f'{layer}{name}' for layer in ('d0.', '') for name in names}
    assert all(loss > 0 and loss.isfinite() for loss in losses.values())


def test_answers_can_be_judged_by_the_metric(small, photo, make_sample):
    """Three clicks on two objects, of which the second has two."""
    model = MODELS.build(small).eval()
    sample = make_sample(nested_masks(2).masks)
    sample.set_metainfo({'img_id': 7})
    sample.prompts = InstanceData(points=np.array([[60.0, 40], [61, 41], [58, 38]]), targets=torch.tensor([0, 1, 1]))
    sample.prompts.clicks = torch.tensor([1, 1, 2])
    with torch.no_grad():
        judged = model.test_step({'inputs': [photo], 'data_samples': [sample]})[0]
    metric = UnSAMPromptIoUMetric(n_clicks=2)
    metric.process(None, [judged.to_dict()])
    masks = rle.decode_rles(judged.pred_prompts.masks[0], (HEIGHT, WIDTH))
    truth = nested_masks(2).masks[0].astype(bool)
    best = ((masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))).max()
    assert metric.results[0]['ious'][1, 0, 0] == pytest.approx(best)
    assert metric.results[0]['ious'].shape == (2, 2, 2)


@pytest.mark.parametrize('mask_format', ['rle', 'bitmap'])
def test_no_prompts_have_no_answers(small, photo, make_sample, mask_format):
    small.test_cfg.mask_format = mask_format
    sample = make_sample(nested_masks(1).masks)
    sample.prompts = InstanceData(points=np.zeros((0, 2)))
    with torch.no_grad():
        found = MODELS.build(small).eval().test_step({'inputs': [photo], 'data_samples': [sample]})[0].pred_instances
    assert len(found) == 0


@pytest.mark.parametrize('release', [False, True])
def test_the_loss_falls_as_its_gradient_says(small, photo, make_sample, release):
    """Two objects, one of them inside a larger one, learnt from clicks and boxes."""
    masks = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    masks[0, 10:86, 8:60] = 1
    masks[1, 30:60, 20:45] = 1
    masks[2, 20:70, 75:120] = 1
    small.mask_head.release = release
    # Points are drawn alike whatever the logits are, and no answer is corrected.
    small.train_cfg.update(oversample_ratio=1.0, importance_sample_ratio=0.0, correction_prob=0.0)
    model = MODELS.build(small)
    model.init_weights()
    model.eval()

    def loss() -> torch.Tensor:
        torch.manual_seed(1)  # of prompts and points
        batch = {'inputs': [photo], 'data_samples': [make_sample(masks)]}
        return sum(model(**model.data_preprocessor(batch, training=True), mode='loss').values())

    assert 0.4 < fall_in_proportion(loss, model.parameters()) < 2
