"""Validated prompts, and low-resolution mask logits."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from skimage.transform import resize

from unsam_mm.errors import UnSAMError

MAX_MASKS_PER_PROMPT = 6  # the number of mask tokens in the promptable model of the paper
LOGIT_SIDE_PX = 256  # size of Segment Anything's low-resolution masks
LOGIT_SCALE = 8.0  # logits range from -4 outside a mask to 4 inside
NO_IMAGE = 'no image is set; call set_image(image) first'


@dataclass(frozen=True, eq=False)
class Prompt:
    """A validated prompt with a positive point or a box.

    Attributes:
        points_xy: (N, 2) int64 pixel coordinates inside the image, x before y, without padding.
        positive: (N,) bool.
        box_xyxy: (4,) float64 box inside the image, upper left corner first, or None.
        mask_input: (256, 256) float32 logits, or None.
    """

    points_xy: np.ndarray
    positive: np.ndarray
    box_xyxy: np.ndarray | None
    mask_input: np.ndarray | None

    @classmethod
    def checked(
        cls,
        size_hw: tuple[int, int],
        points_xy: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box_xyxy: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
    ) -> Prompt:
        """A prompt from unchecked arguments; see `UnSAMPredictor.predict`.

        Raises:
            UnSAMError: If there is no prompt, an argument has another shape or label, a point lies outside the image,
                or the box does not touch it.
        """
        points, positive = _checked_points(points_xy, point_labels)
        box = None if box_xyxy is None else _checked_box(box_xyxy, size_hw)
        if not positive.any() and box is None:
            raise UnSAMError('a prompt needs a positive point or a box')
        height, width = size_hw
        for x, y in points:
            if not (0 <= x < width and 0 <= y < height):
                raise UnSAMError(
                    f'point (x={x:g}, y={y:g}) lies outside the image of width {width} and height {height}'
                )
        logits = None if mask_input is None else _checked_logits(mask_input)
        return cls(points.astype(np.int64), positive, box, logits)

    @property
    def key(self) -> tuple[bytes | None, ...]:
        """A hashable key, which is equal for equal prompts."""
        parts = (self.points_xy, self.positive, self.box_xyxy, self.mask_input)
        return tuple(None if part is None else part.tobytes() for part in parts)

    @property
    def contradicts_itself(self) -> bool:
        """True if one pixel has both a positive and a negative click."""
        inside, outside = (set(map(tuple, self.points_xy[kind].tolist())) for kind in (self.positive, ~self.positive))
        return not inside.isdisjoint(outside)


def low_resolution_logits(masks: np.ndarray) -> np.ndarray:
    """(N, 256, 256) float32 logits of (N, H, W) bool masks, in the format of Segment Anything.

    The longer side of the image fills the square; the padding is negative.
    """
    size_hw = masks.shape[1:]
    rows, columns = _frame_shape(size_hw)
    logits = np.full((len(masks), LOGIT_SIDE_PX, LOGIT_SIDE_PX), -0.5 * LOGIT_SCALE, np.float32)
    if max(size_hw) <= LOGIT_SIDE_PX:
        for mask, out in zip(masks, logits, strict=True):
            share = resize(mask.astype(np.float32), (rows, columns), order=1)
            out[:rows, :columns] = (share - 0.5) * LOGIT_SCALE
        return logits
    # Buffer for the column sums over the rows of a cell: adding whole rows is vectorised, best with small integer types.
    sums = np.zeros(size_hw[1], np.min_scalar_type(-(-size_hw[0] // rows)))
    for pixels, out in zip(masks.view(np.uint8), logits, strict=True):
        _write_cell_logits(pixels, out[:rows, :columns], sums, LOGIT_SCALE, *_bounding_box(pixels))
    return logits


def mask_of_logits(logits: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool mask from (256, 256) low-resolution logits."""
    rows, columns = _frame_shape(size_hw)
    return resize(logits[:rows, :columns], size_hw, order=1) > 0


