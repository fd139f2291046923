"""Clicks at pixels: which of them the network is told, and what is mended below the size of a region."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unsam_mm.region_model.clicks import ClickableImage, Clicks

_SLIVER = 0.5  # of the radius of a region: a click nearer than that to where the mask is right is not about the region


@dataclass(frozen=True, eq=False)
class PixelClicks:
    """What was pointed at, in pixels.

    A click that the mask for the others satisfies tells nothing new. One that it misses by little, less than half the radius
    of the region under it, is about a sliver along the outline: to the network it would mean the whole region, so a disc
    that reaches back to where the mask is right is added or taken instead. The network is told all other clicks; where
    two of different kinds lie in one region, it is split halfway between them.

    Attributes:
        image: Where.
        points_xy: (N, 2) int64 pixel coordinates inside the image.
        positive: (N,) bool.
        box_xyxy: (4,) float box in pixels, or None; needed if no click is positive.
        previous: (L,) float32 share of each region in an earlier mask, or None.
    """

    image: ClickableImage
    points_xy: np.ndarray
    positive: np.ndarray
    box_xyxy: np.ndarray | None = None
    previous: np.ndarray | None = None

    def answer(self, max_masks: int) -> tuple[np.ndarray, np.ndarray]:
        """(C, H, W) bool masks, best first, which agree with every click, and their (C,) float32 scores.

        Raises:
            UnSAMError: If there is neither a positive click nor a box.
        """
        told = np.zeros(len(self.positive), bool)
        if self.box_xyxy is None:
            told[: 1 + int(self.positive.argmax())] = True
        radii = np.full(len(told), np.nan)
        while True:
            # The masks for up to six answers come from the same questions as that for one.
            masks, scores = self._masks(told, max_masks)
            missed = self._missed(masks[0], told | ~np.isnan(radii)) if len(masks) else np.zeros(0, int)
            if len(missed) == 0:
                break
            radii[missed] = [self._sliver(masks[0], click) for click in missed]
            if not (large := missed[np.isnan(radii[missed])]).size:
                break
            told[large[0]] = True
            radii[missed] = np.nan  # the next answer may be right there
        x, y = self.points_xy.T
        agrees = (masks[:, y, x] == self.positive)[:, np.isnan(radii)].all(axis=1)  # the first does
        masks, scores = masks[agrees], scores[agrees]
        self._touch_up(masks, radii)
        return masks, scores

    def answer_at(self, granularity: float) -> tuple[np.ndarray, np.ndarray]:
        """(1, H, W) bool mask at a granularity, and its (1,) score; the network is told all clicks.

        Raises:
            UnSAMError: If there is neither a positive click nor a box.
        """
        told = np.ones(len(self.positive), bool)
        members, scores = self.image.answer_at(self._clicks(told), granularity)
        return self._bitmaps(members, told), scores

    def _masks(self, told: np.ndarray, max_masks: int) -> tuple[np.ndarray, np.ndarray]:
        members, scores = self.image.answer(self._clicks(told), max_masks)
        return self._bitmaps(members, told), scores

    def _clicks(self, told: np.ndarray) -> Clicks:
        """The clicks that the network is told, in terms of regions; one with clicks of both kinds counts as positive."""
        regions = self.image.regions_at(self.points_xy)
        positive = np.unique(regions[told & self.positive])
        negative = np.setdiff1d(regions[told & ~self.positive], positive)
        return Clicks(positive, negative, self.box_xyxy, self.previous)

    def _bitmaps(self, members: np.ndarray, told: np.ndarray) -> np.ndarray:
        """(C, H, W) bool; of regions with clicks of both kinds, what is nearer to a positive one."""
        masks, labels, points = self.image.bitmaps(members), self.image.tokens.labels, self.points_xy
        regions = self.image.regions_at(points)
        inside, outside = told & self.positive, told & ~self.positive
        for region in np.intersect1d(regions[inside], regions[outside]):
            y, x = np.nonzero(labels == region)
            pixels = np.stack([x, y], axis=1)
            nearest = [
                np.linalg.norm(pixels[:, None] - points[kind & (regions == region)], axis=2).min(axis=1)
                for kind in (inside, outside)
            ]
            masks[:, y, x] = nearest[0] <= nearest[1]
        return masks

    def _missed(self, mask: np.ndarray, done: np.ndarray) -> np.ndarray:
        x, y = self.points_xy.T
        return np.flatnonzero((mask[y, x] != self.positive) & ~done)

    def _sliver(self, mask: np.ndarray, click: int) -> float:
        """Distance in pixels from a missed click to where an (H, W) mask is right; NaN if that is far."""
        x, y = self.points_xy[click]
        region = self.image.tokens.labels[y, x]
        reach = max(_SLIVER * np.sqrt(self.image.tokens.areas_px[region] / np.pi), 1.0)
        rows, columns = (slice(max(0, int(at - reach)), int(at + reach) + 1) for at in (y, x))
        right_y, right_x = np.nonzero(mask[rows, columns] == self.positive[click])
        distance = np.hypot(right_y + rows.start - y, right_x + columns.start - x).min(initial=np.inf)
        return float(distance) if distance <= reach else np.nan

    def _touch_up(self, masks: np.ndarray, radii: np.ndarray) -> None:
        """Draws a disc around each click that has a radius into (C, H, W) masks, in place."""
        for (x, y), is_positive, radius in zip(self.points_xy, self.positive, radii, strict=True):
            if np.isnan(radius):
                continue
            rows, columns = (slice(max(0, int(at - radius)), int(at + radius) + 1) for at in (y, x))
            part = masks[:, rows, columns]
            row, column = np.ogrid[: part.shape[1], : part.shape[2]]
            part[:, np.hypot(row + rows.start - y, column + columns.start - x) <= radius] = is_positive
        x, y = self.points_xy.T
        masks[:, y, x] = self.positive  # a disc may have covered another click
