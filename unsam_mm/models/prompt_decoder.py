"""The decoder of the promptable model, with deformable attention around boxes that are refined in every layer."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from unsam_mm.models.attention import LeanDeformableAttention, MaskedAttention, weighted_samples

_EPS = 1e-5


class DecodedTokens(NamedTuple):
    """Outputs of the decoder.

    Attributes:
        states: (B, P, T, C) normalised tokens after each layer.
        boxes: (B, P, T, 4) boxes before the first layer and after each, as centre x, y, width, height in [0, 1].
    """

    states: list[Tensor]
    boxes: list[Tensor]


class ExtraTokens(NamedTuple):
    """E additional tokens of each prompt, which the mask tokens attend to and which predict no masks.

    Attributes:
        tokens: (B, P, E, C).
        boxes: (B, P, E, 4) fixed boxes as centre x, y, width, height in [0, 1].
        absent: (B, P, E) bool, tokens that are masked out.
    """

    tokens: Tensor
    boxes: Tensor
    absent: Tensor


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


def mlp(in_channels: int, hidden: int, out_channels: int, num_layers: int) -> nn.Sequential:
    """Linear layers with ReLUs between them."""
    widths = [in_channels, *[hidden] * (num_layers - 1), out_channels]
    layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


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
