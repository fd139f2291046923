"""The pseudo-masks of a training data set, and the labels of a self-training round, made by one or more processes."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
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

from unsam_mm.datasets import UnSAMImageFolder, UnSAMPseudoMasks, UnSAMSA1B
from unsam_mm.datasets.image_folder import image_name
from unsam_mm.datasets.lazy import LazyDataset
from unsam_mm.datasets.messages import log_warning
from unsam_mm.errors import ImageError, StoreError, TargetError, UnSAMError, image_errors
from unsam_mm.files import read_json, remove_leftovers, write_json
from unsam_mm.fingerprints import file_digest
from unsam_mm.folders.merge import suppress_overlapping
from unsam_mm.folders.store import MANIFEST, PseudoMaskStore, was_cut_short
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.masks.rle import encode_bitmaps

_LOG_EVERY = 1000  # images


class LabelSource:
    """The pseudo-masks of a data set.

    Attributes:
        folder: Folder in the format of ``python -m unsam_mm generate``; set it to replace the labels. Empty if the
            masks are generated when an image is first loaded.
    """

    folder: str

    @property
    def signature(self) -> str:
        """Digest of the folder's metadata, which say how the labels were made; '' if there are none."""
        manifest = Path(self.folder, MANIFEST)
        return file_digest(manifest) if manifest.is_file() else ''

    def name(self, entry: dict[str, Any]) -> str:
        """The name under which the labels of an image are stored: its path relative to the image folder.

        Raises:
            UnSAMError: If the image folder is unknown, or the image is not in it.
        """
        return image_name(entry)

    def read(self, entry: dict[str, Any], size_hw: tuple[int, int]) -> MaskSet | None:
        """All labels of an image; None if the image is not used for training.

        Args:
            entry: The data set's entry of the image.
            size_hw: Height and width in pixels.
        """
        raise NotImplementedError


def label_source(dataset: Dataset) -> LabelSource:
    """The pseudo-masks of a data set.

    Raises:
        UnSAMError: If the data set has no pseudo-masks that can be replaced.
    """
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    steps = [step for step in steps if isinstance(step, UnSAMPseudoMasks)]
    if len(steps) == 1:
        return _StepLabels(steps[0], dataset)
    if isinstance(dataset, UnSAMSA1B) and dataset.labels != 'human':
        return _DatasetLabels(dataset)
    raise UnSAMError(
        'self-training replaces pseudo-masks: those of one UnSAMPseudoMasks in train_dataloader.dataset.pipeline, or of '
        f"UnSAMSA1B(labels='pseudo') or 'both'; found {type(dataset).__name__} and {len(steps)} UnSAMPseudoMasks"
    )


def check_names(dataset: Dataset, labels: LabelSource) -> None:
    """Checks that no two images share a label file.

    Raises:
        UnSAMError: If the labels of two images would be stored under one name, or an image has no name.
    """
    if isinstance(dataset, LazyDataset | UnSAMImageFolder):
        return  # names are paths in one folder
    paths: dict[str, str] = {}
    for number in range(len(dataset)):
        entry = dataset.get_data_info(number)
        name, path = labels.name(entry), str(entry['img_path'])
        if paths.setdefault(name, path) != path:
            raise UnSAMError(
                f'{paths[name]} and {path}: the labels of both would be stored as {name}; give one data_root that '
                'contains both folders'
            )


class _StepLabels(LabelSource):
    """The labels that `UnSAMPseudoMasks` generates or reads."""

    def __init__(self, step: UnSAMPseudoMasks, dataset: Dataset) -> None:
        self._step = step
        prefix = getattr(dataset, 'data_prefix', None) or {}
        stated = (step.image_root, prefix.get('img'), prefix.get('img_path'), getattr(dataset, 'data_root', ''))
        self._image_root = str(next(filter(None, stated), ''))

    def name(self, entry: dict[str, Any]) -> str:
        return image_name(entry, self._image_root)

    @property
    def folder(self) -> str:
        return self._step.precomputed or ''

    @folder.setter
    def folder(self, folder: str) -> None:
        self._step.precomputed, self._step.image_root = folder, self._image_root

    @property
    def signature(self) -> str:
        return super().signature if self.folder else self._step.signature

    def read(self, entry: dict[str, Any], size_hw: tuple[int, int]) -> MaskSet | None:
        return self._step.find({**entry, 'ori_shape': size_hw})


class _DatasetLabels(LabelSource):
    """The pseudo-masks of `UnSAMSA1B`; its human masks are not replaced."""

    def __init__(self, dataset: UnSAMSA1B) -> None:
        self._dataset = dataset

    @property
    def folder(self) -> str:
        return self._dataset.pseudo_masks_root

    @folder.setter
    def folder(self, folder: str) -> None:
        # The list of names needs no update: a round labels all images under their present names.
        self._dataset.pseudo_masks_root = folder

    def read(self, entry: dict[str, Any], size_hw: tuple[int, int]) -> MaskSet:
        store, name = PseudoMaskStore(self.folder), self.name(entry)
        if store.has(name):
            try:
                return store.read(name)
            except StoreError as error:
                log_warning(f'no old labels: {error}')
        return MaskSet.from_bitmaps(np.zeros((0, *size_hw), bool))


