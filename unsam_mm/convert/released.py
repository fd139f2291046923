"""Converts released checkpoints, recognised by their tensor names, to files that MMEngine or this package loads."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import safetensors.torch
import torch

from unsam_mm.checkpoints import StateDict, read_checkpoint
from unsam_mm.convert import names
from unsam_mm.errors import UnSAMError, WeightsError
from unsam_mm.files import atomic_writer
from unsam_mm.published import cutler_checkpoint


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint.

    Attributes:
        kind: The model, for messages.
        mark: Matches the beginning of a tensor name that only this kind has.
        convert: Called with the tensors and the path of their file; returns the tensors under MMDetection's names.
        suffix: Suffix of the written file: MMEngine loads ``.pth`` only, `load_cutler` only ``.safetensors``.
        usage: Advice on how to use the written file; ``{}`` stands for its path.
    """

    kind: str
    mark: re.Pattern[str]
    convert: Callable[[StateDict, Path], StateDict]
    suffix: str
    usage: str


FORMATS = (
    Format(
        names.WHOLE_IMAGE,
        re.compile(r'sem_seg_head\.predictor\.'),
        names.convert_whole_image,
        '.pth',
        'give it to `mim test` as --checkpoint {}, with a config whose model is _base_/models/unsam_r50.py',
    ),
    Format(
        names.PROMPTABLE,
        re.compile(r'model\.sem_seg_head\.predictor\.pb_embedding\.'),
        names.convert_promptable,
        '.pth',
        'give it to `mim test` as --checkpoint {}, with a config whose model is _base_/models/unsam_swint_prompt.py; the '
        f'release has one click or box a prompt: weights {names.UNTRAINED}*, for several clicks, '
        'earlier masks and granularity, are untrained, and unused without these',
    ),
    Format(
        cutler_checkpoint.KIND,
        re.compile(r'roi_heads\.'),
        cutler_checkpoint.convert_cutler,
        '.safetensors',
        "CutLERDivider(checkpoint='{}') accepts it",
    ),
    Format(
        names.RESNET50,
        re.compile(r'layer1\.0\.conv1\.weight'),
        names.convert_resnet50,
        '.pth',
        "start a ResNet-50 from it by model.backbone.init_cfg = dict(type='Pretrained', checkpoint='{}')",
    ),
    Format(
        names.MOBY,
        re.compile(r'encoder\.layers\.0\.blocks\.0\.attn\.qkv\.'),
        names.convert_moby,
        '.pth',
        "start a Swin-T from it by model.backbone.init_cfg = dict(type='Pretrained', checkpoint='{}')",
    ),
)

_CONVERTED = re.compile(r'mask_head\.|backbone\.layer1\.|backbone\.stages\.')


def convert_checkpoint(source: Path, target: Path) -> tuple[Format, int]:
    """Writes a released checkpoint under MMDetection's names. `target` is written completely or not at all.

    Args:
        source: A ``.pth`` or ``.safetensors`` file.
        target: The file to write; replaced if it exists.

    Returns:
        The kind of checkpoint, and the number of tensors in `target`.

    Raises:
        WeightsError: If `source` cannot be read, or is of no known kind.
        UnSAMError: If `target` has the wrong suffix or is `source`.
        StoreError: If `target` cannot be written.
    """
    state = read_checkpoint(source)
    format_ = _format_of(state, source)
    if target.suffix != format_.suffix:
        raise UnSAMError(f'{target}: a file of {format_.kind} must end in {format_.suffix}; choose another name')
    if target.exists() and target.samefile(source):
        raise UnSAMError(f'{target}: is the checkpoint itself; choose another name')
    converted = format_.convert(state, source)
    content = _serialise(converted, format_, source)
    with atomic_writer(target, binary=True) as file:
        file.write(content)
    return format_, len(converted)


def _format_of(state: StateDict, path: Path) -> Format:
    for format_ in FORMATS:
        if any(format_.mark.match(name) for name in state):
            return format_
    if any(_CONVERTED.match(name) for name in state):
        raise WeightsError(f"{path}: has MMDetection's names already; use it as it is")
    raise WeightsError(
        f'{path}: its first name, {min(state)!r}, belongs to no known checkpoint; known are '
        f'{"; ".join(format_.kind for format_ in FORMATS)}'
    )


def _serialise(state: StateDict, format_: Format, source: Path) -> bytes | memoryview:
    if format_.suffix == '.safetensors':
        state = {name: tensor.contiguous() for name, tensor in state.items()}
        return safetensors.torch.save(state, metadata={'format': 'pt', 'source': source.name})
    buffer = BytesIO()
    # MMDetection's inference reads the class names from `dataset_meta`.
    meta = {'source': source.name, 'kind': format_.kind, 'dataset_meta': {'classes': ('object',)}}
    torch.save({'state_dict': state, 'meta': meta}, buffer)
    return buffer.getbuffer()
