"""Class-agnostic datasets from COCO files: custom training sets, the published benchmarks, and panoptic annotations."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from mmdet.registry import DATASETS

from unsam_mm.coco_files.fields import category_order, panoptic_segments, read_mask_picture, stated_area
from unsam_mm.coco_files.index import AnnotationIndex, ListedImage
from unsam_mm.coco_files.segmentations import PolygonFilter, describe_record
from unsam_mm.datasets.image_folder import as_instance
from unsam_mm.datasets.lazy import LazyDataset
from unsam_mm.datasets.messages import log_warning
from unsam_mm.errors import ImageError, StoreError, UnSAMError
from unsam_mm.masks.rle import encode_bitmaps, rle_to_json


@DATASETS.register_module()
class UnSAMCocoDataset(LazyDataset):
    """The images of a COCO file, with all categories as one class; annotations are read lazily.

    Supports the formats of COCO, LVIS (no ``file_name``, the path is the end of ``coco_url``), PACO, EntitySeg,
    PartImageNet and ADE20K: polygons or RLEs; ids may be numbers or text and need not agree with the file names;
    ``iscrowd`` may be absent. The ids of images are not changed.

    Entries have ``img_path``, ``img_name``, ``img_root``, ``img_id``, ``height``, ``width`` and ``instances`` as in
    `UnSAMImageFolder`. Each instance also has ``area``, the area in pixels stated in the file, or NaN; COCO divides
    objects into small, medium and large by this area. Crowds have ``ignore_flag`` 1. Objects without a mask and
    degenerate polygons are left out, with a warning.

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
        self._index: AnnotationIndex
        self._without_folders = False
        super().__init__(
            ann_file=str(ann_file),
            data_root=str(data_root or ''),
            data_prefix={'img': ''} if data_prefix is None else data_prefix,
            homepage=homepage,
            **kwargs,
        )

    def count_entries(self) -> int:
        """Indexes the file, and checks that the first and the last image exist."""
        if not Path(self.ann_file).is_file():
            raise StoreError(
                f'{self.ann_file}: no such file; expected a COCO file, set data_root or ann_file{self.advice}'
            )
        polygons = PolygonFilter(self.ann_file)
        nameless = 'has neither "file_name" nor "coco_url", so it cannot be found'
        self._index = AnnotationIndex(self.ann_file, nameless, each=lambda record: polygons([record]))
        if not any(self._index.images):
            raise StoreError(f'{self.ann_file}: no images in it; expected a COCO file with "images" and "annotations"')
        self._index.check_listed()
        if left_out := polygons.message():
            log_warning(left_out)
        names = [_path_of(self._index.images[number]) for number in (0, -1)]
        if not all((self.image_root / name).is_file() for name in names):
            self._without_folders = True
            if not all((self.image_root / PurePosixPath(name).name).is_file() for name in names):
                raise ImageError(
                    f'{self.image_root}: contains no {names[0]} or no {names[1]}, which {self.ann_file} lists; '
                    f'set data_root, or data_prefix.img for the folder of the images below it{self.advice}'
                )
        return len(self._index.images)

    def annotations(self, position: int) -> list[dict[str, Any]]:
        """The annotations of an image that have a mask, sorted by category as in COCO's evaluation.

        Raises:
            StoreError: If the file has changed since it was indexed.
        """
        return sorted(PolygonFilter(self.ann_file)(self._index.read_records(position)), key=category_order)

    def instances(self, position: int) -> list[dict[str, Any]]:
        """The instances of an image, by its index in the file.

        Raises:
            StoreError: If the file has changed since it was indexed, or an annotation is invalid.
        """
        annotations = self.annotations(position)
        try:
            return [as_instance(one) | {'area': stated_area(one)} for one in annotations if 'segmentation' in one]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f'{self.ann_file}, image {self._index.images[position].id}: {error}') from error

    def read_entry(self, position: int) -> dict[str, Any]:
        """See `LazyDataset`."""
        image = self._index.images[position]
        name = PurePosixPath(_path_of(image)).name if self._without_folders else _path_of(image)
        return self.make_entry(name, image.id, (image.height, image.width), self.instances(position))


def _path_of(image: ListedImage) -> str:
    return image.name.replace('\\', '/')


@DATASETS.register_module()
class UnSAMCocoPanopticDataset(UnSAMCocoDataset):
    """The images of a file in COCO's panoptic format, whose segments are in PNG files, which are read lazily.

    Entries and arguments are as in `UnSAMCocoDataset`; masks are RLEs, and areas are counted from their pixels.
    `data_prefix` has the folder of the PNG files under the key ``seg``.

    Raises:
        StoreError: If the file is missing, damaged or of another format.
        ImageError: If images or PNG files are not in their folders; only the first and the last image, and the first
            PNG file, are checked.
    """

    @property
    def segment_root(self) -> Path:
        """The folder that names of PNG files are relative to."""
        return Path(self.data_prefix.get('seg', ''))

    def count_entries(self) -> int:
        """See `UnSAMCocoDataset`; also checks that the first PNG file exists."""
        count = super().count_entries()
        for record in self._records(0):
            if not (self.segment_root / record['file_name']).is_file():
                raise ImageError(
                    f'{self.segment_root}: contains no {record["file_name"]}, which {self.ann_file} lists; '
                    f'set data_prefix.seg for the folder of the PNG files{self.advice}'
                )
        return count

    def instances(self, position: int) -> list[dict[str, Any]]:
        """See `UnSAMCocoDataset`."""
        return [instance for record in self._records(position) for instance in self._segments(record)]

    def _records(self, position: int) -> list[dict[str, Any]]:
        records = self.annotations(position)
        for record in records:
            try:
                panoptic_segments(record)
            except UnSAMError as error:
                raise StoreError(
                    f'{self.ann_file}: {describe_record(record)}: {error}; for instance annotations use UnSAMCocoDataset'
                ) from error
        return records

    def _segments(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        name, ids, crowds = panoptic_segments(record)
        labels = read_mask_picture(self.segment_root / name, colours_as_numbers=True)
        bitmaps = labels == np.array(ids, np.int64).reshape(-1, 1, 1)
        return [
            {
                'bbox': [0.0, 0.0, 0.0, 0.0],  # UnSAMLoadMasks computes boxes from masks
                'bbox_label': 0,
                'ignore_flag': int(crowd),
                'mask': rle_to_json(rle),
                'area': float(bitmap.sum()),
            }
            for crowd, bitmap, rle in zip(crowds, bitmaps, encode_bitmaps(bitmaps), strict=True)
        ]
