"""The whole-image UnSAM that its authors released, a Detectron2 Mask2Former, in the names of `UnSAM` and MMDetection.

No tensor changes its shape or order. Both frameworks list the levels of the pixel decoder from stride 32 to 8, put y
before x in position codes, order the offsets of deformable attention by head, level, point, (x, y), and have the
"no object" logit last.
"""

from __future__ import annotations

import re
from pathlib import Path

from unsam_mm.checkpoints import (
    ATTENTION,
    BIASED,
    WEIGHT,
    Modules,
    StateDict,
    deformable_pixel_decoder,
    detectron2_resnet50,
    feed_forward,
    merge_aliases,
    mlp,
    rename,
    tensor_names,
)
from unsam_mm.errors import WeightsError

KIND = "UnSAM's whole-image Mask2Former with a ResNet-50"

_LEVELS, _DECODER_LAYERS = 3, 9
_HEAD, _PIXELS, _QUERIES = 'mask_head', 'sem_seg_head.pixel_decoder', 'sem_seg_head.predictor'
_CLASS_WEIGHT = 'sem_seg_head.predictor.class_embed.weight'

_LEGACY_NAMES = (
    (re.compile(r'\.static_query\.'), '.query_feat.'),
    (re.compile(r'^sem_seg_head\.(?!predictor\.|pixel_decoder\.)'), 'sem_seg_head.pixel_decoder.'),
)
"""Names that Mask2Former had before the second version of its checkpoints, and their successors."""

_CONSTANTS = re.compile(r'^(criterion\.empty_weight|pixel_mean|pixel_std)$')
"""Held by the config."""


def convert_whole_image(state: StateDict, path: Path) -> StateDict:
    """Renames the tensors of UnSAM or UnSAM+, with any number of queries.

    Args:
        state: Tensors by their official names.
        path: Their file, for messages.

    Raises:
        WeightsError: If a name is missing or left over, or if the model tells classes apart.
    """
    state = merge_aliases(state, _LEGACY_NAMES, path, KIND)
    converted = rename(state, tensor_names(_modules()), path, KIND, _CONSTANTS.match)
    if (classes := len(state[_CLASS_WEIGHT]) - 1) != 1:
        raise WeightsError(f'{path}: a Mask2Former of {classes} classes; UnSAM has one, so this is another model')
    return converted


def _modules() -> Modules:
    yield from detectron2_resnet50('backbone.', 'backbone.')
    convolutions = ('lateral_convs.0', 'output_convs.0')
    yield from deformable_pixel_decoder(_PIXELS, f'{_HEAD}.pixel_decoder', _LEVELS, convolutions)
    for layer in range(_DECODER_LAYERS):
        ours = f'{_HEAD}.transformer_decoder.layers.{layer}'
        cross, own, ffn = (
            f'{_QUERIES}.transformer_{part}_layers.{layer}' for part in ('cross_attention', 'self_attention', 'ffn')
        )
        yield f'{cross}.multihead_attn', f'{ours}.cross_attn.attn', ATTENTION
        yield f'{own}.self_attn', f'{ours}.self_attn.attn', ATTENTION
        yield from feed_forward(ffn, f'{ours}.ffn')
        for position, part in enumerate((cross, own, ffn)):  # the order in which they follow each other
            yield f'{part}.norm', f'{ours}.norms.{position}', BIASED
    yield f'{_QUERIES}.decoder_norm', f'{_HEAD}.transformer_decoder.post_norm', BIASED
    for table in ('query_feat', 'query_embed', 'level_embed'):
        yield f'{_QUERIES}.{table}', f'{_HEAD}.{table}', WEIGHT
    yield f'{_QUERIES}.class_embed', f'{_HEAD}.cls_embed', BIASED
    yield from mlp(f'{_QUERIES}.mask_embed', f'{_HEAD}.mask_embed', 3)
