"""Datasets and transforms for MMDetection; importing this package registers them."""

from unsam_mm._mmcv_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from unsam_mm.datasets.click_prompts import UnSAMClickPrompts  # noqa: E402  (mmdet imports only once the ops are there)
from unsam_mm.datasets.coco import UnSAMCocoDataset  # noqa: E402
from unsam_mm.datasets.coco_panoptic import UnSAMCocoPanopticDataset  # noqa: E402
from unsam_mm.datasets.image_folder import UnSAMImageFolder  # noqa: E402
from unsam_mm.datasets.load_image import UnSAMLoadImage  # noqa: E402
from unsam_mm.datasets.load_masks import UnSAMCapMasks, UnSAMLoadMasks, UnSAMPlusMasks  # noqa: E402
from unsam_mm.datasets.pseudo_mask_transform import UnSAMPseudoMasks, prepare_pseudo_masks  # noqa: E402
from unsam_mm.datasets.region_tokens import (  # noqa: E402
    UnSAMPackRegions,
    UnSAMRegionFolders,
    UnSAMRegionTokens,
)
from unsam_mm.datasets.rle_masks import RleMasks  # noqa: E402
from unsam_mm.datasets.sa1b import UnSAMSA1B  # noqa: E402

__all__ = [
    'RleMasks',
    'UnSAMCapMasks',
    'UnSAMClickPrompts',
    'UnSAMCocoDataset',
    'UnSAMCocoPanopticDataset',
    'UnSAMImageFolder',
    'UnSAMLoadImage',
    'UnSAMLoadMasks',
    'UnSAMPackRegions',
    'UnSAMPlusMasks',
    'UnSAMPseudoMasks',
    'UnSAMRegionFolders',
    'UnSAMRegionTokens',
    'UnSAMSA1B',
    'prepare_pseudo_masks',
]
