"""Converts CutLER's Detectron2 checkpoint to the parameter names of MMDetection.

Tensors are neither reshaped nor reordered, since both frameworks have the same layout: RoI features are flattened as
channel, row, column; anchors are ordered by cell, then by ascending ratio (height over width), with the deltas x, y,
width, height; the background is the last class; and the stride of a bottleneck is in its 3 x 3 convolution.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import save_file

from unsam_mm.checkpoints import (
    BATCH_NORM,
    BIASED,
    WEIGHT,
    StateDict,
    detectron2_resnet50,
    read_checkpoint,
    rename,
    tensor_names,
)

KIND = "CutLER's Cascade Mask R-CNN with a ResNet-50"

_LEVELS = (2, 3, 4, 5)  # levels of the feature pyramid in Detectron2's numbering
_STAGES = 3
_MASK_CONVOLUTIONS = 4
_CONSTANTS = re.compile(r'^(pixel_mean|pixel_std|proposal_generator\.anchor_generator\.cell_anchors\.\d+)$')
"""Constants in checkpoints of old versions of Detectron2; here they are in the config."""


def convert_official_cutler(path: Path) -> StateDict:
    """Reads and converts the published checkpoint of CutLER's Cascade Mask R-CNN.

    Args:
        path: ``cutler_cascade_final.pth``, or another checkpoint of the same model.

    Raises:
        WeightsError: If the file is not such a checkpoint; the message names missing and unexpected keys.
    """
    return convert_cutler(read_checkpoint(path), path)


def convert_cutler(state: StateDict, path: Path) -> StateDict:
    """Renames the tensors of CutLER's detector.

    Args:
        state: Tensors by their official names.
        path: The file, for error messages.

    Raises:
        WeightsError: If a name is missing or unexpected.
    """
    kind = f'{KIND}; the file cutler_cascade_final.pth is'
    return rename(state, tensor_names(_modules()), path, kind, _CONSTANTS.match)


def save(state: StateDict, folder: Path, metadata: dict[str, str]) -> None:
    """Writes converted weights as ``model.safetensors`` into a new folder, which must not exist yet."""
    folder.mkdir(parents=True)
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(state, folder / 'model.safetensors', metadata={'format': 'pt', **metadata})


def _modules() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    yield from detectron2_resnet50('backbone.bottom_up.', 'backbone.')
    for level in _LEVELS:
        for theirs, ours in ((f'fpn_lateral{level}', 'lateral_convs'), (f'fpn_output{level}', 'fpn_convs')):
            yield f'backbone.{theirs}', f'neck.{ours}.{level - 2}.conv', WEIGHT
            yield f'backbone.{theirs}.norm', f'neck.{ours}.{level - 2}.bn', BATCH_NORM
    for theirs, ours in (('conv', 'rpn_conv'), ('objectness_logits', 'rpn_cls'), ('anchor_deltas', 'rpn_reg')):
        yield f'proposal_generator.rpn_head.{theirs}', f'rpn_head.{ours}', BIASED
    for stage in range(_STAGES):
        ours = f'roi_head.bbox_head.{stage}'
        yield f'roi_heads.box_head.{stage}.fc1', f'{ours}.shared_fcs.0', BIASED
        yield f'roi_heads.box_head.{stage}.fc2', f'{ours}.shared_fcs.1', BIASED
        yield f'roi_heads.box_predictor.{stage}.cls_score', f'{ours}.fc_cls', BIASED
        yield f'roi_heads.box_predictor.{stage}.bbox_pred', f'{ours}.fc_reg', BIASED
    for number in range(_MASK_CONVOLUTIONS):
        yield f'roi_heads.mask_head.mask_fcn{number + 1}', f'roi_head.mask_head.0.convs.{number}.conv', BIASED
    yield 'roi_heads.mask_head.deconv', 'roi_head.mask_head.0.upsample', BIASED
    yield 'roi_heads.mask_head.predictor', 'roi_head.mask_head.0.conv_logits', BIASED
