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

if TYPE_CHECKING:
    from unsam_mm.masks.mask_set import MaskSet
    from unsam_mm.prompting.engine import Engine

_MAX_MASKS = 1000
_POINTS_PER_SIDE = 24
_MAX_IOU = 0.8
_MIN_AREA_PX = 16
_LARGEST_SHARE = 0.03  # of the window: larger masks come first in the list, and would hide what lies in them
_MAX_COVERED = 0.3  # of a mask by better ones


@dataclass(frozen=True, eq=False)
class Comparison:
    """Objects of both models in one window of a plane.

    Attributes:
        top: Row of the plane where the window begins.
        left: Column of the plane where it begins.
        before: (h, w) uint32 labels by the model of the package.
        after: (h, w) uint32 labels by the adapted one.
    """

    top: int
    left: int
    before: np.ndarray
    after: np.ndarray

    @property
    def agreement(self) -> float:
        """IoU of what is object to one and to the other, in [0, 1]."""
        before, after = self.before > 0, self.after > 0
        return float((before & after).sum() / max((before | after).sum(), 1))


def window_around(size_hw: tuple[int, int], centre: tuple[float, float]) -> tuple[slice, slice]:
    """The window of a plane, as large as the model can take in at once, around a row and a column."""
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
        adapted: The adapted weights.
        prompt: Prompts of the plane; where they can be asked, its best answers are compared, else all masks.
        progress: Told the fraction done; cancels by raising.

    Raises:
        UnSAMError: If the part cannot be segmented, or weights cannot be read.
    """
    from unsam_mm.prompting.model import RegionEngine
    from unsam_mm.student.weights import packaged_weights

    rows, columns = window
    asks = prompt is not None and prompt.can_be_asked
    find = (lambda engine: _answer(engine, prompt, rows.start, columns.start)) if asks else _objects
    progress(0.0, 'Reading the slice')
    engine = RegionEngine.from_file(packaged_weights('unsam_s'))
    engine.set_image(as_rgb_uint8(pixels))
    progress(0.6, 'Running the original model')
    before = find(engine)
    progress(0.8, 'Running the adapted model')
    other = RegionEngine.from_file(adapted)
    other.set_embedding(engine.embedding())  # regions and features are the same, whoever reads them
    return Comparison(rows.start, columns.start, before, find(other))


def _answer(engine: Engine, prompt: PlanePrompt, top: int, left: int) -> np.ndarray:
    """(h, w) labels: the best mask for the prompts, as 1."""
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
    """(h, w) labels: all masks, the best on top, 1 the best."""
    masks, _ = engine.all_masks(_MAX_MASKS, _MIN_AREA_PX, _POINTS_PER_SIDE, _MAX_IOU)
    return flattened(masks)


def flattened(masks: MaskSet) -> np.ndarray:
    """(H, W) uint32: masks without overlaps; what is mostly covered by better ones is left out, and so is the ground."""
    small = np.flatnonzero(masks.areas <= _LARGEST_SHARE * np.prod(masks.size_hw))
    return draw_disjoint(masks[small], _MAX_COVERED)[0]
