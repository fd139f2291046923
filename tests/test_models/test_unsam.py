"""The detector and its head, built from the shipped config with a random tiny ViT."""

import copy

import numpy as np
import pytest
import skimage.segmentation
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.runner.checkpoint import load_state_dict
from torch.utils._python_dispatch import TorchDispatchMode

from tests.test_models.descent import fall_in_proportion
from unsam_mm.errors import UnSAMError, WeightsError
from unsam_mm.masks.rle import decode_rles
from unsam_mm.models import mask_ops

CLASS_AGNOSTIC = {'num_things_classes': 1, 'num_stuff_classes': 0}


def regions(photo: torch.Tensor, count: int = 6) -> np.ndarray:
    """(N, H, W) bool superpixels of a photograph."""
    labels = skimage.segmentation.slic(photo.permute(1, 2, 0).numpy(), count, start_label=0)
    return np.stack([labels == i for i in range(labels.max() + 1)])


def build(config: ConfigDict) -> torch.nn.Module:
    model = MODELS.build(config)
    model.mask_head.init_weights()
    return model


def batch(model, inputs, samples, training=False):
    return model.data_preprocessor({'inputs': inputs, 'data_samples': copy.deepcopy(samples)}, training)


def test_every_decoder_layer_has_a_class_a_mask_and_a_dice_loss(model_config, photo, make_sample):
    model = build(model_config)
    losses = model(**batch(model, [photo], [make_sample(regions(photo))], training=True), mode='loss')
    layers = ['', 'd0.', 'd1.', 'd2.']
    assert set(losses) == {f'{layer}loss_{kind}' for layer in layers for kind in ('cls', 'mask', 'dice')}
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_images_without_objects_only_train_the_class(model_config, photo, make_sample):
    model = build(model_config)
    nothing = make_sample(np.zeros((0, *photo.shape[1:]), bool))
    losses = model(**batch(model, [photo], [nothing], training=True), mode='loss')
    sum(losses.values()).backward()
    assert losses['loss_mask'] == losses['loss_dice'] == 0
    assert losses['loss_cls'] > 0


def test_an_image_without_objects_beside_one_with_objects_trains(model_config, photo, make_sample):
    model = build(model_config)
    samples = [make_sample(np.zeros((0, *photo.shape[1:]), bool)), make_sample(regions(photo))]
    losses = model(**batch(model, [photo, photo], samples, training=True), mode='loss')
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_an_object_counts_as_an_object_whatever_its_label(model_config, photo, make_sample):
    model = build(model_config)
    sample = make_sample(regions(photo))
    relabelled = copy.deepcopy(sample)
    relabelled.gt_instances.labels[:] = 57
    totals = []
    for one in (sample, relabelled):
        torch.manual_seed(1)
        totals.append(sum(model(**batch(model, [photo], [one], training=True), mode='loss').values()))
    assert totals[0] == totals[1]


def test_the_same_seed_gives_the_same_losses(model_config, photo, make_sample):
    totals = []
    for _ in range(2):
        torch.manual_seed(3)
        model = build(model_config)
        totals.append(
            sum(model(**batch(model, [photo], [make_sample(regions(photo))], training=True), mode='loss').values())
        )
    assert totals[0] == totals[1]


def test_raw_outputs_have_one_entry_more_than_decoder_layers(model_config, photo, make_sample):
    model = build(model_config).eval()
    class_logits, mask_logits = model(**batch(model, [photo], [make_sample(regions(photo))]), mode='tensor')
    assert [tuple(logits.shape) for logits in class_logits] == [(1, 20, 2)] * 4
    assert [tuple(logits.shape) for logits in mask_logits] == [(1, 20, 24, 32)] * 4


def test_the_loss_falls_as_its_gradient_says(model_config, photo, make_sample):
    # Points are drawn alike whatever the logits are: a step changes the weights alone.
    model_config.train_cfg.update(oversample_ratio=1.0, importance_sample_ratio=0.0)
    model = build(model_config).eval()
    data = batch(model, [photo], [make_sample(regions(photo))], training=True)

    def loss():
        torch.manual_seed(1)  # of the points
        return sum(model(**copy.deepcopy(data), mode='loss').values()).sum()

    assert 0.4 < fall_in_proportion(loss, model.parameters()) < 2


def predict(config, inputs, samples, **test_cfg):
    """Predicted instances of each image, by a model whose weights depend on the seed alone."""
    torch.manual_seed(0)
    config = copy.deepcopy(config)
    config.test_cfg.update(test_cfg)
    model = build(config).eval()
    with torch.no_grad():
        return [sample.pred_instances for sample in model(**batch(model, inputs, samples), mode='predict')]


def test_masks_have_the_size_of_the_original_image_and_come_best_first(model_config, photo, make_sample):
    sample = make_sample(regions(photo), ori_shape=(144, 192))
    (found,) = predict(model_config, [photo], [sample])
    assert 0 < len(found) <= 20
    assert all(rle['size'] == [144, 192] for rle in found.masks)
    assert (found.scores.diff() <= 0).all()
    assert ((found.scores > 0) & (found.scores <= 1)).all()
    assert found.labels.eq(0).all()


