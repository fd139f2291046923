"""Prompts in, masks out, in the manner of Segment Anything.

The engine ``'tree'`` needs no trained model: the regions under a click are the path from its leaf to the root of the
image's region tree, nested and exact. The engine ``'model'`` also asks the region model, which learned from the
pseudo-masks of all trees. Further clicks are weighed in the same way by both; see `unsam_mm.prompting.inference`. Nothing here imports torch before an engine is made.
"""

from __future__ import annotations

from unsam_mm.prompting.automatic import UnSAMAutomaticMaskGenerator
from unsam_mm.prompting.nodes import candidate_nodes, click_scores, distinct_nodes
from unsam_mm.prompting.predictor import ENGINES, UnSAMPredictor, unsam_model_registry
from unsam_mm.prompting.prompt import MAX_MASKS_PER_PROMPT
from unsam_mm.prompting.tiles import TiledEngine
from unsam_mm.prompting.windows import MaskCrop

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
