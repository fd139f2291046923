"""SA-1B, and other folders with one JSON label file for each image, found by a memory-mapped index of file names."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from mmdet.registry import DATASETS

from unsam_mm.coco_files.fields import image_size
from unsam_mm.datasets.image_folder import as_instance, name_hash
from unsam_mm.datasets.lazy import LazyDataset
from unsam_mm.datasets.messages import log_warning
from unsam_mm.errors import StoreError, UnSAMError, describe_error
from unsam_mm.files import atomic_writer, read_json
from unsam_mm.folders.store import MANIFEST
from unsam_mm.images import IMAGE_SUFFIXES
from unsam_mm.weights import cache_dir

_FORM = 'unsam name index 1'
_AT_ONCE = 1 << 16  # names in each chunk while a folder is listed
_UNSURE_NS = 2 * 10**9
"""If a folder changed less than this before it was listed, its modification time may not show a further change."""

LABELS = ('human', 'pseudo', 'both')
_SUFFIX = '.json'


@dataclass(frozen=True)
class NameIndex:
    """Sorted names of the JSON files below a folder, without the suffix.

    Attributes:
        names: (N,) byte strings, usually memory-mapped.
        path: The mapped file; None if the names are in memory.
    """

    names: np.ndarray
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> str:
        return os.fsdecode(bytes(self.names[position]))

    def __deepcopy__(self, memo: dict) -> NameIndex:
        """The index itself, since it is immutable; MMEngine copies datasets for subsets."""
        return self

    def __reduce__(self) -> tuple[Any, tuple]:
        """Spawned processes map the file again instead of receiving all names."""
        return (_reopened, (self.path,)) if self.path else (NameIndex, (self.names,))


def open_index(root: Path, path: Path | None = None, renew: bool = False) -> NameIndex:
    """The index of the label files in a folder; it is built if there is none, or the folder has changed.

    Changes are detected by the modification times of the folder and all its subfolders, which change when a file is
    added, removed or renamed.

    Args:
        root: The folder. Hidden files and folders, and the metadata of a `PseudoMaskStore`, are ignored; links to
            folders are followed.
        path: Path of the index; by default in the folder ``indexes`` of the cache ($UNSAM_CACHE). It is written
            atomically. If it cannot be written, a warning is logged, and the names stay in memory.
        renew: True to build the index in any case, for file systems without reliable modification times.

    Raises:
        StoreError: If the folder is missing or cannot be read.
    """
    path = path or _default_path(root)
    if not renew and (index := _load(path, root)) is not None:
        return index
    started_ns = time.time_ns()
    times_ns: dict[str, int] = {}
    names = _sorted_names(name for name in _walk(root, times_ns) if name + _SUFFIX != MANIFEST)
    reliable_ns = {folder: time_ns if time_ns < started_ns - _UNSURE_NS else 0 for folder, time_ns in times_ns.items()}
    try:
        write_index(path, root, names, reliable_ns)
    except StoreError as error:
        log_warning(
            f'{path}: the index of {root} cannot be written ({getattr(error.__cause__, "strerror", error)}); the folder will be listed again'
        )
        return NameIndex(names)
    return _mapped(path)[1]


def write_index(path: Path, root: Path, names: np.ndarray, times_ns: dict[str, int]) -> None:
    """Writes an index atomically; processes that have an older one open are not affected.

    Args:
        path: Path of the index.
        root: The folder that the names are relative to.
        names: (N,) sorted byte strings.
        times_ns: Modification time of each folder in nanoseconds, by its path below the root: '' for the root, 'a/b/'
            for others. If one differs, the index is out of date.

    Raises:
        StoreError: If it cannot be written.
    """
    header = {
        'form': _FORM,
        'root': os.path.realpath(root),
        'suffix': _SUFFIX,
        'count': len(names),
        'width': names.dtype.itemsize,
        'folders': list(times_ns),
        'times_ns': list(times_ns.values()),
    }
    with atomic_writer(path, binary=True, sync=False) as file:
        file.write(json.dumps(header).encode() + b'\n')
        file.write(np.ascontiguousarray(names).view(np.uint8))


def _sorted_names(names: Iterator[str]) -> np.ndarray:
    """(N,) sorted byte strings, collected in chunks."""
    parts = [np.zeros(0, 'S1')]
    while some := [os.fsencode(name) for name in islice(names, _AT_ONCE)]:
        parts.append(np.array(some))
    joined = np.concatenate(parts)
    joined.sort()
    return joined


def _walk(root: Path, times_ns: dict[str, int]) -> Iterator[str]:
    """Yields the names below a folder; fills `times_ns` with the modification times of the folders."""
    waiting, seen = [''], {os.path.realpath(root)}
    while waiting:
        folder = waiting.pop()
        try:
            times_ns[folder] = (root / folder).stat().st_mtime_ns
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith('.'):
                        continue
                    if entry.name.endswith(_SUFFIX):
                        yield f'{folder}{entry.name.removesuffix(_SUFFIX)}'
                    elif _is_new_folder(entry, seen):
                        waiting.append(f'{folder}{entry.name}/')
        except OSError as error:
            raise StoreError(
                f'{root / folder}: the folder cannot be read ({error.strerror}); check the path'
            ) from error


def _is_new_folder(entry: os.DirEntry[str], seen: set[str]) -> bool:
    try:
        if not entry.is_dir():
            return False
    except OSError:  # a link to itself
        return False
    if not entry.is_symlink():
        return True
    # Each link target once, since links may form cycles.
    target = os.path.realpath(entry.path)
    is_new = target not in seen
    seen.add(target)
    return is_new


def _load(path: Path, root: Path) -> NameIndex | None:
    """The index on disk; None if there is none, or it is damaged or out of date."""
    try:
        header, index = _mapped(path)
        if (header['root'], header['suffix']) != (os.path.realpath(root), _SUFFIX):
            return None
        for folder, time_ns in zip(header['folders'], header['times_ns'], strict=True):
            if (root / folder).stat().st_mtime_ns != time_ns:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index


def _mapped(path: Path) -> tuple[dict[str, Any], NameIndex]:
    with path.open('rb') as file:
        line = file.readline()
        n_bytes = os.fstat(file.fileno()).st_size - len(line)
    header = json.loads(line)
    count, width = header['count'], header['width']
    if header['form'] != _FORM or n_bytes != count * width:
        raise ValueError('incomplete index')
    names = np.memmap(path, f'S{width}', 'r', len(line), (count,)) if count else np.zeros(0, f'S{width}')
    return header, NameIndex(names, path)


def _reopened(path: Path) -> NameIndex:
    return _mapped(path)[1]


def _default_path(root: Path) -> Path:
    key = f'{os.path.realpath(root)}|{_SUFFIX}'
    digest = hashlib.blake2b(key.encode('utf-8', 'surrogateescape'), digest_size=6).hexdigest()
    return cache_dir() / 'indexes' / f'{root.resolve().name}-{digest}.index'


@DATASETS.register_module()
class UnSAMSA1B(LazyDataset):
    """Images with one label file each, in any number of subfolders: those of SA-1B, or of ``generate``.

    The label file of ``sa_1.jpg`` is ``sa_1.json`` in SA-1B, and ``sa_1.jpg.json`` from ``python -m unsam_mm
    generate``. Images without a label file are left out. A sorted index of the names is memory-mapped at the start (see
    `unsam_mm.datasets.sa1b.open_index`), so the time and memory for an existing index do not depend on the number of
    images. Label files are read lazily.

    Entries have ``img_path``, ``img_name`` (path relative to the image folder), ``img_root``, ``img_id``, ``height``,
    ``width`` and ``instances`` as in `UnSAMImageFolder`, and ``pseudo_masks_root`` if it is set.

    Args:
        data_root: Folder of the images.
        data_prefix: Subfolders, by default none: ``img`` of the images and ``ann`` of SA-1B's label files.
        labels: 'human': the files of SA-1B. 'pseudo': those in `pseudo_masks_root`. 'both', for UnSAM+: human labels,
            to which `UnSAMPlusMasks` in the pipeline adds pseudo-masks.
        pseudo_masks_root: Folder written by ``generate``, for 'pseudo' and 'both'.
        index_file: Path of the index, by default in the cache.
        reindex: True to list the folder again even if it has not changed.
        homepage: Homepage of the data, for error messages.
        **kwargs: Passed to `BaseDetDataset`: pipeline, test_mode, indices, ... An integer for `indices` selects the
            first images by name.

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
        self._index: NameIndex
        prefix = {'img': '', 'ann': ''} | (data_prefix or {})
        super().__init__(data_root=str(data_root), data_prefix=prefix, homepage=homepage, **kwargs)

    @property
    def label_root(self) -> Path:
        """The folder of the label files."""
        return Path(self.pseudo_masks_root if self.labels == 'pseudo' else self.data_prefix['ann'])

    def count_entries(self) -> int:
        """Opens the index, and returns the number of label files."""
        root = self.label_root
        if not root.is_dir():
            raise StoreError(f'{root}: no such folder; expected one JSON file for each image{self.advice}')
        path = Path(self.index_file) if self.index_file else None
        self._index = open_index(root, path, self.reindex)
        if not len(self._index):
            raise StoreError(
                f'{root}: no label files; expected one JSON file for each image, such as sa_1.json{self.advice}'
            )
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
            instances = [as_instance(annotation) for annotation in annotations]
            entry = self.make_entry(name, image.get('image_id', name_hash(name)), image_size(image), instances)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f'{path}: not a label file ({describe_error(error)}); expected "image" with "file_name", '
                '"height" and "width", and "annotations"; remove it or make it again'
            ) from error
        return entry | ({'pseudo_masks_root': self.pseudo_masks_root} if self.pseudo_masks_root else {})
