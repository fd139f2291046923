"""A dataset of image folders, and pipeline steps that add and pack region tokens, for `UnSAMRegionModel`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets import BaseDetDataset
from mmdet.registry import DATASETS, TRANSFORMS
from mmdet.structures import DetDataSample
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.structures import InstanceData
from torch.utils.data import get_worker_info

from unsam_mm.datasets.image_folder import UnSAMImageFolder, image_location, name_hash
from unsam_mm.datasets.messages import LogOnce, log_warning
from unsam_mm.datasets.rle_masks import RleMasks
from unsam_mm.errors import ImageError, StoreError, TargetError, UnSAMError
from unsam_mm.generator import preset_settings
from unsam_mm.student.pairs import RegionInputs
from unsam_mm.student.proposals import to_mask_set
from unsam_mm.student.store import ImageLocation, RegionStore
from unsam_mm.student.tokenizer import RegionTokenizer
from unsam_mm.student.tokens import RegionTokens, TokenMasks


@DATASETS.register_module()
class UnSAMRegionFolders(BaseDetDataset):
    """The images below one or several folders; their region tokens are computed at the start.

    Entries are those of `UnSAMImageFolder`. Missing tokens are computed by several processes, with a progress bar; in a
    distributed run the images are divided among the ranks. Unreadable images are logged. In training another image
    is drawn in their place; in testing they are left out, and with `ann_file` an error is raised at the start.

    Args:
        data_root: A folder or a list of folders. By default the images of scikit-image.
        ann_file: COCO file with ground truth for testing, see `UnSAMImageFolder`; for a single folder.
        split: 'all', 'train' or 'held_out', of each folder.
        held_out_fraction: Approximate fraction of the images of each folder that are held out.
        max_images: Maximum number of images, evenly spaced among all; has no effect with `ann_file`.
        prepare_workers: Number of processes that compute tokens, each with about 1 GB of memory. None: one for each
            core, at most eight. 0: tokens are computed on first access.
        **kwargs: Passed to `BaseDetDataset`: pipeline, test_mode, indices, ...

    Raises:
        ImageError: If a folder is missing or has no images, no image can be read, or in testing an image of `ann_file`
            cannot be read.
        StoreError: If `ann_file` cannot be read, or the tokens cannot be written.
        UnSAMError: If `ann_file` is given with several folders, or an argument is out of range.
    """

    METAINFO = UnSAMImageFolder.METAINFO

    def __init__(
        self,
        data_root: str | Sequence[str] = '',
        ann_file: str = '',
        split: str = 'all',
        held_out_fraction: float = 0.1,
        max_images: int | None = None,
        prepare_workers: int | None = None,
        **kwargs: Any,
    ) -> None:
        roots = [data_root] if isinstance(data_root, str) or not data_root else list(data_root)
        if ann_file and len(roots) > 1:
            raise UnSAMError(f'ann_file={ann_file!r} needs a single folder, data_root has {len(roots)}; give one')
        if max_images is not None and max_images < 1:
            raise UnSAMError(f'max_images must be positive, got {max_images}')
        self.max_images = None if ann_file else max_images
        self.prepare_workers = prepare_workers
        self._folders = [
            UnSAMImageFolder(
                ann_file=ann_file,
                data_root=str(root or ''),
                split=split,
                held_out_fraction=held_out_fraction,
                lazy_init=True,
            )
            for root in roots
        ]
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """The entries of all folders, in order."""
        entries = [entry for folder in self._folders for entry in folder.load_data_list()]
        if len(self._folders) > 1:  # folders may have images of the same name
            entries = [{**entry, 'img_id': name_hash(entry['img_path'])} for entry in entries]
        if self.max_images is not None and self.max_images < len(entries):
            chosen = np.linspace(0, len(entries) - 1, self.max_images).round().astype(int)
            entries = [entries[i] for i in chosen]
        return entries

    def full_init(self) -> None:
        """Lists the images and computes missing tokens."""
        if self._fully_initialized:
            return
        super().full_init()
        if self.prepare_workers != 0:
            self.prepare()

    def prepare(self) -> None:
        """Computes missing tokens. An interrupted run is resumed by the next.

        Raises:
            ImageError: If no image can be read.
            StoreError: If the tokens cannot be written.
        """
        for step in self.pipeline.transforms:
            if isinstance(step, UnSAMRegionTokens):
                locations = [image_location(self.get_data_info(i)) for i in range(len(self))]
                mine = locations[get_rank() :: get_world_size()]
                failed = step.store.prepare(mine, self.prepare_workers, progress=get_rank() == 0)
                for reason in failed.values():
                    log_warning(f'image skipped: {reason}')
                # All ranks need the failures of the others; this also waits until all tokens are computed.
                self._leave_out(
                    {location: why for part in all_gather_object(failed) for location, why in part.items()}, locations
                )

    def _leave_out(self, failed: dict[ImageLocation, str], locations: list[ImageLocation]) -> None:
        """Removes failed images in testing; in training another image is drawn in their place.

        Raises:
            ImageError: If no image can be read, or in testing an image with annotations cannot be read.
        """
        if not failed:
            return
        first = min(failed.values())
        if len(failed) == len(locations):
            raise ImageError(f'none of {len(locations)} images can be read; the first: {first}')
        if self.test_mode and self._folders[0].ann_file:
            raise ImageError(
                f'{len(failed)} of {len(locations)} images with annotations cannot be read; the first: {first}'
            )
        if self.test_mode:
            self.get_subset_([i for i, location in enumerate(locations) if location not in failed])


@TRANSFORMS.register_module()
class UnSAMRegionTokens(BaseTransform):
    """Adds the region tokens of an image, and its pseudo-masks; the image itself is not loaded.

    Sets ``region_tokens`` (`RegionTokens`), ``token_masks`` (`TokenMasks`: how much of each region a pseudo-mask
    covers), ``img_shape``, ``ori_shape``, ``height`` and ``width``. Tokens are computed once for each image and set of
    parameters, by the process that needs them first, and stored; see `RegionStore`.

    Args:
        store: Folder for the tokens. By default the folder ``region_tokens`` in the cache ($UNSAM_CACHE).
        n_tokens: Maximum number of regions of an image.
        max_masks: Maximum number of pseudo-masks of an image.
        device: Device of the ViT; must be 'cpu' in dataloader workers, unless all tokens are computed before.
        generator: Settings of the generator that differ from the default preset, by their names in `GeneratorSettings`.
        skip_broken: True to log images that cannot be read or segmented and return None, so that another is drawn.
            Set it to False in test pipelines, where the error must be raised.
    """

    def __init__(
        self,
        store: str | None = None,
        n_tokens: int = 768,
        max_masks: int = 300,
        device: str = 'cpu',
        generator: dict[str, Any] | None = None,
        skip_broken: bool = True,
    ) -> None:
        settings = preset_settings('default', **(generator or {}))
        self.store = RegionStore(store, settings, n_tokens, max_masks, device)
        self.skip_broken = skip_broken
        self._tokenizer: RegionTokenizer | None = None
        self._report = LogOnce()

    def __getstate__(self) -> dict[str, Any]:
        """Excludes the ViT; each process loads its own when needed."""
        return self.__dict__ | {'_tokenizer': None}

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Adds the tokens to `results`; None if the image cannot be read and `skip_broken` is set.

        Raises:
            ImageError: If the image cannot be read and `skip_broken` is not set.
            StoreError: If the tokens cannot be written.
            UnSAMError: If tokens must be computed with CUDA in a dataloader worker.
        """
        try:
            tokens, masks = self.find(image_location(results))
        except (ImageError, TargetError) as error:  # affects this image only
            if not self.skip_broken:
                raise
            self._report(results['img_path'], f'image skipped: {error}')
            return None
        results['region_tokens'], results['token_masks'] = tokens, masks
        results['img_shape'] = results['ori_shape'] = tokens.size_hw
        results['height'], results['width'] = tokens.size_hw
        return results

    def find(self, location: ImageLocation) -> tuple[RegionTokens, TokenMasks]:
        """The tokens and masks of an image from the store; computes them if they are missing or damaged."""
        if self.store.path_of(location).is_file():
            try:
                return self.store.read(location)
            except StoreError as error:
                self._report(str(location.path), f'region tokens are computed again: {error}')
        if self._tokenizer is None:
            if self.store.device.startswith('cuda') and get_worker_info() is not None:
                raise UnSAMError(
                    f"UnSAMRegionTokens(device='{self.store.device}') cannot run in a dataloader worker: a forked one "
                    'cannot use CUDA; prepare the data set first (prepare_workers=None), or set num_workers=0'
                )
            self._tokenizer = self.store.tokenizer()
        return self.store.make(location, self._tokenizer)

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.store}, skip_broken={self.skip_broken})'


