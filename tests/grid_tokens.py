"""Region tokens that need no ViT: the cells of a grid over a real image, merged row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from skimage.color import rgb2lab

from unsam_mm.student.tokens import RegionTokens, TokenMasks

N_TREES = 4


class GridTokenizer:
    """Stands in for `RegionTokenizer`; counts its calls.

    Args:
        side: Cells along each side of the image.
        n_features: Length of a token's feature, filled with its colour.
        n_masks: How many pseudo-masks an image has at most: its left half, its upper half, then single rows of cells.
    """

    def __init__(self, side: int = 6, n_features: int = 384, n_masks: int = 5) -> None:
        self.side, self.n_features, self.n_masks = side, n_features, n_masks
        self.calls = 0

    def with_masks(self, image: np.ndarray, max_masks: int = 300) -> tuple[RegionTokens, TokenMasks]:
        """Tokens and masks of an (H, W, 3) uint8 image."""
        self.calls += 1
        tokens = self._tokens(image)
        row, column = np.divmod(np.arange(len(tokens)), self.side)
        members = [column < self.side // 2, row < self.side // 2, *(row == i for i in range(self.side))]
        members = np.array(members[: min(self.n_masks, max_masks)], bool).reshape(-1, len(tokens))
        return tokens, TokenMasks(
            shares=members.astype(np.uint8) * 255,
            scores=np.linspace(0.9, 0.5, len(members)).astype(np.float32),
            areas_px=members @ tokens.areas_px.astype(np.int64),
        )

    def _tokens(self, image: np.ndarray) -> RegionTokens:
        height, width = image.shape[:2]
        y, x = np.mgrid[:height, :width]
        labels = (y * self.side // height) * self.side + x * self.side // width
        n = self.side**2
        areas = np.bincount(labels.ravel(), minlength=n)
        mean = lambda values: np.bincount(labels.ravel(), values.ravel(), minlength=n) / areas  # noqa: E731
        lab = np.stack([mean(channel) for channel in np.moveaxis(rgb2lab(image), -1, 0)], axis=1)
        features = np.resize(lab, (n, self.n_features)) + np.arange(self.n_features) % 7
        ids = np.arange(n)
        edges = np.stack([ids, ids + 1], axis=1)[ids % self.side < self.side - 1]
        return RegionTokens(
            labels=labels.astype(np.uint16),
            areas_px=areas.astype(np.int32),
            features=features.astype(np.float16),
            lab_mean=lab.astype(np.float16),
            lab_std=np.ones((n, 3), np.float16),
            centres_yx=np.stack([mean(y), mean(x)], axis=1).astype(np.float32),
            tree_orders=np.tile(ids, (N_TREES, 1)).astype(np.uint16),
            # Cells of a row merge before rows do.
            tree_heights=np.tile(np.where(ids[1:] % self.side, 0.3, 0.8), (N_TREES, 1)).astype(np.float32),
            edges=edges.astype(np.uint16),
            edge_lengths_px=np.full(len(edges), height / self.side, np.float32),
            edge_strengths=np.abs(lab[edges[:, 0], 0] - lab[edges[:, 1], 0]).astype(np.float32),
        )


def count_files(folder: Path) -> int:
    """Token files below a folder."""
    return len(list(folder.rglob('*.npz')))
