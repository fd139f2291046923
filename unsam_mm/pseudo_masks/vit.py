"""Patch features of a frozen self-supervised vision transformer."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unsam_mm import weights
from unsam_mm.errors import UnSAMError, WeightsError, explained

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
"""ViTs of `unsam_mm.weights.TABLE`; the paths of folders in transformers' format are taken as well."""

FACETS = ('key', 'query', 'value', 'token')
DTYPES = ('float32', 'float16', 'bfloat16')

_attention_lock = threading.RLock()  # the attention backend of torch is a global setting

_MODEL_CLASSES = {
    'vit': 'ViTModel',
    'dinov2': 'Dinov2Model',
    'dinov2_with_registers': 'Dinov2WithRegistersModel',
    'dinov3_vit': 'DINOv3ViTModel',
}


def check_device(device: str) -> None:
    """Checks that torch can use a device, before large files are loaded.

    Raises:
        UnSAMError: If it cannot.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UnSAMError(
            f'device {device!r} cannot be used ({explained(error)}); use cpu, or install torch for that device'
        ) from error


def vit_folder(vit: str) -> Path:
    """The folder, in transformers' format, of a ViT; fetched into the cache if needed.

    Args:
        vit: One of `VITS`, or the path of such a folder.

    Raises:
        UnSAMError: If it is neither.
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
    check_device(device)
    path = vit_folder(name)
    from unsam_mm.pseudo_masks.dinov2 import is_plain, load_dinov2

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


@dataclass(frozen=True)
class PatchFeatures:
    """Features on the patch grid of an image.

    Attributes:
        grid: (h, w, C) float32.
        size_hw: Height and width of the image in pixels.
    """

    grid: np.ndarray
    size_hw: tuple[int, int]


