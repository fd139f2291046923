"""CutLER's Detectron2 checkpoint in the names of MMDetection.

No tensor changes its shape or order: both frameworks flatten a region as channel, row, column before the first fully
connected layer, list anchors by cell, then ratio (height over width, rising), with four deltas x, y, width, height
each, and put the background last. The stride of a bottleneck sits in its 3 x 3 convolution in both.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from unsam_mm.errors import WeightsError

StateDict = dict[str, torch.Tensor]

_BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}  # bottlenecks in each stage of a ResNet-50, by Detectron2's number of the stage
_STAGES = 3
_MASK_CONVOLUTIONS = 4
_WEIGHT, _BIASED = ('weight',), ('weight', 'bias')
_NORM = ('weight', 'bias', 'running_mean', 'running_var')
_COUNTER = 'num_batches_tracked'
_CONSTANTS = re.compile(r'^(pixel_mean|pixel_std|proposal_generator\.anchor_generator\.cell_anchors\.\d+)$')
"""Written by old versions of Detectron2; the config holds them."""


def convert_official_cutler(path: Path) -> StateDict:
    """Renames the Cascade Mask R-CNN that the CutLER authors published.

    Args:
        path: ``cutler_cascade_final.pth``, or another checkpoint of their config.

    Raises:
        WeightsError: If the file is not such a checkpoint: the message names keys that are missing or left over.
    """
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise WeightsError(f'{path}: cannot be read as a checkpoint of tensors; download it again') from error
    state = content.get('model', content) if isinstance(content, dict) else {}
    given = {key for key in state if not _CONSTANTS.match(key) and not key.endswith(_COUNTER)}
    names = dict(_names())
    for problem, keys in (('lacks', names.keys() - given), ('has an unknown', given - names.keys())):
        if keys:
            raise WeightsError(
                f"{path}: {problem} {sorted(keys)[0]!r} ({len(keys)} such keys), so it is not CutLER's Cascade Mask "
                'R-CNN with a ResNet-50; the file cutler_cascade_final.pth is'
            )
    converted = {ours: state[theirs] for theirs, ours in names.items()}
    for ours in [name for name in converted if name.endswith('running_var')]:
        counter = ours.replace('running_var', _COUNTER)  # of no use to a frozen average; frozen norms lack it
        converted[counter] = torch.zeros((), dtype=torch.long)
    return converted


def save(state: StateDict, folder: Path, metadata: dict[str, str]) -> None:
    """Writes converted weights as ``model.safetensors`` into a new folder."""
    folder.mkdir(parents=True)
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(state, folder / 'model.safetensors', metadata={'format': 'pt', **metadata})


def _names() -> Iterator[tuple[str, str]]:
    """Detectron2's and MMDetection's name of every tensor."""
    for theirs, ours, kinds in _modules():
        for kind in kinds:
            yield f'{theirs}.{kind}', f'{ours}.{kind}'


def _modules() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    yield from _backbone()
    for level in _BLOCKS:
        for theirs, ours in ((f'fpn_lateral{level}', 'lateral_convs'), (f'fpn_output{level}', 'fpn_convs')):
            yield f'backbone.{theirs}', f'neck.{ours}.{level - 2}.conv', _WEIGHT
            yield f'backbone.{theirs}.norm', f'neck.{ours}.{level - 2}.bn', _NORM
    for theirs, ours in (('conv', 'rpn_conv'), ('objectness_logits', 'rpn_cls'), ('anchor_deltas', 'rpn_reg')):
        yield f'proposal_generator.rpn_head.{theirs}', f'rpn_head.{ours}', _BIASED
    for stage in range(_STAGES):
        ours = f'roi_head.bbox_head.{stage}'
        yield f'roi_heads.box_head.{stage}.fc1', f'{ours}.shared_fcs.0', _BIASED
        yield f'roi_heads.box_head.{stage}.fc2', f'{ours}.shared_fcs.1', _BIASED
        yield f'roi_heads.box_predictor.{stage}.cls_score', f'{ours}.fc_cls', _BIASED
        yield f'roi_heads.box_predictor.{stage}.bbox_pred', f'{ours}.fc_reg', _BIASED
    for number in range(_MASK_CONVOLUTIONS):
        yield f'roi_heads.mask_head.mask_fcn{number + 1}', f'roi_head.mask_head.0.convs.{number}.conv', _BIASED
    yield 'roi_heads.mask_head.deconv', 'roi_head.mask_head.0.upsample', _BIASED
    yield 'roi_heads.mask_head.predictor', 'roi_head.mask_head.0.conv_logits', _BIASED


def _backbone() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    yield 'backbone.bottom_up.stem.conv1', 'backbone.conv1', _WEIGHT
    yield 'backbone.bottom_up.stem.conv1.norm', 'backbone.bn1', _NORM
    for stage, count in _BLOCKS.items():
        for block in range(count):
            theirs, ours = f'backbone.bottom_up.res{stage}.{block}', f'backbone.layer{stage - 1}.{block}'
            for number in (1, 2, 3):
                yield f'{theirs}.conv{number}', f'{ours}.conv{number}', _WEIGHT
                yield f'{theirs}.conv{number}.norm', f'{ours}.bn{number}', _NORM
            if block == 0:
                yield f'{theirs}.shortcut', f'{ours}.downsample.0', _WEIGHT
                yield f'{theirs}.shortcut.norm', f'{ours}.downsample.1', _NORM
