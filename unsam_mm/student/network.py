"""The region model: an encoder of the region tokens of an image, and a decoder of masks for prompts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from unsam_mm.errors import UnSAMError
from unsam_mm.student.pairs import APPEARANCE_DIM, OTHER_DISTANCES, RegionInputs
from unsam_mm.student.prompts import EXTRA_CHANNELS, RegionPrompts

_N_FREQUENCIES = 8  # frequencies of the positional encoding of a coordinate or a granularity
_STATISTICS = 8  # channels for boundary, size and granularity of a mask, from which its scores are predicted
_WIDEST_GAP = 0.5  # largest difference of granularities that `_gaps` returns
_STEP_SHARPNESS = 6.0  # the clamped difference saturates at a granularity difference of 0.25


class RegionNet(nn.Module):
    """Predicts a logit for each pair of a prompt and a region of an image, and two scores of each resulting mask.

    Args:
        width: Number of channels of the embeddings of regions and prompts.
        heads: Number of attention heads; must divide the width.
        encoder_layers: Number of layers in which regions attend to each other.
        decoder_layers: Number of layers in which prompts attend to regions.
        prompt_channels: Number of channels of each pair of a prompt and a region.
        feature_channels: Number of channels of the ViT's features.
        trees: Number of region trees.

    Raises:
        UnSAMError: If the heads do not divide the width.
    """

    def __init__(
        self,
        width: int = 128,
        heads: int = 4,
        encoder_layers: int = 3,
        decoder_layers: int = 2,
        prompt_channels: int = 32,
        feature_channels: int = 384,
        trees: int = 4,
    ) -> None:
        super().__init__()
        if width % heads:
            raise UnSAMError(f'width must be a multiple of heads, got {width} and {heads}')
        distances = trees + OTHER_DISTANCES
        self.trees, self.feature_channels = trees, feature_channels
        self.region = _mlp(2 * feature_channels + APPEARANCE_DIM + 4 * _N_FREQUENCIES, 2 * width, width)
        self.pair_bias = _mlp(distances, 16, heads * encoder_layers)
        self.encoder = nn.ModuleList(EncoderLayer(width, heads) for _ in range(encoder_layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.granularity = _mlp(2 * _N_FREQUENCIES + 1, width, width)
        self.prompt = nn.Linear(2 * width, width)
        self.pair = nn.Linear(2 * distances + EXTRA_CHANNELS + trees, prompt_channels)
        self.pair_region = nn.Linear(width, prompt_channels, bias=False)
        self.pair_prompt = nn.Linear(width, prompt_channels, bias=False)
        self.decoder = nn.ModuleList(DecoderLayer(width, heads, prompt_channels) for _ in range(decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.mask = MaskHead(width, prompt_channels)
        self.score = _mlp(2 * width + _STATISTICS + 2 * trees, width, 2)

    def encode(self, inputs: RegionInputs) -> Tensor:
        """(L, width) embeddings of the regions.

        Raises:
            UnSAMError: If the inputs have another number of trees or of feature channels than the network.
        """
        found = (inputs.n_trees, inputs.features.shape[1] // 2)
        if found != (self.trees, self.feature_channels):
            raise UnSAMError(
                f'the tokens have {found[0]} trees and {found[1]} feature channels, the network {self.trees} and '
                f'{self.feature_channels}; use the generator settings that it was trained with'
            )
        regions = self.region(
            torch.cat([inputs.features, inputs.appearance, _positional_encoding(inputs.centres_yx)], dim=1)
        )
        biases = self.pair_bias(inputs.pairs).permute(2, 0, 1).chunk(len(self.encoder))
        for layer, bias in zip(self.encoder, biases, strict=True):
            regions = layer(regions, bias)
        return self.encoder_norm(regions)

    def decode(self, inputs: RegionInputs, encoded: Tensor, prompts: RegionPrompts) -> tuple[Tensor, Tensor]:
        """Predicts a mask for each prompt; prompts are independent.

        Args:
            inputs: Inputs for the image.
            encoded: (L, width) embeddings from `encode`.
            prompts: Q prompts. Each takes about 0.5 MB with 768 regions, so pass at most a few hundred.

        Returns:
            logits: (Q, L); a region belongs to the mask if its logit is positive.
            scores: (Q, 2) logits of the scores of the mask: among all masks of the image, and for a click.
        """
        known = ~prompts.granularity.isnan()
        granularity = torch.where(known, prompts.granularity, 0.0)
        wanted = self.granularity(
            torch.cat(
                [_positional_encoding(granularity[:, None]) * known[:, None], known[:, None].to(granularity)], dim=1
            )
        )
        queries = self.prompt(torch.cat([prompts.weights @ encoded, wanted], dim=1)) + wanted
        hidden = self._pairs(prompts.channels, granularity, known, encoded, queries)
        log_areas = (inputs.areas_px / inputs.areas_px.mean()).log()
        for layer in self.decoder:
            queries = layer(queries, encoded, hidden, log_areas)
        queries = self.decoder_norm(queries)
        logits = self.mask(queries, encoded, hidden)
        shares = logits.sigmoid()
        pixels = shares * inputs.areas_px
        pooled = pixels @ encoded / (pixels.sum(1, keepdim=True) + 1e-6)
        gaps = _gaps(prompts.channels[..., : self.trees], granularity) * known[:, None]
        described = torch.cat(
            [_statistics(inputs, shares), granularity[:, None], known[:, None].to(shares), gaps], dim=1
        )
        return logits, self.score(torch.cat([queries, pooled, described], dim=1))

    def _pairs(self, channels: Tensor, granularity: Tensor, known: Tensor, encoded: Tensor, queries: Tensor) -> Tensor:
        """(Q, L, prompt_channels) pairwise features of prompts and regions."""
        steps = ((channels[..., : self.trees] - granularity[:, None, None]) * _STEP_SHARPNESS).clamp(-1.5, 1.5)
        of_channels, of_steps = self.pair.weight.split([channels.shape[-1], self.trees], dim=1)
        # In place, since the memory traffic of this tensor takes longer than the matrix products.
        hidden = linear(channels, of_channels)
        hidden.flatten(0, 1).addmm_((steps * known[:, None, None]).flatten(0, 1), of_steps.T)
        hidden += self.pair_region(encoded)
        hidden += (self.pair_prompt(queries) + self.pair.bias)[:, None]
        return hidden.relu_()


class EncoderLayer(nn.Module):
    """Self-attention of regions with a pairwise bias, followed by a feed-forward network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.forward_norm = nn.LayerNorm(width)
        self.feed_forward = _mlp(width, 3 * width, width)

    def forward(self, regions: Tensor, bias: Tensor) -> Tensor:
        """(L, width) from (L, width) and a (heads, L, L) bias."""
        projected = self.query_key_value(self.attention_norm(regions))
        query, key, value = projected.unflatten(1, (3, self.heads, -1)).permute(1, 2, 0, 3)
        attended = scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=bias[None])[0]
        regions = regions + self.attention_out(attended.transpose(0, 1).flatten(1))
        return regions + self.feed_forward(self.forward_norm(regions))


