"""Point sampling of masks and mask logits, for matching and the mask losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from mmcv.ops import point_sample
from mmdet.structures.mask.structures import BaseInstanceMasks
from torch import Tensor

_CHUNK_PIXELS = 2**24
"""Pixels of unpacked masks in each chunk, a byte each: 16 masks of 1024 x 1024."""

_CHUNK_POINTS = 2**21
"""Candidate points in each chunk: 24 MB, 55 masks with the paper's 37632 candidates."""


_WINDOW = 7
"""Columns between consecutive bytes. Bytes overlap by one column, so a byte holds both neighbours of any point."""


@dataclass(frozen=True)
class BitMasks:
    """Packed masks of one image, 8/7 bits for each pixel: 75 MB for 500 masks of 1024 x 1024.

    Attributes:
        bits: (N, rows * bytes) uint8, lowest bit first; masks are padded by one empty pixel.
        size_hw: Height and width in pixels, without the padding.
    """

    bits: Tensor
    size_hw: tuple[int, int]

    @classmethod
    def pack(cls, masks: BaseInstanceMasks, device: torch.device | str = 'cpu') -> BitMasks:
        """Packs masks of any kind, in chunks."""
        height, width = masks.height, masks.width
        step = max(1, _CHUNK_PIXELS // max(1, height * width))
        right = _bytes_of_row(width) * _WINDOW + 1 - width - 1
        packed = [np.zeros((0, (height + 2) * _bytes_of_row(width)), np.uint8)]
        for start in range(0, len(masks), step):
            bitmaps = masks[start : start + step].to_tensor(torch.bool, 'cpu').numpy()
            framed = np.pad(bitmaps, ((0, 0), (1, 1), (1, right)))
            windows = np.lib.stride_tricks.sliding_window_view(framed, _WINDOW + 1, axis=2)[:, :, ::_WINDOW]
            packed.append(np.packbits(windows, axis=-1, bitorder='little').reshape(len(bitmaps), -1))
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
        places = torch.addcmul(points.new_tensor(0.5), points, points.new_tensor([width, height]))
        column, row = places.int().unbind(-1)
        window = column // _WINDOW
        shift = (column - window * _WINDOW).to(torch.uint8)
        above = (row * _bytes_of_row(width) + window).long()
        corners = (self._at(above) >> shift & 3) | (self._at(above + _bytes_of_row(width)) >> shift & 3) << 2
        values = (corners == 15).float()
        # Only points on the boundary of a mask need interpolation; they are few.
        mixed = ((corners > 0) & (corners < 15)).nonzero(as_tuple=True)
        x, y = places.frac().expand(len(self), -1, -1)[mixed].unbind(-1)
        top_left, top_right, left, right = ((corners[mixed] >> bit & 1).float() for bit in range(4))
        values[mixed] = torch.lerp(torch.lerp(top_left, top_right, x), torch.lerp(left, right, x), y)
        return values

    def _at(self, indices: Tensor) -> Tensor:
        """(N, P) bytes at (N, P) or (1, P) indices."""
        return self.bits.gather(1, indices.expand(len(self), -1))


def _bytes_of_row(width: int) -> int:
    return width // _WINDOW + 1


def uncertain_points(
    embed: Tensor, feature: Tensor, num_points: int, oversample_ratio: float, importance_ratio: float
) -> Iterator[tuple[slice, Tensor]]:
    """Yields random points for chunks of masks, most of them where the mask is most uncertain.

    If the masks fit into one chunk, the random numbers are drawn in the order of MMDetection's
    `get_uncertain_point_coords_with_randomness`.

    Args:
        embed: (N, C) mask embeddings of one image.
        feature: (C, h, w) mask feature; its product with the embeddings is the logits.
        num_points: Number of points for each mask.
        oversample_ratio: Number of candidates for each point.
        importance_ratio: Fraction of the points that are the most uncertain candidates, in [0, 1].

    Yields:
        Slice of the masks, and their (n, num_points, 2) points as x, y in [0, 1].
    """
    num_candidates, num_uncertain = int(num_points * oversample_ratio), int(importance_ratio * num_points)
    step = max(1, _CHUNK_POINTS // num_candidates)
    for start in range(0, len(embed), step):
        chunk = embed[start : start + step]
        candidates = torch.rand(len(chunk), num_candidates, 2, device=embed.device)
        certainty = logits_at(chunk, feature, candidates).abs_()
        chosen = certainty.topk(num_uncertain, dim=1, largest=False, sorted=False).indices
        points = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        others = torch.rand(len(chunk), num_points - num_uncertain, 2, device=embed.device)
        yield slice(start, start + len(chunk)), torch.cat([points, others], dim=1)


def logits_at(embed: Tensor, feature: Tensor, points: Tensor) -> Tensor:
    """(N, P) float32 mask logits at the points of each mask.

    Args:
        embed: (N, C) mask embeddings.
        feature: (C, h, w) mask feature.
        points: (N, P, 2) as x, y in [0, 1].
    """
    logits = torch.einsum('nc,chw->nhw', embed, feature)
    return point_sample(logits[:, None].float(), points)[:, 0]
