"""Hungarian matching with finite costs, in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmdet.models.task_modules.assigners import CrossEntropyLossCost, HungarianAssigner
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.functional import softplus

_WORST_COST = 1e5
"""Far above any actual cost (weighted sums are below about 1e3), but sums of a few stay finite."""

_CHUNK_VALUES = 2**22
"""Values of predictions in each chunk of a cost: 16 MB, 334 predictions at the paper's 12544 points."""


class _FiniteCost:
    """A match cost in float32, computed in chunks, with NaN and infinity replaced by a large finite cost."""

    def __init__(self, cost: Any) -> None:
        self.cost = _cross_entropy(cost.weight) if type(cost) is CrossEntropyLossCost else cost

    def __call__(self, pred_instances: InstanceData, gt_instances: InstanceData, **others: Any) -> Tensor:
        values = max(field[0].numel() for field in pred_instances.values())
        step = max(1, _CHUNK_VALUES // values)
        chunks = [pred_instances[start : start + step] for start in range(0, len(pred_instances), step)]
        costs = [self.cost(pred_instances=chunk, gt_instances=gt_instances, **others).float() for chunk in chunks]
        return torch.nan_to_num(torch.cat(costs), nan=_WORST_COST, posinf=_WORST_COST, neginf=-_WORST_COST)


def _cross_entropy(weight: float) -> Callable[..., Tensor]:
    """`CrossEntropyLossCost` with one matrix product instead of two: entropy is softplus(logit) - logit * truth."""

    def cost(pred_instances: InstanceData, gt_instances: InstanceData, **unused: Any) -> Tensor:
        logits, truth = pred_instances.masks.flatten(1).float(), gt_instances.masks.flatten(1).float()
        return (softplus(logits).sum(1, keepdim=True) - logits @ truth.T) * (weight / logits.shape[1])

    return cost


@TASK_UTILS.register_module()
class UnSAMHungarianAssigner(HungarianAssigner):
    """`HungarianAssigner` with finite costs, in chunks.

    In half precision the mask costs of large images may overflow, and SciPy's solver then fails with "matrix contains
    invalid numeric entries". Here such a prediction is matched last.

    Args:
        match_costs: Configs of the costs, which are summed.
    """

    def __init__(self, match_costs: list[dict]) -> None:
        super().__init__(match_costs)
        self.match_costs = [_FiniteCost(cost) for cost in self.match_costs]
