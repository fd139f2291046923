"""Upsampling, thresholding, encoding and point sampling of masks and mask logits, in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from mmcv.ops import point_sample
from mmdet.structures import DetDataSample
from mmdet.structures.mask.structures import BaseInstanceMasks
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn.functional import interpolate, threshold_
from torch.utils.checkpoint import checkpoint

from unsam_mm.masks.rle import Rle

_CHUNK_VALUES = 2**23
"""Logits in each chunk at full resolution: 32 MiB in float32, 8 masks of 1024 x 1024."""

_CHUNK_PIXELS = 2**24
"""Pixels of unpacked masks in each chunk, a byte each: 16 masks of 1024 x 1024."""

_CHUNK_POINTS = 2**21
"""Candidate points in each chunk: 24 MB, 55 masks with the paper's 37632 candidates."""

_COLUMNS_PER_BYTE = 7
"""Columns between the first pixels of neighbouring bytes. Bytes overlap by one column, so that the two pixels at the
left and right of a point are always in one byte."""


class ImageSizes(NamedTuple):
    """Height and width in pixels: of the original image, of the network's input, and of the padded batch."""

    original: tuple[int, int]
    image: tuple[int, int]
    batch: tuple[int, int]

    @classmethod
    def from_sample(cls, sample: DetDataSample, rescale: bool = True) -> ImageSizes:
        """The sizes in the meta information of a sample; if `rescale` is False, `original` is the size of the input."""
        keys = ('ori_shape' if rescale else 'img_shape', 'img_shape', 'batch_input_shape')
        return cls(*(tuple(sample.metainfo[key][:2]) for key in keys))


