"""The prompts on one plane in pixels, for engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from skimage.draw import polygon2mask

from napari_unsam.model.plane import Plane
from napari_unsam.model.prompts import PendingObject, PointPrompt, Prompt, Prompts, ShapeKind, ShapePrompt

_LOGIT_SIDE_PX, _LOGIT_SCALE = 256, 8.0  # of the mask input of engines
_OVERSAMPLING = 4  # outlines are drawn this many times larger than the mask input, then averaged
_MAX_SAMPLES = 5  # maximum number of clicks for one scribble


@dataclass(frozen=True, eq=False)
class PlanePrompt:
    """The prompts of one object on one plane.

    Attributes:
        points_xy: (N, 2) float pixels inside the plane, x before y; None if there are no points.
        labels: (N,) int64, 1 for positive and 0 for negative points; None if there are no points.
        box_xyxy: (4,) float pixels, right and bottom edges exclusive; or None.
        mask: (256, 256) float32 logits of an outline, or None.
    """

    points_xy: np.ndarray | None
    labels: np.ndarray | None
    box_xyxy: np.ndarray | None = None
    mask: np.ndarray | None = None

    @property
    def parts(self) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Points, labels and box."""
        return self.points_xy, self.labels, self.box_xyxy

    @property
    def has_positive(self) -> bool:
        """True if there is a box or a positive click."""
        return self.box_xyxy is not None or (self.labels is not None and bool((self.labels == 1).any()))

    @property
    def is_contradictory(self) -> bool:
        """True if one pixel has positive and negative clicks."""
        if self.points_xy is None:
            return False
        pixels = np.floor(self.points_xy).astype(int)
        return len(np.unique(pixels, axis=0)) < len(np.unique(np.column_stack([pixels, self.labels]), axis=0))


def on_plane(prompts: Prompts, plane: Plane) -> Prompts:
    """The prompts that lie in a plane; of a shape, the first corner decides."""

    def is_here(prompt: Prompt) -> bool:
        match prompt:
            case PointPrompt():
                return plane.pixel(prompt.position) is not None
            case ShapePrompt():
                return plane.holds(prompt.vertices[0])
            case PendingObject():
                return (prompt.axes, prompt.index) == (plane.axes, plane.index)

    return prompts.filtered(is_here)


def plane_prompt(prompts: Prompts, plane: Plane) -> PlanePrompt:
    """The prompts of a plane, see `on_plane`, as one prompt for an engine.

    Clicks come first, then scribbles as clicks along them. Only the last box or outline counts; an outline is passed as its
    box and as a mask input.
    """
    clicks = [(*plane.pixel(point.position), point.polarity.value) for point in prompts.points]
    box, mask = None, None
    for shape in prompts.shapes:
        corners = _rows_columns(shape, plane)
        if shape.kind is ShapeKind.SCRIBBLE:
            clicks += [(*pixel, shape.polarity.value) for pixel in samples_along(corners, plane.size_hw)]
            continue
        # Whole numbers are pixel centres in `corners`, but pixel edges in `box`.
        low, high = np.floor(corners.min(axis=0) + 0.5), np.ceil(corners.max(axis=0) + 0.5)
        box = np.concatenate([low[::-1], np.maximum(high, low + 1)[::-1]])
        mask = outline_logits(corners, plane.size_hw) if shape.kind is ShapeKind.OUTLINE else None
    if not clicks:
        return PlanePrompt(None, None, box, mask)
    columns = np.array(clicks, float)
    return PlanePrompt(columns[:, 1::-1].copy(), columns[:, 2].astype(np.int64), box, mask)


def samples_along(line: np.ndarray, size_hw: Sequence[int]) -> list[tuple[int, int]]:
    """At most five evenly spaced pixels along a line, as (row, column); fewer on a short line.

    The middle one comes first, since engines read later clicks as corrections of the mask for the earlier ones.

    Args:
        line: (N, 2) rows and columns of its corners.
        size_hw: Height and width of the plane in pixels; pixels outside the plane are left out.
    """
    lengths = np.r_[0.0, np.cumsum(np.hypot(*np.diff(line, axis=0).T))]
    count = int(np.clip(lengths[-1] // 4, 1, _MAX_SAMPLES))
    at = (np.arange(count) + 0.5) / count * lengths[-1]
    at = at[np.argsort(np.abs(at - lengths[-1] / 2), kind='stable')]
    pixels = np.stack([np.interp(at, lengths, line[:, axis]) for axis in (0, 1)], axis=1)
    rounded = dict.fromkeys((int(row), int(column)) for row, column in np.floor(pixels + 0.5))
    return [(row, column) for row, column in rounded if 0 <= row < size_hw[0] and 0 <= column < size_hw[1]]


def outline_logits(corners: np.ndarray, size_hw: Sequence[int]) -> np.ndarray:
    """(256, 256) float32 logits of a polygon, in [-4, 4]; the longer side of the plane is scaled to 256 pixels.

    Args:
        corners: (N, 2) rows and columns of the corners.
        size_hw: Height and width of the plane in pixels.
    """
    side = _LOGIT_SIDE_PX * _OVERSAMPLING
    inside = polygon2mask((side, side), (corners + 0.5) * side / max(size_hw) - 0.5)
    share = inside.reshape(_LOGIT_SIDE_PX, _OVERSAMPLING, _LOGIT_SIDE_PX, _OVERSAMPLING).mean(axis=(1, 3))
    return ((share - 0.5) * _LOGIT_SCALE).astype(np.float32)


def is_valid_shape(shape: ShapePrompt, plane: Plane) -> bool:
    """True if a shape overlaps the plane; boxes and outlines must also be at least one pixel wide and high."""
    corners = _rows_columns(shape, plane)
    low, high = corners.min(axis=0), corners.max(axis=0)
    overlaps = bool((high >= 0).all() and (low < plane.size_hw).all())
    if shape.kind is ShapeKind.SCRIBBLE:
        return overlaps and bool(samples_along(corners, plane.size_hw))
    return overlaps and bool((high - low >= 1).all())


def _rows_columns(shape: ShapePrompt, plane: Plane) -> np.ndarray:
    return np.array(shape.vertices, float)[:, list(plane.axes)]
