"""A pipeline step that adds a click on each annotated object, as prompts for testing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmdet.structures.mask import BaseInstanceMasks
from mmengine.structures import InstanceData

from unsam_mm.errors import UnSAMError
from unsam_mm.next_click import centre_of


@TRANSFORMS.register_module()
class UnSAMClickPrompts(BaseTransform):
    """Adds one click for each object of an image, at the pixel farthest from its boundary; see `centre_of`.

    Must be the last step of a test pipeline, after `PackDetInputs`, with masks at the original size, as from
    `UnSAMLoadMasks(at_original_size=True)`. Sets `prompts` of the data sample for `UnSAMPromptHead` and
    `UnSAMPromptIoUMetric`: `points` (P, 2) float32, x, y of the pixel centre in the original image, and `targets` (P,)
    int64, index of the object in `gt_instances`. Crowds and empty objects have no prompt.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Adds the prompts to the data sample in `results`.

        Raises:
            UnSAMError: If there is no data sample with masks, or they are not of the original image's size.
        """
        sample = results.get('data_samples')
        masks = sample.gt_instances.get('masks') if sample is not None and 'gt_instances' in sample else None
        if not isinstance(masks, BaseInstanceMasks):
            raise UnSAMError(
                'UnSAMClickPrompts found no data sample with masks; load them with UnSAMLoadMasks(at_original_size=True) '
                'and put PackDetInputs before this step'
            )
        size_hw = tuple(sample.metainfo['ori_shape'][:2])
        if (masks.height, masks.width) != size_hw:
            raise UnSAMError(
                f'{sample.metainfo.get("img_path")}: masks are {masks.height} x {masks.width} px, the original image '
                f'{size_hw[0]} x {size_hw[1]}; load them with UnSAMLoadMasks(at_original_size=True)'
            )
        centres = [centre_of(mask.astype(bool)) for mask in masks]  # drawn one at a time
        targets = [number for number, centre in enumerate(centres) if centre is not None]
        points = np.array([centres[number] for number in targets], np.float32).reshape(-1, 2) + 0.5
        sample.prompts = InstanceData(points=torch.from_numpy(points), targets=torch.tensor(targets, dtype=torch.long))
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
