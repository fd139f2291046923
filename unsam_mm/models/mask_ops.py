"""From mask logits to masks: upsampling, thresholding and encoding a bounded number of masks at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from unsam_mm.rle import Rle, encode_bitmaps

_CHUNK_VALUES = 2**25
"""Logits held at once at full resolution: 128 MiB in float32, 32 masks of 1024 x 1024."""


def full_size_logits(
    logits: Tensor, batch_hw: tuple[int, int], image_hw: tuple[int, int], output_hw: tuple[int, int]
) -> Iterator[Tensor]:
    """Yields the logits of consecutive queries in output pixels.

    Args:
        logits: (N, h, w) mask logits of one image, in the frame of the padded batch.
        batch_hw: Height and width in pixels of the padded batch.
        image_hw: Height and width in pixels of this image in the batch; what lies beyond is padding and is cut off.
        output_hw: Height and width in pixels wanted.

    Yields:
        (n, *output_hw) logits; the n add up to N.
    """
    n_values = max(batch_hw[0] * batch_hw[1], output_hw[0] * output_hw[1])
    for chunk in logits.split(max(1, _CHUNK_VALUES // n_values)):
        padded = interpolate(chunk[:, None], size=batch_hw, mode='bilinear', align_corners=False)
        unpadded = padded[:, :, : image_hw[0], : image_hw[1]]
        if image_hw != output_hw:
            unpadded = interpolate(unpadded, size=output_hw, mode='bilinear', align_corners=False)
        yield unpadded[:, 0]


def foreground_confidence(logits: Tensor, masks: Tensor) -> Tensor:
    """(N,) mean probability inside each mask; 0 for an empty one.

    Args:
        logits: (N, H, W) mask logits.
        masks: (N, H, W) bool, where the logits are positive.
    """
    inside = masks.float()
    return (logits.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)


def boxes_of_masks(masks: Tensor) -> Tensor:
    """(N, 4) float32 boxes x0, y0, x1, y1 in pixels, right and bottom exclusive; zeros for an empty mask.

    Args:
        masks: (N, H, W) bool.
    """
    edges = []
    for filled in (masks.any(dim=1), masks.any(dim=2)):  # (N, W), then (N, H)
        length = filled.shape[1]
        first = filled.int().argmax(dim=1)
        last = length - filled.flip(1).int().argmax(dim=1)
        edges.append(torch.stack([first, last], dim=1) * filled.any(dim=1, keepdim=True))
    (x0, x1), (y0, y1) = (edge.unbind(dim=1) for edge in edges)
    return torch.stack([x0, y0, x1, y1], dim=1).float()


def rles_of_masks(masks: Tensor) -> list[Rle]:
    """COCO run lengths of (N, H, W) bool masks on any device."""
    # COCO walks down columns. Transposing on the device leaves nothing to rearrange on the CPU.
    columns = masks.transpose(1, 2).contiguous().cpu().numpy()
    return encode_bitmaps(columns.transpose(0, 2, 1))
