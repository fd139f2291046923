"""Granularity: the area of a mask relative to its image, on a logarithmic scale.

``1 + log10(area / image area) / 4``, clipped to [0, 1]: 1 is the whole image, 0.75 a tenth of its area, and 0 a
ten-thousandth or less. The granularity of a mask never exceeds that of a mask that contains it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    Areas = TypeVar('Areas', np.ndarray, Tensor)

_DECADES = 4  # powers of ten in area between the granularities 0 and 1


def area_granularity(areas_px: Areas, image_px: Areas | float) -> Areas:
    """(...) float granularities in [0, 1] of (...) areas, which are numbers, NumPy arrays or torch tensors.

    Args:
        areas_px: Areas in pixels; an empty mask has granularity 0.
        image_px: Area of the image in pixels, or (...) areas of several images.
    """
    share = areas_px / image_px
    if isinstance(share, np.ndarray | np.generic | float):
        with np.errstate(divide='ignore'):  # empty masks
            logs = np.log10(share)
    else:
        logs = share.log10()
    return (1 + logs / _DECADES).clip(0, 1)


def granularity_area(granularity: float, image_px: float) -> float:
    """The area in pixels at a granularity; 0 at the granularity 0, which all very small masks have in common."""
    return image_px * 10.0 ** (_DECADES * (granularity - 1)) if granularity > 0 else 0.0


def nearest_area(areas_px: np.ndarray, wanted_px: float) -> int:
    """Index of the area nearest to a wanted area on a logarithmic scale; the first of equally near areas.

    The result is monotone: a larger wanted area never gives a smaller area.

    Args:
        areas_px: (N,) areas in pixels, at least one; an empty mask counts as one pixel.
        wanted_px: Wanted area in pixels; 0 gives the smallest.
    """
    logs = np.log(np.maximum(areas_px, 1))
    return int(np.argmin(logs if wanted_px <= 0 else np.abs(logs - np.log(wanted_px))))
