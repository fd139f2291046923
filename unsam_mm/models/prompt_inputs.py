"""Converts prompts in pixels of the original image to the inputs of `UnSAMPromptHead`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.functional import interpolate

from unsam_mm.errors import UnSAMError
from unsam_mm.masks.rle import decode_rles, rles_from_json
from unsam_mm.models.prompt_details import ABSENT, BOX_TYPE, CLICK_PX, POSITIVE, PromptDetails, settle

_DEMO_CLICK = 0.005
"""Side of the box of a click in the released demonstrations, relative to the image."""

_NO_PROMPTS = (
    'UnSAMPromptHead: a data sample holds no prompts; set its `prompts` to InstanceData(points=...) with (P, 2) or '
    '(P, K, 2) x, y, InstanceData(bboxes=...) with (P, 4) x0, y0, x1, y1, or InstanceData(masks=...) with (P, H, W), in '
    'pixels of the original image'
)


class Frames(NamedTuple):
    """Height and width in pixels: of the original image, of the network's input, and of the padded batch."""

    original: tuple[int, int]
    image: tuple[int, int]
    batch: tuple[int, int]

    @classmethod
    def from_sample(cls, sample: DetDataSample) -> Frames:
        """The sizes in the meta information of a sample."""
        return cls(*(tuple(sample.metainfo[key][:2]) for key in ('ori_shape', 'img_shape', 'batch_input_shape')))


class PreparedPrompts(NamedTuple):
    """P prompts in the form of `UnSAMPromptHead.answer`, without the batch axis.

    Attributes:
        boxes: (P, 4) as centre x, y, width, height, relative to the padded image.
        types: (P,) long.
        details: Details for a batch of one image; None if there are none.
    """

    boxes: Tensor
    types: Tensor
    details: PromptDetails | None


def prepare_prompts(
    prompts: InstanceData, frames: Frames, feature_hw: tuple[int, int], release: bool, device: torch.device
) -> PreparedPrompts:
    """Validates and converts `points`, `point_labels`, `bboxes`, `masks` and `granularity`; see
    `UnSAMPromptHead.predict`.

    Args:
        prompts: Prompts of one image.
        frames: Sizes of that image.
        feature_hw: Size of the mask feature.
        release: Whether clicks have the type and size of the released demonstrations.
        device: Device of the result.

    Raises:
        UnSAMError: If a field has another shape or range, or a prompt has neither a positive click, a box nor a mask.
    """
    if not any(name in prompts for name in ('points', 'bboxes', 'masks')):
        raise UnSAMError(_NO_PROMPTS)
    frame = torch.tensor(frames.batch[::-1], dtype=torch.float32, device=device)
    image = torch.tensor(frames.image[::-1], dtype=torch.float32, device=device)
    scale = image / torch.tensor(frames.original[::-1], device=device) / frame
    clicks, kinds = _clicks(prompts, device)
    boxes = _boxes(prompts, clicks, scale)
    masks = _masks(prompts, frames, feature_hw, device)
    granularity = _granularity(prompts, device)
    _check_each(kinds, boxes, masks)
    side = _DEMO_CLICK * image if release else torch.full_like(image, CLICK_PX)
    starts, types, details = settle(clicks * scale, kinds, boxes, side / frame, masks, granularity)
    return PreparedPrompts(starts, torch.full_like(types, BOX_TYPE) if release else types, details)


def _clicks(prompts: InstanceData, device: torch.device) -> tuple[Tensor, Tensor]:
    """(P, K, 2) x, y in pixels of the original image and (P, K) kinds, K at least 1."""
    if 'points' not in prompts:
        if 'point_labels' in prompts:
            raise UnSAMError('UnSAMPromptHead: prompts.point_labels is given without prompts.points; give both')
        count = len(prompts)
        return torch.zeros(count, 1, 2, device=device), torch.full((count, 1), ABSENT, device=device)
    points = torch.as_tensor(prompts.points, dtype=torch.float32, device=device)
    if points.ndim not in (2, 3) or points.shape[-1] != 2 or 0 in points.shape[1:]:
        raise _shape_error('points', '(P, 2) or (P, K, 2)', points)
    kinds = torch.full(points.shape[:-1], POSITIVE, device=device)
    if 'point_labels' in prompts:
        labels = torch.as_tensor(prompts.point_labels, device=device)
        if labels.shape != kinds.shape:
            raise _shape_error('point_labels', f'{tuple(kinds.shape)}, one for each of points', labels)
        if not torch.isin(labels, torch.tensor([ABSENT, 0, POSITIVE], device=device)).all():
            raise UnSAMError(
                f'UnSAMPromptHead: prompts.point_labels must be 1 (positive), 0 (negative) or -1 (no click), got '
                f'{labels.unique().tolist()}'
            )
        kinds = labels.long()
    if not points[kinds != ABSENT].isfinite().all():
        raise UnSAMError('UnSAMPromptHead: prompts.points must be finite; mark clicks to be left out by the label -1')
    points = points.masked_fill((kinds == ABSENT)[..., None], 0.0)
    return (points[:, None], kinds[:, None]) if points.ndim == 2 else (points, kinds)


