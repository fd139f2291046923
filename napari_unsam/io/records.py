"""Saved work on disk: one JSON file, written atomically, and the blocks of labels that it lists.

A block is named by the hash of its content, so a save writes only blocks that have changed, and the blocks that the
JSON file lists are never overwritten.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import Enum
from itertools import chain, count, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from napari_unsam.io.objects import is_missing, known_columns, plain, rows_by_label
from napari_unsam.model.frame import Channels, full_resolution
from napari_unsam.model.label_boxes import LazyArray, object_boxes
from napari_unsam.model.prompts import PendingObject, PointPrompt, Polarity, Prompts, ShapeKind, ShapePrompt
from napari_unsam.model.text import counted
from napari_unsam.viewer.object_write import MAX_LABEL, ObjectWrite, with_parent_renumbered
from unsam_mm.errors import StoreError, describe_error
from unsam_mm.files import atomic_writer, read_json, write_json
from unsam_mm.npz import read_npz

if TYPE_CHECKING:
    import pandas as pd
    from napari.layers import Image

_FORMAT = 1
_MANIFEST, _BLOCKS = 'work.json', 'blocks'
LOCK = 'lock'
"""File in the folder of a record that its session keeps locked."""
_OWN_FILES = (f'{_BLOCKS}/*.npz', f'{_BLOCKS}/.unsam-*.part', '.unsam-*.part')
_BLOCK_SIDE_PX = 512  # along rows and columns; along the other axes a block is one plane thick
_SAMPLES = 4096  # approximate number of values of an image that its hash covers
_PROMPTS = {'points': PointPrompt, 'shapes': ShapePrompt, 'pending': PendingObject}
_ENUMS = {'polarity': Polarity, 'kind': ShapeKind}

logger = logging.getLogger(__name__)


def image_identity(image: Image) -> str:
    """A hash that identifies an image across sessions.

    It covers the source, name, shape and dtype, and a sample of the values if they are in memory.
    """
    data, source = full_resolution(image), image.source
    # Names of dask arrays and paths of zarr arrays replace their content, which would take long to read.
    origin = [source.path, source.sample, getattr(data, 'name', None), getattr(data, 'store_path', None)]
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((image.name, tuple(data.shape), str(data.dtype), [str(part) for part in origin])).encode())
    if isinstance(data, np.ndarray):
        per_axis = _SAMPLES ** (1 / max(data.ndim, 1))
        sample = data[tuple(slice(None, None, int(np.ceil(length / per_axis)) or 1) for length in data.shape)]
        digest.update(np.ascontiguousarray(sample))
    return digest.hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class WorkState:
    """The state of the work on one image, without the labels.

    Attributes:
        image_name: Name of the image layer.
        prompts: All prompts on the image.
        polarity: Polarity of the next click.
        position: World coordinates of the viewer's sliders, one for each axis.
        features: Features table of the objects.
        replaces: Folder names of the records that were restored into this one; they are not offered again.
        channels: The chosen channels along an axis of the image; None if no axis is chosen.
    """

    image_name: str
    prompts: Prompts
    polarity: Polarity
    position: tuple[float, ...]
    features: pd.DataFrame
    replaces: tuple[str, ...] = ()
    channels: Channels | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Work(WorkState):
    """The work on one image that is to be saved.

    Attributes:
        labels: The array of objects, which may change while it is read; None if there is none.
    """

    labels: LazyArray | None


@dataclass(frozen=True, eq=False)
class SavedObjects:
    """The objects of saved work, read from disk.

    Attributes:
        writes: The objects, to be written into a layer.
        damaged: Number of blocks that could not be read.
        relabelled: Number of objects with a new label, since the saved one was negative or needs more than 32 bits.
    """

    writes: list[ObjectWrite]
    damaged: int = 0
    relabelled: int = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class SavedSession(WorkState):
    """The saved work of an earlier session.

    Attributes:
        folder: Folder of the record.
        saved_at: Time of the save, with its time zone.
        lost_prompts: Number of prompts that could not be read.
        shape: Shape of the array of objects; None if there was none.
    """

    folder: Path
    saved_at: datetime
    lost_prompts: int
    shape: tuple[int, ...] | None
    _blocks: tuple[tuple[tuple[int, ...], str], ...]

    @property
    def is_empty(self) -> bool:
        """True if there are neither objects nor prompts."""
        return not self._blocks and not self.prompts

    @property
    def description(self) -> str:
        """Number of objects and prompts, image and time of the save, in one line for the user."""
        return (
            f'{counted(len(self.features), "object")} and {counted(count_prompts(self.prompts), "prompt")} on '
            f'"{self.image_name}", saved on {self.saved_at:%Y-%m-%d at %H:%M}'
        )

    def labels(self) -> tuple[np.ndarray | None, int]:
        """The array of objects, None if there was none, and the number of damaged blocks, whose pixels are 0.

        The array is uint32, or int64 if a label does not fit.

        Raises:
            StoreError: If the array does not fit into memory.
        """
        if self.shape is None:
            return None, 0
        try:
            labels = np.zeros(self.shape, np.uint32)
        except (MemoryError, ValueError) as error:
            raise StoreError(
                f'{self.folder}: the saved objects have shape {self.shape}, too large for the memory; the work stays saved'
            ) from error
        damaged = 0
        for start, name in self._blocks:
            try:
                values = read_npz(self.folder / _BLOCKS / name)['labels']
            except (OSError, KeyError, StoreError) as error:
                logger.warning('a block of saved labels cannot be read: %s: %s', self.folder / _BLOCKS / name, error)
                values = np.zeros(0)
            place = tuple(slice(at, at + side) for at, side in zip(start, values.shape, strict=False))
            is_inside = len(start) == values.ndim == labels.ndim and values.size and min(start) >= 0
            if not is_inside or labels[place].shape != values.shape or _digest(values) != Path(name).stem:
                damaged += 1
                continue
            if values.dtype != np.uint32:
                labels = labels.astype(np.int64, copy=False)
            labels[place] = values
        return labels, damaged

    def objects(self) -> SavedObjects:
        """Reads the objects; can be called in any thread.

        Raises:
            StoreError: If the labels do not fit into memory.
        """
        array, damaged = self.labels()
        if array is None:
            return SavedObjects([])
        boxes = object_boxes(array)
        highest = max((label for label in boxes if 0 < label <= MAX_LABEL), default=0)
        # Labels above all others come first, since a free label below may be that of a deleted object.
        fresh = (label for label in chain(range(highest + 1, MAX_LABEL + 1), count(1)) if label not in boxes)
        new = {label: label if 0 < label <= MAX_LABEL else next(fresh) for label in boxes}
        rows = rows_by_label(self.features)
        writes = []
        for label, box in boxes.items():
            row = with_parent_renumbered(known_columns(rows.get(label, {})), new, keep_absent=True)
            writes.append(ObjectWrite(box, array[box] == label, new[label], row))
        return SavedObjects(writes, damaged, sum(label != to for label, to in new.items()))


def write_blocks(folder: Path, labels: LazyArray | None) -> list[dict[str, Any]]:
    """Writes the blocks of labels that a record does not have yet; its JSON file is not changed.

    Args:
        folder: Folder of the record.
        labels: The labels; None if there are none.

    Returns:
        The index of the first voxel (`start`) and the file name (`file`) of each block that is not empty, for
        `write_work`.

    Raises:
        StoreError: If the folder cannot be written or the disk is full.
    """
    blocks = []
    for start, values in _filled_blocks(labels):
        name = f'{_digest(values)}.npz'
        blocks.append({'start': start, 'file': name})
        path = folder / _BLOCKS / name
        if not path.exists():
            with atomic_writer(path, binary=True) as file:
                np.savez_compressed(file, labels=values)
    return blocks


def write_work(folder: Path, work: Work, blocks: list[dict[str, Any]]) -> None:
    """Replaces the record in a folder, and removes blocks that it no longer needs.

    Args:
        folder: Folder of the record.
        work: The work.
        blocks: The blocks of the labels, from `write_blocks`.

    Raises:
        StoreError: If the folder cannot be written or the disk is full; the record stays as it was.
    """
    write_json(
        folder / _MANIFEST,
        {
            'format': _FORMAT,
            'image': work.image_name,
            'saved_at': datetime.now().astimezone().isoformat(timespec='milliseconds'),
            'prompts': _prompts_to_json(asdict(work.prompts)),
            'polarity': work.polarity.name,
            'position': [float(value) for value in work.position],
            'shape': None if work.labels is None else list(map(int, work.labels.shape)),
            'blocks': blocks,
            'features': {str(name): [_cell_to_json(cell) for cell in work.features[name]] for name in work.features},
            'replaces': list(work.replaces),
            'channels': None if work.channels is None else asdict(work.channels),
        },
    )
    needed = {block['file'] for block in blocks}
    for path in (folder / _BLOCKS).glob('*.npz'):
        if path.name not in needed:
            path.unlink(missing_ok=True)


def read_work(folder: Path) -> SavedSession | None:
    """Reads the record in a folder, without its labels; returns None if there is none.

    Raises:
        StoreError: If the record is damaged, or was written by a newer version.
    """
    if not (folder / _MANIFEST).is_file():
        return None
    stored = read_json(folder / _MANIFEST)
    found = stored.get('format') if isinstance(stored, dict) else None
    if isinstance(found, int) and found > _FORMAT:
        raise StoreError(
            f'{folder}: a newer version of the plugin saved this work (format {found}, this one reads {_FORMAT}); '
            'update the plugin to restore it'
        )
    try:
        import pandas as pd

        if found != _FORMAT:
            raise ValueError(f'format {found!r}, expected {_FORMAT}')
        prompts, lost_prompts = _prompts_from_json(stored['prompts'])
        channels = stored['channels']
        return SavedSession(
            folder=folder,
            image_name=stored['image'],
            saved_at=datetime.fromisoformat(stored['saved_at']),
            prompts=prompts,
            lost_prompts=lost_prompts,
            polarity=Polarity[stored['polarity']],
            position=tuple(stored['position']),
            shape=None if stored['shape'] is None else tuple(map(int, stored['shape'])),
            features=pd.DataFrame(stored['features']),
            replaces=tuple(map(str, stored['replaces'])),
            channels=None if channels is None else Channels(int(channels['axis']), tuple(map(int, channels['chosen']))),
            _blocks=tuple((tuple(map(int, block['start'])), str(block['file'])) for block in stored['blocks']),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f'{folder}: the saved work is damaged ({describe_error(error)}); remove that folder if you do not need it'
        ) from error


def lock_record(folder: Path, timeout_s: float = 0.0) -> FileLock | None:
    """Locks a record, creating its folder if needed; None if another session uses it or it cannot be locked."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, thread_local=False)
        lock.acquire(timeout=timeout_s)
    except (OSError, NotImplementedError) as error:
        logger.debug('%s cannot be locked: %s', folder, error)
        return None
    return lock


