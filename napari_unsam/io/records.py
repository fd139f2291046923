"""Saved work on disk: one JSON file, written atomically, and the blocks of labels that it names.

A block is named by its content, so a save writes only blocks that changed, and the record always is that of one moment.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import datetime
from enum import Enum
from itertools import chain, count, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock, Timeout

from napari_unsam.io.objects import is_missing, known_columns, plain, rows_by_label
from napari_unsam.model import prompts as _prompts
from napari_unsam.model.frame import Channels
from napari_unsam.model.label_boxes import object_boxes
from napari_unsam.model.text import counted
from napari_unsam.viewer.commit import MAX_LABEL, ObjectWrite, with_parent_renumbered
from unsam_mm.errors import StoreError, explained
from unsam_mm.files import atomic_writer, read_json, write_json
from unsam_mm.npz import read_npz

if TYPE_CHECKING:
    import pandas as pd
    from napari.layers import Image

_FORMAT = 1
_MANIFEST, _BLOCKS = 'work.json', 'blocks'
LOCK = 'lock'
"""Name of the file in the folder of a record that its session holds locked."""
_OWN_FILES = (f'{_BLOCKS}/*.npz', f'{_BLOCKS}/.unsam-*.part', '.unsam-*.part')
_BLOCK_SIDE_PX = 512  # of the last two axes; the others have one plane in a block
_SAMPLES = 4096  # of an image's values, which tell it from others

_STORED = {'PendingObject': 'SetAside', 'pending': 'asides'}  # names in files that differ from those in the code
_CURRENT = {stored: name for name, stored in _STORED.items()}
logger = logging.getLogger(__name__)


def image_identity(image: Image) -> str:
    """Tells one image from others, in this session and the next.

    Where it comes from, its name, shape and type; and a sample of its values if they are in memory.
    """
    data = image.data[0] if image.multiscale else image.data
    source = image.source
    # Names of dask arrays and places of zarr arrays stand for their content, which would take long to read.
    origin = [source.path, source.sample, getattr(data, 'name', None), getattr(data, 'store_path', None)]
    digest = hashlib.blake2b(digest_size=16)
    digest.update(repr((image.name, tuple(data.shape), str(data.dtype), [str(part) for part in origin])).encode())
    if isinstance(data, np.ndarray):
        per_axis = _SAMPLES ** (1 / max(data.ndim, 1))
        sample = data[tuple(slice(None, None, int(np.ceil(length / per_axis)) or 1) for length in data.shape)]
        digest.update(np.ascontiguousarray(sample))
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Work:
    """The work on one image at one moment.

    Attributes:
        image_name: What the user calls the image.
        prompts: A frozen dataclass of `napari_unsam.model.prompts`, or a tuple of such.
        polarity: Of the next click.
        position: Of the viewer's sliders, in world coordinates, one for each of its axes.
        labels: The array of objects, which may change while it is read; None if there is none.
        features: Rows of the objects.
        replaces: Names of the folders beside that of this record whose work it holds too; they are not offered again.
        channels: Which ones along an axis of the image the objects and prompts belong to; None if it has none.
    """

    image_name: str
    prompts: Any
    polarity: _prompts.Polarity
    position: tuple[float, ...]
    labels: np.ndarray | None
    features: pd.DataFrame
    replaces: tuple[str, ...] = ()
    channels: Channels | None = None


@dataclass(frozen=True, eq=False)
class SavedObjects:
    """The objects of saved work, read from disk.

    Attributes:
        writes: One for each object.
        shape: Of the array that they are for; None if there was none.
        damaged: How many blocks of it could not be read.
        relabelled: How many objects got another label, as theirs was negative or needs more than 32 bits.
    """

    writes: list[ObjectWrite]
    shape: tuple[int, ...] | None
    damaged: int
    relabelled: int


@dataclass(frozen=True, eq=False)
class SavedSession:
    """Saved work of an earlier session; what is not listed here is as in `Work`.

    Attributes:
        folder: Where it lies.
        identity: Of the image.
        saved_at: When, in local time.
        lost_prompts: How many could not be read; a newer version may have written them.
        shape: Of the array of objects; None if there was none.
        channels: None as well if an earlier version saved it.
    """

    folder: Path
    identity: str
    image_name: str
    saved_at: datetime
    prompts: Any
    lost_prompts: int
    polarity: _prompts.Polarity
    position: tuple[float, ...]
    shape: tuple[int, ...] | None
    features: pd.DataFrame
    replaces: tuple[str, ...]
    channels: Channels | None
    _blocks: tuple[tuple[tuple[int, ...], str], ...]

    @property
    def is_empty(self) -> bool:
        """Whether there are neither objects nor prompts."""
        return not self._blocks and not self.prompts

    @property
    def description(self) -> str:
        """One line for the user."""
        return (
            f'{counted(len(self.features), "object")} and {counted(count_prompts(self.prompts), "prompt")} on '
            f'"{self.image_name}", saved on {self.saved_at:%Y-%m-%d at %H:%M}'
        )

    def labels(self) -> tuple[np.ndarray | None, int]:
        """The array of objects, uint32, or int64 where a label does not fit; and how many blocks of it are damaged.

        Damaged blocks are left empty.

        Raises:
            StoreError: If there is not memory enough for the array.
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
            values = _read_block(self.folder / _BLOCKS / name)
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
        """Reads the objects, in any thread.

        Raises:
            StoreError: If there is not memory enough.
        """
        array, damaged = self.labels()
        if array is None:
            return SavedObjects([], None, damaged, 0)
        writes, relabelled = _writes(array, self.features)
        return SavedObjects(writes, array.shape, damaged, relabelled)


