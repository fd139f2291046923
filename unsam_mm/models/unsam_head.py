"""The whole-image head: a Mask2Former with one class and very many queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.functional import interpolate

from unsam_mm.errors import UnSAMError
from unsam_mm.models.mask_ops import boxes_of_masks, foreground_confidence, full_size_logits, rles_of_masks

MASK_FORMATS = ('rle', 'bitmap')

# Weights of the paper: class 2 (with 0.1 for "no object"), mask 5, dice 5.
_LOSS_CLS = {'type': 'CrossEntropyLoss', 'loss_weight': 2.0, 'class_weight': [1.0, 0.1]}
_LOSS_MASK = {'type': 'CrossEntropyLoss', 'use_sigmoid': True, 'loss_weight': 5.0}
_LOSS_DICE = {'type': 'DiceLoss', 'naive_dice': True, 'eps': 1.0, 'loss_weight': 5.0}


@MODELS.register_module()
class UnSAMHead(Mask2FormerHead):
    """Mask2Former head that tells objects from the rest and nothing more.

    The weights have the names that they have in MMDetection's `Mask2FormerHead`. What differs:

    * Prediction ranks the queries by class logit first and upsamples only the best, a few at a time; masks are kept as
      run lengths. Upsampling all 2000 queries of one 1024 x 1024 image takes 8 GB.
    * Every annotated instance counts as an object, whatever its label.
    * Attention weights, which nobody reads, are not formed, and attention masks are thresholded before they are
      repeated for each attention head.

    Args:
        in_channels: Channels of the four levels, strides 4, 8, 16 and 32.
        feat_channels: Width of the pixel decoder and of the queries.
        out_channels: Width of the mask embedding.
        pixel_decoder: Config of the pixel decoder, such as `MSDeformAttnPixelDecoder`.
        transformer_decoder: Arguments of `Mask2FormerTransformerDecoder`.
        positional_encoding: Arguments of `SinePositionalEncoding`; `num_feats` is half of `feat_channels`.
        num_queries: How many masks are proposed.
        num_transformer_feat_level: How many levels the queries attend to in turn.
        enforce_decoder_input_project: Whether to project the levels although the widths agree.
        loss_cls: Config of the object loss; its `class_weight` is (object, no object). The paper's by default.
        loss_mask: Config of the per-pixel loss. The paper's by default.
        loss_dice: Config of the dice loss. The paper's by default.
        train_cfg: `assigner`, `sampler`, and optionally `num_points`, `oversample_ratio`, `importance_sample_ratio`.
        test_cfg: `max_per_image` (default 1000) and `mask_format` ('rle', the default, or 'bitmap').
        init_cfg: MMEngine's initialisation.

    Raises:
        UnSAMError: If `test_cfg.mask_format` is unknown, or `loss_cls.class_weight` has not two entries.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        feat_channels: int,
        out_channels: int,
        pixel_decoder: dict,
        transformer_decoder: dict,
        positional_encoding: dict,
        num_queries: int = 2000,
        num_transformer_feat_level: int = 3,
        enforce_decoder_input_project: bool = False,
        loss_cls: dict | None = None,
        loss_mask: dict | None = None,
        loss_dice: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        loss_cls = ConfigDict(loss_cls or _LOSS_CLS)
        if len(loss_cls.get('class_weight') or ()) != 2:
            raise UnSAMError(
                'UnSAMHead: loss_cls.class_weight must hold two weights (object, no object), such as [1.0, 0.1], '
                f'got {loss_cls.get("class_weight")}'
            )
        test_cfg = ConfigDict(test_cfg or {})
        self.max_per_image = test_cfg.get('max_per_image', 1000)
        self.mask_format = test_cfg.get('mask_format', 'rle')
        if self.mask_format not in MASK_FORMATS:
            raise UnSAMError(f'UnSAMHead: test_cfg.mask_format must be one of {MASK_FORMATS}, got {self.mask_format!r}')
        super().__init__(
            in_channels=list(in_channels),
            feat_channels=feat_channels,
            out_channels=out_channels,
            num_things_classes=1,
            num_stuff_classes=0,
            num_queries=num_queries,
            num_transformer_feat_level=num_transformer_feat_level,
            pixel_decoder=ConfigDict(pixel_decoder),
            enforce_decoder_input_project=enforce_decoder_input_project,
            transformer_decoder=ConfigDict(transformer_decoder),
            positional_encoding=positional_encoding,
            loss_cls=loss_cls,
            loss_mask=ConfigDict(loss_mask or _LOSS_MASK),
            loss_dice=ConfigDict(loss_dice or _LOSS_DICE),
            train_cfg=ConfigDict(train_cfg) if train_cfg else None,
            test_cfg=test_cfg,
            init_cfg=init_cfg,
        )
        _drop_attention_weights(self.transformer_decoder)

    def predict(self, x: Sequence[Tensor], batch_data_samples: SampleList, rescale: bool = True) -> list[InstanceData]:
        """Masks of each image, best first; empty masks are left out.

        Args:
            x: Levels of shape (B, C, H / s, W / s), s = 4, 8, 16, 32.
            batch_data_samples: Their meta information gives `batch_input_shape`, `img_shape` and `ori_shape`.
            rescale: Whether masks and boxes are wanted in pixels of the original image, not of the network's input.

        Returns:
            For each image `scores` (N,) in [0, 1], the object probability times the mean foreground probability;
            `labels` (N,) zeros; `bboxes` (N, 4) x0, y0, x1, y1 in pixels; `masks`, N run-length encodings, or an
            (N, H, W) bool tensor where `test_cfg.mask_format` is 'bitmap'.
        """
        all_cls_logits, all_mask_logits = self(x, batch_data_samples)
        return [
            self._instances(cls_logits, mask_logits, sample.metainfo, rescale)
            for cls_logits, mask_logits, sample in zip(
                all_cls_logits[-1], all_mask_logits[-1], batch_data_samples, strict=True
            )
        ]

    def _instances(self, cls_logits: Tensor, mask_logits: Tensor, meta: dict, rescale: bool) -> InstanceData:
        """Masks of one image from (Q, 2) class logits and (Q, h, w) mask logits."""
        probability, queries = cls_logits.softmax(dim=-1)[:, 0].topk(min(self.max_per_image, self.num_queries))
        image_hw = tuple(meta['img_shape'][:2])
        output_hw = tuple(meta['ori_shape'][:2]) if rescale else image_hw
        confidences, boxes, masks = [], [], []
        for logits in full_size_logits(mask_logits[queries], tuple(meta['batch_input_shape']), image_hw, output_hw):
            chunk = logits > 0
            confidences.append(foreground_confidence(logits, chunk))
            boxes.append(boxes_of_masks(chunk))
            masks.append(chunk if self.mask_format == 'bitmap' else rles_of_masks(chunk))
        scores = probability * torch.cat(confidences)
        boxes = torch.cat(boxes)
        order = scores.argsort(descending=True, stable=True)
        order = order[boxes[order, 2] > 0]  # the box of an empty mask ends at 0
        if self.mask_format == 'bitmap':
            kept = torch.cat(masks)[order]
        else:
            flat = [rle for chunk in masks for rle in chunk]
            kept = [flat[i] for i in order.tolist()]
        return InstanceData(scores=scores[order], labels=torch.zeros_like(order), bboxes=boxes[order], masks=kept)

    def preprocess_gt(self, batch_gt_instances: list[InstanceData], batch_gt_semantic_segs: list) -> list[InstanceData]:
        """Turns annotations into targets: `labels` (N,) zeros and `masks` (N, H, W) bool, in the padded batch's frame.

        Args:
            batch_gt_instances: Each holds `masks` (BitmapMasks or PolygonMasks) and `labels`.
            batch_gt_semantic_segs: Not used; there are no stuff classes.
        """
        targets = []
        for instances in batch_gt_instances:
            labels = torch.zeros_like(instances.labels)
            targets.append(InstanceData(labels=labels, masks=instances.masks.to_tensor(torch.bool, labels.device)))
        return targets

    def _forward_head(
        self, decoder_out: Tensor, mask_feature: Tensor, attn_mask_target_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        decoded = self.transformer_decoder.post_norm(decoder_out)
        mask_logits = torch.einsum('bqc,bchw->bqhw', self.mask_embed(decoded), mask_feature)
        resized = interpolate(mask_logits.detach(), attn_mask_target_size, mode='bilinear', align_corners=False)
        blocked = (resized.sigmoid() < 0.5).flatten(2)  # (B, Q, K)
        per_head = blocked[:, None].expand(-1, self.num_heads, -1, -1).flatten(0, 1)  # (B * heads, Q, K)
        return self.cls_embed(decoded), mask_logits, per_head


class _LeanAttention(nn.MultiheadAttention):
    """Attention without its weights as a second output, so that torch can take its fused kernels."""

    def forward(self, *args: Tensor, **kwargs: Tensor | None) -> tuple[Tensor, None]:
        return super().forward(*args, **kwargs, need_weights=False)


def _drop_attention_weights(module: nn.Module) -> None:
    """Replaces, before the weights are initialised, every attention below `module` by one with the same parameters."""
    for wrapper in module.modules():
        if isinstance(wrapper, MultiheadAttention):
            wrapper.attn = _LeanAttention(wrapper.embed_dims, wrapper.num_heads, wrapper.attn.dropout)
