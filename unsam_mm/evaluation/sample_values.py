"""Masks and numbers of MMDetection's data samples in the one form that the metrics work on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unsam_mm._mmcv_ops import ensure_mmcv_ops
from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import Rle, encode_bitmaps

ensure_mmcv_ops()

from mmdet.structures.mask import BaseInstanceMasks  # noqa: E402  (mmdet imports only once the ops are there)


def to_rles(masks: Any) -> list[Rle]:
    """Run lengths of N masks given as RLEs, (N, H, W) tensor or array, or in any of MMDetection's classes.

    Raises:
        UnSAMError: If they are none of these.
    """
    if isinstance(masks, BaseInstanceMasks):
        if hasattr(masks, 'rles'):
            return list(masks.rles)
        return encode_bitmaps(masks.to_ndarray())
    if isinstance(masks, (list, tuple)) and all(isinstance(mask, Mapping) and 'counts' in mask for mask in masks):
        return list(masks)
    bitmaps = to_numpy(masks)
    if getattr(bitmaps, 'ndim', 0) != 3:
        raise UnSAMError(
            f'masks must be a list of RLEs, an (N, H, W) tensor or BitmapMasks, got {type(masks).__name__}'
        )
    return encode_bitmaps(bitmaps)


def to_numpy(values: Any) -> Any:
    """Tensors as arrays; anything else as it is."""
    return values.detach().cpu().numpy() if hasattr(values, 'detach') else values
