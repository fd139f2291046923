"""An engine that upsamples small images, so that objects of a few pixels are segmented more finely."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
from scipy import ndimage

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import decode_rles, encode_bitmaps
from unsam_mm.prompting.engine import Engine, WrappedEngine
from unsam_mm.prompting.prompt import NO_IMAGE, Prompt

_FACTOR = 2  # upsampling factor of both sides; the masks with a factor of three are worse
_HALF = _FACTOR**2 // 2  # a pixel belongs to a mask if at least this many pixels of its block do


class EnlargedEngine(WrappedEngine):
    """Wraps an engine and upsamples small images by two; prompts and masks refer to the original image.

    Args:
        engine: The wrapped engine; its image is replaced.
        max_side_px: Images whose longer side is larger are passed on unchanged.
    """

    def __init__(self, engine: Engine, max_side_px: int = 400) -> None:
        super().__init__(engine)
        self._max_side_px, self._factor = max_side_px, 1

    def __copy__(self) -> EnlargedEngine:
        copied = EnlargedEngine(copy.copy(self._engine), self._max_side_px)
        copied._factor = self._factor
        return copied

    @property
    def signature(self) -> str | None:
        """The signature of the wrapped engine with the upsampling parameters; None if it has none."""
        signature = self._engine.signature
        return None if signature is None else f'{signature} x{_FACTOR} up to {self._max_side_px} px'

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width of the original image in pixels; None if no image is set."""
        size_hw = self._engine.size_hw
        return None if size_hw is None else (size_hw[0] // self._factor, size_hw[1] // self._factor)

    @property
    def hierarchy(self) -> MaskHierarchy | None:
        """The region trees of the image; None if it was upsampled, since their size is that of the upsampled image."""
        return self._engine.hierarchy if self._factor == 1 else None

    def set_image(self, rgb: np.ndarray) -> None:
        factor = _FACTOR if max(rgb.shape[:2]) <= self._max_side_px else 1
        self._engine.set_image(rgb if factor == 1 else enlarged(rgb))
        self._factor = factor

    def reset_image(self) -> None:
        self._engine.reset_image()

    def answer(
        self, prompt: Prompt, multimask_output: bool, granularity: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(C, H, W) bool masks and (C,) float32 scores; of equal masks only the first is returned."""
        if self._factor == 1:
            return self._engine.answer(prompt, multimask_output, granularity)
        large, scores = self._engine.answer(_enlarged_prompt(prompt), multimask_output, granularity)
        counts = _block_counts(large)
        if granularity is not None:
            masks = np.array([_mask_of_area(count, prompt) for count in counts], bool).reshape(counts.shape)
            return masks, scores
        masks = counts >= _HALF
        thin = ~masks.any(axis=(1, 2))
        masks[thin] = counts[thin] > 0
        x, y = prompt.points_xy.T
        masks[:, y, x] = prompt.positive
        kept = np.unique(_first_of_equals([mask.tobytes() for mask in masks]))
        return masks[kept], scores[kept]

    def all_masks(
        self, max_masks: int, min_area_px: int, points_per_side: int, max_iou: float
    ) -> tuple[MaskSet, np.ndarray]:
        """The masks, best first, and their stability; of equal masks only the best is returned."""
        if self._factor == 1:
            return self._engine.all_masks(max_masks, min_area_px, points_per_side, max_iou)
        large, stability = self._engine.all_masks(max_masks, min_area_px * _FACTOR**2, points_per_side, max_iou)
        rles = [
            encode_bitmaps(_block_counts(decode_rles([rle], large.size_hw)) >= _HALF)[0] for rle in large.rles
        ]  # one by one, to save memory
        masks, stability = remove_equal(MaskSet.from_rles(rles, large.scores, self.size_hw, large.parents), stability)
        kept = masks.areas >= max(min_area_px, 1)
        return masks[kept], stability[kept]

    def embedding(self) -> dict[str, np.ndarray]:
        """The embedding of the image, with its upsampling factor."""
        if self._engine.size_hw is None:
            raise UnSAMError(NO_IMAGE)
        return {**self._engine.embedding(), 'factor': np.array([self._factor])}

    def set_embedding(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores an embedding that `embedding` returned; without a factor in the arrays, the factor is 1.

        Raises:
            UnSAMError: If the arrays are of another engine, or the factor does not match the size of the image.
        """
        rest = dict(arrays)
        given = np.ravel(rest.pop('factor', 1))
        factor = given.tolist() if given.dtype.kind in 'iu' else []
        engine = copy.copy(self._engine)
        engine.set_embedding(rest)
        if factor not in ([1], [_FACTOR]) or any(side % factor[0] for side in engine.size_hw):
            raise UnSAMError(
                f'the arrays are of an image of {engine.size_hw} px with the factor {str(given)[:20]}; expected [1] or '
                f'[{_FACTOR}] and sides divisible by it; make the embedding again'
            )
        self._engine, self._factor = engine, factor[0]

    def to(self, device: str) -> EnlargedEngine:
        self._engine = self._engine.to(device)
        return self


def enlarged(rgb: np.ndarray) -> np.ndarray:
    """(2H, 2W, 3) uint8: an (H, W, 3) uint8 image upsampled by two with bicubic interpolation."""
    import torch

    pixels = torch.from_numpy(np.array(rgb, np.float32, order='C')).permute(2, 0, 1)[None]
    large = torch.nn.functional.interpolate(pixels, scale_factor=_FACTOR, mode='bicubic', align_corners=False)
    return np.ascontiguousarray(large[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy())


def _enlarged_prompt(prompt: Prompt) -> Prompt:
    """A prompt in coordinates of the upsampled image; the mask input has the same resolution for all image sizes."""
    points = prompt.points_xy * _FACTOR + _FACTOR // 2
    box = None if prompt.box_xyxy is None else prompt.box_xyxy * _FACTOR
    return replace(prompt, points_xy=points, box_xyxy=box)


def _block_counts(masks: np.ndarray) -> np.ndarray:
    """(N, H, W) int8: number of pixels of each 2 x 2 block that belong to (N, 2H, 2W) bool masks."""
    count, height, width = masks.shape
    blocks = masks.reshape(count, height // _FACTOR, _FACTOR, width // _FACTOR, _FACTOR)
    return blocks.sum(axis=(2, 4), dtype=np.int8)


def _mask_of_area(counts: np.ndarray, prompt: Prompt) -> np.ndarray:
    """(H, W) bool mask with a quarter of the area of the upsampled mask: the blocks with the most pixels of that mask.

    So a larger upsampled mask never gives a smaller mask.

    Args:
        counts: (H, W) number of pixels of the upsampled mask in each block.
        prompt: Prompt in coordinates of the original image; the mask agrees with every click.
    """
    rank = counts + ndimage.uniform_filter(counts / _FACTOR**2, 3, mode='constant')  # ties: inner blocks first
    x, y = prompt.points_xy.T
    rank[y, x] = np.where(prompt.positive, np.inf, -np.inf)
    wanted = max(round(int(counts.sum()) / _FACTOR**2), int(counts.any()))
    size = min(max(wanted, np.isposinf(rank).sum()), rank.size - np.isneginf(rank).sum())
    mask = np.zeros(rank.size, bool)
    mask[np.argsort(-rank, axis=None, kind='stable')[:size]] = True
    return mask.reshape(rank.shape)


def remove_equal(masks: MaskSet, stability: np.ndarray) -> tuple[MaskSet, np.ndarray]:
    """Removes masks that are equal to an earlier mask.

    Args:
        masks: N masks.
        stability: (N,) stability of the masks.

    Returns:
        The remaining masks and their stability. The parent of a mask is its nearest ancestor that is not equal to it.
    """
    firsts = _first_of_equals([rle['counts'] for rle in masks.rles])
    parents = np.full(len(masks), -1, np.int64)
    for i, parent in enumerate(masks.parents):
        while parent >= 0 and firsts[parent] == firsts[i]:
            parent = masks.parents[parent]
        parents[i] = firsts[parent] if parent >= 0 else -1
    kept = np.unique(firsts)
    return replace(masks, parents=parents)[kept], stability[kept]


def _first_of_equals(keys: list[bytes]) -> np.ndarray:
    """(N,) int64 index of the first key equal to each key."""
    firsts: dict[bytes, int] = {}
    return np.array([firsts.setdefault(key, i) for i, key in enumerate(keys)], np.int64)
