"""UnSAM as an MMDetection detector."""

from __future__ import annotations

from collections.abc import Sequence

from mmdet.models.detectors import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from torch import Tensor
from torch.nn import Module

from unsam_mm.errors import WeightsError


@MODELS.register_module()
class UnSAM(BaseDetector):
    """Class-agnostic instance segmentation, promptable segmentation, or both: backbone, optional neck, mask head.

    Source: the models of "Segment Anything without Supervision" (NeurIPS 2024); see the heads.

    Args:
        backbone: Config of a backbone with four levels at strides 4, 8, 16 and 32.
        mask_head: Config of the mask head: `UnSAMHead`, `UnSAMPromptHead` or, for both tasks, `UnSAMJointHead`.
        neck: Config of a neck, if any.
        train_cfg: Passed to the mask head.
        test_cfg: Passed to the mask head.
        data_preprocessor: Config of `DetDataPreprocessor`; it must pad masks along with images.
        partial_checkpoint: True if a checkpoint may lack weights of this model, which are then initialised at random.
            By default such a checkpoint is rejected with `WeightsError`; MMEngine only logs a mismatch, and a test of
            the wrong checkpoint would give meaningless numbers. The checkpoint of a `Pretrained` backbone may always
            lack whole parts, such as a stage, but not single weights of a part.
        init_cfg: MMEngine's initialisation.
    """

    def __init__(
        self,
        backbone: dict,
        mask_head: dict,
        neck: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        partial_checkpoint: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.backbone.register_load_state_dict_pre_hook(_check_parts)
        if neck is not None:
            self.neck = MODELS.build(neck)
        self.mask_head = MODELS.build(ConfigDict(mask_head, train_cfg=train_cfg, test_cfg=test_cfg))
        if not partial_checkpoint:
            self.register_load_state_dict_pre_hook(_check_complete)

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Levels of shape (B, C, H / s, W / s), s = 4, 8, 16, 32, of a batch (B, 3, H, W)."""
        levels = self.backbone(batch_inputs)
        return self.neck(levels) if self.with_neck else levels

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Losses of every decoder layer, by name."""
        return self.mask_head.loss(self.extract_feat(batch_inputs), batch_data_samples)

    def predict(self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True) -> SampleList:
        """The data samples with `pred_instances` set; see `predict` of the mask head."""
        instances = self.mask_head.predict(self.extract_feat(batch_inputs), batch_data_samples, rescale=rescale)
        return self.add_pred_to_datasample(batch_data_samples, instances)

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: SampleList | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        return self.mask_head(self.extract_feat(batch_inputs), batch_data_samples)


def _check_parts(
    backbone: Module, state_dict: dict[str, Tensor], prefix: str, *unused: Sequence[str] | dict | bool
) -> None:
    """Checks that the checkpoint of a backbone has all weights, or none, of each part, such as a stage."""
    if prefix:
        return  # a checkpoint of the whole model, see `_check_complete`
    shapes = {name: weight.shape for name, weight in backbone.named_parameters()}
    fitting = {name for name, shape in shapes.items() if name in state_dict and state_dict[name].shape == shape}
    parts = {name.partition('.')[0] for name in fitting}
    own = backbone.state_dict().keys()
    unknown = [name for name in state_dict if name.partition('.')[0] in parts and name not in own]
    missing = [name for name in shapes if name.partition('.')[0] in parts and name not in fitting]
    reshaped = [name for name in shapes if name in state_dict and name not in fitting]
    if not fitting or unknown or missing or reshaped:
        found = [*reshaped, *missing, *unknown] or list(state_dict)
        raise WeightsError(
            f'not a checkpoint of the backbone, {type(backbone).__name__}: {len(fitting)} of its {len(shapes)} weights fit '
            f'({", ".join(found[:2])}, ... do not); give a checkpoint of this backbone, as "python -m unsam_mm convert" '
            'writes it'
        )


def _check_complete(
    model: UnSAM, state_dict: dict[str, Tensor], prefix: str, *unused: Sequence[str] | dict | bool
) -> None:
    own = {f'{prefix}{name}': value.shape for name, value in model.state_dict().items()}
    missing = [name for name in own if name not in state_dict]
    reshaped = [
        f'{name} is {tuple(state_dict[name].shape)}, not {tuple(shape)}'
        for name, shape in own.items()
        if name in state_dict and state_dict[name].shape != shape
    ]
    if missing or reshaped:
        raise WeightsError(
            f'the checkpoint is not one of this model: {len(missing)} of {len(own)} weights are missing and '
            f'{len(reshaped)} have another shape ({", ".join([*reshaped, *missing][:2])}, ...); '
            'give the config of its training, or set model.partial_checkpoint=True to initialise the rest at random'
        )
