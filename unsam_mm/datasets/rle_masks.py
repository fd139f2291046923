"""Instance masks that stay run lengths from the file to the head, in the form that MMDetection's transforms expect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mmcv
import numpy as np
import torch
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes, get_box_type
from mmdet.structures.mask.structures import BaseInstanceMasks, BitmapMasks

from unsam_mm.datasets.mask_segments import Segments
from unsam_mm.errors import UnSAMError
from unsam_mm.rle import Rle, encode_bitmaps, rles_from_json

_CHUNK_PIXELS = 1 << 24
"""Pixels decoded at once: five masks of 2250 x 1500."""


class RleMasks(BaseInstanceMasks):
    """N masks of one image as COCO run lengths.

    Stands in for `BitmapMasks`. Flips, crops, pads and nearest-neighbour resizes work on the runs and give the same
    masks; steps that mix pixels (rotations, other interpolations) decode, change and encode a few masks at a time. A
    pixel takes memory only in `to_ndarray`, `to_tensor`, `to_bitmap`, `masks` and NumPy's functions.

    Args:
        masks: N RLEs, compressed (bytes or text) or plain.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Raises:
        UnSAMError: If a mask has another size, or is no run lengths.
    """

    def __init__(self, masks: Sequence[Rle], height: int, width: int) -> None:
        self.height, self.width = int(height), int(width)
        self.rles = rles_from_json(masks, self.size_hw)

    @classmethod
    def from_bitmaps(cls, masks: np.ndarray) -> RleMasks:
        """Encodes bitmaps of shape (N, H, W), a few at a time."""
        step = _chunk_length(masks.shape[1:])
        rles = [rle for start in range(0, len(masks), step) for rle in encode_bitmaps(masks[start : start + step] > 0)]
        return cls(rles, *masks.shape[1:])

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the array that the masks decode to: (N, H, W)."""
        return len(self), self.height, self.width

    @property
    def ndim(self) -> int:
        """Of that array: 3."""
        return len(self.shape)

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) uint8, decoded anew each time; what is written into it is lost."""
        return self.to_ndarray()

    @property
    def areas(self) -> np.ndarray:
        """(N,) int64, in pixels."""
        return self._segments().areas(len(self))

    def __len__(self) -> int:
        return len(self.rles)

    def __getitem__(self, index: Any) -> RleMasks:
        """The masks at an integer, slice, list, or array or tensor of indices or truth values; always a set."""
        index = index.numpy(force=True) if isinstance(index, torch.Tensor) else index
        if isinstance(index, list):
            index = np.asarray(index, np.int64 if not index else None)
        kept = np.atleast_1d(np.arange(len(self))[index])
        return RleMasks([self.rles[i] for i in kept], *self.size_hw)

    def __iter__(self) -> Iterator[np.ndarray]:
        """(H, W) uint8 masks, one after the other."""
        return (self[i].to_ndarray()[0] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """(N, H, W), so that NumPy takes the masks for the array that they decode to."""
        return self.to_ndarray().astype(dtype or np.uint8, copy=False)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(num_masks={len(self)}, height={self.height}, width={self.width})'

    def get_bboxes(self, dst_type: str | type[BaseBoxes] = 'hbox') -> BaseBoxes:
        """Boxes x0, y0, x1, y1 with exclusive right and bottom edges; zeros for an empty mask."""
        box_type = get_box_type(dst_type)[1] if isinstance(dst_type, str) else dst_type
        if issubclass(box_type, HorizontalBoxes):
            return box_type(self._segments().boxes(len(self)))
        return box_type.from_instance_masks(self.to_bitmap())

    def flip(self, flip_direction: str = 'horizontal') -> RleMasks:
        """Mirrors the masks.

        Args:
            flip_direction: 'horizontal', 'vertical' or 'diagonal' (both).

        Raises:
            UnSAMError: If the direction is another one.
        """
        if flip_direction not in ('horizontal', 'vertical', 'diagonal'):
            raise UnSAMError(f"flip_direction must be 'horizontal', 'vertical' or 'diagonal', got {flip_direction!r}")
        horizontal, vertical = flip_direction != 'vertical', flip_direction != 'horizontal'
        return self._encoded(self._segments().flipped(horizontal, vertical))

    def crop(self, bbox: np.ndarray) -> RleMasks:
        """Cuts a window out; a mask outside of it becomes empty.

        Args:
            bbox: (4,) x0, y0, x1, y1 in pixels, cut to the image.
        """
        x0, x1 = np.clip(bbox[0::2], 0, self.width).astype(int)
        y0, y1 = np.clip(bbox[1::2], 0, self.height).astype(int)
        window = (y0, y0 + max(y1 - y0, 1), x0, x0 + max(x1 - x0, 1))
        return self._encoded(self._segments().cropped(*window))

    def pad(self, out_shape: Sequence[int], pad_val: int = 0) -> RleMasks:
        """Adds rows below and columns to the right, which belong to every mask if `pad_val` is not 0."""
        height, width = self._at_least(out_shape)
        if not pad_val:
            return self._encoded(self._segments().placed(0, 0, height, width))

        def fill(bitmaps: np.ndarray) -> np.ndarray:
            return np.pad(
                bitmaps, ((0, 0), (0, height - self.height), (0, width - self.width)), constant_values=pad_val
            )

        return self._through_bitmaps(fill, (height, width))

    def expand(self, expanded_h: int, expanded_w: int, top: int, left: int) -> RleMasks:
        """Places the masks into a larger frame."""
        return self._encoded(self._segments().placed(top, left, expanded_h, expanded_w))

    def rescale(self, scale: float | tuple[int, int], interpolation: str = 'nearest') -> RleMasks:
        """Resizes with the aspect ratio kept; see `mmcv.rescale_size`."""
        width, height = mmcv.rescale_size(self.size_hw[::-1], scale)
        return self.resize((height, width), interpolation)

    def resize(self, out_shape: Sequence[int], interpolation: str = 'nearest') -> RleMasks:
        """Resizes to (height, width)."""
        height, width = map(int, out_shape)
        if interpolation == 'nearest':
            rows, columns = _sources(self.height, height), _sources(self.width, width)
            return self._encoded(self._segments().resampled(rows, columns))
        return self._by_bitmap_masks('resize', (height, width), out_shape=(height, width), interpolation=interpolation)

    def translate(
        self,
        out_shape: Sequence[int],
        offset: float | tuple[float, float],
        direction: str = 'horizontal',
        border_value: int = 0,
        interpolation: str = 'bilinear',
    ) -> RleMasks:
        """See `BitmapMasks.translate`."""
        return self._by_bitmap_masks(
            'translate',
            out_shape,
            out_shape=tuple(out_shape),
            offset=offset,
            direction=direction,
            border_value=border_value,
            interpolation=interpolation,
        )

    def shear(
        self,
        out_shape: Sequence[int],
        magnitude: float,
        direction: str = 'horizontal',
        border_value: int = 0,
        interpolation: str = 'bilinear',
    ) -> RleMasks:
        """See `BitmapMasks.shear`."""
        return self._by_bitmap_masks(
            'shear',
            out_shape,
            out_shape=tuple(out_shape),
            magnitude=magnitude,
            direction=direction,
            border_value=border_value,
            interpolation=interpolation,
        )

    def rotate(
        self,
        out_shape: Sequence[int],
        angle: float,
        center: tuple[float, float] | None = None,
        scale: float = 1.0,
        border_value: int = 0,
        interpolation: str = 'bilinear',
    ) -> RleMasks:
        """See `BitmapMasks.rotate`."""
        return self._by_bitmap_masks(
            'rotate',
            out_shape,
            out_shape=tuple(out_shape),
            angle=angle,
            center=center,
            scale=scale,
            border_value=border_value,
            interpolation=interpolation,
        )

    def crop_and_resize(
        self,
        bboxes: np.ndarray | torch.Tensor,
        out_shape: Sequence[int],
        inds: np.ndarray | torch.Tensor,
        device: str = 'cpu',
        interpolation: str = 'bilinear',
        binarize: bool = True,
    ) -> BitmapMasks:
        """See `BitmapMasks.crop_and_resize`, which two-stage heads call; decodes the masks that `inds` names."""
        inds = inds.numpy(force=True) if isinstance(inds, torch.Tensor) else np.asarray(inds)
        named, position = np.unique(inds, return_inverse=True)
        bitmaps = self[named.astype(np.int64)].to_bitmap()
        return bitmaps.crop_and_resize(bboxes, tuple(out_shape), position, device, interpolation, binarize)

    def to_ndarray(self) -> np.ndarray:
        """(N, H, W) uint8."""
        bitmaps = np.zeros((len(self), *self.size_hw), np.uint8)
        for i, box, pixels in self._segments().drawn():
            bitmaps[i][box] = pixels
        return bitmaps

    def to_tensor(self, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
        """(N, H, W) in the type and on the device asked for; no other copy of it is made."""
        masks = torch.zeros((len(self), *self.size_hw), dtype=dtype, device=device)
        for i, box, pixels in self._segments().drawn():
            masks[i][box] = torch.from_numpy(pixels).to(device, dtype)
        return masks

    def to_bitmap(self) -> BitmapMasks:
        """The same masks as MMDetection's own class."""
        return BitmapMasks(self.to_ndarray(), *self.size_hw)

    @classmethod
    def cat(cls, masks: Sequence[RleMasks]) -> RleMasks:
        """Joins the masks of several sets of one size; at least one set."""
        return cls([rle for each in masks for rle in each.rles], *masks[0].size_hw)

    def _segments(self) -> Segments:
        return Segments.from_rles(self.rles, self.size_hw)

    def _encoded(self, segments: Segments) -> RleMasks:
        return RleMasks(segments.to_rles(len(self)), *segments.size_hw)

    def _through_bitmaps(self, change: Callable[[np.ndarray], np.ndarray], out_shape: Sequence[int]) -> RleMasks:
        """Masks made of N' bitmaps at a time, uint8 of shape (N', H, W)."""
        step = _chunk_length(self.size_hw)
        chunks = (self[start : start + step].to_ndarray() for start in range(0, len(self), step))
        return RleMasks([rle for chunk in chunks for rle in encode_bitmaps(change(chunk))], *out_shape)

    def _by_bitmap_masks(self, method: str, frame: Sequence[int], **arguments: Any) -> RleMasks:
        """What `BitmapMasks` makes of the masks; pixels that are not 0 belong to a mask."""
        return self._through_bitmaps(
            lambda bitmaps: getattr(BitmapMasks(bitmaps, *self.size_hw), method)(**arguments).masks > 0, frame
        )

    def _at_least(self, out_shape: Sequence[int]) -> tuple[int, int]:
        height, width = map(int, out_shape)
        if height < self.height or width < self.width:
            raise UnSAMError(f'cannot pad {self.height} x {self.width} px to {height} x {width}; crop instead')
        return height, width


def _chunk_length(size_hw: Sequence[int]) -> int:
    return max(1, _CHUNK_PIXELS // max(1, size_hw[0] * size_hw[1]))


def _sources(length: int, out_length: int) -> np.ndarray:
    """(out_length,) int64: which pixel of a line each pixel of the resized line repeats.

    The image library itself is asked, since libraries and their versions round in their own ways.
    """
    line = np.arange(length, dtype=np.float32)[None]
    return mmcv.imresize(line, (out_length, 1), interpolation='nearest', backend='cv2')[0].astype(np.int64)