def test_run_lengths_and_bitmaps_are_the_same_masks(model_config, photo, make_sample):
    sample = make_sample(regions(photo), ori_shape=(144, 192))
    (rles,) = predict(model_config, [photo], [sample], mask_format='rle')
    (bitmaps,) = predict(model_config, [photo], [sample], mask_format='bitmap')
    assert np.array_equal(decode_rles(rles.masks, (144, 192)), bitmaps.masks.numpy())
    assert torch.equal(rles.bboxes, bitmaps.bboxes)


def test_a_limit_above_the_number_of_queries_gives_all_queries(model_config, photo, make_sample):
    sample = make_sample(regions(photo))
    (few,) = predict(model_config, [photo], [sample], max_per_image=20)
    (many,) = predict(model_config, [photo], [sample], max_per_image=1000)
    assert len(few) == len(many)


def test_an_unknown_mask_format_is_refused(model_config):
    model_config.test_cfg.mask_format = 'polygon'
    with pytest.raises(UnSAMError, match="mask_format must be one of .* got 'polygon'"):
        MODELS.build(model_config)


def test_class_weights_for_more_than_one_class_are_refused(model_config):
    model_config.mask_head.loss_cls = {'type': 'CrossEntropyLoss', 'class_weight': [1.0] * 80 + [0.1]}
    with pytest.raises(UnSAMError, match='two weights'):
        MODELS.build(model_config)


@pytest.fixture
def stock_and_ours(model_config):
    """MMDetection's Mask2Former and UnSAM with the same weights and the same backbone."""
    model_config.test_cfg.update(mask_format='bitmap', max_per_image=15)
    ours = build(model_config).eval()
    head = copy.deepcopy(model_config.mask_head)
    head.update(type='Mask2FormerHead', **CLASS_AGNOSTIC)
    head.loss_cls = {'type': 'CrossEntropyLoss', 'loss_weight': 2.0, 'class_weight': [1.0, 0.1]}
    stock = MODELS.build(
        ConfigDict(
            type='Mask2Former',
            backbone=model_config.backbone,
            panoptic_head=head,
            panoptic_fusion_head={'type': 'MaskFormerFusionHead', **CLASS_AGNOSTIC},
            test_cfg={'panoptic_on': False, 'instance_on': True, 'max_per_image': 15},
        )
    ).eval()
    stock.backbone = ours.backbone
    stock.panoptic_head.load_state_dict(ours.mask_head.state_dict(), strict=True)
    return stock, ours


@torch.no_grad()
def test_predictions_equal_those_of_mmdets_mask2former(stock_and_ours, photo, make_sample):
    stock, ours = stock_and_ours
    # Two sizes in one batch, so that one image is padded; and masks of another size than the network's input.
    cut = photo[:, :80, :100]
    samples = [make_sample(regions(photo), ori_shape=(144, 192)), make_sample(regions(cut), ori_shape=(120, 150))]
    data = batch(ours, [photo, cut], samples)
    found = ours.predict(data['inputs'], copy.deepcopy(data['data_samples']))
    expected = stock.predict(data['inputs'], copy.deepcopy(data['data_samples']))
    for one, other in zip(found, expected, strict=True):
        theirs = other.pred_instances
        theirs = theirs[theirs.masks.flatten(1).any(dim=1)]  # empty masks are kept there
        theirs = theirs[theirs.scores.argsort(descending=True, stable=True)]
        assert len(theirs) > 0
        torch.testing.assert_close(one.pred_instances.scores, theirs.scores, rtol=1e-5, atol=1e-6)
        assert (one.pred_instances.masks != theirs.masks).float().mean() < 1e-4
        torch.testing.assert_close(one.pred_instances.bboxes, theirs.bboxes)


@pytest.fixture
def same_points(monkeypatch, model_config):
    """Leaves nothing to chance: k points are the same for every mask, in whatever order and portions they are drawn."""
    model_config.mask_head.pixel_decoder.encoder.layer_cfg.self_attn_cfg.dropout = 0.0
    draw = torch.rand

    def rand(*size, **options):
        count, k, _ = size[0] if isinstance(size[0], tuple) else size
        return draw((1, k, 2), generator=torch.Generator().manual_seed(k)).repeat(count, 1, 1)

    monkeypatch.setattr(torch, 'rand', rand)


