"""The whole-image head: Mask2Former with one class and many queries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmdet.models.layers import Mask2FormerTransformerDecoder, SinePositionalEncoding
from mmdet.registry import MODELS, TASK_UTILS
from mmdet.structures import DetDataSample, SampleList
from mmengine.config import ConfigDict
from mmengine.model import BaseModule, ModuleList, caffe2_xavier_init
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.functional import interpolate

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import areas_and_boxes
from unsam_mm.models.attention import mlp, use_lean_attention
from unsam_mm.models.criterion import PointCriterion, named_by_layer
from unsam_mm.models.mask_ops import (
    BitMasks,
    ImageSizes,
    PointSampling,
    boxes_of_masks,
    foreground_sums_,
    full_size_logits,
    masks_at_once,
    rles_of_masks,
)

_CHUNK_VALUES = 2**24
"""Logits of attention masks in each chunk: 64 MB in float32."""

_MASK_FORMATS = ('rle', 'bitmap')

# Weights of the paper: class 2 (with 0.1 for "no object"), mask 5, dice 5.
_LOSS_CLS = {'type': 'CrossEntropyLoss', 'loss_weight': 2.0, 'class_weight': [1.0, 0.1]}
_LOSS_MASK = {'type': 'CrossEntropyLoss', 'use_sigmoid': True, 'loss_weight': 5.0}
_LOSS_DICE = {'type': 'DiceLoss', 'naive_dice': True, 'eps': 1.0, 'loss_weight': 5.0}


@MODELS.register_module()
class UnSAMHead(BaseModule):
    """Class-agnostic Mask2Former head.

    The names of the weights are those of MMDetection's `Mask2FormerHead`. Differences:

    * Prediction computes masks only for the queries with the best class logits, in chunks, as RLEs. Upsampled logits of
      all 2000 queries would need 8 GB for a 1024 x 1024 image.
    * Training does not compute the masks of all queries, see `PointCriterion`.
    * Every annotated instance is an object; labels are ignored.
    * Attention masks are computed from the mask feature resized to the level, once for all heads; MMDetection resizes
      the logits. Both are equal up to rounding.
    * Attention weights are not stored.

    Args:
        in_channels: Channels of the four levels, strides 4, 8, 16 and 32.
        feat_channels: Width of the pixel decoder and of the queries.
        out_channels: Width of the mask embedding.
        pixel_decoder: Config of the pixel decoder, such as `MSDeformAttnPixelDecoder`; None if the inputs are the
            outputs of a shared pixel decoder.
        transformer_decoder: Arguments of `Mask2FormerTransformerDecoder`.
        positional_encoding: Arguments of `SinePositionalEncoding`; `num_feats` is half of `feat_channels`.
        num_queries: Number of queries.
        num_transformer_feat_level: Number of levels that the queries attend to in turn.
        enforce_decoder_input_project: True to project the levels even if the widths agree.
        loss_cls: Config of the classification loss; its `class_weight` is (object, no object). By default that of the
            paper.
        loss_mask: Config of the per-pixel loss. By default that of the paper.
        loss_dice: Config of the dice loss. By default that of the paper.
        train_cfg: `assigner`, and optionally `num_points`, `oversample_ratio`, `importance_sample_ratio` and
            `drop_loss_iou`: matched queries with at most this IoU with their object have no mask losses (DropLoss).
            None, the default, disables DropLoss, as in the release, whose value is 0.01 if it is enabled. All matched
            queries are used; the `sampler` of MMDetection's head is ignored.
        test_cfg: `max_per_image` (default 1000) and `mask_format` ('rle', the default, or 'bitmap').
        init_cfg: MMEngine's initialisation.

    Raises:
        UnSAMError: If `test_cfg.mask_format` is unknown, `loss_cls.class_weight` does not have two entries,
            `train_cfg.drop_loss_iou` is out of range, or the pixel decoder has another number of levels.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        feat_channels: int,
        out_channels: int,
        pixel_decoder: dict | None,
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
        super().__init__(init_cfg=init_cfg)
        self.class_weight = (loss_cls := loss_cls or _LOSS_CLS).get('class_weight')
        if len(self.class_weight or ()) != 2:
            raise UnSAMError(
                'UnSAMHead: loss_cls.class_weight must contain two weights (object, no object), such as [1.0, 0.1], '
                f'got {self.class_weight}'
            )
        train_cfg, test_cfg = train_cfg or {}, test_cfg or {}
        self.max_per_image = test_cfg.get('max_per_image', 1000)
        self.mask_format = check_mask_format('UnSAMHead', test_cfg)
        self.point_sampling = PointSampling.from_config(train_cfg)
        self.drop_loss_iou = train_cfg.get('drop_loss_iou')
        if self.drop_loss_iou is not None and not 0 <= self.drop_loss_iou < 1:
            raise UnSAMError(f'UnSAMHead: train_cfg.drop_loss_iou must be in [0, 1) or None, got {self.drop_loss_iou}')
        self.num_queries, self.num_transformer_feat_level = num_queries, num_transformer_feat_level
        self.pixel_decoder = nn.Identity()
        if pixel_decoder is not None:
            levels = pixel_decoder['encoder']['layer_cfg']['self_attn_cfg']['num_levels']
            if levels != num_transformer_feat_level:
                raise UnSAMError(
                    f'UnSAMHead: num_transformer_feat_level is {num_transformer_feat_level}, but the pixel decoder has '
                    f'{levels} levels (encoder.layer_cfg.self_attn_cfg.num_levels); set both to one number'
                )
            widths = dict(in_channels=list(in_channels), feat_channels=feat_channels, out_channels=out_channels)
            self.pixel_decoder = MODELS.build(ConfigDict(pixel_decoder, **widths))
        self.transformer_decoder = Mask2FormerTransformerDecoder(**ConfigDict(transformer_decoder))
        width = self.transformer_decoder.embed_dims
        projects = width != feat_channels or enforce_decoder_input_project
        self.decoder_input_projs = ModuleList(
            nn.Conv2d(feat_channels, width, 1) if projects else nn.Identity() for _ in range(num_transformer_feat_level)
        )
        self.decoder_positional_encoding = SinePositionalEncoding(**positional_encoding)
        self.query_embed = nn.Embedding(num_queries, feat_channels)
        self.query_feat = nn.Embedding(num_queries, feat_channels)
        self.level_embed = nn.Embedding(num_transformer_feat_level, feat_channels)
        self.cls_embed = nn.Linear(feat_channels, 2)
        self.mask_embed = mlp(feat_channels, feat_channels, out_channels, num_layers=3)
        self.assigner = TASK_UTILS.build(train_cfg['assigner']) if 'assigner' in train_cfg else None
        losses = (loss_cls, loss_mask or _LOSS_MASK, loss_dice or _LOSS_DICE)
        self.loss_cls, self.loss_mask, self.loss_dice = map(MODELS.build, losses)
        use_lean_attention(self)

    def init_weights(self) -> None:
        """The initialisation of MMDetection's `Mask2FormerHead`."""
        for projection in self.decoder_input_projs:
            if isinstance(projection, nn.Conv2d):
                caffe2_xavier_init(projection, bias=0)
        if isinstance(self.pixel_decoder, BaseModule):
            self.pixel_decoder.init_weights()
        for weight in self.transformer_decoder.parameters():
            if weight.dim() > 1:
                nn.init.xavier_normal_(weight)

    def forward(self, x: Sequence[Tensor], batch_data_samples: SampleList) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of all queries before the first layer and after each layer; needs a lot of memory.

        Args:
            x: Levels of shape (B, C, H / s, W / s), s = 4, 8, 16, 32.
            batch_data_samples: Not used.

        Returns:
            Class logits, each (B, Q, 2), and mask logits, each (B, Q, H / 4, W / 4).
        """
        states, embeds, mask_feature = self._decode(x)
        masks = [torch.einsum('bqc,bchw->bqhw', embed, mask_feature) for embed in embeds]
        return [self.cls_embed(state) for state in states], masks

    def loss(self, x: Sequence[Tensor], batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Class, mask and dice losses, by name: before the first layer, with the prefix 'd0.', and after each layer.

        Args:
            x: Levels of shape (B, C, H / s, W / s), s = 4, 8, 16, 32.
            batch_data_samples: With `gt_instances`, whose `masks` have the size of the padded batch.
        """
        objects = (sample.gt_instances for sample in batch_data_samples)
        targets = [BitMasks.pack(instances.masks, instances.labels.device) for instances in objects]
        states, embeds, mask_feature = self._decode(x)
        predictions = [(self.cls_embed(state), embed) for state, embed in zip(states, embeds, strict=True)]
        criterion = PointCriterion(
            self.assigner,
            self.loss_cls,
            self.loss_mask,
            self.loss_dice,
            self.class_weight,
            self.point_sampling,
            self.drop_loss_iou,
        )
        return named_by_layer(criterion(predictions, mask_feature, targets))

    def predict(self, x: Sequence[Tensor], batch_data_samples: SampleList, rescale: bool = True) -> list[InstanceData]:
        """Masks of each image, best first; empty masks are left out.

        Args:
            x: Levels of shape (B, C, H / s, W / s), s = 4, 8, 16, 32.
            batch_data_samples: With `batch_input_shape`, `img_shape` and `ori_shape` in their meta information.
            rescale: True for masks and boxes in pixels of the original image, False for pixels of the network's input.

        Returns:
            For each image `scores` (N,) in [0, 1], the object probability times the mean foreground probability;
            `labels` (N,) zeros; `bboxes` (N, 4) x0, y0, x1, y1 in pixels; `masks`, N run-length encodings, or an
            (N, H, W) bool tensor if `test_cfg.mask_format` is 'bitmap'.
        """
        states, embeds, mask_feature = self._decode(x)
        images = zip(self.cls_embed(states[-1]), embeds[-1], mask_feature, batch_data_samples, strict=True)
        return [self._instances(*image, rescale) for image in images]

    def _instances(
        self, cls_logits: Tensor, embed: Tensor, feature: Tensor, sample: DetDataSample, rescale: bool
    ) -> InstanceData:
        """Masks of one image from (Q, 2) class logits, (Q, C) mask embeddings and a (C, h, w) mask feature."""
        probability, queries = cls_logits.softmax(dim=-1)[:, 0].topk(min(self.max_per_image, self.num_queries))
        sizes = ImageSizes.from_sample(sample, rescale)
        as_bitmap = self.mask_format == 'bitmap'
        sums, masks = [], []
        for chunk in embed[queries].split(masks_at_once(sizes)):
            logits = full_size_logits(torch.einsum('nc,chw->nhw', chunk, feature).float(), sizes)
            found = logits > 0
            sums.append(foreground_sums_(logits))
            masks += [found] if as_bitmap else rles_of_masks(found)
        if as_bitmap:
            masks = torch.cat(masks)
            areas, boxes = masks.sum(dim=(1, 2)), boxes_of_masks(masks)
        else:
            areas, boxes = (torch.from_numpy(found).float().to(embed.device) for found in areas_and_boxes(masks))
        scores = probability * torch.cat(sums) / (areas + 1e-6)
        order = scores.argsort(descending=True, stable=True)
        order = order[areas[order] > 0]
        kept = masks[order] if as_bitmap else [masks[i] for i in order.tolist()]
        return InstanceData(scores=scores[order], labels=torch.zeros_like(order), bboxes=boxes[order], masks=kept)

    def _decode(self, x: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """Runs the pixel decoder and the transformer decoder.

        Returns:
            Normalised queries (B, Q, C) and mask embeddings (B, Q, C) before the first layer and after each, and the
            mask feature (B, C, h, w).
        """
        mask_feature, memories = self.pixel_decoder(x)
        keys, positions, features = zip(
            *(self._level(i, memory, mask_feature) for i, memory in enumerate(memories)), strict=True
        )
        queries = self.query_feat.weight.expand(len(mask_feature), -1, -1)
        query_positions = self.query_embed.weight.expand(len(mask_feature), -1, -1)
        states = [self.transformer_decoder.post_norm(queries)]
        embeds = [self.mask_embed(states[0])]
        for i, layer in enumerate(self.transformer_decoder.layers):
            level = i % self.num_transformer_feat_level
            queries = layer(
                query=queries,
                key=keys[level],
                value=keys[level],
                query_pos=query_positions,
                key_pos=positions[level],
                cross_attn_mask=_blocked_keys(embeds[-1].detach(), features[level]),
            )
            states.append(self.transformer_decoder.post_norm(queries))
            embeds.append(self.mask_embed(states[-1]))
        return states, embeds, mask_feature

    def _level(self, index: int, memory: Tensor, mask_feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys (B, K, C), their position embeddings (B, K, C), and the mask feature at this level, (B, C, K)."""
        keys = self.decoder_input_projs[index](memory).flatten(2).transpose(1, 2) + self.level_embed.weight[index]
        no_padding = memory.new_zeros((len(memory), *memory.shape[2:]), dtype=torch.bool)
        positions = self.decoder_positional_encoding(no_padding).flatten(2).transpose(1, 2)
        resized = interpolate(mask_feature.detach(), memory.shape[2:], mode='bilinear', align_corners=False)
        return keys, positions, resized.flatten(2)


@torch.no_grad()
def _blocked_keys(embeds: Tensor, feature: Tensor) -> Tensor:
    """(B, 1, Q, K) bool attention mask: keys outside of a query's mask are blocked, unless all keys would be blocked.

    Args:
        embeds: (B, Q, C) mask embeddings.
        feature: (B, C, K) mask feature at the keys.
    """
    step = max(1, _CHUNK_VALUES // (len(feature) * feature.shape[2]))
    blocked = torch.cat([chunk @ feature < 0 for chunk in embeds.split(step, dim=1)], dim=1)
    blocked &= ~blocked.all(dim=2, keepdim=True)
    return blocked[:, None]


def check_mask_format(head: str, test_cfg: Mapping[str, Any]) -> str:
    """`mask_format` of a head's `test_cfg`, 'rle' or 'bitmap'; raises `UnSAMError` for other values."""
    mask_format = test_cfg.get('mask_format', 'rle')
    if mask_format not in _MASK_FORMATS:
        raise UnSAMError(f'{head}: test_cfg.mask_format must be one of {_MASK_FORMATS}, got {mask_format!r}')
    return mask_format
