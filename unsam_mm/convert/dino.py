"""DINO's ResNet-50, from which the published models start their backbone. MMDetection has torchvision's names."""

from __future__ import annotations

from pathlib import Path

from unsam_mm.checkpoints import StateDict, detectron2_resnet50, rename, tensor_names

KIND = 'a ResNet-50 in the names of torchvision, as DINO has them'


def convert_resnet50(state: StateDict, path: Path) -> StateDict:
    """The backbone's tensors; a classifier is left out.

    Args:
        state: Tensors by torchvision's names.
        path: Their file, for messages.

    Raises:
        WeightsError: If a name is missing or left over.
    """
    names = tensor_names((ours, ours, tensors) for _, ours, tensors in detectron2_resnet50('', ''))
    return rename(state, names, path, KIND, lambda name: name.startswith('fc.'))
