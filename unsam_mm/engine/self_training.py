"""Self-training: the model predicts pseudo-labels for its training images, and training continues with them.

Source: UnSAM, section 3.3: predictions with a score above 0.7 become labels, and old labels whose IoU with one of them
exceeds 0.5 are removed.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.registry import HOOKS
from mmengine.config import Config
from mmengine.dist import barrier, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner, load_checkpoint

from unsam_mm.engine.resuming import POINTER, unwrapped
from unsam_mm.engine.round_labels import RoundLabels, check_names, label_images, label_source
from unsam_mm.engine.train_loop import UnSAMTrainLoop
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.files import atomic_writer
from unsam_mm.fingerprints import tensors_digest
from unsam_mm.folders.merge import SELF_TRAINING_IOU, SELF_TRAINING_SCORE
from unsam_mm.models.channel_order import type_name

WEIGHTS = ('current', 'averaged', 'best')
_LABELLING_STEPS = ('UnSAMPseudoMasks', 'UnSAMLoadMasks', 'UnSAMPlusMasks', 'LoadAnnotations')
_STATE = 'unsam_self_training'


@HOOKS.register_module()
@dataclass(eq=False)
class UnSAMSelfTrainingHook(Hook):
    """Predicts new labels for all training images between two iterations; training continues with the new labels.

    The labels of round n are stored in ``self_training/round_n`` in the work dir, one file per image, in the format
    that ``python -m unsam_mm generate`` writes, so other trainings can use them too. They replace the pseudo-masks of
    `UnSAMPseudoMasks` or `UnSAMSA1B`; human masks are not replaced. Each round starts from the labels of the previous
    round.

    Before a round, except one before the first iteration, the model is saved as ``self_training_n.pth``. When training
    is resumed, an interrupted round continues with the images that have no file yet. A fingerprint of the weights is
    stored with the labels, so labels of an earlier training in the same work dir are not reused. Each process of a
    distributed training predicts a part of the images.

    Args:
        at_iters: Iterations before which a round takes place, in increasing order. 0 is before the first iteration, as
            in the second round of the published recipe, whose `load_from` is the checkpoint of the first round. There
            is no round after the last iteration.
        weights: Weights used for prediction: 'current'; 'averaged' (as in validation with MMEngine's `EMAHook`); or
            'best' (the checkpoint that `CheckpointHook(save_best=...)` writes).
        min_score: Predictions with a larger score become labels.
        max_iou: An old label with a larger IoU with any new label is removed.
        pipeline: Steps that load an image for prediction. By default those of the test dataloader that load no labels.
        num_workers: Number of processes that load images during prediction. By default that of the train dataloader.

    Raises:
        UnSAMError: If `at_iters` is empty, negative or not in increasing order, or `weights` is unknown.
    """

    at_iters: Sequence[int]
    weights: str = 'current'
    min_score: float = SELF_TRAINING_SCORE
    max_iou: float = SELF_TRAINING_IOU
    pipeline: list[dict] | None = None
    num_workers: int | None = None

    priority = 'LOWEST'  # after the iteration's schedules and its regular checkpoint

    def __post_init__(self) -> None:
        given, self.at_iters = self.at_iters, list(self.at_iters)
        if not self.at_iters or self.at_iters != sorted({*self.at_iters}) or self.at_iters[0] < 0:
            raise UnSAMError(f'at_iters must be iterations in increasing order, from 0 on, got {given}')
        if self.weights not in WEIGHTS:
            raise UnSAMError(f'weights must be one of {WEIGHTS}, got {self.weights!r}')

    def before_train(self, runner: Runner) -> None:
        """Loads the labels of the last round that was started, and completes that round if it was interrupted.

        Raises:
            UnSAMError: If the train loop is not `UnSAMTrainLoop`, or the training images have no pseudo-masks that can
                be replaced, or two images share a label file.
            StoreError: If training is resumed after a round whose labels are missing.
        """
        if not isinstance(runner.train_loop, UnSAMTrainLoop):
            raise UnSAMError("UnSAMSelfTrainingHook needs train_cfg.type='UnSAMTrainLoop'")
        check_names(runner.train_loop.dataset, label_source(runner.train_loop.dataset))
        number = bisect.bisect_right(self.at_iters, runner.iter)
        if number == 0:
            return
        if self.at_iters[number - 1] == runner.iter:
            if number > 1:  # the old labels are those of the previous round
                self._use_labels(runner, number - 1)
            self._label(runner, number)
        self._use_labels(runner, number)
        runner.train_loop.restart_data(0)  # MMEngine skips the batches of earlier iterations

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Runs a round if one is scheduled before the next iteration."""
        iteration = runner.iter + 1
        if iteration not in self.at_iters or iteration == runner.max_iters:
            return
        number = self.at_iters.index(iteration) + 1
        self._save(runner, number, iteration)
        self._label(runner, number)
        self._use_labels(runner, number)
        runner.train_loop.restart_data(iteration)

    def _label(self, runner: Runner, number: int) -> None:
        """Makes the missing labels of a round, and records the fingerprint of the weights in the run's state."""
        labels, dataset = self._labels(runner, number), runner.train_loop.dataset
        old, pipeline = label_source(dataset), self.pipeline or _image_pipeline(runner.cfg)
        num_workers = runner.train_dataloader.num_workers if self.num_workers is None else self.num_workers
        with self._predicting(runner):
            weights = tensors_digest(unwrapped(runner.model).state_dict().items())
            runner.message_hub.update_info(_STATE, {**_predictors(runner), str(number): weights})
            if is_main_process():
                labels.begin(weights, old, len(dataset), _settings_digest(runner.cfg, pipeline))
            barrier()
            if not labels.is_complete:
                runner.logger.info(f'Self-training round {number}: labels are written to {labels.folder}')
                label_images(runner.model, dataset, old, pipeline, labels, num_workers)
                barrier()  # all shares are done
                if is_main_process():
                    runner.logger.info(f'Self-training round {number}: {labels.end()} images are labelled')
                barrier()

    def _use_labels(self, runner: Runner, number: int) -> None:
        """Replaces the labels of the training images by those of a round."""
        labels = self._labels(runner, number)
        expected = _predictors(runner).get(str(number))
        if not labels.is_complete or labels.weights != expected:
            raise StoreError(
                f'{labels.folder}: not the labels that this training made in round {number}; restore them, or resume '
                f'from self_training_{number}.pth, which makes them again'
            )
        label_source(runner.train_loop.dataset).folder = str(labels.folder)

    def _labels(self, runner: Runner, number: int) -> RoundLabels:
        folder = Path(runner.work_dir, 'self_training', f'round_{number}').resolve()
        return RoundLabels(folder, self.min_score, self.max_iou)

    def _save(self, runner: Runner, number: int, iteration: int) -> None:
        """Saves a checkpoint from which this round can be resumed; MMEngine's pointer to it is written afterwards."""
        name = f'self_training_{number}.pth'
        runner.save_checkpoint(runner.work_dir, name, meta={'iter': iteration}, by_epoch=False)
        if is_main_process():
            with atomic_writer(Path(runner.work_dir, POINTER)) as file:
                file.write(str(Path(runner.work_dir, name).resolve()))

    @contextmanager
    def _predicting(self, runner: Runner) -> Iterator[None]:
        """Loads the weights for prediction into the model, in evaluation mode; restores the current ones at the end."""
        runner.model.eval()
        if self.weights == 'averaged':
            hooks = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
            if not hooks:
                raise UnSAMError("UnSAMSelfTrainingHook(weights='averaged') needs an EMAHook in custom_hooks")
            hooks[0].before_test_epoch(runner)
            yield
            hooks[0].after_test_epoch(runner)
        elif self.weights == 'best':
            best = runner.message_hub.runtime_info.get('best_ckpt')
            if best is None:
                raise UnSAMError(
                    "UnSAMSelfTrainingHook(weights='best'): there is no best checkpoint yet; set save_best in "
                    'default_hooks.checkpoint, and validate before the round'
                )
            module = unwrapped(runner.model)
            current = {name: value.cpu().clone() for name, value in module.state_dict().items()}
            load_checkpoint(module, str(best), map_location='cpu', strict=True)
            yield
            module.load_state_dict(current)
        else:
            yield
        runner.model.train()


def _image_pipeline(cfg: Config) -> list[dict]:
    """The test pipeline without labels."""
    return [step for step in cfg.test_dataloader.dataset.pipeline if type_name(step) not in _LABELLING_STEPS]


def _settings_digest(cfg: Config, pipeline: list[dict]) -> str:
    """Fingerprint of all settings that affect predictions, without the weights."""
    data = {key: value for key, value in cfg.train_dataloader.dataset.items() if key != 'pipeline'}
    settings = [cfg.model, data, pipeline]
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=repr).encode()).hexdigest()[:12]


def _predictors(runner: Runner) -> dict[str, str]:
    """Fingerprints of the weights that predicted the labels, by round; stored in every checkpoint."""
    return runner.message_hub.runtime_info.get(_STATE, {})
