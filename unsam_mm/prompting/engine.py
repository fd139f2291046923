"""The interface of engines for the predictor and the mask generator."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.prompting.prompt import Prompt


class Engine(Protocol):
    """Predicts masks for one image at a time.

    Setting a new image replaces the state of the previous one without modifying it, so `copy.copy` of an engine keeps
    its image and shares the networks.

    Attributes:
        name: 'tree', 'model' or 'detector'.
        device: Name of the torch device of its networks.
    """

    name: str
    device: str

    @property
    def signature(self) -> str | None:
        """A hash of all that embeddings depend on besides the image; None if unknown."""

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width of the image; None if none is set."""

    def set_image(self, rgb: np.ndarray) -> None:
        """Computes the embedding of an (H, W, 3) uint8 RGB image."""

    def reset_image(self) -> None:
        """Removes the image."""

    def answer(
        self, prompt: Prompt, multimask_output: bool, granularity: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(C, H, W) bool masks and (C,) float32 scores."""

    def all_masks(
        self, max_masks: int, min_area_px: int, points_per_side: int, max_iou: float
    ) -> tuple[MaskSet, np.ndarray]:
        """The masks of the image, best first, and their stability, (N,) float32 in [0, 1]."""

    def embedding(self) -> dict[str, np.ndarray]:
        """The embedding of the image as named arrays, which can replace `set_image` in a later session.

        Raises:
            UnSAMError: If no image is set.
        """

    def set_embedding(self, arrays: dict[str, np.ndarray]) -> None:
        """Restores an embedding from `embedding`.

        Raises:
            UnSAMError: If the arrays are inconsistent or of another kind.
        """

    def to(self, device: str) -> Engine:
        """Moves the networks to a device; returns itself."""