@TRANSFORMS.register_module()
@dataclass(eq=False)
class UnSAMPackRegions(BaseTransform):
    """Packs an image for `UnSAMRegionModel`.

    Returns ``inputs`` (`RegionInputs`, whose pairwise distances are computed here, in the dataloader workers) and
    ``data_samples`` (`DetDataSample`). The latter has ``token_masks``, or in testing ``region_tokens`` and the
    pseudo-masks as ``gt_instances``, for metrics without an annotation file.

    Args:
        test_mode: True to pack for testing. If False, the result for an image without pseudo-masks is None, so that
            another image is drawn.
        flip_prob: Probability of a horizontal flip. Masks do not change with it, since they are sets of tokens.
        meta_keys: Keys of the meta information, besides ``flip``.

    Raises:
        UnSAMError: If `flip_prob` is outside [0, 1].
    """

    test_mode: bool = False
    flip_prob: float = 0.0
    meta_keys: Sequence[str] = field(default=('img_id', 'img_path', 'ori_shape', 'img_shape'), repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.flip_prob <= 1:
            raise UnSAMError(f'flip_prob must lie in [0, 1], got {self.flip_prob}')

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """The packed image; None in training if it has no pseudo-masks."""
        tokens, masks = results['region_tokens'], results['token_masks']
        if not self.test_mode and len(masks) == 0:
            return None
        inputs, is_flipped = RegionInputs.from_tokens(tokens), random.random() < self.flip_prob
        meta = {key: results[key] for key in self.meta_keys if key in results}
        sample = DetDataSample(metainfo={**meta, 'flip': is_flipped})
        if self.test_mode:
            sample.set_data({'region_tokens': tokens})
            sample.gt_instances = _instances(tokens, masks)
        else:
            sample.set_data({'token_masks': masks})
        return {'inputs': inputs.flipped() if is_flipped else inputs, 'data_samples': sample}


def _instances(tokens: RegionTokens, masks: TokenMasks) -> InstanceData:
    """The pseudo-masks as unions of the regions of which they cover more than half; empty ones are left out."""
    members = masks.shares > 127
    kept = members.any(axis=1)
    found = to_mask_set(tokens, members[kept], masks.scores[kept])
    return InstanceData(
        masks=RleMasks(found.rles, *found.size_hw),
        bboxes=torch.from_numpy(found.boxes_xyxy),
        labels=torch.zeros(len(found), dtype=torch.long),
    )
