"""The two compiled ops of MMCV that inference with an R-CNN detector needs, in plain torch.

They have the arguments of the compiled ops, run on any device, and have no backward pass.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from unsam_mm.errors import UnSAMError

_BLOCK = 1000  # boxes compared at a time, which limits the memory to a few matrices of 1000 x kept boxes
_MAX_SAMPLES = 4_000_000  # feature pixels gathered at a time, four for each sample: 32 MB of indices
_AVERAGE = 1  # MMCV's number of this pooling mode


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Greedy non-maximum suppression: a box is removed if it overlaps a kept box with a higher score.

    Args:
        bboxes: (N, 4) float x1, y1, x2, y2.
        scores: (N,) float.
        iou_threshold: Boxes with a larger IoU are removed.
        offset: 0, or 1 if x2 and y2 are pixels inside the box.

    Returns:
        (K,) int64 indices of the kept boxes, highest score first; among equal scores, the first box is first.
    """
    order = scores.argsort(descending=True, stable=True)
    kept = order[:0]
    for block in order.split(_BLOCK):
        overlaps_kept = _iou(bboxes[kept], bboxes[block], offset) > iou_threshold
        block = block[~overlaps_kept.any(dim=0)]
        suppresses = (_iou(bboxes[block], bboxes[block], offset) > iou_threshold).triu(diagonal=1)
        # The greedy result is a fixed point: a box stays unless an earlier box stays and overlaps it. Each iteration
        # decides at least one more box, in practice nearly all, so a few iterations replace a loop over boxes.
        stays = torch.ones(len(block), dtype=torch.bool, device=bboxes.device)
        while True:
            updated = ~(suppresses & stays[:, None]).any(dim=0)
            if torch.equal(updated, stays):
                break
            stays = updated
        kept = torch.cat([kept, block[stays]])
    return kept


def _iou(one: Tensor, other: Tensor, offset: int) -> Tensor:
    """(N, M) float IoUs; NaN for two boxes without area, which therefore never suppress each other."""
    top_left = torch.maximum(one[:, None, :2], other[None, :, :2])
    bottom_right = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    overlap = (bottom_right - top_left + offset).clamp(min=0).prod(dim=-1)
    areas, other_areas = ((boxes[:, 2:] - boxes[:, :2] + offset).prod(dim=-1) for boxes in (one, other))
    return overlap / (areas[:, None] + other_areas[None] - overlap)


def roi_align_forward(
    features: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Averages bilinear samples of feature maps in the bins of each region; see `mmcv.ops.RoIAlign`.

    Args:
        features: (B, C, H, W) float.
        rois: (N, 5) float: batch index, x1, y1, x2, y2 in pixels of the image.
        output: (N, C, aligned_height, aligned_width), overwritten.
        argmax_y: Unused; for maximum pooling only.
        argmax_x: Unused; for maximum pooling only.
        aligned_height: Rows of bins.
        aligned_width: Columns of bins.
        spatial_scale: Size of an image pixel in feature pixels.
        sampling_ratio: Samples along each side of a bin; if 0, as many as its size in feature pixels, rounded up.
        pool_mode: Must be 1, the average.
        aligned: True if pixel centres have half-integer coordinates. If False, they have integer coordinates, and the
            sides of a region are at least one feature pixel long.

    Raises:
        UnSAMError: For maximum pooling.
    """
    if pool_mode != _AVERAGE:
        raise UnSAMError('mmcv.ops: "roi_align" without compiled ops averages; set pool_mode to avg')
    channels, height, width = features.shape[1:]
    rois = rois.float()  # half precision cannot distinguish neighbouring pixels of a large image
    bins_hw = (aligned_height, aligned_width)
    rows = features.permute(0, 2, 3, 1).reshape(-1, channels)  # a sample is then one contiguous row
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    starts, sizes = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        sizes = sizes.clamp(min=1.0)
    bin_sizes = sizes / sizes.new_tensor([aligned_width, aligned_height])
    samples = bin_sizes.ceil().clamp(min=0) if sampling_ratio <= 0 else torch.full_like(bin_sizes, sampling_ratio)
    output.zero_()  # regions without area have no samples
    for samples_x, samples_y in samples.long().unique(dim=0).tolist():
        members = (samples == samples.new_tensor([samples_x, samples_y])).all(dim=1).nonzero()[:, 0]
        per_region = 4 * aligned_height * aligned_width * samples_x * samples_y
        if per_region == 0:
            continue
        for part in members.split(max(1, _MAX_SAMPLES // per_region)):
            x, weight_x = _axis(starts[part, 0], bin_sizes[part, 0], aligned_width, samples_x, width)
            y, weight_y = _axis(starts[part, 1], bin_sizes[part, 1], aligned_height, samples_y, height)
            first_row = (rois[part, 0].long() * height * width)[:, None, None, None, None]
            index = first_row + y[:, :, None, :, None] * width + x[:, None, :, None, :]
            weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
            bags = index.flatten(0, 2).flatten(1), weight.flatten(0, 2).flatten(1).to(rows.dtype)
            pooled = embedding_bag(bags[0], rows, per_sample_weights=bags[1], mode='sum')
            output[part] = pooled.view(len(part), *bins_hw, channels).permute(0, 3, 1, 2)


def _axis(start: Tensor, bin_size: Tensor, bins: int, samples: int, length: int) -> tuple[Tensor, Tensor]:
    """The samples along one axis; bilinear weights are products of the weights along both axes.

    Returns:
        (N, bins, 2 x samples) int64 indices of feature pixels along the axis, and their weights, whose sum is 1 in each
        bin whose samples all lie on the map.
    """
    steps = torch.arange(bins * samples, device=start.device, dtype=start.dtype).view(bins, samples)
    within = (steps % samples + 0.5) / samples
    position = start[:, None, None] + (steps.div(samples, rounding_mode='floor') + within) * bin_size[:, None, None]
    on_map = (position >= -1) & (position <= length)
    position = position.clamp(0, length - 1)
    low = position.floor()
    high_weight = position - low
    high = (low + 1).clamp(max=length - 1)
    index = torch.cat([low, high], dim=-1).long()
    weight = torch.cat([1 - high_weight, high_weight], dim=-1) * torch.cat([on_map, on_map], dim=-1) / samples
    return index, weight
