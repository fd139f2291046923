"""What the predictor and the mask generator need of an engine."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.prompting.prompt import Prompt


class Engine(Protocol):
    """Finds masks in one image at a time.

    A new image takes the place of the one before it and changes nothing of that, so `copy.copy` of an engine keeps an image
    and shares the networks.

    Attributes:
        name: 'tree', 'model' or 'detector'.
        device: Name of the torch device of its networks.
    """

    name: str
    device: str

    @property
    def signature(self) -> str | None:
        """Differs whenever the embedding of the same image may differ; None if that is not known."""

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width of the image; None if none is set."""

    def set_image(self, rgb: np.ndarray) -> None:
        """Prepares an (H, W, 3) uint8 RGB image."""

    def reset_image(self) -> None:
        """Forgets the image."""

    def answer(
        self, prompt: Prompt, multimask_output: bool, granularity: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(C, H, W) bool masks and (C,) float32 scores."""

    def all_masks(
        self, max_masks: int, min_area_px: int, points_per_side: int, max_iou: float
    ) -> tuple[MaskSet, np.ndarray]:
        """The masks of the image, best first, and how stable each is, (N,) float32 in [0, 1]."""

    def embedding(self) -> dict[str, np.ndarray]:
        """What is known of the image, as arrays by name; with it, a later session need not see the image again.

        Raises:
            UnSAMError: If no image is set.
        """

    def set_embedding(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes back what `embedding` gave.

        Raises:
            UnSAMError: If the arrays do not go together or are of another kind.
        """

    def to(self, device: str) -> Engine:
        """Moves the networks; returns itself."""
