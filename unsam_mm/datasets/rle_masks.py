"""Instance masks as RLEs, with the interface of MMDetection's `BitmapMasks`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from typing import Any

import mmcv
import numpy as np
import torch
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes, get_box_type
from mmdet.structures.mask.structures import BitmapMasks

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import (
    Rle,
    areas_and_boxes,
    decode_crop,
    encode_bitmaps,
    encode_runs,
    join_runs,
    rles_from_json,
    run_edges,
)

_CHUNK_PIXELS = 1 << 24
"""Maximum number of pixels in a chunk of decoded masks: four masks of 2250 x 1500 px."""


@dataclass(frozen=True)
class Segments:
    """The pixels of N masks: S segments, each the rows y0 <= y < y1 of one column of one mask.

    Segments are sorted by mask, column and row, and do not overlap.

    Attributes:
        mask: (S,) int64 index of the mask.
        x: (S,) int64 column.
        y0: (S,) int64 first row.
        y1: (S,) int64 end, exclusive, larger than y0.
        size_hw: Height and width of the image in pixels.
    """

    mask: np.ndarray
    x: np.ndarray
    y0: np.ndarray
    y1: np.ndarray
    size_hw: tuple[int, int]

    @classmethod
    def from_rles(cls, rles: list[Rle], size_hw: tuple[int, int]) -> Segments:
        """Segments of compressed RLEs, whose runs are split at the ends of columns."""
        height = size_hw[0]
        edges = [run_edges(rle) for rle in rles]
        mask = np.repeat(np.arange(len(rles)), [len(runs) for runs in edges])
        start, end = np.concatenate([np.zeros((0, 2), np.int64), *edges]).T
        first, last = start // height, (end - 1) // height
        n_columns = last - first + 1
        run = np.repeat(np.arange(len(start)), n_columns)
        x = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(n_columns) - n_columns, n_columns)
        y0 = np.where(x == first[run], start[run] - first[run] * height, 0)
        y1 = np.where(x == last[run], end[run] - last[run] * height, height)
        return cls(mask[run], x, y0, y1, size_hw)

    def to_rles(self, n_masks: int) -> list[Rle]:
        """Compressed RLEs; adjacent segments are joined to runs."""
        start, end = (self.x * self.size_hw[0] + y for y in (self.y0, self.y1))
        firsts = np.searchsorted(self.mask, np.arange(n_masks + 1)).tolist()
        return [
            encode_runs(join_runs(start[first:stop], end[first:stop]), self.size_hw) for first, stop in pairwise(firsts)
        ]

    def flipped(self, horizontal: bool, vertical: bool) -> Segments:
        """The segments after a horizontal or vertical flip, or both."""
        height, width = self.size_hw
        x = width - 1 - self.x if horizontal else self.x
        y0, y1 = (height - self.y1, height - self.y0) if vertical else (self.y0, self.y1)
        return self._sorted(self.mask, x, y0, y1, self.size_hw)

    def cropped(self, y0: int, y1: int, x0: int, x1: int) -> Segments:
        """The segments inside of a box, in coordinates of the box."""
        top, bottom = np.maximum(self.y0, y0) - y0, np.minimum(self.y1, y1) - y0
        kept = np.flatnonzero((self.x >= x0) & (self.x < x1) & (top < bottom))
        return Segments(self.mask[kept], self.x[kept] - x0, top[kept], bottom[kept], (y1 - y0, x1 - x0))

    def placed(self, top: int, left: int, height: int, width: int) -> Segments:
        """The segments after translation by `top` and `left` into a larger image."""
        return Segments(self.mask, self.x + left, self.y0 + top, self.y1 + top, (height, width))

    def resampled(self, rows: np.ndarray, columns: np.ndarray) -> Segments:
        """The segments after nearest-neighbour resizing.

        Args:
            rows: (height,) int64, non-decreasing: the source row of each new row.
            columns: (width,) int64, non-decreasing: the source column of each new column.
        """
        size_hw = (len(rows), len(columns))
        y0, y1 = np.searchsorted(rows, self.y0), np.searchsorted(rows, self.y1)
        first, end = np.searchsorted(columns, self.x), np.searchsorted(columns, self.x, side='right')
        kept = np.flatnonzero((y0 < y1) & (first < end))
        times = (end - first)[kept]
        old = np.repeat(kept, times)
        x = first[old] + np.arange(len(old)) - np.repeat(np.cumsum(times) - times, times)
        return self._sorted(self.mask[old], x, y0[old], y1[old], size_hw)

    @classmethod
    def _sorted(
        cls, mask: np.ndarray, x: np.ndarray, y0: np.ndarray, y1: np.ndarray, size_hw: tuple[int, int]
    ) -> Segments:
        place = (mask * size_hw[1] + x) * size_hw[0] + y0
        order = np.argsort(place)
        return cls(mask[order], x[order], y0[order], y1[order], size_hw)


def _in_chunks(method: Callable[..., BitmapMasks]) -> Callable[..., RleMasks]:
    """A method of `BitmapMasks` for `RleMasks`: decodes, transforms and encodes the masks in chunks.

    Args:
        method: Its first argument is the height and width of the result; pixels above 0 in the result belong to a mask.
    """

    @wraps(method)
    def transform(self: RleMasks, out_shape: Sequence[int], *arguments: Any, **named: Any) -> RleMasks:
        rles, step = self.rles, _chunk_length(self.size_hw)  # `rles` may encode at each access, so it is read once
        transformed = []
        for start in range(0, len(rles), step):
            chunk = RleMasks(rles[start : start + step], *self.size_hw).to_bitmap()
            transformed += encode_bitmaps(method(chunk, tuple(out_shape), *arguments, **named).masks > 0)
        return RleMasks(transformed, *out_shape, self.scores)

    return transform


class RleMasks(BitmapMasks):
    """N masks of one image as COCO RLEs.

    A `BitmapMasks` that is decoded lazily. Flips, crops, pads and nearest-neighbour resizes operate on the runs, with
    the same results; rotations and other interpolations decode, transform and encode the masks in chunks. Pixels take
    memory only in `to_ndarray`, `to_tensor`, `to_bitmap` and NumPy functions, and from the first access of `masks` on,
    since MMDetection's transforms write into that array.

    Args:
        masks: N RLEs, compressed (bytes or text) or plain, or an (N, H, W) array whose pixels above 0 belong to a mask.
        height: Height of the image in pixels.
        width: Width of the image in pixels.
        scores: (N,) non-negative scores, which no transform changes; by default 1.

    Raises:
        UnSAMError: If a mask is malformed or has another size, or the number of scores differs from that of the masks.
    """

    def __init__(
        self, masks: Sequence[Rle] | np.ndarray, height: int, width: int, scores: np.ndarray | None = None
    ) -> None:
        self.height, self.width = int(height), int(width)
        self._bitmaps: np.ndarray | None = None
        if isinstance(masks, np.ndarray) or (len(masks) and isinstance(masks[0], np.ndarray)):
            masks = _encoded_in_chunks(np.asarray(masks))
        self._rles = rles_from_json(masks, self.size_hw)
        self.scores = np.ones(len(self._rles), np.float32) if scores is None else np.asarray(scores, np.float32)
        if self.scores.shape != (len(self._rles),):
            raise UnSAMError(f'scores must be ({len(self._rles)},), one for each mask, got {self.scores.shape}')

    @classmethod
    def from_bitmaps(cls, masks: np.ndarray) -> RleMasks:
        """Encodes bitmaps of shape (N, H, W), in chunks."""
        return cls(masks, *masks.shape[1:])

    def __getstate__(self) -> dict[str, Any]:
        """The state with RLEs instead of pixels."""
        return self.__dict__ | {'_rles': self.rles, '_bitmaps': None}

    @property
    def rles(self) -> list[Rle]:
        """N compressed RLEs."""
        return self._rles if self._bitmaps is None else _encoded_in_chunks(self._bitmaps)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the decoded array: (N, H, W)."""
        return len(self), self.height, self.width

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) uint8, decoded on first access; it stays in memory, and writing into it changes the masks.

        Can be set to an array of the same shape; non-zero pixels belong to a mask.

        Raises:
            UnSAMError: If the new array has another shape.
        """
        if self._bitmaps is None:
            self._bitmaps = self.to_ndarray()
        return self._bitmaps

    @masks.setter
    def masks(self, bitmaps: np.ndarray) -> None:
        if np.shape(bitmaps) != self.shape:
            raise UnSAMError(f'masks must be {self.shape} (masks, height, width), got {np.shape(bitmaps)}')
        self._bitmaps = np.asarray(bitmaps, np.uint8)

    @property
    def areas(self) -> np.ndarray:
        """(N,) int64 areas in pixels."""
        return areas_and_boxes(self.rles)[0]

    def __len__(self) -> int:
        return len(self._rles)

    def __getitem__(self, index: Any) -> RleMasks:
        """The masks at an integer, slice, list, or array or tensor of indices or booleans, as `RleMasks`."""
        index = index.numpy(force=True) if isinstance(index, torch.Tensor) else index
        if isinstance(index, list):
            index = np.asarray(index, np.int64 if not index else None)
        kept = np.atleast_1d(np.arange(len(self))[index])
        rles = self.rles
        return RleMasks([rles[i] for i in kept], *self.size_hw, self.scores[kept])

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W) uint8 masks, one after the other."""
        return (RleMasks([rle], *self.size_hw).to_ndarray()[0] for rle in self.rles)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """(N, H, W) decoded array, for NumPy functions."""
        return self.to_ndarray().astype(dtype or np.uint8, copy=False)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(num_masks={len(self)}, height={self.height}, width={self.width})'

    def get_bboxes(self, dst_type: str | type[BaseBoxes] = 'hbox') -> BaseBoxes:
        """Boxes x0, y0, x1, y1 with exclusive right and bottom edges; zeros for an empty mask."""
        box_type = get_box_type(dst_type)[1] if isinstance(dst_type, str) else dst_type
        if issubclass(box_type, HorizontalBoxes):
            return box_type(areas_and_boxes(self.rles)[1].astype(np.float32))
        return box_type.from_instance_masks(self.to_bitmap())

    def flip(self, flip_direction: str = 'horizontal') -> RleMasks:
        """Mirrors the masks.

        Args:
            flip_direction: 'horizontal', 'vertical' or 'diagonal' (both).

        Raises:
            UnSAMError: If the direction is unknown.
        """
        if flip_direction not in ('horizontal', 'vertical', 'diagonal'):
            raise UnSAMError(f"flip_direction must be 'horizontal', 'vertical' or 'diagonal', got {flip_direction!r}")
        horizontal, vertical = flip_direction != 'vertical', flip_direction != 'horizontal'
        return self._encoded(self._segments().flipped(horizontal, vertical))

    def crop(self, bbox: np.ndarray) -> RleMasks:
        """Crops the masks; masks outside of the crop become empty.

        Args:
            bbox: (4,) x0, y0, x1, y1 in pixels, clipped to the image. The result has at least one row and column.
        """
        x0, x1 = np.clip(bbox[0::2], 0, self.width).astype(int)
        y0, y1 = np.clip(bbox[1::2], 0, self.height).astype(int)
        rows_and_columns = (y0, y0 + max(y1 - y0, 1), x0, x0 + max(x1 - x0, 1))
        return self._encoded(self._segments().cropped(*rows_and_columns))

    def pad(self, out_shape: Sequence[int], pad_val: int = 0) -> RleMasks:
        """Pads at the bottom and the right; padding belongs to every mask if `pad_val` is not 0.

        Raises:
            UnSAMError: If `out_shape` is smaller than the masks.
        """
        height, width = map(int, out_shape)
        if height < self.height or width < self.width:
            raise UnSAMError(f'cannot pad {self.height} x {self.width} px to {height} x {width}; crop instead')
        if pad_val:
            return _in_chunks(BitmapMasks.pad)(self, (height, width), pad_val)
        return self._encoded(self._segments().placed(0, 0, height, width))

    def expand(self, expanded_h: int, expanded_w: int, top: int, left: int) -> RleMasks:
        """Places the masks into a larger image, with their upper left corner at row `top` and column `left`."""
        return self._encoded(self._segments().placed(top, left, expanded_h, expanded_w))

    def rescale(self, scale: float | tuple[int, int], interpolation: str = 'nearest') -> RleMasks:
        """Resizes without a change of the aspect ratio; see `mmcv.rescale_size`."""
        width, height = mmcv.rescale_size(self.size_hw[::-1], scale)
        return self.resize((height, width), interpolation)

    def resize(self, out_shape: Sequence[int], interpolation: str = 'nearest') -> RleMasks:
        """Resizes to (height, width)."""
        height, width = map(int, out_shape)
        if interpolation == 'nearest':
            rows, columns = _sources(self.height, height), _sources(self.width, width)
            return self._encoded(self._segments().resampled(rows, columns))
        return _in_chunks(BitmapMasks.resize)(self, (height, width), interpolation)

    translate = _in_chunks(BitmapMasks.translate)
    shear = _in_chunks(BitmapMasks.shear)
    rotate = _in_chunks(BitmapMasks.rotate)

    def crop_and_resize(
        self,
        bboxes: np.ndarray | torch.Tensor,
        out_shape: Sequence[int],
        inds: np.ndarray | torch.Tensor,
        device: str = 'cpu',
        interpolation: str = 'bilinear',
        binarize: bool = True,
    ) -> BitmapMasks:
        """See `BitmapMasks.crop_and_resize`, used by two-stage heads; decodes the masks in `inds` only."""
        inds = inds.numpy(force=True) if isinstance(inds, torch.Tensor) else np.asarray(inds)
        named, position = np.unique(inds, return_inverse=True)
        bitmaps = self[named.astype(np.int64)].to_bitmap()
        return bitmaps.crop_and_resize(bboxes, tuple(out_shape), position, device, interpolation, binarize)

    def to_ndarray(self) -> np.ndarray:
        """(N, H, W) uint8 decoded masks, a copy."""
        if self._bitmaps is not None:
            return self._bitmaps.copy()
        bitmaps = np.zeros((len(self), *self.size_hw), np.uint8)
        for i, box, pixels in self._decoded_crops():
            bitmaps[i][box] = pixels
        return bitmaps

    def to_tensor(self, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
        """(N, H, W) tensor of the given dtype on the given device, without an intermediate array of all masks."""
        masks = torch.zeros((len(self), *self.size_hw), dtype=dtype, device=device)
        for i, box, pixels in self._decoded_crops():
            masks[i][box] = torch.from_numpy(pixels).to(device, dtype)
        return masks

    def to_bitmap(self) -> BitmapMasks:
        """The masks as MMDetection's `BitmapMasks`."""
        return BitmapMasks(self.to_ndarray(), *self.size_hw)

    @classmethod
    def cat(cls, masks: Sequence[BitmapMasks]) -> RleMasks:
        """Concatenates the masks of one or more sets of the same height and width."""
        masks = [each if isinstance(each, RleMasks) else cls.from_bitmaps(each.masks) for each in masks]
        rles = [rle for each in masks for rle in each.rles]
        return cls(rles, *masks[0].size_hw, np.concatenate([each.scores for each in masks]))

    def _decoded_crops(self) -> Iterator[tuple[int, tuple[slice, slice], np.ndarray]]:
        """Yields the index, the box as row and column slices, and the (h, w) bool crop of each non-empty mask."""
        rles = self.rles
        areas, boxes = areas_and_boxes(rles)
        for i in np.flatnonzero(areas).tolist():
            x0, y0, x1, y1 = boxes[i].tolist()
            yield i, (slice(y0, y1), slice(x0, x1)), decode_crop(rles[i], (x0, y0, x1, y1))

    def _segments(self) -> Segments:
        return Segments.from_rles(self.rles, self.size_hw)

    def _encoded(self, segments: Segments) -> RleMasks:
        return RleMasks(segments.to_rles(len(self)), *segments.size_hw, self.scores)


def _encoded_in_chunks(bitmaps: np.ndarray) -> list[Rle]:
    """RLEs of (N, H, W) bitmaps whose pixels above 0 belong to a mask."""
    step = _chunk_length(bitmaps.shape[1:])
    return [rle for start in range(0, len(bitmaps), step) for rle in encode_bitmaps(bitmaps[start : start + step] > 0)]


def _chunk_length(size_hw: Sequence[int]) -> int:
    return max(1, _CHUNK_PIXELS // max(1, size_hw[0] * size_hw[1]))


def _sources(length: int, out_length: int) -> np.ndarray:
    """(out_length,) int64: source index of each pixel of a resized line.

    Computed by OpenCV, which resizes the image, since rounding differs between libraries and versions.
    """
    line = np.arange(length, dtype=np.float32)[None]
    return mmcv.imresize(line, (out_length, 1), interpolation='nearest', backend='cv2')[0].astype(np.int64)
