"""Class-agnostic evaluation of masks, and evaluation of prompted masks.

The metrics for MMDetection are in `unsam_mm.evaluation.coco_metric` and `unsam_mm.evaluation.prompt_metric`.
"""

from unsam_mm.coco_files.ground_truth import load_ground_truth, match_images
from unsam_mm.evaluation.average_recall import ENGINES, evaluate_masks, format_table
from unsam_mm.evaluation.click_simulation import evaluate_prompts
from unsam_mm.evaluation.predictions import load_predictions
from unsam_mm.evaluation.prompt_data import coco_prompts, folder_prompts
from unsam_mm.evaluation.prompt_iou import summarize

__all__ = [
    'ENGINES',
    'coco_prompts',
    'evaluate_masks',
    'evaluate_prompts',
    'folder_prompts',
    'format_table',
    'load_ground_truth',
    'load_predictions',
    'match_images',
    'summarize',
]
