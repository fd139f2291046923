"""Compares the packaged model with an adapted one on the same part of a plane."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_unsam.adapt.crops import MAX_SIDE_PX
from napari_unsam.model.mask import draw_disjoint
from napari_unsam.model.plane_prompts import PlanePrompt
from unsam_mm.images import as_rgb_uint8
from unsam_mm.masks.ops import mask_iou

if TYPE_CHECKING:
    from unsam_mm.masks.mask_set import MaskSet
    from unsam_mm.prompting.engine import Engine

_MAX_MASKS = 1000
_POINTS_PER_SIDE = 24
_MAX_IOU = 0.8
_MIN_AREA_PX = 16
# Maximum share of the window: larger masks have high scores and would cover the masks inside them.
_LARGEST_SHARE = 0.03
_MAX_COVERED = 0.3  # maximum share of a mask that better masks may cover


@dataclass(frozen=True, eq=False)
class Comparison:
    """Objects of both models in one window of a plane.

    Attributes:
        top: First row of the window in the plane.
        left: First column of the window in the plane.
        before: (h, w) uint32 labels of the packaged model.
        after: (h, w) uint32 labels of the adapted model.
    """

    top: int
    left: int
    before: np.ndarray
    after: np.ndarray

    @property
    def agreement(self) -> float:
        """IoU of the foreground of both models, in [0, 1]."""
        return float(mask_iou(self.before > 0, self.after > 0))


def window_around(size_hw: tuple[int, int], centre: tuple[float, float]) -> tuple[slice, slice]:
    """Rows and columns of the window of a plane around (row, column), with sides of at most `MAX_SIDE_PX`."""
    parts = []
    for length, at in zip(size_hw, centre, strict=True):
        side = min(length, MAX_SIDE_PX)
        start = int(np.clip(round(at) - side // 2, 0, length - side))
        parts.append(slice(start, start + side))
    return parts[0], parts[1]


def compare(
    pixels: np.ndarray,
    window: tuple[slice, slice],
    adapted: Path,
    prompt: PlanePrompt | None,
    progress: Callable[[float, str], None],
) -> Comparison:
    """Runs both models on the same prompt; call it in the inference thread.

    Args:
        pixels: (h, w) or (h, w, 3) uint8 values of the window.
        window: Rows and columns of the plane.
        adapted: File of the adapted weights.
        prompt: Prompt on the plane, whose best masks are compared; all masks are compared if it has no box or positive click.
        progress: Called with the progress; an exception raised inside stops the work.

    Raises:
        UnSAMError: If the window cannot be segmented, or the weights cannot be read.
    """
    from unsam_mm.prompting.model import RegionEngine
    from unsam_mm.student.weights import packaged_weights

    rows, columns = window
    has_prompt = prompt is not None and prompt.has_positive
    find = (lambda engine: _answer(engine, prompt, rows.start, columns.start)) if has_prompt else _objects
    progress(0.0, 'Reading the slice')
    engine = RegionEngine.from_file(packaged_weights('unsam_s'))
    engine.set_image(as_rgb_uint8(pixels))
    progress(0.6, 'Running the original model')
    before = find(engine)
    progress(0.8, 'Running the adapted model')
    other = RegionEngine.from_file(adapted)
    other.set_embedding(engine.embedding())  # it does not depend on the weights
    return Comparison(rows.start, columns.start, before, find(other))


def _answer(engine: Engine, prompt: PlanePrompt, top: int, left: int) -> np.ndarray:
    """(h, w) labels: 1 for the best mask of the prompt."""
    from unsam_mm.prompting.prompt import Prompt

    shift = np.array([left, top], float)
    points, labels, box = prompt.points_xy, prompt.labels, prompt.box_xyxy
    if points is not None:
        points = points - shift
        inside = ((points >= 0) & (points < engine.size_hw[::-1])).all(axis=1)
        points, labels = points[inside], labels[inside]
    box = None if box is None else (box.reshape(2, 2) - shift).ravel()
    masks, _ = engine.answer(Prompt.checked(engine.size_hw, points, labels, box, None), False, None)
    return masks[0].astype(np.uint32) if len(masks) else np.zeros(engine.size_hw, np.uint32)


def _objects(engine: Engine) -> np.ndarray:
    """(h, w) labels of the best masks of the window without overlaps, see `disjoint_labels`."""
    masks, _ = engine.all_masks(_MAX_MASKS, _MIN_AREA_PX, _POINTS_PER_SIDE, _MAX_IOU)
    return disjoint_labels(masks)


def disjoint_labels(masks: MaskSet) -> np.ndarray:
    """(H, W) uint32 labels without overlaps; large masks, and masks that are mostly covered by better ones, are left out."""
    small = np.flatnonzero(masks.areas <= _LARGEST_SHARE * np.prod(masks.size_hw))
    return draw_disjoint(masks[small], _MAX_COVERED)[0]
