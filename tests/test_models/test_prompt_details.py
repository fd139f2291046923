"""Prompts of several clicks, boxes with clicks, earlier masks and granularity: what they change, and how it is learnt."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor, nn

from tests.test_models.descent import cosine
from tests.test_models.prompt_scene import HEIGHT, WIDTH, batch_of, nested_regions, photographs, sample_of, small_model
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import encode_bitmaps, rle_to_json
from unsam_mm.models.mask_ops import BitMasks, PointSampling
from unsam_mm.models.prompt_criterion import TokenPredictions, prompt_losses
from unsam_mm.models.prompt_details import ABSENT, CLICK_TYPE, NEGATIVE, POSITIVE
from unsam_mm.models.prompt_targets import TrainingPrompts, corrected, draw_prompts
from unsam_mm.next_click import centre_of, next_click

CLICK, OTHER = (40.5, 50.5), (80.5, 30.5)
BOX = (20.0, 30.0, 70.0, 80.0)


@pytest.fixture
def model() -> nn.Module:
    """Untrained, but every weight has a value: the granularity's last layer starts at zero."""
    model = MODELS.build(small_model()).eval().requires_grad_(False)
    nn.init.normal_(model.mask_head.details.granularity_mlp[-1].weight)
    model.mask_head.details.trained.fill_(True)
    return model


def answer(model: nn.Module, **prompts: object) -> InstanceData:
    with torch.no_grad():
        return model.test_step(batch_of(photographs()[1], sample_of(**prompts)))[0].pred_instances


def points(*clicks: tuple[float, float]) -> np.ndarray:
    """One object with several clicks."""
    return np.array([clicks])


