"""Class-agnostic dataset from COCO's panoptic annotations, things and stuff, for the prompt evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import DATASETS

from unsam_mm.coco_files.fields import panoptic_segments
from unsam_mm.coco_files.mask_pictures import read_mask_picture
from unsam_mm.coco_files.segmentations import place_of
from unsam_mm.datasets.coco import UnSAMCocoDataset
from unsam_mm.errors import ImageError, StoreError, UnSAMError
from unsam_mm.masks.rle import encode_bitmaps, rle_to_json


@DATASETS.register_module()
class UnSAMCocoPanopticDataset(UnSAMCocoDataset):
    """The images of a file in COCO's panoptic format, whose segments are in PNG files; they are read lazily.

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
                where = f'; get it from {self.homepage}' if self.homepage else ''
                raise ImageError(
                    f'{self.segment_root}: holds no {record["file_name"]}, which {self.ann_file} lists; '
                    f'set data_prefix.seg for the folder of the PNG files{where}'
                )
        return count

    def read_entry(self, position: int) -> dict[str, Any]:
        """See `LazyDataset`."""
        instances = [instance for record in self._records(position) for instance in self._segments(record)]
        return super().read_entry(position) | {'instances': instances}

    def _records(self, position: int) -> list[dict[str, Any]]:
        records = self._index.annotations(position)
        for record in records:
            try:
                panoptic_segments(record)
            except UnSAMError as error:
                raise StoreError(
                    f'{self.ann_file}: {place_of(record)}: {error}; for instance annotations use UnSAMCocoDataset'
                ) from error
        return records

    def _segments(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        name, ids, crowds = panoptic_segments(record)
        numbers = read_mask_picture(self.segment_root / name, colours_as_numbers=True)
        drawn = numbers == np.array(ids, np.int64).reshape(-1, 1, 1)
        return [
            {
                'bbox': [0.0, 0.0, 0.0, 0.0],  # UnSAMLoadMasks takes boxes from masks
                'bbox_label': 0,
                'ignore_flag': int(crowd),
                'mask': rle_to_json(rle),
                'area': float(bitmap.sum()),
            }
            for crowd, bitmap, rle in zip(crowds, drawn, encode_bitmaps(drawn), strict=True)
        ]
