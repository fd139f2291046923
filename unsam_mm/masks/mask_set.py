"""A set of masks of an image as COCO run-length encodings, with scores and parents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.granularity import area_granularity
from unsam_mm.masks.rle import Rle, decode_rles, encode_bitmaps, rle_to_json


@dataclass(frozen=True, eq=False)
class MaskSet:
    """Masks of one image, best first.

    Attributes:
        rles: N run-length encodings, ``{'size': [H, W], 'counts': bytes}``.
        scores: (N,) float32 in [0, 1]; descending in sets from `MaskHierarchy.select`.
        parents: (N,) int64 index, within this set, of the smallest mask that contains this one; -1 if none does.
        areas: (N,) int64 in pixels.
        boxes_xyxy: (N, 4) float32 in pixels; right and bottom edges exclusive.
        size_hw: Height and width of the image in pixels.

    Raises:
        UnSAMError: If fields differ in length or dtype, or values are out of range: scores outside [0, 1], areas larger
            than the image, parents outside the set or in a cycle. Run lengths are not checked; use
            `unsam_mm.masks.rle.rles_from_json` for untrusted encodings.
    """

    rles: list[Rle]
    scores: np.ndarray
    parents: np.ndarray
    areas: np.ndarray
    boxes_xyxy: np.ndarray
    size_hw: tuple[int, int]

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in ('rles', 'scores', 'parents', 'areas', 'boxes_xyxy')}
        if len(set(lengths.values())) != 1:
            raise UnSAMError(f'MaskSet fields must have one length, got {lengths}')
        if len(self.size_hw) != 2 or not all(isinstance(side, int | np.integer) and side > 0 for side in self.size_hw):
            raise UnSAMError(f'MaskSet size_hw must be height and width in pixels, got {self.size_hw}')
        for name, (kinds, shape) in _FIELDS.items():
            values = np.asarray(getattr(self, name))
            if values.shape[1:] != shape or (len(values) and values.dtype.kind not in kinds):
                raise UnSAMError(
                    f'MaskSet {name} must be numbers of shape {("N", *shape)}, got {values.dtype}{values.shape}'
                )
        n_pixels = int(self.size_hw[0]) * int(self.size_hw[1])
        limits = {'scores': (0, 1), 'areas': (0, n_pixels), 'parents': (-1, len(self) - 1)}
        for name, (low, high) in limits.items():
            values = np.asarray(getattr(self, name))
            if (wrong := ~((values >= low) & (values <= high))).any():  # NaN is not in any range
                at = int(wrong.argmax())
                raise UnSAMError(f'MaskSet {name} must lie in [{low}, {high}], got {values[at]} at mask {at}')
        if not np.isfinite(self.boxes_xyxy).all():
            raise UnSAMError('MaskSet boxes_xyxy must be finite')
        if (in_cycle := _ancestors_beyond(np.asarray(self.parents)) >= 0).any():
            raise UnSAMError(f'MaskSet parents form a cycle at mask {int(in_cycle.argmax())}')

    @classmethod
    def from_bitmaps(cls, masks: np.ndarray, scores: np.ndarray | None = None) -> MaskSet:
        """A mask set from boolean masks of shape (N, H, W); parents are found by containment.

        Args:
            masks: Array of shape (N, H, W); non-zero pixels belong to the mask.
            scores: (N,) floats in [0, 1]; by default ones.

        Raises:
            UnSAMError: If the masks have another shape, or a score is out of range.
        """
        masks = np.asarray(masks, bool)
        if masks.ndim != 3:
            raise UnSAMError(f'masks must have the shape (N, H, W), got {masks.shape}; one mask is masks[None]')
        rles = encode_bitmaps(masks)
        areas = masks.sum(axis=(1, 2), dtype=np.int64)
        size_hw = masks.shape[1:]
        return cls(
            rles=rles,
            scores=np.ones(len(masks), np.float32) if scores is None else np.asarray(scores, np.float32),
            parents=_parents_by_containment(masks, areas),
            areas=areas,
            boxes_xyxy=_boxes_of_bitmaps(masks),
            size_hw=size_hw,
        )

    @cached_property
    def granularity(self) -> np.ndarray:
        """(N,) float32 in [0, 1], see `unsam_mm.masks.granularity`: 1 is the whole image."""
        return area_granularity(self.areas, max(self.size_hw[0] * self.size_hw[1], 1)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.rles)

    def __iter__(self) -> Iterator[MaskSet]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int | slice | np.ndarray | list[int]) -> MaskSet:
        """The masks at `index` as a new set; a parent that is left out is replaced by its nearest ancestor in the set.

        Raises:
            IndexError: If an index is out of range.
        """
        kept = np.atleast_1d(np.arange(len(self))[index])
        position = np.full(len(self) + 1, -1)
        position[kept] = np.arange(len(kept))
        parents = self.parents[kept]
        while (lost := (parents >= 0) & (position[parents] < 0)).any():
            parents = np.where(lost, self.parents[parents], parents)
        return MaskSet(
            rles=[self.rles[i] for i in kept],
            scores=self.scores[kept],
            parents=np.where(parents >= 0, position[parents], -1),
            areas=self.areas[kept],
            boxes_xyxy=self.boxes_xyxy[kept],
            size_hw=self.size_hw,
        )

    def to_bitmaps(self) -> np.ndarray:
        """Boolean masks of shape (N, H, W). They take N * H * W bytes; slice large sets first."""
        return decode_rles(self.rles, self.size_hw)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO result records of the masks, with the additional keys `granularity` and `parent` (index in the list)."""
        boxes_xywh = self.boxes_xyxy.copy()
        boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
        return [
            {
                'image_id': image_id,
                'category_id': 1,
                'segmentation': rle_to_json(rle),
                'area': int(self.areas[i]),
                'bbox': [float(side) for side in boxes_xywh[i]],
                'score': round(float(self.scores[i]), 6),
                'granularity': round(float(self.granularity[i]), 6),
                'parent': int(self.parents[i]),
            }
            for i, rle in enumerate(self.rles)
        ]


_FIELDS = {
    'scores': ('f', ()),
    'parents': ('iu', ()),
    'areas': ('iu', ()),
    'boxes_xyxy': ('fiu', (4,)),
}
"""Dtype kinds and item shape of each field."""


def _ancestors_beyond(parents: np.ndarray) -> np.ndarray:
    """(N,) ancestor of each mask at a distance of N or more; -1 unless parents form a cycle."""
    ancestors = parents
    for _ in range(len(parents).bit_length()):  # doubles the distance
        ancestors = np.where(ancestors >= 0, ancestors[ancestors], -1)
    return ancestors


def _boxes_of_bitmaps(masks: np.ndarray) -> np.ndarray:
    boxes = np.zeros((len(masks), 4), np.float32)
    for i, mask in enumerate(masks):
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(ys):
            boxes[i] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return boxes


def _parents_by_containment(masks: np.ndarray, areas: np.ndarray) -> np.ndarray:
    parents = np.full(len(masks), -1, np.int64)
    order = np.argsort(areas, kind='stable')
    for rank, i in enumerate(order):
        for j in order[rank + 1 :]:
            if areas[j] > areas[i] and not (masks[i] & ~masks[j]).any():
                parents[i] = j
                break
    return parents
