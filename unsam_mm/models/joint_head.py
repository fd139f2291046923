"""A head for both tasks, whole-image and promptable segmentation, with a shared pixel decoder."""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor

from unsam_mm.errors import UnSAMError

Pixels = tuple[Tensor, list[Tensor]]
"""Outputs of a pixel decoder: mask feature (B, C, H / 4, W / 4), and memories (B, C, h, w), coarse to fine."""


@MODELS.register_module()
class UnSAMJointHead(BaseModule):
    """`UnSAMHead` and `UnSAMPromptHead` with a shared pixel decoder; the `mask_head` of an `UnSAM` detector.

    The weights of the heads are in `whole_image` and `prompts`, under their names in these heads. A checkpoint of a
    model with one of the heads can initialise that head and the pixel decoder: set `load_from`, and
    `partial_checkpoint=True` in the model.

    Args:
        pixel_decoder: Config of the pixel decoder, such as `UnSAMPixelDecoder`.
        whole_image: Config of `UnSAMHead` without its pixel decoder. Its queries attend to the finest
            `num_transformer_feat_level` levels.
        prompts: Config of `UnSAMPromptHead` without its pixel decoder. Its tokens attend to all levels.
        whole_image_weight: Weight of the losses of `whole_image`.
        prompts_weight: Weight of the losses of `prompts`.
        train_cfg: Passed to both heads.
        test_cfg: Passed to both heads.
        init_cfg: MMEngine's initialisation.

    Raises:
        UnSAMError: If a weight is negative.
    """

    def __init__(
        self,
        pixel_decoder: dict,
        whole_image: dict,
        prompts: dict,
        whole_image_weight: float = 1.0,
        prompts_weight: float = 1.0,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.loss_weights = {'whole_image': whole_image_weight, 'prompts': prompts_weight}
        for name, weight in self.loss_weights.items():
            if weight < 0:
                raise UnSAMError(f'UnSAMJointHead: {name}_weight must not be negative, got {weight}')
        self.pixel_decoder = MODELS.build(pixel_decoder)
        common = {'pixel_decoder': None, 'train_cfg': train_cfg, 'test_cfg': test_cfg}
        self.whole_image = MODELS.build(ConfigDict(whole_image, **common))
        self.prompts = MODELS.build(ConfigDict(prompts, **common))
        self.register_load_state_dict_pre_hook(_sort_into_heads)

    def loss(self, x: Sequence[Tensor], batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The weighted losses of both heads, with the prefixes 'whole_image.' and 'prompts.'.

        Args:
            x: Levels of shape (B, C, H / s, W / s), s = 4, 8, 16, 32.
            batch_data_samples: With `gt_instances`, whose `masks` have the size of the padded batch.
        """
        pixels = self.pixel_decoder(x)
        losses = {
            'whole_image': self.whole_image.loss(self._for_queries(pixels), batch_data_samples),
            'prompts': self.prompts.loss(pixels, batch_data_samples),
        }
        return {
            f'{task}.{name}': self.loss_weights[task] * loss
            for task, own in losses.items()
            for name, loss in own.items()
        }

    def forward(self, x: Sequence[Tensor], batch_data_samples: SampleList) -> tuple[list[Tensor], list[Tensor]]:
        """Raw whole-image predictions; see `UnSAMHead.forward`."""
        return self.whole_image(self._for_queries(self.pixel_decoder(x)), batch_data_samples)

    def predict(self, x: Sequence[Tensor], batch_data_samples: SampleList, rescale: bool = True) -> list[InstanceData]:
        """Whole-image masks of each image; also sets `pred_prompts` of data samples with `prompts`.

        Args:
            x: Levels of shape (B, C, H / s, W / s), s = 4, 8, 16, 32.
            batch_data_samples: See `UnSAMHead.predict`; for `prompts` see `UnSAMPromptHead.predict`.
            rescale: True for masks and boxes in pixels of the original image, False for pixels of the network's input.

        Returns:
            See `UnSAMHead.predict`.
        """
        pixels = self.pixel_decoder(x)
        prompted = [number for number, sample in enumerate(batch_data_samples) if 'prompts' in sample]
        if prompted:
            feature, memories = pixels
            subset = (feature[prompted], [memory[prompted] for memory in memories])
            self.prompts.predict(subset, [batch_data_samples[number] for number in prompted], rescale)
        return self.whole_image.predict(self._for_queries(pixels), batch_data_samples, rescale)

    def _for_queries(self, pixels: Pixels) -> Pixels:
        """The outputs of the pixel decoder with the levels that `whole_image` attends to."""
        feature, memories = pixels
        return feature, memories[-self.whole_image.num_transformer_feat_level :]


def _sort_into_heads(
    head: UnSAMJointHead, state_dict: dict[str, Tensor], prefix: str, *unused: dict | bool | list[str]
) -> None:
    """Renames the weights of a checkpoint of one of the two heads, in place."""
    for task in head.loss_weights:
        parts = {part for part, _ in getattr(head, task).named_children()} - {'pixel_decoder'}
        names = [name for name in state_dict if name.startswith(prefix)]
        for name in (name.removeprefix(prefix) for name in names):
            if name.partition('.')[0] in parts:
                state_dict[f'{prefix}{task}.{name}'] = state_dict.pop(f'{prefix}{name}')
