"""Datasets and transforms for MMDetection; importing this package registers them."""

from unsam_mm._mmcv_ops import ensure_mmcv_ops

ensure_mmcv_ops()

from unsam_mm.datasets.coco import UnSAMCocoDataset, UnSAMCocoPanopticDataset
from unsam_mm.datasets.image_folder import UnSAMImageFolder
from unsam_mm.datasets.loading import UnSAMCapMasks, UnSAMClickPrompts, UnSAMLoadImage, UnSAMLoadMasks, UnSAMPlusMasks
from unsam_mm.datasets.pseudo_mask_transform import UnSAMPseudoMasks, prepare_pseudo_masks
from unsam_mm.datasets.region_tokens import UnSAMPackRegions, UnSAMRegionFolders, UnSAMRegionTokens
from unsam_mm.datasets.rle_masks import RleMasks
from unsam_mm.datasets.sa1b import UnSAMSA1B

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
