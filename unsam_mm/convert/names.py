"""Tensor names of released models, in the authors' code and in MMDetection and this package.

Tensors keep their shapes and, except for the merged patches of Swin, their order. Both frameworks list the levels of the
pixel decoder from coarse to fine, put y before x in position encodings, order the offsets of deformable attention by
head, level, point, (x, y), and have the "no object" logit last.

The functions `convert_*` accept the tensors under their official names, and the path of their file for messages. They
return the tensors under MMDetection's names, and raise `WeightsError` if a name is missing or unknown.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from unsam_mm.checkpoints import BIASED, WEIGHT, Modules, StateDict, detectron2_resnet50, rename, tensor_names
from unsam_mm.errors import WeightsError
from unsam_mm.models.prompt_details import DetailEncoder

RESNET50 = 'a ResNet-50 in the names of torchvision, as DINO has them'
WHOLE_IMAGE = "UnSAM's whole-image Mask2Former with a ResNet-50"
PROMPTABLE = "UnSAM's promptable model with a Swin-T"
MOBY = "MoBY's self-supervised Swin-T"

UNTRAINED = 'mask_head.details.'
"""Prefix of weights that the released promptable models lack: for several clicks, earlier masks and granularity."""

_CHANNELS = 256
_BLOCKS = (2, 2, 6, 2)  # of Swin-T
_ENCODER_LAYERS, _DECODER_LAYERS = 6, 9
_ATTENTION = ('in_proj_weight', 'in_proj_bias', 'out_proj.weight', 'out_proj.bias')
_DEFORMABLE = ('sampling_offsets', 'attention_weights', 'value_proj', 'output_proj')
_FFN = {'linear1': 'ffn.layers.0.0', 'linear2': 'ffn.layers.1'}

_LEGACY_NAMES = (
    (re.compile(r'\.static_query\.'), '.query_feat.'),
    (re.compile(r'^sem_seg_head\.(?!predictor\.|pixel_decoder\.)'), 'sem_seg_head.pixel_decoder.'),
)
"""Names in the first version of Mask2Former's checkpoints, and the names that replaced them."""

_CONSTANTS = re.compile(r'^(criterion\.empty_weight|pixel_mean|pixel_std)$')
"""Constants that are set in the config instead."""

_PROMPTS = 'model.sem_seg_head.predictor'
_BOXES, _NORM = f'{_PROMPTS}.decoder.bbox_embed.{_DECODER_LAYERS - 1}', f'{_PROMPTS}.decoder_norm'
_TIED = (
    (re.compile(rf'^{re.escape(_PROMPTS)}\.(_bbox_embed|(decoder\.)?bbox_embed\.\d)\.'), f'{_BOXES}.'),
    (re.compile(rf'^{re.escape(_PROMPTS)}\.decoder\.norm\.'), f'{_NORM}.'),
)
"""Modules that a checkpoint contains under several names, and one name for each: the box network, and a norm."""

_LABELS = re.compile(rf'^{re.escape(_PROMPTS)}\.(lang_mapper|class_embed|class_embed_part)$')
"""Tensors of Semantic-SAM that UnSAM does not use."""

_NOT_OF_THE_BACKBONE = re.compile(
    r"""^(
        (encoder_k|projector|projector_k|predictor)\.  # for the training only
        | queue
        | encoder\.norm\.  # before the classifier; MMDetection has one norm a level
        | encoder\.head\.
        | encoder\.layers\.\d\.blocks\.\d\.attn_mask$  # follows from the size of the image
    )""",
    re.VERBOSE,
)


def convert_resnet50(state: StateDict, path: Path) -> StateDict:
    """Returns the backbone of a ResNet-50 with torchvision's names, without the classifier."""
    names = tensor_names((ours, ours, tensors) for _, ours, tensors in detectron2_resnet50('', ''))
    return rename(state, names, path, RESNET50, lambda name: name.startswith('fc.'))


def convert_moby(state: StateDict, path: Path) -> StateDict:
    """Returns the backbone that MoBY trains by gradient descent, without its momentum copy and the heads.

    The norms of the levels are missing, since MoBY has none; MMDetection initialises them.
    """
    kind = f'{MOBY}; the file moby_swin_t_300ep_pretrained.pth is'
    names = tensor_names(_swin_tiny('encoder', 'backbone'))  # MMDetection's Swin reads names with this prefix only
    return _merged_like_mmdet(rename(state, names, path, kind, _NOT_OF_THE_BACKBONE.match))


