"""The deformable pixel decoder of the promptable model, with an additional level at stride 64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmcv.cnn import ConvModule
from mmdet.models.layers import Mask2FormerTransformerEncoder, SinePositionalEncoding
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.model import BaseModule, ModuleList, caffe2_xavier_init, normal_init, xavier_init
from torch import Tensor, nn
from torch.nn.functional import interpolate

from unsam_mm.models.attention import LeanDeformableAttention, use_lean_attention

_NORM = {'type': 'GN', 'num_groups': 32}


@MODELS.register_module()
class UnSAMPixelDecoder(BaseModule):
    """Deformable attention among the levels from stride 8 on, and a mask feature at stride 4.

    Source: MaskDINO (CVPR 2023) as in Semantic-SAM. MMDetection's `MSDeformAttnPixelDecoder` differs: it projects
        levels
    of the backbone only, and orders them from coarse to fine.

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
