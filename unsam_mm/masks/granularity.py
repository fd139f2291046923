"""Granularity: how coarse a mask is, as one number that depends on nothing but its share of the image.

``1 + log10(area / image area) / 4``, clipped to [0, 1]: 1 is the whole image, a quarter less is a tenth of the area, and 0 is
a ten-thousandth of the image or less. A mask never has a larger one than a mask that holds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    Areas = TypeVar('Areas', np.ndarray, Tensor)

_DECADES = 4  # of area between the granularities 0 and 1


def area_granularity(areas_px: Areas, image_px: Areas | float) -> Areas:
    """(...) float granularity in [0, 1] of masks of (...) areas; of NumPy arrays or numbers, or of torch tensors.

    Args:
        areas_px: Areas in pixels; an empty mask has granularity 0.
        image_px: Area of the image in pixels.
    """
    share = areas_px / image_px
    if isinstance(share, np.ndarray | np.generic | float):
        with np.errstate(divide='ignore'):  # of empty masks
            logs = np.log10(share)
    else:
        logs = share.log10()
    return (1 + logs / _DECADES).clip(0, 1)


def granularity_area(granularity: float, image_px: float) -> float:
    """The area in pixels of a granularity; that of 0 is 0, since all small masks have granularity 0."""
    return image_px * 10.0 ** (_DECADES * (granularity - 1)) if granularity > 0 else 0.0


def nearest_area(areas_px: np.ndarray, wanted_px: float) -> int:
    """Index of the area that is nearest to the wanted one in logarithm; of equally near ones the first.

    Of the same areas, a larger wanted one never gives a smaller one.

    Args:
        areas_px: (N,) areas in pixels, at least one; an empty mask counts as one pixel.
        wanted_px: Area in pixels; 0 gives the smallest.
    """
    logs = np.log(np.maximum(areas_px, 1))
    return int(np.argmin(logs if wanted_px <= 0 else np.abs(logs - np.log(wanted_px))))
