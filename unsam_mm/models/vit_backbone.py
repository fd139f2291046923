"""A self-supervised ViT with a small convolutional branch, as a four-level backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from unsam_mm.errors import UnSAMError, WeightsError
from unsam_mm.pseudo_masks.vit import load_vit

TINY_VIT = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4, 'patch_size': 14, 'image_size': 56}
"""Config of a small ViT with random weights, for tests."""

_TOKEN_STRIDE_PX = 16
_INPUT_MULTIPLE_PX = 32
_NORM_GROUPS = 8
_PROBE_PATCHES = 4  # side of the test image in patches
_SAME_VIT_TOLERANCE = 0.01
"""Relative tolerance of `vit_probe`; half-precision copies of one ViT differ by about 0.001, two ViTs by about 1."""


@MODELS.register_module()
class UnSAMViTBackbone(BaseModule):
    """A feature pyramid at strides 4, 8, 16 and 32 from the tokens of a self-supervised ViT.

    The image is resized by patch size / 16 before the ViT, so a token covers 16 x 16 input pixels and the levels have
    the strides that MMDetection's necks and heads expect. A convolutional branch adds details of the image that are
    smaller than tokens.

    A frozen ViT is not registered as a submodule, so optimizers, checkpoints, gradient hooks and averaged models ignore
    it, and a checkpoint has a few MB instead of a hundred. Checkpoints contain the ViT's output for a fixed test
    image, `vit_probe`; a checkpoint with the output of another ViT is rejected with `WeightsError`.

    Args:
        vit: Name of the ViT in `unsam_mm.weights.TABLE`.
        out_channels: Channels of each of the four levels; a multiple of 8.
        stem_channels: Channels of the convolutional branch at stride 4; doubled at stride 8; a multiple of 8.
        frozen: True to freeze the ViT. Otherwise it is trained and stored like any other module.
        pretrained: True to load `vit`. Otherwise a ViT with random weights is built from `vit_config`.
        vit_config: Arguments of `transformers.Dinov2Config` if `pretrained` is False; by default `TINY_VIT`.
        with_cp: True to use gradient checkpointing in a trained ViT, as in MMDetection's ResNet.
        init_cfg: MMEngine's initialisation of the convolutions.

    Raises:
        UnSAMError: If a number of channels is not a multiple of 8, or `with_cp` is set for a frozen ViT.
        WeightsError: If the weights of the ViT are not available.
    """

    def __init__(
        self,
        vit: str = 'dinov2_vits14',
        out_channels: int = 128,
        stem_channels: int = 32,
        frozen: bool = True,
        pretrained: bool = True,
        vit_config: dict[str, Any] | None = None,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if with_cp and frozen:
            raise UnSAMError('UnSAMViTBackbone: with_cp=True needs frozen=False; a frozen ViT has no backward pass')
        for name, channels in (('out_channels', out_channels), ('stem_channels', stem_channels)):
            if channels % _NORM_GROUPS:
                raise UnSAMError(f'UnSAMViTBackbone: {name} must be a multiple of {_NORM_GROUPS}, got {channels}')
        model = load_vit(vit) if pretrained else _random_vit(vit_config or TINY_VIT)
        self.vit_name = vit if pretrained else 'random'
        self.frozen = frozen
        self.patch_px = model.config.patch_size
        if frozen:
            self._unregistered_vit = (model.eval().requires_grad_(False),)  # the tuple hides it from nn.Module
            self.register_buffer('vit_probe', _probe(model))
            self.register_load_state_dict_pre_hook(_check_same_vit)
        else:
            self.registered_vit = model.requires_grad_(True)
            for name, parameter in model.named_parameters():
                if name.endswith('mask_token'):  # unused; distributed training needs a gradient for every parameter
                    parameter.requires_grad_(False)
            if with_cp:
                # Older versions of transformers have only the second method.
                enable = getattr(model, 'activation_checkpointing_enable', None) or model.gradient_checkpointing_enable
                enable({'use_reentrant': False})
        self.stem4 = nn.Sequential(_conv(3, stem_channels, stride=2), _conv(stem_channels, stem_channels, stride=2))
        self.stem8 = _conv(stem_channels, 2 * stem_channels, stride=2)
        self.project16 = _conv(model.config.hidden_size, out_channels, kernel=1)
        self.project8 = _conv(2 * stem_channels, out_channels, kernel=1)
        self.project4 = _conv(stem_channels, out_channels, kernel=1)
        self.fuse8 = _conv(out_channels, out_channels)
        self.fuse4 = _conv(out_channels, out_channels)

    @property
    def vit(self) -> nn.Module:
        """The transformers model, frozen or not."""
        return self._unregistered_vit[0] if self.frozen else self.registered_vit

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features of a batch.

        Args:
            inputs: (B, 3, H, W) float RGB, normalised by ImageNet's mean and standard deviation; H and W are multiples
                of 32.

        Returns:
            Maps of shape (B, out_channels, H / s, W / s) for s = 4, 8, 16 and 32.

        Raises:
            UnSAMError: If H or W is not a multiple of 32.
        """
        height, width = inputs.shape[-2:]
        if height % _INPUT_MULTIPLE_PX or width % _INPUT_MULTIPLE_PX:
            raise UnSAMError(
                f'UnSAMViTBackbone: expected sides that are multiples of {_INPUT_MULTIPLE_PX}, got {height} x {width}; '
                f'set pad_size_divisor={_INPUT_MULTIPLE_PX} in the data_preprocessor'
            )
        stem4 = self.stem4(inputs)
        stem8 = self.stem8(stem4)
        level16 = self.project16(self._tokens(inputs))
        level8 = self.fuse8(_double(level16) + self.project8(stem8))
        level4 = self.fuse4(_double(level8) + self.project4(stem4))
        return level4, level8, level16, avg_pool2d(level16, 2)

    def _tokens(self, inputs: Tensor) -> Tensor:
        """(B, C, H / 16, W / 16) tokens of the last layer."""
        grid_hw = [side // _TOKEN_STRIDE_PX for side in inputs.shape[-2:]]
        size = [side * self.patch_px for side in grid_hw]
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            pixels = interpolate(inputs, size=size, mode='bilinear', align_corners=False)
            tokens = _run(self.vit, pixels)[:, -grid_hw[0] * grid_hw[1] :]  # without class and register tokens
        return tokens.transpose(1, 2).unflatten(2, grid_hw)

    def _apply(self, fn, recurse: bool = True):
        # `to` and `half` apply to registered submodules only.
        if self.frozen:
            self.vit._apply(fn, recurse)
        return super()._apply(fn, recurse)


def _random_vit(config: dict[str, Any]) -> nn.Module:
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(**config))


