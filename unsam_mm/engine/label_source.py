"""Pseudo-mask labels of a training data set, which self-training replaces between rounds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mmengine.logging import print_log
from torch.utils.data import Dataset

from unsam_mm.datasets import UnSAMImageFolder, UnSAMPseudoMasks, UnSAMSA1B
from unsam_mm.datasets.image_folder import image_name
from unsam_mm.datasets.lazy import LazyDataset
from unsam_mm.errors import StoreError, UnSAMError
from unsam_mm.fingerprints import file_digest
from unsam_mm.folders.store import MANIFEST, PseudoMaskStore
from unsam_mm.masks.mask_set import MaskSet


class LabelSource(Protocol):
    """The pseudo-masks of a data set.

    Attributes:
        folder: Folder in the form that ``generate`` writes; set it to exchange the labels. Empty if the masks are
            generated when an image is first loaded.
    """

    folder: str

    def name(self, entry: dict[str, Any]) -> str:
        """The name under which the labels of an image are kept, a path relative to the folder of the images.

        Raises:
            UnSAMError: If that folder is not known, or the image does not lie below it.
        """

    @property
    def signature(self) -> str:
        """Differs whenever the labels may have been made in another way."""

    def read(self, entry: dict[str, Any], size_hw: tuple[int, int]) -> MaskSet | None:
        """All labels of an image of this size, or None if it is not trained on.

        Args:
            entry: The data set's entry of the image.
            size_hw: Height and width in pixels.
        """


def label_source(dataset: Dataset) -> LabelSource:
    """The place of a data set's labels.

    Raises:
        UnSAMError: If it has no pseudo-masks that could be exchanged.
    """
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    steps = [step for step in steps if isinstance(step, UnSAMPseudoMasks)]
    if len(steps) == 1:
        return _OfStep(steps[0], dataset)
    if isinstance(dataset, UnSAMSA1B) and dataset.labels != 'human':
        return _OfDataset(dataset)
    raise UnSAMError(
        'self-training replaces pseudo-masks: those of one UnSAMPseudoMasks in train_dataloader.dataset.pipeline, or of '
        f"UnSAMSA1B(labels='pseudo') or 'both'; found {type(dataset).__name__} and {len(steps)} UnSAMPseudoMasks"
    )


def check_names(dataset: Dataset, labels: LabelSource) -> None:
    """Checks that no two images share a label file.

    Raises:
        UnSAMError: If the labels of two images would be kept under one name, or an image has none.
    """
    if isinstance(dataset, LazyDataset | UnSAMImageFolder):
        return  # paths below one folder
    paths: dict[str, str] = {}
    for number in range(len(dataset)):
        entry = dataset.get_data_info(number)
        name, path = labels.name(entry), str(entry['img_path'])
        if paths.setdefault(name, path) != path:
            raise UnSAMError(
                f'{paths[name]} and {path}: the labels of both would be kept as {name}; give one data_root that holds '
                'both folders'
            )


def signature_of_folder(folder: str) -> str:
    """Metadata of a folder of labels on how they were made; empty if it has none."""
    manifest = Path(folder, MANIFEST)
    return file_digest(manifest) if manifest.is_file() else ''


class _OfStep:
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
        return signature_of_folder(self.folder) if self.folder else self._step.signature

    def read(self, entry: dict[str, Any], size_hw: tuple[int, int]) -> MaskSet | None:
        return self._step.find({**entry, 'ori_shape': size_hw})


class _OfDataset:
    """Of `UnSAMSA1B`. Human masks, where it has them too, stay as they are."""

    def __init__(self, dataset: UnSAMSA1B) -> None:
        self._dataset = dataset

    def name(self, entry: dict[str, Any]) -> str:
        return image_name(entry)

    @property
    def folder(self) -> str:
        return self._dataset.pseudo_masks_root

    @folder.setter
    def folder(self, folder: str) -> None:
        # The list of names stays: a round labels all images, under the names that they have.
        self._dataset.pseudo_masks_root = folder

    @property
    def signature(self) -> str:
        return signature_of_folder(self.folder)

    def read(self, entry: dict[str, Any], size_hw: tuple[int, int]) -> MaskSet:
        store, name = PseudoMaskStore(self.folder), self.name(entry)
        if store.has(name):
            try:
                return store.read(name)
            except StoreError as error:
                print_log(f'no labels so far: {error}', logger='current', level=logging.WARNING)
        return MaskSet.from_bitmaps(np.zeros((0, *size_hw), bool))
