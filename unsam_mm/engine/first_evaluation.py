"""Hook that evaluates the model before training."""

from __future__ import annotations

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner


@HOOKS.register_module()
class UnSAMFirstEvaluationHook(Hook):
    """Validates once before the first iteration; not when training is resumed."""

    def before_train(self, runner: Runner) -> None:
        """Runs the validation loop of `runner`, if it has one."""
        if runner.iter == 0 and runner.val_loop is not None:
            runner.logger.info('Validating the model before training')
            runner.val_loop.run()
