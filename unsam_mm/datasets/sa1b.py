"""SA-1B, and other folders with one JSON label file for each image."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from mmdet.registry import DATASETS

from unsam_mm.coco_files.fields import image_size
from unsam_mm.datasets.image_folder import as_instance, name_hash
from unsam_mm.datasets.lazy import LazyDataset
from unsam_mm.datasets.name_index import NameIndex, open_index
from unsam_mm.errors import StoreError, UnSAMError, explained
from unsam_mm.files import read_json
from unsam_mm.folders.store import MANIFEST
from unsam_mm.images import IMAGE_SUFFIXES

LABELS = ('human', 'pseudo', 'both')
_SUFFIX = '.json'


@DATASETS.register_module()
class UnSAMSA1B(LazyDataset):
    """Images with one label file each, in any number of subfolders: those of SA-1B, or of ``generate``.

    The label file of ``sa_1.jpg`` is ``sa_1.json`` in SA-1B, and ``sa_1.jpg.json`` from ``python -m unsam_mm
    generate``. Images without a label file are left out. A sorted index of the names is memory-mapped at the start (see
    `unsam_mm.datasets.name_index.open_index`), so time and memory do not depend on the number of images. Label files
    are read lazily.

    Entries have ``img_path``, ``img_name`` (path relative to the image folder), ``img_root``, ``img_id``, ``height``,
    ``width`` and ``instances`` as in `UnSAMImageFolder`, and ``pseudo_masks_root`` if it is set.

    Args:
        data_root: Folder of the images.
        data_prefix: Subfolders, by default none: ``img`` of the images and ``ann`` of SA-1B's label files.
        labels: 'human': the files of SA-1B. 'pseudo': those in `pseudo_masks_root`. 'both', for UnSAM+: human labels,
            to which `UnSAMPlusMasks` in the pipeline adds pseudo-masks.
        pseudo_masks_root: Folder written by ``generate``, for 'pseudo' and 'both'.
        index_file: Path of the index, by default in the cache.
        reindex: Whether to list the folder again even if it has not changed.
        homepage: Homepage of the data, for error messages.
        **kwargs: Passed to `BaseDetDataset`: pipeline, test_mode, indices, ... An integer for `indices` takes the first
            images by name.

    Raises:
        UnSAMError: If `labels` is unknown or a folder that it needs is not given.
        StoreError: If a folder is missing or has no label files.
    """

    def __init__(
        self,
        data_root: str = '',
        data_prefix: dict[str, str] | None = None,
        labels: str = 'human',
        pseudo_masks_root: str = '',
        index_file: str | None = None,
        reindex: bool = False,
        homepage: str = '',
        **kwargs: Any,
    ) -> None:
        if labels not in LABELS:
            raise UnSAMError(f'labels must be one of {LABELS}, got {labels!r}')
        if not data_root:
            raise UnSAMError('data_root is empty; set it to the folder of the images')
        if labels != 'human' and not pseudo_masks_root:
            raise UnSAMError(
                f"labels={labels!r} needs pseudo_masks_root, a folder written by 'python -m unsam_mm generate IMAGES FOLDER'"
            )
        self.labels = labels
        self.pseudo_masks_root = str(pseudo_masks_root)
        self.index_file = index_file
        self.reindex = reindex
        self.homepage = homepage
        self._index: NameIndex
        prefix = {'img': '', 'ann': ''} | (data_prefix or {})
        super().__init__(data_root=str(data_root), data_prefix=prefix, **kwargs)

    @property
    def image_root(self) -> Path:
        """The folder that image names are relative to."""
        return Path(self.data_prefix['img'])

    @property
    def label_root(self) -> Path:
        """The folder of the label files."""
        return Path(self.pseudo_masks_root if self.labels == 'pseudo' else self.data_prefix['ann'])

    def count_entries(self) -> int:
        """Opens the index."""
        root, where = self.label_root, f'; get it from {self.homepage}' if self.homepage else ''
        if not root.is_dir():
            raise StoreError(f'{root}: no such folder; expected one JSON file for each image{where}')
        path = Path(self.index_file) if self.index_file else None
        self._index = open_index(root, _SUFFIX, path, self.reindex, leave_out=MANIFEST)
        if not len(self._index):
            raise StoreError(f'{root}: no label files; expected one JSON file for each image, such as sa_1.json{where}')
        return len(self._index)

    def read_entry(self, position: int) -> dict[str, Any]:
        """See `LazyDataset`."""
        label = self._index[position]
        path = self.label_root / f'{label}{_SUFFIX}'
        content = read_json(path)
        try:
            image, annotations = content['image'], content['annotations']
            name = label
            if not label.lower().endswith(IMAGE_SUFFIXES):  # a label file of SA-1B
                name = str(PurePosixPath(label).with_name(PurePosixPath(image['file_name']).name))
            height, width = image_size(image)
            entry = {
                'img_path': str(self.image_root / name),
                'img_name': name,
                'img_root': str(self.image_root),
                'img_id': image.get('image_id', name_hash(name)),
                'height': height,
                'width': width,
                'instances': [as_instance(annotation) for annotation in annotations],
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f'{path}: not a label file ({explained(error)}); expected "image" with "file_name", '
                '"height" and "width", and "annotations"; remove it or make it again'
            ) from error
        return entry | ({'pseudo_masks_root': self.pseudo_masks_root} if self.pseudo_masks_root else {})