class DecoderLayer(nn.Module):
    """Cross-attention from prompts to regions, weighted by their areas, followed by a feed-forward network."""

    def __init__(self, width: int, heads: int, prompt_channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.attention_out = nn.Linear(width, width)
        self.pair_bias = nn.Linear(prompt_channels, heads)
        self.forward_norm = nn.LayerNorm(width)
        self.feed_forward = _mlp(width, 3 * width, width)

    def forward(self, queries: Tensor, regions: Tensor, hidden: Tensor, log_areas: Tensor) -> Tensor:
        """(Q, width) from (Q, width), (L, width), (Q, L, prompt_channels) and (L,)."""
        query = self.query(self.attention_norm(queries)).unflatten(1, (self.heads, -1)).transpose(0, 1)
        key, value = self.key_value(regions).unflatten(1, (2, self.heads, -1)).permute(1, 2, 0, 3)
        affinity = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        affinity += self.pair_bias(hidden).permute(2, 0, 1)
        affinity += log_areas
        attended = (affinity.softmax(-1) @ value).transpose(0, 1).flatten(1)
        queries = queries + self.attention_out(attended)
        return queries + self.feed_forward(self.forward_norm(queries))


class MaskHead(nn.Module):
    """Mask logits: a dot product of prompt and region embeddings plus two terms of their pairwise features."""

    def __init__(self, width: int, prompt_channels: int) -> None:
        super().__init__()
        self.query = _mlp(width, width, width)
        self.region = nn.Linear(width, width)
        self.pair = nn.Linear(prompt_channels, prompt_channels)
        self.pair_query = nn.Linear(width, prompt_channels)
        self.pair_out = nn.Linear(prompt_channels, 1)
        self.pair_weights = nn.Linear(width, prompt_channels)

    def forward(self, queries: Tensor, regions: Tensor, hidden: Tensor) -> Tensor:
        """(Q, L) from (Q, width), (L, width) and (Q, L, prompt_channels)."""
        alike = self.query(queries) @ self.region(regions).T / math.sqrt(regions.shape[1])
        related = linear(hidden, self.pair.weight)  # the bias is added in the next line
        related += (self.pair_query(queries) + self.pair.bias)[:, None]
        related = self.pair_out(related.relu_())[..., 0]
        return alike + related + (hidden @ self.pair_weights(queries)[..., None])[..., 0] * 0.2


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


def _positional_encoding(values: Tensor) -> Tensor:
    """(N, 2 K _N_FREQUENCIES) sinusoids of (N, K) values; over [0, 1], number k has 2^k quarters of a period."""
    frequencies = 2.0 ** torch.arange(_N_FREQUENCIES, device=values.device) * (math.pi / 2)
    angles = values[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def _gaps(on_paths: Tensor, granularity: Tensor) -> Tensor:
    """(Q, 2 T) differences of the granularity to those of the next nodes above and below it on the path in each tree."""
    apart = on_paths - granularity[:, None, None]
    reached = apart <= 1e-4
    above = apart.masked_fill(reached, _WIDEST_GAP).amin(1)
    below = (-apart).masked_fill(~reached, _WIDEST_GAP).amin(1)
    return torch.cat([above, below], dim=1).clamp(0, _WIDEST_GAP)


@torch.no_grad()
def _statistics(inputs: RegionInputs, shares: Tensor) -> Tensor:
    """(Q, 6) statistics of soft masks: edge strength along the boundary, its clamped root, log relative area, fraction
    of the image border, certainty, and roughness."""
    areas = inputs.areas_px
    one, other = inputs.edges.unbind(1)
    outline = (shares[:, one] - shares[:, other]).abs() * inputs.edge_lengths_px
    length_px = outline.sum(1)
    strength = (outline * inputs.edge_strengths).sum(1) / (length_px + 1e-6)
    area_px = (shares * areas).sum(1)
    inside = (shares > 0.5).to(shares)
    certainty = (inside * shares * areas).sum(1) / ((inside * areas).sum(1) + 1e-6)
    return torch.stack(
        [
            strength,
            strength.clamp(max=3).sqrt(),
            (area_px / areas.sum()).clamp(min=1e-5).log() / 4,
            inside @ inputs.border_share,
            certainty,
            length_px / (area_px.sqrt() + 1) / 10,
        ],
        dim=1,
    )
