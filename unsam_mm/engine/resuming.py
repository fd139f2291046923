"""Finds the checkpoint of an interrupted training, and checks checkpoints: MMEngine only logs mismatched keys."""

from __future__ import annotations

import copy
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModule, is_model_wrapper
from mmengine.runner import checkpoint as mmengine_checkpoint

from unsam_mm.datasets.messages import log_warning
from unsam_mm.errors import UnSAMError, WeightsError, describe_error

POINTER = 'last_checkpoint'
"""The file in which MMEngine records the path of the checkpoint that it wrote last."""

_GLOBAL = re.compile(r'GLOBAL (\S+)')
"""Matches the name of the object that torch refuses to load, in its error message."""


def find_resumable(work_dir: str | Path) -> Path | None:
    """The last complete checkpoint of a training; None if there is none.

    A process can be killed while it writes a checkpoint or the pointer file. Incomplete checkpoints are skipped. If the
    pointer is empty, or its file is missing, the newest checkpoint in the folder is returned. The folder may have been
    moved since the pointer was written.

    Args:
        work_dir: Folder of the training.
    """
    folder = Path(work_dir)
    pointer = folder / POINTER
    recorded = [folder / Path(pointer.read_text(encoding='utf-8').strip()).name] if pointer.is_file() else []
    # A training cannot be resumed from a best checkpoint, which has no optimizer state.
    written = sorted(folder.glob('iter_*.pth'), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in [*recorded, *written] if path.is_file() and zipfile.is_zipfile(path)), None)


def check_resumable(path: Path, model: torch.nn.Module) -> None:
    """Checks that a training of a model can be resumed from a file; checks nothing with upstream's MMEngine.

    Raises:
        UnSAMError: If the file cannot be read, is of another model, or contains weights but not the state of a
            training.
    """
    if not hasattr(mmengine_checkpoint, 'get_torch_safe_globals'):
        return  # upstream's MMEngine: the state of a training can be read only by unpickling it
    checkpoint = _read(path)
    _check_weights(path, _weights_of(checkpoint), model)
    missing = [name for name in ('meta', 'optimizer', 'message_hub') if name not in checkpoint]
    if missing:
        raise UnSAMError(
            f'{path}: has no {missing[0]}, so no training can be resumed from it; give one of the iter_*.pth in its '
            'folder, or start a new training from its weights with --cfg-options load_from=FILE'
        )


def check_start(path: Path, model: torch.nn.Module, partial: bool = False) -> None:
    """Checks that a test or a training of a model can start from the weights in a file.

    Args:
        path: The file.
        model: The model.
        partial: True if weights may be missing or of another shape. These are initialised at random, and their number
            is logged.

    Raises:
        UnSAMError: If the file cannot be read, or a weight is missing or of another shape; with `partial`, if no weight
            fits.
    """
    _check_weights(path, _weights_of(_read(path)), model, partial)


def check_backbone(path: Path, backbone: BaseModule) -> None:
    """Checks that a backbone can start from the file that its `init_cfg` names, by initialising a copy of it.

    Args:
        path: The file, for messages.
        backbone: The backbone of an `UnSAM` detector, which checks what is loaded into it.

    Raises:
        UnSAMError: If the file cannot be read or is of another backbone.
    """
    _read(path)
    try:
        with torch.random.fork_rng(devices=[]):
            copy.deepcopy(backbone).init_weights()
    except WeightsError as error:
        raise UnSAMError(f'{path}: {error}') from error
    except (IndexError, RuntimeError) as error:  # from MMDetection's Swin, which reshapes the weights that it loads
        raise UnSAMError(
            f'{path}: not a checkpoint of the backbone, {type(backbone).__name__} ({error}); give one of this backbone, as '
            '"python -m unsam_mm convert" writes it'
        ) from error


def _check_weights(
    path: Path, found: Mapping[str, torch.Tensor], model: torch.nn.Module, partial: bool = False
) -> None:
    wanted = unwrapped(model).state_dict()
    wrong = [name for name, weight in wanted.items() if name not in found or found[name].shape != weight.shape]
    if not wrong:
        return
    problem = f'{len(wrong)} of its {len(wanted)} weights are missing or differ in shape, the first is {wrong[0]}'
    if not partial or len(wrong) == len(wanted):
        raise UnSAMError(
            f'{path}: of another model than that of the config; {problem}; give the config that the checkpoint was '
            'trained with'
        )
    log_warning(f'{path}: not all weights of the model; {problem}; these are initialised at random')


def _read(path: Path) -> Any:
    # Allows the classes of the loss curves that checkpoints of a training contain. MMEngine itself would unpickle any
    # object in a file. Upstream's MMEngine has no list of such classes, so of its trainings only `latest.pth` can be
    # read.
    torch.serialization.add_safe_globals(getattr(mmengine_checkpoint, 'get_torch_safe_globals', list)())
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:  # torch's message recommends to unpickle the file
        if refused := _GLOBAL.search(str(error)):
            raise UnSAMError(
                f'{path}: cannot be read as a checkpoint: besides tensors it contains {refused[1]}, which would have to '
                'be unpickled, and that can run code; give the latest.pth that tools/train.py writes at the end of a '
                'training, or a file with the "state_dict" alone'
            ) from error
        raise UnSAMError(f'{path}: cannot be read as a checkpoint; give a .pth file, or copy it again') from error
    except Exception as error:  # torch raises errors of many types for damaged files
        raise UnSAMError(f'{path}: cannot be read as a checkpoint ({describe_error(error)}); copy it again') from error


def _weights_of(checkpoint: Any) -> dict[str, torch.Tensor]:
    weights = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, dict) else {}
    return {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model without a wrapper for distributed training."""
    return model.module if is_model_wrapper(model) else model