def write_work(folder: Path, identity: str, work: Work, newest: Callable[[], Work | None] | None = None) -> bool:
    """Writes what has changed since the last time, and removes blocks that are needed no more.

    Args:
        folder: Of the record.
        identity: Of the image.
        work: What to write.
        newest: Asked once the labels are read: what the rest is taken of, by default `work`. None, where the labels have
            changed meanwhile: the record stays as it was.

    Returns:
        Whether the record is now that of `work`.

    Raises:
        StoreError: If the folder cannot be written or the disk is full; what was saved before is still whole then.
    """
    blocks = []
    for start, values in _filled_blocks(work.labels):
        name = f'{_digest(values)}.npz'
        blocks.append({'start': start, 'file': name})
        path = folder / _BLOCKS / name
        if not path.exists():
            with atomic_writer(path, binary=True) as file:
                np.savez_compressed(file, labels=values)
    if newest is not None:
        work = newest()
    if work is None:
        return False
    write_json(
        folder / _MANIFEST,
        {
            'format': _FORMAT,
            'identity': identity,
            'image': work.image_name,
            'saved_at': datetime.now().astimezone().isoformat(timespec='milliseconds'),
            'prompts': encoded(work.prompts),
            'polarity': work.polarity.name,
            'position': [float(value) for value in work.position],
            'shape': None if work.labels is None else list(map(int, work.labels.shape)),
            'blocks': blocks,
            'features': {str(name): [_as_json(value) for value in work.features[name]] for name in work.features},
            'replaces': list(work.replaces),
            'channels': None if work.channels is None else asdict(work.channels),
        },
    )
    needed = {block['file'] for block in blocks}
    for path in (folder / _BLOCKS).glob('*.npz'):
        if path.name not in needed:
            path.unlink(missing_ok=True)
    return True


def read_work(folder: Path) -> SavedSession | None:
    """The work in a folder; None if none was saved there.

    Raises:
        StoreError: If a newer version wrote it, or it is damaged.
    """
    if not (folder / _MANIFEST).is_file():
        return None
    known = read_json(folder / _MANIFEST)
    found = known.get('format') if isinstance(known, dict) else None
    if isinstance(found, int) and found > _FORMAT:
        raise StoreError(
            f'{folder}: a newer version of the plugin saved this work (format {found}, this one reads {_FORMAT}); '
            'update the plugin to restore it'
        )
    try:
        import pandas as pd

        if found != _FORMAT:
            raise ValueError(f'format {found!r}, expected {_FORMAT}')
        lost: list[str] = []
        prompts, channels = decoded(known['prompts'], lost), known.get('channels')
        return SavedSession(
            folder=folder,
            identity=known['identity'],
            image_name=known['image'],
            saved_at=datetime.fromisoformat(known['saved_at']),
            prompts=prompts,
            lost_prompts=len(lost),
            polarity=_prompts.Polarity[known['polarity']],
            position=tuple(known['position']),
            shape=None if known['shape'] is None else tuple(map(int, known['shape'])),
            features=pd.DataFrame(known['features']),
            replaces=tuple(map(str, known.get('replaces', ()))),
            channels=None if channels is None else Channels(int(channels['axis']), tuple(map(int, channels['chosen']))),
            _blocks=tuple((tuple(map(int, block['start'])), str(block['file'])) for block in known['blocks']),
        )
    except (StoreError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f'{folder}: the saved work is damaged ({explained(error)}); remove that folder if you do not need it'
        ) from error


def lock_abandoned(folder: Path) -> FileLock | None:
    """Locks a record that no session is at work on; None if one is, or it cannot be locked."""
    lock = FileLock(folder / LOCK, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError, NotImplementedError):
        return None
    return lock


