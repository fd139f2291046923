"""CutLER, a class-agnostic detector trained without labels, as the divide step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from mmdet.models.roi_heads import CascadeRoIHead
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox2roi
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unsam_mm import weights
from unsam_mm.errors import UnSAMError, WeightsError
from unsam_mm.pseudo_masks.vit import check_device
from unsam_mm.published.cutler_checkpoint import convert_official_cutler

_NAME = 'cutler_cascade'
_CONFIG = Path('configs', '_base_', 'models', f'{_NAME}.py')
_MAX_ASPECT = 5 / 3  # Detectron2 resizes to a shorter side of 800 px, but a longer side of at most 1333 px


@MODELS.register_module()
class UnSAMCutLERRoIHead(CascadeRoIHead):
    """The cascade of Detectron2, for prediction only.

    MMDetection's cascade averages the logits of its stages and has a mask head in each stage. Here probabilities are
    averaged, and a single mask head is applied to the final boxes.
    """

    def init_mask_head(self, mask_roi_extractor: ConfigDict, mask_head: ConfigDict) -> None:
        """Builds one mask head instead of one for each stage."""
        self.mask_roi_extractor = nn.ModuleList([MODELS.build(mask_roi_extractor)])
        self.mask_head = nn.ModuleList([MODELS.build(mask_head)])
        self.share_roi_extractor = False

    def _refine_roi(
        self, x: tuple[Tensor, ...], rois: Tensor, batch_img_metas: list[dict], num_proposals_per_img: tuple[int, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
        """RoIs of the last stage, logits whose softmax is the mean probability of all stages, and last box deltas."""
        probabilities = 0.0
        for stage, head in enumerate(self.bbox_head):
            outputs = self._bbox_forward(stage, x, rois)
            probabilities = probabilities + outputs['cls_score'].softmax(dim=-1)
            deltas = outputs['bbox_pred']
            if stage < self.num_stages - 1:
                rois = self._regress(head, rois, deltas, batch_img_metas, num_proposals_per_img)
        logits = (probabilities / self.num_stages).log()
        return tuple(part.split(num_proposals_per_img) for part in (rois, logits, deltas))

    def _regress(
        self,
        head: nn.Module,
        rois: Tensor,
        deltas: Tensor,
        batch_img_metas: list[dict],
        num_proposals_per_img: tuple[int, ...],
    ) -> Tensor:
        """(N, 5) RoIs of the next stage, clipped to their images."""
        boxes = [
            head.bbox_coder.decode(own_rois[:, 1:], own_deltas, max_shape=meta['img_shape'])
            for own_rois, own_deltas, meta in zip(
                rois.split(num_proposals_per_img), deltas.split(num_proposals_per_img), batch_img_metas, strict=True
            )
        ]
        return torch.cat([rois[:, :1], torch.cat(boxes)], dim=1)

    def predict_mask(
        self,
        x: tuple[Tensor, ...],
        batch_img_metas: list[dict],
        results_list: list[InstanceData],
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Adds (N, H, W) bool masks to the boxes of each image; the arguments are those of `CascadeRoIHead`."""
        rois = bbox2roi([results.bboxes for results in results_list])
        counts = [len(results) for results in results_list]
        logits = self._mask_forward(0, x, rois)['mask_preds'].split(counts) if len(rois) else [None] * len(counts)
        return self.mask_head[0].predict_by_feat(
            mask_preds=logits,
            results_list=results_list,
            batch_img_metas=batch_img_metas,
            rcnn_test_cfg=self.test_cfg,
            rescale=rescale,
        )


def load_cutler(path_or_name: str | Path = _NAME, device: str = 'cpu') -> nn.Module:
    """CutLER's Cascade Mask R-CNN in evaluation mode.

    Args:
        path_or_name: 'cutler_cascade' (fetched into the cache if needed), the authors' ``.pth`` file, a converted
            ``.safetensors`` file, or a folder that contains one as ``model.safetensors``.
        device: Torch device.

    Raises:
        UnSAMError: If the device cannot be used.
        WeightsError: If the weights are not available, or belong to another model.
    """
    check_device(device)
    path = weights.fetch(_NAME) if path_or_name == _NAME else Path(path_or_name)
    state = _read(path)
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(Config.fromfile(_config_path()).model)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(
            f"{path}: not CutLER's Cascade Mask R-CNN ({str(error).splitlines()[-1].strip()}); give "
            "'cutler_cascade', or cutler_cascade_final.pth"
        ) from error
    return model.eval().requires_grad_(False).to(device)


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        path = path / 'model.safetensors'
    if not path.is_file():
        raise WeightsError(f"{path}: no such file; give 'cutler_cascade', cutler_cascade_final.pth or a converted file")
    if path.suffix != '.safetensors':
        return convert_official_cutler(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f'{path}: damaged ({error}); remove it and fetch it again') from error


def _config_path() -> Path:
    """The config in a checkout, or in the ``.mim`` folder of an installed package."""
    package = Path(__file__).resolve().parents[1]
    return next(home / _CONFIG for home in (package.parent, package / '.mim') if (home / _CONFIG).is_file())


class CutLERDivider:
    """Detects whole objects with CutLER.

    A photograph of 400 x 600 px takes 9 s on one CPU core.

    Args:
        checkpoint: See `load_cutler`; None downloads the published weights (CC-BY-NC-4.0: not for commercial use).
        score_threshold: Masks with a lower score are removed; 0.3 in the paper, 0.1 in its released code.
        device: Torch device.
        max_masks: Maximum number of masks.
        short_side_px: Length to which the shorter side is resized, or less where the longer side would exceed 5/3 of
            this length. The published divide step uses 800, the default of Detectron2.

    Raises:
        UnSAMError: If a number is out of range, or the device cannot be used.
        WeightsError: If the weights are not available, or belong to another model.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        score_threshold: float = 0.3,
        device: str = 'cpu',
        max_masks: int = 100,
        short_side_px: int = 800,
    ) -> None:
        if not 0 <= score_threshold < 1:
            raise UnSAMError(f'score_threshold must be in [0, 1), got {score_threshold}')
        for name, value in (('max_masks', max_masks), ('short_side_px', short_side_px)):
            if value < 1:
                raise UnSAMError(f'{name} must be positive, got {value}')
        self._short_side_px = short_side_px
        self._model = load_cutler(checkpoint or _NAME, device)
        self._model.roi_head.test_cfg.update(score_thr=score_threshold, max_per_img=max_masks)

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Masks of one image.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            (N, H, W) bool masks, none empty, in descending order of their (N,) float32 scores in [0, 1]. Masks may
            overlap.
        """
        height, width = image.shape[:2]
        resized_hw = _resized_hw(height, width, self._short_side_px)
        resized = Image.fromarray(image).resize(resized_hw[::-1], Image.Resampling.BILINEAR)
        sample = DetDataSample(
            metainfo={
                'img_shape': resized_hw,
                'ori_shape': (height, width),
                'scale_factor': (resized_hw[1] / width, resized_hw[0] / height),
            }
        )
        pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1)
        with torch.inference_mode():
            found = self._model.test_step({'inputs': [pixels], 'data_samples': [sample]})[0].pred_instances
            found = found[found.masks.flatten(1).any(dim=1)]
        return found.masks.cpu().numpy(), found.scores.float().cpu().numpy()


def _resized_hw(height: int, width: int, short_side_px: int) -> tuple[int, int]:
    """Height and width after Detectron2's resizing; halves are rounded up."""
    scale = min(short_side_px / min(height, width), int(short_side_px * _MAX_ASPECT) / max(height, width))
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