def _frame_shape(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the low-resolution mask without its padding."""
    scale = LOGIT_SIDE_PX / max(size_hw)
    rows, columns = (max(1, round(side * scale)) for side in size_hw)
    return rows, columns


@numba.njit(nogil=True, cache=True)
def _bounding_box(mask):
    """Same as `unsam_mm.masks.ops.extent`, but faster, for an (H, W) uint8 mask of 0 and 1."""
    height, width = mask.shape
    used = np.zeros(width, np.uint8)
    top, bottom = height, 0
    for y in range(height):
        in_row = np.uint8(0)
        for x in range(width):
            in_row |= mask[y, x]
        if in_row:
            top, bottom = min(top, y), y + 1
            for x in range(width):
                used[x] |= mask[y, x]
    if bottom == 0:
        return 0, 0, 0, 0
    columns = np.flatnonzero(used)
    return top, bottom, columns[0], columns[-1] + 1


@numba.njit(nogil=True, cache=True)
def _write_cell_logits(mask, out, sums, scale, top, bottom, left, right):
    """Writes scaled logits: the fraction of each cell that an (H, W) uint8 mask of 0 and 1 covers, minus 0.5.

    The mask lies in rows `top` to `bottom` and columns `left` to `right`; cells outside are not written. `sums` is a
    buffer of W numbers.
    """
    height, width = mask.shape
    rows, columns = out.shape
    row_starts = -((-np.arange(rows + 1) * height) // rows)
    column_starts = -((-np.arange(columns + 1) * width) // columns)
    weights = scale / np.diff(column_starts)
    first, last = left * columns // width, (right - 1) * columns // width
    for row in range(top * rows // height, (bottom - 1) * rows // height + 1):
        sums[:] = 0
        # Slices, since possibly negative indices prevent vectorisation.
        for y in range(max(row_starts[row], top), min(row_starts[row + 1], bottom)):
            pixels, part = mask[y, left:right], sums[left:right]
            for x in range(len(part)):
                part[x] += pixels[x]
        row_weight = 1 / (row_starts[row + 1] - row_starts[row])
        column, count, stop = first, np.uint32(0), column_starts[first + 1]
        for x in range(column_starts[first], column_starts[last + 1]):
            if x == stop:
                out[row, column] = count * weights[column] * row_weight - 0.5 * scale
                column, count = column + 1, np.uint32(0)
                stop = column_starts[column + 1]
            count += sums[x]
        out[row, column] = count * weights[column] * row_weight - 0.5 * scale


def _checked_points(points_xy: np.ndarray | None, point_labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(N, 2) float64 points and (N,) bool, True for positive points; without padding."""
    points = np.zeros((0, 2)) if points_xy is None else as_numbers(points_xy, 'points')
    if points.ndim != 2 or points.shape[1] != 2:
        raise UnSAMError(f'points must have the shape (N, 2), x before y, got {points.shape}')
    labels = np.ones(len(points), int) if point_labels is None else np.asarray(point_labels)
    if labels.shape != (len(points),):
        raise UnSAMError(f'{len(points)} points have labels of shape {labels.shape}; expected one label for each point')
    if not np.isin(labels, (-1, 0, 1)).all():
        raise UnSAMError(
            f'point labels must be 1, 0 or -1 (padding), got {np.unique(labels).tolist()}; pass a box with the argument box'
        )
    return points[labels >= 0], labels[labels >= 0] == 1


def _checked_box(box_xyxy: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(4,) float box clipped to the image, upper left corner first."""
    box = as_numbers(box_xyxy, 'a box')
    if box.shape == (1, 4):  # as Segment Anything's notebooks pass it
        box = box[0]
    if box.shape != (4,) or not np.isfinite(box).all():
        raise UnSAMError(
            f'a box must be four numbers x0, y0, x1, y1, got {np.asarray(box_xyxy).tolist()}; pass one box in each call'
        )
    corners = box.reshape(2, 2)
    low, high = corners.min(axis=0), corners.max(axis=0)
    if (high <= 0).any() or (low >= size_hw[::-1]).any() or (low == high).any():
        raise UnSAMError(
            f'box {box.tolist()} contains no pixel of the image of width {size_hw[1]} and height {size_hw[0]}'
        )
    # Area outside the image would lower the IoU of every region.
    return np.concatenate([low.clip(min=0), np.minimum(high, size_hw[::-1])])


def _checked_logits(mask_input: np.ndarray) -> np.ndarray:
    """(256, 256) float32 logits."""
    logits = as_numbers(mask_input, 'mask_input')
    if logits.size != LOGIT_SIDE_PX**2 or np.isnan(logits).any():
        raise UnSAMError(
            f'mask_input must have the shape (1, 256, 256) and no NaN, got {logits.shape}; pass logits of predict()'
        )
    return logits.astype(np.float32).reshape(LOGIT_SIDE_PX, LOGIT_SIDE_PX)


def as_numbers(values: np.ndarray, name: str) -> np.ndarray:
    """Converts values to a float64 array.

    Args:
        values: Array, sequence or tensor.
        name: Name of the values in the error message.

    Raises:
        UnSAMError: If they are not real numbers.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind == 'c':
            raise TypeError('complex numbers')
        return array.astype(float)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: tensors that require a gradient
        raise UnSAMError(f'{name} must be an array of real numbers: {error}') from error