class RoundLabels:
    """The labels of a round in a folder. Its metadata record the weights, the settings, and if all images are done.

    Args:
        folder: The folder; created when the round begins.
        min_score: Predictions with a larger score become labels.
        max_iou: An old label with a larger IoU with any new label is removed.
    """

    def __init__(self, folder: Path, min_score: float, max_iou: float) -> None:
        self.folder, self.min_score, self.max_iou = folder, min_score, max_iou
        self.store = PseudoMaskStore(folder)

    @property
    def is_complete(self) -> bool:
        """True if all images are done."""
        return bool(self._metadata().get('complete'))

    @property
    def weights(self) -> str | None:
        """Fingerprint of the weights that predict the labels; None if none is recorded."""
        return self._metadata().get('weights')

    def begin(self, weights: str, old: LabelSource, n_images: int, settings: str = '') -> None:
        """Prepares the folder. Removes its labels if the weights, the old labels or the settings have changed.

        Args:
            weights: Fingerprint of the weights that predict the labels.
            old: The old labels.
            n_images: Number of images to label.
            settings: Fingerprint of all other settings that affect predictions.
        """
        remove_leftovers(self.folder)
        origin = {
            'weights': weights,
            'old_labels': old.folder,
            'images': n_images,
            'min_score': self.min_score,
            'max_iou': self.max_iou,
            'settings': settings,
            'old_labels_signature': old.signature,
        }
        metadata = self._metadata()
        if any(metadata.get(key) != value for key, value in origin.items()):
            self.store.clear()
            supervised = bool(old.folder) and PseudoMaskStore(old.folder).supervised
            write_json(self.folder / MANIFEST, {**origin, 'supervised': supervised, 'complete': False})

    def end(self) -> int:
        """Records that all images are done, and returns the number of images with labels."""
        write_json(self.folder / MANIFEST, {**self._metadata(), 'complete': True})
        return len(self.store.names())

    def add(self, name: str, predicted: MaskSet, old: MaskSet) -> None:
        """Writes the labels of one image; see `join_labels`."""
        self.store.write(name, join_labels(predicted, old, self.min_score, self.max_iou))

    def _metadata(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        return read_json(path) if path.is_file() and not was_cut_short(path) else {}


def join_labels(predicted: MaskSet, old: MaskSet, min_score: float, max_iou: float) -> MaskSet:
    """Confident predictions, and the old labels that overlap with none of them by more than `max_iou`.

    Args:
        predicted: Predictions of any score.
        old: Old labels of the same image.
        min_score: Predictions with a larger score become labels.
        max_iou: An old label with a larger IoU with any new label is removed.

    Returns:
        The predictions with their scores, then the old labels. Scores of old labels are not comparable to those of
        predictions. They are multiplied by `min_score`, so that a pipeline that uses only the best labels prefers
        predictions. Predictions have no parents.
    """
    new = predicted[np.flatnonzero(predicted.scores > min_score)]
    kept = suppress_overlapping(old, new.rles, max_iou)
    return MaskSet(
        rles=[*new.rles, *kept.rles],
        scores=np.concatenate([new.scores, kept.scores * np.float32(min_score)]),
        parents=np.concatenate([np.full(len(new), -1), np.where(kept.parents < 0, -1, kept.parents + len(new))]),
        areas=np.concatenate([new.areas, kept.areas]),
        boxes_xyxy=np.concatenate([new.boxes_xyxy, kept.boxes_xyxy]),
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
    """Labels this process's share of the images. Images that have labels are skipped; failures are logged.

    Args:
        model: A detector in evaluation mode, or its wrapper.
        dataset: An MMEngine data set.
        old: Its old labels.
        pipeline: Steps that load an image, up to `PackDetInputs`.
        labels: The new labels.
        num_workers: Number of processes that load images.

    Raises:
        ImageError: If all images of the share fail.
    """
    images = _Unlabelled(dataset, old, Compose(pipeline), labels.store)
    loader = DataLoader(images, batch_size=1, num_workers=num_workers, collate_fn=itemgetter(0))
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
        except (ImageError, TargetError) as error:  # the other images can still be labelled
            log_warning(f'image skipped: {error}')
            failures.append(error)
        if count % _LOG_EVERY == 0:
            print_log(f'Self-training: {count} of {len(images)} images', logger='current')
    if failures and not n_done:
        raise ImageError(f'none of {len(failures)} images can be labelled; the first: {failures[0]}')


class _Unlabelled(Dataset):
    """This process's share of the images: for each, the path and a tuple of name, old labels and network input.

    The tuple is replaced by None for an image that is done or not used for training, and by an error for an image that
    fails. Workers check if an image is done, since its name may have to be read from a file.
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
            if packed is None:  # skipped by a step, which has logged the reason
                return path, None
            masks = self.old.read(entry, tuple(packed['data_samples'].ori_shape))
        except ImageError as error:
            return path, error
        return path, None if masks is None else (name, masks, packed)


def _mask_set(instances: InstanceData, size_hw: tuple[int, int]) -> MaskSet:
    """The predicted masks without parents; their boxes are computed, since predicted boxes may differ."""
    masks = instances.masks
    rles = masks if isinstance(masks, list) else encode_bitmaps(masks.cpu().numpy())
    return MaskSet.from_rles(rles, instances.scores.float().cpu().numpy(), size_hw, np.full(len(rles), -1))
