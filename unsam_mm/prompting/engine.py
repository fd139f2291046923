"""The interface of engines for the predictor and the mask generator."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.prompting.planes import LazyPlane
from unsam_mm.prompting.prompt import Prompt
from unsam_mm.prompting.tile_pyramid import MaskCrop


class Engine:
    """Predicts masks for one image at a time.

    Setting a new image replaces the state of the previous one without modifying it. So a copy that `copy.copy` made
    before still has the previous image, and shares the networks. Engines implement the methods that raise
    `NotImplementedError`.

    Attributes:
        name: 'tree', 'model' or 'detector'.
        device: Name of the torch device of its networks.
        signature: Text that identifies everything besides the image on which embeddings depend; None if unknown.
        size_hw: Height and width of the image in pixels; None if no image is set.
        hierarchy: The region trees of the image; None if no image is set, or the engine has no trees of it.
    """

    name: str
    device: str
    signature: str | None = None
    size_hw: tuple[int, int] | None = None
    hierarchy: MaskHierarchy | None = None

    def set_image(self, rgb: np.ndarray) -> None:
        """Computes the embedding of an (H, W, 3) uint8 RGB image."""
        raise NotImplementedError

    def set_plane(self, plane: LazyPlane, store: str | Path | None = None) -> None:
        """Sets a plane whose tiles are read when a prompt needs them; see `UnSAMPredictor.set_plane`.

        Raises:
            UnSAMError: If the engine does not process tiles.
        """
        raise UnSAMError('planes are read in tiles; make the predictor with tile_px=1024')

    def set_hierarchy(self, hierarchy: MaskHierarchy) -> None:
        """Sets existing region trees in place of an image.

        Raises:
            UnSAMError: If the engine is not 'tree'.
        """
        raise UnSAMError(f"the engine {self.name!r} accepts no region tree; use UnSAMPredictor(engine='tree')")

    def reset_image(self) -> None:
        """Removes the image."""
        raise NotImplementedError

    def answer(
        self, prompt: Prompt, multimask_output: bool, granularity: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(C, H, W) bool masks and (C,) float32 scores; C is 0 if no mask agrees with the prompt."""
        raise NotImplementedError

    def crops(
        self, prompt: Prompt, multimask_output: bool, granularity: float | None
    ) -> tuple[list[MaskCrop], np.ndarray]:
        """Same as `answer`, but each mask is cropped to its box."""
        masks, scores = self.answer(prompt, multimask_output, granularity)
        return [MaskCrop.from_mask(mask) for mask in masks], scores

    def all_masks(
        self, max_masks: int, min_area_px: int, points_per_side: int, max_iou: float
    ) -> tuple[MaskSet, np.ndarray]:
        """The masks of the image, best first, and their stability, (N,) float32 in [0, 1]."""
        raise NotImplementedError

    def embedding(self) -> dict[str, np.ndarray]:
        """The embedding of the image as named arrays; `set_embedding` restores it without the image.

        Raises:
            UnSAMError: If no image is set.
        """
        raise NotImplementedError

    def set_embedding(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores an embedding that `embedding` returned, in place of `set_image`.

        Raises:
            UnSAMError: If the arrays are inconsistent or of another engine.
        """
        raise NotImplementedError

    def to(self, device: str) -> Engine:
        """Moves the networks to a device; returns itself."""
        raise NotImplementedError


class WrappedEngine(Engine):
    """Base of engines that wrap another engine.

    Args:
        engine: The wrapped engine; its image is replaced.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def name(self) -> str:
        """The name of the wrapped engine."""
        return self._engine.name

    @property
    def device(self) -> str:
        """The device of the wrapped engine."""
        return self._engine.device