def _conv(in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False),
        nn.GroupNorm(_NORM_GROUPS, out_channels),
        nn.ReLU(inplace=True),
    )


def _double(level: Tensor) -> Tensor:
    return interpolate(level, scale_factor=2, mode='bilinear', align_corners=False)


def _run(vit: nn.Module, pixels: Tensor) -> Tensor:
    """(B, tokens, C) of the last layer, for images of any size."""
    # The other models interpolate their position embeddings by default.
    options = {'interpolate_pos_encoding': True} if vit.config.model_type == 'vit' else {}
    return vit(pixel_values=pixels, **options).last_hidden_state


@torch.no_grad()
def _probe(vit: nn.Module) -> Tensor:
    """(C,) float32 mean token of a fixed test image, a colour ramp."""
    ramp = torch.linspace(-2, 2, _PROBE_PATCHES * vit.config.patch_size)
    y, x = torch.meshgrid(ramp, ramp, indexing='ij')
    picture = torch.stack([y, x, y * x])[None]
    return _run(vit, picture)[0].mean(dim=0)


def _check_same_vit(
    module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *unused: Sequence[str] | dict | bool
) -> None:
    stored, own = state_dict.get(f'{prefix}vit_probe'), module.vit_probe.cpu()
    if stored is None:
        return
    if stored.shape != own.shape or (stored.cpu() - own).norm() > _SAME_VIT_TOLERANCE * own.norm():
        raise WeightsError(
            f'the checkpoint was trained with another frozen ViT than {module.vit_name}; set model.backbone.vit to the '
            "ViT in the checkpoint's config"
        )
