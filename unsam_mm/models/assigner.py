"""Hungarian matching that survives a prediction which is not a number."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.task_modules.assigners import HungarianAssigner
from mmdet.registry import TASK_UTILS
from torch import Tensor

_WORST_COST = 1e5
"""Far above any real cost (weighted sums stay below about 1e3), and harmless when a few of them are added."""


class _FiniteCost:
    """A match cost in float32 whose NaN and infinite entries are replaced by very bad finite ones."""

    def __init__(self, cost: Any) -> None:
        self.cost = cost

    def __call__(self, **instances: Any) -> Tensor:
        return torch.nan_to_num(
            self.cost(**instances).float(), nan=_WORST_COST, posinf=_WORST_COST, neginf=-_WORST_COST
        )


@TASK_UTILS.register_module()
class UnSAMHungarianAssigner(HungarianAssigner):
    """`HungarianAssigner` with finite costs.

    Half precision overflows in the mask costs of large images, and SciPy's solver then stops the whole training with
    "matrix contains invalid numeric entries". Here such a prediction is matched last, and training goes on.

    Args:
        match_costs: Configs of the costs that are added up.
    """

    def __init__(self, match_costs: list[dict]) -> None:
        super().__init__(match_costs)
        self.match_costs = [_FiniteCost(cost) for cost in self.match_costs]
