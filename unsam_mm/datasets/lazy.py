"""A base class for datasets whose entries are read lazily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.datasets import BaseDetDataset
from mmengine.dataset import force_full_init

from unsam_mm.datasets.messages import log_warning
from unsam_mm.errors import StoreError

_TRIED = 10
"""If this many labels cannot be read before the first that can, the error is raised."""


class LazyDataset(BaseDetDataset):
    """A dataset of one class whose entries are read by `read_entry`; the argument `serialize_data` has no effect.

    In training, an image with damaged labels is logged and another image is drawn; in testing, the error is raised.

    Args:
        **kwargs: Passed to `BaseDetDataset`.
    """

    METAINFO = {'classes': ('object',), 'palette': [(220, 20, 60)]}

    def __init__(self, **kwargs: Any) -> None:
        self._broken: set[int] = set()
        self._has_read = False
        super().__init__(**{**kwargs, 'serialize_data': False})

    def count_entries(self) -> int:
        """Opens the source, and returns the number of images; called once."""
        raise NotImplementedError

    def read_entry(self, position: int) -> dict[str, Any]:
        """The entry of one image, by its index in the source.

        Raises:
            StoreError: If its labels cannot be read.
        """
        raise NotImplementedError

    def load_data_list(self) -> Sequence[int]:
        """Indices in the source, as a range."""
        return range(self.count_entries())

    @force_full_init
    def get_data_info(self, idx: int) -> dict[str, Any]:
        """The entry of an image, with its index as ``sample_idx``."""
        entry = self.read_entry(int(self.data_list[idx]))
        entry['sample_idx'] = idx if idx >= 0 else len(self) + idx
        return entry

    def prepare_data(self, idx: int) -> dict[str, Any] | None:
        """The entry after the pipeline; None if another image is to be drawn."""
        try:
            prepared = super().prepare_data(idx)
        except StoreError as error:
            if self.test_mode:
                raise
            if idx not in self._broken:
                self._broken.add(idx)
                if not self._has_read and len(self._broken) >= min(_TRIED, len(self)):
                    raise
                log_warning(f'image skipped: {error}')
            return None
        self._has_read = True
        return prepared
