"""CascadePSP, the supervised mask refiner of the paper, from the authors' package.

The package ``segmentation-refinement`` is an optional dependency: it needs torchvision, and masks refined by it are not
label-free. Crops, sizes and thresholds follow UnSAM.

Source: Cheng et al., "CascadePSP", CVPR 2020; UnSAM, divide_and_conquer/cascadepsp.py (re-written).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unsam_mm.errors import UnSAMError, WeightsError, explained
from unsam_mm.masks.ops import extent, mask_iou

_LONG_SIDE_PX = (100, 900)
_THRESHOLD = 128
_MAX_RELATIVE_AREA = 0.9
_MIN_IOU = 0.5
_WEIGHTS_NAME = 'model'  # the file name that the package expects
_HOW_TO_INSTALL = (
    'CascadePSP is not installed: pip install segmentation-refinement (it needs torchvision, and downloads its weights '
    'on first use). Its weights are supervised: masks refined by it are not unsupervised'
)


class CascadePSPRefiner:
    """Refines masks one at a time with the package ``segmentation-refinement``, in its fast mode.

    Crops, sizes and thresholds are tested with a mock of the network; the authors' weights have not been run in this
    project.

    Args:
        checkpoint: The authors' weights, a file named ``model``, or its folder. By default the package downloads them.
        device: Torch device.

    Attributes:
        supervised: True: the weights were trained on human labels.

    Raises:
        UnSAMError: If the package is not installed.
        WeightsError: If the checkpoint is missing or cannot be used.
    """

    supervised = True

    def __init__(self, checkpoint: str | Path | None = None, device: str = 'cpu') -> None:
        try:
            import segmentation_refinement
        except ImportError as error:
            raise UnSAMError(_HOW_TO_INSTALL) from error
        if checkpoint is None:
            self._network = segmentation_refinement.Refiner(device=device)
            return
        path = Path(checkpoint)
        path = path / _WEIGHTS_NAME if path.is_dir() else path
        if path.name != _WEIGHTS_NAME or not path.is_file():
            raise WeightsError(f'{path}: expected the weights of CascadePSP in a file named "{_WEIGHTS_NAME}"')
        try:
            # Without the check, which would overwrite an unknown file with a download.
            self._network = segmentation_refinement.Refiner(
                device=device, model_folder=str(path.parent), download_and_check_model=False
            )
        except (RuntimeError, KeyError, EOFError, AttributeError) as error:
            raise WeightsError(
                f'{path}: not the weights of CascadePSP ({explained(error)}); fetch them again'
            ) from error

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        """The refined mask, or None if it is rejected.

        A mask is rejected if it is empty before or after, if it covers more than 0.9 of the image, or if the IoU of the
        refined mask with the original is below 0.5.

        Args:
            image: (H, W, 3) uint8 RGB.
            mask: (H, W) bool.

        Raises:
            UnSAMError: If the sizes differ.
        """
        mask = np.asarray(mask, bool)
        if mask.shape != image.shape[:2]:
            raise UnSAMError(f'the mask has shape {mask.shape}, its image {image.shape[:2]}; expected the same')
        if not mask.any():
            return None
        rows, columns = _crop(mask)
        long_side = max(rows.stop - rows.start, columns.stop - columns.start)
        refined = np.zeros_like(mask)
        refined[rows, columns] = self._refine(
            image[rows, columns], mask[rows, columns], int(np.clip(long_side, *_LONG_SIDE_PX))
        )
        is_kept = refined.mean() <= _MAX_RELATIVE_AREA and mask_iou(mask, refined) >= _MIN_IOU
        return refined if is_kept else None

    def _refine(self, image: np.ndarray, mask: np.ndarray, long_side_px: int) -> np.ndarray:
        # The examples of the package read images with OpenCV, as BGR.
        image_bgr: Any = np.ascontiguousarray(image[..., ::-1])
        return self._network.refine(image_bgr, mask.astype(np.uint8) * 255, fast=True, L=long_side_px) > _THRESHOLD


def _crop(mask: np.ndarray) -> tuple[slice, slice]:
    """A square crop around the centre of the mask's box, with twice its longer side, clipped to the image."""
    top, bottom, left, right = extent(mask)
    sides = ((top, bottom), (left, right))
    reach = max(last - first for first, last in sides)
    return tuple(
        slice(int(max(0, (first + last) / 2 - reach)), int(min(length, (first + last) / 2 + reach)))
        for (first, last), length in zip(sides, mask.shape, strict=True)
    )
