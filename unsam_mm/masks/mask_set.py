"""A set of masks of an image as COCO run-length encodings, with scores and parents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco_mask

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.granularity import area_granularity
from unsam_mm.masks.ops import parents_by_containment
from unsam_mm.masks.rle import (
    Rle,
    areas_and_boxes,
    decode_rles,
    encode_bitmaps,
    rle_from_json,
    rle_to_json,
    rles_from_json,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class MaskSet:
    """N masks of one image, with scores and parents.

    Attributes:
        rles: N run-length encodings, ``{'size': [H, W], 'counts': bytes}``.
        scores: (N,) float32 in [0, 1]; in descending order if the set is from `MaskHierarchy.select`.
        parents: (N,) int64 index, within this set, of the smallest mask that contains this one; -1 if none does.
        areas: (N,) int64 in pixels.
        boxes_xyxy: (N, 4) float32 in pixels; right and bottom edges exclusive.
        size_hw: Height and width of the image in pixels.

    Raises:
        UnSAMError: If fields differ in length, have another shape or dtype, or values are out of range: scores outside
            [0, 1], areas larger than the image, boxes that are not finite, parents outside the set or in a cycle. Run
            lengths are not checked; use `unsam_mm.masks.rle.rles_from_json` for untrusted encodings.
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
        if (in_cycle := _distant_ancestors(np.asarray(self.parents)) >= 0).any():
            raise UnSAMError(f'MaskSet parents form a cycle at mask {int(in_cycle.argmax())}')

    @classmethod
    def from_rles(
        cls,
        rles: Sequence[Mapping[str, Any]],
        scores: ArrayLike | None = None,
        size_hw: tuple[int, int] | None = None,
        parents: ArrayLike | None = None,
    ) -> MaskSet:
        """A mask set from run-length encodings, which are checked.

        Args:
            rles: N dictionaries with ``size`` and ``counts``; counts are COCO's compressed text or a list of run
                lengths.
            scores: (N,) floats in [0, 1]; by default ones.
            size_hw: Height and width of the image in pixels; by default those of the first encoding.
            parents: (N,) index of the parent of each mask, or -1; by default found by containment.

        Raises:
            UnSAMError: If an encoding is malformed or of another size, neither encodings nor a size are given, or
                scores or parents are invalid.
        """
        if size_hw is None and len(rles) == 0:
            raise UnSAMError('without masks the size of the image is unknown; pass size_hw=(height, width)')
        size_hw = tuple(rle_from_json(rles[0])['size']) if size_hw is None else tuple(size_hw)
        checked = rles_from_json(rles, size_hw)
        areas, boxes = areas_and_boxes(checked)
        try:
            scores = np.asarray(np.ones(len(checked)) if scores is None else scores, np.float32)
            parents = _parents(checked, areas) if parents is None else np.asarray(parents)
        except (TypeError, ValueError) as error:
            raise UnSAMError(f'scores and parents must be numbers, one for each mask: {error}') from error
        return cls(
            rles=checked,
            scores=scores,
            parents=parents,
            areas=areas,
            boxes_xyxy=boxes.astype(np.float32),
            size_hw=size_hw,
        )

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
        return cls.from_rles(encode_bitmaps(masks), scores, masks.shape[1:])

    @classmethod
    def from_coco(cls, records: Sequence[Mapping[str, Any]], size_hw: tuple[int, int] | None = None) -> MaskSet:
        """A mask set from the COCO annotations or results of one image, such as those of `to_coco`.

        Args:
            records: Dictionaries with an RLE as ``segmentation``. The score is ``score``, or SA-1B's ``predicted_iou``,
                or 1 if both are missing. ``parent`` is an index in this list, or -1; if a record has none, all parents
                are found by containment.
            size_hw: Height and width of the image in pixels; by default those of the first record.

        Raises:
            UnSAMError: If a segmentation is not an RLE, a value is out of range, or neither records nor a size are
                given.
        """
        for index, record in enumerate(records):
            if not isinstance(record.get('segmentation'), Mapping):
                raise UnSAMError(
                    f'record {index}: expected a segmentation as run lengths; convert polygons with '
                    'unsam_mm.coco_files.segmentations.read_rles, then use MaskSet.from_rles'
                )
        scores = [record.get('score', record.get('predicted_iou', 1.0)) for record in records]
        has_parents = len(records) > 0 and all('parent' in record for record in records)
        parents = [record['parent'] for record in records] if has_parents else None
        return cls.from_rles([record['segmentation'] for record in records], scores, size_hw, parents)

    @cached_property
    def granularity(self) -> np.ndarray:
        """(N,) float32 in [0, 1], see `unsam_mm.masks.granularity`: 1 is the whole image."""
        return area_granularity(self.areas, self.size_hw[0] * self.size_hw[1]).astype(np.float32)

    def __len__(self) -> int:
        return len(self.rles)

    def __iter__(self) -> Iterator[MaskSet]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int | slice | np.ndarray | list[int]) -> MaskSet:
        """The masks at `index` as a new set; a parent that is left out is replaced by its nearest remaining ancestor.

        Raises:
            IndexError: If an index is out of range.
        """
        kept = np.atleast_1d(np.arange(len(self))[index])
        new_index = np.full(len(self), -1)
        new_index[kept] = np.arange(len(kept))
        parents = self.parents[kept]
        while (is_missing := (parents >= 0) & (new_index[parents] < 0)).any():
            parents = np.where(is_missing, self.parents[parents], parents)
        return MaskSet(
            rles=[self.rles[i] for i in kept],
            scores=self.scores[kept],
            parents=np.where(parents >= 0, new_index[parents], -1),
            areas=self.areas[kept],
            boxes_xyxy=self.boxes_xyxy[kept],
            size_hw=self.size_hw,
        )

    def to_bitmaps(self) -> np.ndarray:
        """Boolean masks of shape (N, H, W). They take N * H * W bytes; slice large sets first.

        Raises:
            UnSAMError: If an encoding is damaged or has another size than the image.
        """
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

    def to_detections(self) -> Any:
        """The masks as `supervision.Detections`, with class 0, and `granularity` and `parent` as data.

        Raises:
            UnSAMError: If the package supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UnSAMError('supervision is not installed: pip install supervision') from error
        return supervision.Detections(
            xyxy=self.boxes_xyxy.astype(np.float32),
            mask=self.to_bitmaps(),
            confidence=self.scores.astype(np.float32),
            class_id=np.zeros(len(self), np.int64),
            data={'granularity': self.granularity, 'parent': self.parents},
        )

    def to_instance_data(self) -> Any:
        """The masks as `mmengine.structures.InstanceData`, with the tensors that MMDetection's detectors predict.

        These are `bboxes` (N, 4) float32, `scores` (N,) float32, `labels` (N,) int64 zeros and `masks` (N, H, W) bool;
        `granularity` (N,) float32 and `parents` (N,) int64 are added.

        Raises:
            UnSAMError: If MMEngine is not installed.
        """
        try:
            from mmengine.structures import InstanceData
        except ImportError as error:
            raise UnSAMError("MMEngine is not installed: pip install 'unsam_mm[mm]'") from error
        import torch

        return InstanceData(
            bboxes=torch.from_numpy(self.boxes_xyxy.astype(np.float32)),
            scores=torch.from_numpy(self.scores.astype(np.float32)),
            labels=torch.zeros(len(self), dtype=torch.long),
            masks=torch.from_numpy(self.to_bitmaps()),
            granularity=torch.from_numpy(self.granularity),
            parents=torch.from_numpy(self.parents.astype(np.int64)),
        )


_FIELDS = {
    'scores': ('f', ()),
    'parents': ('iu', ()),
    'areas': ('iu', ()),
    'boxes_xyxy': ('fiu', (4,)),
}
"""Dtype kinds and item shape of each field."""


def _distant_ancestors(parents: np.ndarray) -> np.ndarray:
    """(N,) ancestor of each mask N or more generations up; -1 unless parents form a cycle."""
    ancestors = parents
    for _ in range(len(parents).bit_length()):  # doubles the distance
        ancestors = np.where(ancestors >= 0, ancestors[ancestors], -1)
    return ancestors


def _parents(rles: list[Rle], areas: np.ndarray) -> np.ndarray:
    """(N,) parents by containment."""
    if len(rles) == 0:  # pycocotools returns a list then
        return np.zeros(0, np.int64)
    inside = coco_mask.iou(rles, rles, [1] * len(rles))  # with iscrowd=1: intersection over the area of the first
    return parents_by_containment((inside == 1) | (areas == 0)[:, None], areas)
