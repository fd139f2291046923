"""Data sets that hold numbers, not entries: what is known about an image is read when the image is wanted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from mmdet.datasets import BaseDetDataset
from mmengine.dataset import force_full_init
from mmengine.logging import print_log

from unsam_mm.errors import StoreError

_TRIED = 10
"""So many labels that cannot be read, before any that can, and the fault is not with single files."""


class LazyDataset(BaseDetDataset):
    """A data set of one class whose entries are made by `read_entry`; its base `serialize_data` has no effect.

    In training, an image whose labels are broken is logged and another is drawn; in testing, the error is raised.

    Args:
        **kwargs: Passed to `BaseDetDataset`.
    """

    METAINFO = {'classes': ('object',), 'palette': [(220, 20, 60)]}

    def __init__(self, **kwargs: Any) -> None:
        self._broken: set[int] = set()
        self._has_read = False
        super().__init__(**{**kwargs, 'serialize_data': False})

    def count_entries(self) -> int:
        """Opens what is read from; called once. Gives the number of images."""
        raise NotImplementedError

    def read_entry(self, position: int) -> dict[str, Any]:
        """All that is known about one image, by its place in the source.

        Raises:
            StoreError: If its labels cannot be read.
        """
        raise NotImplementedError

    def load_data_list(self) -> Sequence[int]:
        """Places in the source, as a range."""
        return range(self.count_entries())

    @force_full_init
    def get_data_info(self, idx: int) -> dict[str, Any]:
        """The entry of an image, with its number as ``sample_idx``."""
        entry = self.read_entry(int(self.data_list[idx]))
        entry['sample_idx'] = idx if idx >= 0 else len(self) + idx
        return entry

    def prepare_data(self, idx: int) -> dict[str, Any] | None:
        """The entry after the pipeline; None where another image shall be drawn."""
        try:
            prepared = super().prepare_data(idx)
        except StoreError as error:
            if self.test_mode:
                raise
            if idx not in self._broken:
                self._broken.add(idx)
                if not self._has_read and len(self._broken) >= min(_TRIED, len(self)):
                    raise
                print_log(f'image skipped: {error}', logger='current', level=logging.WARNING)
            return None
        self._has_read = True
        return prepared
