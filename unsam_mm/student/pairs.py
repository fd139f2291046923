"""Input tensors of the region model: features of each region and distances of each pair of regions."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from unsam_mm.masks.granularity import area_granularity
from unsam_mm.masks.partition import Partition
from unsam_mm.student.tokens import RegionTokens

OTHER_DISTANCES = 5
"""Number of further distances of a pair: position, log position, feature, colour, height in the first tree."""

APPEARANCE_DIM = 11
"""Number of channels for the colour and size of a region."""

_TINY = 1e-12


@dataclass(frozen=True, eq=False)
class RegionInputs:
    """The network inputs for one image, as float32 tensors on one device; see `RegionTokens` for L, T, E, C.

    Attributes:
        areas_px: (L,).
        features: (L, 2 C) patch features in two versions, both times 4: minus the mean of the image and divided by the
            mean norm, and normalised to unit length.
        appearance: (L, 11) scaled values: colour minus the mean of the image, colour, standard deviation of the colour,
            log area relative to the image, log area.
        centres_yx: (L, 2) centres divided by the longer side of the image.
        pairs: (L, L, T + 5); for each tree the granularity of the lowest common ancestor of two regions, then the
            distances of `OTHER_DISTANCES`.
        edges: (E, 2) int64 pairs of adjacent regions.
        edge_lengths_px: (E,).
        edge_strengths: (E,) divided by the mean along all edges of the image.
        border_share: (L,) fraction of the pixels at the border of the image.
        size_hw: Height and width of the image in pixels.
    """

    areas_px: Tensor
    features: Tensor
    appearance: Tensor
    centres_yx: Tensor
    pairs: Tensor
    edges: Tensor
    edge_lengths_px: Tensor
    edge_strengths: Tensor
    border_share: Tensor
    size_hw: tuple[int, int]

    @classmethod
    def from_tokens(cls, tokens: RegionTokens) -> RegionInputs:
        """The inputs for the tokens of an image, on the CPU."""
        areas = torch.from_numpy(tokens.areas_px.astype(np.float32))
        share = (areas / areas.sum())[:, None]
        features = torch.from_numpy(tokens.features.astype(np.float32))
        centred = features - (features * share).sum(0)
        centred = centred / (centred.norm(dim=1) * share[:, 0]).sum().clamp(min=_TINY)
        lab = torch.from_numpy(tokens.lab_mean.astype(np.float32)) / 50
        spread = torch.from_numpy(tokens.lab_std.astype(np.float32)) / 20
        colour = lab - (lab * share).sum(0)
        sizes = torch.stack([(share[:, 0].log() + 7) / 2, (areas.log() - 5) / 2], dim=1)
        centres = torch.from_numpy(tokens.centres_yx) / max(tokens.size_hw)
        lengths = torch.from_numpy(tokens.edge_lengths_px)
        strengths = torch.from_numpy(tokens.edge_strengths)
        typical = (strengths * lengths).sum() / lengths.sum().clamp(min=1)
        return cls(
            areas_px=areas,
            features=torch.cat([centred, normalize(features, dim=1)], dim=1) * 4,
            appearance=torch.cat([colour, lab, spread, sizes], dim=1),
            centres_yx=centres,
            pairs=_pairs(tokens, centres, normalize(centred, dim=1), colour),
            edges=torch.from_numpy(tokens.edges.astype(np.int64)),
            edge_lengths_px=lengths,
            edge_strengths=strengths / (typical + 1e-6),
            border_share=torch.from_numpy(Partition(tokens.labels).border_share.astype(np.float32)),
            size_hw=tokens.size_hw,
        )

    def __len__(self) -> int:
        return len(self.areas_px)

    @property
    def n_trees(self) -> int:
        """Number of trees."""
        return self.pairs.shape[-1] - OTHER_DISTANCES

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.areas_px.device

    def to(self, device: str | torch.device) -> RegionInputs:
        """The same inputs on another device."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self) if field.name != 'size_hw'}
        return replace(self, **{name: values.to(device) for name, values in tensors.items()})

    def flipped(self) -> RegionInputs:
        """The inputs for the horizontally flipped image; only the positions change."""
        height, width = self.size_hw
        y, x = self.centres_yx.unbind(1)
        return replace(self, centres_yx=torch.stack([y, (width - 1) / max(height, width) - x], dim=1))


def _pairs(tokens: RegionTokens, centres: Tensor, directions: Tensor, colour: Tensor) -> Tensor:
    """(L, L, T + 5) distances; see `RegionInputs.pairs`."""
    n_trees, n_tokens = tokens.tree_orders.shape
    orders = tokens.tree_orders.astype(np.int64)
    areas = tokens.areas_px.astype(np.float64)
    own = area_granularity(torch.from_numpy(areas), areas.sum()).float().numpy()
    pairs = np.zeros((n_tokens, n_tokens, n_trees + OTHER_DISTANCES), np.float32)
    node_areas = _ancestor_areas(orders, tokens.tree_heights, areas)
    ancestor_granularity = area_granularity(torch.from_numpy(node_areas), areas.sum()).float().numpy()
    _largest_gaps(orders, ancestor_granularity, pairs[:, :, :n_trees])
    pairs[np.arange(n_tokens), np.arange(n_tokens), :n_trees] = own[:, None]
    _largest_gaps(orders[:1], tokens.tree_heights[:1], pairs[:, :, -1:])
    pairs = torch.from_numpy(pairs)
    # Without matrix products, whose rounding gives non-zero distances of a region to itself and differs between
    # devices.
    place = torch.cdist(centres, centres, compute_mode='donot_use_mm_for_euclid_dist')
    pairs[:, :, n_trees] = place
    pairs[:, :, n_trees + 1] = torch.log1p(place * 50) / 4
    pairs[:, :, n_trees + 2] = 1 - directions @ directions.T
    pairs[:, :, n_trees + 3] = torch.cdist(colour, colour, compute_mode='donot_use_mm_for_euclid_dist')
    return pairs


@numba.njit(nogil=True, cache=True)
def _ancestor_areas(orders, heights, areas):
    """(T, L - 1) float64 area of the lowest common ancestor of each pair of consecutive regions of each order.

    The gap between two consecutive regions has the height of their ancestor. On both sides of the gap the ancestor
    extends to the next gap of larger height.
    """
    n_trees, n_tokens = orders.shape
    found = np.zeros((n_trees, max(n_tokens - 1, 0)))
    cumulative = np.zeros(n_tokens + 1)
    for tree in range(n_trees):
        for place in range(n_tokens):
            cumulative[place + 1] = cumulative[place] + areas[orders[tree, place]]
        for gap in range(n_tokens - 1):
            first, last = gap, gap + 1
            while first > 0 and heights[tree, first - 1] <= heights[tree, gap]:
                first -= 1
            while last < n_tokens - 1 and heights[tree, last] <= heights[tree, gap]:
                last += 1
            found[tree, gap] = cumulative[last + 1] - cumulative[first]
    return found


@numba.njit(nogil=True, cache=True)
def _largest_gaps(orders, gaps, out):
    """Writes the largest of the gaps between any two regions in each order into (L, L, T) `out`."""
    n_trees, n_tokens = orders.shape
    for tree in range(n_trees):
        for first in range(n_tokens - 1):
            largest, one = np.float32(0), orders[tree, first]
            for last in range(first + 1, n_tokens):
                largest = max(largest, gaps[tree, last - 1])
                other = orders[tree, last]
                out[one, other, tree] = largest
                out[other, one, tree] = largest
