"""The promptable UnSAM that its authors released, a Semantic-SAM with a Swin-T, in the names of this package.

Where patches are merged tensors change their order, see `swin`. Level orders agree: both pixel decoders
count from stride 8 to 64, both prompt decoders from 64 to 8. Weights for several clicks, earlier masks and granularity,
which the released model has not, are added as they are before any training.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from unsam_mm.checkpoints import (
    ATTENTION,
    BIASED,
    DEFORMABLE,
    WEIGHT,
    Modules,
    StateDict,
    deformable_pixel_decoder,
    feed_forward,
    merge_aliases,
    mlp,
    rename,
    tensor_names,
)
from unsam_mm.convert.swin import merged_like_mmdet, swin_tiny
from unsam_mm.models.prompt_details import DetailEncoder

KIND = "UnSAM's promptable model with a Swin-T"

UNTRAINED = 'mask_head.details.'
"""Prefix of weights that the release has not."""

_CHANNELS = 256
_SWIN_STAGES = 4
_LEVELS, _DECODER_LAYERS = 4, 9
_PIXELS, _PROMPTS = 'model.sem_seg_head.pixel_decoder', 'model.sem_seg_head.predictor'
_OUR_PIXELS, _OUR_PROMPTS = 'mask_head.pixel_decoder', 'mask_head.decoder'
_BOXES, _NORM = f'{_PROMPTS}.decoder.bbox_embed.{_DECODER_LAYERS - 1}', f'{_PROMPTS}.decoder_norm'

_TIED = (
    (re.compile(rf'^{re.escape(_PROMPTS)}\.(_bbox_embed|(decoder\.)?bbox_embed\.\d)\.'), f'{_BOXES}.'),
    (re.compile(rf'^{re.escape(_PROMPTS)}\.decoder\.norm\.'), f'{_NORM}.'),
)
"""Modules with several names: one box network, and one norm."""

_UNUSED = re.compile(rf'^{re.escape(_PROMPTS)}\.(lang_mapper|class_embed|class_embed_part)$')
"""Of Semantic-SAM's labels, which UnSAM has not."""


def convert_promptable(state: StateDict, path: Path) -> StateDict:
    """Renames the tensors of the promptable UnSAM or UnSAM+.

    Args:
        state: Tensors by their official names.
        path: Their file, for messages.

    Raises:
        WeightsError: If a name is missing or left over, or if names of one tensor hold different values.
    """
    state = merge_aliases(state, _TIED, path, KIND)
    converted = rename(state, tensor_names(_modules()), path, KIND, _UNUSED.match)
    ours = 'mask_head.prompt_embed.weight'
    converted[ours] = converted[ours][:1].clone()  # the other row, for a second kind of label, is never read
    return merged_like_mmdet(converted) | _untrained_details()


def _untrained_details() -> StateDict:
    """What the release has not: weights for several clicks, earlier masks and granularity, as before any training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a checkpoint is always converted to the same file
        details = DetailEncoder(_CHANNELS)
    return {f'{UNTRAINED}{name}': value for name, value in details.state_dict().items()}


def _modules() -> Modules:
    yield from swin_tiny('model.backbone.', 'backbone.')
    for stage in range(_SWIN_STAGES):
        yield f'model.backbone.norm{stage}', f'backbone.norm{stage}', BIASED
    yield from deformable_pixel_decoder(_PIXELS, _OUR_PIXELS, _LEVELS, ('lateral_conv', 'output_conv'))
    for layer in range(_DECODER_LAYERS):
        there, here = f'{_PROMPTS}.decoder.layers.{layer}', f'{_OUR_PROMPTS}.layers.{layer}'
        yield f'{there}.self_attn', f'{here}.self_attn', ATTENTION
        for part in DEFORMABLE:
            yield f'{there}.cross_attn.{part}', f'{here}.cross_attn.{part}', BIASED
        yield from feed_forward(there, f'{here}.ffn')
        for position, norm in enumerate(('norm2', 'norm1', 'norm3')):  # the order in which they follow each other
            yield f'{there}.{norm}', f'{here}.norms.{position}', BIASED
    yield _NORM, f'{_OUR_PROMPTS}.norm', BIASED
    yield from mlp(f'{_PROMPTS}.decoder.ref_point_head', f'{_OUR_PROMPTS}.position_mlp', 2)
    yield from mlp(_BOXES, f'{_OUR_PROMPTS}.box_mlp', 3)
    yield from mlp(f'{_PROMPTS}.mask_embed', 'mask_head.mask_mlp', 3)
    yield from mlp(f'{_PROMPTS}.iou_prediction_head', 'mask_head.iou_mlp', 3)
    yield f'{_PROMPTS}.label_enc', 'mask_head.prompt_embed', WEIGHT
    yield f'{_PROMPTS}.pb_embedding', 'mask_head.type_embed', WEIGHT
    yield f'{_PROMPTS}.mask_tokens', 'mask_head.mask_tokens', WEIGHT
