"""What engines are asked, checked, and the low-resolution logits that go from one call to the next."""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from skimage.transform import resize

from unsam_mm.errors import UnSAMError

MAX_MASKS_PER_PROMPT = 6  # as many as the promptable model of the paper has mask tokens
LOGIT_SIDE_PX = 256  # Segment Anything's low-resolution frame
LOGIT_SCALE = 8.0
NO_IMAGE = 'no image is set; call set_image(image) first'


@dataclass(frozen=True, eq=False)
class Prompt:
    """One checked prompt; has a positive point or a box.

    Attributes:
        points_xy: (N, 2) int64 pixel coordinates inside the image, x before y, without padding.
        positive: (N,) bool.
        box_xyxy: (4,) float64 with its corners in order, none of them outside the image, or None.
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
        """Of arguments as people give them; see `UnSAMPredictor.predict`.

        Raises:
            UnSAMError: If there is no prompt, an argument has another shape or label, a point lies outside the image, or
                the box does not touch it.
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
    def contradicts_itself(self) -> bool:
        """Whether one pixel has clicks of both kinds."""
        inside, outside = (set(map(tuple, self.points_xy[kind].tolist())) for kind in (self.positive, ~self.positive))
        return not inside.isdisjoint(outside)


def low_resolution_logits(masks: np.ndarray) -> np.ndarray:
    """(N, 256, 256) float32 logits of (N, H, W) bool masks in Segment Anything's square frame.

    The image's longer side fills the square; the rest is negative.
    """
    size_hw = masks.shape[1:]
    rows, columns = _frame_shape(size_hw)
    logits = np.full((len(masks), LOGIT_SIDE_PX, LOGIT_SIDE_PX), -0.5 * LOGIT_SCALE, np.float32)
    if max(size_hw) <= LOGIT_SIDE_PX:
        for mask, out in zip(masks, logits, strict=True):
            share = resize(mask.astype(np.float32), (rows, columns), order=1)
            out[:rows, :columns] = (share - 0.5) * LOGIT_SCALE
        return logits
    # Of the rows of one cell: adding whole rows is what processors do in one go, and the more the smaller the numbers.
    sums = np.zeros(size_hw[1], np.min_scalar_type(-(-size_hw[0] // rows)))
    for pixels, out in zip(masks.view(np.uint8), logits, strict=True):
        _write_cell_logits(pixels, out[:rows, :columns], sums, LOGIT_SCALE, *_window(pixels))
    return logits


def mask_of_logits(logits: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) bool mask that (256, 256) low-resolution logits describe."""
    rows, columns = _frame_shape(size_hw)
    return resize(logits[:rows, :columns], size_hw, order=1) > 0


def box_iou(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    """(N,) IoU of (N, 4) boxes x0, y0, x1, y1 with one of (4,)."""
    overlap = np.clip(np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]), 0, None).prod(axis=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod() - overlap
    return overlap / np.maximum(union, 1e-9)


def _frame_shape(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the frame that the image fills."""
    scale = LOGIT_SIDE_PX / max(size_hw)
    rows, columns = (max(1, round(side * scale)) for side in size_hw)
    return rows, columns


@numba.njit(nogil=True, cache=True)
def _window(mask):
    """First and last row and column that an (H, W) mask of 0 and 1 touches, the last ones exclusive; zeros if none."""
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
    """Writes which share of each cell of a grid an (H, W) mask of 0 and 1 fills, less a half and scaled.

    The mask lies in the window from row `top` to `bottom` and column `left` to `right`; cells without any of it are left.
    `sums` holds as many numbers as a row has pixels.
    """
    height, width = mask.shape
    rows, columns = out.shape
    row_starts = -((-np.arange(rows + 1) * height) // rows)
    column_starts = -((-np.arange(columns + 1) * width) // columns)
    weights = scale / np.diff(column_starts)
    first, last = left * columns // width, (right - 1) * columns // width
    for row in range(top * rows // height, (bottom - 1) * rows // height + 1):
        sums[:] = 0
        # Views from 0 on, since a start that could be negative keeps loops from being made fast.
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
    """(N, 2) float points and (N,) bool whether they are positive, without padding."""
    points = np.zeros((0, 2)) if points_xy is None else as_numbers(points_xy, 'points')
    if points.ndim != 2 or points.shape[1] != 2:
        raise UnSAMError(f'points must have the shape (N, 2), x before y, got {points.shape}')
    labels = np.ones(len(points), int) if point_labels is None else np.asarray(point_labels)
    if labels.shape != (len(points),):
        raise UnSAMError(f'{len(points)} points have labels of shape {labels.shape}; expected one label for each point')
    if not np.isin(labels, (-1, 0, 1)).all():
        raise UnSAMError(
            f'point labels must be 1, 0 or -1 (left out), got {np.unique(labels).tolist()}; pass a box as box'
        )
    return points[labels >= 0], labels[labels >= 0] == 1


def _checked_box(box_xyxy: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """(4,) float box with its corners in order."""
    box = as_numbers(box_xyxy, 'a box')
    if box.shape == (1, 4):  # as Segment Anything's notebooks pass it
        box = box[0]
    if box.shape != (4,) or not np.isfinite(box).all():
        raise UnSAMError(
            f'a box must be four numbers x0, y0, x1, y1, got {np.asarray(box_xyxy).tolist()}; one box a call'
        )
    corners = box.reshape(2, 2)
    low, high = corners.min(axis=0), corners.max(axis=0)
    if (high <= 0).any() or (low >= size_hw[::-1]).any() or (low == high).any():
        raise UnSAMError(
            f'box {box.tolist()} holds no pixel of the image of width {size_hw[1]} and height {size_hw[0]}'
        )
    # What lies outside would count against every region in an IoU.
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
    """An array of real numbers as float64.

    Args:
        values: Array, sequence or tensor as people give it.
        name: What the error message calls it.

    Raises:
        UnSAMError: If it is of something else.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind == 'c':
            raise TypeError('complex numbers')
        return array.astype(float)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: tensors that need a gradient
        raise UnSAMError(f'{name} must be an array of real numbers: {error}') from error
