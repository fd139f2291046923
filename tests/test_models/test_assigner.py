"""Matching with predictions that are not numbers."""

import pytest
import torch
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData

from unsam_mm.models import UnSAMHungarianAssigner, criterion

COSTS = [
    {'type': 'ClassificationCost', 'weight': 2.0},
    {'type': 'CrossEntropyLossCost', 'weight': 5.0, 'use_sigmoid': True},
    {'type': 'DiceCost', 'weight': 5.0, 'pred_act': True, 'eps': 1.0},
]


@pytest.mark.parametrize('broken', [float('nan'), float('inf'), float('-inf')])
def test_a_prediction_that_is_not_finite_is_matched_last(broken):
    truth = InstanceData(labels=torch.tensor([0]), masks=torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    scores = torch.tensor([[broken, 0.0], [0.0, 5.0]])
    masks = torch.tensor([[broken] * 4, [9.0, 9.0, -9.0, -9.0]])
    assigned = UnSAMHungarianAssigner(COSTS).assign(InstanceData(scores=scores, masks=masks), truth)
    assert assigned.gt_inds.tolist() == [0, 1]


@pytest.mark.parametrize('values_at_once', [2**22, 5 * 64])
def test_finite_predictions_cost_what_they_cost_in_mmdet(monkeypatch, values_at_once):
    monkeypatch.setattr(criterion, '_CHUNK_VALUES', values_at_once)
    truth = InstanceData(labels=torch.zeros(5, dtype=torch.long), masks=(torch.rand(5, 64) > 0.5).float())
    predictions = InstanceData(scores=torch.randn(12, 2), masks=10 * torch.randn(12, 64))
    stock = TASK_UTILS.build({'type': 'HungarianAssigner', 'match_costs': COSTS})
    ours = UnSAMHungarianAssigner(COSTS)
    for cost, expected in zip(ours.match_costs, stock.match_costs, strict=True):
        torch.testing.assert_close(cost(predictions, truth), expected(predictions, truth))
    assert torch.equal(ours.assign(predictions, truth).gt_inds, stock.assign(predictions, truth).gt_inds)
