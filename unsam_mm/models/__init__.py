"""UnSAM's models, in the registries of MMDetection.

Configs import them with ``custom_imports = dict(imports=['unsam_mm.models'])``.
"""

from unsam_mm._mmcv_ops import ensure_mmcv_ops

ensure_mmcv_ops()  # must run before the first import of mmdet.models

from unsam_mm.models.assigner import UnSAMHungarianAssigner  # noqa: E402
from unsam_mm.models.detector import UnSAM  # noqa: E402
from unsam_mm.models.joint_head import UnSAMJointHead  # noqa: E402
from unsam_mm.models.prompt_head import UnSAMPromptHead  # noqa: E402
from unsam_mm.models.prompt_pixel_decoder import UnSAMPixelDecoder  # noqa: E402
from unsam_mm.models.region_model import UnSAMRegionModel, UnSAMRegionPreprocessor  # noqa: E402
from unsam_mm.models.unsam_head import UnSAMHead  # noqa: E402
from unsam_mm.models.vit_backbone import UnSAMViTBackbone  # noqa: E402

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
