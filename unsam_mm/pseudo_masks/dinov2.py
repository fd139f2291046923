"""DINOv2 in plain torch, as a frozen backbone for the presets.

It computes the same as transformers, whose import takes two thirds of a cold start. Module names are those of the files
written by `unsam_mm.weights`; folders whose config has other keys are loaded by transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate, scaled_dot_product_attention

from unsam_mm.errors import WeightsError, describe_error

_MLP_RATIO = 4
_CONFIG_KEYS = {
    'architectures',
    'model_type',
    'hidden_size',
    'num_hidden_layers',
    'num_attention_heads',
    'image_size',
    'patch_size',
    'layer_norm_eps',
}
_NOT_READ = 'embeddings.mask_token'


def is_plain(folder: Path) -> bool:
    """True if a folder in transformers' format contains a DINOv2 model with the config keys that `Dinov2` supports."""
    try:
        config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get('model_type') == 'dinov2' and config.keys() == _CONFIG_KEYS


def load_dinov2(folder: Path) -> Dinov2:
    """The model of a folder for which `is_plain` is true, frozen, in evaluation mode.

    Raises:
        WeightsError: If its weights cannot be read or do not fit.
    """
    model = Dinov2(**json.loads((folder / 'config.json').read_text(encoding='utf-8')))
    try:
        state = load_file(folder / 'model.safetensors')
        state.pop(_NOT_READ, None)
        model.load_state_dict(state, assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WeightsError(
            f'{folder}: damaged ({describe_error(error)}); remove the folder and fetch it again'
        ) from error
    return model.float().eval().requires_grad_(False)


class Dinov2(nn.Module):
    """A ViT with layer scale.

    Args:
        config: Keys of config.json; see `is_plain`.

    Attributes:
        config: The same keys as attributes.
    """

    def __init__(self, **config: object) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        channels, epsilon = config['hidden_size'], config['layer_norm_eps']
        with torch.device('meta'):  # the file provides all values
            self.embeddings = _Embeddings(channels, config['patch_size'], config['image_size'] // config['patch_size'])
            self.encoder = nn.Module()
            self.encoder.layer = nn.ModuleList(
                _Block(channels, config['num_attention_heads'], epsilon) for _ in range(config['num_hidden_layers'])
            )
            self.layernorm = nn.LayerNorm(channels, epsilon)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 1 + patches, C) normalised tokens, the class token first, of (B, 3, H, W) normalised pixels.

        H and W are multiples of the patch size.
        """
        tokens = self.embeddings(pixel_values)
        for block in self.encoder.layer:
            tokens = block(tokens)
        return self.layernorm(tokens)


class _Embeddings(nn.Module):
    def __init__(self, channels: int, patch_px: int, grid: int) -> None:
        super().__init__()
        self._grid = grid
        self.cls_token = nn.Parameter(torch.empty(1, 1, channels))
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + grid**2, channels))
        self.patch_embeddings = nn.Module()
        self.patch_embeddings.projection = nn.Conv2d(3, channels, patch_px, patch_px)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embeddings.projection(pixels)
        positions = self._positions(patches.shape[-2:])
        patches = patches.flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], dim=1) + positions

    def _positions(self, grid_hw: tuple[int, int]) -> Tensor:
        known = self.position_embeddings
        if tuple(grid_hw) == (self._grid, self._grid):
            return known
        grid = known[:, 1:].unflatten(1, (self._grid, self._grid)).permute(0, 3, 1, 2)
        grid = interpolate(grid, size=grid_hw, mode='bicubic', align_corners=False)
        return torch.cat([known[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class _Block(nn.Module):
    def __init__(self, channels: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels, epsilon), nn.LayerNorm(channels, epsilon)
        self.attention = _Attention(channels, heads)
        self.layer_scale1, self.layer_scale2 = _Scale(channels), _Scale(channels)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = (
            nn.Linear(channels, _MLP_RATIO * channels),
            nn.Linear(_MLP_RATIO * channels, channels),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.layer_scale1(self.attention(self.norm1(tokens)))
        return tokens + self.layer_scale2(self.mlp.fc2(gelu(self.mlp.fc1(self.norm2(tokens)))))


class _Attention(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.attention = nn.Module()
        for name in ('query', 'key', 'value'):
            setattr(self.attention, name, nn.Linear(channels, channels))
        self.output = nn.Module()
        self.output.dense = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        projections = (self.attention.query, self.attention.key, self.attention.value)
        heads = [project(tokens).unflatten(-1, (self._heads, -1)).transpose(1, 2) for project in projections]
        return self.output.dense(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))


class _Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.empty(channels))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.lambda1