def losses_and_gradients(head, levels, samples):
    head.zero_grad()
    losses = head.loss(levels, copy.deepcopy(samples))
    sum(losses.values()).sum().backward()
    return losses, {name: weight.grad.clone() for name, weight in head.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize('points_at_once', [2**21, 2000])
def test_training_losses_and_gradients_equal_those_of_mmdets_mask2former(
    model_config, photo, make_sample, same_points, monkeypatch, points_at_once
):
    monkeypatch.setattr(mask_ops, '_CHUNK_POINTS', points_at_once)
    ours = build(model_config)
    head = copy.deepcopy(model_config.mask_head)
    head.update(type='Mask2FormerHead', train_cfg=model_config.train_cfg, **CLASS_AGNOSTIC)
    head.loss_cls = {'type': 'CrossEntropyLoss', 'loss_weight': 2.0, 'class_weight': [1.0, 0.1]}
    stock = MODELS.build(head)
    stock.load_state_dict(ours.mask_head.state_dict(), strict=True)
    cut = photo[:, :80, :100]  # padded in the batch
    data = batch(ours, [photo, cut], [make_sample(regions(photo)), make_sample(regions(cut, 3))], training=True)
    levels = [level.detach() for level in ours.extract_feat(data['inputs'])]
    losses, gradients = losses_and_gradients(ours.mask_head, levels, data['data_samples'])
    expected, expected_gradients = losses_and_gradients(stock, levels, data['data_samples'])
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name].squeeze(), rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        # As a whole: rounding moves single entries, by more than a thousandth where larger ones cancel out.
        assert (gradient - expected_gradients[name]).norm() < 1e-3 * expected_gradients[name].norm() + 1e-6, name


@pytest.mark.parametrize(('drop_loss_iou', 'kept'), [(0.0, 1), (0.999, 0)])
def test_pairs_that_hardly_overlap_have_no_mask_losses_where_drop_loss_is_on(
    model_config, photo, make_sample, same_points, drop_loss_iou, kept
):
    model = build(model_config)
    data = batch(model, [photo], [make_sample(regions(photo))], training=True)
    default = model(**copy.deepcopy(data), mode='loss')
    model.mask_head.drop_loss_iou = drop_loss_iou
    losses = model(**data, mode='loss')
    for name, loss in losses.items():
        expected = default[name] if name.endswith('cls') else kept * default[name]
        torch.testing.assert_close(loss, expected)


def test_drop_loss_wants_an_overlap(model_config):
    model_config.train_cfg.drop_loss_iou = 1.5
    with pytest.raises(UnSAMError, match=r'drop_loss_iou must be in \[0, 1\) or None, got 1.5'):
        MODELS.build(model_config)


def test_half_precision_trains_and_predicts(model_config, photo, make_sample):
    model = build(model_config)
    sample = make_sample(regions(photo))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = model(**batch(model, [photo], [sample], training=True), mode='loss')
        sum(losses.values()).backward()
        with torch.no_grad():
            (found,) = model.eval()(**batch(model, [photo], [sample]), mode='predict')
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(w.grad).all() for w in model.parameters() if w.grad is not None)
    assert len(found.pred_instances) > 0
    assert found.pred_instances.scores.dtype == torch.float32


class LargestResult(TorchDispatchMode):
    """The most values that any step gave, the GEMMs' included."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, step, types, arguments=(), options=None):
        result = step(*arguments, **(options or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_nothing_has_the_size_of_the_masks_of_all_queries(model_config, photo, make_sample):
    model_config.mask_head.num_queries = 400
    model_config.mask_head.transformer_decoder.layer_cfg.ffn_cfg.feedforward_channels = 128
    model_config.test_cfg.max_per_image = 5
    model = build(model_config)
    sample = make_sample(regions(photo))
    all_masks = 400 * (photo.shape[1] // 4) * (photo.shape[2] // 4)
    levels = model.extract_feat(batch(model, [photo], [sample])['inputs'])
    with LargestResult() as training:
        model.mask_head.loss(levels, batch(model, [photo], [sample], training=True)['data_samples'])
    with LargestResult() as prediction, torch.no_grad():
        model.mask_head.predict(levels, batch(model, [photo], [sample])['data_samples'])
    assert training.numel < all_masks
    assert prediction.numel < all_masks


def test_a_checkpoint_of_another_model_is_refused(model_config):
    model = build(model_config)
    weights = {name: value for name, value in model.state_dict().items() if 'pixel_decoder' not in name}
    with pytest.raises(WeightsError, match=r'not one of this model: \d+ of \d+ weights are missing'):
        load_state_dict(model, weights)


def test_a_checkpoint_with_another_number_of_queries_is_refused(model_config):
    weights = build(model_config).state_dict()
    model_config.mask_head.num_queries = 30
    with pytest.raises(WeightsError, match=r'query_embed.weight is \(20, 128\), not \(30, 128\)'):
        load_state_dict(build(model_config), weights)


def test_a_partial_checkpoint_loads_where_it_is_allowed(model_config):
    model_config.partial_checkpoint = True
    model = build(model_config)
    weights = {name: value + 1 for name, value in model.state_dict().items() if name.endswith('cls_embed.bias')}
    load_state_dict(model, weights)
    assert torch.equal(model.mask_head.cls_embed.bias, weights['mask_head.cls_embed.bias'])
