"""Promptable segmentation with the interfaces of Segment Anything.

The engine ``'tree'`` needs no trained model: the candidates for a click are the nested regions that contain its pixel,
which are the nodes on the path from a leaf to the root of the region tree. The engine ``'model'`` adds masks of the
region model, which is trained on the pseudo-masks of all trees. Both engines score several clicks in the same way; see
`unsam_mm.prompting.inference`. torch is imported when an engine is made.
"""

from __future__ import annotations

from unsam_mm.prompting.automatic import UnSAMAutomaticMaskGenerator
from unsam_mm.prompting.predictor import ENGINES, UnSAMPredictor, unsam_model_registry
from unsam_mm.prompting.prompt import MAX_MASKS_PER_PROMPT
from unsam_mm.prompting.tile_pyramid import MaskCrop
from unsam_mm.prompting.tiled_engine import TiledEngine
from unsam_mm.prompting.tree_engine import candidate_nodes, click_scores, distinct_nodes

__all__ = [
    'ENGINES',
    'MAX_MASKS_PER_PROMPT',
    'MaskCrop',
    'TiledEngine',
    'UnSAMAutomaticMaskGenerator',
    'UnSAMPredictor',
    'candidate_nodes',
    'click_scores',
    'distinct_nodes',
    'unsam_model_registry',
]