def convert_whole_image(state: StateDict, path: Path) -> StateDict:
    """Renames the tensors of the whole-image UnSAM or UnSAM+ with any number of queries.

    Raises:
        WeightsError: If a name is missing or unknown, or the model has several classes.
    """
    state = _merge_aliases(state, _LEGACY_NAMES, path, WHOLE_IMAGE)
    converted = rename(state, tensor_names(_whole_image()), path, WHOLE_IMAGE, _CONSTANTS.match)
    if (classes := len(state['sem_seg_head.predictor.class_embed.weight']) - 1) != 1:
        raise WeightsError(f'{path}: a Mask2Former of {classes} classes; UnSAM has one, so this is another model')
    return converted


def convert_promptable(state: StateDict, path: Path) -> StateDict:
    """Renames the tensors of the promptable UnSAM or UnSAM+.

    Raises:
        WeightsError: If a name is missing or unknown, or two names of one tensor have different values.
    """
    state = _merge_aliases(state, _TIED, path, PROMPTABLE)
    converted = rename(state, tensor_names(_promptable()), path, PROMPTABLE, _LABELS.match)
    ours = 'mask_head.prompt_embed.weight'
    converted[ours] = converted[ours][:1].clone()  # the second row, for another kind of label, is never used
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # so that a checkpoint is always converted to the same file
        details = DetailEncoder(_CHANNELS).state_dict()
    return _merged_like_mmdet(converted) | {f'{UNTRAINED}{name}': value for name, value in details.items()}


def _merge_aliases(
    state: StateDict, aliases: tuple[tuple[re.Pattern[str], str], ...], path: Path, kind: str
) -> StateDict:
    """Replaces old names, and several names of one tensor by a single one; patterns are applied in order."""
    merged: StateDict = {}
    for name in sorted(state):
        canonical = name
        for pattern, replacement in aliases:
            canonical = pattern.sub(replacement, canonical)
        if not torch.equal(merged.setdefault(canonical, state[name]), state[name]):
            raise WeightsError(f'{path}: {name!r} differs from {canonical!r}; in {kind} both are one tensor')
    return merged


def _merged_like_mmdet(state: StateDict) -> StateDict:
    """Reorders the input channels of Swin's patch merging.

    MMDetection stacks channels before positions and rows before columns; the authors' code stacks positions before
    channels and columns before rows.
    """

    def reordered(weights: Tensor) -> Tensor:  # (..., 4 C)
        by_place = weights.unflatten(-1, (2, 2, -1))  # column, row, channel
        return by_place.movedim(-1, -3).transpose(-1, -2).flatten(-3)

    return {name: reordered(tensor) if '.downsample.' in name else tensor for name, tensor in state.items()}


def _biased(theirs: str, ours: str, names: dict[str, str]) -> Modules:
    """Modules with weight and bias; `names` maps foreign names to our names, both without the prefixes."""
    return ((f'{theirs}.{there}', f'{ours}.{here}', BIASED) for there, here in names.items())


def _mlp(theirs: str, ours: str, depth: int) -> Modules:
    """The `depth` linear layers of an MLP; our numbers, unlike those of the authors, count the ReLUs between them."""
    return ((f'{theirs}.layers.{layer}', f'{ours}.{2 * layer}', BIASED) for layer in range(depth))


def _deformable(theirs: str, ours: str) -> Modules:
    return ((f'{theirs}.{part}', f'{ours}.{part}', BIASED) for part in _DEFORMABLE)


def _swin_tiny(theirs: str, ours: str) -> Modules:
    """Modules of a Swin-T in its authors' code and in MMDetection, without the norms of the levels."""
    patches = {'patch_embed.proj': 'patch_embed.projection', 'patch_embed.norm': 'patch_embed.norm'}
    yield from _biased(theirs, ours, patches)
    for stage, blocks in enumerate(_BLOCKS):
        for block in range(blocks):
            there, here = f'{theirs}.layers.{stage}.blocks.{block}', f'{ours}.stages.{stage}.blocks.{block}'
            yield f'{there}.attn', f'{here}.attn.w_msa', ('relative_position_bias_table', 'relative_position_index')
            yield from _biased(there, here, {'attn.qkv': 'attn.w_msa.qkv', 'attn.proj': 'attn.w_msa.proj'})
            yield from _biased(there, here, {'norm1': 'norm1', 'norm2': 'norm2'})
            yield from _biased(there, here, {'mlp.fc1': 'ffn.layers.0.0', 'mlp.fc2': 'ffn.layers.1'})
        if stage < len(_BLOCKS) - 1:
            there, here = f'{theirs}.layers.{stage}.downsample', f'{ours}.stages.{stage}.downsample'
            yield f'{there}.reduction', f'{here}.reduction', WEIGHT
            yield f'{there}.norm', f'{here}.norm', BIASED


