"""Visualizer for images with hundreds of nested masks."""

from __future__ import annotations

import colorsys

import numpy as np
from mmdet.registry import VISUALIZERS
from mmdet.structures.mask.structures import BaseInstanceMasks
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData

from unsam_mm.evaluation.coco_metric import to_numpy
from unsam_mm.masks.rle import decode_rles, rles_from_json

_GOLDEN_RATIO = 0.618034
"""Step between hues; with the golden ratio, hues are distinct for any number of masks."""


@VISUALIZERS.register_module()
class UnSAMVisualizer(DetLocalVisualizer):
    """`DetLocalVisualizer` for class-agnostic masks.

    Masks are run-length encodings, bitmaps (arrays or tensors) or MMDetection's masks. Each mask is filled with a
    different colour and outlined in white. Large masks are painted first, so that a part is on top of the whole object.
    Boxes and labels are not drawn: all labels are the same.

    Args:
        max_masks: Maximum number of masks per image, best scores first.
        alpha: Opacity of the fill, in [0, 1].
        name: Name of the instance.
        vis_backends: Configs of the backends that store pictures.
        save_dir: Folder of the backends; set by the runner.
    """

    def __init__(
        self,
        max_masks: int = 100,
        alpha: float = 0.5,
        name: str = 'visualizer',
        vis_backends: list[dict] | None = None,
        save_dir: str | None = None,
    ) -> None:
        super().__init__(name=name, vis_backends=vis_backends, save_dir=save_dir, alpha=alpha)
        self.max_masks = max_masks

    def _draw_instances(
        self, image: np.ndarray, instances: InstanceData, classes: list[str] | None, palette: list | None
    ) -> np.ndarray:
        """(H, W, 3) uint8 picture: the masks of `instances` on an RGB image."""
        painted = paint_masks(image, self._best_masks(instances, image.shape[:2]), self.alpha)
        self.set_image(painted)
        return painted

    def _best_masks(self, instances: InstanceData, size_hw: tuple[int, int]) -> np.ndarray:
        """(N, H, W) bool masks, at most `max_masks`, best scores first; without scores, in their order."""
        if 'masks' not in instances:
            return np.zeros((0, *size_hw), bool)
        masks = instances.masks
        best = np.arange(len(masks))
        if 'scores' in instances:
            best = np.argsort(-np.asarray(to_numpy(instances.scores)), kind='stable')
        best = best[: self.max_masks]
        if isinstance(masks, list):
            return decode_rles(rles_from_json([masks[i] for i in best], size_hw), size_hw)
        if isinstance(masks, BaseInstanceMasks):
            return masks[best].to_ndarray().astype(bool)
        return np.asarray(to_numpy(masks))[best].astype(bool)


def paint_masks(image: np.ndarray, masks: np.ndarray, alpha: float) -> np.ndarray:
    """Fills masks with distinct colours, large masks first, and outlines what remains visible of each.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (N, H, W) bool, best first; colours follow this order.
        alpha: Opacity of the fill, in [0, 1].

    Returns:
        (H, W, 3) uint8 RGB.
    """
    top = np.zeros(image.shape[:2], np.int32)  # 1 + index of the visible mask at each pixel; 0: no mask
    for i in np.argsort(-masks.sum(axis=(1, 2)), kind='stable'):
        top[masks[i]] = i + 1
    colours = np.array([colorsys.hsv_to_rgb(i * _GOLDEN_RATIO % 1, 0.8, 1.0) for i in range(len(masks) + 1)]) * 255
    opacity = np.where(top > 0, alpha, 0.0)[..., None]
    painted = image * (1 - opacity) + colours[top] * opacity
    painted[_outlines(top)] = 255
    return np.rint(painted).astype(np.uint8)


def _outlines(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels whose right or lower neighbour has another label."""
    edges = np.zeros(labels.shape, bool)
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:-1] |= labels[:-1] != labels[1:]
    return edges
