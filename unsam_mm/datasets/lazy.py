"""A base class for datasets whose entries are read lazily."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import BaseDetDataset
from mmengine.dataset import force_full_init

from unsam_mm.datasets.messages import log_warning
from unsam_mm.errors import StoreError

_MAX_FAILURES = 10
"""The error is raised if this many images have damaged labels before one with valid labels has been read."""


class LazyDataset(BaseDetDataset):
    """A dataset of one class whose entries are read by `read_entry`; the argument `serialize_data` has no effect.

    In training, an image with damaged labels is logged and another image is drawn; in testing, the error is raised.

    Args:
        homepage: Homepage of the data, for error messages.
        **kwargs: Passed to `BaseDetDataset`.
    """

    METAINFO = {'classes': ('object',), 'palette': [(220, 20, 60)]}

    def __init__(self, homepage: str = '', **kwargs: Any) -> None:
        self.homepage = homepage
        self._broken: set[int] = set()
        self._has_read = False
        super().__init__(**{**kwargs, 'serialize_data': False})

    @property
    def image_root(self) -> Path:
        """The folder that image names are relative to."""
        return Path(self.data_prefix['img'])

    @property
    def advice(self) -> str:
        """The end of messages about missing files."""
        return f'; get it from {self.homepage}' if self.homepage else ''

    def count_entries(self) -> int:
        """Opens the source, and returns the number of images; called once."""
        raise NotImplementedError

    def read_entry(self, position: int) -> dict[str, Any]:
        """The entry of one image, by its index in the source.

        Raises:
            StoreError: If its labels cannot be read.
        """
        raise NotImplementedError

    def make_entry(
        self,
        name: str,
        image_id: int | str,
        size_hw: tuple[int | None, int | None],
        instances: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """The entry of an image with this name, relative to `image_root`."""
        return {
            'img_path': str(self.image_root / name),
            'img_name': name,
            'img_root': str(self.image_root),
            'img_id': image_id,
            'height': size_hw[0],
            'width': size_hw[1],
            'instances': instances,
        }

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
                if not self._has_read and len(self._broken) >= min(_MAX_FAILURES, len(self)):
                    raise
                log_warning(f'image skipped: {error}')
            return None
        self._has_read = True
        return prepared
