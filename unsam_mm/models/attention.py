"""Memory-efficient attention with the parameters of MMCV's modules, and multi-layer perceptrons."""

from __future__ import annotations

from itertools import pairwise

import torch
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.ops import multi_scale_deform_attn
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention
from torch import Tensor, nn
from torch.nn.functional import grid_sample, linear, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint


def use_lean_attention(module: nn.Module) -> None:
    """Replaces every attention module in `module` by its equivalent in this file; call before weights are loaded."""
    for parent in list(module.modules()):
        if isinstance(parent, MultiheadAttention):
            parent.attn = MaskedAttention(parent.embed_dims, parent.num_heads, parent.attn.dropout)
        for name, child in parent.named_children():
            if type(child) is MultiScaleDeformableAttention:
                setattr(parent, name, _lean_deformable(child))


class MaskedAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with torch's fused kernel, and one mask for all heads.

    With 2000 queries and the stride-8 level of a 1024 x 1024 image, the attention weights would need 1 GB, and a mask
    repeated for each head 0.25 GB more.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attention output; the attention weights are not returned.

        Args:
            query: (Q, B, C).
            key: (K, B, C).
            value: (K, B, C).
            key_padding_mask: (B, K) bool, True for keys that are ignored.
            attn_mask: (B, 1, Q, K) or (Q, K) bool, True where attention is blocked.

        Returns:
            (Q, B, C), and None in place of the attention weights.
        """
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        heads = [
            linear(tokens, weight, bias).unflatten(-1, (self.num_heads, self.head_dim)).permute(1, 2, 0, 3)
            for tokens, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]
        allowed = None if attn_mask is None else ~attn_mask  # True means the opposite in the fused kernel
        if key_padding_mask is not None:
            not_padding = ~key_padding_mask[:, None, None]
            allowed = not_padding if allowed is None else allowed & not_padding
        dropout = self.dropout if self.training else 0.0
        output = scaled_dot_product_attention(*heads, attn_mask=allowed, dropout_p=dropout)
        return self.out_proj(output.permute(2, 0, 1, 3).flatten(2)), None


class LeanDeformableAttention(MultiScaleDeformableAttention):
    """MMCV's multi-scale deformable attention, with a memory-efficient fallback if there are no compiled ops.

    MMCV's fallback stacks the samples of all levels: 800 MB for a 1024 x 1024 image. Here levels are summed one after
    the other, and in training the samples, 12 times the size of the values, are recomputed in the backward pass. The
    order of the sums differs from MMCV's, so results differ by rounding.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **others: object,
    ) -> Tensor:
        """See MMCV; `query` and `value` are (B, N, C), `reference_points` (B, N, levels, 2) as x, y in [0, 1]."""
        values = self.values(query if value is None else value)
        if key_padding_mask is not None:
            values = values.masked_fill(key_padding_mask[..., None, None], 0.0)
        offsets, weights = self.offsets_and_weights(query if query_pos is None else query + query_pos)
        points = reference_points[:, :, None, :, None] + offsets / spatial_shapes.flip(1)[:, None]
        if values.is_cuda and multi_scale_deform_attn.IS_CUDA_AVAILABLE and values.dtype != torch.bfloat16:
            compiled = multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply
            output = compiled(values, spatial_shapes, level_start_index, points, weights, self.im2col_step)
        else:
            arguments = (values, [tuple(size) for size in spatial_shapes.tolist()], points, weights)
            if torch.is_grad_enabled():
                output = checkpoint(weighted_samples, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                output = weighted_samples(*arguments)
        return self.dropout(self.output_proj(output)) + (query if identity is None else identity)

    def values(self, memory: Tensor) -> Tensor:
        """(B, K, heads, D) values of a (B, K, C) memory."""
        return self.value_proj(memory).unflatten(-1, (self.num_heads, -1))

    def offsets_and_weights(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, heads, levels, points, 2) sampling offsets x, y, and their weights, of (B, Q, C) queries."""
        offsets = self.sampling_offsets(queries)
        offsets = offsets.unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))
        weights = self.attention_weights(queries).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        return offsets, weights.unflatten(-1, (self.num_levels, self.num_points))


def weighted_samples(values: Tensor, sizes_hw: list[tuple[int, int]], points: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of bilinearly sampled values of several levels, with zero padding.

    Args:
        values: (B, K, heads, D), the concatenated pixels of all levels in row-major order.
        sizes_hw: Height and width of each level; the levels have K pixels in total.
        points: (B, Q, heads, levels, points, 2) as x, y in [0, 1].
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * D) with the dtype of `values`. It is computed with the dtype of `points`, since half-precision
        coordinates would be off by up to a pixel.
    """
    batch, _, heads, _ = values.shape
    grids = 2 * points - 1
    weights = weights.transpose(1, 2).flatten(0, 1)[:, None]  # (B * heads, 1, Q, levels, points)
    summed = None
    for level, (pixels, (height, width)) in enumerate(
        zip(values.split([height * width for height, width in sizes_hw], dim=1), sizes_hw, strict=True)
    ):
        planes = pixels.permute(0, 2, 3, 1).reshape(batch * heads, -1, height, width).to(grids.dtype)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)  # (B * heads, Q, points, 2)
        samples = grid_sample(planes, grid, align_corners=False)
        part = (samples * weights[..., level, :]).sum(-1)  # (B * heads, D, Q)
        summed = part if summed is None else summed + part
    return summed.unflatten(0, (batch, heads)).flatten(1, 2).transpose(1, 2).to(values.dtype)


def _lean_deformable(stock: MultiScaleDeformableAttention) -> LeanDeformableAttention:
    return LeanDeformableAttention(
        embed_dims=stock.embed_dims,
        num_heads=stock.num_heads,
        num_levels=stock.num_levels,
        num_points=stock.num_points,
        im2col_step=stock.im2col_step,
        dropout=stock.dropout.p,
        batch_first=stock.batch_first,
        norm_cfg=stock.norm_cfg,
        value_proj_ratio=stock.value_proj.out_features / stock.embed_dims,
    )


def mlp(in_channels: int, hidden: int, out_channels: int, num_layers: int) -> nn.Sequential:
    """Linear layers with ReLUs between them."""
    widths = [in_channels, *[hidden] * (num_layers - 1), out_channels]
    layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])
