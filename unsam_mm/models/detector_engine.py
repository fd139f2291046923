"""The prompting engine 'detector': a promptable MMDetection model, such as the converted Swin-T models."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from unsam_mm.checkpoints import read_checkpoint
from unsam_mm.errors import UnSAMError, WeightsError
from unsam_mm.fingerprints import tensors_digest
from unsam_mm.masks.granularity import granularity_area, nearest_area
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import areas_and_boxes
from unsam_mm.models.channel_order import LOADERS, loaded_order, steps_of_type, type_name
from unsam_mm.models.mask_ops import ImageSizes, full_size_masks, rles_of_masks
from unsam_mm.models.prompt_details import prepare_prompts
from unsam_mm.models.prompt_head import ImageEmbedding, UnSAMPromptHead
from unsam_mm.prompting.engine import Engine
from unsam_mm.prompting.prompt import MAX_MASKS_PER_PROMPT, NO_IMAGE, Prompt, mask_of_logits

_SCALE = (1333, 800)  # maximum of the longer and the shorter side in px, as in the released evaluation
_RESIZES = ('Resize', 'FixScaleResize', 'FixShapeResize', 'ResizeShortestEdge', 'RandomResize', 'RandomChoiceResize')
_SUPPORTED_RESIZE = {'type': 'Resize', 'keep_ratio': True, 'interpolation': 'bilinear', 'backend': 'cv2'}
"""Settings of a step that resizes images as `DetectorEngine.set_image` does."""
_PREPROCESSOR_SETTINGS = ('_channel_conversion', 'pad_size_divisor', 'pad_value')
"""Settings of MMEngine's image preprocessor that are in neither the architecture nor the weights."""
_PROMPTS_AT_ONCE = 32
_GRANULARITIES = np.linspace(0, 1, 17)  # at which trained heads predict masks; the area grows by a factor of 1.8


