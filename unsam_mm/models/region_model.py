"""The region model as an MMEngine model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, OptSampleList
from mmengine.config import ConfigDict
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.structures import InstanceData
from torch import Tensor

from unsam_mm.errors import UnSAMError
from unsam_mm.student.network import RegionNet
from unsam_mm.student.pairs import RegionInputs
from unsam_mm.student.proposals import propose, to_mask_set
from unsam_mm.student.training import region_losses

MODES = ('loss', 'predict', 'tensor')


@MODELS.register_module()
class UnSAMRegionPreprocessor(BaseDataPreprocessor):
    """Moves the `RegionInputs` of a batch to the model's device, without stacking."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """The batch on the model's device; token masks and label maps stay NumPy arrays.

        Raises:
            UnSAMError: If the batch contains images instead of tokens.
        """
        for inputs in data['inputs']:
            if not isinstance(inputs, RegionInputs):
                raise UnSAMError(
                    f'UnSAMRegionModel needs region tokens, got {type(inputs).__name__}: its pipelines consist of '
                    'UnSAMRegionTokens and UnSAMPackRegions, so --benchmarks is not supported; test on a data set with '
                    '--cfg-options data_root=IMAGES ann_file=COCO_FILE'
                )
        return {**data, 'inputs': [inputs.to(self.device) for inputs in data['inputs']]}


@MODELS.register_module()
class UnSAMRegionModel(BaseModel):
    """Segments images from region tokens; trained on pseudo-masks that are sets of tokens.

    There is no backbone: the tokens contain the features of the ViT and are computed once for each image
    (`UnSAMRegionTokens`).

    Args:
        net: Arguments of `RegionNet`.
        train_cfg: Arguments of `region_losses`: `n_seeds` and `targets_per_seed` of each image.
        test_cfg: Arguments of `propose`: `n_seeds`, `granularity_step`, `max_masks`, `duplicate_iou`, `repetition`.
        data_preprocessor: `UnSAMRegionPreprocessor` by default.
        init_cfg: MMEngine's initialisation.
    """

    def __init__(
        self,
        net: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor or {'type': 'UnSAMRegionPreprocessor'}, init_cfg)
        self.net = RegionNet(**(net or {}))
        self.train_cfg = ConfigDict(train_cfg or {})
        self.test_cfg = ConfigDict(test_cfg or {})

    def forward(
        self, inputs: Sequence[RegionInputs], data_samples: OptSampleList = None, mode: str = 'tensor'
    ) -> dict[str, Tensor] | list[DetDataSample] | list[Tensor]:
        """Losses by name, data samples with `pred_instances`, or the encoded tokens (L, width) of each image.

        Args:
            inputs: One entry for each image.
            data_samples: From `UnSAMPackRegions`; not needed for 'tensor'.
            mode: 'loss', 'predict' or 'tensor'.

        Raises:
            UnSAMError: If the mode is unknown.
        """
        if mode == 'loss':
            return self.loss(inputs, data_samples)
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        if mode == 'tensor':
            return [self.net.encode(one) for one in inputs]
        raise UnSAMError(f'mode must be one of {MODES}, got {mode!r}')

    def loss(self, inputs: Sequence[RegionInputs], data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Means over the batch: the losses `loss_mask`, `loss_dice` and `loss_score`, and the metric `iou`.

        Args:
            inputs: The region tokens of each image.
            data_samples: With `token_masks`, the pseudo-masks of each image as sets of tokens.
        """
        images = [
            region_losses(self.net, one, sample.token_masks, **self.train_cfg)
            for one, sample in zip(inputs, data_samples, strict=True)
        ]
        return {name: torch.stack([image[name] for image in images]).mean() for name in images[0]}

    @torch.no_grad()
    def predict(self, inputs: Sequence[RegionInputs], data_samples: Sequence[DetDataSample]) -> list[DetDataSample]:
        """The data samples with `pred_instances`, best first and at the size of the original image.

        Each has `scores` (N,) in [0, 1]; `labels` (N,) zeros; `bboxes` (N, 4) x0, y0, x1, y1 in pixels; `masks`, N
        run-length encodings, whose boundaries are boundaries of tokens.

        Args:
            inputs: The region tokens of each image.
            data_samples: With `region_tokens`, from `UnSAMPackRegions`.
        """
        for one, sample in zip(inputs, data_samples, strict=True):
            masks = to_mask_set(sample.region_tokens, *propose(self.net, one, **self.test_cfg))
            scores = torch.from_numpy(masks.scores)
            sample.pred_instances = InstanceData(
                scores=scores,
                labels=torch.zeros(len(scores), dtype=torch.long),
                bboxes=torch.from_numpy(masks.boxes_xyxy),
                masks=masks.rles,
            )
        return list(data_samples)
