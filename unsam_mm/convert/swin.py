"""Swin-T in the names of MMDetection: that of its authors' code, and MoBY's, trained without labels.

Where patches are merged, weights change their order: MMDetection stacks channels before places and rows before columns,
the authors' code places before channels and columns before rows.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from unsam_mm.checkpoints import BIASED, WEIGHT, Modules, StateDict, rename, tensor_names

MOBY_KIND = "MoBY's self-supervised Swin-T"

_BLOCKS = (2, 2, 6, 2)

_NOT_OF_THE_BACKBONE = re.compile(
    r"""^(
        (encoder_k|projector|projector_k|predictor)\.  # what only the training needed
        | queue
        | encoder\.norm\.  # before the classifier; MMDetection has a norm for each level
        | encoder\.head\.
        | encoder\.layers\.\d\.blocks\.\d\.attn_mask$  # follows from the size of the image
    )""",
    re.VERBOSE,
)


def convert_moby(state: StateDict, path: Path) -> StateDict:
    """The backbone that MoBY's training updated by gradients; its slow copy and the heads are left out.

    Norms of the levels, which MoBY has not, are missing and start as MMDetection starts them.

    Args:
        state: Tensors by their official names.
        path: Their file, for messages.

    Raises:
        WeightsError: If a name is missing or left over.
    """
    kind = f'{MOBY_KIND}; the file moby_swin_t_300ep_pretrained.pth is'
    names = tensor_names(swin_tiny('encoder.', 'backbone.'))  # MMDetection's Swin reads names with this prefix only
    return merged_like_mmdet(rename(state, names, path, kind, _NOT_OF_THE_BACKBONE.match))


def swin_tiny(theirs: str, ours: str) -> Modules:
    """Modules of a Swin-T in its authors' code and in MMDetection, without the norms of the levels.

    Args:
        theirs: Prefix there, with its dot.
        ours: Prefix here, with its dot.
    """
    yield f'{theirs}patch_embed.proj', f'{ours}patch_embed.projection', BIASED
    yield f'{theirs}patch_embed.norm', f'{ours}patch_embed.norm', BIASED
    for stage, blocks in enumerate(_BLOCKS):
        for block in range(blocks):
            there, here = f'{theirs}layers.{stage}.blocks.{block}', f'{ours}stages.{stage}.blocks.{block}'
            yield f'{there}.norm1', f'{here}.norm1', BIASED
            yield f'{there}.attn', f'{here}.attn.w_msa', ('relative_position_bias_table', 'relative_position_index')
            yield f'{there}.attn.qkv', f'{here}.attn.w_msa.qkv', BIASED
            yield f'{there}.attn.proj', f'{here}.attn.w_msa.proj', BIASED
            yield f'{there}.norm2', f'{here}.norm2', BIASED
            yield f'{there}.mlp.fc1', f'{here}.ffn.layers.0.0', BIASED
            yield f'{there}.mlp.fc2', f'{here}.ffn.layers.1', BIASED
        if stage < len(_BLOCKS) - 1:
            there, here = f'{theirs}layers.{stage}.downsample', f'{ours}stages.{stage}.downsample'
            yield f'{there}.reduction', f'{here}.reduction', WEIGHT
            yield f'{there}.norm', f'{here}.norm', BIASED


def merged_like_mmdet(state: StateDict) -> StateDict:
    """Tensors by MMDetection's names, those on merged patches in its order."""
    return {name: _reordered(tensor) if '.downsample.' in name else tensor for name, tensor in state.items()}


def _reordered(weights: Tensor) -> Tensor:
    """(..., 4 C) weights on merged patches."""
    by_place = weights.unflatten(-1, (2, 2, -1))  # column, row, channel
    return by_place.movedim(-1, -3).transpose(-1, -2).flatten(-3)