def _boxes(prompts: InstanceData, clicks: Tensor, scale: Tensor) -> Tensor:
    """(P, 4) as centre x, y, width, height, relative to the padded image; NaN for prompts without a box."""
    if 'bboxes' not in prompts:
        return clicks.new_full((len(clicks), 4), math.nan)
    corners = torch.as_tensor(prompts.bboxes, dtype=torch.float32, device=clicks.device)
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise _shape_error('bboxes', '(P, 4)', corners)
    first, last = corners.split(2, dim=1)
    return torch.cat([(first + last) / 2 * scale, (last - first) * scale], dim=1)


def _masks(prompts: InstanceData, frames: Frames, feature_hw: tuple[int, int], device: torch.device) -> Tensor | None:
    """(P, H / 4, W / 4) bool masks at the size of the mask feature."""
    if 'masks' not in prompts:
        return None
    given: Any = prompts.masks
    if isinstance(given, Sequence) and len(given) and isinstance(given[0], dict):
        given = decode_rles(rles_from_json(given, frames.original), frames.original)
    masks = torch.as_tensor(np.asarray(given) if isinstance(given, Sequence) else given, device=device)
    if masks.ndim != 3 or (len(masks) and tuple(masks.shape[1:]) != frames.original):
        height, width = frames.original
        raise _shape_error('masks', f'(P, {height}, {width}), the size of the original image,', masks)
    size_hw = tuple(
        min(max(round(image * feature / batch), 1), feature)
        for image, feature, batch in zip(frames.image, feature_hw, frames.batch, strict=True)
    )
    found = torch.zeros(len(masks), *feature_hw, dtype=torch.bool, device=device)
    for mask, out in zip(masks, found, strict=True):  # one at a time, to save memory
        covered = interpolate((mask > 0).float()[None, None], size=size_hw, mode='area')[0, 0]
        # A mask that covers no pixel of the feature by half is set where it covers most.
        out[: size_hw[0], : size_hw[1]] = (covered > 0) & (covered >= covered.max().clamp(max=0.5))
    return found


def _granularity(prompts: InstanceData, device: torch.device) -> Tensor | None:
    """(P,) granularities, NaN for prompts without one."""
    if 'granularity' not in prompts:
        return None
    values = torch.as_tensor(prompts.granularity, dtype=torch.float32, device=device)
    if values.ndim != 1:
        raise _shape_error('granularity', '(P,)', values)
    if not (values.isnan() | ((values >= 0) & (values <= 1))).all():
        raise UnSAMError(
            f'UnSAMPromptHead: prompts.granularity must lie in [0, 1], or be NaN if unknown, got {values.tolist()}'
        )
    return values


def _check_each(kinds: Tensor, boxes: Tensor, masks: Tensor | None) -> None:
    known = (kinds == POSITIVE).any(dim=1) | ~boxes.isnan().any(dim=1)
    if masks is not None:
        known = known | masks.flatten(1).any(dim=1)
    if not known.all():
        raise UnSAMError(
            f'UnSAMPromptHead: prompt {int((~known).nonzero()[0, 0])} has no positive click, no box and no mask; each '
            'needs one of them'
        )


def _shape_error(name: str, expected: str, found: Tensor) -> UnSAMError:
    return UnSAMError(
        f'UnSAMPromptHead: prompts.{name} must be {expected}, got {tuple(found.shape)}'.replace(',,', ',')
    )