def _pixel_decoder(theirs: str, levels: int, lateral: str, output: str) -> Modules:
    """The pixel decoder of Mask2Former and MaskDINO; `lateral` and `output` are MMDetection's convolutions."""
    ours = 'mask_head.pixel_decoder'
    yield f'{theirs}.transformer.level_embed', f'{ours}.level_encoding.weight', ()
    for level in range(levels):
        yield f'{theirs}.input_proj.{level}.0', f'{ours}.input_convs.{level}.conv', BIASED
        yield f'{theirs}.input_proj.{level}.1', f'{ours}.input_convs.{level}.gn', BIASED
    for layer in range(_ENCODER_LAYERS):
        there, here = f'{theirs}.transformer.encoder.layers.{layer}', f'{ours}.encoder.layers.{layer}'
        yield from _deformable(f'{there}.self_attn', f'{here}.self_attn')
        yield from _biased(there, here, {'norm1': 'norms.0', 'norm2': 'norms.1', **_FFN})
    for part, convolution in (('adapter_1', lateral), ('layer_1', output)):
        yield f'{theirs}.{part}', f'{ours}.{convolution}.conv', WEIGHT
        yield f'{theirs}.{part}.norm', f'{ours}.{convolution}.gn', BIASED
    yield f'{theirs}.mask_features', f'{ours}.mask_feature', BIASED


def _whole_image() -> Modules:
    queries, decoder = 'sem_seg_head.predictor', 'mask_head.transformer_decoder'
    yield from detectron2_resnet50('backbone.', 'backbone.')
    yield from _pixel_decoder('sem_seg_head.pixel_decoder', 3, 'lateral_convs.0', 'output_convs.0')
    for layer in range(_DECODER_LAYERS):
        ours = f'{decoder}.layers.{layer}'
        cross, own, ffn = (
            f'{queries}.transformer_{name}_layers.{layer}' for name in ('cross_attention', 'self_attention', 'ffn')
        )
        yield f'{cross}.multihead_attn', f'{ours}.cross_attn.attn', _ATTENTION
        yield f'{own}.self_attn', f'{ours}.self_attn.attn', _ATTENTION
        yield from _biased(ffn, ours, _FFN)
        for position, part in enumerate((cross, own, ffn)):  # the order in which they are applied
            yield f'{part}.norm', f'{ours}.norms.{position}', BIASED
    yield f'{queries}.decoder_norm', f'{decoder}.post_norm', BIASED
    for table in ('query_feat', 'query_embed', 'level_embed'):
        yield f'{queries}.{table}', f'mask_head.{table}', WEIGHT
    yield f'{queries}.class_embed', 'mask_head.cls_embed', BIASED
    yield from _mlp(f'{queries}.mask_embed', 'mask_head.mask_embed', 3)


def _promptable() -> Modules:
    decoder = 'mask_head.decoder'
    yield from _swin_tiny('model.backbone', 'backbone')
    for stage in range(len(_BLOCKS)):
        yield f'model.backbone.norm{stage}', f'backbone.norm{stage}', BIASED
    yield from _pixel_decoder('model.sem_seg_head.pixel_decoder', 4, 'lateral_conv', 'output_conv')
    for layer in range(_DECODER_LAYERS):
        there, here = f'{_PROMPTS}.decoder.layers.{layer}', f'{decoder}.layers.{layer}'
        yield f'{there}.self_attn', f'{here}.self_attn', _ATTENTION
        yield from _deformable(f'{there}.cross_attn', f'{here}.cross_attn')
        yield from _biased(there, here, _FFN)
        # The authors' numbers of the norms do not follow the order in which they are applied.
        yield from _biased(there, here, {'norm2': 'norms.0', 'norm1': 'norms.1', 'norm3': 'norms.2'})
    yield _NORM, f'{decoder}.norm', BIASED
    yield from _mlp(f'{_PROMPTS}.decoder.ref_point_head', f'{decoder}.position_mlp', 2)
    yield from _mlp(_BOXES, f'{decoder}.box_mlp', 3)
    yield from _mlp(f'{_PROMPTS}.mask_embed', 'mask_head.mask_mlp', 3)
    yield from _mlp(f'{_PROMPTS}.iou_prediction_head', 'mask_head.iou_mlp', 3)
    for there, here in (('label_enc', 'prompt_embed'), ('pb_embedding', 'type_embed'), ('mask_tokens', 'mask_tokens')):
        yield f'{_PROMPTS}.{there}', f'mask_head.{here}', WEIGHT
