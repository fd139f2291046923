"""The pixel decoder and the decoder of the promptable model, with deformable attention around boxes that are refined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.layers import Mask2FormerTransformerEncoder, SinePositionalEncoding
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.model import BaseModule, ModuleList, caffe2_xavier_init, normal_init, xavier_init
from torch import Tensor, nn
from torch.nn.functional import interpolate

from unsam_mm.models.attention import (
    LeanDeformableAttention,
    MaskedAttention,
    mlp,
    use_lean_attention,
    weighted_samples,
)

_EPS = 1e-5

_NORM = {'type': 'GN', 'num_groups': 32}


class DecodedTokens(NamedTuple):
    """Outputs of the decoder.

    Attributes:
        states: (B, P, T, C) normalised tokens after each layer.
        boxes: (B, P, T, 4) boxes before the first layer and after each, as centre x, y, width, height in [0, 1].
    """

    states: list[Tensor]  # (B, P, T, C) normalised tokens after each layer
    boxes: list[Tensor]


class ExtraTokens(NamedTuple):
    """E additional tokens of each prompt, which the mask tokens attend to and which predict no masks.

    Attributes:
        tokens: (B, P, E, C).
        boxes: (B, P, E, 4) fixed boxes as centre x, y, width, height in [0, 1].
        absent: (B, P, E) bool, tokens that are masked out.
    """

    tokens: Tensor  # (B, P, E, C)
    boxes: Tensor  # (B, P, E, 4) fixed boxes as centre x, y, width, height in [0, 1]
    absent: Tensor  # (B, P, E) bool, tokens that are masked out


class PromptDecoder(BaseModule):
    """Layers of self-attention, deformable cross-attention around the token's box, and feed-forward network.

    Source: MaskDINO (CVPR 2023), whose decoder is that of DINO.

    Args:
        embed_dims: Width of tokens and memories.
        num_layers: Number of layers.
        num_levels: Number of levels of the memory.
        num_heads: Number of heads of both attentions.
        num_points: Sampling points of each head in each level.
        feedforward_channels: Width of the feed-forward networks.
        init_cfg: MMEngine's initialisation.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_layers: int = 9,
        num_levels: int = 4,
        num_heads: int = 8,
        num_points: int = 4,
        feedforward_channels: int = 2048,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.layers = ModuleList(
            PromptDecoderLayer(embed_dims, num_levels, num_heads, num_points, feedforward_channels)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(embed_dims)
        self.position_mlp = mlp(2 * embed_dims, embed_dims, embed_dims, num_layers=2)
        self.box_mlp = mlp(embed_dims, embed_dims, 4, num_layers=3)

    def init_weights(self) -> None:
        """Xavier initialisation of all matrices, and zeros for the box refinement."""
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.xavier_uniform_(weight)
        for layer in self.layers:
            layer.cross_attn.init_weights()
        nn.init.zeros_(self.box_mlp[-1].weight)
        nn.init.zeros_(self.box_mlp[-1].bias)

    def values(self, memories: list[Tensor]) -> list[Tensor]:
        """Attention values for each layer, (B, K, heads, D), of the concatenated levels.

        Args:
            memories: Levels of shape (B, C, h, w), coarse to fine.
        """
        memory = torch.cat([level.flatten(2) for level in memories], dim=2).transpose(1, 2)
        return [layer.cross_attn.values(memory) for layer in self.layers]

    def forward(
        self,
        tokens: Tensor,
        boxes: Tensor,
        values: list[Tensor],
        sizes_hw: list[tuple[int, int]],
        joint: bool = False,
        extra: ExtraTokens | None = None,
    ) -> DecodedTokens:
        """Runs all layers.

        Args:
            tokens: (B, P, T, C), T tokens for each prompt.
            boxes: (B, P, T, 4) initial boxes as centre x, y, width, height in [0, 1].
            values: The result of `values`.
            sizes_hw: Height and width of each level.
            joint: Whether tokens attend to those of other prompts.
            extra: Additional tokens of the prompts, which are not returned.
        """
        count, absent = tokens.shape[2], None
        if extra is not None:
            absent = torch.cat([extra.absent.new_zeros(tokens.shape[:3]), extra.absent], dim=2)
            tokens, boxes = torch.cat([tokens, extra.tokens], dim=2), torch.cat([boxes, extra.boxes], dim=2)
        references, states = [unit_interval(boxes)], []
        for layer, value in zip(self.layers, values, strict=True):
            start = references[-1].detach()  # gradients do not pass through earlier refinements
            positions = self.position_mlp(sine_of_boxes(start, tokens.shape[-1] // 2))
            tokens = layer(tokens, positions, start, value, sizes_hw, joint, absent)
            moved = self.moved(start[:, :, :count], tokens[:, :, :count])
            references.append(moved if extra is None else torch.cat([moved, start[:, :, count:]], dim=2))
            states.append(self.norm(tokens[:, :, :count]))
        return DecodedTokens(states, [boxes[:, :, :count] for boxes in references])

    def moved(self, boxes: Tensor, states: Tensor) -> Tensor:
        """(..., 4) boxes refined by (..., C) states."""
        return (self.box_mlp(states) + logit(boxes)).sigmoid()


class PromptDecoderLayer(BaseModule):
    """One layer of `PromptDecoder`; see there for the arguments."""

    def __init__(
        self, embed_dims: int, num_levels: int, num_heads: int, num_points: int, feedforward_channels: int
    ) -> None:
        super().__init__()
        self.self_attn = MaskedAttention(embed_dims, num_heads)
        self.cross_attn = BoxAttention(embed_dims, num_heads, num_levels, num_points, dropout=0.0, batch_first=True)
        self.ffn = FFN(embed_dims, feedforward_channels)
        self.norms = ModuleList(nn.LayerNorm(embed_dims) for _ in range(3))

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        boxes: Tensor,
        values: Tensor,
        sizes_hw: list[tuple[int, int]],
        joint: bool,
        absent: Tensor | None = None,
    ) -> Tensor:
        """(B, P, T, C) tokens with (B, P, T, C) position embeddings.

        Tokens with (B, P, T) `absent` are masked out in self-attention; for the others see `PromptDecoder.forward`.
        """
        # Prompts that do not attend to each other are separate batch elements, so no attention mask is needed.
        first = 1 if joint else 0
        grouped, placed = (each.flatten(first, first + 1).transpose(0, 1) for each in (tokens, tokens + positions))
        padding = None if absent is None else absent.flatten(first, first + 1)
        seen = self.self_attn(placed, placed, grouped, padding)[0].transpose(0, 1).reshape(tokens.shape)
        tokens = self.norms[0](tokens + seen)
        read = self.cross_attn(tokens + positions, boxes, values, sizes_hw)
        tokens = self.norms[1](tokens + read)
        return self.norms[2](self.ffn(tokens))


class BoxAttention(LeanDeformableAttention):
    """Deformable attention with offsets in units of half the token's box.

    Values are computed once for each image, since tokens are few and the memory is large.
    """

    def values(self, memory: Tensor) -> Tensor:
        """(B, K, heads, D) values of a (B, K, C) memory."""
        return self.value_proj(memory).unflatten(-1, (self.num_heads, -1))

    def forward(self, query: Tensor, boxes: Tensor, values: Tensor, sizes_hw: list[tuple[int, int]]) -> Tensor:
        """(B, P, T, C) outputs for queries with (B, P, T, 4) boxes and (B, K, heads, D) values of levels `sizes_hw`."""
        grid_shape = (self.num_heads, self.num_levels, self.num_points)
        queries, boxes = query.flatten(1, 2), boxes.flatten(1, 2)[:, :, None, None, None]
        offsets = self.sampling_offsets(queries).unflatten(-1, (*grid_shape, 2))
        weights = self.attention_weights(queries).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        places = boxes[..., :2] + offsets / self.num_points * boxes[..., 2:] * 0.5
        read = weighted_samples(values, sizes_hw, places, weights.unflatten(-1, grid_shape[1:]))
        return self.output_proj(read).view_as(query)


def logit(probability: Tensor) -> Tensor:
    """Inverse of the sigmoid, finite at 0 and 1."""
    probability = probability.clamp(0, 1)
    return torch.log(probability.clamp(min=_EPS) / (1 - probability).clamp(min=_EPS))


def unit_interval(boxes: Tensor) -> Tensor:
    """Boxes clamped to the range that `logit` can represent."""
    return logit(boxes).sigmoid()


def sine_of_boxes(boxes: Tensor, num_feats: int) -> Tensor:
    """(..., 4 * num_feats) sinusoidal encoding of (..., 4) boxes: y, x, width, height; sine and cosine alternate."""
    steps = torch.arange(num_feats, dtype=torch.float32, device=boxes.device)
    periods = 10000 ** (2 * torch.div(steps, 2, rounding_mode='floor') / num_feats)
    angles = boxes[..., [1, 0, 2, 3], None] * (2 * math.pi) / periods
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-3)


@MODELS.register_module()
class UnSAMPixelDecoder(BaseModule):
    """Deformable attention among the levels from stride 8 on, and a mask feature at stride 4.

    Source: MaskDINO (CVPR 2023) as in Semantic-SAM. MMDetection's `MSDeformAttnPixelDecoder` differs: it projects
    levels of the backbone only, and orders them from coarse to fine.

    Args:
        in_channels: Channels of the backbone's levels, at strides 4, 8, 16 and so on.
        feat_channels: Width of memories and mask feature.
        encoder: Arguments of `Mask2FormerTransformerEncoder`. It has as many levels as `in_channels`: without stride 4,
            but with a level of half the resolution of the last.
        positional_encoding: Arguments of `SinePositionalEncoding`; `num_feats` is half of `feat_channels`.
        init_cfg: MMEngine's initialisation.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        feat_channels: int,
        encoder: dict,
        positional_encoding: dict,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        first, *others = in_channels
        self.input_convs = ModuleList(
            ConvModule(channels, feat_channels, 1, bias=True, norm_cfg=_NORM, act_cfg=None) for channels in others
        )
        self.input_convs.append(
            ConvModule(others[-1], feat_channels, 3, stride=2, padding=1, bias=True, norm_cfg=_NORM, act_cfg=None)
        )
        self.level_encoding = nn.Embedding(len(in_channels), feat_channels)
        self.encoder = Mask2FormerTransformerEncoder(**ConfigDict(encoder))
        self.positional_encoding = SinePositionalEncoding(**positional_encoding)
        self.lateral_conv = ConvModule(first, feat_channels, 1, bias=False, norm_cfg=_NORM, act_cfg=None)
        self.output_conv = ConvModule(feat_channels, feat_channels, 3, padding=1, bias=False, norm_cfg=_NORM)
        self.mask_feature = nn.Conv2d(feat_channels, feat_channels, 1)
        use_lean_attention(self)

    def init_weights(self) -> None:
        """The initialisation of MMDetection's `MSDeformAttnPixelDecoder`."""
        for projection in self.input_convs:
            xavier_init(projection.conv, distribution='uniform')
        for convolution in (self.lateral_conv.conv, self.output_conv.conv, self.mask_feature):
            caffe2_xavier_init(convolution)
        normal_init(self.level_encoding, mean=0, std=1)
        for weight in self.encoder.parameters():
            if weight.ndim > 1:
                nn.init.xavier_normal_(weight)
        for module in self.encoder.modules():
            if isinstance(module, LeanDeformableAttention):
                module.init_weights()

    def forward(self, x: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Mask feature (B, C, H / 4, W / 4), and memories (B, C, H / s, W / s), coarse to fine as in MMDetection.

        Args:
            x: Levels of shape (B, C, H / s, W / s), s = 4, 8, 16, 32.
        """
        first, *others = x
        projected = [conv(level) for conv, level in zip(self.input_convs, [*others, others[-1]], strict=True)]
        sizes_hw = [tuple(level.shape[2:]) for level in projected]
        lengths = [height * width for height, width in sizes_hw]
        rows = self.level_encoding.weight
        positions = [self._positions(level) + row for level, row in zip(projected, rows, strict=True)]
        references = torch.cat([_pixel_centres(*size, first) for size in sizes_hw])
        spatial_shapes = torch.tensor(sizes_hw, device=first.device)
        memory = self.encoder(
            query=torch.cat([level.flatten(2) for level in projected], dim=2).transpose(1, 2),
            query_pos=torch.cat(positions, dim=1),
            key_padding_mask=None,  # padding is not masked
            spatial_shapes=spatial_shapes,
            level_start_index=spatial_shapes.new_tensor([0, *lengths[:-1]]).cumsum(0),
            valid_ratios=None,
            reference_points=references[None, :, None].expand(len(first), -1, len(sizes_hw), -1),
        )
        memories = [
            part.transpose(1, 2).unflatten(2, size)
            for part, size in zip(memory.split(lengths, dim=1), sizes_hw, strict=True)
        ]
        lateral = self.lateral_conv(first)
        finest = interpolate(memories[0], size=lateral.shape[2:], mode='bilinear', align_corners=False)
        return self.mask_feature(self.output_conv(lateral + finest)), memories[::-1]

    def _positions(self, level: Tensor) -> Tensor:
        """(B, h * w, C) position embeddings of a (B, C, h, w) level."""
        no_padding = level.new_zeros((len(level), *level.shape[2:]), dtype=torch.bool)
        return self.positional_encoding(no_padding).flatten(2).transpose(1, 2)


def _pixel_centres(height: int, width: int, like: Tensor) -> Tensor:
    """(height * width, 2) x, y in [0, 1], in row-major order."""
    y = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) / width
    return torch.stack(torch.meshgrid(x, y, indexing='xy'), dim=-1).flatten(0, 1)