class PatchFeatureExtractor:
    """Extracts patch features of an image from a frozen ViT.

    Position embeddings are interpolated to the patch grid, so images need not be square; class and register tokens are
    left out. Keys and queries are read before the rotary position embedding of DINOv3.

    Args:
        vit: One of `VITS`, or the path of a folder in transformers' format.
        facet: Which features are read: 'key' (as in MaskCut and the paper), 'query', 'value' or 'token' (the output of
            the layer, after the last layer norm of the ViT).
        long_side_px: The image is resized so that its longer side has this many pixels; both sides become
            multiples of the patch size.
        device: Torch device.
        layer: Index of the layer that is read, negative from the end. The channels of several layers are concatenated
            in the given order.
        dtype: 'float32', or 'float16' or 'bfloat16' for autocast; the features are float32.

    Raises:
        UnSAMError: If the facet, the layer, the ViT, the precision or the device is unknown, or the size is not
            positive.
        WeightsError: If the weights are not available.
    """

    def __init__(
        self,
        vit: str = 'dinov2_vits14',
        facet: str = 'key',
        long_side_px: int = 714,
        device: str = 'cpu',
        layer: int | Sequence[int] = -1,
        dtype: str = 'float32',
    ) -> None:
        for name, value, known in (('facet', facet, FACETS), ('dtype', dtype, DTYPES)):
            if value not in known:
                raise UnSAMError(f'{name} must be one of {", ".join(known)}, got {value!r}')
        if long_side_px < 1:
            raise UnSAMError(f'long_side_px must be positive, got {long_side_px}')
        self.facet, self.long_side_px, self.device, self.dtype = facet, long_side_px, device, dtype
        self._vit = _load_for_features(vit, device)
        self._layers = _check_layers((layer,) if isinstance(layer, int) else tuple(layer), len(_blocks(self._vit)))
        config = self._vit.config
        self._patch_px = config.patch_size
        self._special_tokens = 1 + getattr(config, 'num_register_tokens', 0)  # the class token comes first
        # The other models interpolate their position embeddings by default.
        self._options = {'interpolate_pos_encoding': True} if config.model_type == 'vit' else {}
        self._lock = threading.RLock()  # hooks are registered on the shared ViT
        self._captured: dict[int, Tensor] = {}  # of the current run; a progress callback may start a nested run

    def __call__(self, image: np.ndarray, progress: Callable[[float], None] | None = None) -> PatchFeatures:
        """Features of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            progress: Called after each layer with the progress in (0, 1]; an exception raised inside stops the run.

        Returns:
            Features of shape (h, w, C): h and w are the sides of the resized image over the patch size, C the number of
            channels of the ViT (384 by default) times the number of layers.
        """
        import torch

        with self._lock, torch.inference_mode():
            return self._extract(self._prepare(image), [image.shape[:2]], progress)[0]

    def extract_batch(self, images: Sequence[np.ndarray]) -> list[PatchFeatures]:
        """Features of several images; images of equal resized shape are processed as one batch.

        Useful on a GPU. On one CPU core the default ViT takes 0.11 instead of 0.14 s an image for 8 images of 224 px,
        but 2.9 instead of 2.3 s for 3 images of 714 px. Memory grows with the number of images of one shape.

        Args:
            images: (H, W, 3) uint8 RGB each; sizes may differ.

        Returns:
            The features of each image in order, equal to those of single calls up to rounding.
        """
        import torch

        with self._lock, torch.inference_mode():
            prepared = [self._prepare(image) for image in images]
            groups: dict[tuple[int, ...], list[int]] = {}
            for index, pixels in enumerate(prepared):
                groups.setdefault(tuple(pixels.shape), []).append(index)
            found: dict[int, PatchFeatures] = {}
            for members in groups.values():
                pixels = torch.cat([prepared[index] for index in members])
                sizes = [images[index].shape[:2] for index in members]
                found.update(zip(members, self._extract(pixels, sizes), strict=True))
        return [found[index] for index in range(len(images))]

    def _prepare(self, image: np.ndarray) -> Tensor:
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

    def _extract(
        self, pixels: Tensor, sizes_hw: list[tuple[int, int]], progress: Callable[[float], None] | None = None
    ) -> list[PatchFeatures]:
        """Features of (B, 3, H, W) normalised pixels of images of the given original sizes."""
        grid_hw = [side // self._patch_px for side in pixels.shape[-2:]]
        tokens = self._run(pixels, progress)[:, self._special_tokens :]
        grids = tokens.unflatten(1, grid_hw).float().cpu().numpy()
        return [PatchFeatures(grid, size_hw) for grid, size_hw in zip(grids, sizes_hw, strict=True)]

    def _run(self, pixels: Tensor, progress: Callable[[float], None] | None) -> Tensor:
        """(B, tokens, C x layers) features of the facet, class and register tokens included."""
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel

        blocks = _blocks(self._vit)
        captured: dict[int, Tensor] = {}

        def tell(done: int, _output: Tensor) -> None:
            if captured is self._captured:
                progress(done / len(blocks))

        with ExitStack() as stack:
            stack.callback(setattr, self, '_captured', self._captured)
            self._captured = captured
            for layer in self._layers:
                source = blocks[layer] if self.facet == 'token' else _projection(blocks[layer], self.facet)
                stack.enter_context(_hook(source, partial(self._read, captured, layer)))
            for done, block in enumerate(blocks[:-1], start=1) if progress else ():
                stack.enter_context(_hook(block, partial(tell, done)))
            if self.dtype != 'float32':
                # Autocast, not half-precision weights: position interpolation and layer norms lose too much precision.
                device_type = torch.device(self.device).type
                stack.enter_context(torch.autocast(device_type, getattr(torch, self.dtype)))
                if device_type == 'cpu':  # fused bfloat16 attention fails if torch is built or run without AVX-512
                    stack.enter_context(_attention_lock)
                    stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            with suppress(_AllRead):
                self._vit(pixel_values=pixels, **self._options)
            if progress:
                progress(1.0)
            if self.facet == 'token':
                captured = {layer: _last_norm(self._vit)(output) for layer, output in captured.items()}
        return torch.cat([captured[layer] for layer in self._layers], dim=-1)

    def _read(self, captured: dict[int, Tensor], layer: int, output: Tensor) -> None:
        if captured is not self._captured:
            return
        captured[layer] = output
        if len(captured) == len(set(self._layers)):
            raise _AllRead


class _AllRead(Exception):
    """Ends a run of the ViT once the last layer that is read has run."""


def _check_layers(layers: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Indices from the start."""
    if not layers or not all(-count <= layer < count for layer in layers):
        raise UnSAMError(f'layer must be in [-{count}, {count - 1}] for this ViT, got {layers}')
    return tuple(layer % count for layer in layers)


@contextmanager
def _hook(module, call: Callable) -> Iterator[None]:
    """Calls ``call(output)`` after each forward pass of a module inside the block."""

    def forward_hook(module, inputs, output) -> None:
        call(output[0] if isinstance(output, tuple) else output)  # blocks give a tuple in transformers < 5

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