def remove_work(folder: Path, lock: FileLock | None = None) -> None:
    """Removes a record; first the file without which the rest means nothing. Files of others in the folder stay.

    Args:
        folder: Of the record.
        lock: Its lock, if the caller holds it. It is released once there is nothing that another session could take up, and
            before its file is removed: Windows removes no file that is open.

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
    with suppress(OSError):  # another session may look whether the record is abandoned
        (folder / LOCK).unlink(missing_ok=True)
    for emptied in (folder / _BLOCKS, folder, folder.parent):  # the last is that of the image
        with suppress(OSError):
            emptied.rmdir()


def encoded(value: Any) -> Any:
    """A prompt as JSON can hold it: frozen dataclasses and enums of `_prompts` by name, tuples, plain values.

    Raises:
        StoreError: If a part of it is none of these.
    """
    kinds = prompt_kinds()
    if isinstance(value, Enum) and type(value).__name__ in kinds:
        return {'enum': type(value).__name__, 'name': value.name}
    if is_dataclass(value) and type(value).__name__ in kinds:
        name = type(value).__name__
        parts = {_STORED.get(field.name, field.name): encoded(getattr(value, field.name)) for field in fields(value)}
        return {'kind': _STORED.get(name, name), 'parts': parts}
    if isinstance(value, tuple | list):
        return [encoded(part) for part in value]
    value = plain(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise StoreError(f'a prompt holds {value!r}, which cannot be saved; prompts are frozen dataclasses of tuples')


def decoded(value: Any, lost: list[str]) -> Any:
    """What `encoded` was given; lists are tuples, and what this version cannot read is left out of them.

    Args:
        value: As JSON holds it.
        lost: Gets the reason for each part of a list that was left out.

    Raises:
        StoreError: If the whole cannot be read.
    """
    if isinstance(value, list):
        return tuple(_readable(value, lost))
    if not isinstance(value, dict):
        return value
    name = value.get('enum') or value.get('kind')
    kind = prompt_kinds().get(_CURRENT.get(name, name))
    if kind is None:
        raise StoreError(f'{name!r} is not a kind of prompt of this version')
    try:
        if issubclass(kind, Enum):
            return kind[value['name']]
        return kind(**{_CURRENT.get(part, part): decoded(content, lost) for part, content in value['parts'].items()})
    except (KeyError, TypeError) as error:
        raise StoreError(f'{name} of another version: {error}') from error


def count_prompts(prompts: Any) -> int:
    """The number of prompts in a tuple or in the tuples of a dataclass, without pending objects."""
    if isinstance(prompts, tuple):
        return len(prompts)
    parts = {name: part for name, part in vars(prompts).items() if isinstance(part, tuple)}
    return sum(len(part) for name, part in parts.items() if name != 'pending')


def prompt_kinds() -> Mapping[str, type]:
    """The frozen dataclasses and the enums that `_prompts` defines, by name; nothing else is ever made from a file."""
    return {
        name: kind
        for name, kind in vars(_prompts).items()
        if isinstance(kind, type)
        and kind.__module__ == _prompts.__name__
        and (issubclass(kind, Enum) or (is_dataclass(kind) and kind.__dataclass_params__.frozen))
    }


def _readable(values: list[Any], lost: list[str]) -> Iterator[Any]:
    for value in values:
        try:
            yield decoded(value, lost)
        except StoreError as error:
            logger.warning('a saved prompt cannot be read: %s', error)
            lost.append(str(error))


def _filled_blocks(labels: np.ndarray | None) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Where each block begins that is not empty, and its values: uint32, or int64 where one does not fit."""
    if labels is None:
        return
    sides = [1] * (labels.ndim - 2) + [_BLOCK_SIDE_PX] * 2
    for start in product(*(range(0, length, side) for length, side in zip(labels.shape, sides, strict=True))):
        box = tuple(slice(at, at + side) for at, side in zip(start, sides, strict=True))
        values = np.asarray(labels[box])
        if values.any():
            is_small = values.min() >= 0 and values.max() <= MAX_LABEL
            yield start, np.ascontiguousarray(values, np.uint32 if is_small else np.int64)


def _read_block(path: Path) -> np.ndarray:
    """The values of a block; none if it cannot be read."""
    try:
        return read_npz(path)['labels']
    except (OSError, KeyError, StoreError) as error:
        logger.warning('a block of saved labels cannot be read: %s: %s', path, error)
        return np.zeros(0)


def _writes(array: np.ndarray, features: pd.DataFrame) -> tuple[list[ObjectWrite], int]:
    """One for each object in an array of labels, with its row; and how many got another label, which a layer can hold."""
    boxes = object_boxes(array)
    highest = max((label for label in boxes if 0 < label <= MAX_LABEL), default=0)
    # Above all others while there are such labels, so that nothing is taken for an object that was deleted.
    fresh = (label for label in chain(range(highest + 1, MAX_LABEL + 1), count(1)) if label not in boxes)
    new = {label: label if 0 < label <= MAX_LABEL else next(fresh) for label in boxes}
    rows = {
        label: with_parent_renumbered(known_columns(row), new, keep_absent=True)
        for label, row in rows_by_label(features).items()
    }
    writes = [ObjectWrite(box, array[box] == label, new[label], rows.get(label, {})) for label, box in boxes.items()]
    return writes, sum(label != to for label, to in new.items())


def _digest(values: np.ndarray) -> str:
    digest = hashlib.blake2b(repr(values.shape).encode(), digest_size=16)
    digest.update(values)
    return digest.hexdigest()


def _as_json(value: Any) -> Any:
    """A cell of a table as JSON can hold it; what is missing is None."""
    value = plain(value)
    if is_missing(value):
        return None
    return value if isinstance(value, bool | int | float | str) else str(value)