def upper_half() -> np.ndarray:
    mask = np.zeros((1, HEIGHT, WIDTH), bool)
    mask[:, : HEIGHT // 2] = True
    return mask


def assert_same(found: InstanceData, expected: InstanceData, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=tolerance)
    torch.testing.assert_close(found.bboxes, expected.bboxes, rtol=0, atol=100 * tolerance)


def assert_differ(found: InstanceData, other: InstanceData) -> None:
    assert (found.scores - other.scores).abs().max() > 1e-3


@pytest.mark.parametrize('prompts', [{'points': np.array([CLICK, OTHER])}, {'bboxes': np.array([BOX])}])
def test_one_click_or_one_box_is_answered_to_the_bit_as_if_there_were_no_details(model, prompts):
    before = answer(model, **prompts)
    for weight in model.mask_head.details.parameters():
        nn.init.normal_(weight)
    after = answer(model, **prompts)
    assert torch.equal(before.scores, after.scores)
    assert torch.equal(before.bboxes, after.bboxes)
    assert before.masks == after.masks


def test_the_same_click_may_be_written_with_labels_and_padding(model):
    plain = answer(model, points=np.array([CLICK]))
    padded = answer(model, points=points(CLICK, (np.nan, np.nan)), point_labels=np.array([[1, -1]]))
    open_granularity = answer(model, points=np.array([CLICK]), granularity=np.array([np.nan]))
    for same in (padded, open_granularity):
        assert torch.equal(same.scores, plain.scores)


def test_two_clicks_at_one_object_are_one_answer_and_not_that_of_two_objects(model):
    together = answer(model, points=points(CLICK, OTHER))
    apart = answer(model, points=np.array([CLICK, OTHER]))
    assert together.scores.shape == (1, 6)
    assert apart.scores.shape == (2, 6)
    assert (together.scores - apart.scores).abs().amax(dim=1).min() > 1e-3


def test_the_order_of_clicks_is_of_no_consequence(model):
    clicks, labels = [CLICK, OTHER, (10.5, 20.5), (60.5, 90.5)], [1, 1, 0, 0]
    expected = answer(model, points=points(*clicks), point_labels=np.array([labels]))
    for order in ([3, 1, 0, 2], [1, 0, 3, 2]):
        found = answer(model, points=points(*(clicks[i] for i in order)), point_labels=np.array([labels])[:, order])
        assert_same(found, expected)


def test_a_negative_click_is_not_a_positive_one(model):
    clicks = points(CLICK, OTHER)
    assert_differ(answer(model, points=clicks, point_labels=[[1, 0]]), answer(model, points=clicks))


@pytest.mark.parametrize(
    'more',
    [
        {'points': points(CLICK)},
        {'points': points(CLICK), 'point_labels': np.array([[0]])},
        {'masks': upper_half()},
        {'granularity': np.array([0.7])},
    ],
    ids=['click', 'negative click', 'earlier mask', 'granularity'],
)
def test_a_box_is_answered_otherwise_with(model, more):
    boxes = np.array([BOX])
    assert_differ(answer(model, bboxes=boxes, **more), answer(model, bboxes=boxes))


def test_a_mask_alone_is_a_prompt_and_may_be_run_lengths(model):
    bitmap = answer(model, masks=upper_half())
    rles = encode_bitmaps(upper_half())
    for runs in (rles, [rle_to_json(rle) for rle in rles]):
        assert torch.equal(bitmap.scores, answer(model, masks=runs).scores)
    assert_differ(bitmap, answer(model, masks=~upper_half()))


def test_objects_with_and_without_details_do_not_see_each_other(model):
    """Three objects in one call: a click, two clicks with an earlier mask, and a box with a negative click."""
    nothing = np.zeros_like(upper_half())
    no_box = [math.nan] * 4
    together = answer(
        model,
        points=np.array([[CLICK, CLICK], [CLICK, OTHER], [OTHER, OTHER]]),
        point_labels=np.array([[1, -1], [1, 1], [0, -1]]),
        bboxes=np.array([no_box, no_box, BOX]),
        masks=np.concatenate([nothing, upper_half(), nothing]),
    )
    alone = [
        answer(model, points=np.array([CLICK])),
        answer(model, points=points(CLICK, OTHER), masks=upper_half()),
        answer(model, points=points(OTHER), point_labels=[[0]], bboxes=np.array([BOX])),
    ]
    for row, expected in enumerate(alone):
        torch.testing.assert_close(together.scores[row], expected.scores[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ('prompts', 'message'),
    [
        ({'points': np.zeros((1, 2, 3))}, r'prompts\.points must be \(P, 2\) or \(P, K, 2\), got \(1, 2, 3\)'),
        ({'points': points(CLICK), 'point_labels': np.ones((1, 2))}, r'point_labels must be \(1, 1\), .* got \(1, 2\)'),
        ({'points': points(CLICK), 'point_labels': np.array([[2]])}, r'point_labels must be 1 .* got \[2\]'),
        ({'points': np.array([[np.nan, 3.0]])}, r'prompts\.points must be finite'),
        ({'point_labels': np.ones((1, 1)), 'bboxes': np.array([BOX])}, r'point_labels is given without prompts.points'),
        ({'points': points(CLICK), 'point_labels': np.array([[0]])}, r'prompt 0 has no positive click, no box'),
        ({'bboxes': np.full((2, 4), np.nan)}, r'prompt 0 has no positive click, no box and no mask'),
        ({'masks': np.ones((1, 9, 9), bool)}, r'masks must be \(P, 96, 128\), the size .* got \(1, 9, 9\)'),
        ({'masks': encode_bitmaps(upper_half()[:, ::2, ::2])}, r'mask 0: the mask is 48 x 64 px, the image 96 x 128'),
        ({'points': points(CLICK), 'granularity': np.array([1.5])}, r'granularity must lie in \[0, 1\].* got \[1\.5\]'),
        ({'points': points(CLICK), 'granularity': np.ones((1, 1))}, r'granularity must be \(P,\), got \(1, 1\)'),
    ],
)
def test_what_cannot_be_meant_is_refused(model, prompts, message):
    with pytest.raises(UnSAMError, match=message):
        answer(model, **prompts)


def test_an_untrained_head_warns_of_details_and_of_nothing_else(model):
    model.mask_head.details.trained.fill_(False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        answer(model, points=np.array([CLICK]))
    with pytest.warns(UserWarning, match='have not been trained, as in all released checkpoints'):
        answer(model, points=points(CLICK, OTHER))


def test_a_released_checkpoint_gets_untrained_details():
    from tests.test_models.test_prompt_golden import build, convert_promptable, tiny

    converted = convert_promptable(tiny(), Path('released.pth'))
    own = {name: value for name, value in converted.items() if name.startswith('mask_head.details.')}
    assert not own['mask_head.details.trained']
    assert {name: value.shape for name, value in own.items()} == {
        name: value.shape for name, value in build().state_dict().items() if name.startswith('mask_head.details.')
    }


# Training


def squares(*sides: int) -> BitmapMasks:
    """Squares around (x 60, y 48)."""
    masks = np.zeros((len(sides), HEIGHT, WIDTH), np.uint8)
    for mask, side in zip(masks, sides, strict=True):
        mask[48 - side // 2 : 48 + side // 2, 60 - side // 2 : 60 + side // 2] = 1
    return BitmapMasks(masks, HEIGHT, WIDTH)


def test_a_prompt_that_tells_its_granularity_means_that_mask_alone():
    masks = squares(12, 40, 80)
    drawn = draw_prompts(masks, 60, 6, 0.0, False, granularity_prob=0.5)
    told = ~drawn.details.granularity[0].isnan()
    assert torch.equal(told, drawn.all_tokens_scored)
    assert 10 < told.sum() < 50
    for row in told.nonzero()[:, 0].tolist():
        (target,) = drawn.targets[row].tolist()
        share = masks.areas[target] / (HEIGHT * WIDTH)
        assert drawn.details.granularity[0, row].item() == pytest.approx(1 + math.log10(share) / 4)
    assert max(len(targets) for targets in drawn.targets) == 3


def correcting(shown: np.ndarray, rounds: int, earlier_mask_prob: float = 1.0) -> TrainingPrompts:
    """Prompts on a square of 40 px, to all of which an answer with the masks `shown` is given in each round."""
    drawn = draw_prompts(squares(40), 8, 6, 0.0, False)
    logits = torch.from_numpy(np.where(shown, 1.0, -1.0))[None]
    return corrected(
        drawn,
        torch.arange(4),
        rounds,
        earlier_mask_prob,
        (24, 32),
        lambda boxes, *_: logits.expand(len(boxes), -1, -1, -1),
    )


def at_feature(masks: BitmapMasks) -> np.ndarray:
    return masks.masks[0, 2::4, 2::4].astype(bool)


def test_a_correction_clicks_where_the_answer_is_most_wrong():
    truth = at_feature(squares(40))
    empty, too_large = np.zeros_like(truth), at_feature(squares(88))
    found = correcting(np.stack([empty, too_large]), rounds=1)  # the second is more like the truth
    assert found.all_tokens_scored.tolist() == [True] * 4 + [False] * 4
    assert found.details.kinds[0, :4].tolist() == [[POSITIVE, NEGATIVE]] * 4
    assert (found.details.kinds[0, 4:] == ABSENT).all()
    (x, y), positive = next_click(too_large, truth, empty)
    assert not positive
    expected = torch.tensor([(x + 0.5) / 32, (y + 0.5) / 24])
    torch.testing.assert_close(found.details.clicks[0, :4, 1], expected.expand(4, -1))
    assert (found.details.masks[0, :4].numpy() == too_large).all()
    assert not found.details.masks[0, 4:].any()
    assert (found.types == CLICK_TYPE).all()


def test_earlier_masks_are_kept_at_a_share_and_a_right_answer_is_not_clicked():
    truth = at_feature(squares(40))
    assert not correcting(truth[None], rounds=2).details.kinds.numel()  # nothing but the masks
    assert correcting(truth[None], rounds=2, earlier_mask_prob=0.0).details is None


def test_each_round_clicks_at_another_place():
    found = correcting(np.zeros((1, 24, 32), bool), rounds=3, earlier_mask_prob=0.0)
    assert found.details.masks is None
    places = found.details.clicks[0, 0, 1:]
    assert len({tuple(place) for place in places.tolist()}) == 3
    assert (found.details.kinds[0, :4] == POSITIVE).all()
    x, y = (found.boxes[0, :2] * torch.tensor([WIDTH, HEIGHT])).tolist()
    assert 40 <= x <= 80  # the mask tokens start around all of them
    assert 28 <= y <= 68


def test_of_a_prompt_that_means_one_mask_every_token_learns_its_overlap():
    """Two tokens, of which the second shows the opposite of the mask."""
    feature = torch.full((1, HEIGHT // 4, WIDTH // 4), -40.0)
    feature[..., : WIDTH // 8] = 40.0
    mask = np.zeros((1, HEIGHT, WIDTH), np.uint8)
    mask[0, :, : WIDTH // 2] = 1
    box = torch.tensor([[0.25, 0.5, 0.5, 1.0]])
    packed = BitMasks.pack(BitmapMasks(mask, HEIGHT, WIDTH))
    losses = {}
    for all_tokens_scored in (False, True):
        for overlap in (0.0, 1.0):
            found = TokenPredictions(
                torch.tensor([[[1.0], [-1.0]]]), torch.tensor([[1.0, overlap]]), box[None].expand(1, 2, -1)
            )
            prompts = TrainingPrompts(
                box,
                torch.ones(1).long(),
                [torch.tensor([0])],
                packed,
                box,
                torch.tensor([0]),
                torch.tensor([all_tokens_scored]),
            )
            sampling = PointSampling(500, oversample_ratio=1.0, importance_sample_ratio=0.0)
            (learnt,) = prompt_losses([found], feature, prompts, sampling, torch.tensor(1.0))
            losses[all_tokens_scored, overlap] = float(learnt['loss_iou'])
    assert losses[False, 0.0] < 0.05
    assert losses[False, 1.0] < 0.05
    assert losses[True, 0.0] < 0.05
    assert losses[True, 1.0] == pytest.approx(1, abs=0.1)


def test_the_release_draws_no_details(model, monkeypatch):
    head = model.mask_head
    monkeypatch.setattr(head, 'release', True)
    head.details.trained.fill_(False)
    data = model.data_preprocessor(batch_of(photographs()[1], sample_of(squares(12, 40).masks)), training=True)
    model(**data, mode='loss')
    assert not head.details.trained


def loss_of(model: nn.Module, photograph: np.ndarray, masks: np.ndarray) -> Tensor:
    """Sum of all losses, the same for the same weights."""
    torch.manual_seed(1)  # of prompts and points
    data = model.data_preprocessor(batch_of(photograph, sample_of(masks)), training=True)
    return sum(model(**data, mode='loss').values())


def logits_of(model: nn.Module, photograph: np.ndarray, **prompts: object) -> Tensor:
    """(6, H / 4, W / 4) logits of the six masks, best first."""
    (found,) = model(**model.data_preprocessor(batch_of(photograph, sample_of(**prompts))), mode='tensor')
    return found.masks[0, 0, found.overlaps[0, 0].argsort(descending=True)]


def logits_at_negative_clicks(model: nn.Module, photograph: np.ndarray, masks: np.ndarray) -> list[Tensor]:
    """The mean logit of the six masks where a person would click negatively after one click at each object."""
    found = []
    for mask in masks:
        small = mask[2::4, 2::4]
        x, y = centre_of(mask)
        first = logits_of(model, photograph, points=points((x + 0.5, y + 0.5)))[0].detach().numpy()
        click = next_click(first > 0, small, np.zeros_like(small))
        if click is not None and not click[1]:
            column, row = click[0]
            clicks = points((x + 0.5, y + 0.5), (4 * column + 2.0, 4 * row + 2.0))
            found.append(
                logits_of(model, photograph, points=clicks, point_labels=np.array([[1, 0]]))[:, row, column].mean()
            )
    return found


@pytest.mark.filterwarnings('ignore:the weights of UnSAMPromptHead')  # before training
def test_training_lets_a_negative_click_take_its_place_out_of_the_mask():
    """A step against the gradient of a training with corrections lowers the logit at places clicked negatively.

    The step is one of the weights of several clicks alone, without which one click is answered as before; so it is the
    negative click that takes the place out. What the two gradients have in common is a cosine of 0.5 and more.
    """
    config = small_model()
    config.train_cfg.update(correction_prob=1.0, correction_rounds=1, earlier_mask_prob=0.0, granularity_prob=0.0)
    model = MODELS.build(config)
    model.init_weights()
    model.eval()
    photograph = photographs()[0]
    masks, weights = nested_regions(photograph), list(model.mask_head.details.parameters())
    logits = logits_at_negative_clicks(model, photograph, masks[:12])
    assert len(logits) >= 4
    raises = torch.autograd.grad(sum(logits), weights, allow_unused=True)
    learnt = torch.autograd.grad(loss_of(model, photograph, masks), weights, allow_unused=True)
    assert cosine(raises, learnt) > 0.1


def granularity_of(side: int) -> float:
    return 1 + math.log10(side**2 / (HEIGHT * WIDTH)) / 4


@pytest.mark.filterwarnings('ignore:the weights of UnSAMPromptHead')
def test_a_prompt_that_tells_a_larger_granularity_learns_a_larger_mask():
    """Squares around one click: the smaller is told, the more a step lowers the logits, and the larger, the less.

    Before any training granularity changes nothing, so a step of the last bias is a step of the code that is added to
    the tokens. Rates are those of the mean logit, for a step of length 1.
    """
    config = small_model()
    config.train_cfg.update(granularity_prob=1.0, correction_prob=0.0, box_prob=0.0)
    model = MODELS.build(config)
    model.init_weights()
    model.eval()
    photograph, code = photographs()[1], model.mask_head.details.granularity_mlp[-1].bias
    rates = []
    for side in (12, 72):
        prompt = {'points': points((60.5, 48.5)), 'granularity': np.array([granularity_of(side)])}
        (raises,) = torch.autograd.grad(logits_of(model, photograph, **prompt).mean(), [code])
        (learnt,) = torch.autograd.grad(loss_of(model, photograph, squares(side).masks), [code])
        rates.append(-(raises @ learnt / raises.norm()).item())
    assert rates[1] > rates[0] + 0.1


def test_granularities_have_codes_that_can_be_learnt_apart():
    """What the last layer reads is linearly independent, so it can give each of them any code."""
    details = MODELS.build(small_model()).mask_head.details
    seen = []
    details.granularity_mlp[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten()))
    for side in (12, 28, 48, 72):
        details.code(torch.tensor([[granularity_of(side)]]))
    spread = torch.linalg.svdvals(torch.stack(seen).detach())
    assert spread[-1] > 0.05 * spread[0]
