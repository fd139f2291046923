"""Class-agnostic datasets from COCO files: custom training sets and the published benchmarks."""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from typing import Any

from mmdet.registry import DATASETS
from mmengine.logging import print_log

from unsam_mm.coco_files.fields import stated_area
from unsam_mm.datasets.coco_index import CocoIndex
from unsam_mm.datasets.image_folder import as_instance
from unsam_mm.datasets.lazy import LazyDataset
from unsam_mm.errors import ImageError, StoreError, UnSAMError


@DATASETS.register_module()
class UnSAMCocoDataset(LazyDataset):
    """The images of a COCO file, with all categories as one class; annotations are read lazily.

    Supports the formats of COCO, LVIS (no ``file_name``, the path is the end of ``coco_url``), PACO, EntitySeg,
    PartImageNet and ADE20K: polygons or RLEs, ids that are numbers or texts and may differ from those in the file
        names, no
    ``iscrowd``. Images keep their ids.

    Entries have ``img_path``, ``img_name``, ``img_root``, ``img_id``, ``height``, ``width`` and ``instances`` as in
    `UnSAMImageFolder`, each instance also with the ``area`` stated in the file, by which COCO divides objects into
    small, medium and large, or NaN. Crowds have ``ignore_flag`` 1. Objects without a mask and degenerate polygons are
    left out, with a warning.

    Args:
        ann_file: The COCO file, relative to `data_root`.
        data_root: Folder of the data set.
        data_prefix: Subfolder of the images, under the key ``img``. If images are not found under their names, the
            folders in the names are left out, so an LVIS file works with a flat folder too.
        homepage: Homepage of the data, for error messages.
        **kwargs: Passed to `BaseDetDataset`: pipeline, test_mode, indices, ...

    Raises:
        UnSAMError: If `ann_file` is not given.
        StoreError: If the file is missing, damaged or of another format.
        ImageError: If its images are not in the folder; only the first and the last are checked.
    """

    def __init__(
        self,
        ann_file: str = '',
        data_root: str = '',
        data_prefix: dict[str, str] | None = None,
        homepage: str = '',
        **kwargs: Any,
    ) -> None:
        if not ann_file:
            raise UnSAMError('ann_file is empty; set it to a COCO file')
        self.homepage = homepage
        self._index: CocoIndex
        self._without_folders = False
        prefix = {'img': ''} if data_prefix is None else data_prefix
        super().__init__(ann_file=str(ann_file), data_root=str(data_root or ''), data_prefix=prefix, **kwargs)

    @property
    def image_root(self) -> Path:
        """The folder that image names are relative to."""
        return Path(self.data_prefix['img'])

    def count_entries(self) -> int:
        """Indexes the file, and checks that the first and the last image exist."""
        where = f'; get it from {self.homepage}' if self.homepage else ''
        if not Path(self.ann_file).is_file():
            raise StoreError(f'{self.ann_file}: no such file; expected a COCO file, set data_root or ann_file{where}')
        self._index = CocoIndex(self.ann_file)
        if left_out := self._index.polygons.message():
            print_log(left_out, logger='current', level=logging.WARNING)
        names = [self._index.image(number)[1] for number in (0, len(self._index) - 1)]
        if not all((self.image_root / name).is_file() for name in names):
            self._without_folders = True
            if not all((self.image_root / PurePosixPath(name).name).is_file() for name in names):
                raise ImageError(
                    f'{self.image_root}: holds no {names[0]} or no {names[1]}, which {self.ann_file} lists; '
                    f'set data_root, or data_prefix.img for the folder of the images below it{where}'
                )
        return len(self._index)

    def read_entry(self, position: int) -> dict[str, Any]:
        """See `LazyDataset`."""
        image_id, name, height, width = self._index.image(position)
        name = PurePosixPath(name).name if self._without_folders else name
        annotations = self._index.annotations(position)
        try:
            instances = [as_instance(one) | {'area': stated_area(one)} for one in annotations if 'segmentation' in one]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f'{self.ann_file}, image {image_id}: {error}') from error
        return {
            'img_path': str(self.image_root / name),
            'img_name': name,
            'img_root': str(self.image_root),
            'img_id': image_id,
            'height': height,
            'width': width,
            'instances': instances,
        }