def masks_at_once(sizes: ImageSizes) -> int:
    """Number of masks in each chunk for `full_size_logits`."""
    return max(1, _CHUNK_VALUES // max(math.prod(sizes.batch), math.prod(sizes.original)))


def full_size_logits(logits: Tensor, sizes: ImageSizes) -> Tensor:
    """(N, H, W) logits at the size of the original image; the memory layout is column-major, as for COCO's RLE.

    Args:
        logits: (N, h, w) mask logits of one image, including the padding of the batch.
        sizes: Sizes of the image.
    """
    columns = logits.transpose(1, 2)[:, None]
    padded = interpolate(columns, size=sizes.batch[::-1], mode='bilinear', align_corners=False)
    unpadded = padded[:, :, : sizes.image[1], : sizes.image[0]]
    if sizes.image != sizes.original:
        unpadded = interpolate(unpadded, size=sizes.original[::-1], mode='bilinear', align_corners=False)
    return unpadded[:, 0].transpose(1, 2)


def full_size_masks(logits: Tensor, sizes: ImageSizes) -> Iterator[Tensor]:
    """Yields chunks of (n, H, W) bool masks at the size of the original image; see `full_size_logits`."""
    return (full_size_logits(chunk.float(), sizes) > 0 for chunk in logits.split(masks_at_once(sizes)))


def foreground_sums_(logits: Tensor) -> Tensor:
    """(N,) float32 sums of the probabilities of the foreground pixels, whose logits are positive; overwrites `logits`.

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


def bitmap_chunks(masks: BaseInstanceMasks) -> Iterator[Tensor]:
    """Yields chunks of (n, H, W) bool bitmaps."""
    step = max(1, _CHUNK_PIXELS // max(1, masks.height * masks.width))
    return (masks[start : start + step].to_tensor(torch.bool, 'cpu') for start in range(0, len(masks), step))


@dataclass(frozen=True)
class BitMasks:
    """Packed masks of one image, 8/7 bits for each pixel: 75 MB for 500 masks of 1024 x 1024.

    Attributes:
        bits: (N, rows * bytes per row) uint8, lowest bit first; masks are padded by one empty pixel at each side, and
            at the right up to a whole byte.
        size_hw: Height and width in pixels, without the padding.
    """

    bits: Tensor
    size_hw: tuple[int, int]

    @classmethod
    def pack(cls, masks: BaseInstanceMasks, device: torch.device | str = 'cpu') -> BitMasks:
        """Packs masks of any of MMDetection's classes, in chunks."""
        height, width = masks.height, masks.width
        right = _bytes_of_row(width) * _COLUMNS_PER_BYTE - width
        packed = [np.zeros((0, (height + 2) * _bytes_of_row(width)), np.uint8)]
        for bitmaps in bitmap_chunks(masks):
            padded = np.pad(bitmaps.numpy(), ((0, 0), (1, 1), (1, right)))
            bits = np.lib.stride_tricks.sliding_window_view(padded, 8, axis=2)[:, :, ::_COLUMNS_PER_BYTE]
            packed.append(np.packbits(bits, axis=-1, bitorder='little').reshape(len(bitmaps), -1))
        return cls(torch.from_numpy(np.concatenate(packed)).to(device), (height, width))

    def __len__(self) -> int:
        return len(self.bits)

    def __getitem__(self, index: Tensor | slice) -> BitMasks:
        return BitMasks(self.bits[index], self.size_hw)

    def sample(self, points: Tensor) -> Tensor:
        """Bilinear interpolation with zero padding, like `mmcv.ops.point_sample` on floats.

        Args:
            points: (N, P, 2), or (1, P, 2) for the same points in all masks, as x, y in [0, 1].

        Returns:
            (N, P) float32 in [0, 1].
        """
        height, width = self.size_hw
        # In pixels of the padded masks, where every point of [0, 1] has four neighbours.
        coordinates = torch.addcmul(points.new_tensor(0.5), points, points.new_tensor([width, height]))
        column, row = coordinates.int().unbind(-1)
        byte = column // _COLUMNS_PER_BYTE
        shift = (column - byte * _COLUMNS_PER_BYTE).to(torch.uint8)
        above = (row * _bytes_of_row(width) + byte).long()
        corners = (self._at(above) >> shift & 3) | (self._at(above + _bytes_of_row(width)) >> shift & 3) << 2
        values = (corners == 15).float()
        # Only points on the boundary of a mask need interpolation; they are few.
        mixed = ((corners > 0) & (corners < 15)).nonzero(as_tuple=True)
        x, y = coordinates.frac().expand(len(self), -1, -1)[mixed].unbind(-1)
        top_left, top_right, left, right = ((corners[mixed] >> bit & 1).float() for bit in range(4))
        values[mixed] = torch.lerp(torch.lerp(top_left, top_right, x), torch.lerp(left, right, x), y)
        return values

    def _at(self, indices: Tensor) -> Tensor:
        """(N, P) bytes at (N, P) or (1, P) indices."""
        return self.bits.gather(1, indices.expand(len(self), -1))


def _bytes_of_row(width: int) -> int:
    return width // _COLUMNS_PER_BYTE + 1


def pixel_centres(height: int, width: int, device: torch.device) -> Tensor:
    """(height * width, 2) x, y in [0, 1] of the centres of pixels, in row-major order."""
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    return torch.stack(torch.meshgrid(x, y, indexing='xy'), dim=-1).flatten(0, 1)


class PointSampling(NamedTuple):
    """How the points of mask losses are drawn; the defaults are those of Mask2Former.

    Attributes:
        num_points: Number of points for each mask.
        oversample_ratio: Number of candidates for each point.
        importance_sample_ratio: Fraction of the points that are the most uncertain candidates, in [0, 1].
    """

    num_points: int = 12544
    oversample_ratio: float = 3.0
    importance_sample_ratio: float = 0.75

    @classmethod
    def from_config(cls, train_cfg: Mapping[str, Any]) -> PointSampling:
        """The settings with these names in a `train_cfg`; settings that it lacks have their defaults."""
        return cls(**{name: train_cfg[name] for name in cls._fields if name in train_cfg})


@torch.no_grad()
def sample_at_random(feature: Tensor, masks: BitMasks, num_points: int) -> tuple[Tensor, Tensor]:
    """(C, P) float32 mask feature and (N, P) masks of an image at the same uniformly random points.

    Args:
        feature: (C, h, w) mask feature.
        masks: N masks.
        num_points: Number of points, P.
    """
    points = torch.rand((1, num_points, 2), device=feature.device)
    return point_sample(feature[None].float(), points)[0], masks.sample(points)


def uncertain_points(embed: Tensor, feature: Tensor, sampling: PointSampling) -> Iterator[tuple[slice, Tensor]]:
    """Yields random points for chunks of masks, most of them where the mask is most uncertain.

    If the masks fit into one chunk, the random numbers are drawn in the order of MMDetection's
    `get_uncertain_point_coords_with_randomness`.

    Args:
        embed: (N, C) mask embeddings of one image.
        feature: (C, h, w) mask feature; the products with the embeddings are the logits.
        sampling: How many points are drawn.

    Yields:
        Slice of the masks, and their (n, P, 2) points as x, y in [0, 1].
    """
    num_points = sampling.num_points
    num_candidates = int(num_points * sampling.oversample_ratio)
    num_uncertain = int(sampling.importance_sample_ratio * num_points)
    step = max(1, _CHUNK_POINTS // num_candidates)
    for start in range(0, len(embed), step):
        chunk = embed[start : start + step]
        candidates = torch.rand(len(chunk), num_candidates, 2, device=embed.device)
        certainty = logits_at(chunk, feature, candidates).abs_()
        chosen = certainty.topk(num_uncertain, dim=1, largest=False, sorted=False).indices
        points = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        others = torch.rand(len(chunk), num_points - num_uncertain, 2, device=embed.device)
        yield slice(start, start + len(chunk)), torch.cat([points, others], dim=1)


def losses_at_points(
    losses: Callable[[Tensor, Tensor, BitMasks, Tensor], tuple[Tensor, Tensor]],
    embed: Tensor,
    feature: Tensor,
    masks: BitMasks,
    sampling: PointSampling,
) -> list[tuple[Tensor, Tensor]]:
    """Losses of chunks of masks at uncertain points.

    Only the points are stored for the backward pass, in which logits and masks are computed again.

    Args:
        losses: Function of the embeddings, the mask feature, the masks and the points of a chunk; returns two losses.
        embed: (N, C) mask embeddings of one image.
        feature: (C, h, w) mask feature.
        masks: The N masks.
        sampling: How many points are drawn.
    """
    with torch.no_grad():
        chunks = list(uncertain_points(embed, feature, sampling))
    options = {'use_reentrant': False, 'preserve_rng_state': False}
    return [checkpoint(losses, embed[at], feature, masks[at], points, **options) for at, points in chunks]


def logits_at(embed: Tensor, feature: Tensor, points: Tensor) -> Tensor:
    """(N, P) float32 mask logits at the points of each mask.

    Args:
        embed: (N, C) mask embeddings.
        feature: (C, h, w) mask feature.
        points: (N, P, 2) as x, y in [0, 1].
    """
    logits = torch.einsum('nc,chw->nhw', embed, feature)
    return point_sample(logits[:, None].float(), points)[:, 0]