def remove_work(folder: Path, lock: FileLock | None = None) -> None:
    """Removes a record, its JSON file first, since a folder without this file is no record; foreign files stay.

    Args:
        folder: Folder of the record.
        lock: The lock of the record if the caller holds it. It is released after the record is removed, so that no
            other session can restore it, and before the lock file is removed: Windows does not remove open files.

    Raises:
        StoreError: If the record cannot be removed.
    """
    try:
        (folder / _MANIFEST).unlink(missing_ok=True)
        for pattern in _OWN_FILES:
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f'{folder}: cannot be removed ({error.strerror}); check its permissions') from error
    if lock is not None:
        lock.release()
    with suppress(OSError):  # another session may be testing the lock
        (folder / LOCK).unlink(missing_ok=True)
    for emptied in (folder / _BLOCKS, folder, folder.parent):  # the last is the folder of the image
        with suppress(OSError):
            emptied.rmdir()


def count_prompts(prompts: Prompts) -> int:
    """The number of clicks and shapes."""
    return len(prompts.points) + len(prompts.shapes)


def _prompts_to_json(value: Any) -> Any:
    """Prompts from `asdict`, or a part of them, as JSON: enums by name, NumPy scalars as Python numbers."""
    if isinstance(value, dict):
        return {name: _prompts_to_json(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [_prompts_to_json(part) for part in value]
    return value.name if isinstance(value, Enum) else plain(value)


def _prompts_from_json(stored: Mapping[str, Any]) -> tuple[Prompts, int]:
    """The prompts that can be read, and the number of those that cannot.

    Raises:
        KeyError: If a list of prompts or the next object's number is missing.
    """
    readable, n_lost = {}, 0
    for name, kind in _PROMPTS.items():
        prompts = []
        for fields in stored[name]:
            try:
                values = {
                    field: _ENUMS[field][value] if field in _ENUMS else _as_tuples(value)
                    for field, value in fields.items()
                }
                prompts.append(kind(**values))
            except (KeyError, TypeError, AttributeError) as error:
                logger.warning('a saved prompt cannot be read: %s', describe_error(error))
                n_lost += 1
        readable[name] = tuple(prompts)
    return Prompts(object_id=stored['object_id'], **readable), n_lost


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _filled_blocks(labels: LazyArray | None) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Yields the start and the values of each block that is not empty: uint32, or int64 if a label does not fit."""
    if labels is None:
        return
    sides = [1] * (len(labels.shape) - 2) + [_BLOCK_SIDE_PX] * 2
    for start in product(*(range(0, length, side) for length, side in zip(labels.shape, sides, strict=True))):
        box = tuple(slice(at, at + side) for at, side in zip(start, sides, strict=True))
        values = np.asarray(labels[box])
        if values.any():
            is_small = values.min() >= 0 and values.max() <= MAX_LABEL
            yield start, np.ascontiguousarray(values, np.uint32 if is_small else np.int64)


def _digest(values: np.ndarray) -> str:
    digest = hashlib.blake2b(repr(values.shape).encode(), digest_size=16)
    digest.update(values)
    return digest.hexdigest()


def _cell_to_json(value: Any) -> Any:
    """A cell of a table as JSON; None if it is empty, text if JSON has no such type."""
    value = plain(value)
    if is_missing(value):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)
