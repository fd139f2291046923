"""Class-agnostic mask evaluation. The metric for MMDetection lives in `unsam_mm.evaluation.coco_metric`."""

from unsam_mm.evaluation.annotations import load_ground_truth, load_predictions, match_images
from unsam_mm.evaluation.average_recall import ENGINES, evaluate_masks, format_table

__all__ = ['ENGINES', 'evaluate_masks', 'format_table', 'load_ground_truth', 'load_predictions', 'match_images']
