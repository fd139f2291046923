"""UnSAM's models, in the registries of MMDetection.

Configs import them with ``custom_imports = dict(imports=['unsam_mm.models'])``.
"""

from unsam_mm._mmcv_ops import ensure_mmcv_ops

ensure_mmcv_ops()  # must run before the first import of mmdet.models

from unsam_mm.models.criterion import UnSAMHungarianAssigner
from unsam_mm.models.detector import UnSAM
from unsam_mm.models.joint_head import UnSAMJointHead
from unsam_mm.models.prompt_decoder import UnSAMPixelDecoder
from unsam_mm.models.prompt_head import UnSAMPromptHead
from unsam_mm.models.region_model import UnSAMRegionModel, UnSAMRegionPreprocessor
from unsam_mm.models.unsam_head import UnSAMHead
from unsam_mm.models.vit_backbone import UnSAMViTBackbone

__all__ = [
    'UnSAM',
    'UnSAMHead',
    'UnSAMHungarianAssigner',
    'UnSAMJointHead',
    'UnSAMPixelDecoder',
    'UnSAMPromptHead',
    'UnSAMRegionModel',
    'UnSAMRegionPreprocessor',
    'UnSAMViTBackbone',
]
