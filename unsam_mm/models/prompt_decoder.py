"""The decoder of the promptable model: the tokens of a prompt read the image around a box that they move."""

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
    """What the decoder makes of the tokens.

    Attributes:
        states: After each layer, (B, P, T, C), normalised.
        boxes: Before the first layer and after each, (B, P, T, 4), as centre x, y, width, height in [0, 1].
    """

    states: list[Tensor]
    boxes: list[Tensor]


class ExtraTokens(NamedTuple):
    """E tokens of each prompt that the others read, and which give no masks themselves.

    Attributes:
        tokens: (B, P, E, C).
        boxes: (B, P, E, 4) where they are and stay, as centre x, y, width, height in [0, 1].
        absent: (B, P, E) bool, those that nothing reads.
    """

    tokens: Tensor
    boxes: Tensor
    absent: Tensor


class PromptDecoder(BaseModule):
    """Layers of self-attention, deformable attention around the token's box, and feed-forward, in this order.

    Source: MaskDINO (CVPR 2023), whose decoder is that of DINO.

    Args:
        embed_dims: Width of tokens and memories.
        num_layers: How many layers.
        num_levels: Levels of the memory.
        num_heads: Heads of both attentions.
        num_points: Places that a head looks at in each level.
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
        """Xavier's for all matrices; boxes start unmoved."""
        for weight in self.parameters():
            if weight.ndim > 1:
                nn.init.xavier_uniform_(weight)
        for layer in self.layers:
            layer.cross_attn.init_weights()
        nn.init.zeros_(self.box_mlp[-1].weight)
        nn.init.zeros_(self.box_mlp[-1].bias)

    def values(self, memories: list[Tensor]) -> list[Tensor]:
        """What the tokens of each layer read, (B, K, heads, D): all levels one after the other.

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
            tokens: (B, P, T, C), T tokens of each prompt.
            boxes: (B, P, T, 4) where they start, as centre x, y, width, height in [0, 1].
            values: What `values` gave.
            sizes_hw: Height and width of each level.
            joint: Whether the tokens of one prompt attend to those of the others.
            extra: Further tokens of the prompts; they are not among the results.
        """
        count, absent = tokens.shape[2], None
        if extra is not None:
            absent = torch.cat([extra.absent.new_zeros(tokens.shape[:3]), extra.absent], dim=2)
            tokens, boxes = torch.cat([tokens, extra.tokens], dim=2), torch.cat([boxes, extra.boxes], dim=2)
        references, states = [unit_interval(boxes)], []
        for layer, value in zip(self.layers, values, strict=True):
            start = references[-1].detach()  # each layer learns its own step only
            positions = self.position_mlp(sine_of_boxes(start, tokens.shape[-1] // 2))
            tokens = layer(tokens, positions, start, value, sizes_hw, joint, absent)
            moved = self.moved(start[:, :, :count], tokens[:, :, :count])
            references.append(moved if extra is None else torch.cat([moved, start[:, :, count:]], dim=2))
            states.append(self.norm(tokens[:, :, :count]))
        return DecodedTokens(states, [boxes[:, :, :count] for boxes in references])

    def moved(self, boxes: Tensor, states: Tensor) -> Tensor:
        """(..., 4) boxes after the step that (..., C) states ask for."""
        return (self.box_mlp(states) + logit(boxes)).sigmoid()


class PromptDecoderLayer(BaseModule):
    """One layer of `PromptDecoder`; its arguments are those there."""

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
        """(B, P, T, C) tokens at (B, P, T, C) positions.

        Nothing reads those that (B, P, T) `absent` marks; the rest as in `PromptDecoder.forward`.
        """
        # What cannot see each other is a batch of its own, so no mask is needed for that.
        first = 1 if joint else 0
        grouped, placed = (each.flatten(first, first + 1).transpose(0, 1) for each in (tokens, tokens + positions))
        padding = None if absent is None else absent.flatten(first, first + 1)
        seen = self.self_attn(placed, placed, grouped, padding)[0].transpose(0, 1).reshape(tokens.shape)
        tokens = self.norms[0](tokens + seen)
        read = self.cross_attn(tokens + positions, boxes, values, sizes_hw)
        tokens = self.norms[1](tokens + read)
        return self.norms[2](self.ffn(tokens))


class BoxAttention(LeanDeformableAttention):
    """Deformable attention whose places are measured in halves of the token's box.

    There are few tokens and a large memory, so values are formed once an image and not once a call.
    """

    def values(self, memory: Tensor) -> Tensor:
        """(B, K, heads, D) of a (B, K, C) memory."""
        return self.value_proj(memory).unflatten(-1, (self.num_heads, -1))

    def forward(self, query: Tensor, boxes: Tensor, values: Tensor, sizes_hw: list[tuple[int, int]]) -> Tensor:
        """What (B, P, T, C) queries with (B, P, T, 4) boxes read from (B, K, heads, D) values of levels `sizes_hw`."""
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
    """Boxes as far inside of [0, 1] as `logit` keeps them."""
    return logit(boxes).sigmoid()


def sine_of_boxes(boxes: Tensor, num_feats: int) -> Tensor:
    """(..., 4 * num_feats) codes of (..., 4) boxes: y, x, width, height, sines and cosines taking turns."""
    steps = torch.arange(num_feats, dtype=torch.float32, device=boxes.device)
    periods = 10000 ** (2 * torch.div(steps, 2, rounding_mode='floor') / num_feats)
    angles = boxes[..., [1, 0, 2, 3], None] * (2 * math.pi) / periods
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-3)
