"""`UnSAMAutomaticMaskGenerator`, with the interface of ``segment_anything.SamAutomaticMaskGenerator``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import Rle, decode_crop, decode_rles, encode_crop, rle_to_json, run_edges
from unsam_mm.next_click import deepest_pixel
from unsam_mm.prompting.engine import Engine
from unsam_mm.prompting.enlarged import remove_equal
from unsam_mm.prompting.planes import LazyArray
from unsam_mm.prompting.predictor import UnSAMPredictor

_NEIGHBOURS = np.ones((3, 3), bool)  # pixels are 8-connected
_POINT_SIDE_PX = 1024  # larger masks are subsampled to this size to find their inner point


class UnSAMAutomaticMaskGenerator:
    """Generates all masks of an image.

    Scores rank the masks of one image. They are not estimates of IoU, so thresholds for Segment Anything do not apply.
    For the engine 'tree', the stability of a mask is the range of merge heights in which the region persists, relative
    to the height of the root. For the engine 'model', it is the IoU of the mask with the prediction for its largest
    region at its granularity.

    Args:
        model: A predictor or an engine; its image is replaced.
        points_per_side: The engine 'model' predicts masks for at most ``points_per_side ** 2`` seed regions. No effect
            for the engine 'tree'.
        points_per_batch: No effect, since memory is bounded anyway; accepted for compatibility.
        pred_iou_thresh: Masks with a lower score are removed.
        stability_score_thresh: Masks with a lower stability are removed.
        stability_score_offset: Must be 1.0; stability does not depend on a threshold offset.
        box_nms_thresh: For the engine 'model', masks with a larger IoU with a better mask are removed.
        crop_n_layers: Must be 0. Large images are processed in tiles by `UnSAMPredictor(tile_px=...)`.
        crop_nms_thresh: No effect without crops; accepted for compatibility.
        crop_overlap_ratio: No effect without crops; accepted for compatibility.
        crop_n_points_downscale_factor: No effect without crops; accepted for compatibility.
        point_grids: Must be None.
        min_mask_region_area: Holes with fewer pixels are filled, and connected components with fewer pixels are removed.
            If all components of a mask are smaller, the largest remains. Masks that become equal are merged.
        output_mode: 'binary_mask', 'uncompressed_rle' or 'coco_rle'.
        max_masks: Maximum number of masks.

    Raises:
        UnSAMError: If the output mode is unknown, a number is out of range, or an argument is not supported.
    """

    def __init__(
        self,
        model: UnSAMPredictor | Engine,
        points_per_side: int = 16,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.0,
        stability_score_thresh: float = 0.0,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.95,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: list[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: str = 'binary_mask',
        max_masks: int = 1000,
    ) -> None:
        if output_mode not in ('binary_mask', 'uncompressed_rle', 'coco_rle'):
            raise UnSAMError(f'output_mode must be binary_mask, uncompressed_rle or coco_rle, got {output_mode!r}')
        if max_masks < 1 or int(max_masks) != max_masks:
            raise UnSAMError(f'max_masks must be a whole number of at least 1, got {max_masks}')
        if point_grids is not None or points_per_side is None or points_per_side < 1:
            raise UnSAMError(
                'point_grids must be None and points_per_side at least 1; masks are predicted for regions, not for points'
            )
        if stability_score_offset != 1.0:
            raise UnSAMError(
                f'stability_score_offset must be 1.0, got {stability_score_offset}; stability does not depend on a threshold '
                'offset; use stability_score_thresh'
            )
        if crop_n_layers != 0:
            raise UnSAMError(
                f'crop_n_layers must be 0, got {crop_n_layers}; for large images use a predictor with tile_px=1024, which '
                'processes them in tiles'
            )
        for name, value in (
            ('pred_iou_thresh', pred_iou_thresh),
            ('stability_score_thresh', stability_score_thresh),
            ('box_nms_thresh', box_nms_thresh),
        ):
            if math.isnan(value):
                raise UnSAMError(f'{name} must be a number, got {value}')
        if min_mask_region_area < 0:
            raise UnSAMError(f'min_mask_region_area must not be negative, got {min_mask_region_area}')
        self.predictor = model if isinstance(model, UnSAMPredictor) else UnSAMPredictor(model)
        self._points_per_side, self._max_iou, self._max_masks = points_per_side, box_nms_thresh, max_masks
        self._min_score, self._min_stability = pred_iou_thresh, stability_score_thresh
        self._min_area_px, self._output_mode = min_mask_region_area, output_mode

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        """One record for each mask.

        Args:
            image: (H, W) or (H, W, 3 or 4); see `unsam_mm.images.as_rgb_uint8`.

        Returns:
            Records with Segment Anything's keys `segmentation`, `area`, `bbox` (x, y, width, height), `predicted_iou`,
            `point_coords` (one point well inside the mask), `stability_score`, `crop_box`; and `granularity` and
            `parent` (index in this list, or -1).

        Raises:
            ImageError: If the array is not an image that can be segmented.
        """
        self.predictor.set_image(image)
        return self._records()

    def generate_plane(
        self, plane: LazyArray | Sequence[LazyArray], limits: tuple[float, float] | None = None
    ) -> list[dict[str, Any]]:
        """One record for each mask of a plane that is read in tiles; see `UnSAMPredictor.set_plane`.

        With an output mode other than 'binary_mask' no array of the size of the plane is allocated. A parent contains
        at least 95 % of a mask.

        Raises:
            ImageError: If the array is not one plane.
            UnSAMError: If the predictor was made without `tile_px`.
        """
        self.predictor.set_plane(plane, limits)
        return self._records()

    def _records(self) -> list[dict[str, Any]]:
        masks, stability = self.predictor.engine.all_masks(self._max_masks, 1, self._points_per_side, self._max_iou)
        if self._min_area_px > 0:
            rles = [
                _cleaned(rle, box, self._min_area_px) for rle, box in zip(masks.rles, masks.boxes_xyxy, strict=True)
            ]
            masks = MaskSet.from_rles(rles, masks.scores, masks.size_hw, masks.parents)
            masks, stability = remove_equal(masks, stability)
        kept = (masks.scores >= self._min_score) & (stability >= self._min_stability)
        masks, stability = masks[kept], stability[kept]
        height, width = masks.size_hw
        records = []
        for i, coco in enumerate(masks.to_coco(image_id=0)):
            records.append(
                {
                    'segmentation': self._encode(masks.rles[i]),
                    'area': coco['area'],
                    'bbox': coco['bbox'],
                    'predicted_iou': coco['score'],
                    'point_coords': [_inner_point(masks.rles[i], masks.boxes_xyxy[i])],
                    'stability_score': float(stability[i]),
                    'crop_box': [0, 0, width, height],
                    'granularity': coco['granularity'],
                    'parent': coco['parent'],
                }
            )
        return records

    def _encode(self, rle: Rle) -> Any:
        height, width = rle['size']
        if self._output_mode == 'binary_mask':
            return decode_rles([rle], (height, width))[0]
        if self._output_mode == 'coco_rle':
            return rle_to_json(rle)
        counts = np.diff(run_edges(rle).ravel(), prepend=0, append=height * width).tolist()
        return {'size': [height, width], 'counts': counts if counts[-1] else counts[:-1]}


def _cleaned(rle: Rle, box_xyxy: np.ndarray, min_area_px: int) -> Rle:
    """Fills small holes, then removes small components, like Segment Anything's `remove_small_regions`."""
    height, width = rle['size']
    x0, y0, x1, y1 = (int(side) for side in box_xyxy)
    # The box is padded by `min_area_px`, so that the background around the mask is not filled as a hole.
    x0, y0, x1, y1 = (
        max(x0 - min_area_px, 0),
        max(y0 - min_area_px, 0),
        min(x1 + min_area_px, width),
        min(y1 + min_area_px, height),
    )
    mask = decode_crop(rle, (x0, y0, x1, y1))
    mask = mask | _small_parts(~mask, min_area_px)
    small = _small_parts(mask, min_area_px)
    if (small == mask).all():
        parts, _ = ndimage.label(mask, _NEIGHBOURS)
        small &= parts != 1 + np.bincount(parts[mask] - 1).argmax()
    return encode_crop(mask & ~small, y0, x0, (height, width))


def _small_parts(mask: np.ndarray, min_area_px: int) -> np.ndarray:
    """(H, W) bool: the connected components of an (H, W) bool mask that are smaller than an area."""
    parts, _ = ndimage.label(mask, _NEIGHBOURS)
    is_small = np.bincount(parts.ravel()) < min_area_px
    is_small[0] = False
    return is_small[parts]


def _inner_point(rle: Rle, box_xyxy: np.ndarray) -> list[float]:
    """x, y of the pixel of a mask farthest from its boundary; approximate for large masks."""
    x0, y0, x1, y1 = (int(side) for side in box_xyxy)
    crop = decode_crop(rle, (x0, y0, x1, y1))
    step = max(crop.shape) // _POINT_SIDE_PX + 1
    step = step if crop[::step, ::step].any() else 1
    (x, y), _ = deepest_pixel(crop[::step, ::step])
    return [float(x0 + x * step), float(y0 + y * step)]
