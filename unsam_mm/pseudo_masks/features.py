"""Patch features of a frozen self-supervised vision transformer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unsam_mm import weights
from unsam_mm.errors import UnSAMError, WeightsError

if TYPE_CHECKING:
    from transformers import Dinov2Model

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
VITS = ('dinov2_vits14',)
FACETS = ('key', 'query', 'value', 'token')


def check_device(device: str) -> None:
    """Checks that torch knows and has a device, before anything large is loaded.

    Raises:
        UnSAMError: If it does not.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UnSAMError(
            f'device {device!r} cannot be used ({reason}); use cpu, or install torch for that device'
        ) from error


def load_vit(name: str = 'dinov2_vits14', device: str = 'cpu') -> Dinov2Model:
    """A frozen ViT in evaluation mode, fetched into the cache if needed.

    Args:
        name: A ViT of `unsam_mm.weights.TABLE`.
        device: Torch device.

    Raises:
        WeightsError: If the weights are unknown, cannot be had, or do not fit the model.
    """
    from safetensors import SafetensorError
    from transformers import Dinov2Model
    from transformers.utils import logging

    if name not in VITS:
        raise UnSAMError(f'vit {name!r} is not supported; choose from {", ".join(VITS)}')
    check_device(device)
    path = weights.fetch(name)
    show_progress = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # the bar counts tensors of a file that loads in a moment
    try:
        vit, info = Dinov2Model.from_pretrained(path, local_files_only=True, output_loading_info=True)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f'{path}: damaged ({error}); remove the folder and fetch it again') from error
    finally:
        if show_progress:
            logging.enable_progress_bar()
    if wrong := {key: found for key, found in info.items() if found}:
        raise WeightsError(f'{path}: not the weights of {name} ({wrong}); remove the folder and fetch it again')
    return vit.eval().requires_grad_(False).to(device)


@dataclass(frozen=True)
class PatchFeatures:
    """Features on the patch grid of one image.

    Attributes:
        grid: (h, w, C) float32, one row of channels a patch.
        size_hw: Height and width in pixels of the image that the grid covers.
    """

    grid: np.ndarray
    size_hw: tuple[int, int]


class PatchFeatureExtractor:
    """Turns an image into features on a grid of patches.

    Args:
        vit: Name of the ViT in `unsam_mm.weights.TABLE`.
        facet: What is read from the last layer: 'key' (as in MaskCut and the paper), 'query', 'value' or 'token'.
        long_side_px: The image is resized so that its longer side has this many pixels; both sides become
            multiples of the patch size.
        device: Torch device.

    Raises:
        UnSAMError: If the facet, the ViT or the device is unknown, or the size is not positive.
    """

    def __init__(
        self, vit: str = 'dinov2_vits14', facet: str = 'key', long_side_px: int = 714, device: str = 'cpu'
    ) -> None:
        if facet not in FACETS:
            raise UnSAMError(f'facet must be one of {", ".join(FACETS)}, got {facet!r}')
        if long_side_px < 1:
            raise UnSAMError(f'long_side_px must be positive, got {long_side_px}')
        self.facet, self.long_side_px, self.device = facet, long_side_px, device
        self._vit = load_vit(vit, device)
        self._patch_px = self._vit.config.patch_size
        self._lock = threading.Lock()  # hooks hang on the ViT, so two threads would read each other's features

    def __call__(self, image: np.ndarray, progress: Callable[[float], None] | None = None) -> PatchFeatures:
        """Features of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            progress: Called after each layer with the finished share in (0, 1]; an exception raised inside stops.

        Returns:
            Grid of shape (h, w, 384); h and w are the resized sides over 14.
        """
        import torch

        with self._lock, torch.inference_mode():
            pixels = self._prepare(image)
            rows, columns = (side // self._patch_px for side in pixels.shape[-2:])
            tokens = self._run(pixels, progress)[0, 1:]  # the class token comes first
            grid = tokens.reshape(rows, columns, -1).float().cpu().numpy()
        return PatchFeatures(grid, image.shape[:2])

    def _prepare(self, image: np.ndarray):
        import torch
        from torch.nn.functional import interpolate

        height, width = image.shape[:2]
        scale = self.long_side_px / max(height, width)
        size = [max(1, round(side * scale / self._patch_px)) * self._patch_px for side in (height, width)]
        pixels = torch.tensor(image, device=self.device).permute(2, 0, 1)[None].float() / 255
        pixels = interpolate(pixels, size=size, mode='bicubic', antialias=True, align_corners=False)
        mean = torch.tensor(_IMAGENET_MEAN, device=self.device).view(1, 3, 1, 1)
        std = torch.tensor(_IMAGENET_STD, device=self.device).view(1, 3, 1, 1)
        return (pixels - mean) / std

    def _run(self, pixels, progress: Callable[[float], None] | None):
        """(1, 1 + h * w, C) of the chosen facet of the last layer."""
        layers = self._vit.encoder.layer
        captured = []
        with ExitStack() as hooks:
            if self.facet != 'token':
                facet = _projection(self._vit, self.facet)
                hooks.enter_context(_hook(facet, lambda output: captured.append(output)))
            for done, layer in enumerate(layers, start=1) if progress else ():
                hooks.enter_context(_hook(layer, lambda output, done=done: progress(done / len(layers))))
            last_hidden_state = self._vit(pixel_values=pixels).last_hidden_state
        return captured[0] if captured else last_hidden_state


@contextmanager
def _hook(module, call: Callable) -> Iterator[None]:
    """Calls ``call(output)`` after each run of a module inside the block."""

    def forward_hook(module, inputs, output) -> None:
        call(output)

    handle = module.register_forward_hook(forward_hook)
    try:
        yield
    finally:
        handle.remove()


def _projection(vit: Dinov2Model, facet: str):
    """The linear layer that makes the keys, queries or values of the last block."""
    attention = vit.encoder.layer[-1].attention
    if hasattr(attention, 'attention'):  # transformers < 5
        return getattr(attention.attention, facet)
    return getattr(attention, f'{facet[0]}_proj')
