"""CascadePSP, the supervised mask refiner of the paper, from the authors' package.

The package ``segmentation-refinement`` is an optional dependency: it needs torchvision, and masks refined by it are not
label-free. Crops, sizes and thresholds follow UnSAM.

Source: Cheng et al., "CascadePSP", CVPR 2020; UnSAM, divide_and_conquer/cascadepsp.py (rewritten).
"""

from __future__ import annotations

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.ops import extent, mask_iou

_LONG_SIDE_PX = (100, 900)
_THRESHOLD = 128
_MAX_RELATIVE_AREA = 0.9
_MIN_IOU = 0.5
_HOW_TO_INSTALL = (
    'CascadePSP is not installed: pip install segmentation-refinement (it needs torchvision, and downloads its weights '
    'on first use). Its weights are supervised: masks refined by it are not unsupervised'
)


class CascadePSPRefiner:
    """Refines masks one at a time with the package ``segmentation-refinement``, in its fast mode.

    Crops, sizes and thresholds are tested with a mock of the network; the authors' weights have not been run in this
    project.

    Args:
        device: Torch device.

    Raises:
        UnSAMError: If the package is not installed.
    """

    def __init__(self, device: str = 'cpu') -> None:
        try:
            import segmentation_refinement
        except ImportError as error:
            raise UnSAMError(_HOW_TO_INSTALL) from error
        self._network = segmentation_refinement.Refiner(device=device)

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        """The (H, W) bool refined mask, or None if it is rejected.

        A mask is rejected if it is empty, if the refined mask covers more than 0.9 of the image, or if the IoU of the
        refined mask with the original is below 0.5.

        Args:
            image: (H, W, 3) uint8 RGB.
            mask: (H, W) bool.
        """
        if not mask.any():
            return None
        rows, columns = _crop(mask)
        long_side_px = np.clip(max(rows.stop - rows.start, columns.stop - columns.start), *_LONG_SIDE_PX)
        # The examples of the package read images with OpenCV, as BGR.
        image_bgr = np.ascontiguousarray(image[rows, columns, ::-1])
        mask_uint8 = mask[rows, columns].astype(np.uint8) * 255
        refined = np.zeros_like(mask)
        refined[rows, columns] = (
            self._network.refine(image_bgr, mask_uint8, fast=True, L=int(long_side_px)) > _THRESHOLD
        )
        is_kept = refined.mean() <= _MAX_RELATIVE_AREA and mask_iou(mask, refined) >= _MIN_IOU
        return refined if is_kept else None


def _crop(mask: np.ndarray) -> tuple[slice, slice]:
    """A square crop around the centre of the mask's box, with twice its longer side, clipped to the image."""
    top, bottom, left, right = extent(mask)
    sides = ((top, bottom), (left, right))
    reach = max(last - first for first, last in sides)
    return tuple(
        slice(int(max(0, (first + last) / 2 - reach)), int(min(length, (first + last) / 2 + reach)))
        for (first, last), length in zip(sides, mask.shape, strict=True)
    )
