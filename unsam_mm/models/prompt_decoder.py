"""Pixel decoder and decoder of the promptable model: deformable attention around boxes, refined in each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.layers import (
    Mask2FormerTransformerEncoder,
    SinePositionalEncoding,
    coordinate_to_encoding,
    inverse_sigmoid,
)
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
from unsam_mm.models.mask_ops import pixel_centres

_NORM = {'type': 'GN', 'num_groups': 32}


class DecodedTokens(NamedTuple):
    """Outputs of the decoder.

    Attributes:
        states: (B, P, T, C) normalised tokens after each layer.
        boxes: (B, P, T, 4) boxes before the first layer and after each, as centre x, y, width, height in [0, 1].
    """

    states: list[Tensor]
    boxes: list[Tensor]


class ExtraTokens(NamedTuple):
    """E additional tokens of each prompt, which mask tokens attend to; they predict no masks.

    Attributes:
        tokens: (B, P, E, C).
        boxes: (B, P, E, 4) fixed boxes as centre x, y, width, height in [0, 1].
        absent: (B, P, E) bool, tokens that are masked out.
    """

    tokens: Tensor
    boxes: Tensor
    absent: Tensor


class PromptDecoder(BaseModule):
    """Decoder whose layers are self-attention, deformable cross-attention around the token's box, and an FFN.

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
            values: The result of the method `values`.
            sizes_hw: Height and width of each level.
            joint: True if tokens also attend to those of other prompts.
            extra: Additional tokens of the prompts, which are not returned.
        """
        count, absent = tokens.shape[2], None
        if extra is not None:
            absent = torch.cat([extra.absent.new_zeros(tokens.shape[:3]), extra.absent], dim=2)
            tokens, boxes = torch.cat([tokens, extra.tokens], dim=2), torch.cat([boxes, extra.boxes], dim=2)
        references, states = [inverse_sigmoid(boxes).sigmoid()], []  # clamped to the range of inverse_sigmoid
        for layer, value in zip(self.layers, values, strict=True):
            start = references[-1].detach()  # no gradient through earlier refinements
            encoded = coordinate_to_encoding(start.flatten(1, 2), tokens.shape[-1] // 2)
            positions = self.position_mlp(encoded).view_as(tokens)
            tokens = layer(tokens, positions, start, value, sizes_hw, joint, absent)
            refined = self.refined(start[:, :, :count], tokens[:, :, :count])
            references.append(torch.cat([refined, start[:, :, count:]], dim=2))
            states.append(self.norm(tokens[:, :, :count]))
        return DecodedTokens(states, [boxes[:, :, :count] for boxes in references])

    def refined(self, boxes: Tensor, states: Tensor) -> Tensor:
        """(..., 4) boxes refined by (..., C) states."""
        return (self.box_mlp(states) + inverse_sigmoid(boxes)).sigmoid()


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

        Tokens with (B, P, T) `absent` are masked out in self-attention. For the other arguments see
        `PromptDecoder.forward`.
        """
        # Prompts that do not attend to each other are separate batch elements, so no attention mask is needed.
        first = 1 if joint else 0
        value, query = (each.flatten(first, first + 1).transpose(0, 1) for each in (tokens, tokens + positions))
        padding = None if absent is None else absent.flatten(first, first + 1)
        output = self.self_attn(query, query, value, padding)[0].transpose(0, 1).reshape(tokens.shape)
        tokens = self.norms[0](tokens + output)
        tokens = self.norms[1](tokens + self.cross_attn(tokens + positions, boxes, values, sizes_hw))
        return self.norms[2](self.ffn(tokens))


class BoxAttention(LeanDeformableAttention):
    """Deformable attention with offsets in units of half the token's box.

    Values are computed once for each image, since tokens are few and the memory is large.
    """

    def forward(self, query: Tensor, boxes: Tensor, values: Tensor, sizes_hw: list[tuple[int, int]]) -> Tensor:
        """(B, P, T, C) outputs for queries with (B, P, T, 4) boxes and (B, K, heads, D) values of levels `sizes_hw`."""
        boxes = boxes.flatten(1, 2)[:, :, None, None, None]
        offsets, weights = self.offsets_and_weights(query.flatten(1, 2))
        points = boxes[..., :2] + offsets / self.num_points * boxes[..., 2:] * 0.5
        return self.output_proj(weighted_samples(values, sizes_hw, points, weights)).view_as(query)


@MODELS.register_module()
class UnSAMPixelDecoder(BaseModule):
    """Deformable attention among the levels from stride 8 on, and a mask feature at stride 4.

    Source: MaskDINO (CVPR 2023) as in Semantic-SAM. MMDetection's `MSDeformAttnPixelDecoder` differs: it has no
    level beyond those of the backbone, and orders levels from coarse to fine.

    Args:
        in_channels: Channels of the backbone's levels, at strides 4, 8, 16 and so on.
        feat_channels: Width of memories and mask feature.
        encoder: Arguments of `Mask2FormerTransformerEncoder`. Its levels are those of the backbone without stride 4,
            and one with half the resolution of the last.
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
        references = torch.cat([pixel_centres(*size, first.device) for size in sizes_hw])
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
