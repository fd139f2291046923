"""Pseudo-labels of one self-training round, written to a folder by any number of processes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.dataset import pseudo_collate
from mmengine.dist import get_rank, get_world_size
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch.utils.data import DataLoader, Dataset

from unsam_mm.engine.label_source import LabelSource
from unsam_mm.errors import ImageError, TargetError, image_errors
from unsam_mm.files import read_json, remove_leftovers, write_json
from unsam_mm.folders.merge import without_overlap
from unsam_mm.folders.store import MANIFEST, PseudoMaskStore, was_cut_short
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import areas_and_boxes, encode_bitmaps

_LOG_EVERY = 1000  # images


class RoundLabels:
    """A folder of labels, with metadata: the fingerprint of the weights, and whether all images are done.

    Args:
        folder: The folder; it is made when the round begins.
        min_score: Predictions with a larger score become labels.
        max_iou: An old label with a larger IoU with any new label is removed.
    """

    def __init__(self, folder: Path, min_score: float, max_iou: float) -> None:
        self.folder, self.min_score, self.max_iou = folder, min_score, max_iou
        self.store = PseudoMaskStore(folder)

    @property
    def is_complete(self) -> bool:
        """Whether all images are done."""
        return bool(self._noted().get('complete'))

    @property
    def weights(self) -> str | None:
        """Fingerprint of the weights that predict."""
        return self._noted().get('weights')

    def begin(self, weights: str, old: LabelSource, n_images: int, settings: str = '') -> None:
        """Prepares the folder; labels made with other weights, old labels or settings are removed.

        Args:
            weights: Fingerprint of the weights that predict.
            old: Where the old labels come from.
            n_images: How many images are to be labelled.
            settings: Fingerprint of what else decides about predictions.
        """
        remove_leftovers(self.folder)
        origin = {
            'weights': weights,
            'old_labels': old.folder,
            'images': n_images,
            'min_score': self.min_score,
            'max_iou': self.max_iou,
        }
        # Rounds that earlier versions began lack these keys.
        origin_since = {'settings': settings, 'old_labels_signature': old.signature}
        noted = self._noted()
        if any(noted.get(key) != value for key, value in origin.items()) or any(
            noted.get(key, value) != value for key, value in origin_since.items()
        ):
            self.store.clear()
            supervised = bool(old.folder) and PseudoMaskStore(old.folder).supervised
            write_json(self.folder / MANIFEST, {**origin, **origin_since, 'supervised': supervised, 'complete': False})

    def end(self) -> str:
        """Records that all images are done, and returns their number."""
        write_json(self.folder / MANIFEST, {**self._noted(), 'complete': True})
        return f'{len(self.store.names())} images are labelled'

    def add(self, name: str, predicted: MaskSet, old: MaskSet) -> None:
        """Writes the labels of one image; see `join_labels`."""
        self.store.write(name, join_labels(predicted, old, self.min_score, self.max_iou))

    def _noted(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        return read_json(path) if path.is_file() and not was_cut_short(path) else {}


def join_labels(predicted: MaskSet, old: MaskSet, min_score: float, max_iou: float) -> MaskSet:
    """Sure predictions, and the old labels that none of them covers.

    Args:
        predicted: Predictions of any score.
        old: Labels so far, of the same image.
        min_score: Predictions with a larger score are taken.
        max_iou: An old label with a larger IoU with any new label is removed.

    Returns:
        Predictions first, with their scores. Scores of old labels are multiplied by `min_score`, since they measure
        something else: where a pipeline takes the best labels only, predictions come before them. Parents are those
        among the old labels.
    """
    sure = predicted[np.flatnonzero(predicted.scores > min_score)]
    apart = without_overlap(old, sure.rles, max_iou)
    return MaskSet(
        rles=[*sure.rles, *apart.rles],
        scores=np.concatenate([sure.scores, apart.scores * np.float32(min_score)]),
        parents=np.concatenate([np.full(len(sure), -1), np.where(apart.parents < 0, -1, apart.parents + len(sure))]),
        areas=np.concatenate([sure.areas, apart.areas]),
        boxes_xyxy=np.concatenate([sure.boxes_xyxy, apart.boxes_xyxy]),
        size_hw=old.size_hw,
    )


def label_images(
    model: torch.nn.Module,
    dataset: Dataset,
    old: LabelSource,
    pipeline: list[dict | Callable],
    labels: RoundLabels,
    num_workers: int,
) -> None:
    """Labels this process's share of the images; what has labels is passed over, what fails is logged.

    Args:
        model: A detector in evaluation mode, or its wrapper.
        dataset: An MMEngine data set.
        old: Where its labels come from so far.
        pipeline: How an image is loaded, up to `PackDetInputs`.
        labels: Where labels are written.
        num_workers: Processes that load images.

    Raises:
        ImageError: If images fail and not one can be labelled.
    """
    images = _Unlabelled(dataset, old, Compose(pipeline), labels.store)
    loader = DataLoader(images, batch_size=1, num_workers=num_workers, collate_fn=_first)
    n_done, failures = 0, []
    for count, (path, image) in enumerate(loader, start=1):
        try:
            if isinstance(image, ImageError):
                raise image
            if image is not None:
                name, masks, packed = image
                with image_errors(path), torch.no_grad():
                    sample = model.test_step(pseudo_collate([packed]))[0]
                    predicted = _mask_set(sample.pred_instances, tuple(sample.ori_shape))
                labels.add(name, predicted, masks)
            n_done += 1
        except (ImageError, TargetError) as error:  # the others can be labelled
            print_log(f'image skipped: {error}', logger='current', level=logging.WARNING)
            failures.append(error)
        if count % _LOG_EVERY == 0:
            print_log(f'Self-training: {count} of {len(images)} images', logger='current')
    if failures and not n_done:
        raise ImageError(f'none of {len(failures)} images can be labelled; the first: {failures[0]}')


class _Unlabelled(Dataset):
    """This process's share of the images: path, and name, old labels and network input.

    In the place of the latter stands None for an image that is done or not trained on, and an error for one that fails.
    The worker checks whether the image is done: its name may have to be read from a separate file.
    """

    def __init__(
        self, dataset: Dataset, old: LabelSource, pipeline: Callable[[dict], dict], done: PseudoMaskStore
    ) -> None:
        self.dataset, self.old, self.pipeline, self.done = dataset, old, pipeline, done
        self.share = range(get_rank(), len(dataset), get_world_size())

    def __len__(self) -> int:
        return len(self.share)

    def __getitem__(self, position: int) -> tuple[str, tuple[str, MaskSet, dict] | ImageError | None]:
        entry = self.dataset.get_data_info(self.share[position])
        path, name = entry['img_path'], self.old.name(entry)
        if self.done.is_current(name, Path(path)):
            return path, None
        try:
            with image_errors(path):
                packed = self.pipeline(dict(entry))
            if packed is None:  # the step has logged why
                return path, None
            masks = self.old.read(entry, tuple(packed['data_samples'].ori_shape))
        except ImageError as error:
            return path, error
        return path, None if masks is None else (name, masks, packed)


def _first(batch: list) -> Any:
    return batch[0]


def _mask_set(instances: InstanceData, size_hw: tuple[int, int]) -> MaskSet:
    masks = instances.masks
    rles = masks if isinstance(masks, list) else encode_bitmaps(masks.cpu().numpy())
    areas, boxes = areas_and_boxes(rles)  # those of a detector with a head for boxes are not those of its masks
    return MaskSet(
        rles=rles,
        scores=instances.scores.float().cpu().numpy(),
        parents=np.full(len(rles), -1),
        areas=areas,
        boxes_xyxy=boxes.astype(np.float32),
        size_hw=size_hw,
    )