class DetectorEngine(Engine):
    """An `UnSAM` detector whose head is `UnSAMPromptHead` or `UnSAMJointHead`, for `UnSAMPredictor(engine=...)`.

    Needs the packages of the extra `mm`. If the weights of the head for several clicks, earlier masks and granularity
    are not trained, as in the released checkpoints, each positive click and the box are separate prompts. Their masks
    are ordered by the number of clicks that they agree with, then by score, which is multiplied by the IoU with the
    earlier mask if there is one.

    Args:
        model: The detector.
        scale: Maximum of the longer and of the shorter side, in pixels; images are resized to the largest size
            within these limits.
        device: Torch device.
        channel_order: 'rgb' or 'bgr', the order of the inputs of the detector's preprocessor in training. By default
            'bgr' for a preprocessor that swaps channels, as with ``bgr_to_rgb=True``, else 'rgb'.

    Raises:
        UnSAMError: If the head is not promptable.
    """

    name = 'detector'

    def __init__(
        self,
        model: nn.Module,
        scale: tuple[int, int] = _SCALE,
        device: str = 'cpu',
        channel_order: str | None = None,
    ) -> None:
        self._head = getattr(model.mask_head, 'prompts', model.mask_head)
        if not isinstance(self._head, UnSAMPromptHead):
            raise UnSAMError(
                f'a detector with the head {type(self._head).__name__} is not promptable; give one with UnSAMPromptHead '
                'or UnSAMJointHead'
            )
        self._model, self._scale, self.device = model.eval().requires_grad_(False).to(device), tuple(scale), str(device)
        # MMEngine stores `bgr_to_rgb` in this attribute only.
        swaps = getattr(model.data_preprocessor, '_channel_conversion', False)
        self._channel_order = channel_order or ('bgr' if swaps else 'rgb')
        self._signature: str | None = None
        self.reset_image()

    @classmethod
    def from_config(cls, config: str | Path, checkpoint: str | Path, device: str = 'cpu') -> DetectorEngine:
        """An engine from a config and a checkpoint of its model, such as `python -m unsam_mm convert` writes.

        Resizing and channel order are those of the config's test dataloader.

        Raises:
            WeightsError: If the checkpoint cannot be read or is of another model.
            UnSAMError: If the model is not promptable, or its resizing is not supported here.
        """
        settings, state = Config.fromfile(config), read_checkpoint(Path(checkpoint))
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MODELS.build(settings.model)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:  # unexpected names
            reason = str(error).splitlines()[-1].strip()
            raise WeightsError(f'{checkpoint}: not a checkpoint of the model in {config}: {reason}') from error
        dataloader = settings.get('test_dataloader')
        loaders, resizes = (list(steps_of_type(dataloader, *names)) for names in (LOADERS, _RESIZES))
        scales = [_scale_of(step, config) for step in resizes or ([{}] if loaders else [])]
        expects_rgb = (settings.model.get('data_preprocessor') or {}).get('rgb_to_bgr')
        order = loaded_order(loaders[0]) if loaders else 'rgb' if expects_rgb else None
        return cls(model, scales[0] if scales else _SCALE, device, order)

    @property
    def signature(self) -> str:
        """A hash of the architecture, the weights and the preprocessing of the detector."""
        if self._signature is None:
            values = itertools.chain(self._model.named_parameters(), self._model.named_buffers())
            settings = [getattr(self._model.data_preprocessor, name, None) for name in _PREPROCESSOR_SETTINGS]
            text = f'{self._model} {self._scale} {self._channel_order} {settings} {tensors_digest(values)}'
            self._signature = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self._signature

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width of the image; None if none is set."""
        return None if self._sizes is None else self._sizes.original

    def set_image(self, rgb: np.ndarray) -> None:
        """Computes the embedding of an (H, W, 3) uint8 RGB image."""
        image = np.ascontiguousarray(rgb[..., ::-1] if self._channel_order == 'bgr' else rgb)
        resized = np.ascontiguousarray(mmcv.imrescale(image, self._scale))
        sample = DetDataSample(metainfo={'ori_shape': rgb.shape[:2], 'img_shape': resized.shape[:2]})
        with torch.no_grad():
            data = self._model.data_preprocessor(
                {'inputs': [torch.from_numpy(resized).permute(2, 0, 1)], 'data_samples': [sample]}
            )
            pixels = self._model.mask_head.pixel_decoder(self._model.extract_feat(data['inputs']))
        self._set(ImageSizes.from_sample(data['data_samples'][0]), pixels[0], list(pixels[1]))

    def _set(self, sizes: ImageSizes, mask_feature: Tensor, memories: list[Tensor]) -> None:
        """Sets the outputs of the pixel decoder, each a batch of one, as the embedding of the image."""
        with torch.no_grad():
            values = self._head.decoder.values(memories)
        sizes_hw = [tuple(memory.shape[2:]) for memory in memories]
        self._sizes, self._memories = sizes, memories
        self._embedding = ImageEmbedding(mask_feature, values, sizes_hw)

    def reset_image(self) -> None:
        """Removes the image."""
        self._sizes = self._memories = self._embedding = None

    def answer(
        self, prompt: Prompt, multimask_output: bool, granularity: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(C, H, W) bool masks, best first, and (C,) float32 scores; with a granularity, one mask."""
        earlier = None if prompt.mask_input is None else mask_of_logits(prompt.mask_input, self.size_hw)
        count = MAX_MASKS_PER_PROMPT if multimask_output and granularity is None else 1
        if self._head.details.trained:
            fields = _fields_of(prompt, earlier)
            logits, scores = (
                self._predict(**fields) if granularity is None else self._predict_at_all_granularities(fields)
            )
            masks = self._full_size(logits)
            order = np.argsort(-scores, kind='stable')
        else:
            logits, scores = self._predict_each(prompt)
            masks = self._full_size(logits)
            order = _ranked(masks, scores, prompt, earlier)
        if granularity is not None:
            order = _nearest(masks, order, prompt, granularity)
        return masks[order[:count]], scores[order[:count]].clip(0, 1)

    def _predict_at_all_granularities(self, fields: dict[str, np.ndarray]) -> tuple[Tensor, np.ndarray]:
        """The best mask for a prompt at each of a fixed set of granularities."""
        count = len(_GRANULARITIES)
        repeated = {name: np.repeat(values, count, axis=0) for name, values in fields.items()}
        logits, scores = self._predict(**repeated, granularity=_GRANULARITIES)
        best = scores.reshape(count, -1).argmax(axis=1) + np.arange(count) * (len(scores) // count)
        return logits[torch.from_numpy(best).to(logits.device)], scores[best]

    def _predict_each(self, prompt: Prompt) -> tuple[Tensor, np.ndarray]:
        """Masks for each positive click and for the box as separate prompts."""
        answers = []
        if prompt.positive.any():
            answers.append(self._predict(points=prompt.points_xy[prompt.positive] + 0.5))
        if prompt.box_xyxy is not None:
            answers.append(self._predict(bboxes=prompt.box_xyxy[None]))
        logits, scores = zip(*answers, strict=True)
        return torch.cat(logits), np.concatenate(scores)

    def _predict(self, **fields: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """(N, h, w) logits of all masks of all prompts, and (N,) float32 scores, approximately in [0, 1]."""
        embedding, feature_hw = self._embedding, tuple(self._embedding.mask_feature.shape[2:])
        device = embedding.mask_feature.device
        with torch.no_grad():
            boxes, types, details = prepare_prompts(
                InstanceData(**fields), self._sizes, feature_hw, self._head.release, device
            )
            answer = self._head.answer(embedding, boxes[None], types[None], joint=False, details=details)
        return answer.masks[0].flatten(0, 1), answer.overlaps[0].flatten().cpu().numpy()

    def _full_size(self, logits: Tensor) -> np.ndarray:
        """(N, H, W) bool masks at full resolution of (N, h, w) logits."""
        return np.concatenate([masks.cpu().numpy() for masks in full_size_masks(logits, self._sizes)])

    def all_masks(
        self, max_masks: int, min_area_px: int, points_per_side: int, max_iou: float
    ) -> tuple[MaskSet, np.ndarray]:
        """Masks for a grid of clicks, best first, and their stability, (N,) float32 in [0, 1].

        The stability is the IoU of the masks at the logit thresholds 1 and -1. Non-maximum suppression is done at a
        quarter of the resolution of the network's input.

        Raises:
            UnSAMError: If no image is set.
        """
        if self._sizes is None:
            raise UnSAMError(NO_IMAGE)
        height, width = self.size_hw
        positions = (np.arange(points_per_side) + 0.5) / points_per_side
        grid = np.stack(np.meshgrid(positions * width, positions * height), axis=-1).reshape(-1, 2)
        kept, scores = self._embedding.mask_feature.new_zeros(0, *self._embedding.mask_feature.shape[2:]), np.zeros(0)
        for start in range(0, len(grid), _PROMPTS_AT_ONCE):
            found, found_scores = self._predict(points=grid[start : start + _PROMPTS_AT_ONCE])
            kept, scores = torch.cat([kept, found]), np.concatenate([scores, found_scores])
            chosen = _distinct((kept > 0).cpu().numpy(), scores, max_iou)[:max_masks]
            kept, scores = kept[chosen], scores[chosen]
        stability = (kept > 1).sum(dim=(1, 2)) / (kept > -1).sum(dim=(1, 2)).clamp(min=1)
        rles = [rle for masks in full_size_masks(kept, self._sizes) for rle in rles_of_masks(masks)]
        areas, _ = areas_and_boxes(rles)
        parents = MaskSet.from_bitmaps((kept > 0).cpu().numpy()).parents
        parents = np.where(areas[parents] > areas, parents, -1)  # the order of areas may differ at full resolution
        masks = MaskSet.from_rles(rles, scores.clip(0, 1), self.size_hw, parents)
        large = areas >= min_area_px
        return masks[large], stability.cpu().numpy().astype(np.float32)[large]

    def embedding(self) -> dict[str, np.ndarray]:
        """The outputs of the pixel decoder as float16, and the sizes of the image as int64.

        Raises:
            UnSAMError: If no image is set.
        """
        if self._sizes is None:
            raise UnSAMError(NO_IMAGE)
        parts = {f'memory_{i}': memory for i, memory in enumerate(self._memories)}
        parts['mask_feature'] = self._embedding.mask_feature
        arrays = {name: part.cpu().numpy().astype(np.float16) for name, part in parts.items()}
        return arrays | {'frames': np.array(self._sizes, np.int64)}

    def set_embedding(self, arrays: dict[str, np.ndarray]) -> None:
        """Sets an embedding that `embedding` returned.

        Raises:
            UnSAMError: If the arrays are inconsistent or belong to a model of another size.
        """
        try:
            if any(not isinstance(values, np.ndarray) or not np.isfinite(values).all() for values in arrays.values()):
                raise ValueError('not all numbers are finite')
            if arrays['frames'].dtype.kind not in 'iu' or (arrays['frames'] < 1).any():
                raise ValueError('sizes are not positive integers')
            sizes = ImageSizes(*(tuple(int(side) for side in size) for size in arrays['frames']))
            names = ['mask_feature', *(f'memory_{i}' for i in range(len(arrays) - 2))]
            feature, *memories = (torch.from_numpy(arrays[name]).float().to(self.device) for name in names)
            if tuple(feature.shape[2:]) != tuple(-(-side // 4) for side in sizes.batch):
                raise ValueError(f'sizes are {tuple(feature.shape[2:])} and {sizes.batch}')
            self._set(sizes, feature, memories)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UnSAMError(
                f'the arrays are no embedding of an image by this model ({error}); make the embedding again'
            ) from error

    def to(self, device: str) -> DetectorEngine:
        """Moves the model and the current embedding to a device; returns itself."""
        if str(device) != self.device:
            self.device = str(device)
            self._model.to(device)
            if self._sizes is not None:
                feature, *memories = (part.to(device) for part in (self._embedding.mask_feature, *self._memories))
                self._set(self._sizes, feature, memories)
        return self


def _scale_of(resize: Mapping[str, Any], config: str | Path) -> tuple[int, int]:
    """The `scale` of a pipeline step that resizes images.

    Args:
        resize: The step; {} if the pipeline has none.
        config: The file of the config, for messages.

    Raises:
        UnSAMError: If there is no step, or `set_image` does not support it.
    """
    scale = resize.get('scale')
    # Defaults of MMCV, overridden by the step.
    settings = {**_SUPPORTED_RESIZE, 'keep_ratio': False, **resize, 'type': type_name(resize)}
    is_supported = all(settings[name] == value for name, value in _SUPPORTED_RESIZE.items())
    if not isinstance(scale, int | list | tuple) or not is_supported:
        raise UnSAMError(
            f'{config}: test_dataloader resizes images by {dict(resize) or "no step"}; expected Resize with scale, '
            'keep_ratio=True and bilinear interpolation; change the config, or pass the model and its scale to DetectorEngine'
        )
    return (scale, scale) if isinstance(scale, int) else tuple(scale)


def _fields_of(prompt: Prompt, earlier: np.ndarray | None) -> dict[str, np.ndarray]:
    """A prompt as one object in the form of `UnSAMPromptHead.predict`."""
    fields = {}
    if len(prompt.points_xy):
        fields['points'] = prompt.points_xy[None] + 0.5  # pixel centres
        fields['point_labels'] = prompt.positive[None].astype(np.int64)
    if prompt.box_xyxy is not None:
        fields['bboxes'] = prompt.box_xyxy[None]
    if earlier is not None:
        fields['masks'] = earlier[None]
    return fields


def _agreement(masks: np.ndarray, prompt: Prompt) -> np.ndarray:
    """(N,) numbers of clicks that each mask agrees with."""
    x, y = prompt.points_xy.T
    return (masks[:, y, x] == prompt.positive).sum(axis=1)


def _ranked(masks: np.ndarray, scores: np.ndarray, prompt: Prompt, earlier: np.ndarray | None) -> np.ndarray:
    """Indices of the masks, best first."""
    if earlier is not None:
        shared, joined = (masks & earlier).sum(axis=(1, 2)), (masks | earlier).sum(axis=(1, 2))
        scores = scores * shared / np.maximum(joined, 1)
    return np.lexsort((-scores, -_agreement(masks, prompt)))


def _nearest(masks: np.ndarray, order: np.ndarray, prompt: Prompt, granularity: float) -> np.ndarray:
    """(1,) index of the mask with the area nearest to that of the granularity; of ties, the first in `order`.

    Only the masks that agree with the most clicks are considered.
    """
    agreement = _agreement(masks, prompt)[order]
    order = order[agreement == agreement.max()]
    return order[[nearest_area(masks[order].sum(axis=(1, 2)), granularity_area(granularity, masks[0].size))]]


def _distinct(masks: np.ndarray, scores: np.ndarray, max_iou: float) -> np.ndarray:
    """Indices of the masks, best first, after non-maximum suppression; empty masks are left out."""
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    areas, shared = flat.sum(axis=1), flat @ flat.T
    iou = shared / np.maximum(areas[:, None] + areas - shared, 1)
    chosen: list[int] = []
    for i in np.argsort(-scores, kind='stable'):
        if areas[i] and not (iou[i, chosen] > max_iou).any():
            chosen.append(int(i))
    return np.array(chosen, np.int64)
