"""A pipeline step that adds pseudo-masks: read from a folder, or generated on first access and cached."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmengine.dataset import BaseDataset
from torch.utils.data import get_worker_info
from tqdm import tqdm

from unsam_mm.datasets.image_folder import image_location, image_name
from unsam_mm.datasets.loading import check_not_transformed, check_size, set_masks
from unsam_mm.datasets.messages import LogOnce, log_warning
from unsam_mm.datasets.rle_masks import RleMasks
from unsam_mm.errors import ImageError, StoreError, UnSAMError, image_errors
from unsam_mm.fingerprints import image_stamp
from unsam_mm.folders.store import PseudoMaskStore
from unsam_mm.generator import PseudoMaskGenerator, preset_settings, settings_signature
from unsam_mm.images import read_image
from unsam_mm.masks.hierarchy import MaskHierarchy
from unsam_mm.masks.mask_set import MaskSet
from unsam_mm.weights import cache_dir

STORED_MASKS = 1000
"""Maximum number of masks of an image on disk; `max_masks` can be raised to this without generating them again."""


@TRANSFORMS.register_module()
class UnSAMPseudoMasks(BaseTransform):
    """Adds the pseudo-masks of an image as ground truth of one class.

    Sets ``gt_masks`` (`RleMasks`, without decoding), ``gt_bboxes`` (`HorizontalBoxes`), ``gt_bboxes_labels`` (N,) zeros
    and ``gt_ignore_flags`` (N,) False. N may be 0.

    Masks are generated once for each image and set of generator parameters, by the process that needs them first, and
    cached below `store`; files are written atomically, so processes may share a store. Call `prepare_pseudo_masks`
    before training to generate all of them with a progress bar.

    Args:
        store: Folder for the masks. By default the folder ``pseudo_masks`` in the cache ($UNSAM_CACHE). Each image
            folder and each set of parameters has its own subfolder, so masks are generated again if parameters or the
            image change.
        precomputed: Folder written by ``python -m unsam_mm generate``. It is only read; images without masks in it are
            logged and skipped, and `store`, `preset`, `device` and `generator` have no effect.
        image_root: Folder that the names in `precomputed` are relative to: the argument of ``generate``. Needed for
            data sets of other packages, whose entries do not state it.
        preset: Preset of `PseudoMaskGenerator`.
        device: Device of the generator; must be 'cpu' in dataloader workers, which cannot use CUDA.
        generator: A generator to use instead of a preset, or the arguments of `PseudoMaskGenerator.from_preset`.
        max_masks: Maximum number of masks, best first; 200 in UnSAM's paper, 500 in its released code.
        min_area_px: Smaller masks are left out.
        at_original_size: True if masks have the size of the original image even if the image was resized before, for
            test pipelines, whose metrics use the original size. If False, this step must come before any geometric
            step.

    Raises:
        UnSAMError: If `max_masks` is outside 1..1000.
    """

    def __init__(
        self,
        store: str | None = None,
        precomputed: str | None = None,
        image_root: str = '',
        preset: str = 'default',
        device: str = 'cpu',
        generator: Callable[[np.ndarray], MaskHierarchy] | dict[str, Any] | None = None,
        max_masks: int = 200,
        min_area_px: int = 1,
        at_original_size: bool = False,
    ) -> None:
        if not 1 <= max_masks <= STORED_MASKS:
            raise UnSAMError(f'max_masks must lie in 1..{STORED_MASKS}, got {max_masks}')
        self.store = store
        self.precomputed = precomputed
        self.image_root = str(image_root)
        self.max_masks = max_masks
        self.min_area_px = min_area_px
        self.at_original_size = at_original_size
        self._arguments = {'preset': preset, 'device': device}
        self._given = generator
        if isinstance(generator, dict):
            self._arguments, self._given = self._arguments | generator, None
        self._built: PseudoMaskGenerator | None = None
        self._report = LogOnce()

    def __getstate__(self) -> dict[str, Any]:
        """Excludes a generator built from arguments; each process builds its own when needed."""
        return self.__dict__ | {'_built': None}

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Adds the masks to `results`, or returns None, so that another image is drawn.

        The result is None if masks are missing or damaged in `precomputed`, or the image cannot be segmented.

        Raises:
            UnSAMError: If the image was flipped, cropped or resized before, and `at_original_size` is False, or CUDA is
                requested in a worker process.
            ImageError: With `at_original_size`, if the image cannot be segmented: a test must not skip images.
        """
        if not self.at_original_size:
            check_not_transformed(results, type(self).__name__)
        try:
            masks = self.find(results)
        except ImageError as error:
            if self.at_original_size:
                raise
            self._report(results['img_path'], f'image skipped: {error}')
            return None
        if masks is None:
            return None
        kept = np.flatnonzero(masks.areas >= self.min_area_px)
        kept = kept[np.argsort(-masks.scores[kept], kind='stable')][: self.max_masks]
        set_masks(results, RleMasks([masks.rles[i] for i in kept], *masks.size_hw, masks.scores[kept]))
        return results

    def find(self, results: dict[str, Any]) -> MaskSet | None:
        """All stored masks of an image, up to 1000; generates and caches them if there are none.

        Args:
            results: Entry of the image, with ``img_path``. ``img_root`` and ``img_name``, or with `precomputed` the
                argument `image_root`, distinguish images of the same name in several folders. ``ori_shape`` is compared
                with the size of stored masks, to detect images that were replaced.

        Returns:
            The masks, or None if they are missing or damaged in `precomputed`.

        Raises:
            UnSAMError: If the folder that the names in `precomputed` are relative to is unknown.
            StoreError: If `precomputed` is empty, or its masks have another size than the image.
            ImageError: If masks must be generated, and the image cannot be read or segmented.
        """
        if self.precomputed:
            return self._read_precomputed(image_name(results, self.image_root), results)
        location = image_location(results)
        folder, name = self.folder(location.root), location.name
        store = PseudoMaskStore(folder)
        masks = self._read_cached(store, name, results)
        if masks is None:
            self._report('first', f'pseudo-masks are generated on first access and cached in {folder}', logging.INFO)
            path = Path(results['img_path'])
            generator = self._generator()
            with image_errors(path):
                stamp = image_stamp(path)
                masks = generator(read_image(path)).select(max_masks=STORED_MASKS)
            try:
                store.write(name, masks, stamp)
            except StoreError as error:
                # Training continues without the file; the masks are generated again in the next epoch.
                self._report('write', f'pseudo-masks cannot be cached and will be generated again: {error}')
        return masks

    def folder(self, root: str | Path) -> Path:
        """The folder of the masks of images below `root`, for the parameters of the generator."""
        root = Path(root).resolve()
        base = Path(self.store).expanduser() if self.store else cache_dir() / 'pseudo_masks'
        digest = hashlib.blake2b(str(root).encode('utf-8', 'surrogateescape'), digest_size=6).hexdigest()
        return base / f'{root.name}-{digest}' / self.signature

    @cached_property
    def signature(self) -> str:
        """The signature of the generator; downloads its weights if needed, but does not load them."""
        if self._given is not None:
            return self._given.signature
        return settings_signature(
            preset_settings(**{key: value for key, value in self._arguments.items() if key != 'device'})
        )

    def _generator(self) -> Callable[[np.ndarray], MaskHierarchy]:
        if self._given is not None:
            return self._given
        if self._built is None:
            device = str(self._arguments['device'])
            if device.startswith('cuda') and get_worker_info() is not None:
                raise UnSAMError(
                    f"UnSAMPseudoMasks(device='{device}') cannot run in a dataloader worker: a forked one cannot use CUDA; "
                    "call prepare_pseudo_masks first, or set num_workers=0 or device='cpu'"
                )
            self._built = PseudoMaskGenerator.from_preset(**self._arguments)
        return self._built

    def _read_cached(self, store: PseudoMaskStore, name: str, results: dict[str, Any]) -> MaskSet | None:
        """The cached masks; None if there are none, or they are damaged or of another version of the image."""
        if not store.has(name):
            return None
        try:
            masks = store.read(name, Path(results['img_path']), by_age=True)
        except StoreError as error:
            self._report(name, f'pseudo-masks are generated again: {error}')
            return None
        return masks if tuple(masks.size_hw) == tuple(results.get('ori_shape', masks.size_hw)) else None

    def _read_precomputed(self, name: str, results: dict[str, Any]) -> MaskSet | None:
        store = PseudoMaskStore(self.precomputed)
        if not store.has(name):
            if not self._report:  # checked once, since listing a large folder takes long
                store.finished_names()  # raises an error if there are no pseudo-masks at all
            self._report(name, f'image skipped: {self.precomputed} has no pseudo-masks for {name}')
            return None
        try:
            masks = store.read(name, Path(results['img_path']))
        except StoreError as error:
            self._report(name, f'image skipped: {error}')
            return None
        check_size(masks, results.get('ori_shape', masks.size_hw), name, self.precomputed)
        return masks

    def __repr__(self) -> str:
        source = (
            f'precomputed={self.precomputed!r}' if self.precomputed else f'generator={self._given or self._arguments}'
        )
        return f'{type(self).__name__}({source}, max_masks={self.max_masks}, min_area_px={self.min_area_px})'


def prepare_pseudo_masks(dataset: BaseDataset, progress: bool = True) -> tuple[int, int]:
    """Generates the missing pseudo-masks of a data set before training.

    Runs in this process, so the device may be a GPU.

    Args:
        dataset: A data set with `UnSAMPseudoMasks` in its pipeline.
        progress: Whether to show a progress bar.

    Returns:
        Number of images with masks, and number of images that failed (each is logged).

    Raises:
        UnSAMError: If the pipeline has no `UnSAMPseudoMasks`.
    """
    steps = [step for step in dataset.pipeline.transforms if isinstance(step, UnSAMPseudoMasks)]
    if not steps:
        raise UnSAMError('the pipeline of this data set has no UnSAMPseudoMasks, so there is nothing to prepare')
    n_failed = 0
    for index in tqdm(range(len(dataset)), desc='pseudo-masks', unit='image', disable=not progress):
        try:
            n_failed += steps[0].find(dataset.get_data_info(index)) is None
        except ImageError as error:
            n_failed += 1
            log_warning(f'image skipped: {error}')
    return len(dataset) - n_failed, n_failed
