"""Reads checkpoints of other frameworks without executing code from them, and renames their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from unsam_mm.errors import WeightsError

StateDict = dict[str, Tensor]
Modules = Iterable[tuple[str, str, tuple[str, ...]]]
"""Foreign name, our name, and tensor names of each module; an entry without tensor names is itself a tensor."""

WEIGHT, BIASED = ('weight',), ('weight', 'bias')
BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var')
COUNTER = 'num_batches_tracked'

_RESNET50_BLOCKS = (3, 4, 6, 3)
_WRAPPERS = ('model', 'state_dict')  # Detectron2's and MMEngine's entry for the weights
_PICKLES = ('.pkl', '.pickle')


def read_checkpoint(path: Path) -> StateDict:
    """The model's tensors in a ``.pth`` or ``.safetensors`` file, by name; the state of the training is left out.

    Raises:
        WeightsError: If the file is missing or damaged, is a ``.pkl`` or ``.pickle`` file, or does not contain named
            tensors only.
    """
    if path.is_dir():
        raise WeightsError(f'{path}: a folder, not a checkpoint; what "weights fetch" leaves in folders is converted')
    if not path.is_file():
        raise WeightsError(f'{path}: no such file; give a checkpoint, or a name that "weights list" shows')
    if path.suffix in _PICKLES:
        raise WeightsError(
            f'{path}: a pickle can run code, so it is not opened; use the .pth file that the authors of the model '
            'published (dino_resnet50_pretrain.pth for a DINO backbone)'
        )
    try:
        content = load_file(path) if path.suffix == '.safetensors' else torch.load(path, 'cpu', weights_only=True)
    except Exception as error:  # what torch raises depends on the first bytes, from IndexError to struct.error
        raise WeightsError(
            f'{path}: cannot be read as a checkpoint of tensors; download it again, or if it is the dump of a '
            "training, save only its entry 'model' where it was made"
        ) from error
    for wrapper in _WRAPPERS:
        content = content.get(wrapper, content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f'{path}: contains no tensors by name, so it is not a checkpoint of a model')
    return dict(content)


def tensor_names(modules: Modules) -> Iterator[tuple[str, str]]:
    """The foreign name and our name of every tensor."""
    for theirs, ours, tensors in modules:
        yield from ((f'{theirs}.{tensor}', f'{ours}.{tensor}') for tensor in tensors)
        if not tensors:
            yield theirs, ours


def rename(
    state: StateDict, names: Iterable[tuple[str, str]], path: Path, kind: str, ignored: Callable[[str], object]
) -> StateDict:
    """Renames tensors, and adds the counter of batches to batch norms: Detectron2's frozen batch norms have none.

    Args:
        state: Tensors by their foreign names.
        names: Foreign name and our name of every tensor of the model.
        path: The file, for messages.
        kind: The model, for messages.
        ignored: Returns a true value for the foreign names of tensors that are not needed.

    Raises:
        WeightsError: If a tensor is missing or unknown.
    """
    names = dict(names)
    given = {key for key in state if not key.endswith(COUNTER) and not ignored(key)}
    for problem, keys in (('lacks', names.keys() - given), ('has an unknown', given - names.keys())):
        if keys:
            raise WeightsError(f'{path}: {problem} {min(keys)!r} ({len(keys)} such keys), so it is not {kind}')
    renamed = {ours: state[theirs] for theirs, ours in names.items()}
    for ours in [name for name in renamed if name.endswith('running_var')]:
        renamed[ours.replace('running_var', COUNTER)] = torch.zeros((), dtype=torch.long)
    return renamed


def detectron2_resnet50(theirs: str, ours: str) -> Modules:
    """Modules of a ResNet-50 in Detectron2 and in MMDetection, which uses torchvision's names.

    Args:
        theirs: Prefix in Detectron2, with its dot, or empty.
        ours: Prefix in MMDetection, with its dot, or empty.
    """
    yield f'{theirs}stem.conv1', f'{ours}conv1', WEIGHT
    yield f'{theirs}stem.conv1.norm', f'{ours}bn1', BATCH_NORM
    for stage, blocks in enumerate(_RESNET50_BLOCKS, start=1):
        for number in range(blocks):
            there, here = f'{theirs}res{stage + 1}.{number}', f'{ours}layer{stage}.{number}'
            for convolution in (1, 2, 3):
                yield f'{there}.conv{convolution}', f'{here}.conv{convolution}', WEIGHT
                yield f'{there}.conv{convolution}.norm', f'{here}.bn{convolution}', BATCH_NORM
            if number == 0:
                yield f'{there}.shortcut', f'{here}.downsample.0', WEIGHT
                yield f'{there}.shortcut.norm', f'{here}.downsample.1', BATCH_NORM
