"""Upsampling, thresholding and encoding of mask logits in chunks."""

from __future__ import annotations

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn.functional import interpolate, threshold_

from unsam_mm.masks.rle import Rle, areas_and_boxes

_CHUNK_VALUES = 2**23
"""Logits held at once at full resolution: 32 MiB in float32, 8 masks of 1024 x 1024."""


def masks_at_once(batch_hw: tuple[int, int], image_hw: tuple[int, int], output_hw: tuple[int, int]) -> int:
    """Chunk size, in masks, for `full_size_logits` with the same arguments."""
    return max(1, _CHUNK_VALUES // max(batch_hw[0] * batch_hw[1], output_hw[0] * output_hw[1]))


def full_size_logits(
    logits: Tensor, batch_hw: tuple[int, int], image_hw: tuple[int, int], output_hw: tuple[int, int]
) -> Tensor:
    """(N, *output_hw) upsampled logits; the memory layout is column-major, as for COCO's RLE.

    Args:
        logits: (N, h, w) mask logits of one image, at the size of the padded batch.
        batch_hw: Height and width in pixels of the padded batch.
        image_hw: Height and width in pixels of this image in the batch, without padding.
        output_hw: Height and width in pixels of the output.
    """
    padded = interpolate(logits.transpose(1, 2)[:, None], size=batch_hw[::-1], mode='bilinear', align_corners=False)
    unpadded = padded[:, :, : image_hw[1], : image_hw[0]]
    if image_hw != output_hw:
        unpadded = interpolate(unpadded, size=output_hw[::-1], mode='bilinear', align_corners=False)
    return unpadded[:, 0].transpose(1, 2)


def foreground_sums_(logits: Tensor) -> Tensor:
    """(N,) sums of the probabilities of foreground pixels, those of positive logits; overwrites the logits.

    Args:
        logits: (N, H, W) mask logits.
    """
    return threshold_(logits, 0.0, float('-inf')).sigmoid_().sum(dim=(1, 2), dtype=torch.float32)


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
    """RLEs of (N, H, W) bool masks on any device."""
    columns = masks.transpose(1, 2).contiguous().cpu().numpy()  # no copy for masks in the layout of `full_size_logits`
    return coco_mask.encode(columns.view(np.uint8).transpose(2, 1, 0)) if len(columns) else []


def areas_and_boxes_of_rles(rles: list[Rle]) -> tuple[Tensor, Tensor]:
    """(N,) float32 areas in pixels, and (N, 4) float32 boxes as from `boxes_of_masks`, without decoding masks."""
    areas, boxes = areas_and_boxes(rles)
    return torch.from_numpy(areas).float(), torch.from_numpy(boxes).float()
