"""Matching with predictions that are not numbers."""

import pytest
import torch
from mmengine.structures import InstanceData

from unsam_mm.models import UnSAMHungarianAssigner

COSTS = [
    {'type': 'ClassificationCost', 'weight': 2.0},
    {'type': 'DiceCost', 'weight': 5.0, 'pred_act': True, 'eps': 1.0},
]


@pytest.mark.parametrize('broken', [float('nan'), float('inf'), float('-inf')])
def test_a_prediction_that_is_not_finite_is_matched_last(broken):
    truth = InstanceData(labels=torch.tensor([0]), masks=torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    scores = torch.tensor([[broken, 0.0], [0.0, 5.0]])
    masks = torch.tensor([[broken] * 4, [9.0, 9.0, -9.0, -9.0]])
    assigned = UnSAMHungarianAssigner(COSTS).assign(InstanceData(scores=scores, masks=masks), truth)
    assert assigned.gt_inds.tolist() == [0, 1]


def test_finite_predictions_are_matched_as_by_mmdet():
    from mmdet.registry import TASK_UTILS

    truth = InstanceData(labels=torch.zeros(5, dtype=torch.long), masks=(torch.rand(5, 64) > 0.5).float())
    predictions = InstanceData(scores=torch.randn(12, 2), masks=torch.randn(12, 64))
    stock = TASK_UTILS.build({'type': 'HungarianAssigner', 'match_costs': COSTS}).assign(predictions, truth)
    ours = UnSAMHungarianAssigner(COSTS).assign(predictions, truth)
    assert torch.equal(ours.gt_inds, stock.gt_inds)
