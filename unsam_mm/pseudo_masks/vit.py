"""Patch features of a frozen self-supervised vision transformer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unsam_mm import weights
from unsam_mm.errors import UnSAMError, WeightsError, describe_error

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
VITS = (
    'dinov2_vits14',
    'dinov2_vitb14',
    'dino_vits16',
    'dino_vits8',
    'dino_vitb16',
    'dino_vitb8',
    'dinov3_vits16',
    'dinov3_vitb16',
)
"""ViTs of `unsam_mm.weights.TABLE`; the path of a folder in transformers' format can be given instead."""

FACETS = ('key', 'query', 'value', 'token')

_MODEL_CLASSES = {
    'vit': 'ViTModel',
    'dinov2': 'Dinov2Model',
    'dinov2_with_registers': 'Dinov2WithRegistersModel',
    'dinov3_vit': 'DINOv3ViTModel',
}


def check_device(device: str) -> None:
    """Checks that torch can use a device, before large files are loaded.

    Raises:
        UnSAMError: If the device cannot be used.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UnSAMError(
            f'device {device!r} cannot be used ({describe_error(error)}); use cpu, or install torch for that device'
        ) from error


def vit_folder(vit: str) -> Path:
    """The folder, in transformers' format, of a ViT; fetched into the cache if needed.

    Args:
        vit: One of `VITS`, or the path of such a folder.

    Raises:
        UnSAMError: If `vit` is neither.
        WeightsError: If the weights are not available.
    """
    if vit in VITS:
        return weights.fetch(vit)
    if Path(vit, 'config.json').is_file():
        return Path(vit)
    raise UnSAMError(
        f'vit {vit!r} is not supported; choose from {", ".join(VITS)}, or give a folder with config.json and '
        'model.safetensors as transformers writes it'
    )


def load_vit(name: str = 'dinov2_vits14', device: str = 'cpu') -> PreTrainedModel:
    """A frozen ViT in evaluation mode, fetched into the cache if needed.

    Args:
        name: One of `VITS`, or the path of a folder in transformers' format.
        device: Torch device.

    Raises:
        UnSAMError: If the ViT or the device is unknown.
        WeightsError: If the weights are not available, or do not fit the model.
    """
    import transformers
    from safetensors import SafetensorError
    from transformers.utils import logging

    check_device(device)
    path = vit_folder(name)
    kind = _model_type(path)
    # The classification pooler of ViTModel is not part of DINO.
    options = {'add_pooling_layer': False} if kind == 'vit' else {}
    model_class = getattr(transformers, _MODEL_CLASSES[kind])
    show_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # loading takes less than a second
    try:
        vit, info = model_class.from_pretrained(path, local_files_only=True, output_loading_info=True, **options)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f'{path}: damaged ({error}); remove the folder and fetch it again') from error
    finally:
        if show_progress:
            logging.enable_progress_bar()
    if wrong := {key: found for key, found in info.items() if found}:
        raise WeightsError(f'{path}: not the weights of {name} ({wrong}); remove the folder and fetch it again')
    return vit.eval().requires_grad_(False).to(device)


def _load_for_features(name: str, device: str) -> nn.Module:
    """Same as `load_vit`, but without importing transformers where that is not needed."""
    from unsam_mm.pseudo_masks.dinov2 import is_plain, load_dinov2

    check_device(device)
    path = vit_folder(name)
    return load_dinov2(path).to(device) if is_plain(path) else load_vit(name, device)


def _model_type(path: Path) -> str:
    try:
        kind = json.loads((path / 'config.json').read_text(encoding='utf-8')).get('model_type')
    except (OSError, ValueError) as error:
        raise WeightsError(
            f'{path}: config.json is missing or damaged; remove the folder and fetch it again'
        ) from error
    if kind not in _MODEL_CLASSES:
        raise WeightsError(f'{path}: models of type {kind!r} give no patch features; use {", ".join(_MODEL_CLASSES)}')
    return kind


class PatchFeatureExtractor:
    """Extracts patch features of an image from the last layer of a frozen ViT.

    Position embeddings are interpolated to the patch grid, so images need not be square; class and register tokens are
    left out. Keys and queries are read before the rotary position embedding of DINOv3.

    Args:
        vit: One of `VITS`, or the path of a folder in transformers' format.
        facet: Features that are read: 'key' (as in MaskCut and the paper), 'query', 'value' or 'token' (the output of
            the ViT).
        long_side_px: Longer side of the resized image; both sides are rounded to multiples of the patch size.
        device: Torch device.

    Raises:
        UnSAMError: If the facet, the ViT or the device is unknown, or the size is not positive.
        WeightsError: If the weights are not available.
    """

    def __init__(
        self, vit: str = 'dinov2_vits14', facet: str = 'key', long_side_px: int = 714, device: str = 'cpu'
    ) -> None:
        if facet not in FACETS:
            raise UnSAMError(f'facet must be one of {", ".join(FACETS)}, got {facet!r}')
        if long_side_px < 1:
            raise UnSAMError(f'long_side_px must be positive, got {long_side_px}')
        self.facet, self.long_side_px, self.device = facet, long_side_px, device
        self._vit = _load_for_features(vit, device)
        config = self._vit.config
        self._patch_px = config.patch_size
        self._special_tokens = 1 + getattr(config, 'num_register_tokens', 0)  # the class token comes first
        # Models of other types interpolate their position embeddings by default.
        self._options = {'interpolate_pos_encoding': True} if config.model_type == 'vit' else {}
        self._lock = threading.RLock()  # hooks are registered on the shared ViT
        self._current_run: object = None  # a progress callback may start a nested run

    def __call__(self, image: np.ndarray, progress: Callable[[float], None] | None = None) -> np.ndarray:
        """Features of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            progress: Called after each layer with the progress in (0, 1]; an exception raised inside stops the run.

        Returns:
            (h, w, C) float32: h and w are the sides of the resized image over the patch size, C is the number of
            channels of the ViT (384 by default).
        """
        import torch

        with self._lock, torch.inference_mode():
            pixels = self._prepare(image)
            tokens = self._run(pixels, progress)[0, self._special_tokens :]
            grid_hw = [side // self._patch_px for side in pixels.shape[-2:]]
            return tokens.unflatten(0, grid_hw).float().cpu().numpy()

    def _prepare(self, image: np.ndarray) -> Tensor:
        """(1, 3, H, W) normalised pixels of the resized image."""
        import torch
        from torch.nn.functional import interpolate

        height, width = image.shape[:2]
        scale = self.long_side_px / max(height, width)
        size = [max(1, round(side * scale / self._patch_px)) * self._patch_px for side in (height, width)]
        image = np.ascontiguousarray(image)  # torch does not support negative strides
        pixels = torch.tensor(image, device=self.device).permute(2, 0, 1)[None].float() / 255
        pixels = interpolate(pixels, size=size, mode='bicubic', antialias=True, align_corners=False)
        mean = torch.tensor(_IMAGENET_MEAN, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(_IMAGENET_STD, device=self.device).view(1, 3, 1, 1)
        return (pixels - mean) / std

    def _run(self, pixels: Tensor, progress: Callable[[float], None] | None) -> Tensor:
        """(1, tokens, C) features of the facet, class and register tokens included."""
        blocks = _blocks(self._vit)
        source = blocks[-1] if self.facet == 'token' else _projection(blocks[-1], self.facet)
        run = object()  # nested runs call the hooks of this run as well
        captured: list[Tensor] = []

        def read(output: Tensor) -> None:
            if self._current_run is run:
                captured.append(output)
                raise _FeaturesRead

        def report(n_done: int, _output: Tensor) -> None:
            if self._current_run is run:
                progress(n_done / len(blocks))

        with ExitStack() as stack:
            stack.callback(setattr, self, '_current_run', self._current_run)
            self._current_run = run
            stack.enter_context(_hook(source, read))
            for n_done, block in enumerate(blocks[:-1], start=1) if progress else ():
                stack.enter_context(_hook(block, partial(report, n_done)))
            with suppress(_FeaturesRead):
                self._vit(pixel_values=pixels, **self._options)
        if progress:
            progress(1.0)
        return _last_norm(self._vit)(captured[0]) if self.facet == 'token' else captured[0]


class _FeaturesRead(Exception):
    """Ends a run of the ViT once the features are read."""


@contextmanager
def _hook(module, call: Callable) -> Iterator[None]:
    """Calls ``call(output)`` after each forward pass of a module inside the block."""

    def forward_hook(module, inputs, output) -> None:
        call(output[0] if isinstance(output, tuple) else output)  # blocks return a tuple in transformers < 5

    handle = module.register_forward_hook(forward_hook)
    try:
        yield
    finally:
        handle.remove()


def _blocks(vit: nn.Module):
    """The transformer blocks; their attribute differs between models and versions."""
    for holder, name in (('encoder', 'layer'), ('model', 'layer'), (None, 'layers'), (None, 'layer')):
        parent = getattr(vit, holder, None) if holder else vit
        if hasattr(parent, name):
            return getattr(parent, name)
    raise UnSAMError(
        f'{type(vit).__name__}: no transformer blocks found in this version of transformers; install a version that '
        'pyproject.toml allows'
    )


def _last_norm(vit: nn.Module):
    return vit.layernorm if hasattr(vit, 'layernorm') else vit.norm


def _projection(block, facet: str):
    """The linear layer of the keys, queries or values of a block."""
    attention = block.attention
    if hasattr(attention, 'attention'):  # transformers < 5
        return getattr(attention.attention, facet)
    return getattr(attention, f'{facet[0]}_proj')
